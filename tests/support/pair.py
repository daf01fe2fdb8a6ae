"""Two endpoints in memory: a network one can cut, a clock one turns, kernels one can ask."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv4Address

from kinkd.document import Document
from kinkd.errors import TicketUnavailable
from kinkd.exchange import quickmode
from kinkd.exchange.core import Start
from kinkd.exchange.effects import (
    FetchTgt,
    FetchTicket,
    ForgetDebt,
    ForgetPair,
    ForgetSecured,
    Path,
    RecordBurial,
    RecordDebt,
    RecordPair,
    RecordSecured,
    RecordSuspension,
    Report,
    ReserveXids,
    Send,
)
from kinkd.exchange.endpoint import Endpoint
from kinkd.exchange.forms import Forms
from kinkd.exchange.pairs import CommandId, Role, SaPair, Spis
from kinkd.exchange.xids import permuted
from kinkd.kerberos import etypes
from kinkd.kerberos.keytab import KeytabEntry
from kinkd.kerberos.offline import OfflineAcceptor, OfflineTicketSource
from kinkd.kernel.memory import MemoryKernel
from kinkd.kernel.port import Acquire, Sa, SaId
from kinkd.keying.algorithms import SUITES
from kinkd.keying.negotiate import Terms
from kinkd.model import (
    Direction,
    Host,
    IPAddress,
    Lifetime,
    Mode,
    Ownership,
    Principal,
    Profile,
    Protection,
    Selector,
    SpdEntry,
    Suite,
    Template,
    UserToUser,
)
from kinkd.policy import reader, resolve
from kinkd.policy.match import HostPolicy
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import MessageType

REALM = "EXAMPLE.TEST"
POSIX = 1_800_000_000.0  # what POSIX time is when the pair's clock stands at 0
REQID = 0x4B000001
OWNERSHIP = Ownership(resolve.Options().reqids, range(1000, 2_000_000))
FAST = Profile("fast", (SUITES["aes256gcm16"], SUITES["aes128gcm16"]), Lifetime(3600))


def host(name: str, *addresses: IPAddress) -> Host:
    principal = Principal(("kink", f"{name}.example.test"), REALM)
    return Host(name, principal, principal, addresses)


ALICE = host("alice", IPv4Address("10.0.0.1"))
BOB = host("bob", IPv4Address("10.0.0.2"))
CAROL = host("carol", IPv4Address("10.0.0.3"))


def policy_of(me: Host, peers: tuple[Host, ...], profile: Profile = FAST) -> HostPolicy:
    """Transport mode between all the hosts."""
    protections = []
    templates = tuple(
        Template(protocol, Mode.TRANSPORT, REQID) for protocol in profile.suites[0].protocols
    )
    for number, peer in enumerate(peers):
        local, remote = me.addresses[0], peer.addresses[0]
        out = Selector.between(local, remote)
        mine = (
            SpdEntry(Direction.OUT, out, 1000 + number, templates),
            SpdEntry(Direction.IN, out.reversed(), 1000 + number, templates),
        )
        protections.append(
            Protection(
                peer, profile, Mode.TRANSPORT, REQID, "all", local, remote, out, entries=mine
            )
        )
    entries = tuple(entry for p in protections for entry in p.entries)
    return HostPolicy(me, 1, peers, tuple(protections), entries)


@dataclass
class Node:
    """One host: endpoint, kernel, tickets, and what it reported."""

    host: Host
    endpoint: Endpoint
    kernel: MemoryKernel
    tickets: OfflineTicketSource
    acceptor: OfflineAcceptor
    reports: list[Report] = field(default_factory=list)
    journal: dict[SaId, SaPair] = field(default_factory=dict)
    answered: list[tuple[str, CommandId]] = field(default_factory=list)
    burials: list[RecordBurial] = field(default_factory=list)
    xids: int = 0
    debts: dict[tuple[Path, int], RecordDebt] = field(default_factory=dict)
    kdc_up: bool = True
    fetched: list[FetchTicket | FetchTgt] = field(default_factory=list)
    secured: dict[str, str] = field(default_factory=dict)
    suspended: float = 0.0

    @property
    def address(self) -> IPAddress:
        return self.host.addresses[0]

    def events(self, name: str) -> list[dict[str, object]]:
        return [report.fields for report in self.reports if report.event == name]


def mirrored(one: SaPair, other: SaPair) -> bool:
    """Whether two ends' views are of one pair."""
    crossed = [Spis(spis.protocol, spis.outbound, spis.inbound) for spis in other.sas]
    return list(one.sas) == crossed and one.selector == other.selector.reversed()


