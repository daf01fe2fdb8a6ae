"""The kernel in memory does as the real one was seen to do."""

from __future__ import annotations

import errno
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest

from kinkd.errors import KernelError
from kinkd.kernel.memory import Flow, MemoryKernel, Packet
from kinkd.kernel.netlink import LayoutError
from kinkd.kernel.port import Acquire, Deleted, Expire, Sa, SaId, SaLimits
from kinkd.keying.algorithms import SUITES
from kinkd.model import (
    Direction,
    IpsecProtocol,
    Mode,
    Secret,
    Selector,
    SpdEntry,
    Template,
    Transform,
)

A, B = IPv4Address("10.9.0.1"), IPv4Address("10.9.0.2")
A6, B6 = IPv6Address("fd09::1"), IPv6Address("fd09::2")
HERE, THERE = IPv4Address("10.1.0.5"), IPv4Address("10.2.0.5")  # behind A and B
NETWORKS = Selector(IPv4Network("10.1.0.0/24"), IPv4Network("10.2.0.0/24"))
GCM, SHA256 = SUITES["ah-sha256+aes256gcm16"].transforms
ESP, AH = (Template(protocol, Mode.TRANSPORT, 7) for protocol in IpsecProtocol)
TUNNEL = Template(IpsecProtocol.ESP, Mode.TUNNEL, 7, A, B)
OUT = SpdEntry(Direction.OUT, Selector.between(A, B), 10, (ESP,))
IN = replace(OUT, direction=Direction.IN)
OUT_BOTH, IN_BOTH = (replace(entry, templates=(ESP, AH)) for entry in (OUT, IN))
OUT_TUNNEL = replace(OUT, selector=NETWORKS, templates=(TUNNEL,))


def sa(spi: int = 0x500, fill: int = 1, transform: Transform = GCM) -> Sa:
    keymat = Secret(bytes([fill]) * transform.keymat_octets)
    name = SaId(A, B, spi, transform.protocol)
    return Sa(name, Mode.TRANSPORT, 7, Selector.between(A, B), transform, keymat)


def ah(spi: int = 0x600, fill: int = 2) -> Sa:
    return sa(spi, fill, SHA256)


def tunnel(selector: Selector = NETWORKS) -> Sa:
    return replace(sa(0x700), mode=Mode.TUNNEL, selector=selector)


def around(selector: Selector = NETWORKS) -> Sa:
    return replace(ah(0x701), selector=selector, tunnelled=True)


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
    bob.install_inbound([sa()])
    alice.install_outbound([sa()], [OUT])
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
    bob.install_inbound([other])
    alice.install_outbound([sa()], [OUT])
    assert alice.send(bob, A, B) == "dropped"


def test_an_sa_of_another_reqid_does_not_satisfy_the_inbound_policy(
    pair: tuple[MemoryKernel, MemoryKernel],
) -> None:
    alice, bob = pair
    bob.install_inbound([replace(sa(), reqid=8)])
    alice.install_outbound([sa()], [OUT])
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
    alice.install_outbound([sa(0x600)], [])
    assert alice.released == []  # only writing the policy drains its queue
    alice.install_outbound([sa()], [OUT])
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
    kernel.write_policy(replace(OUT, templates=(template,)))
    assert kernel.traffic(A, B, 1) == "clear"
    assert len(kernel.events()) == 1


def test_a_second_sa_of_one_spi_is_eexist() -> None:
    kernel = MemoryKernel()
    kernel.install_outbound([sa()], [])
    with pytest.raises(KernelError) as caught:
        kernel.install_outbound([sa(fill=2)], [])
    assert caught.value.errno == errno.EEXIST


def test_a_reserved_spi_is_larval_until_it_is_filled_and_lapses_if_it_is_not() -> None:
    kernel = MemoryKernel()
    first, second = kernel.allocate_spi(A, B, 7), kernel.allocate_spi(A, B, 7)
    assert first != second
    with pytest.raises(KernelError) as caught:  # NEWSA over a reservation
        kernel.install_outbound([sa(first)], [])
    assert caught.value.errno == errno.EEXIST
    kernel.install_inbound([sa(first)])
    assert [state.larval for state in kernel.states()] == [False, True]
    kernel.advance(30)
    assert kernel.events() == [Expire(SaId(A, B, second), 7, hard=True)]
    kernel.install_inbound([sa(second)])
    assert [state.larval for state in kernel.states()] == [False, False]


