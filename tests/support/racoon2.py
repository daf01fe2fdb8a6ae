"""Our endpoints in the place of one of racoon2's daemons, with the policy of ``conf/racoon2.toml``.

Kernel and random source give what theirs gave, so that whatever else differs is a difference of
ours. They run under the clock of the day the recordings were made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path as File

from kinkd.document import Document
from kinkd.exchange import quickmode
from kinkd.exchange.core import Start
from kinkd.exchange.effects import FetchTicket, Path, Report, Send
from kinkd.exchange.endpoint import Endpoint
from kinkd.exchange.verified import VerifiedReply, verify_reply
from kinkd.kerberos.keytab import KeytabEntry
from kinkd.kerberos.offline import OfflineAcceptor
from kinkd.kerberos.port import Authenticator, OpenedTicket
from kinkd.kernel.memory import MemoryKernel
from kinkd.kernel.port import Acquire, Expire, Sa
from kinkd.keying.algorithms import SUITES
from kinkd.model import IpsecProtocol, Lifetime, Ownership, Suite, Transform
from kinkd.policy import reader, resolve
from kinkd.policy.match import HostPolicy
from kinkd.policy.realm import RealmPolicy
from kinkd.wire import kink
from kinkd.wire.numbers import EspTransform, MessageType
from tests.support.recordings import A, B, Keys, Named, Recording, Transaction, nonce, proposals

CONF = File(__file__).resolve().parents[2] / "conf" / "racoon2.toml"
TRIPLE_DES = Suite(  # what racoon2 offers first in one recording, and kinkd has not
    "3des-sha1",
    (
        Transform(
            IpsecProtocol.ESP,
            int(EspTransform.TRIPLE_DES),
            key_bits=None,
            authentication_id=2,
            encryption_octets=24,
            authentication_octets=20,
            icv_bits=96,
            encryption="cbc(des3_ede)",
            authentication="hmac(sha1)",
        ),
    ),
)
SUITE_NAMES = frozenset(SUITES) | {TRIPLE_DES.name}
SUITE_OF = {"ah": "ah-sha1", "ah_esp": "ah-sha1+aes128-sha1"}


def realm_policy(recording: Recording) -> RealmPolicy:
    """``conf/racoon2.toml`` with the recorded hosts, and the lines that this recording needs."""
    lines = {
        'realm = "EXAMPLE.TEST"': 'realm = "KINK.TEST"',
        ".example.test": f"{recording.suffix}.kink.test",
        "192.0.2.10": str(A),
        "192.0.2.11": str(B),
        'suites = ["aes128-sha1"]': f'suites = ["{SUITE_OF.get(recording.name, "aes128-sha1")}"]',
    }
    if recording.name == "tunnel":
        lines['action = "require"'] = 'action = "require"\nmode = "tunnel"'
    text = CONF.read_text()
    for old, new in lines.items():
        assert old in text
        text = text.replace(old, new)
    return reader.read(Document.parse(CONF.name, text.encode()))


def policy_of(recording: Recording, me: str) -> HostPolicy:
    policy = resolve.resolve(realm_policy(recording), me, resolve.Options())
    match recording.name:
        case "rekey":  # shorter than a policy may say
            return with_profile(policy, lifetime=Lifetime(20))
        case "esp3way-prop2" if me == "alice":
            return with_profile(policy, suites=(TRIPLE_DES, SUITES["aes128-sha1"]))
        case "noproposal" if me == "alice":
            return with_profile(policy, suites=(TRIPLE_DES,))
    return policy


def with_profile(policy: HostPolicy, **changes) -> HostPolicy:
    """With what no document can say in the profile of the one protection."""
    (protection,) = policy.protections
    profile = replace(protection.profile, **changes)
    return replace(policy, protections=(replace(protection, profile=profile),))


class RecordedKernel(MemoryKernel):
    """Gives the SPIs that were given then, and remembers the keys it was handed."""

    def __init__(self, spis: Iterable[tuple[IpsecProtocol, int]] = ()) -> None:
        super().__init__(first_spi=0x5000)
        self.keys: dict[Named, Keys] = {}
        self._recorded: dict[IpsecProtocol, list[int]] = {}
        for protocol, spi in spis:
            self._recorded.setdefault(protocol, []).append(spi)

    def allocate_spi(self, source, destination, reqid, protocol=IpsecProtocol.ESP) -> int:
        if recorded := self._recorded.get(protocol):
            self._next_spi = recorded.pop(0)
        return super().allocate_spi(source, destination, reqid, protocol)

    def install_inbound(self, sas) -> None:
        self._note(sas)
        super().install_inbound(sas)

    def install_outbound(self, sas, refresh) -> None:
        self._note(sas)
        super().install_outbound(sas, refresh)

    def _note(self, sas: Iterable[Sa]) -> None:
        for sa in sas:
            octets, split = bytes(sa.keymat.value), sa.transform.encryption_octets
            name = Named(str(sa.id.destination), sa.id.protocol.name.lower(), f"{sa.id.spi:08x}")
            self.keys[name] = Keys(octets[:split].hex(), octets[split:].hex())


def spis(payloads: Iterable[kink.Payload]) -> Iterator[tuple[IpsecProtocol, int]]:
    """Of the last number among the proposals: racoon2's are of one each, ours are for all."""
    found = proposals(payloads)
    for proposal in found:
        if proposal.number == found[-1].number:
            protocol = IpsecProtocol.AH if proposal.protocol_id == 2 else IpsecProtocol.ESP
            yield protocol, int.from_bytes(proposal.spi)


def randomness(nonces: Iterable[bytes]) -> Callable[[int], bytes]:
    """The recorded nonces, and zeros for whatever else is random."""
    recorded = iter(nonces)
    return lambda octets: next(recorded) if octets == quickmode.NONCE_OCTETS else bytes(octets)


