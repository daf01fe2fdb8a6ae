"""The kernel in memory does as the real one was seen to do."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from kinkd.errors import KernelError
from kinkd.kernel.memory import MemoryKernel
from kinkd.kernel.netlink import LayoutError
from kinkd.kernel.port import Acquire, Expire, Sa, SaId, SaLimits
from kinkd.keying.algorithms import SUITES
from kinkd.model import (
    Direction,
    IpsecProtocol,
    Mode,
    Secret,
    Selector,
    SpdEntry,
    Template,
)

A, B = IPv4Address("10.9.0.1"), IPv4Address("10.9.0.2")
SUITE = SUITES["aes256gcm16"]
OUT = SpdEntry(
    Direction.OUT, Selector.between(A, B), 10, Template(IpsecProtocol.ESP, Mode.TRANSPORT, 7)
)
IN = replace(OUT, direction=Direction.IN)


def sa(spi: int = 0x500, fill: int = 1) -> Sa:
    keymat = Secret(bytes([fill]) * SUITE.keymat_octets)
    return Sa(SaId(A, B, spi), Mode.TRANSPORT, 7, Selector.between(A, B), SUITE, keymat)


@pytest.fixture
def pair() -> tuple[MemoryKernel, MemoryKernel]:
    alice, bob = MemoryKernel(), MemoryKernel()
    alice.write_policy(OUT)
    bob.write_policy(IN)
    return alice, bob


def test_a_packet_passes_where_both_hold_the_same_sa(
    pair: tuple[MemoryKernel, MemoryKernel],
) -> None:
    alice, bob = pair
    bob.install_inbound(sa())
    alice.install_outbound(sa(), [OUT])
    assert alice.send(bob, A, B) == "esp"
    for kernel in pair:
        state = kernel.state(sa().id)
        assert state is not None
        assert (state.packets, state.octets) == (1, 64)


@pytest.mark.parametrize("other", [sa(fill=2), sa(spi=0x501)], ids=["keymat", "spi"])
def test_a_packet_is_dropped_where_keymat_or_spi_differ(
    pair: tuple[MemoryKernel, MemoryKernel], other: Sa
) -> None:
    alice, bob = pair
    bob.install_inbound(other)
    alice.install_outbound(sa(), [OUT])
    assert alice.send(bob, A, B) == "dropped"


def test_an_sa_of_another_reqid_does_not_satisfy_the_inbound_policy(
    pair: tuple[MemoryKernel, MemoryKernel],
) -> None:
    alice, bob = pair
    bob.install_inbound(replace(sa(), reqid=8))
    alice.install_outbound(sa(), [OUT])
    assert alice.send(bob, A, B) == "dropped"


def test_clear_traffic_does_not_satisfy_an_inbound_policy_that_requires(
    pair: tuple[MemoryKernel, MemoryKernel],
) -> None:
    _, bob = pair
    assert MemoryKernel().send(bob, A, B) == "dropped"
    assert MemoryKernel().send(MemoryKernel(), A, B) == "clear"


def test_traffic_is_held_and_acquires_once_until_the_larval_sa_lapses(
    pair: tuple[MemoryKernel, MemoryKernel],
) -> None:
    alice, _ = pair
    assert alice.traffic(A, B, 100) == "held"
    (acquire,) = alice.events()
    assert isinstance(acquire, Acquire)
    assert (acquire.source, acquire.destination, acquire.reqid) == (A, B, 7)
    assert alice.traffic(A, B, 129) == "held"
    assert alice.events() == []
    assert [state.larval for state in alice.states()] == [True]
    alice.advance(130)
    assert alice.events() == [Expire(SaId(A, B, 0), 7, hard=True)]
    assert alice.traffic(A, B, 131) == "held"
    assert [type(event) for event in alice.events()] == [Acquire]


def test_a_cleared_acquire_comes_again_with_the_next_packet(
    pair: tuple[MemoryKernel, MemoryKernel],
) -> None:
    alice, _ = pair
    alice.traffic(A, B, 1)
    (acquire,) = alice.events()
    assert isinstance(acquire, Acquire)
    alice.clear_acquire(acquire)
    alice.traffic(A, B, 2)
    assert len(alice.events()) == 1


def test_the_outbound_sa_releases_what_the_refreshed_policy_held(
    pair: tuple[MemoryKernel, MemoryKernel],
) -> None:
    alice, _ = pair
    alice.traffic(A, B, 1)
    alice.install_outbound(sa(0x600), [])
    assert alice.released == []  # only writing the policy drains its queue
    alice.install_outbound(sa(), [OUT])
    assert len(alice.released) == 1
    assert alice.states()[-1].larval is False


def test_what_a_removed_policy_held_is_dropped(pair: tuple[MemoryKernel, MemoryKernel]) -> None:
    alice, _ = pair
    alice.traffic(A, B, 1)
    assert alice.remove_policy(OUT.direction, OUT.selector)
    assert not alice.remove_policy(OUT.direction, OUT.selector)
    assert alice.released == []


def test_an_optional_policy_lets_clear_traffic_out_and_still_acquires() -> None:
    kernel = MemoryKernel()
    template = Template(IpsecProtocol.ESP, Mode.TRANSPORT, 7, optional=True)
    kernel.write_policy(replace(OUT, template=template))
    assert kernel.traffic(A, B, 1) == "clear"
    assert len(kernel.events()) == 1


def test_a_second_sa_of_one_spi_is_eexist() -> None:
    kernel = MemoryKernel()
    kernel.install_outbound(sa(), [])
    with pytest.raises(KernelError) as caught:
        kernel.install_outbound(sa(fill=2), [])
    assert caught.value.errno == errno.EEXIST


def test_a_reserved_spi_is_larval_until_it_is_filled_and_lapses_if_it_is_not() -> None:
    kernel = MemoryKernel()
    first, second = kernel.allocate_spi(A, B, 7), kernel.allocate_spi(A, B, 7)
    assert first != second
    with pytest.raises(KernelError) as caught:  # NEWSA over a reservation
        kernel.install_outbound(sa(first), [])
    assert caught.value.errno == errno.EEXIST
    kernel.install_inbound(sa(first))
    assert [state.larval for state in kernel.states()] == [False, True]
    kernel.advance(30)
    assert kernel.events() == [Expire(SaId(A, B, second), 7, hard=True)]
    kernel.install_inbound(sa(second))
    assert [state.larval for state in kernel.states()] == [False, False]


def test_of_an_sa_in_use_an_update_changes_only_the_limits() -> None:
    kernel, peer = MemoryKernel(), MemoryKernel()
    peer.install_inbound(sa())
    peer.install_inbound(replace(sa(fill=9), limits=SaLimits(hard_seconds=50)))
    kernel.write_policy(OUT)
    kernel.install_outbound(sa(), [])
    assert kernel.send(peer, A, B) == "esp"  # still the first key
    peer.advance(50)
    assert peer.states() == []


def test_the_newest_sa_is_used_unless_it_is_past_its_soft_limit() -> None:
    kernel = MemoryKernel()
    kernel.write_policy(OUT)
    kernel.install_outbound(sa(1000), [])
    kernel.install_outbound(replace(sa(1001), limits=SaLimits(soft_packets=1)), [])
    for _ in range(3):
        kernel.traffic(A, B, 1)
    packets = {state.id.spi: state.packets for state in kernel.states()}
    assert packets == {1001: 2, 1000: 1}


def test_limits_in_seconds_and_in_octets_are_told_and_kept() -> None:
    kernel = MemoryKernel()
    kernel.write_policy(OUT)
    limits = SaLimits(soft_seconds=10, hard_seconds=20, soft_octets=100, hard_octets=200)
    kernel.install_outbound(replace(sa(), limits=limits), [])
    kernel.advance(9)
    assert kernel.events() == []
    kernel.advance(10)
    kernel.advance(11)
    assert kernel.events() == [Expire(sa().id, 7, hard=False)]
    for _ in range(2):
        assert kernel.traffic(A, B, 12, size=100) == "esp"
    assert kernel.traffic(A, B, 12, size=100) == "dropped"
    assert kernel.events() == [Expire(sa().id, 7, hard=True)]


def test_the_smaller_priority_wins() -> None:
    kernel = MemoryKernel()
    kernel.write_policy(OUT)
    everything = Selector.between(A, B)
    kernel.write_policy(SpdEntry(Direction.OUT, replace(everything, protocol=0), 10, block=True))
    assert kernel.policies() == [SpdEntry(Direction.OUT, everything, 10, block=True)]
    kernel.write_policy(SpdEntry(Direction.OUT, replace(everything, protocol=17), 5))
    assert kernel.traffic(A, B, 1) == "dropped"


def test_what_the_real_kernel_would_not_take_is_refused_here_too() -> None:
    kernel = MemoryKernel(without=[SUITE.name])
    with pytest.raises(KernelError) as caught:
        kernel.probe(SUITE, 4)
    assert caught.value.errno == errno.ENOSYS
    with pytest.raises(KernelError):
        kernel.install_inbound(sa())
    wide = Selector(OUT.selector.source.supernet(8), OUT.selector.destination)
    with pytest.raises(LayoutError, match="address pair"):
        MemoryKernel().install_inbound(replace(sa(), selector=wide))


def test_the_caller_s_wiping_of_keymat_does_not_reach_the_kernel_s() -> None:
    alice, bob = MemoryKernel(), MemoryKernel()
    alice.write_policy(OUT)
    made = sa()
    bob.install_inbound(made)
    alice.install_outbound(made, [])
    made.keymat.wipe()
    alice.remove(sa(0x999).id)
    assert alice.send(bob, A, B) == "esp"
    assert alice.remove(made.id)
    assert not alice.remove(made.id)