def test_of_an_sa_in_use_an_update_changes_only_the_limits() -> None:
    kernel, peer = MemoryKernel(), MemoryKernel()
    peer.install_inbound([sa()])
    peer.install_inbound([replace(sa(fill=9), limits=SaLimits(hard_seconds=50))])
    kernel.write_policy(OUT)
    kernel.install_outbound([sa()], [])
    assert kernel.send(peer, A, B) == "esp"  # still the first key
    peer.advance(50)
    assert peer.states() == []


def test_the_newest_sa_is_used_unless_it_is_past_its_soft_limit() -> None:
    kernel = MemoryKernel()
    kernel.write_policy(OUT)
    kernel.install_outbound([sa(1000)], [])
    kernel.install_outbound([replace(sa(1001), limits=SaLimits(soft_packets=1))], [])
    for _ in range(3):
        kernel.traffic(A, B, 1)
    packets = {state.id.spi: state.packets for state in kernel.states()}
    assert packets == {1001: 2, 1000: 1}


def test_limits_in_seconds_and_in_octets_are_told_and_kept() -> None:
    kernel = MemoryKernel()
    kernel.write_policy(OUT)
    limits = SaLimits(soft_seconds=10, hard_seconds=20, soft_octets=100, hard_octets=200)
    kernel.install_outbound([replace(sa(), limits=limits)], [])
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
    kernel = MemoryKernel(without=[GCM])
    kernel.probe(SHA256, 4)
    with pytest.raises(KernelError, match=r"ESP rfc4106\(gcm\(aes\)\) of 256 bits") as caught:
        kernel.probe(GCM, 4)
    assert caught.value.errno == errno.ENOSYS
    with pytest.raises(KernelError):
        kernel.install_inbound([sa()])
    wide = Selector(OUT.selector.source.supernet(8), OUT.selector.destination)
    with pytest.raises(LayoutError, match="address pair"):
        MemoryKernel().install_inbound([replace(sa(), selector=wide)])


def test_the_caller_s_wiping_of_keymat_does_not_reach_the_kernel_s() -> None:
    alice, bob = MemoryKernel(), MemoryKernel()
    alice.write_policy(OUT)
    made = sa()
    bob.install_inbound([made])
    alice.install_outbound([made], [])
    made.keymat.wipe()
    alice.remove(sa(0x999).id)
    assert alice.send(bob, A, B) == "esp"
    assert alice.remove(made.id)
    assert not alice.remove(made.id)


# --- AH and bundles ---------------------------------------------------------------------


def bundled() -> tuple[MemoryKernel, MemoryKernel]:
    alice, bob = MemoryKernel(), MemoryKernel()
    alice.write_policy(OUT_BOTH)
    bob.write_policy(IN_BOTH)
    bob.install_inbound([sa(), ah()])
    alice.install_outbound([sa(), ah()], [OUT_BOTH])
    return alice, bob


def test_a_packet_goes_through_all_sas_of_a_bundle_the_last_one_outermost() -> None:
    alice, bob = bundled()
    assert alice.send(bob, A, B) == "ah+esp"
    assert [state.packets for state in bob.states()] == [1, 1]
    _, packet = alice.transmit(Flow(A, B))
    assert packet is not None
    assert packet.sas == (sa(), ah())


def test_ah_alone_carries_traffic_and_has_spis_of_its_own() -> None:
    alice, bob = MemoryKernel(), MemoryKernel()
    alice.write_policy(replace(OUT, templates=(AH,)))
    bob.write_policy(replace(IN, templates=(AH,)))
    spi = bob.allocate_spi(A, B, 7, IpsecProtocol.AH)
    assert [state.id for state in bob.states()] == [SaId(A, B, spi, IpsecProtocol.AH)]
    bob.install_inbound([ah(spi)])
    bob.install_inbound([sa(spi)])  # another protocol, another SA
    alice.install_outbound([ah(spi)], [])
    assert alice.send(bob, A, B) == "ah"
    state = bob.state(ah(spi).id)
    assert state is not None
    assert (state.algorithms, state.packets) == (("hmac(sha256)",), 1)