class Endpointed:
    """An endpoint of ours in the place of one of the recorded daemons."""

    me, peer, name = A, B, "alice"
    epoch = 1795421000

    def __init__(
        self,
        recording: Recording,
        kernel: RecordedKernel,
        nonces: list[bytes],
        entries: Iterable[KeytabEntry] | None = None,
    ) -> None:
        self.recording, self.kernel, self.now = recording, kernel, 0.0
        acceptor = OfflineAcceptor(entries or recording.entries, lambda: self.now)
        start = Start(
            self.epoch,
            0,
            int,  # as it counts them itself
            {4: SUITE_NAMES, 6: SUITE_NAMES},
            Ownership(resolve.Options().reqids, resolve.Options().priorities),
            randomness([*nonces, b"n" * 32]),
        )
        self.policy = policy_of(recording, self.name)
        self.endpoint = Endpoint(self.policy, kernel, acceptor, start)
        self.endpoint.set_posix(0.0)
        self.reports: list[Report] = []

    @property
    def path(self) -> Path:
        return Path(self.me, self.peer)

    def sent(self) -> list[kink.Received]:
        """What it sends, to the port that racoon2 alone listens on; tickets are fetched at once."""
        found = []
        for command in self.endpoint.commands():
            if isinstance(command, Send):
                assert (command.path.remote, command.path.port) == (self.peer, 910)
                assert kink.header(command.datagram).length == len(command.datagram)
                found.append(kink.decode(command.datagram))
            elif isinstance(command, FetchTicket):
                self.endpoint.ticket_ready(command.server, self.ticket(command), self.now)
                found += self.sent()
            elif isinstance(command, Report):
                self.reports.append(command)
        return found

    def wait(self, seconds: float) -> list[kink.Received]:
        """Let time pass; what it sends then."""
        self.now += seconds
        self.endpoint.tick(self.now)
        return self.sent()

    def ticket(self, fetch: FetchTicket) -> RecordedTicket:
        raise AssertionError(f"nobody was to ask for {fetch.server}")


class Responding(Endpointed):
    """Our responder, at B unless said otherwise, under the recording's clock."""

    me, peer, name = B, A, "bob"

    def __init__(self, recording: Recording, entries: Iterable[KeytabEntry] | None = None) -> None:
        made = [each.answered for each in recording.transactions if each.creates]
        kernel = RecordedKernel(spi for each in made for spi in spis(each))
        nonces = [nr for each in made if (nr := nonce(each)) is not None]
        super().__init__(recording, kernel, nonces, entries)

    def receive(self, octets: bytes, now: float) -> list[kink.Received]:
        self.now = now
        self.endpoint.tick(now)
        self.endpoint.receive(octets, self.path, now)
        return self.sent()

    def give(self, command) -> VerifiedReply:
        """Our answer to a command, read as racoon2 reads it: AP-REP, Cksum, what is inside."""
        (received,) = self.receive(command.octets, self.recording.now(command))
        assert received.message.type is MessageType.REPLY
        assert received.message.xid == kink.header(command.octets).xid
        authenticator = self.recording.authenticator(command)
        return verify_reply(received, self.recording.opened(command).key, [authenticator])


class AtAlice(Responding):
    me, peer, name = A, B, "alice"


class RecordedTicket:
    """The ticket of a transaction; what is sent under it are the recorded authenticators."""

    octets = 0

    def __init__(self, opened: OpenedTicket, world: Initiating) -> None:
        self.client, self.server = opened.client, opened.server
        self.key, self.end = opened.key, opened.end
        self._world = world

    def authenticate(self, offset: float = 0.0) -> Authenticator:
        self._world.offsets.append(offset)
        return self._world.transactions[len(self._world.offsets) - 1].authenticator


class Initiating(Endpointed):
    """Our initiator at A: it is given the tickets, SPIs and nonces that racoon2 had."""

    def __init__(self, name: str) -> None:
        recording = Recording(name)
        self.transactions = recording.transactions
        asked = [each.asked for each in self.transactions if each.type is MessageType.CREATE]
        kernel = RecordedKernel(spi for each in asked for spi in spis(each))
        self.epoch = self.transactions[0].proof.epoch
        self.offsets: list[float] = []  # by which each authenticator was to be ahead
        super().__init__(recording, kernel, [ni for each in asked if (ni := nonce(each))])

    def ticket(self, fetch: FetchTicket) -> RecordedTicket:
        opened = self.transactions[len(self.offsets)].opened
        assert fetch.server == opened.server
        return RecordedTicket(opened, self)

    def acquire(self) -> kink.Received:
        """Traffic wants an SA: the CREATE."""
        (wanted,) = self.policy.protections
        event = Acquire(
            A, B, wanted.profile.protocols[0], wanted.mode, wanted.reqid, 0, 1, wanted.selector
        )
        self.now = self.transactions[0].command.time / 1e9
        self.endpoint.kernel_event(event, self.now)
        (create,) = self.sent()
        return create

    def soft_expire(self, now: float) -> kink.Received:
        """The newest SA is to be replaced: the CREATE."""
        self.now = now
        *_, pair = self.endpoint.pairs
        event = Expire(pair.outbound[0], pair.reqid, hard=False)
        self.endpoint.kernel_event(event, self.now)
        (create,) = self.sent()
        return create

    def answer(self, transaction: Transaction) -> list[kink.Received]:
        """Give it the recorded REPLY; what it sends then."""
        assert transaction.reply is not None
        self.now = max(self.now, transaction.reply.time / 1e9)
        self.endpoint.receive(transaction.reply.octets, self.path, self.now)
        return self.sent()
