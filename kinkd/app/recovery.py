"""A new start takes up what an earlier life left in the kernel.

SAs are ours by the reqid block, SPD entries by the priority band; both belong to one daemon
per network namespace. Nothing else is touched.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass

from kinkd.app.journal import Journal
from kinkd.exchange.effects import Path, RecordDebt
from kinkd.exchange.forms import Forms
from kinkd.exchange.pairs import SaPair, is_wanted
from kinkd.exchange.timing import TRANSACTION_SECONDS
from kinkd.kernel.port import Kernel, SaId
from kinkd.model import Ownership
from kinkd.policy.match import HostPolicy

_EPOCH, _XIDS, _XID_KEY = "epoch", "xids", "xid-key"
_SUSPENDED = "suspended-until"

LONGEST_SUSPENSION = 86400
"""Seconds for which enforcement may be suspended at once."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a new life begins with."""

    epoch: int
    first_xid: int
    pairs: tuple[SaPair, ...]
    lost: tuple[SaPair, ...]  # in the journal, not whole or not wanted; their peers do not know
    unclaimed: tuple[SaId, ...]  # SAs of ours that were in the kernel, and not in the journal
    is_first: bool  # the journal knows of no life before


def recover(
    kernel: Kernel, journal: Journal, ownership: Ownership, policy: HostPolicy
) -> Recovered:
    """Match the journal with the kernel's SAs and settle EPOCH and XIDs (RFC 4430 §3.7).

    Pairs that the policy of today would not make are given up: an address may be another's now.
    """
    present = {state.id.name: state for state in kernel.states()}
    ours = {key: s for key, s in present.items() if s.reqid in ownership.reqids}
    adopted: list[SaPair] = []
    lost: list[SaPair] = []
    for pair in journal.pairs():
        halves = [sa.name for sa in pair.both_ways]
        whole = all(half in ours and ours[half].reqid == pair.reqid for half in halves)
        if whole and is_wanted(pair, policy):
            adopted.append(pair)
            for half in halves:
                del ours[half]
        else:
            # A start that gets no further than this leaves it to the next to tell the peer.
            for protocol, spi in pair.inbound_spis:
                until = pair.created + pair.lifetime.seconds + TRANSACTION_SECONDS
                path = Path(pair.local, pair.remote)
                journal.owe(RecordDebt(pair.host, path, protocol, spi, until))
            journal.forget(pair)
            lost.append(pair)
    unclaimed = tuple(state.id for state in ours.values() if not state.larval)
    for sa in unclaimed:
        kernel.remove(sa)
    is_first = journal.meta(_EPOCH) is None
    epoch, first_xid = _epoch(journal, survived=bool(adopted))
    # Each is named to its peer. Under a new EPOCH that tells of it, too, before any traffic does.
    return Recovered(epoch, first_xid, tuple(adopted), tuple(lost), unclaimed, is_first)


def _epoch(journal: Journal, *, survived: bool) -> tuple[int, int]:
    """Kept while any SA lives; else a new one, never the one before."""
    before = journal.meta(_EPOCH)
    if survived and before is not None:
        return before, journal.meta(_XIDS) or 0
    epoch = int(time.time()) & 0xFFFFFFFF
    if before is not None and epoch <= before:
        epoch = (before + 1) & 0xFFFFFFFF  # a clock set back, or two starts in one second
    journal.set_meta(_XIDS, 0)
    journal.set_meta(_EPOCH, epoch)
    return epoch, 0


def xid_key(journal: Journal) -> bytes:
    """The secret that makes XIDs of numbers: for good, since the numbers are counted on."""
    found = journal.meta(_XID_KEY)
    if found is None:
        found = secrets.randbits(63)
        journal.set_meta(_XID_KEY, found)
    return found.to_bytes(8)


def reserve_xids(journal: Journal, below: int) -> None:
    """Make durable that XIDs below this bound may have been used."""
    journal.set_meta(_XIDS, below)


def read_forms(journal: Journal) -> Forms:
    """How strictly an earlier life came to enforce the policy."""
    until = float(journal.meta(_SUSPENDED) or 0)
    # More than that is left only by a clock that was set back: nobody meant to wait for it.
    lasts = 0 < until - time.time() <= LONGEST_SUSPENSION
    return Forms(journal.secured(), until if lasts else 0.0)


def recover_forms(journal: Journal) -> Forms:
    """The same; a suspension that is over by now is over for good, wherever a clock is set to."""
    forms = read_forms(journal)
    if not forms.suspended_until and journal.meta(_SUSPENDED):
        record_suspension(journal, 0.0)
    return forms


def record_suspension(journal: Journal, until: float) -> None:
    """Make durable until when nothing is enforced."""
    journal.set_meta(_SUSPENDED, int(until))


def remove_everything(kernel: Kernel, ownership: Ownership) -> None:
    """Take all that is ours out of the kernel: SAs first, so that nothing is sent on them."""
    for state in kernel.states():
        if state.reqid in ownership.reqids and state.id.spi:
            kernel.remove(state.id)
    for entry in kernel.policies():
        if entry.priority in ownership.priorities:
            kernel.remove_policy(entry.direction, entry.selector)
