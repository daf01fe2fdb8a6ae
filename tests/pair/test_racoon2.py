"""Our endpoints fed with what racoon2's kinkd sent: it gets what it expects, we get its keys.

The recordings of ``tests/data/interop`` run under the clock of the day they were made. As
responder we choose the SPI of our inbound SA ourselves, so one of the two recorded SAs can be
compared; as initiator we are given the recorded ticket, authenticator, nonce and SPI, and both.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import IPv4Address, ip_address
from pathlib import Path as File

import pytest

from kinkd.decode import pcap
from kinkd.document import Document
from kinkd.exchange import quickmode
from kinkd.exchange.core import Start
from kinkd.exchange.effects import FetchTicket, Path, Send
from kinkd.exchange.endpoint import Endpoint
from kinkd.exchange.verified import VerifiedReply, seal, verify_reply
from kinkd.kerberos import offline
from kinkd.kerberos.etypes import Key
from kinkd.kerberos.keytab import read_keytab
from kinkd.kerberos.messages import (
    KrbErrorPart,
    build_ap_req,
    read_ap_rep,
    read_ap_req,
    read_krb_error,
)
from kinkd.kerberos.offline import OfflineAcceptor
from kinkd.kerberos.port import Authenticator, OpenedTicket
from kinkd.kernel.memory import MemoryKernel
from kinkd.kernel.port import Acquire
from kinkd.keying.algorithms import SUITES
from kinkd.model import Host, IpsecProtocol, Mode, Selector
from kinkd.policy import model
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import MessageType
from tests.support import recordings
from tests.support.pair import REQID, policy_of

CONF = File(__file__).resolve().parents[2] / "conf" / "racoon2.toml"
A, B = IPv4Address("10.99.0.1"), IPv4Address("10.99.0.2")
EVERY_SUITE = {4: frozenset(SUITES), 6: frozenset(SUITES)}
TWO_WAY = ["esp2way", "esp2way-etype17"]


def profile():
    rule = model.read(Document.parse(CONF.name, CONF.read_bytes())).rule_between("alice", "bob")
    assert rule is not None
    assert rule.profile is not None
    return rule.profile


def suffix(name: str) -> str:
    return "128" if name.endswith("etype17") else ""  # the recorded hosts' other principals


@dataclass
class Recording:
    """One recorded exchange: its KINK datagrams, and the keys that open them."""

    name: str

    @cached_property
    def datagrams(self) -> list[pcap.Datagram]:
        found = recordings.datagrams(self.name)
        return [each for each in found if 910 in (each.source_port, each.destination_port)]

    @cached_property
    def entries(self):
        return read_keytab(recordings.keytab(self.name))

    def opened(self, command: pcap.Datagram) -> OpenedTicket:
        request = kink.decode(command.octets).message.payloads[0]
        assert isinstance(request, kink.ApReq)
        return OfflineAcceptor(self.entries, lambda: 0).open(request.ap_req)

    def authenticator(self, command: pcap.Datagram) -> Authenticator:
        request = kink.decode(command.octets).message.payloads[0]
        assert isinstance(request, kink.ApReq)
        part = offline._authenticator(self.opened(command).key, read_ap_req(request.ap_req))
        return Authenticator(request.ap_req, part.ctime, part.cusec)

    def host(self, name: str, address: IPv4Address) -> Host:
        wanted = ("kink", f"{name}{suffix(self.name)}.kink.test")
        (principal,) = {e.principal for e in self.entries if e.principal.components == wanted}
        return Host(name, principal, principal, (address,))


class Responding:
    """Our responder at B under the recording's clock."""

    def __init__(self, recording: Recording, me: IPv4Address = B, ahead: float = 0.0) -> None:
        self.recording = recording
        self.now = 0.0  # POSIX seconds of the capture; our clock is ``ahead`` of it
        hosts = {A: recording.host("alice", A), B: recording.host("bob", B)}
        peer = hosts[A if me == B else B]
        self.kernel = MemoryKernel(first_spi=0x5000)
        acceptor = OfflineAcceptor(recording.entries, lambda: self.now + ahead)
        start = Start(1795421000, 0, EVERY_SUITE, random.Random(1).randbytes)
        policy = policy_of(hosts[me], (peer,), profile())
        self.endpoint = Endpoint(policy, self.kernel, acceptor, start)
        self.endpoint.set_posix(ahead)

    def give(self, command: pcap.Datagram, octets: bytes | None = None) -> VerifiedReply:
        """Our answer to a command, read as racoon2 reads it: AP-REP, Cksum, what is inside."""
        self.now = command.time / 1e9
        path = Path(ip_address(str(command.destination)), ip_address(str(command.source)))
        self.endpoint.tick(self.now)
        self.endpoint.receive(octets or command.octets, path, self.now)
        (answer,) = [each for each in self.endpoint.commands() if isinstance(each, Send)]
        assert (answer.path.remote, answer.path.port) == (path.remote, 910)
        received = kink.decode(answer.datagram)
        assert received.message.type is MessageType.REPLY
        assert received.message.xid == kink.header(command.octets).xid
        authenticator = self.recording.authenticator(command)
        return verify_reply(received, self.recording.opened(command).key, [authenticator])


