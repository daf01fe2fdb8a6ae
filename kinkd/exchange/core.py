"""What all parts of the core share: the ports, the peers' memory, commands going out, counters."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from kinkd.errors import KernelError, PeerError
from kinkd.exchange import spd
from kinkd.exchange.effects import Command, Level, Path, RecordPair, Report, ReserveXids, Send
from kinkd.exchange.forms import Forms
from kinkd.exchange.pairs import CommandId, PairTable, SaPair
from kinkd.exchange.timing import RoundTrip, Timers, TokenBucket
from kinkd.kerberos.port import Acceptor, Ticket
from kinkd.kernel.port import Kernel, SaId
from kinkd.model import (
    Host,
    IPAddress,
    IpsecProtocol,
    Ownership,
    Principals,
    Profile,
    SpdKey,
    Suite,
)
from kinkd.policy.match import HostPolicy
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import KinkErrorCode

XID_BLOCK = 256
"""How many XIDs one journal entry reserves."""
MEMORY_SECONDS = 600.0
"""How long a command is remembered: past the time in which Kerberos takes its authenticator for
fresh, on a clock five minutes behind or ahead (RFC 4120 §3.2.3)."""
REMEMBERED_COMMANDS = 1024
"""Commands of one host that are remembered at once; a host that sends more is put off."""
COMMANDS_PER_PROTECTION = 64
"""So many for each protection that the policy has with it, if that is more."""
LONGEST_DETAIL = 300
"""Characters of what a peer sent that go into the log."""
PAIRS_PER_HOST = 64
"""Live pairs one authenticated host may have with us, where the policy has no need of more; more is
a fault or an attack."""


class Answer(NamedTuple):
    """What goes into a REPLY, and whether it asks for an ACK (RFC 4430 §6.1, §4)."""

    inner: tuple[kink.Payload, ...]
    ack_request: bool = False


class Answered(NamedTuple):
    """What a command was answered with; None: nothing of it is left, and it is not to come back."""

    answer: Answer | None
    when: float


@dataclass(slots=True, eq=False)
class Peer:
    """What is remembered of a host of the policy, over its exchanges.

    Under another policy the host may have other addresses, or another name. With other principals
    it is another peer; what is under way with the one before ends with that one.
    """

    host: Host
    epoch: int | None = None  # the last one that was proven or, before that, claimed (§3.7)
    epoch_proven: float = float("-inf")  # when
    round_trip: RoundTrip = field(default_factory=RoundTrip)
    ticket: Ticket | None = None
    candidate: Ticket | None = None  # fetched for what nobody has proven; nor is it, yet
    ticket_fault: str = ""  # why there is no newer one
    user_to_user: bool = False  # how ``ticket`` was made
    said_large: Ticket | None = None  # of which people were told that it is
    clock_offset: float = 0.0  # seconds by which its clock is ahead of ours, as it has proven
    # What Kerberos refuses it does not remember: whoever overheard such a command can repeat it.
    refusals: TokenBucket = field(default_factory=lambda: TokenBucket(rate=1, burst=10))
    failures: TokenBucket = field(default_factory=lambda: TokenBucket(rate=2, burst=40))
    # What nobody has proven costs requests to the KDC, and answers to its address.
    doubts: TokenBucket = field(default_factory=lambda: TokenBucket(rate=1 / 60, burst=1))
    offers: TokenBucket = field(default_factory=lambda: TokenBucket(rate=1 / 20, burst=3))
    tgts: TokenBucket = field(default_factory=lambda: TokenBucket(rate=200, burst=400))
    unprotected: TokenBucket = field(default_factory=lambda: TokenBucket(rate=5, burst=20))
    retired: float = float("inf")  # since when the policy means nobody by these principals
    _answered: OrderedDict[CommandId, Answered] = field(default_factory=OrderedDict)
    _buried: OrderedDict[tuple[IpsecProtocol, int], float] = field(default_factory=OrderedDict)

    def bury(self, spi: tuple[IpsecProtocol, int], now: float) -> None:
        """The peer deletes an SPI of its own that we do not know (RFC 4430 §3.3).

        What was to make it may have been overtaken, and must not make a half of a pair.
        """
        self._buried[spi] = now
        self._buried.move_to_end(spi)
        if len(self._buried) > REMEMBERED_COMMANDS:
            self._buried.popitem(last=False)

    def is_buried(self, protocol: IpsecProtocol, spi: int, now: float) -> bool:
        """Whether that is so, not long ago."""
        when = self._buried.get((protocol, spi))
        return when is not None and now - when < MEMORY_SECONDS

    def inherit(self, other: Peer) -> None:
        """Remember what the same client has sent while it was another peer."""
        self._answered, self._buried = other._answered, other._buried

    def recall(self, command: CommandId) -> Answer | None:
        """The answer that a command was given before; None: it is new.

        Raises:
            PeerError: "stale-command": the SAs it made have come and gone. To make them again
                would use their keys twice.
        """
        answered = self._answered.get(command)
        if answered is None:
            return None
        if answered.answer is None:
            raise PeerError("stale-command", f"XID {command.xid} was carried out and undone")
        return answered.answer

    def remember(self, command: CommandId, answer: Answer | None, now: float) -> None:
        """Keep the answer to a command, for the day it is repeated (RFC 4430 §9)."""
        self._answered[command] = Answered(answer, now)
        self._answered.move_to_end(command)  # the oldest stands first

    def make_room(self, most: int, now: float) -> None:
        """Forget the commands whose time is over; ``most`` may be remembered.

        Raises:
            PeerError: "too-many-commands", KINK_INTERR: there is no room for one more.
                "too-many-failures", no answer: what is refused is not remembered, and may yet have
                cost a Diffie-Hellman exchange.
        """
        if not self.failures.has(now):
            raise PeerError("too-many-failures", f"{self.host.name} is refused too often")
        while self._buried and now - next(iter(self._buried.values())) >= MEMORY_SECONDS:
            self._buried.popitem(last=False)
        while self._answered:
            oldest = next(iter(self._answered.values()))
            if now - oldest.when < MEMORY_SECONDS:
                break
            self._answered.popitem(last=False)
        if len(self._answered) >= most:
            raise PeerError(
                "too-many-commands",
                f"{self.host.name} sent {most} in {MEMORY_SECONDS:.0f} s",
                kink_error=KinkErrorCode.INTERR,
            )


@dataclass(frozen=True, slots=True)
class Start:
    """Where a life of the daemon begins: what the journal and the kernel said.

    Args:
        epoch: ours, announced in every AP-REQ and AP-REP (RFC 4430 §3.7).
        first_xid: the number of the first command under this epoch.
        xid: the XID of a command by its number, for 32 bits one to one.
        suites: per address family (4, 6), the names of the suites this kernel has.
        ownership: which reqids and priorities of the kernel are ours.
        random: a source of cryptographic randomness, octets by length.
        forms: in which form SPD entries are in the kernel.
    """

    epoch: int
    first_xid: int
    xid: Callable[[int], int]
    suites: Mapping[int, frozenset[str]]
    ownership: Ownership
    random: Callable[[int], bytes]
    forms: Forms = field(default_factory=Forms)


class Core:
    """The services and the memory that the initiator, responder and lifecycle work on."""

    def __init__(
        self, policy: HostPolicy, kernel: Kernel, acceptor: Acceptor, start: Start
    ) -> None:
        self.policy = policy
        self.installed = policy  # whose entries the kernel has: a moment before it is ``policy``
        self.kernel = kernel
        self.acceptor = acceptor
        self.epoch = start.epoch
        self.random = start.random
        self.pairs = PairTable()
        self.timers = Timers()
        self.counters: Counter[str] = Counter()
        self.posix_offset = 0.0
        self.closing = False
        self.ownership = start.ownership
        self.in_the_way: frozenset[SpdKey] = frozenset()  # entries of others
        self.hearers: list[Callable[[Peer, float], None]] = []
        self.made: list[Callable[[SaPair, float], None]] = []  # who is told of every pair
        self.lost: list[Callable[[SaPair, float], None]] = []  # and of its end
        self.forms = start.forms
        self.forms.keyed = lambda slot: bool(self.pairs.in_slot(slot))
        self._suites = start.suites
        self._xid = self._xids_reserved = start.first_xid
        self._xid_of = start.xid
        self._peers: dict[str, Peer] = {}
        self._known: dict[Principals, Peer] = {}  # those that were meant not long ago, too
        self._commands: list[Command] = []
        self._drop_reports = TokenBucket(rate=2, burst=20)
        self._strangers = TokenBucket(rate=10, burst=20)
        self._notification_reports = TokenBucket(rate=2, burst=20)

    def emit(self, command: Command) -> None:
        """Queue a command for the application."""
        self._commands.append(command)

    def take_commands(self) -> list[Command]:
        """All commands since the last call, in order."""
        commands, self._commands = self._commands, []
        return commands

    def send(self, datagram: bytes, path: Path) -> None:
        """Queue a datagram."""
        self.counters["sent"] += 1
        self.emit(Send(datagram, path))

    def report(self, level: Level, event: str, **fields: object) -> None:
        """Tell people and metrics."""
        self.emit(Report(level, event, fields))

    def drop(self, error: PeerError, path: Path, now: float) -> None:
        """The one place where a packet ends: counted by its reason, reported at a bounded rate."""
        self.counters[f"drop.{error.reason}"] += 1
        if self._drop_reports.take(now):
            self.report(
                Level.WARNING,
                "packet-dropped",
                reason=error.reason,
                detail=error.detail[:LONGEST_DETAIL],
                peer=path.remote,
            )

    def notified(self, notification: isakmp.Notification, host: str, now: float) -> None:
        """A notification that nothing is made of is said all the same (RFC 4430 §5.5)."""
        self.counters["notification.ignored"] += 1
        if self._notification_reports.take(now):
            self.report(Level.INFO, "notification-ignored", peer=host, type=notification.type)

    def kernel_refused(self, error: KernelError) -> None:
        """The kernel did not do what must be possible: said and counted, and we live on."""
        self.counters["kernel-error"] += 1
        self.report(Level.ERROR, "kernel-refused", reason=str(error))

    def keep(self, pair: SaPair, now: float) -> None:
        """A pair is whole: it is ours from now on, and a later life's."""
        self.pairs.add(pair)
        self.emit(RecordPair(pair))
        for told in self.made:
            told(pair, now)

    def give_up(self, pair: SaPair, now: float) -> bool:
        """A pair is ours no more; False: it was not before."""
        if not self.pairs.discard(pair):
            return False
        for told in self.lost:
            told(pair, now)
        return True

    def install_policy(self, policy: HostPolicy) -> int:
        """Have the kernel's SPD entries be those of a policy; how many changes that took.

        Raises:
            LocalError: an entry of other software is in the way; nothing was changed.
            KernelError: the kernel refused a change.
        """
        wanted, ours = self.forms.wanted(policy), self.ownership.priorities
        if self.in_the_way:  # not all that we want is there
            changes = spd.install(self.kernel, wanted, ours)
        else:
            changes = spd.change(self.kernel, self.forms.wanted(self.policy), wanted, ours)
        self.installed = policy
        return changes

    def restore_policy(self) -> spd.Plan:
        """Have the entries be the present policy's again, around what others have put in the way.

        Raises:
            KernelError: the kernel refused a change.
        """
        wanted = self.forms.wanted(self.policy)
        found = spd.plan(self.kernel.policies(), wanted, self.ownership.priorities)
        self.in_the_way = frozenset(entry.key for entry in found.in_the_way)
        spd.carry_out(self.kernel, found)
        return found

    def remove_sa(self, sa: SaId) -> None:
        """Remove an SA of ours from the kernel, if it is there."""
        try:
            self.kernel.remove(sa)
        except KernelError as error:
            self.kernel_refused(error)

    def peer(self, host: Host) -> Peer:
        """The memory of a host."""
        peer = self._peers.get(host.name)
        if peer is None:
            host = self.policy.host_by_name(host.name) or host  # what it was may be over
            peer = self._known.get(host.principals)
            if peer is None:
                peer = self._known[host.principals] = Peer(host)
                for other in self._known.values():
                    if other.host.client == host.client:  # commands are the client's
                        peer.inherit(other)
                        break
            peer.host, peer.retired = host, float("inf")
            self._peers[host.name] = peer
        return peer

    def most_commands(self, peer: Peer) -> int:
        """How many commands of a peer are remembered."""
        wanted = COMMANDS_PER_PROTECTION * len(self.policy.with_host(peer.host.name))
        return max(REMEMBERED_COMMANDS, wanted)

    def is_current(self, peer: Peer) -> bool:
        """Whether a peer is what the policy means by its name."""
        return self._peers.get(peer.host.name) is peer

    def apply(
        self, policy: HostPolicy, suites: Mapping[int, frozenset[str]], now: float
    ) -> list[Peer]:
        """Go by another policy from now on; the peers that it does not mean any more.

        Peers are known by their principals, under whatever name. Commands are remembered by the
        principal who sent them, for their time: what was carried out is not carried out again.
        """
        self.policy, self._suites = policy, suites
        before, self._peers = self._peers, {}
        for host in policy.peers + policy.others:
            if host.principals in self._known:
                self.peer(host)
        others = [peer for peer in before.values() if not self.is_current(peer)]
        for peer in others:
            peer.retired = now
        for principals, peer in list(self._known.items()):
            if now - peer.retired >= MEMORY_SECONDS:
                del self._known[principals]
        return others

    def unprotected_bucket(self, path: Path) -> TokenBucket:
        """What bounds answers that nobody has proven a right to (RFC 4430 §4.2.8, §10).

        Each host of the policy has its own: who spends one in another's name spends no third's.
        """
        protections = self.policy.between(path.local, path.remote)
        return self.peer(protections[0].peer).unprotected if protections else self._strangers

    def heard(self, peer: Peer, now: float) -> None:
        """A verified message of a peer came: whoever waits for such is told."""
        for hearer in self.hearers:
            hearer(peer, now)

    def next_xid(self) -> int:
        """An XID that no transaction under this EPOCH has had (RFC 4430 §4)."""
        if self._xid == self._xids_reserved:
            self._xids_reserved += XID_BLOCK
            self.emit(ReserveXids(self._xids_reserved))
        xid = self._xid
        self._xid += 1
        return self._xid_of(xid & 0xFFFFFFFF)

    def posix(self, now: float) -> float:
        """POSIX seconds at the monotonic instant ``now``."""
        return now + self.posix_offset

    def suites(self, profile: Profile, address: IPAddress) -> tuple[Suite, ...]:
        """The profile's suites that the kernel has for this address family."""
        known = self._suites[address.version]
        return tuple(suite for suite in profile.suites if suite.name in known)
