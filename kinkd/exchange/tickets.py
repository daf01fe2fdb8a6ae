"""The tickets that our commands go out with: when they are fetched, and when anew.

Each peer has one at a time, and beside it whoever waits for the next. What is done:

- A ticket is fetched when a command needs it, and again after 60 to 80 % of what it has left to
  live, while there are SAs with the peer: a KDC that is away for a while is not noticed. The old
  one serves on until the new one is there, and exchanges end with the ticket they began with (§9).
- A KDC that fails is asked again with growing pauses, none of them like another: hosts that lost
  their KDC at the same instant do not come back to it at the same instant.
- Who cannot open our ticket, since its key changed, cannot prove it either. Such words may be
  anyone's. They cost a bounded number of requests to the KDC, and what these bring is a candidate:
  a command goes out with it when its time T has passed without a proven answer, and only such an
  answer makes it the peer's ticket (``doubt``, ``proven``).
- Of a peer without a long-term key the ticket is made user-to-user, from the TGT that it is asked
  for first (RFC 4430 §3.1): ``usertouser``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol

from kinkd.errors import TicketUnavailable
from kinkd.exchange.core import Core, Peer
from kinkd.exchange.effects import FetchTicket, Level, Path
from kinkd.exchange.timing import TRANSACTION_SECONDS, Timer, back_off
from kinkd.exchange.usertouser import TgtAsking
from kinkd.kerberos.port import Ticket
from kinkd.model import Principal, UserToUser

MUST_USE_USER_TO_USER = 27  # RFC 4120 §7.5.9: of the KDC
# The same: what it says of a TGT that is not its own, or not that of whom a ticket is wanted for.
USELESS_TGT = frozenset({26, 31, 36, 41, 44, 45})

DEMANDED_PAUSE = 15.0
"""Seconds to which the pause between two requests grows while a command waits for the ticket."""
EARLY_PAUSE = 300.0
"""The same where the ticket is only fetched early."""
SILENCE_PAUSE = 3600.0
"""Seconds to which the time grows after which a peer's silence puts its ticket in doubt again."""
SHORTEST_REFRESH = 30.0
DENIED_SECONDS = 60.0
"""For so long a KINK_U2UDENIED, which anyone could have sent, keeps us from asking again."""
OFFERED = 3
"""TGTs of one peer that wait for their turn at the KDC; all but one are forged."""
USELESS = 16
"""TGTs of one peer that are known to be of no use."""


class Waiters(Protocol):
    """Who sends commands."""

    def waits(self, peer: Peer) -> bool:
        """Whether a command to this peer waits for a ticket."""

    def ready(self, peer: Peer, ticket: Ticket, now: float) -> None:
        """It is there."""

    def hint(self, peer: Peer, reason: str) -> None:
        """It is not, and this is why; it is asked for again."""

    def replaced(self, peer: Peer, doubted: Ticket) -> None:
        """What was sent with ``doubted`` may go unanswered: there is another now."""


@dataclass(slots=True, eq=False)
class _Source:
    """How the tickets for one peer come about."""

    peer: Peer
    path: Path  # of whoever wanted one last: a GETTGT goes there
    user_to_user: bool  # how the next one is made
    fetching: FetchTicket | None = None
    next: Timer | None = None
    failures: int = 0  # since the last success
    not_before: float = float("-inf")
    refresh: float = float("inf")
    tgt: bytes = b""  # the peer's, of the present ticket
    candidate_tgt: bytes = b""
    offered: list[bytes] = field(default_factory=list)
    useless: deque[bytes] = field(default_factory=lambda: deque(maxlen=USELESS))  # their digests
    doubted: Ticket | None = None
    silences: int = 0  # that put the present ticket in doubt
    silent_until: float = float("-inf")
    denied_until: float = float("-inf")  # it gives no TGT out, or somebody said so


