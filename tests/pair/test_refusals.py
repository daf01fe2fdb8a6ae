"""Commands whose ticket and Cksum are good, and whose authenticator Kerberos refuses."""

from __future__ import annotations

import pytest

from kinkd.exchange import quickmode
from kinkd.exchange.effects import Path
from kinkd.exchange.verified import VerifiedReply, seal, verify_reply
from kinkd.kerberos import messages
from kinkd.kerberos.messages import KrbErrorPart
from kinkd.kerberos.offline import OfflineTicketSource
from kinkd.kerberos.port import Authenticator, Ticket
from kinkd.keying.algorithms import SUITES
from kinkd.model import Lifetime
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType
from tests.support.pair import ALICE, BOB, CAROL, POSIX, World, offer

AT_BOB = Path(BOB.addresses[0], ALICE.addresses[0])


class Asked:
    """A CREATE of alice's made by hand, and what bob answers."""

    def __init__(self, world: World, who: str = "alice", ticket: Ticket | None = None) -> None:
        self.world = world
        self.host = world[who].host
        self.ticket = ticket or world[who].tickets.fetch(BOB.service)
        self.authenticator = self.ticket.authenticate()
        self.datagram = self.seal(self.authenticator)

    def seal(self, authenticator: Authenticator, kind: MessageType = MessageType.CREATE) -> bytes:
        proposals = offer(SUITES["aes256gcm16"], 0x2000, lifetime=Lifetime(600))
        inner = (quickmode.creation(proposals, b"n" * 32),) if kind is MessageType.CREATE else ()
        proof = kink.ApReq(1000, authenticator.ap_req)
        return seal(kind, 7, proof, inner, self.ticket.key)

    def give(self, datagram: bytes | None = None, path: Path | None = None) -> list[kink.Received]:
        world = self.world
        at = path or Path(BOB.addresses[0], self.host.addresses[0])
        world["bob"].endpoint.receive(datagram or self.datagram, at, world.now)
        world.settle()
        answers = [kink.decode(send.datagram) for send in world.wire]
        world.wire.clear()
        return answers

    def error(self) -> KrbErrorPart:
        """The KRB-ERROR of bob's answer, which must be proven to be his."""
        (received,) = self.give()
        assert received.message.xid == 7
        reply = verify_reply(received, self.ticket.key, [self.authenticator])
        assert reply.epoch == 1001
        return krb_error(reply)


def krb_error(reply: VerifiedReply) -> KrbErrorPart:
    (payload,) = reply.inner
    assert isinstance(payload, kink.KrbError)
    return messages.read_krb_error(payload.krb_error)


def assert_unmoved(world: World) -> None:
    assert not list(world["bob"].endpoint.pairs)
    assert not world["bob"].kernel.states()


@pytest.mark.rfc("4430-3.5-2", "4430-3.5-3", "4430-4.2.3-2", "4430-6-1")
@pytest.mark.parametrize("ahead", [-600.25, 600.25])
def test_a_clock_ten_minutes_off_is_told_so_provably_with_both_times(ahead: float) -> None:
    world = World(ahead={"alice": ahead})
    asked = Asked(world)
    error = asked.error()
    assert (error.code, error.name) == (37, "KRB_AP_ERR_SKEW")
    assert (error.ctime, error.cusec) == (asked.authenticator.ctime, asked.authenticator.cusec)
    assert (error.stime, error.susec) == (int(POSIX), 0)
    assert (error.realm, error.server) == (BOB.service.realm, BOB.service)
    assert world["bob"].endpoint.counters["drop.clock-skew"] == 1
    assert_unmoved(world)


@pytest.mark.rfc("4430-4.2.3-2", "4430-6-1")
@pytest.mark.parametrize(
    ("kdc_ahead", "lifetime", "code"), [(0, -1000, 32), (600, 36000, 33)], ids=["ended", "begins"]
)
def test_a_ticket_out_of_its_time_is_told_so_provably(
    kdc_ahead: int, lifetime: int, code: int
) -> None:
    world = World()
    kdc = OfflineTicketSource(
        ALICE.client,
        world.keys,
        lambda: POSIX + kdc_ahead,
        lifetime=lifetime,
        host_clock=lambda: POSIX,
    )
    asked = Asked(world, ticket=kdc.fetch(BOB.service))
    error = asked.error()
    assert error.code == code
    assert (error.ctime, error.cusec) == (asked.authenticator.ctime, asked.authenticator.cusec)
    assert_unmoved(world)


def test_an_authenticator_of_another_client_is_told_so_provably() -> None:
    world = World((ALICE, BOB, CAROL))
    asked = Asked(world)
    raw = messages.read_ap_req(asked.authenticator.ap_req).ticket.raw
    forged = messages.build_ap_req(raw, asked.ticket.key, CAROL.client, int(POSIX), 5)
    asked.authenticator = Authenticator(forged, int(POSIX), 5)
    asked.datagram = asked.seal(asked.authenticator)
    assert asked.error().code == 36
    assert_unmoved(world)


@pytest.mark.rfc("4430-6-1")
def test_where_no_time_can_be_repeated_the_error_still_has_a_cksum() -> None:
    world = World()
    asked = Asked(world)
    broken = Authenticator(asked.authenticator.ap_req[:-1] + b"?", 0, 0)
    (received,) = asked.give(asked.seal(broken))
    (payload,) = received.message.payloads
    assert isinstance(payload, kink.KrbError)
    assert messages.read_krb_error(payload.krb_error).code == 31
    assert asked.ticket.key.verify(40, received.signed, received.checksum)
    assert_unmoved(world)


def test_an_overheard_refusal_is_repeated_at_a_bounded_rate_and_costs_no_other_host() -> None:
    world = World((ALICE, BOB, CAROL), ahead={"alice": 900, "carol": 900})
    overheard = Asked(world)
    answered = sum(len(overheard.give()) for _ in range(100))
    assert answered == 10
    assert world["bob"].endpoint.counters["refusal-withheld"] == 90
    assert Asked(world, "carol").error().code == 37
    world.now += 1
    assert len(overheard.give()) == 1


def test_an_overheard_refusal_cannot_be_had_at_another_address() -> None:
    world = World((ALICE, BOB, CAROL), ahead={"alice": 900})
    overheard = Asked(world)
    assert not overheard.give(path=Path(BOB.addresses[0], CAROL.addresses[0]))
    assert overheard.give()


def test_an_ack_by_a_wrong_clock_is_met_with_silence() -> None:
    world = World(ahead={"alice": 900})
    asked = Asked(world)
    assert not asked.give(asked.seal(asked.authenticator, MessageType.ACK))
    assert world["bob"].endpoint.counters["drop.clock-skew"] == 1
    assert asked.give()