def test_a_part_of_a_bundle_does_not_satisfy_the_policy_and_more_than_it_asks_does() -> None:
    alice, bob = bundled()
    for template, outcome in ((ESP, "esp"), (AH, "ah")):
        alice.write_policy(replace(OUT, templates=(template,)))
        assert alice.send(bob, A, B) == "dropped"
        bob.write_policy(replace(IN, templates=(template,)))
        assert alice.send(bob, A, B) == outcome
        assert bob.receive(Packet(Flow(A, B), (sa(), ah())))
        bob.write_policy(IN_BOTH)
    assert not bob.receive(Packet(Flow(A, B), (ah(), sa())))  # ESP around AH


def test_a_bundle_asks_for_the_first_sa_that_is_missing() -> None:
    kernel = MemoryKernel()
    kernel.write_policy(OUT_BOTH)
    assert kernel.traffic(A, B, 1) == "held"
    kernel.install_outbound([sa()], [OUT_BOTH])
    assert kernel.released == []
    protocols = [event.protocol for event in kernel.events() if isinstance(event, Acquire)]
    assert protocols == [IpsecProtocol.ESP, IpsecProtocol.AH]
    kernel.install_outbound([ah()], [OUT_BOTH])
    assert kernel.released == [Flow(A, B)]
    assert kernel.traffic(A, B, 2) == "ah+esp"


def test_where_a_part_of_a_bundle_is_refused_nothing_of_it_stays() -> None:
    kernel = MemoryKernel(without=[SHA256])
    spis = [kernel.allocate_spi(A, B, 7, protocol) for protocol in IpsecProtocol]
    esp, other = sa(spis[0]), ah(spis[1])
    with pytest.raises(KernelError, match="UPDSA AH SA"):
        kernel.install_inbound([esp, other])
    assert kernel.states() == []
    with pytest.raises(KernelError, match="NEWSA AH SA"):
        kernel.install_outbound([esp, other], [])
    assert kernel.states() == []
    kernel.install_inbound([esp])
    with pytest.raises(KernelError, match="UPDSA AH SA"):
        kernel.install_inbound([esp, other])
    assert [state.id for state in kernel.states()] == [esp.id]  # it was live before
    kernel = MemoryKernel()
    kernel.install_inbound([esp])
    with pytest.raises(KernelError) as caught:  # AH was added, then ESP refused
        kernel.install_outbound([esp, other], [])
    assert caught.value.errno == errno.EEXIST
    assert [state.id for state in kernel.states()] == [esp.id]


def test_the_outermost_sa_is_added_first() -> None:
    kernel = MemoryKernel(without=[GCM, SHA256])
    with pytest.raises(KernelError, match="NEWSA AH SA"):  # both are refused
        kernel.install_outbound([sa(), ah()], [])


def test_outbound_sas_do_not_stay_where_a_policy_is_refused() -> None:
    kernel = MemoryKernel()
    refused = replace(OUT_TUNNEL, templates=(replace(TUNNEL, optional=True),))
    with pytest.raises(KernelError, match="optional template not allowed"):
        kernel.install_outbound([sa(), ah()], [refused])
    assert kernel.states() == []


# --- tunnels ----------------------------------------------------------------------------


def gateways(*sas: Sa, entry: SpdEntry = OUT_TUNNEL) -> tuple[MemoryKernel, MemoryKernel]:
    alice, bob = MemoryKernel(), MemoryKernel()
    alice.write_policy(entry)
    bob.write_policy(replace(entry, direction=Direction.FWD))
    bob.install_inbound(sas)
    alice.install_outbound(sas, [entry])
    return alice, bob


def test_a_tunnel_carries_what_is_behind_the_gateways() -> None:
    alice, bob = gateways(tunnel())
    assert alice.send(bob, HERE, THERE, forward=True) == "esp"
    assert MemoryKernel().send(bob, HERE, THERE, forward=True) == "dropped"
    assert alice.send(bob, HERE, IPv4Address("10.3.0.1"), forward=True) == "clear"


def test_what_comes_through_a_tunnel_needs_a_policy_of_its_direction() -> None:
    alice, bob = gateways(tunnel())
    assert alice.send(bob, HERE, THERE) == "dropped"  # for bob himself: no inbound entry
    bob.write_policy(replace(OUT_TUNNEL, direction=Direction.IN, templates=()))
    assert alice.send(bob, HERE, THERE) == "dropped"  # clear is allowed, a tunnel is not asked for
    bob.write_policy(replace(OUT_TUNNEL, direction=Direction.IN))
    assert alice.send(bob, HERE, THERE) == "esp"
    elsewhere = replace(TUNNEL, source=IPv4Address("10.9.0.3"))
    bob.write_policy(replace(OUT_TUNNEL, direction=Direction.IN, templates=(elsewhere,)))
    assert alice.send(bob, HERE, THERE) == "dropped"
    optional = replace(TUNNEL, optional=True)
    bob.write_policy(replace(OUT_TUNNEL, direction=Direction.IN, templates=(optional,)))
    assert alice.send(bob, HERE, THERE) == "esp"
    assert MemoryKernel().send(bob, HERE, THERE) == "clear"