def quick_mode(reply: VerifiedReply) -> tuple[isakmp.QuickModePayload, ...]:
    (payload,) = reply.inner
    assert isinstance(payload, kink.Isakmp)
    return isakmp.decode(payload)


def keys_of(kernel: MemoryKernel) -> dict[tuple[str, str, str], tuple[str, str]]:
    """As ``recordings.kernel_keys`` has them: AES-128 first, then HMAC-SHA1."""
    found = {}
    for entry in kernel._states.values():
        if entry.sa is not None:
            octets = bytes(entry.sa.keymat.value)
            name = (str(entry.id.destination), "esp", f"{entry.id.spi:08x}")
            found[name] = (octets[:16].hex(), octets[16:].hex())
    return found


def recorded_nonce(key: Key, create: kink.Message) -> bytes:
    sealed = create.payloads[1]
    assert isinstance(sealed, kink.Encrypt)
    (inner,) = kink.decode_inner(key.decrypt(39, sealed.cipher))
    assert isinstance(inner, kink.Isakmp)
    (nonce,) = [part.data for part in isakmp.decode(inner) if isinstance(part, isakmp.Nonce)]
    return nonce


@pytest.mark.rfc("4430-4.2.6-4", "4430-4-12", "4430-5.4-1", "4430-5-4", "4430-6.3-1")
@pytest.mark.parametrize("name", TWO_WAY)
def test_its_create_is_answered_in_two_messages_and_keys_its_inbound_sa(name: str) -> None:
    world = Responding(Recording(name))
    create = world.recording.datagrams[0]
    reply = world.give(create)
    assert not reply.ack_request
    (association,) = quick_mode(reply)  # no nonce, no notification: it would choke on them
    assert isinstance(association, isakmp.SecurityAssociation)
    (offered,) = recorded_proposals(world.recording, create)
    (chosen,) = association.proposals
    assert replace(chosen, spi=offered.spi) == offered  # numbers, attributes and their order
    keys, recorded = keys_of(world.kernel), recordings.kernel_keys(name)
    of_alice = ("10.99.0.1", "esp", offered.spi.hex())
    assert keys[of_alice] == recorded[of_alice]
    assert len(keys) == 2


def recorded_proposals(recording: Recording, create: pcap.Datagram) -> tuple[isakmp.Proposal, ...]:
    sealed = kink.decode(create.octets).message.payloads[1]
    assert isinstance(sealed, kink.Encrypt)
    (inner,) = kink.decode_inner(recording.opened(create).key.decrypt(39, sealed.cipher))
    assert isinstance(inner, kink.Isakmp)
    association = isakmp.decode(inner)[0]
    assert isinstance(association, isakmp.SecurityAssociation)
    return association.proposals


