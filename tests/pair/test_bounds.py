"""What a genuine host of the realm can make of us, and what it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from kinkd.errors import KernelError
from kinkd.exchange import quickmode
from kinkd.exchange.effects import Path
from kinkd.exchange.lifecycle import Probing
from kinkd.exchange.verified import seal
from kinkd.kerberos.port import Authenticator, Ticket
from kinkd.kernel import xfrm
from kinkd.kernel.memory import MemoryKernel
from kinkd.kernel.port import Expire, Sa
from kinkd.keying import dh
from kinkd.keying.algorithms import SUITES
from kinkd.model import IpsecProtocol, Lifetime
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import IdType, MessageType
from tests.pair.test_several import AES128, GCM, asked, codes, told
from tests.support.pair import ALICE, BOB, FAST, World, offer, passes

KE = replace(FAST, groups=(19,))
WEB = (
    isakmp.Identification(IdType.IPV4_ADDR, 6, 0, ALICE.addresses[0].packed),
    isakmp.Identification(IdType.IPV4_ADDR, 6, 443, BOB.addresses[0].packed),
)


def encodes(kernel: MemoryKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel in memory is given what the real one could be given, and no more."""
    install = kernel.install_inbound

    def encoding(sas: Sequence[Sa]) -> None:
        for sa in sas:
            xfrm.install(sa, 1)
        install(sas)

    monkeypatch.setattr(kernel, "install_inbound", encoding)


# --- numbers ---


@pytest.mark.parametrize("lifetime", [Lifetime(3600, 1 << 60), Lifetime(1 << 70)])
def test_a_lifetime_of_any_length_is_understood_and_none_is_left_without_an_owner(
    monkeypatch: pytest.MonkeyPatch, lifetime: Lifetime
) -> None:
    world = World()
    encodes(world["bob"].kernel, monkeypatch)
    attributes = [(1, 1), (2, lifetime.seconds), (4, 2), (6, 256)]
    if lifetime.kilobytes is not None:
        attributes += [(1, 2), (2, lifetime.kilobytes)]
    made = tuple(isakmp.Attribute(kind, value, 16) for kind, value in attributes)
    proposal = isakmp.Proposal(1, 3, b"\0\0\x30\0", (isakmp.Transform(1, 20, made),))
    last = quickmode.creation((proposal,), b"n" * 32)
    told(world, MessageType.CREATE, asked(0x2000), last)
    pairs = list(world["bob"].endpoint.pairs)
    assert len(pairs) == 2
    assert {pair.lifetime.seconds for pair in pairs} == {3600}
    assert len(world["bob"].kernel.states()) == 4


def test_whatever_goes_wrong_at_the_last_leaves_nothing_of_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    kernel, install = world["bob"].kernel, world["bob"].kernel.install_inbound
    calls = iter((False, True))

    def breaking(sas: Sequence[Sa]) -> None:
        if next(calls):
            raise ZeroDivisionError
        install(sas)

    monkeypatch.setattr(kernel, "install_inbound", breaking)
    with pytest.raises(ZeroDivisionError):
        told(world, MessageType.CREATE, asked(0x2000), asked(0x3000))
    assert not kernel.states()


def test_a_create_asks_for_so_much_and_no_more() -> None:
    world = World()
    _, inner = told(world, MessageType.CREATE, *(asked(0x2000 + n) for n in range(9)))
    assert codes(inner) == [16]
    transforms = tuple(isakmp.Transform(n + 1, 99, ()) for n in range(64))
    crowd = [isakmp.Proposal(n + 1, 3, b"\0\0\x20\1", transforms) for n in range(4)]
    _, inner = told(
        world,
        MessageType.CREATE,
        quickmode.creation((*crowd, *offer(GCM, 0x2001, number=9)), b"n" * 32),
        xid=8,
    )
    assert codes(inner) == [14]  # what stands behind 256 others is not read


