"""What the realm's policy says to one host, in the form the daemon asks it: by dictionary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from kinkd.errors import LocalError
from kinkd.model import Host, IPAddress, Principal, Protection, Selector, SpdEntry

_Ends = tuple[type[IPAddress], type[IPAddress], int, int]
"""Two addresses in numbers: dictionaries find these much faster than addresses."""


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """The policy as host ``me`` has to apply it.

    ``peers`` are the hosts with at least one protection, ``others`` those of the realm without.
    ``protections`` stand in the order in which the kernel is to ask them; ``entries`` are all SPD
    entries to install, in the order of installation: exemptions first.

    The ``host_by_`` questions answer for every host but ``me``, which is no peer of itself: so
    "known, but nothing is required" can be told from "unknown".

    Raises:
        LocalError: two protections of the same traffic between the same two addresses. One SA pair
            serves them, so it can have one crypto profile only.
    """

    me: Host
    version: int
    peers: tuple[Host, ...]
    protections: tuple[Protection, ...]
    entries: tuple[SpdEntry, ...]
    others: tuple[Host, ...] = ()
    _by_ends: dict[_Ends, list[Protection]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    # Where there are several between the same ends.
    _by_acquire: dict[tuple[_Ends, int], Protection] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _by_host: dict[str, list[Protection]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _requested: dict[str, tuple[Protection, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _by_client: dict[Principal, Host] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _by_name: dict[str, Host] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        by_ends, by_host = self._by_ends, self._by_host
        for protection in self.protections:
            ends = _ends(protection.local, protection.remote)
            by_ends.setdefault(ends, []).append(protection)
            name = protection.peer.name
            by_host.setdefault(name, []).append(protection)
            if protection.requested:
                self._requested[name] = (*self._requested.get(name, ()), protection)
        for ends, several in by_ends.items():
            if len(several) > 1:
                _refuse_two(several)
                self._by_acquire.update(((ends, each.reqid), each) for each in several)
        for host in self.peers + self.others:
            self._by_client[host.client] = host
            self._by_name[host.name] = host

    def between(self, local: IPAddress, remote: IPAddress) -> tuple[Protection, ...]:
        """What is demanded of SAs between two addresses, the most specific first; often one."""
        return tuple(self._by_ends.get(_ends(local, remote), ()))

    def acquired(self, source: IPAddress, destination: IPAddress, reqid: int) -> Protection | None:
        """The protection whose SPD entries want an SA; None: they are not ours."""
        ends = _ends(source, destination)
        found = self._by_ends.get(ends, [])
        if len(found) == 1:
            return found[0] if found[0].reqid == reqid else None
        return self._by_acquire.get((ends, reqid))

    def with_host(self, name: str) -> tuple[Protection, ...]:
        """All that is demanded of traffic with one host and the networks behind it."""
        return tuple(self._by_host.get(name, ()))

    def requested_of(self, name: str) -> tuple[Protection, ...]:
        """Those of them of which something is only requested."""
        return self._requested.get(name, ())

    def host_by_client(self, client: Principal) -> Host | None:
        """The host that authenticates as ``client``."""
        return self._by_client.get(client)

    def host_by_name(self, name: str) -> Host | None:
        """The host that the document calls ``name``."""
        return self._by_name.get(name)


def _ends(local: IPAddress, remote: IPAddress) -> _Ends:
    return type(local), type(remote), int(local), int(remote)


def _refuse_two(protections: Iterable[Protection]) -> None:
    """Refuse two protections of the same traffic, all being between the same two addresses."""
    seen: dict[Selector, Protection] = {}
    for protection in protections:
        first = seen.setdefault(protection.selector, protection)
        if first is not protection:
            raise LocalError(
                f"two protections between {protection.local} and {protection.remote}: rule"
                f" {first.rule!r} wants profile {first.profile.name!r}, rule {protection.rule!r}"
                f" wants {protection.profile.name!r}; let one rule cover the two hosts"
            )