@dataclass
class RecordedTicket:
    """The ticket of a recording, with the authenticators that were sent under it, in order."""

    opened: OpenedTicket
    sent: list[Authenticator]
    offsets: list[float] = field(default_factory=list)  # that we asked for

    @property
    def client(self):
        return self.opened.client

    @property
    def server(self):
        return self.opened.server

    @property
    def key(self):
        return self.opened.key

    @property
    def end(self) -> int:
        return self.opened.end

    octets = 0

    def authenticate(self, offset: float = 0.0) -> Authenticator:
        self.offsets.append(offset)
        return self.sent[len(self.offsets) - 1]


class Initiating:
    """Our initiator at A; what it draws by lot is what the recorded one drew."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        create = recording.datagrams[0]
        message, self.now = kink.decode(create.octets).message, create.time / 1e9
        opened = recording.opened(create)
        (offered,) = recorded_proposals(recording, create)
        nonce = recorded_nonce(opened.key, message)
        self.kernel = MemoryKernel(first_spi=int.from_bytes(offered.spi))
        proof = message.payloads[0]
        assert isinstance(proof, kink.ApReq)

        def given(octets: int) -> bytes:
            return nonce if octets == quickmode.NONCE_OCTETS else bytes(octets)

        policy = policy_of(recording.host("alice", A), (recording.host("bob", B),), profile())
        acceptor = OfflineAcceptor(recording.entries, lambda: self.now)
        start = Start(proof.epoch, message.xid, EVERY_SUITE, given)
        self.endpoint = Endpoint(policy, self.kernel, acceptor, start)
        self.endpoint.set_posix(0.0)
        flow = Selector.between(A, B)
        acquire = Acquire(A, B, IpsecProtocol.ESP, Mode.TRANSPORT, REQID, 0, 1, flow)
        self.endpoint.kernel_event(acquire, self.now)

    def ticket(self, *commands: pcap.Datagram) -> RecordedTicket:
        """Give it the ticket that it must have asked for, for these commands."""
        (fetch,) = self.take(FetchTicket)
        opened = self.recording.opened(commands[0])
        assert fetch.server == opened.server
        sent = [self.recording.authenticator(each) for each in commands]
        ticket = RecordedTicket(opened, sent)
        self.endpoint.ticket_ready(fetch.server, ticket, self.now)
        return ticket

    def take(self, kind: type) -> list:
        return [each for each in self.endpoint.commands() if isinstance(each, kind)]

    def receive(self, reply: pcap.Datagram) -> None:
        self.now = reply.time / 1e9
        self.endpoint.receive(reply.octets, Path(A, B), self.now)


@pytest.mark.rfc("4430-3.2-1", "4430-4.2.2-1", "4430-7-1")
@pytest.mark.parametrize("name", TWO_WAY)
def test_our_create_is_its_own_and_its_reply_gives_both_recorded_keys(name: str) -> None:
    recording = Recording(name)
    create, reply = recording.datagrams[:2]
    world = Initiating(recording)
    ticket = world.ticket(create)
    (ours,) = world.take(Send)

    message, sent = (kink.decode(each).message for each in (create.octets, ours.datagram))
    assert (sent.type, sent.xid, sent.payloads[0]) == (
        message.type,
        message.xid,
        message.payloads[0],
    )
    assert len(ours.datagram) == len(create.octets)
    assert plain(ticket.key, sent) == plain(ticket.key, message)

    world.receive(reply)
    assert len(world.endpoint.pairs) == 1
    assert keys_of(world.kernel) == recordings.kernel_keys(name)


@pytest.mark.rfc("4430-3.5-4", "4430-3.5-5")
def test_its_proven_skew_error_corrects_our_clock_as_it_did_its_own_kinds() -> None:
    recording = Recording("skew")
    create, told, corrected, reply = recording.datagrams
    world = Initiating(recording)
    ticket = world.ticket(create, corrected)
    world.take(Send)
    world.receive(told)
    (again,) = world.take(Send)
    recorded, sent = (kink.decode(each).message for each in (corrected.octets, again.datagram))
    assert (sent.type, sent.xid, sent.payloads[0]) == (
        recorded.type,
        recorded.xid,
        recorded.payloads[0],
    )
    # What it computed itself was what its next authenticator was ahead by, within a second.
    assert ticket.offsets[0] == 0
    assert abs(ticket.offsets[1] - TEN_MINUTES) < 2
    world.receive(reply)
    (pair,) = world.endpoint.pairs
    of_bob = ("10.99.0.2", "esp", f"{pair.sas[0].outbound:08x}")
    # That SA as the recorded kernels had it; our own inbound one has another SPI this time.
    assert keys_of(world.kernel)[of_bob] == (
        "5d88ab69b426d8b32e47d1be0c2c53ba",
        "72c43cdbb2f6b8c868bfa53c560266edb9097b1d",
    )


def test_its_proven_expiry_errors_cost_us_one_more_ticket_each_command() -> None:
    recording = Recording("tktexpired")
    create, told, again, told_again = recording.datagrams
    world = Initiating(recording)
    world.ticket(create)
    world.receive(told)
    world.ticket(again)
    (ours,) = world.take(Send)
    recorded, sent = (kink.decode(each).message for each in (again.octets, ours.datagram))
    assert (sent.xid, sent.payloads[0]) == (recorded.xid, recorded.payloads[0])
    world.receive(told_again)
    assert not world.take(FetchTicket)
    assert world.endpoint.commands_under_way == 0
    assert not world.kernel.states()


def plain(key: Key, message: kink.Message) -> tuple[kink.Payload, ...]:
    sealed = message.payloads[1]
    assert isinstance(sealed, kink.Encrypt)
    return kink.decode_inner(key.decrypt(39, sealed.cipher))


@pytest.mark.rfc("4430-3.3-2")
def test_its_delete_of_what_it_made_names_our_inbound_sa() -> None:
    world = Responding(Recording("delete"))
    create, _, delete, _ = world.recording.datagrams
    world.give(create)
    (pair,) = world.endpoint.pairs
    (part,) = quick_mode(world.give(delete))
    assert part == isakmp.Delete(3, (pair.sas[0].inbound.to_bytes(4),))
    assert not list(world.endpoint.pairs)


@pytest.mark.rfc("4430-3.3-3")
def test_its_delete_of_what_we_never_had_gets_invalid_spi() -> None:
    world = Responding(Recording("delete"))
    (part,) = quick_mode(world.give(world.recording.datagrams[2]))
    assert isinstance(part, isakmp.Notification)
    assert (part.protocol_id, part.type, len(part.spi)) == (3, 11, 4)


@pytest.mark.rfc("4430-3.7-7")
def test_its_status_is_answered_by_an_ap_rep_and_our_epoch_in_both_directions() -> None:
    recording = Recording("status")
    statuses = [
        each for each in recording.datagrams if kink.header(each.octets).type == MessageType.STATUS
    ]
    assert {each.source for each in statuses} == {A, B}
    for status in statuses:
        reply = Responding(recording, me=status.destination).give(status)
        assert (reply.epoch, reply.inner) == (1795421000, ())


@pytest.mark.rfc("4430-3.7-6")
def test_it_may_ask_whether_we_live_and_then_key_anew() -> None:
    """It did so when its peer had restarted; its own EPOCH stays, so nothing of it is void."""
    world = Responding(Recording("dpd"))
    commands = [
        each
        for each in world.recording.datagrams
        if kink.header(each.octets).type != MessageType.REPLY
    ]
    for command in commands:
        assert world.give(command).epoch == 1795421000
    assert len(world.endpoint.pairs) == 2


@pytest.mark.rfc("4430-3.3-2")
def test_its_rekeying_leaves_one_pair_after_another() -> None:
    world = Responding(Recording("rekey"))
    alive = []
    for datagram in world.recording.datagrams:
        if kink.header(datagram.octets).type != MessageType.REPLY:
            world.give(datagram)
            alive.append(len(world.endpoint.pairs))
    assert alive == [1, 2, 1, 2, 1, 2, 1]


@pytest.mark.parametrize("name", ["esp2way", "delete", "status"])
def test_a_recorded_command_given_again_is_a_replay(name: str) -> None:
    world = Responding(Recording(name))
    command = world.recording.datagrams[0]
    world.give(command)
    world.endpoint.receive(command.octets, Path(B, A), world.now)
    assert not [each for each in world.endpoint.commands() if isinstance(each, Send)]
    assert world.endpoint.counters["drop.replay"] == 1


def test_its_retransmission_gets_the_same_answer_under_a_fresh_ap_rep() -> None:
    """It sends the same command under a new authenticator, XID and SPI as they were (§9)."""
    world = Responding(Recording("esp2way"))
    create = world.recording.datagrams[0]
    first = world.give(create)
    message = kink.decode(create.octets).message
    opened = world.recording.opened(create)
    request = read_ap_req(message.payloads[0].ap_req)
    part = offline._authenticator(opened.key, request)
    later = build_ap_req(request.ticket.raw, opened.key, part.client, part.ctime + 1, 0)
    proof = kink.ApReq(message.payloads[0].epoch, later)
    again = seal(MessageType.CREATE, message.xid, proof, plain(opened.key, message), opened.key)
    world.endpoint.receive(again, Path(B, A), world.now + 1)
    (answer,) = [each for each in world.endpoint.commands() if isinstance(each, Send)]
    reply = kink.decode(answer.datagram).message
    assert plain(opened.key, reply) == first.inner
    assert read_ap_rep(opened.key, reply.payloads[0].ap_rep) == (part.ctime + 1, 0)
    assert len(world.endpoint.pairs) == 1


TEN_MINUTES, ELEVEN_HOURS = 600.0, 11 * 3600.0  # by which the recorded responders were ahead


@pytest.mark.rfc("4430-3.5-2", "4430-3.5-3")
def test_its_wrong_clock_is_told_what_its_own_kind_told_it_and_what_it_then_sends_keys() -> None:
    recording = Recording("skew")
    world = Responding(recording, ahead=TEN_MINUTES)
    create, told, corrected, _ = recording.datagrams
    assert_same_refusal(krb_error(world.give(create)), recorded_refusal(recording, create, told))
    (association,) = quick_mode(world.give(corrected))
    assert isinstance(association, isakmp.SecurityAssociation)
    assert len(world.endpoint.pairs) == 1


def test_its_expired_ticket_is_told_what_its_own_kind_told_it() -> None:
    recording = Recording("tktexpired")
    world = Responding(recording, ahead=ELEVEN_HOURS)
    first, first_told, again, again_told = recording.datagrams
    for create, told in ((first, first_told), (again, again_told)):
        wanted = recorded_refusal(recording, create, told)
        assert wanted.code == 32
        assert_same_refusal(krb_error(world.give(create)), wanted)


def recorded_refusal(
    recording: Recording, command: pcap.Datagram, reply: pcap.Datagram
) -> KrbErrorPart:
    key = recording.opened(command).key
    received = kink.decode(reply.octets)
    return krb_error(verify_reply(received, key, [recording.authenticator(command)]))


def krb_error(reply: VerifiedReply) -> KrbErrorPart:
    (payload,) = reply.inner
    assert isinstance(payload, kink.KrbError)
    return read_krb_error(payload.krb_error)


def assert_same_refusal(ours: KrbErrorPart, recorded: KrbErrorPart) -> None:
    assert ours.code == recorded.code
    assert (ours.ctime, ours.cusec) == (recorded.ctime, recorded.cusec)
    assert abs(ours.stime - recorded.stime) <= 1  # it answered some milliseconds later
    assert (ours.realm, ours.server) == (recorded.realm, recorded.server)


def test_the_profile_is_all_that_racoon2_can_do() -> None:
    found = profile()
    assert found.suites[0].name == "aes128-sha1"
    assert found.lifetime.kilobytes is None