def test_refusals_are_counted_and_who_is_refused_too_often_waits() -> None:
    world = World(profile=KE)
    size = dh.GROUPS[19].public_octets
    for xid in range(200):
        told(world, MessageType.CREATE, asked(0x2000, public=bytes(size)), xid=xid)
    counters = world["bob"].endpoint.counters
    assert 0 < counters["drop.bad-public-value"] <= 50
    assert counters["drop.too-many-failures"] >= 150
    world.advance(world.now + 60)
    public = dh.generate(dh.GROUPS[19]).public
    ack, _ = told(world, MessageType.CREATE, asked(0x2000, public=public), xid=999)
    assert ack


def test_two_gateways_with_many_networks_have_a_pair_for_each_two() -> None:
    text = """
schema = 1
version = 1
realm = "EXAMPLE.TEST"
[hosts.a]
fqdn = "a.example.test"
addresses = ["192.0.2.1"]
networks = [{}]
[hosts.b]
fqdn = "b.example.test"
addresses = ["192.0.2.2"]
networks = [{}]
[[rules]]
name = "t"
from = "all"
to = "all"
action = "require"
profile = "fast"
mode = "tunnel"
""".format(*(", ".join(f'"10.{k}.{i}.0/24"' for i in range(8)) for k in (1, 2)))
    world = World(document=text)
    wanted = world["a"].endpoint.policy.with_host("b")
    for _ in range(2):  # a rekey of all of them needs twice as many for a while
        for each in wanted:
            world["a"].endpoint.initiate(each, world.now, lambda *_: None)
        world.settle()
        world.run(0.5)
    world.run(30.0)
    assert len(list(world["a"].endpoint.pairs)) == len(wanted) == 81
    world["a"].endpoint.terminate(world["b"].host, world.now, lambda _: None)
    world.settle()
    world.run(30.0)
    assert not list(world["b"].endpoint.pairs)


# --- SPIs ---


@pytest.mark.rfc("4430-3.2-4")
def test_an_existing_spi_is_refused_wherever_in_the_create_it_stands() -> None:
    world = World()
    told(world, MessageType.CREATE, asked(0x2000))
    second = (*offer(GCM, 0x3000, number=1), *offer(AES128, 0x2000, number=2))
    _, inner = told(world, MessageType.CREATE, quickmode.creation(second, b"m" * 32), xid=8)
    assert codes(inner) == [11]


@pytest.mark.rfc("4430-3.2-4")
def test_the_spi_of_a_half_is_in_use() -> None:
    world = World(profile=KE)
    public = dh.generate(dh.GROUPS[19]).public
    assert told(world, MessageType.CREATE, asked(0x2000, public=public))[0]
    _, inner = told(world, MessageType.CREATE, asked(0x2000, public=public, nonce=b"m" * 32), xid=8)
    assert codes(inner) == [11]


def test_a_responder_cannot_answer_with_the_spi_of_a_pair_that_lives() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.run(1.0)
    (first,) = world["alice"].endpoint.pairs
    world["alice"].kernel.remove(first.outbound[0])  # the event is not read yet
    world.restart("bob", epoch=world["bob"].endpoint.epoch)
    world["bob"].kernel._next_spi = first.sas[0].outbound
    world.initiate("alice", "bob")
    world.run(0.5)
    (failed,) = world["alice"].events("create-failed")
    assert "is another SA's" in str(failed["reason"])
    expired = Expire(first.outbound[0], first.reqid, hard=True)
    world["alice"].endpoint.kernel_event(expired, world.now)
    world.settle()
    world.run(40.0)
    world.acquire("alice", "bob")
    world.run(5.0)
    assert passes(world, "alice", "bob") == "esp"


# --- keys are used once, private values are given up ---


