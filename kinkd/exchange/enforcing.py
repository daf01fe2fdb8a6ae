"""How strictly the policy is enforced right now: what is only requested, and what is suspended.

**Requested traffic** (`request`) is protected where it can be, and never held up for long:

- Before anything is known of a host, the kernel holds outbound packets while it is keyed, for
  ``HOLD`` seconds; inbound ones may be in clear.
- Where that brings no SA, packets go out in clear. Whenever there are some, the kernel goes on
  asking, and the host is tried again with the pauses of ``acquires``.
- The first SA with the host settles it: from then on all of its traffic is required, both ways, in
  this life and the next ones, until ``forget``. Who could make it fail once cannot make it fail
  for ever. Who keeps a host from ever being keyed has its traffic in clear: that is the price of
  ``request``, and what ``require`` is for.

**Break-glass**: all enforcement on this host is suspended until an instant. SAs are used where
there are some, nothing is dropped for want of one, nothing is blocked.

Only the form of SPD entries changes. Which there are is the policy's. In tunnel mode the kernel
has no form that makes it ask and lets pass in clear: there SAs are tried for by the clock, and
entries are strict for as long as there are some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from kinkd.errors import KernelError
from kinkd.exchange.core import Core
from kinkd.exchange.effects import ForgetSecured, Level, RecordSecured, RecordSuspension
from kinkd.exchange.pairs import SaPair
from kinkd.exchange.timing import Paced, Timer, back_off
from kinkd.kernel.port import Acquire
from kinkd.model import Host, Mode, Protection, Slot

HOLD = 1.0
"""Seconds for which outbound packets that are only requested to be protected may be held."""
SETTLING = 2.0
"""Seconds after the first SA with a host in which packets in clear may still be on their way."""
ATTEMPTS_AT_ONCE, ATTEMPTS_PER_SECOND = 64, 16
"""So many of these attempts are begun: nobody waits for them, and each may cost a ticket."""
LONGEST_PAUSE = 600.0
"""Seconds between two attempts to have a tunnel of which the kernel asks for no SA."""
REMINDER = 60.0
"""Seconds between two lines that tell that enforcement is suspended."""


class Enforcing:
    """The one who changes the form of SPD entries while a policy is in force.

    Args:
        create: begins a CREATE for a protection, or joins the one of its slot.
    """

    def __init__(self, core: Core, create: Callable[[Protection, float], None]) -> None:
        self._core = core
        self._create = create
        self._forms = core.forms
        self._holds: dict[Slot, Timer] = {}
        self._attempts: dict[Slot, Timer] = {}  # until each has begun
        self._paced = Paced(core.timers, rate=ATTEMPTS_PER_SECOND, burst=ATTEMPTS_AT_ONCE)
        self._failures: dict[Slot, int] = {}
        self._suspension: Timer | None = None
        core.made.append(self.made)
        core.lost.append(self.lost)

    def start(self, now: float) -> None:
        """Go on with what an earlier life left."""
        self._count_suspension(now)
        self.look(now)

    # --- what is only requested ---

    def acquired(self, acquire: Acquire, now: float) -> None:
        """Traffic waits: for a CREATE, or for its turn."""
        protection = self._core.policy.acquired(acquire.source, acquire.destination, acquire.reqid)
        if protection is not None:
            self.asked(protection, now)

    def asked(self, protection: Protection, now: float) -> None:
        """A CREATE begins because traffic waits for it."""
        slot = protection.slot
        if self._forms.holds(protection) and slot not in self._holds:
            self._holds[slot] = self._core.timers.at(
                now + HOLD, lambda then: self._let_go(slot, then)
            )

    def failed(self, slot: Slot, now: float) -> None:
        """A CREATE has ended without an SA."""
        self._let_go(slot, now)
        protection = self._core.policy.acquired(*slot)
        if protection is not None and self._forms.is_mute(protection):
            self._failures[slot] = self._failures.get(slot, 0) + 1
            self._attempt_later(slot, now)

    def _let_go(self, slot: Slot, now: float) -> None:
        _cancel(self._holds, slot)
        protection = self._core.policy.acquired(*slot)
        if protection is None or not self._forms.holds(protection):
            return
        self._forms.clear.add(slot)
        self._core.counters["request.in-clear"] += 1
        self._core.report(
            Level.INFO, "request-in-clear", peer=protection.peer.name, remote=protection.remote
        )
        self._write((protection,))

    def made(self, pair: SaPair, now: float) -> None:
        """SAs with a host are up: what was requested is required from now on."""
        core = self._core
        _cancel(self._holds, pair.slot)
        _cancel(self._attempts, pair.slot)
        self._failures.pop(pair.slot, None)
        protection = core.policy.acquired(*pair.slot)
        if pair.mode is Mode.TUNNEL and protection is not None:
            self._write((protection,))
        self._secure(pair.host, now)

    def _secure(self, name: str, now: float) -> None:
        """There are SAs with a host: what is requested of it is required, from now on."""
        core, forms = self._core, self._forms
        host = core.policy.host_by_name(name)
        if host is None or forms.is_secured(host):
            return
        requested = core.policy.requested_of(name)
        if not requested:
            return
        forms.secured[host.name] = str(host.client)
        forms.settling.add(host.name)
        forms.clear.difference_update(each.slot for each in requested)
        core.emit(RecordSecured(host.name, str(host.client)))
        core.report(Level.INFO, "request-secured", peer=host.name)
        self._write(requested)
        core.timers.at(now + SETTLING, lambda _: self._settled(host.name))

    def lost(self, pair: SaPair, now: float) -> None:
        """A pair has ended: where it was the last, its tunnel may have to let pass in clear."""
        if pair.mode is Mode.TUNNEL and not self._core.pairs.in_slot(pair.slot):
            # Where it ends because of another policy, that one's entries are there already.
            protection = self._core.installed.acquired(*pair.slot)
            if protection is not None and self._forms.is_mute(protection):
                self._write((protection,))
                self._attempt_later(pair.slot, now)

    # --- what the kernel does not ask for ---

    def follow(self, now: float) -> None:
        """The policy is another."""
        known = {each.slot for each in self._core.policy.protections}
        self._forms.clear &= known
        self._failures = {slot: count for slot, count in self._failures.items() if slot in known}
        for name in dict.fromkeys(pair.host for pair in self._core.pairs):
            self._secure(name, now)
        self.look(now)

    def look(self, now: float) -> None:
        """The policy is another, or its form: begin what the kernel does not ask for."""
        for protection in self._core.policy.protections:
            if self._forms.is_mute(protection) and protection.slot not in self._attempts:
                self._attempt_later(protection.slot, now)

    def _attempt_later(self, slot: Slot, now: float) -> None:
        failures = self._failures.get(slot, 0)
        pause = back_off(failures + 1, LONGEST_PAUSE, self._core.random)
        _cancel(self._attempts, slot)
        self._attempts[slot] = self._core.timers.at(
            now + pause, lambda then: self._paced.do(lambda turn: self._attempt(slot, turn), then)
        )

    def _attempt(self, slot: Slot, now: float) -> None:
        self._attempts.pop(slot, None)
        protection = self._core.policy.acquired(*slot)
        if protection is not None and self._forms.is_mute(protection) and not self._core.closing:
            self._create(protection, now)

    def _settled(self, name: str) -> None:
        self._forms.settling.discard(name)
        self._write(self._core.policy.with_host(name))

    def forget(self, host: Host) -> bool:
        """Have a host's traffic be merely requested again; False: it was not secured."""
        if self._forms.secured.pop(host.name, None) is None:
            return False
        self._forms.settling.discard(host.name)
        self._core.emit(ForgetSecured(host.name))
        self._core.report(Level.WARNING, "request-forgotten", peer=host.name)
        self._write(self._core.policy.with_host(host.name))
        return True

    def _write(self, protections: Iterable[Protection]) -> None:
        """Have the kernel take over the entries of these in the form that they are to have."""
        core = self._core
        for protection in protections:
            for entry in self._forms.of(protection):
                if entry.key in core.in_the_way:
                    continue
                try:
                    core.kernel.write_policy(entry)
                except KernelError as error:
                    core.kernel_refused(error)

    # --- break-glass ---

    def suspend(self, until: float, now: float) -> None:
        """Enforce nothing until an instant, POSIX seconds; one that is past ends a suspension.

        Raises:
            KernelError: the kernel refused an entry; the suspension ends all the same.
        """
        self._forms.suspended_until = until if until > self._core.posix(now) else 0.0
        self._core.emit(RecordSuspension(self._forms.suspended_until))
        self._count_suspension(now)
        try:
            self._core.restore_policy()
        finally:
            self.look(now)
        if not self._forms.suspended_until:
            self._core.report(Level.WARNING, "enforcement-resumed")

    def _count_suspension(self, now: float) -> None:
        """From now on it ends by our own clock: the other one may be set."""
        if self._suspension is not None:
            self._suspension.cancel()
            self._suspension = None
        if self._forms.suspended_until:
            self._remind(now + self._forms.suspended_until - self._core.posix(now), now)

    def _remind(self, end: float, now: float) -> None:
        """Say that it lasts, again and again, and end it in time."""
        if now >= end:
            try:
                self.suspend(0.0, now)
            except KernelError as error:
                self._core.kernel_refused(error)  # the reconciler sees to it
            return
        self._core.report(
            Level.ERROR,
            "enforcement-suspended",
            seconds_left=round(end - now),
            hint="kinkctl break-glass --end",
        )
        self._suspension = self._core.timers.at(
            min(end, now + REMINDER), lambda then: self._remind(end, then)
        )


def _cancel(timers: dict[Slot, Timer], slot: Slot) -> None:
    timer = timers.pop(slot, None)
    if timer is not None:
        timer.cancel()