def offer(
    suite: Suite,
    spi: int,
    *,
    number: int = 1,
    lifetime: Lifetime = FAST.lifetime,
    group: int | None = None,
    esn: bool = False,
    mode: Mode = Mode.TRANSPORT,
) -> tuple[isakmp.Proposal, ...]:
    """The proposals of one number for a suite; ``spi`` is its first transform's, others follow."""
    terms = Terms(mode, lifetime, group=group, esn=esn)
    spis = [spi + index for index in range(len(suite.transforms))]
    return quickmode.propose(number, suite, terms, spis)


def _remember_forms(node: Node, command: RecordSecured | ForgetSecured | RecordSuspension) -> None:
    match command:
        case RecordSecured(name, principal):
            node.secured[name] = principal
        case ForgetSecured(name):
            del node.secured[name]
        case RecordSuspension(until):
            node.suspended = until


Filter = Callable[[Send], list[Send]]


def passes(world: World, source: str, destination: str) -> str:
    """What becomes of a packet between two hosts: "esp", "clear", "held" or "dropped"."""
    return world[source].kernel.send(
        world[destination].kernel, world[source].address, world[destination].address
    )


class World:
    """Hosts on one network. Datagrams wait in ``wire`` until ``deliver`` or ``run`` moves them."""

    AGES = False  # SAs live for ever, unless a test says what their kernel would

    def __init__(
        self,
        hosts: tuple[Host, ...] = (ALICE, BOB),
        profile: Profile = FAST,
        lacking: dict[str, set[str]] | None = None,
        document: str = "",
        ahead: dict[str, float] | None = None,
    ) -> None:
        self.realm = reader.read(Document.parse("policy", document.encode())) if document else None
        if self.realm is not None:
            hosts = tuple(self.realm.hosts.values())
        self.lacking = lacking or {}  # suites that a host's kernel does not have
        self.ahead = ahead or {}  # seconds by which a host's clock is ahead of the KDC's
        self.now = 0.0
        self.wire: deque[Send] = deque()
        self.sent: list[Send] = []
        self.profile = profile
        self.hosts = hosts
        self.acceptors: dict[str, OfflineAcceptor] = {}
        self.keys = {
            h.service: (1, etypes.key(18, bytes([n + 1]) * 32)) for n, h in enumerate(hosts)
        }
        self.tgs = etypes.key(18, bytes([0xDC]) * 32)  # the KDC's own
        self.user_to_user_only = {h.service for h in hosts if h.user_to_user is UserToUser.ALWAYS}
        self.nodes = {h.name: self._node(h, epoch=1000 + n) for n, h in enumerate(hosts)}
        for node in self.nodes.values():
            node.endpoint.start(self.now)

    def _node(self, me: Host, epoch: int, first_xid: int = 0) -> Node:
        # SPIs of one life differ from another's.
        kernel = MemoryKernel(first_spi=epoch << 16, posix=POSIX + self.ahead.get(me.name, 0.0))
        return self._alive(me, epoch, first_xid, kernel)

    def _alive(
        self,
        me: Host,
        epoch: int,
        first_xid: int,
        kernel: MemoryKernel,
        forms: Forms | None = None,
    ) -> Node:
        kdc = lambda: POSIX + self.now  # noqa: E731  # a clock, by name
        clock = lambda: kdc() + self.ahead.get(me.name, 0.0)  # noqa: E731
        policy = self.policy(me)
        kvno, key = self.keys[me.service]
        keytab = [KeytabEntry(me.service, kvno, 18, key.secret)]
        if me.user_to_user is UserToUser.ALWAYS:
            keytab = []
        acceptor = self.acceptors.setdefault(  # its replay cache outlives the daemon
            me.name, OfflineAcceptor(keytab, clock)
        )
        names = frozenset(SUITES) - self.lacking.get(me.name, set())
        source = self._random(me, epoch)
        start = Start(
            epoch,
            first_xid,
            partial(permuted, me.name.encode(), epoch),
            {4: names, 6: names},
            OWNERSHIP,
            source.randbytes,
            forms or Forms(),
        )
        endpoint = Endpoint(policy, kernel, acceptor, start)
        endpoint.set_posix(POSIX + self.ahead.get(me.name, 0.0))
        if not self.AGES:
            endpoint._rekeying.overdue = lambda *_: None  # type: ignore[method-assign]
        for entry in endpoint.forms.wanted(policy):
            kernel.write_policy(entry)
        tickets = OfflineTicketSource(
            me.client,
            self.keys,
            kdc,
            host_clock=clock,
            tgs=self.tgs,
            user_to_user_only=self.user_to_user_only,
        )
        return Node(me, endpoint, kernel, tickets, acceptor)

    def _random(self, me: Host, epoch: int) -> random.Random:
        """Where nonces come from: the same in every run."""
        return random.Random(f"{me.name}{epoch}")

    def policy(self, me: Host) -> HostPolicy:
        """What applies to a host: all of the one profile, or what the document says."""
        if self.realm is not None:
            return resolve.resolve(self.realm, me.name, resolve.Options())
        return policy_of(me, tuple(h for h in self.hosts if h is not me), self.profile)

    def restart(self, name: str, *, epoch: int | None = None) -> Node:
        """A new life of a daemon: the kernel stays; with ``epoch`` its SAs do not."""
        old = self.nodes[name]
        if epoch is not None:
            node = self._node(old.host, epoch)
        else:
            forms = Forms(dict(old.secured), old.suspended)
            node = self._alive(old.host, old.endpoint.epoch, 512, old.kernel, forms)
            node.secured, node.suspended = dict(old.secured), old.suspended
            node.endpoint.adopt(old.journal.values(), self.now)
            node.endpoint.recall(old.answered, self.now)
            node.journal, node.answered = dict(old.journal), list(old.answered)
        node.endpoint.start(self.now)
        self.nodes[name] = node
        return node

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def protection(self, source: str, destination: str) -> Protection:
        """The first of what the policy demands between two hosts."""
        return self[source].endpoint.policy.with_host(destination)[0]

    def acquire(self, source: str, destination: str) -> None:
        """Traffic that the kernel has no SA for."""
        wanted = self.protection(source, destination)
        ends = wanted.local, wanted.remote
        protocol = wanted.profile.protocols[0]
        event = Acquire(*ends, protocol, wanted.mode, wanted.reqid, 0, 1, wanted.selector)
        self[source].endpoint.kernel_event(event, self.now)
        self.settle()

    def initiate(self, source: str, destination: str) -> None:
        """An administrator wants a new pair, whatever there is."""
        wanted = self.protection(source, destination)
        self[source].endpoint.initiate(wanted, self.now, lambda *_: None)
        self.settle()

    def settle(self) -> None:
        """Carry out what the endpoints want; datagrams go onto the wire."""
        busy, rounds = True, 0
        while busy:
            busy, rounds = False, rounds + 1
            assert rounds < 10_000, "effects without end"
            for node in self.nodes.values():
                for command in node.endpoint.commands():
                    busy = True
                    self._carry_out(node, command)

    def _carry_out(self, node: Node, command: object) -> None:
        match command:
            case Send():
                self.wire.append(command)
                self.sent.append(command)
            case FetchTicket() | FetchTgt():
                self._fetch(node, command)
            case RecordPair(pair):
                node.journal[pair.inbound[0]] = pair
            case ForgetPair(pair):
                node.journal.pop(pair.inbound[0], None)
                if pair.role is Role.RESPONDER:
                    node.answered.append((pair.host, pair.command))
            case RecordDebt(path=path, spi=spi):
                node.debts[path, spi] = command
            case ForgetDebt(path=path, spi=spi):
                del node.debts[path, spi]
            case RecordBurial():
                node.burials.append(command)
            case RecordSecured() | ForgetSecured() | RecordSuspension():
                _remember_forms(node, command)
            case ReserveXids(below):
                node.xids = below
            case Report():
                node.reports.append(command)
            case _:
                pass

    def _fetch(self, node: Node, wanted: FetchTicket | FetchTgt) -> None:
        """As the application's workers do."""
        node.fetched.append(wanted)
        try:
            if not node.kdc_up:
                raise TicketUnavailable("KDC unreachable")  # noqa: TRY301  # as a source does
            if isinstance(wanted, FetchTgt):
                node.endpoint.tgt_ready(node.tickets.tgt(), self.now)
                return
            ticket = node.tickets.fetch(wanted.server, wanted.tgt)
        except TicketUnavailable as error:
            if isinstance(wanted, FetchTgt):
                node.endpoint.tgt_failed(error, self.now)
            else:
                node.endpoint.ticket_failed(wanted.server, error, self.now)
            return
        node.endpoint.ticket_ready(wanted.server, ticket, self.now)

    def deliver(self, send: Send) -> None:
        """Hand one datagram to whoever has its destination address."""
        for node in self.nodes.values():
            if send.path.remote in node.host.addresses:
                path = Path(send.path.remote, send.path.local)
                node.endpoint.receive(send.datagram, path, self.now)
        self.settle()

    def run(self, seconds: float = 0.0, pass_on: Filter = lambda send: [send]) -> None:
        """Deliver everything, and let ``seconds`` pass with all their timers."""
        end = self.now + seconds
        while True:
            while self.wire:
                for send in pass_on(self.wire.popleft()):
                    self.deliver(send)
            times = [node.endpoint.next_timer() for node in self.nodes.values()]
            due = min((t for t in times if t is not None), default=None)
            if due is None or due > end:
                break
            self.advance(max(self.now, due))
        self.advance(end)

    def pass_refresh(self) -> None:
        """Let the hosts come past the time at which they would fetch tickets early."""
        for node in self.nodes.values():
            node.endpoint.tick(self.now + 36000)
        self.settle()

    def advance(self, now: float) -> None:
        """Turn the clock; timers that are due run."""
        self.now = now
        for node in self.nodes.values():
            node.endpoint.tick(now)
        self.settle()