class Tickets:
    """The owner of every peer's ticket."""

    def __init__(self, core: Core, waiters: Waiters) -> None:
        self._core = core
        self._waiters = waiters
        self._sources: dict[Peer, _Source] = {}
        self._by_server: dict[Principal, _Source] = {}
        self.asking = TgtAsking(core, self)

    # What commands need.

    def usable(self, peer: Peer, path: Path, now: float) -> Ticket | None:
        """The present ticket, if it outlives a whole transaction (RFC 4430 §9 (1))."""
        source = self._source(peer, path)
        if not self._lives(peer.ticket, now):
            if peer.candidate is None or not self._lives(peer.candidate, now):
                return None
            self._take(source, peer.candidate, source.candidate_tgt, now)  # better than none
        if now >= source.refresh and self._idle(source):
            self._begin(source, max(now, source.not_before), now)
        return peer.ticket

    def candidate(self, peer: Peer, now: float) -> Ticket | None:
        """What is tried where the present ticket is not answered."""
        return peer.candidate if self._lives(peer.candidate, now) else None

    def forget(self, peer: Peer) -> None:
        """The policy means another by this name, or nobody: what waits is all that is of use."""
        if self._waiters.waits(peer):
            return
        self.asking.cancel(peer)
        source = self._sources.pop(peer, None)
        if source is None:
            return
        if source.next is not None:
            source.next.cancel()
        for server in [each for each, of in self._by_server.items() if of is source]:
            del self._by_server[server]

    def is_fetching(self, peer: Peer) -> bool:
        """Whether the KDC has not answered yet."""
        source = self._sources.get(peer)
        return source is not None and source.fetching is not None

    def want(self, peer: Peer, path: Path, now: float) -> None:
        """A command waits for a ticket: ``Waiters`` are told when it is there."""
        source = self._source(peer, path)
        if self._idle(source):
            self._begin(source, max(now, source.not_before), now)

    def proven(self, peer: Peer, ticket: Ticket, path: Path, now: float) -> None:
        """A REPLY has verified: the peer opens ``ticket``."""
        source = self._source(peer, path)
        if ticket is peer.candidate:
            self._take(source, ticket, source.candidate_tgt, now)
        elif ticket is peer.ticket:
            peer.candidate = None  # so nothing was wrong with it
            source.silences, source.silent_until = 0, float("-inf")
            if self._idle(source):
                source.doubted = None

    # What nobody has proven.

    def doubt(self, peer: Peer, ticket: Ticket, path: Path, now: float) -> None:
        """The peer seems not to open ``ticket``: another is fetched, at a bounded rate."""
        source = self._source(peer, path)
        if self._is_known_to_be_bad(source, ticket, now):
            return
        if self._may_doubt(peer, now):
            self._replace(source, ticket, now)

    def unanswered(self, peer: Peer, ticket: Ticket, path: Path, now: float) -> None:
        """A whole cycle has passed in silence. It may be the ticket; most often it is not."""
        source = self._source(peer, path)
        if ticket is peer.candidate:
            peer.candidate = None
            self._fall_back(source, now)
            return
        if self._is_known_to_be_bad(source, ticket, now) or now < source.silent_until:
            return
        if self._may_doubt(peer, now):
            source.silences += 1
            random = self._core.random
            source.silent_until = now + 60 * back_off(source.silences, SILENCE_PAUSE / 60, random)
            self._replace(source, ticket, now)

    def want_user_to_user(self, peer: Peer, ticket: Ticket, path: Path, now: float) -> None:
        """The peer says that it takes no other tickets (KRB_AP_ERR_USER_TO_USER_REQUIRED, §3.1).

        It is tried, where the policy allows it.
        """
        source = self._source(peer, path)
        if self._is_known_to_be_bad(source, ticket, now) or not self._may_switch(source, now):
            return
        if self._may_doubt(peer, now):
            source.user_to_user = True
            self._replace(source, ticket, now)

    def tgt_offered(self, peer: Peer, ticket: Ticket, tgt: bytes, path: Path, now: float) -> None:
        """A peer that cannot open a user-to-user ticket sends the TGT it has now (§3.7.1)."""
        source = self._source(peer, path)
        if ticket is peer.ticket and not peer.user_to_user:
            return
        self.asking.check(peer, tgt)
        if self._is_known_to_be_bad(source, ticket, now) or not self._is_news(source, tgt):
            return
        if not peer.offers.take(now):
            self._core.counters["ticket-doubt-ignored"] += 1
            return
        source.doubted = ticket
        self._make(source, tgt)

    def _is_known_to_be_bad(self, source: _Source, ticket: Ticket, now: float) -> bool:
        """Whether the doubt is no news: there is another ticket to go on with, or none to fetch."""
        peer = source.peer
        if ticket is peer.candidate:
            return True  # in silence it ends by itself
        if ticket is not peer.ticket or self.candidate(peer, now) is not None:
            self._waiters.replaced(peer, ticket)
            return True
        return False

    def _may_doubt(self, peer: Peer, now: float) -> bool:
        if not peer.doubts.take(now):
            self._core.counters["ticket-doubt-ignored"] += 1
            return False
        self._core.counters["ticket-doubted"] += 1
        self._core.report(Level.INFO, "ticket-doubted", peer=peer.host.name)
        return True

    def _replace(self, source: _Source, ticket: Ticket, now: float) -> None:
        source.doubted = ticket
        if self._idle(source):
            self._begin(source, now, now)

    def _may_switch(self, source: _Source, now: float) -> bool:
        allowed = source.peer.host.user_to_user is UserToUser.ALLOWED
        return allowed and not source.user_to_user and now >= source.denied_until

    def _fall_back(self, source: _Source, now: float) -> None:
        """What was tried has failed: where user-to-user is no duty, the other kind may do.

        As long as the present ticket lives, its kind is known to do.
        """
        peer = source.peer
        if peer.host.user_to_user is not UserToUser.ALLOWED:
            return
        if not peer.user_to_user:
            source.user_to_user = False
        elif self._lives(peer.ticket, now):
            source.user_to_user = True
        else:
            source.user_to_user = not source.user_to_user

    # What the KDC says.

    def ticket_ready(self, server: Principal, ticket: Ticket, now: float) -> None:
        """The answer to ``FetchTicket``."""
        source = self._by_server.get(server)
        if source is None or source.fetching is None:
            return
        asked, source.fetching = source.fetching, None
        peer, tgt = source.peer, asked.tgt
        if (tgt is not None) != source.user_to_user:
            self._begin(source, now, now)  # meanwhile it was told to be of the other kind
            return
        self.asking.cancel(peer)
        source.offered.clear()
        source.failures, source.not_before = 0, float("-inf")
        doubted, source.doubted = source.doubted, None
        if doubted is not None and doubted is peer.ticket and self._lives(doubted, now):
            peer.candidate, source.candidate_tgt = ticket, tgt or b""
            self._begin(source, max(source.refresh, now + SHORTEST_REFRESH), now)
            self._waiters.replaced(peer, doubted)
            return
        self._take(source, ticket, tgt or b"", now)
        self._waiters.ready(peer, ticket, now)
        if not self._core.is_current(peer):
            self.forget(peer)

    def ticket_failed(self, server: Principal, error: TicketUnavailable, now: float) -> None:
        """The other answer: asked for again with back-off while there is need of it."""
        source = self._by_server.get(server)
        if source is None or source.fetching is None:
            return
        asked, source.fetching = source.fetching, None
        if asked.tgt is not None and error.code is not None:
            if error.code in USELESS_TGT:
                source.useless.append(sha256(asked.tgt).digest())
            if source.offered:
                self._fetch(source, source.offered.pop(0))
                return
            if self.asking.asks(source.peer):  # the true one may yet come
                self._waiters.hint(source.peer, str(error))
                return
        if error.code == MUST_USE_USER_TO_USER and self._may_switch(source, now):
            source.user_to_user = True
            self._begin(source, now, now)
            return
        self.asking.cancel(source.peer)
        self._fall_back(source, now)
        self._failed(source, str(error), now)

    def _take(self, source: _Source, ticket: Ticket, tgt: bytes, now: float) -> None:
        """From now on this is the peer's ticket."""
        peer = source.peer
        peer.ticket, peer.candidate, peer.ticket_fault = ticket, None, ""
        peer.user_to_user = source.user_to_user = bool(tgt)
        source.tgt = tgt
        source.silences, source.silent_until = 0, float("-inf")
        left = ticket.end - self._core.posix(now)
        fraction = int.from_bytes(self._core.random(4), "big") / (1 << 32)
        source.refresh = now + max(SHORTEST_REFRESH, left * (0.6 + 0.2 * fraction))
        if left > 0 and self._core.is_current(peer):
            self._begin(source, source.refresh, now)

    def _failed(self, source: _Source, reason: str, now: float) -> None:
        core, peer = self._core, source.peer
        core.counters["ticket-unavailable"] += 1
        core.report(Level.WARNING, "ticket-unavailable", peer=peer.host.name, reason=reason)
        source.failures += 1
        source.not_before = now + back_off(source.failures, DEMANDED_PAUSE, core.random)
        peer.ticket_fault = reason
        self._waiters.hint(peer, reason)
        if self._waiters.waits(peer):
            self._begin(source, source.not_before, now)
        elif not self._core.is_current(peer):
            self.forget(peer)
        elif self.is_wanted(peer):
            pause = back_off(source.failures, EARLY_PAUSE, core.random)
            self._begin(source, now + pause, now)

    def _begin(self, source: _Source, when: float, now: float) -> None:
        """Set about it at ``when``, if there is need of it then, or at once."""
        if source.next is not None:
            source.next.cancel()
            source.next = None
        if source.peer not in self._sources:
            return  # nobody waits for it, and the policy means nobody by it
        if when > now:
            source.next = self._core.timers.at(when, lambda then: self._due(source, then))
        elif source.user_to_user:
            self.asking.ask(source.peer, source.path, now)
        else:
            self._fetch(source, None)

    def _due(self, source: _Source, now: float) -> None:
        source.next = None
        if self.is_wanted(source.peer) and self._idle(source):
            self._begin(source, now, now)

    def _fetch(self, source: _Source, tgt: bytes | None) -> None:
        host = source.peer.host
        source.fetching = FetchTicket(host.service if tgt is None else host.client, tgt)
        self._by_server[source.fetching.server] = source
        self._core.emit(source.fetching)

    def _idle(self, source: _Source) -> bool:
        return source.fetching is None and not self.asking.asks(source.peer)

    def _lives(self, ticket: Ticket | None, now: float) -> bool:
        return ticket is not None and ticket.end > self._core.posix(now) + TRANSACTION_SECONDS

    def _source(self, peer: Peer, path: Path) -> _Source:
        source = self._sources.get(peer)
        if source is None:
            always = peer.host.user_to_user is UserToUser.ALWAYS
            source = _Source(peer, path, always)
            if peer.ticket is not None:  # the policy meant nobody by it for a while
                source.refresh = float("-inf")
            if self._core.is_current(peer) or self._waiters.waits(peer):
                self._sources[peer] = source
        source.path = path
        return source

    # What becomes of a GETTGT.

    def is_wanted(self, peer: Peer) -> bool:
        """Whether there is need of a ticket for this peer."""
        return (
            self._waiters.waits(peer)
            or (peer in self._sources and self._sources[peer].doubted is not None)
            or (self._core.is_current(peer) and bool(self._core.pairs.of_host(peer.host.name)))
        )

    def hint(self, peer: Peer, reason: str) -> None:
        """For whoever waits."""
        self._waiters.hint(peer, reason)

    def tgt_given(self, peer: Peer, tgt: bytes, now: float) -> None:
        """A ticket can be made of it, if it is true."""
        source = self._sources.get(peer)
        if source is None:  # the policy no longer knows him
            self.asking.cancel(peer)
        elif source.user_to_user and sha256(tgt).digest() not in source.useless:
            self._make(source, tgt)

    def _make(self, source: _Source, tgt: bytes) -> None:
        """A ticket of this TGT, or of the next one where the KDC refuses it."""
        if source.fetching is None:
            self._fetch(source, tgt)
        elif tgt != source.fetching.tgt and tgt not in source.offered:
            source.offered = [*source.offered, tgt][:OFFERED]

    def _is_news(self, source: _Source, tgt: bytes) -> bool:
        return tgt != source.tgt and sha256(tgt).digest() not in source.useless

    def tgt_refused(self, peer: Peer, reason: str, now: float, *, denied: bool) -> None:
        """There is none for the time being."""
        source = self._sources.get(peer)
        if source is None or source.fetching is not None:
            return  # one was given, and the KDC has not spoken yet
        if denied:
            source.denied_until = now + DENIED_SECONDS
        if denied and peer.host.user_to_user is UserToUser.ALLOWED:
            source.user_to_user = False
            if self._lives(peer.ticket, now):
                source.doubted = peer.ticket  # anyone could have sent it
            self._begin(source, now, now)  # RFC 4430 §4.2.8: with a service ticket, then
            return
        self._fall_back(source, now)
        self._failed(source, reason, now)
