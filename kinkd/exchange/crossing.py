"""Two hosts that begin at once: one pair remains, and both know which without a word more.

Of two CREATEs for the same that cross, the one that holds the lowest nonce loses, and its
initiator deletes what it made once both are up (the rule of RFC 7296 §2.8.1). Whoever answers a
CREATE while one of its own is under way has seen them cross, and one of the two always has: if
each had ended its own before the other's came, each would have ended before the other.

The other end may not know the rule, or not have seen it: a loser that it leaves is deleted for
it after a while. Nothing else is: pairs that were not seen to cross may all be meant.

A restart forgets nonces. Of pairs for the same that an earlier life left behind, the one that
holds the lowest SPI loses, once the other end has had time enough to settle it by their nonces.

What came before is no matter of this: a CREATE replaces all that was there when it began.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

from kinkd.exchange.core import Core
from kinkd.exchange.effects import Level
from kinkd.exchange.lifecycle import Lifecycle
from kinkd.exchange.pairs import Role, SaPair
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.model import Slot

PATIENCE = 10.0
"""Seconds that the other end has for deleting what lost."""


class Crossings:
    """Notices CREATEs that cross, and settles which pair remains.

    ``under_way`` tells whether a CREATE of ours is, for a slot.
    """

    def __init__(self, core: Core, lifecycle: Lifecycle, under_way: Callable[[Slot], bool]) -> None:
        self._core = core
        self._lifecycle = lifecycle
        self._under_way = under_way
        self._theirs: dict[Slot, list[SaPair]] = {}  # answered while ours was under way
        self._couples: list[tuple[SaPair, SaPair]] = []  # ours is up, theirs awaits its ACK

    def answered(self, theirs: SaPair) -> None:
        """A CREATE of the peer was answered; the pair may yet wait for its ACK."""
        if self._under_way(theirs.slot):
            self._theirs.setdefault(theirs.slot, []).append(theirs)

    def created(self, slot: Slot, ours: SaPair | None, now: float) -> None:
        """A CREATE of ours ended; None: badly, and nothing of it is left."""
        for theirs in self._theirs.pop(slot, ()):
            if ours is None or theirs.selector != ours.selector:
                continue  # one that is for less is another matter
            if self._core.pairs.holds(theirs):
                self._settle(ours, theirs, now)
            else:
                couple = (ours, theirs)
                self._couples.append(couple)
                over = now + 2 * TRANSACTION_SECONDS  # no ACK comes after that
                self._core.timers.at(over, functools.partial(self._forget, couple))

    def adopted(self, pairs: list[SaPair], now: float) -> None:
        """Pairs of one slot outlived a restart. Both ends know their SPIs."""
        for lost, kept in itertools.combinations(sorted(pairs, key=_spis), 2):
            if lost.selector == kept.selector:
                when = now + 2 * PATIENCE
                self._core.timers.at(when, functools.partial(self._delete, lost, kept))

    def established(self, theirs: SaPair, now: float) -> None:
        """The pair that a peer asked for is up."""
        for couple in [couple for couple in self._couples if couple[1] is theirs]:
            self._forget(couple, now)
            self._settle(couple[0], theirs, now)

    def _forget(self, couple: tuple[SaPair, SaPair], _: float) -> None:
        self._couples = [other for other in self._couples if other is not couple]

    def _settle(self, ours: SaPair, theirs: SaPair, now: float) -> None:
        lost, kept = sorted((ours, theirs), key=self._rank)
        host = self._core.policy.host_by_name(ours.host)
        if host is None:
            return
        # Until then the peer, which may still wait for our REPLY, can send on both.
        wait = self._core.peer(host).round_trip.grace()
        if lost is theirs:
            wait += PATIENCE
        self._core.counters["create.crossed"] += 1
        self._core.report(Level.INFO, "create-crossed", **kept.words())
        self._core.timers.at(now + wait, functools.partial(self._delete, lost, kept))

    def _delete(self, lost: SaPair, kept: SaPair, now: float) -> None:
        if self._core.pairs.holds(lost) and self._core.pairs.holds(kept):
            self._lifecycle.delete([lost], now)

    def _rank(self, pair: SaPair) -> tuple[bytes, bytes]:
        """The lowest loses: by nonce, else by its initiator's principal, octet by octet."""
        policy = self._core.policy
        host = policy.me if pair.role is Role.INITIATOR else policy.host_by_name(pair.host)
        return pair.lowest_nonce, str(host.client).encode() if host is not None else b""


def _spis(pair: SaPair) -> list[int]:
    return sorted(spi for spis in pair.sas for spi in (spis.inbound, spis.outbound))
