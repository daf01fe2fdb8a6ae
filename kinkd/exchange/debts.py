"""What peers are still to delete: pairs of which they may hold a half, and we hold none.

A half-pair is a black hole, and RFC 4430 §3.3 allows none. One comes about where the REPLY to our
CREATE, the ACK to our REPLY or our DELETE was lost for a whole transaction, and where an SA of
ours ended before its time. Its SPIs are then named in a DELETE: at once where the peer is thought
to be reachable; else as soon as a verified message of the peer shows that it is, and after pauses
of ``FIRST_PAUSE`` seconds, doubled up to ``LONGEST_PAUSE``. So once the network works a half-pair
dies with the next message between the two daemons, and without one within ``LONGEST_PAUSE`` and
a round trip; where it never works, at its hard lifetime, beyond which nothing is owed. What is
owed is journalled: a restart does not forgive it.

Of a CREATE that a host has not answered which was never heard, little is owed, and it is told at a
bounded rate, all such hosts together: mostly they are not there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kinkd.exchange import quickmode
from kinkd.exchange.core import Core, Peer
from kinkd.exchange.effects import ForgetDebt, Level, Path, RecordDebt
from kinkd.exchange.machine import Exchange, Initiator
from kinkd.exchange.timing import Timer, TokenBucket
from kinkd.exchange.verified import VerifiedReply
from kinkd.model import IPAddress, IpsecProtocol
from kinkd.wire import grammar, isakmp, kink
from kinkd.wire.numbers import MessageType, NotifyType

FIRST_PAUSE = 30.0
LONGEST_PAUSE = 300.0
OWED_SPIS = 256
"""SPIs that one DELETE names, and that are owed for one address pair; the oldest give way."""

OWED_BY_STRANGERS = 4
"""The same, of CREATEs to a host that was never heard."""

InboundSpis = tuple[tuple[IpsecProtocol, int], ...]
"""What a DELETE names: SPIs that we have chosen."""


@dataclass(slots=True, eq=False)
class _Debt:
    """What is owed between two addresses; ``until`` when the peer's half ends by itself."""

    peer: Peer
    path: Path
    until: dict[tuple[IpsecProtocol, int], float] = field(default_factory=dict)
    under_way: bool = False
    pause: float = FIRST_PAUSE
    not_before: float = 0.0
    timer: Timer | None = None