class KeyedTwiceError(AssertionError):
    """An SA was made with keys that had been in use before: its IVs come again."""


class WatchedKernel(MemoryKernel):
    """Notices keys that come a second time, over all lives of a host."""

    def __init__(self, first_spi: int, gone: set[tuple[SaId, bytes]]) -> None:
        super().__init__(first_spi, posix=POSIX)
        self._keys: dict[SaId, bytes] = {}
        self._gone = gone

    def install_inbound(self, sas: Sequence[Sa]) -> None:
        self._watch(sas)
        super().install_inbound(sas)

    def install_outbound(self, sas: Sequence[Sa], refresh: Sequence[SpdEntry]) -> None:
        self._watch(sas)
        super().install_outbound(sas, refresh)

    def remove(self, sa: SaId) -> bool:
        key = self._keys.pop(sa, None)
        if key is not None:
            self._gone.add((sa, key))
        return super().remove(sa)

    def lose_all(self) -> None:
        """The machine goes down."""
        for sa in list(self._keys):
            self.remove(sa)

    def _watch(self, sas: Sequence[Sa]) -> None:
        for sa in sas:
            key = bytes(sa.keymat.value)
            if (sa.id, key) in self._gone:
                raise KeyedTwiceError(f"{sa.id} had these keys before")
            self._keys[sa.id] = key


