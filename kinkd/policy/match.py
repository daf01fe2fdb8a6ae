"""What the realm's policy says to one host, in the form the daemon asks it: by dictionary."""

from __future__ import annotations

from dataclasses import dataclass, field

from kinkd.errors import LocalError
from kinkd.model import Host, IPAddress, Principal, Protection, Selector, SpdEntry

_Ends = tuple[IPAddress, IPAddress]


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
    _by_ends: dict[_Ends, tuple[Protection, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _by_acquire: dict[tuple[IPAddress, IPAddress, int], Protection] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _by_host: dict[str, tuple[Protection, ...]] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _by_client: dict[Principal, Host] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _by_name: dict[str, Host] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        seen: dict[tuple[_Ends, Selector], Protection] = {}
        for protection in self.protections:
            ends = (protection.local, protection.remote)
            first = seen.setdefault((ends, protection.selector), protection)
            if first is not protection:
                raise LocalError(
                    f"two protections between {ends[0]} and {ends[1]}: rule {first.rule!r} wants"
                    f" profile {first.profile.name!r}, rule {protection.rule!r} wants"
                    f" {protection.profile.name!r}; let one rule cover the two hosts"
                )
            self._by_ends[ends] = (*self._by_ends.get(ends, ()), protection)
            self._by_acquire[*ends, protection.reqid] = protection
            name = protection.peer.name
            self._by_host[name] = (*self._by_host.get(name, ()), protection)
        for host in self.peers + self.others:
            self._by_client[host.client] = host
            self._by_name[host.name] = host

    def between(self, local: IPAddress, remote: IPAddress) -> tuple[Protection, ...]:
        """What is demanded of SAs between two addresses, the most specific first; often one."""
        return self._by_ends.get((local, remote), ())

    def acquired(self, source: IPAddress, destination: IPAddress, reqid: int) -> Protection | None:
        """The protection whose SPD entries want an SA; None: they are not ours."""
        return self._by_acquire.get((source, destination, reqid))

    def with_host(self, name: str) -> tuple[Protection, ...]:
        """All that is demanded of traffic with one host and the networks behind it."""
        return self._by_host.get(name, ())

    def host_by_client(self, client: Principal) -> Host | None:
        """The host that authenticates as ``client``."""
        return self._by_client.get(client)

    def host_by_name(self, name: str) -> Host | None:
        """The host that the document calls ``name``."""
        return self._by_name.get(name)
