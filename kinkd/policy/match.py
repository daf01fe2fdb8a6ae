"""What the realm's policy says to one host, in the form the daemon asks it: by dictionary."""

from __future__ import annotations

from dataclasses import dataclass, field

from kinkd.errors import LocalError
from kinkd.model import Host, IPAddress, Principal, Protection, SpdEntry


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """The policy as host ``me`` has to apply it.

    ``peers`` are the hosts with at least one protection, ``others`` those of the realm without.
    ``protections`` holds (local address, remote address, protection), in the order of the rules;
    ``entries`` are all SPD entries to install, in the order of installation: exemptions first.

    The ``host_by_`` questions answer for every host but ``me``, which is no peer of itself: so
    "known, but nothing is required" can be told from "unknown".

    Raises:
        LocalError: two protections between the same two addresses. One SA pair serves an
            address pair, so it can have one crypto profile only.
    """

    me: Host
    version: int
    peers: tuple[Host, ...]
    protections: tuple[tuple[IPAddress, IPAddress, Protection], ...]
    entries: tuple[SpdEntry, ...]
    others: tuple[Host, ...] = ()
    _by_pair: dict[tuple[IPAddress, IPAddress], Protection] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _by_client: dict[Principal, Host] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _by_service: dict[Principal, Host] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _by_address: dict[IPAddress, Host] = field(
        init=False, repr=False, compare=False, default_factory=dict
    )
    _by_name: dict[str, Host] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for local, remote, protection in self.protections:
            first = self._by_pair.setdefault((local, remote), protection)
            if first is not protection:
                raise LocalError(
                    f"two protections between {local} and {remote}: rule {first.rule!r} wants"
                    f" profile {first.profile.name!r}, rule {protection.rule!r} wants"
                    f" {protection.profile.name!r}; let one rule cover the two hosts"
                )
        for host in self.peers + self.others:
            self._by_client[host.client] = host
            self._by_service[host.service] = host
            self._by_address.update(dict.fromkeys(host.addresses, host))
            self._by_name[host.name] = host

    def protection(self, local: IPAddress, remote: IPAddress) -> Protection | None:
        """What is demanded between two addresses; None: they speak in clear."""
        return self._by_pair.get((local, remote))

    def host_by_client(self, client: Principal) -> Host | None:
        """The host that authenticates as ``client``."""
        return self._by_client.get(client)

    def host_by_service(self, service: Principal) -> Host | None:
        """The host that is asked for as ``service``."""
        return self._by_service.get(service)

    def host_by_address(self, address: IPAddress) -> Host | None:
        """The host that lives at ``address``."""
        return self._by_address.get(address)

    def host_by_name(self, name: str) -> Host | None:
        """The host that the document calls ``name``."""
        return self._by_name.get(name)
