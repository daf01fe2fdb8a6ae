"""Servers that this host asks before it has a key, found where its system has them written.

Reaching them must not need an SA that needs them (see ``policy.exemptions``). No name is asked of
a resolver: that would need one of them. Names that the policy knows are its hosts' addresses.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from kinkd.errors import KinkdError
from kinkd.model import Host, IPAddress
from kinkd.policy.realm import RealmPolicy

_PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")  # of IPv6 as well
_RESOLVERS: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
_DEFAULT_PORTS: Final = range(32768, 61000)

Server = tuple[str, IPAddress]


def client_ports(path: Path = _PORT_RANGE) -> range:
    """From which ports this host's programs ask: those that no service here listens on."""
    try:
        low, high = map(int, path.read_text().split())
    except (OSError, ValueError):
        return _DEFAULT_PORTS
    return range(low, high + 1) if 0 < low <= high <= 0xFFFF else _DEFAULT_PORTS


def resolvers(paths: Iterable[Path] = _RESOLVERS) -> list[Server]:
    """The servers that resolve names for this host: resolv.conf(5)."""
    found: dict[Server, None] = {}
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text(errors="replace").split("\n"):
                # The C library knows the word at the beginning of a line only.
                if line.startswith(("nameserver ", "nameserver\t")):
                    for address in _addresses(line.split()[1:2]):
                        found["dns", address] = None
    return list(found)


def kdcs(policy: RealmPolicy, realms: Iterable[str]) -> Iterator[Server]:
    """The KDCs that krb5.conf names by address, or by a name that the policy knows."""
    # Not for the guard, which starts early and asks no KDC.
    from kinkd.kerberos import libkrb5  # noqa: PLC0415

    hosts = _by_fqdn(policy)
    for realm in dict.fromkeys(realms):
        with contextlib.suppress(KinkdError):  # without krb5.conf there is nothing to be found
            for written in libkrb5.configured_kdcs(realm):
                name = _without_port(written)
                yield from (("kdc", address) for address in _at(hosts, name))


def directories(policy: RealmPolicy, names: Iterable[str]) -> Iterator[Server]:
    """The same of the servers that the policy itself comes from."""
    hosts = _by_fqdn(policy)
    for name in names:
        yield from (("directory", address) for address in _at(hosts, name))


def _by_fqdn(policy: RealmPolicy) -> dict[str, Host]:
    return {fqdn: policy.hosts[name] for name, fqdn in policy.fqdns.items() if fqdn}


def _at(hosts: Mapping[str, Host], name: str) -> Iterator[IPAddress]:
    """Where a server is that is written by address, or by a name that the policy knows."""
    if (host := hosts.get(name.lower().removesuffix("."))) is not None:
        yield from host.addresses
    yield from _addresses([name])


def _addresses(words: Iterable[str]) -> Iterator[IPAddress]:
    """Those of them that are one server's own address, off this host and this link."""
    for word in words:
        with contextlib.suppress(ValueError):
            address = ip_address(word.partition("%")[0])  # without an interface
            address = getattr(address, "ipv4_mapped", None) or address  # as it is on the wire
            if not (
                address.is_loopback
                or address.is_link_local
                or address.is_multicast
                or address.is_unspecified
            ):
                yield address


def _without_port(written: str) -> str:
    name = next(iter(written.split()), "")  # libkrb5 reads no further
    name = name.removeprefix("tcp/").removeprefix("udp/")
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0] if name.count(":") == 1 else name
