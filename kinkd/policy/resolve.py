"""From the realm's document to what one host has to install.

Priorities of the SPD: a smaller number wins. Ours fill one band, 1,000,000 to 1,999,999 unless
configured otherwise: a priority of seven digits that begins with 1 is kinkd's. The first 10,000
are for the exemptions, the others for address pairs in the order of the rules; no number is used
twice. A ``clear`` rule above a ``require`` rule needs no entry: every entry is an address pair of
its own, so there is nothing broader to make a hole into.

Loopback needs no exemption: no host may have a loopback address in the document, and what a host
sends to an address of its own meets no entry, for every entry lies between two hosts.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final

from kinkd.errors import LocalError
from kinkd.model import (
    Direction,
    Host,
    IPAddress,
    IPNetwork,
    IpsecProtocol,
    Mode,
    PortMatch,
    Profile,
    Protection,
    Selector,
    SpdEntry,
    Template,
)
from kinkd.policy.match import HostPolicy
from kinkd.policy.model import RealmPolicy, Rule

REQID_BASE: Final = 0x4B00_0000  # "K"; far above what others count up from 1
REQID_COUNT: Final = 0x1_0000
PRIORITY_BASE: Final = 1_000_000
PRIORITY_COUNT: Final = 1_000_000
EXEMPTION_COUNT: Final = 10_000  # the part of the band that exemptions take, at its beginning

KINK_PORT: Final = 910  # RFC 4430 §4
UDP: Final = 17
TCP: Final = 6
ICMPV6: Final = 58
NEIGHBOR_SOLICITATION: Final = 135  # RFC 4861 §4.3
NEIGHBOR_ADVERTISEMENT: Final = 136  # RFC 4861 §4.4

_ANY_V4: Final = ip_network("0.0.0.0/0")
_ANY_V6: Final = ip_network("::/0")

# What may be reached in clear at a configured server: (protocol, port).
SERVICES: Final = {
    "kdc": ((TCP, 88), (UDP, 88), (TCP, 464), (UDP, 464)),
    "dns": ((UDP, 53), (TCP, 53)),
    "ntp": ((UDP, 123),),
    "directory": ((TCP, 389), (TCP, 636)),
}


@dataclass(frozen=True, slots=True)
class Options:
    """What this host's configuration adds to the realm's document.

    ``servers`` holds (service, address), the service one of ``SERVICES``.
    """

    reqids: range = range(REQID_BASE, REQID_BASE + REQID_COUNT)
    priorities: range = range(PRIORITY_BASE, PRIORITY_BASE + PRIORITY_COUNT)
    servers: tuple[tuple[str, IPAddress], ...] = ()


def resolve(policy: RealmPolicy, name: str, options: Options) -> HostPolicy:
    """What ``policy`` means to the host it calls ``name``.

    Raises:
        LocalError: no such host, or the reqid block or the priority band is too small.
    """
    me = policy.hosts.get(name)
    if me is None:
        raise LocalError(f"{name!r} is no host of the policy")
    others = tuple(host for host in policy.hosts.values() if host.name != name)
    reqids = reqids_of(policy.profiles.values(), options.reqids)
    numbers = iter(options.priorities[EXEMPTION_COUNT:])
    protections = tuple(
        (
            local,
            remote,
            _protection(peer, rule, profile, reqids[profile.name], local, remote, numbers),
        )
        for rule, profile, peer in _protected(policy, me, others)
        for local in me.addresses
        for remote in peer.addresses
        if local.version == remote.version
    )
    ipv6 = any(local.version == 6 for local, _, _ in protections)
    named = {protection.peer.name: protection.peer for _, _, protection in protections}
    return HostPolicy(
        me=me,
        version=policy.version,
        peers=tuple(named.values()),
        protections=protections,
        entries=_exemptions(me, options, ipv6=ipv6)
        + tuple(entry for _, _, protection in protections for entry in protection.entries),
        others=tuple(host for host in others if host.name not in named),
    )


def identify(policy: RealmPolicy, names: Iterable[str]) -> str | None:
    """The host of the policy that goes by one of ``names`` on its machine, if it is just one.

    A name counts as the document's name of a host or its domain name, whole or by its first label,
    without regard to case. Earlier names and whole ones come first.
    """
    for name in names:
        wanted = name.lower().rstrip(".")
        for whole in (True, False):
            found = {
                host
                for host, fqdn in policy.fqdns.items()
                if wanted in (host.lower(), fqdn if whole else fqdn.partition(".")[0])
                or (not whole and wanted.partition(".")[0] == host.lower())
            }
            if found:
                return found.pop() if len(found) == 1 else None
    return None


def reqids_of(profiles: Iterable[Profile], block: range) -> dict[str, int]:
    """One reqid for every profile (transport mode): constant while the profile keeps its name.

    It comes from the name and not from the order, so that a profile more does not change the
    others; where two names collide, the later one in the alphabet takes the next that is free.

    Raises:
        LocalError: more profiles than reqids.
    """
    reqids: dict[str, int] = {}
    taken: set[int] = set()
    for name in sorted(profile.name for profile in profiles):
        if len(taken) == len(block):
            raise LocalError(f"more than {len(block)} profiles do not fit into the reqid block")
        place = zlib.crc32(f"{Mode.TRANSPORT.name.lower()}/{name}".encode()) % len(block)
        while block[place] in taken:
            place = (place + 1) % len(block)
        taken.add(block[place])
        reqids[name] = block[place]
    return reqids


def _protected(
    policy: RealmPolicy, me: Host, others: Iterable[Host]
) -> list[tuple[Rule, Profile, Host]]:
    """The hosts to be protected from, in the order of the rules, then of the document."""
    order = {rule.name: index for index, rule in enumerate(policy.rules)}
    found = [
        (rule, rule.profile, peer)
        for peer in others
        if (rule := policy.rule_between(me.name, peer.name)) is not None
        and rule.profile is not None
    ]
    return sorted(found, key=lambda each: order[each[0].name])


def _protection(
    peer: Host,
    rule: Rule,
    profile: Profile,
    reqid: int,
    local: IPAddress,
    remote: IPAddress,
    numbers: Iterator[int],
) -> Protection:
    template = Template(IpsecProtocol.ESP, Mode.TRANSPORT, reqid)
    outbound = Selector.between(local, remote)
    entries = tuple(
        SpdEntry(direction, selector, _next(numbers), template)
        for direction, selector in (
            (Direction.OUT, outbound),
            (Direction.IN, outbound.reversed()),
            (Direction.FWD, outbound.reversed()),
        )
    )
    return Protection(peer, profile, Mode.TRANSPORT, reqid, rule.name, entries)


def _next(numbers: Iterator[int]) -> int:
    number = next(numbers, None)
    if number is None:
        raise LocalError("the priority band is too small for what the policy protects here")
    return number


# --- exemptions --------------------------------------------------------------------------------


def _exemptions(me: Host, options: Options, *, ipv6: bool) -> tuple[SpdEntry, ...]:
    numbers = iter(options.priorities[:EXEMPTION_COUNT])
    pairs = itertools.chain(
        _kink(), _neighbor_discovery() if ipv6 else (), _servers(me, options.servers)
    )
    return tuple(SpdEntry(direction, selector, _next(numbers)) for direction, selector in pairs)


def _kink() -> Iterator[tuple[Direction, Selector]]:
    """KINK itself: from port 910 to port 910, nothing else of either port."""
    port = PortMatch(KINK_PORT, 0xFFFF)
    for net in (_ANY_V4, _ANY_V6):
        for direction in (Direction.OUT, Direction.IN):
            yield direction, Selector(net, net, UDP, port, port)


def _neighbor_discovery() -> Iterator[tuple[Direction, Selector]]:
    """Without them the first packet waits for a neighbor that waits for an SA."""
    for icmp_type in (NEIGHBOR_SOLICITATION, NEIGHBOR_ADVERTISEMENT):
        match = PortMatch(icmp_type, 0xFFFF)  # the type stands where others have the source port
        for direction in (Direction.OUT, Direction.IN):
            yield direction, Selector(_ANY_V6, _ANY_V6, ICMPV6, match)


def _servers(
    me: Host, servers: Iterable[tuple[str, IPAddress]]
) -> Iterator[tuple[Direction, Selector]]:
    """Requests to a server's port and their answers; not what others ask from such a port.

    On the server itself the same requests come in.
    """
    for service, address in dict.fromkeys(servers):
        anyone: IPNetwork = _ANY_V4 if address.version == 4 else _ANY_V6
        for protocol, port in SERVICES[service]:
            request = Selector(
                anyone,
                ip_network(address),
                protocol,
                destination_port=PortMatch(port, 0xFFFF),
            )
            asked = address in me.addresses
            yield (Direction.IN if asked else Direction.OUT), request
            yield (Direction.OUT if asked else Direction.IN), request.reversed()