def test_what_was_undone_is_not_done_again_not_even_after_a_restart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    kernel, install = world["bob"].kernel, world["bob"].kernel.install_outbound
    seen: list[bytes] = []
    calls = iter(range(9))

    def refusing(sas: Sequence[Sa], refresh: Any) -> None:
        if next(calls) == 1:
            raise KernelError(12, "NEWSA")
        seen.extend(bytes(sa.keymat.value) for sa in sas)
        install(sas, refresh)

    monkeypatch.setattr(kernel, "install_outbound", refusing)
    both = asked(0x2000), asked(0x3000)
    assert told(world, MessageType.CREATE, *both)[1] == (kink.KinkError(5),)
    told(world, MessageType.CREATE, *both)
    world.restart("bob")
    told(world, MessageType.CREATE, *both)
    assert len(seen) == 1
    assert not list(world["bob"].endpoint.pairs)


def test_an_ack_that_the_kernel_does_not_follow_is_told_to_the_initiator(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(profile=KE)

    def refusing(*_: object) -> None:
        raise KernelError(12, "NEWSA")

    monkeypatch.setattr(world["bob"].kernel, "install_outbound", refusing)
    world.acquire("alice", "bob")
    world.run(10.0)
    for node in world.nodes.values():
        assert not list(node.endpoint.pairs)
        assert not node.kernel.states()


def test_a_private_value_does_not_outlive_its_create() -> None:
    world = World(profile=KE)
    world.acquire("alice", "bob")
    endpoint = world["alice"].endpoint
    (attempt,) = endpoint._creating.values()
    ephemeral = attempt.purpose._ephemeral
    assert ephemeral is not None
    assert ephemeral._private is not None
    world.run(40.0, pass_on=lambda _: [])
    assert ephemeral._private is None


# --- less than all of a slot's traffic ---


def narrow(spi: int, *suites: object, nonce: bytes = b"n" * 32) -> kink.Isakmp:
    """A CREATE for one port."""
    (association, *_) = isakmp.decode(asked(spi, *suites))
    return isakmp.encode((association, isakmp.Nonce(nonce), *WEB))


def test_a_pair_for_one_port_does_not_stand_for_all_traffic() -> None:
    world = World()
    world.acquire("bob", "alice")
    world.run(1.0)
    told(world, MessageType.CREATE, narrow(0x2000))
    world.wire.clear()
    full = next(p for p in world["bob"].endpoint.pairs if p.selector.protocol == 0)
    expiry = Expire(full.outbound[0], full.reqid, hard=False)
    world["bob"].endpoint.kernel_event(expiry, world.now)
    world.settle()
    assert [kink.header(send.datagram).type for send in world.wire] == [MessageType.CREATE]
    world.run(20.0)
    selectors = [pair.selector.protocol for pair in world["bob"].endpoint.pairs]
    assert sorted(selectors) == [0, 6]  # and the new one has not taken its place either


def test_a_half_for_one_port_is_no_answer_to_other_traffic() -> None:
    world = World(lacking={"bob": {"aes256gcm16"}})
    assert told(world, MessageType.CREATE, narrow(0x2000, GCM, AES128))[0]
    world.wire.clear()
    world.acquire("bob", "alice")
    assert [kink.header(send.datagram).type for send in world.wire] == [MessageType.CREATE]


def test_a_create_for_one_port_crosses_no_create_for_all() -> None:
    world = World()
    world.acquire("bob", "alice")
    (ours,) = world.wire
    told(world, MessageType.CREATE, narrow(0x2000, nonce=b"\xff" * 32))
    world.wire.append(ours)
    world.run(30.0)
    assert sorted(p.selector.protocol for p in world["bob"].endpoint.pairs) == [0, 6]


# --- messages ---


@pytest.mark.rfc("4430-9-1")
def test_our_own_commands_go_to_port_910_whatever_port_a_peer_sent_from() -> None:
    world = World()
    world.acquire("alice", "bob")
    world.run(1.0)
    ticket = world["alice"].tickets.fetch(BOB.service)
    proof = kink.ApReq(4242, ticket.authenticate().ap_req)
    path = Path(BOB.addresses[0], ALICE.addresses[0], 5555)
    datagram = seal(MessageType.STATUS, 7, proof, (), ticket.key)
    world["bob"].endpoint.receive(datagram, path, world.now)
    world.settle()
    ports = {kink.header(s.datagram).type: s.path.port for s in world.wire}
    assert ports == {MessageType.REPLY: 5555, MessageType.STATUS: 910}


@pytest.mark.parametrize(
    ("length", "words"), [(65600, "65535 is the most"), (65520, "does not fit into UDP")]
)
def test_a_command_too_large_to_be_sent_fails_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, length: int, words: str
) -> None:
    world = World()
    world.acquire("alice", "bob")
    more = length - len(world.sent[0].datagram)

    class Large:
        """A ticket with more group memberships than a datagram holds."""

        def __init__(self, ticket: Ticket) -> None:
            self._ticket = ticket

        def __getattr__(self, name: str) -> Any:
            return getattr(self._ticket, name)

        def authenticate(self, offset: float = 0.0) -> Authenticator:
            made = self._ticket.authenticate(offset)
            return replace(made, ap_req=made.ap_req + bytes(more))

    world = World()
    fetch = world["alice"].tickets.fetch
    monkeypatch.setattr(world["alice"].tickets, "fetch", lambda *asked: Large(fetch(*asked)))
    world.acquire("alice", "bob")
    (failed,) = world["alice"].events("create-failed")
    assert words in str(failed["reason"])
    assert not world["alice"].kernel.states()
    assert not world["alice"].endpoint.commands_under_way


