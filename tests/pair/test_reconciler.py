"""What somebody does to the kernel behind the daemon's back is noticed, repaired and counted."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from kinkd.errors import KernelError
from kinkd.exchange.reconciler import ROUND_SECONDS, UNCLAIMED_SECONDS
from kinkd.kernel.port import Overrun, Sa, SaId
from kinkd.keying.algorithms import SUITES
from kinkd.model import Direction, Mode, Secret, Selector, SpdEntry
from tests.support.pair import BOB, REQID, LivingWorld, mirrored, passes


def keyed() -> LivingWorld:
    world = LivingWorld()
    world.traffic("alice", "bob")
    world.run()
    assert len(world["alice"].endpoint.pairs) == 1
    return world


def both(world: LivingWorld) -> None:
    """Packets both ways, and what comes of them."""
    for ends in (("alice", "bob"), ("bob", "alice")):
        world.traffic(*ends)
    world.run(0.5)


def assert_one_pair(world: LivingWorld) -> None:
    alice, bob = (list(world[name].endpoint.pairs) for name in ("alice", "bob"))
    assert (len(alice), len(bob)) == (1, 1)
    assert mirrored(alice[0], bob[0])
    for name in ("alice", "bob"):
        assert len(world[name].kernel.states()) == 2


def foreign_sa(spi: int, reqid: int) -> Sa:
    (transform,) = SUITES["aes256gcm16"].transforms
    ends = (IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"))
    keymat = Secret(bytes(transform.keymat_octets))
    selector = Selector.between(*ends)
    return Sa(SaId(*ends, spi), Mode.TRANSPORT, reqid, selector, transform, keymat)


@pytest.mark.parametrize("name", ["alice", "bob"])
@pytest.mark.parametrize("half", ["inbound", "outbound", "both"])
def test_an_sa_that_somebody_deleted_is_made_anew_at_once(name: str, half: str) -> None:
    world = keyed()
    (old,) = world[name].endpoint.pairs
    sas = {"inbound": old.inbound, "outbound": old.outbound}.get(half, old.inbound + old.outbound)
    for sa in sas:
        world[name].kernel.remove(sa)
    world.settle()  # without any traffic
    world.run(0.1)
    assert passes(world, "alice", "bob") == passes(world, "bob", "alice") == "esp"
    world.run(20.0)
    assert_one_pair(world)
    assert world[name].endpoint.counters["reconcile.sas"] == 1
    assert [each["peer"] for each in world[name].events("sa-vanished")] == [
        "bob" if name == "alice" else "alice"
    ]


def test_where_only_the_inbound_half_went_nothing_that_we_send_waits() -> None:
    world = keyed()
    (old,) = world["alice"].endpoint.pairs
    world["alice"].kernel.remove(old.inbound[0])
    for _ in range(10):
        assert passes(world, "alice", "bob") == "esp"
    world.settle()
    world.run(0.1)
    assert passes(world, "alice", "bob") == passes(world, "bob", "alice") == "esp"


def test_what_cannot_be_replaced_goes_and_the_peer_is_told() -> None:
    world = keyed()
    (old,) = world["alice"].endpoint.pairs
    world["alice"].kernel.remove(old.inbound[0])
    world.settle()
    world.run(120.0, lambda _: [])  # nobody answers
    assert not list(world["alice"].endpoint.pairs)
    assert not world["alice"].kernel.states()
    world.run(200.0)
    of_bob = [sa for pair in world["bob"].endpoint.pairs for sa in pair.outbound]
    assert old.inbound[0] not in of_bob


def test_a_flush_of_all_sas_is_over_as_soon_as_it_began() -> None:
    world = keyed()
    world["alice"].kernel.flush_states()
    world.settle()
    world.run(0.5)
    both(world)
    world.run(20.0)
    assert_one_pair(world)
    assert passes(world, "bob", "alice") == "esp"


@pytest.mark.parametrize("told", [True, False])
def test_spd_entries_that_went_are_written_again(told: bool) -> None:
    world = keyed()
    alice = world["alice"]
    alice.kernel.flush_policies()
    if not told:
        alice.kernel.events()
    world.settle()
    world.run(0.2 if told else ROUND_SECONDS)
    assert set(alice.kernel.policies()) == set(alice.endpoint.policy.entries)
    assert alice.endpoint.counters["reconcile.policies"] == 2
    assert alice.events("policies-restored")


def test_an_entry_that_lets_pass_what_must_be_protected_is_put_right() -> None:
    world = keyed()
    alice = world["alice"]
    entry = alice.endpoint.policy.entries[0]
    alice.kernel.write_policy(replace(entry, templates=()))
    stale = SpdEntry(Direction.OUT, Selector.between(IPv4Address(1), IPv4Address(2)), 1500)
    alice.kernel.write_policy(stale)
    world.run(ROUND_SECONDS)
    assert set(alice.kernel.policies()) == set(alice.endpoint.policy.entries)


def test_an_entry_of_others_in_the_way_is_said_once_and_left() -> None:
    world = keyed()
    alice = world["alice"]
    foreign = replace(alice.endpoint.policy.entries[0], priority=7)
    alice.kernel.write_policy(foreign)
    world.run(10 * ROUND_SECONDS)
    assert foreign in alice.kernel.policies()
    assert len(alice.events("policy-in-the-way")) == 1


def test_sas_of_ours_that_belong_to_nothing_go_and_those_of_others_stay() -> None:
    world = keyed()
    alice = world["alice"]
    others = foreign_sa(0x5000, reqid=42)
    alice.kernel.install_outbound([others], [])
    ends = (BOB.addresses[0], alice.address)
    ours = replace(
        foreign_sa(0x6000, REQID), id=SaId(*ends, 0x6000), selector=Selector.between(*ends)
    )
    alice.kernel.install_outbound([ours], [])
    world.run(UNCLAIMED_SECONDS - ROUND_SECONDS)
    assert alice.kernel.state(ours.id) is not None
    world.run(3 * ROUND_SECONDS)
    assert alice.kernel.state(ours.id) is None
    assert alice.kernel.state(others.id) is not None
    assert alice.endpoint.counters["reconcile.unclaimed"] == 1
    assert_one_pair_beside(world, others)


def assert_one_pair_beside(world: LivingWorld, others: Sa) -> None:
    world["alice"].kernel.remove(others.id)
    assert_one_pair(world)


def test_what_is_only_leaving_is_not_hurried() -> None:
    world = keyed()
    world.run(600.0)  # older than what belongs to nothing may be
    (old,) = world["alice"].endpoint.pairs
    world.initiate("alice", "bob")
    world.run(0.01)
    for name in ("alice", "bob"):
        world[name].endpoint.kernel_event(Overrun(), world.now)
    world.run(0.2)
    assert world["alice"].kernel.state(old.inbound[0]) is not None
    world.run(30.0)
    assert world["alice"].kernel.state(old.inbound[0]) is None
    assert_one_pair(world)


def test_an_acquire_that_was_lost_is_found() -> None:
    world = LivingWorld()
    assert (
        world["alice"].kernel.traffic(world["alice"].address, world["bob"].address, world.now)
        == "held"
    )
    world["alice"].kernel.events()  # nobody reads them
    world["alice"].endpoint.kernel_event(Overrun(), world.now)
    world.settle()
    world.run(0.5)
    assert passes(world, "alice", "bob") == "esp"


def test_a_packet_that_waited_when_the_daemon_stopped_goes_with_its_next_start() -> None:
    world = LivingWorld()
    alice = world["alice"].kernel
    assert alice.traffic(world["alice"].address, world["bob"].address, world.now) == "held"
    alice.events()  # the daemon is gone
    world.begin_anew("alice", reboot=False)
    world.run(0.5)
    assert len(world["alice"].kernel.released) == 1
    assert passes(world, "alice", "bob") == "esp"


def test_looks_at_the_kernel_are_bounded_however_often_it_is_disturbed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = keyed()
    kernel = world["alice"].kernel
    looks: list[float] = []
    dump = kernel.states
    monkeypatch.setattr(kernel, "states", lambda: (looks.append(world.now), dump())[1])
    for _ in range(1000):
        kernel.flush_policies()
        world.settle()
        world.run(0.001)
    assert 5 <= len(looks) <= 12


def test_a_kernel_that_refuses_to_be_read_is_asked_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = keyed()
    kernel = world["alice"].kernel

    def refuse() -> None:
        raise KernelError(12, "dump of SAs")

    with monkeypatch.context() as patch:
        patch.setattr(kernel, "states", refuse)
        world.run(2 * ROUND_SECONDS)
    assert world["alice"].endpoint.counters["kernel-error"] >= 2
    kernel.flush_states()
    world.settle()
    world.run(1.0)
    assert passes(world, "alice", "bob") == "esp"
