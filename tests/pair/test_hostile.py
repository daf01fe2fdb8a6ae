"""What a peer, or someone who says he is one, must not be able to do."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.exchange import quickmode
from kinkd.exchange.effects import Path, Send
from kinkd.exchange.verified import seal
from kinkd.kerberos import messages
from kinkd.keying.algorithms import SUITES
from kinkd.model import Lifetime
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import MessageType
from tests.support.pair import ALICE, BOB, CAROL, World, offer

FROM_ALICE = Path(ALICE.addresses[0], BOB.addresses[0])
FROM_CAROL = Path(CAROL.addresses[0], BOB.addresses[0])


def create(
    world: World,
    who: str = "alice",
    *,
    spi: int = 0x2000,
    xid: int = 7,
    payload: kink.Isakmp | None = None,
    server: str = "bob",
) -> bytes:
    """A genuine CREATE, made by hand."""
    node = world[who]
    ticket = node.tickets.fetch(world[server].host.service)
    proposals = offer(SUITES["aes256gcm16"], spi, lifetime=Lifetime(600))
    inner = payload or quickmode.creation(proposals, b"n" * 32)
    proof = kink.ApReq(1000, ticket.authenticate().ap_req)
    return seal(MessageType.CREATE, xid, proof, (inner,), ticket.key)


def answers(world: World) -> list[kink.Message]:
    return [kink.decode(send.datagram).message for send in world.wire]


def drops(world: World, name: str = "bob") -> dict[str, int]:
    counters = world[name].endpoint.counters
    return {k.removeprefix("drop."): n for k, n in counters.items() if k.startswith("drop.")}


def give(world: World, datagram: bytes, path: Path = FROM_ALICE) -> None:
    world.wire.clear()
    node = world["bob"]
    node.endpoint.receive(datagram, Path(path.remote, path.local), world.now)
    world.settle()


def assert_unmoved(world: World) -> None:
    assert not list(world["bob"].endpoint.pairs)
    assert not world["bob"].kernel.states()
    assert not world["bob"].journal


@given(st.binary(max_size=300))
def test_garbage_is_counted_and_moves_nothing(datagram: bytes) -> None:
    world = World()
    give(world, datagram)
    assert_unmoved(world)
    assert sum(drops(world).values()) == 1


@pytest.mark.rfc("4430-4-14")
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_changed_bit_of_a_create_is_believed(position: int, bit: int) -> None:
    world = World()
    genuine = bytearray(create(world))
    genuine[position % len(genuine)] ^= 1 << bit
    try:
        give(world, bytes(genuine))
    finally:
        pairs = list(world["bob"].endpoint.pairs)
    # Only bits that RFC 4430 §4 has a receiver ignore and sign are left: none of them.
    assert not pairs


def test_the_unchanged_create_is_believed() -> None:
    world = World()
    give(world, create(world))
    assert len(world["bob"].endpoint.pairs) == 1


@pytest.mark.rfc("4430-4-11")
def test_a_command_without_its_checksum_is_met_with_silence() -> None:
    world = World()
    received = kink.decode(create(world))
    give(world, received.signed)
    assert drops(world) == {"missing-checksum": 1}
    assert not world.wire
    assert_unmoved(world)


@pytest.mark.rfc("4430-4-13")
@pytest.mark.parametrize("digest", ["md5", "sha1", "sha256"])
def test_a_checksum_without_a_key_is_a_wrong_one(digest: str) -> None:
    world = World()
    signed = kink.decode(create(world)).signed
    octets = hashlib.new(digest, signed).digest()[:12]
    give(world, kink.with_checksum(signed, octets))
    assert drops(world) == {"bad-checksum": 1}
    assert_unmoved(world)


def test_an_overheard_ap_req_cannot_be_burnt_by_a_message_of_someone_else() -> None:
    world = World()
    genuine = create(world)
    ap_req = kink.decode(genuine).message.payloads[0]
    forged = kink.with_checksum(
        kink.encode(kink.Message(MessageType.STATUS, 7, (ap_req,))), bytes(12)
    )
    give(world, forged)
    assert drops(world) == {"bad-checksum": 1}
    give(world, genuine)
    assert len(world["bob"].endpoint.pairs) == 1


def test_a_replay_is_met_with_silence() -> None:
    world = World()
    genuine = create(world)
    give(world, genuine)
    give(world, genuine)
    assert not world.wire
    assert drops(world) == {"replay": 1}
    assert len(world["bob"].endpoint.pairs) == 1


@pytest.mark.rfc("4430-6.3-4")
def test_a_ticket_for_another_key_gets_a_lone_krb_error() -> None:
    world = World((ALICE, BOB, CAROL))
    give(world, create(world, server="carol"))
    (answer,) = answers(world)
    (payload,) = answer.payloads
    assert isinstance(payload, kink.KrbError)
    assert messages.read_krb_error(payload.krb_error).code == 31
    assert_unmoved(world)


@pytest.mark.rfc("4430-4.2.8-6", "4430-4.2.3-3")
def test_unprotected_answers_are_rate_limited() -> None:
    world = World((ALICE, BOB, CAROL))
    answered = 0
    for _ in range(100):
        give(world, create(world, server="carol"))
        answered += len(world.wire)
    assert 1 <= answered <= 20


@pytest.mark.rfc("4430-4.2.8-4")
def test_another_major_version_gets_invmaj_and_a_reply_gets_nothing() -> None:
    world = World()
    wrong = bytearray(create(world))
    wrong[1] = 0x20
    give(world, bytes(wrong))
    assert answers(world)[0].payloads == (kink.KinkError(3),)
    wrong[0] = MessageType.REPLY
    give(world, bytes(wrong))
    assert not world.wire


def test_another_doi_gets_invdoi() -> None:
    world = World()
    wrong = bytearray(create(world))
    wrong[7] = 2
    give(world, bytes(wrong))
    assert answers(world)[0].payloads == (kink.KinkError(2),)


@pytest.mark.rfc("4430-6.6-1", "4430-4.2.4-3")
def test_a_gettgt_gets_u2udenied() -> None:
    world = World()
    message = kink.Message(MessageType.GETTGT, 3, (kink.TgtReq(b"name"),))
    give(world, kink.encode(message))
    assert answers(world)[0].payloads == (kink.KinkError(7),)


def protected_answer(world: World, datagram: bytes, path: Path = FROM_ALICE) -> object:
    """What the responder put inside its REPLY: read with the key of the ticket it answered."""
    give(world, datagram, path)
    request = kink.decode(datagram).message.payloads[0]
    assert isinstance(request, kink.ApReq)
    key = world["bob"].acceptor.open(request.ap_req).key
    (answer,) = answers(world)
    assert isinstance(answer.payloads[0], kink.ApRep)
    sealed = answer.payloads[1]
    assert isinstance(sealed, kink.Encrypt)
    (inner,) = kink.decode_inner(key.decrypt(39, sealed.cipher))
    return isakmp.decode(inner)[0] if isinstance(inner, kink.Isakmp) else inner


def notified(world: World, datagram: bytes, path: Path = FROM_ALICE) -> isakmp.Notification:
    part = protected_answer(world, datagram, path)
    assert isinstance(part, isakmp.Notification)
    return part


def test_a_principal_keys_only_its_own_addresses() -> None:
    world = World((ALICE, BOB, CAROL))
    assert notified(world, create(world, "alice"), FROM_CAROL).type == 14
    assert drops(world) == {"address-not-bound": 1}
    assert_unmoved(world)


@pytest.mark.rfc("4430-3.2-4")
def test_an_spi_that_exists_is_refused() -> None:
    world = World()
    give(world, create(world, xid=1))
    assert notified(world, create(world, xid=2)).type == 11
    assert len(world["bob"].endpoint.pairs) == 1


@pytest.mark.rfc("4430-3.2-5", "4430-5.5-4")
def test_a_ke_payload_is_refused_with_its_type() -> None:
    world = World()
    proposals = offer(SUITES["aes256gcm16"], 0x2000, lifetime=Lifetime(600))
    payload = isakmp.encode(
        (isakmp.SecurityAssociation(proposals), isakmp.Nonce(b"n" * 32), isakmp.KeyExchange(b"k"))
    )
    part = notified(world, create(world, payload=payload))
    assert (part.type, part.data) == (1, b"\x04")
    assert_unmoved(world)


def test_a_proposal_that_policy_does_not_know_is_not_chosen() -> None:
    world = World()
    proposals = offer(SUITES["aes128-sha1"], 0x2000, lifetime=Lifetime(600))
    payload = quickmode.creation(proposals, b"n" * 32)
    assert notified(world, create(world, payload=payload)).type == 14
    assert_unmoved(world)


@pytest.mark.rfc("4430-12-2")
def test_a_later_quick_mode_version_gets_badqmvers() -> None:
    world = World()
    proposals = offer(SUITES["aes256gcm16"], 0x2000, lifetime=Lifetime(600))
    plain = quickmode.creation(proposals, b"n" * 32)
    later = kink.Isakmp(plain.first, plain.body, major=2, minor=0)
    assert protected_answer(world, create(world, payload=later)) == kink.KinkError(6)
    assert_unmoved(world)


def test_a_host_cannot_fill_our_kernel() -> None:
    world = World()
    for number in range(100):
        give(world, create(world, spi=0x3000 + number, xid=number))
    assert len(world["bob"].endpoint.pairs) == 64
    assert drops(world)["too-many-sas"] == 36


def test_a_reply_that_nobody_awaits_is_dropped() -> None:
    world = World()
    message = kink.Message(MessageType.REPLY, 99, (kink.KinkError(5),))
    give(world, kink.encode(message))
    assert drops(world) == {"unexpected-reply": 1}
    assert not world.wire


@pytest.mark.rfc("4430-4.2.3-3", "4430-4.2.8-7")
def test_an_unproven_error_does_not_end_an_exchange() -> None:
    world = World()
    world.acquire("alice", "bob")
    (command,) = world.wire
    xid = kink.header(command.datagram).xid
    lie = kink.encode(kink.Message(MessageType.REPLY, xid, (kink.KinkError(5),)))
    path = Path(ALICE.addresses[0], BOB.addresses[0])
    world["alice"].endpoint.receive(lie, path, world.now)
    assert drops(world, "alice") == {"unauthenticated-reply": 1}
    world.run(1.0)
    assert len(world["alice"].endpoint.pairs) == 1


def test_a_send_shows_nothing_of_a_datagram() -> None:
    world = World()
    assert "datagram" not in repr(Send(create(world), FROM_ALICE))