@pytest.mark.rfc("4430-3.7-3", "4430-3.7-5")
@pytest.mark.parametrize("wait", [5.0, 40.0])
def test_a_withheld_reply_of_an_earlier_life_voids_nothing_of_the_present_one(wait: float) -> None:
    world = World()
    world.acquire("alice", "bob")
    world.run(1.0)
    endpoint = world["alice"].endpoint
    peer, path = endpoint._core.peer(BOB), Path(ALICE.addresses[0], BOB.addresses[0])
    endpoint._initiator.begin(Probing(lambda *_: None), peer, path, world.now)
    world.settle()
    world.deliver(world.wire.popleft())
    withheld = world.wire.popleft()
    world.restart("bob", epoch=5000)
    world.acquire("bob", "alice")
    world.run(wait)
    assert [pair.epoch for pair in endpoint.pairs] == [5000]
    world.deliver(withheld)
    world.run(10.0)
    assert [pair.epoch for pair in endpoint.pairs] == [5000]
    assert passes(world, "bob", "alice") == passes(world, "alice", "bob") == "esp"


def test_what_is_kept_of_commands_that_are_over_is_bounded_for_each_host() -> None:
    world = World()
    for _ in range(300):
        world.initiate("alice", "bob")
        world.wire.clear()
        (attempt,) = world["alice"].endpoint._creating.values()
        assert attempt.exchange is not None
        world["alice"].endpoint._initiator.cancel(attempt.exchange, "enough", world.now)
        world.settle()
    initiator = world["alice"].endpoint._initiator
    assert 0 < len(initiator._over) <= 128
    for peer, mine in initiator._late.items():
        assert {id(each) for each in mine.values()} == {id(e) for e in initiator._over.values()}, (
            peer.host.name
        )
    world["alice"].kdc_up = False
    world.run(2000.0, pass_on=lambda _: [])
    assert len(initiator._over) < 128


def test_a_delete_of_many_names_them_in_payloads_that_peers_can_read() -> None:
    spis = [(IpsecProtocol.ESP, 0x1000 + n) for n in range(600)]
    assert len(quickmode.read_deletion(quickmode.deletion(spis))) == 600


def test_an_unknown_suite_of_a_peer_is_no_reason_to_fail() -> None:
    world = World()
    strange = isakmp.Proposal(1, 4, b"\0\0\x20\0", (isakmp.Transform(1, 2, ()),))  # IPCOMP
    payload = quickmode.creation(
        (strange, *offer(SUITES["aes256gcm16"], 0x2000, number=2)), b"n" * 32
    )
    assert told(world, MessageType.CREATE, payload)[0]