class Debts:
    """The owner of all that peers are still to delete."""

    def __init__(self, core: Core, initiator: Initiator) -> None:
        self._core = core
        self._initiator = initiator
        self._strangers = TokenBucket(rate=1, burst=16)
        self._debts: dict[Peer, dict[tuple[IPAddress, IPAddress], _Debt]] = {}
        core.hearers.append(self.heard)

    def __len__(self) -> int:
        return sum(len(debt.until) for of in self._debts.values() for debt in of.values())

    def tell(self, peer: Peer, path: Path, spis: InboundSpis, seconds: float, now: float) -> None:
        """Have a peer delete SAs, now; it may hold them for ``seconds`` more."""
        debt = self._owe(peer, path, spis, now + seconds, told=True)
        if not debt.under_way:
            self._remind(debt, now, at_once=True)

    def recall(
        self, peer: Peer, path: Path, spi: tuple[IpsecProtocol, int], seconds: float, now: float
    ) -> None:
        """What an earlier life was owed, and has journalled."""
        debt = self._owe(peer, path, (spi,), now + seconds, told=True, recorded=True)
        if not debt.under_way and debt.timer is None:
            # The others of this path are recalled first.
            debt.timer = self._core.timers.at(now, lambda then: self._remind(debt, then))

    def owe(self, peer: Peer, path: Path, spis: InboundSpis, seconds: float, now: float) -> None:
        """The same, of a peer that did not answer a moment ago."""
        debt = self._owe(peer, path, spis, now + seconds, told=False)
        if not debt.under_way and debt.timer is None:
            self._set_timer(debt, now)

    def heard(self, peer: Peer, now: float) -> None:
        """A verified message of the peer came: it can be told."""
        for debt in list(self._debts.get(peer, {}).values()):
            if not debt.under_way and now >= debt.not_before:
                self._remind(debt, now, at_once=True)

    def _owe(
        self,
        peer: Peer,
        path: Path,
        spis: InboundSpis,
        until: float,
        *,
        told: bool,
        recorded: bool = False,
    ) -> _Debt:
        of_peer = self._debts.setdefault(peer, {})
        debt = of_peer.setdefault((path.local, path.remote), _Debt(peer, path))
        for spi in spis:
            if spi not in debt.until and not recorded:
                end = self._core.posix(until)
                self._core.emit(RecordDebt(peer.host.name, debt.path, *spi, end))
            debt.until[spi] = until
        most = OWED_BY_STRANGERS if _is_stranger(peer) and not told else OWED_SPIS
        self._end(debt, list(debt.until)[:-most])
        return debt

    def _end(self, debt: _Debt, spis: Iterable[tuple[IpsecProtocol, int]]) -> None:
        for spi in spis:
            if debt.until.pop(spi, None) is not None:
                self._core.emit(ForgetDebt(debt.path, *spi))

    def _remind(self, debt: _Debt, now: float, *, at_once: bool = False) -> None:
        if debt.timer is not None:
            debt.timer.cancel()
            debt.timer = None
        self._end(debt, [spi for spi, end in debt.until.items() if end <= now])
        if not debt.until:
            self._forget(debt)
            return
        if _is_stranger(debt.peer) and not at_once and not self._strangers.take(now):
            self._set_timer(debt, now)
            return
        debt.under_way = True
        reminder = Reminder(self, debt, tuple(debt.until))
        self._initiator.begin(reminder, debt.peer, debt.path, now)

    def _forget(self, debt: _Debt) -> None:
        of_peer = self._debts[debt.peer]
        del of_peer[debt.path.local, debt.path.remote]
        if not of_peer:
            del self._debts[debt.peer]

    def _set_timer(self, debt: _Debt, now: float) -> None:
        debt.timer = self._core.timers.at(now + debt.pause, lambda then: self._remind(debt, then))
        debt.pause = min(2 * debt.pause, LONGEST_PAUSE)

    def paid(self, debt: _Debt, spis: InboundSpis, now: float) -> None:
        """The peer deleted SAs, or does not have them."""
        self._end(debt, spis)
        debt.under_way, debt.pause, debt.not_before = False, FIRST_PAUSE, 0.0
        self._core.counters["delete.initiated"] += len(spis)
        host = debt.peer.host.name
        self._core.report(Level.INFO, "sa-deleted", peer=host, role="initiator", sas=len(spis))
        self._remind(debt, now)  # what has become owed in the meantime

    def failed(self, debt: _Debt, reason: str, now: float, *, answered: bool) -> None:
        """It was not told, or refuses; a refusal alone shall not make us ask again at once."""
        debt.under_way = False
        debt.not_before = now + debt.pause if answered else 0.0
        self._core.counters["delete.failed"] += 1
        if debt.pause == FIRST_PAUSE:  # once is enough
            host = debt.peer.host.name
            self._core.report(Level.WARNING, "delete-failed", peer=host, reason=reason)
        self._set_timer(debt, now)


@dataclass(slots=True, eq=False)
class Reminder:
    """A DELETE of pairs of which nothing is left on our side."""

    debts: Debts
    debt: _Debt
    spis: InboundSpis
    type: MessageType = MessageType.DELETE

    def prepare(self, exchange: Exchange, now: float) -> tuple[kink.Payload, ...]:
        """Name the inbound SAs that we offered (RFC 4430 §3.3)."""
        return (quickmode.deletion(self.spis),)

    def complete(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """They are gone."""
        check_deletion(reply.inner)
        self.debts.paid(self.debt, self.spis, now)

    def abandon(self, exchange: Exchange, reason: str, now: float) -> None:
        """Later, then."""
        self.debts.failed(self.debt, reason, now, answered=exchange.answered)

    def again(self, exchange: Exchange, now: float, *, refused: bool) -> Reminder:
        """Nothing was prepared."""
        return self

    def repeated(self, now: float) -> None:
        """It asks for no ACK."""

    def late(self, exchange: Exchange, reply: VerifiedReply, now: float) -> None:
        """The peer is heard again: it is told again."""


def check_deletion(inner: Iterable[kink.Payload]) -> None:
    """Whether the answer to a DELETE is yes; INVALID-SPI is (RFC 4430 §3.3). Raises PeerError."""
    for payload in inner:
        if not isinstance(payload, kink.Isakmp):
            continue
        parts = isakmp.decode(payload)
        grammar.check_quick_mode(MessageType.DELETE, parts, reply=True)
        for part in parts:
            if isinstance(part, isakmp.Notification) and part.type != NotifyType.INVALID_SPI:
                quickmode.refuse_error_notification(part)


def _is_stranger(peer: Peer) -> bool:
    return peer.round_trip.smoothed is None
