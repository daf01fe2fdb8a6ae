"""In which form the SPD entries of a policy are to be in the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kinkd.model import Direction, Host, Mode, Protection, Slot, SpdEntry, SpdKey
from kinkd.policy.match import HostPolicy


@dataclass(slots=True)
class Forms:
    """What makes entries less strict than the policy writes them: see ``enforcing``.

    Args:
        secured: hosts with which there were SAs while the policy only requested them, and who they
            were then: the client principal.
        suspended_until: POSIX seconds until which nothing is enforced; 0: it is.
        clear: what is only requested and could not be had.
        settling: hosts whose packets in clear may still be on their way.
        keyed: whether there are SAs for a slot.
    """

    secured: dict[str, str] = field(default_factory=dict)
    suspended_until: float = 0.0
    clear: set[Slot] = field(default_factory=set)
    settling: set[str] = field(default_factory=set)
    keyed: Callable[[Slot], bool] = lambda _: False

    def is_secured(self, host: Host) -> bool:
        """Whether what the policy requests of this host is required by now."""
        return self.secured.get(host.name) == str(host.client)

    def holds(self, protection: Protection) -> bool:
        """Whether packets are held that could go out in clear."""
        return (
            bool(protection.requested)
            and protection.slot not in self.clear
            and not self.suspended_until
            and not self.is_secured(protection.peer)
        )

    def is_mute(self, protection: Protection) -> bool:
        """Whether the kernel asks for no SA here though one is wanted: see ``relaxed``."""
        if protection.mode is not Mode.TUNNEL or not protection.initiates:
            return False
        if self.keyed(protection.slot):
            return False
        return not any(entry.templates for entry in self.outbound(protection))

    def outbound(self, protection: Protection) -> Iterator[SpdEntry]:
        """The protection's entries for packets out, as they are to be."""
        return (entry for entry in self.of(protection) if entry.direction is Direction.OUT)

    def of(self, protection: Protection) -> Iterator[SpdEntry]:
        """All its entries, as they are to be."""
        changed = dict(self._changed(protection))
        for entry in protection.entries:
            yield changed.get(entry.key, entry)

    def wanted(self, policy: HostPolicy) -> tuple[SpdEntry, ...]:
        """All entries of a policy as they are to be."""
        changed: dict[SpdKey, SpdEntry] = {}
        if self.suspended_until:
            changed.update((entry.key, entry.relaxed()) for entry in policy.entries)
        for protection in policy.protections:
            if protection.requested or protection.mode is Mode.TUNNEL:
                changed.update(self._changed(protection))
        if not changed:
            return policy.entries
        return tuple(changed.get(entry.key, entry) for entry in policy.entries)

    def _changed(self, protection: Protection) -> Iterator[tuple[SpdKey, SpdEntry]]:
        """Those of its entries that are not as the policy writes them."""
        keyed = protection.mode is Mode.TUNNEL and self.keyed(protection.slot)
        if keyed:
            for entry in protection.when_keyed:
                yield entry.key, entry
        for entry in protection.entries:
            if self._is_loose(protection, entry):
                form = entry.relaxed()
                # A tunnel that is there is used: its far end may insist.
                is_up = keyed and entry.templates and not form.templates
                yield entry.key, entry if is_up else form

    def _is_loose(self, protection: Protection, entry: SpdEntry) -> bool:
        if self.suspended_until:
            return True
        if entry not in protection.requested:
            return False
        inbound = entry.direction is not Direction.OUT
        if self.is_secured(protection.peer):
            return inbound and protection.peer.name in self.settling
        return inbound or protection.slot in self.clear