def test_no_tunnel_is_passed_over_to_find_what_the_policy_asks_for() -> None:
    bob = MemoryKernel()
    outer = tunnel(Selector.between(A, B))
    bob.install_inbound([sa()])
    bob.install_inbound([outer])
    bob.write_policy(IN)
    assert bob.receive(Packet(Flow(A, B), (sa(),)))
    assert not bob.receive(Packet(Flow(A, B), (sa(), outer)))


def test_an_optional_template_takes_no_sa_from_one_that_requires_it() -> None:
    bob = MemoryKernel()
    bob.install_inbound([sa()])
    bob.write_policy(replace(IN, templates=(ESP, replace(ESP, optional=True))))
    assert bob.receive(Packet(Flow(A, B), (sa(),)))
    assert not bob.receive(Packet(Flow(A, B)))


def test_transport_mode_is_accepted_where_no_policy_speaks_of_it() -> None:
    bob = MemoryKernel()
    bob.install_inbound([sa()])
    assert bob.receive(Packet(Flow(A, B), (sa(),)))
    bob.write_policy(replace(IN, templates=()))
    assert bob.receive(Packet(Flow(A, B), (sa(),)))


def test_a_gateway_speaks_for_the_networks_of_its_sa_alone() -> None:
    _, bob = gateways(tunnel())
    forged = Flow(IPv4Address("10.8.0.1"), THERE)
    everything = replace(NETWORKS, source=IPv4Network("0.0.0.0/0"))
    bob.write_policy(replace(OUT_TUNNEL, selector=everything, direction=Direction.FWD))
    assert not bob.receive(Packet(forged, (tunnel(),)), forward=True)
    assert bob.receive(Packet(Flow(HERE, THERE), (tunnel(),)), forward=True)


def test_a_tunnel_of_another_family_carries_its_packets() -> None:
    inner = Selector.between(A6, B6)
    entry = replace(OUT_TUNNEL, selector=inner)
    alice, bob = gateways(tunnel(inner), entry=entry)
    assert alice.send(bob, A6, B6, forward=True) == "esp"


def test_around_a_tunnel_the_sa_is_sought_between_its_ends() -> None:
    entry = replace(OUT_TUNNEL, templates=(TUNNEL, AH))
    alice, bob = gateways(tunnel(), around(), entry=entry)
    assert alice.send(bob, HERE, THERE, forward=True) == "ah+esp"
    bob.write_policy(replace(OUT_TUNNEL, direction=Direction.FWD))
    assert alice.send(bob, HERE, THERE, forward=True) == "ah+esp"
    assert alice.remove(around().id)
    assert alice.traffic(HERE, THERE, 1) == "held"
    deleted, acquire = alice.events()
    assert deleted == Deleted(around().id)
    assert isinstance(acquire, Acquire)
    assert (acquire.source, acquire.destination, acquire.protocol) == (A, B, IpsecProtocol.AH)
    with pytest.raises(LayoutError, match="not around the tunnel"):
        alice.install_outbound([around()], [])


def test_a_tunnel_that_is_missing_is_asked_for_between_its_ends() -> None:
    kernel = MemoryKernel()
    kernel.write_policy(OUT_TUNNEL)
    assert kernel.traffic(HERE, THERE, 1) == "held"
    (acquire,) = kernel.events()
    assert isinstance(acquire, Acquire)
    assert (acquire.source, acquire.destination, acquire.mode) == (A, B, Mode.TUNNEL)
    assert (acquire.flow.source, acquire.flow.destination) == (
        IPv4Network(HERE),
        IPv4Network(THERE),
    )


@pytest.mark.parametrize(("sent", "expected"), [(True, True), (False, False)])
def test_esp_in_udp_is_so_at_both_ends(sent: bool, expected: bool) -> None:
    bob = MemoryKernel()
    bob.install_inbound([replace(sa(), udp=True)])
    (state,) = bob.states()
    assert state.udp
    assert bob.receive(Packet(Flow(A, B), (replace(sa(), udp=sent),))) is expected