class LivingWorld(World):
    """A world whose kernels count time and acquire, and whose hosts restart as the daemon does."""

    AGES = True
    STEP = 5.0  # seconds at most that a kernel is late

    def __init__(
        self,
        profile: Profile = FAST,
        lacking: dict[str, set[str]] | None = None,
        hosts: tuple[Host, ...] = (ALICE, BOB),
        document: str = "",
    ) -> None:
        self.kernels_count = True  # else their SAs live for ever
        self._lives = 0
        self._gone: dict[str, set[tuple[SaId, bytes]]] = {}
        super().__init__(hosts, profile=profile, lacking=lacking, document=document)

    def _node(self, me: Host, epoch: int, first_xid: int = 0) -> Node:
        gone = self._gone.setdefault(me.name, set())
        return self._alive(me, epoch, first_xid, WatchedKernel(epoch << 16, gone))

    def _random(self, me: Host, epoch: int) -> random.Random:
        self._lives += 1  # no life draws what another drew
        return random.Random(f"{me.name}{epoch}{self._lives}")

    def traffic(self, source: str, destination: str) -> str:
        """A packet between two hosts, and what it makes the kernel ask for."""
        outcome = passes(self, source, destination)
        self.settle()
        return outcome

    def settle(self) -> None:
        super().settle()
        while any(self._kernel_events(node) for node in self.nodes.values()):
            super().settle()

    def _kernel_events(self, node: Node) -> bool:
        events = node.kernel.events()
        for event in events:
            node.endpoint.kernel_event(event, self.now)
        return bool(events)

    def advance(self, now: float) -> None:
        while self.now + self.STEP < now:
            self._advance(self.now + self.STEP)
        self._advance(now)

    def _advance(self, now: float) -> None:
        for node in self.nodes.values():
            if self.kernels_count:
                node.kernel.advance(now)
        super().advance(now)

    def begin_anew(self, name: str, *, reboot: bool) -> None:
        """A new life as ``kinkd.app`` begins it; of a machine that went down no SA survives."""
        old = self.nodes[name]
        me, pairs = old.host, list(old.journal.values())
        survived = bool(pairs) and not reboot
        self.acceptors[name]._tgts.clear()  # their session keys are nowhere else
        epoch = old.endpoint.epoch if survived else old.endpoint.epoch + 16
        if reboot:
            if isinstance(old.kernel, WatchedKernel):
                old.kernel.lose_all()
            node = self._node(me, epoch)
        else:
            node = self._alive(me, epoch, old.xids if survived else 0, old.kernel)
        self.nodes[name] = node
        node.kdc_up = old.kdc_up
        node.answered = list(old.answered)
        if survived:
            node.xids, node.journal = old.xids, dict(old.journal)
            node.endpoint.adopt(pairs, self.now)
        else:
            lost = [pair for pair in pairs if pair.role is Role.RESPONDER]
            node.answered += [(pair.host, pair.command) for pair in lost]
        node.endpoint.recall(node.answered, self.now)
        node.debts, node.burials = dict(old.debts), list(old.burials)
        node.endpoint.recall_burials(node.burials, self.now)
        node.endpoint.recall_debts(list(old.debts.values()), self.now)
        node.endpoint.disown(() if survived else pairs, self.now)
        self._lose_acks(me)
        self._remove_unclaimed(node)
        node.endpoint.start(self.now)
        self.settle()

    def _lose_acks(self, sender: Host) -> None:
        """What a life before has sent by way of ACKs does not arrive.

        An ACK does not say which REPLY it is for (RFC 4430 §6.2). One that outlives a restart of
        both ends can meet a half that the other's new life made of a repeated CREATE, of which
        nobody else knows: it lasts to its hard lifetime, and the next pair is used instead.
        """
        self.wire = deque(
            send
            for send in self.wire
            if send.path.local not in sender.addresses
            or kink.header(send.datagram).type != MessageType.ACK
        )

    def _remove_unclaimed(self, node: Node) -> None:
        claimed = {sa for p in node.journal.values() for sa in (*p.inbound, *p.outbound)}
        there = [state.id for state in node.kernel.states() if not state.larval]
        unclaimed = [sa for sa in there if sa not in claimed]
        for sa in unclaimed:
            node.kernel.remove(sa)
        node.endpoint.disown_unclaimed(unclaimed, self.now)
