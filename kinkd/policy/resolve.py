"""From the realm's document to what one host has to install.

Priorities of the SPD: a smaller number wins. Ours fill one band, 1,000,000 to 1,999,999 unless
configured otherwise: a priority of seven digits that begins with 1 is kinkd's. The first 10,000
are for the exemptions, no number is used twice. The others are for the traffic between this host
(its addresses, and in tunnel mode the networks behind it) and each other one, the most specific
first: first the longer prefix at this end, then the longer one at the other, then the order of the
rules. So address pairs come first, and since a tunnel covers every prefix of one host with every
prefix of the other, the first entry that matches a packet is the one of the hosts to which its two
addresses belong by the longest prefix.

A ``clear`` rule between two hosts needs entries only where something broader would take their
traffic: a tunnel. There the prefixes of the document that lie inside a tunnel's but belong to
someone else get entries of their own that let pass in clear:

- at the far end, those of hosts whose traffic with this one is clear, and this host's own: a tunnel
  to 0.0.0.0/0 carries all but the traffic among this host's addresses and the networks behind it;
- at this end, those of other hosts inside our networks, to anywhere: whom the document names speaks
  for himself, and ESP of his own must not be taken for traffic of ours.

What the document does not name goes into the tunnel, a neighbor on the same link as well.

Loopback: no host may have such an address in the document. The kernel asks no IPv4 policy on it;
IPv6 is asked for, there ::1 and a host's own addresses are among the exceptions from a tunnel.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Final, NamedTuple, TypeVar

from kinkd.errors import LocalError
from kinkd.model import (
    Direction,
    Host,
    IPAddress,
    IPNetwork,
    Mode,
    PortMatch,
    Profile,
    Protection,
    Selector,
    SpdEntry,
    Template,
)
from kinkd.policy.match import HostPolicy
from kinkd.policy.model import RealmPolicy, Rule, protocol_words

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
_Place = TypeVar("_Place", IPAddress, IPNetwork)
_ANY: Final = {4: _ANY_V4, 6: _ANY_V6}
_LOOPBACK: Final = ip_network("::1/128")

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
    demands = list(_demands(policy, me, others))
    reqids = _reqids(policy, demands, options.reqids)
    traffic: list[tuple[Selector, _Demand | None]] = [
        *((demand.selector, demand) for demand in demands),
        *((selector, None) for selector in _clear(me, others, demands)),
    ]
    protections: list[Protection] = []
    entries = list(_exemptions(me, options, demands))
    numbers = iter(options.priorities[EXEMPTION_COUNT:])
    for selector, demand in sorted(traffic, key=lambda each: _breadth(each[0])):
        if demand is None:
            entries += _entries(selector, numbers)
        else:
            protections.append(_protection(demand, reqids[demand.reqid_name], numbers))
            entries += protections[-1].entries
    named = {demand.peer.name: demand.peer for demand in demands}
    return HostPolicy(
        me=me,
        version=policy.version,
        peers=tuple(named.values()),
        protections=tuple(protections),
        entries=tuple(entries),
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


def reqids_of(
    names: Iterable[str], block: range, taken: Collection[int] = frozenset()
) -> dict[str, int]:
    """A reqid of its own for every name, outside ``taken``, the same as long as the name is.

    It comes from the name and not from the order, so that a name more does not change the others;
    where names collide, the first in the alphabet has the place, and those that are left then take
    the next free ones.

    Raises:
        LocalError: more names than reqids.
    """
    places = {name: zlib.crc32(name.encode()) % len(block) for name in sorted(set(names))}
    used = set(taken)
    if len(used) + len(places) > len(block):
        raise LocalError(
            f"{len(places)} profiles or tunnels are too many for what is free of the reqid block"
            f" of {len(block)}"
        )
    reqids: dict[str, int] = {}
    for displaced in (False, True):
        for name, place in places.items():
            if name not in reqids and (displaced or block[place] not in used):
                onward = itertools.chain(block[place:], block[:place])
                reqids[name] = next(reqid for reqid in onward if reqid not in used)
                used.add(reqids[name])
    return reqids


# --- what is protected -------------------------------------------------------------------------


class _Demand(NamedTuple):
    """A protection that has no reqid and no SPD entries yet."""

    peer: Host
    rule: Rule
    profile: Profile
    local: IPAddress
    remote: IPAddress
    selector: Selector

    @property
    def reqid_name(self) -> str:
        """From which the reqid comes.

        SAs of transport mode are told apart by their addresses. Those of tunnels between the same
        two gateways are not: with one reqid the kernel would ask for one SA where two networks
        wait, and a gateway's SA for one network would pass for another's.
        """
        if self.rule.mode is Mode.TRANSPORT:
            return _transport_name(self.profile)
        networks = f"{self.selector.source}/{self.selector.destination}"
        return f"tunnel/{self.profile.name}/{networks}/{self.peer.name}"


def _transport_name(profile: Profile) -> str:
    return f"transport/{profile.name}"


def _reqids(policy: RealmPolicy, demands: Iterable[_Demand], block: range) -> dict[str, int]:
    """Those of all profiles first: no tunnel changes them, and they are the same at all hosts."""
    reqids = reqids_of(map(_transport_name, policy.profiles.values()), block)
    tunnels = (demand.reqid_name for demand in demands if demand.rule.mode is Mode.TUNNEL)
    return reqids | reqids_of(tunnels, block, reqids.values())


def _demands(policy: RealmPolicy, me: Host, others: Iterable[Host]) -> Iterator[_Demand]:
    mine = _prefixes(me)
    for rule, profile, peer in _protected(policy, me, others):
        if rule.mode is Mode.TRANSPORT:
            for local, remote in _of_one_family(me.addresses, peer.addresses):
                selector = Selector.between(local, remote)
                yield _Demand(peer, rule, profile, local, remote, selector)
        elif (ends := tunnel_ends(me, peer)) is not None:
            for source, destination in _of_one_family(mine, _prefixes(peer)):
                if len(profile.protocols) > 1 and source.version != ends[0].version:
                    raise LocalError(
                        f"rule {rule.name!r}: {protocol_words(profile.protocols)} between {ends[0]}"
                        f" and {ends[1]} cannot carry {source} to {destination}, of another"
                        " address family (the kernel has no such thing); take a profile of ESP"
                    )
                yield _Demand(peer, rule, profile, *ends, Selector(source, destination))


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


def tunnel_ends(me: Host, peer: Host) -> tuple[IPAddress, IPAddress] | None:
    """Between which of their addresses two hosts have their tunnels; None: no one family.

    The addresses that stand first in the document, of two equally good pairs that of IPv4. The peer
    comes to the same two: two pairs of one family are never equally good.
    """
    pairs = [
        (i + j, local.version, local, remote)
        for i, local in enumerate(me.addresses)
        for j, remote in enumerate(peer.addresses)
        if local.version == remote.version
    ]
    return min(pairs, key=lambda pair: pair[:2])[2:] if pairs else None


def _prefixes(host: Host) -> tuple[IPNetwork, ...]:
    return (*map(ip_network, host.addresses), *host.networks)


def _of_one_family(
    ours: Iterable[_Place], theirs: Iterable[_Place]
) -> Iterator[tuple[_Place, _Place]]:
    return (pair for pair in itertools.product(ours, theirs) if pair[0].version == pair[1].version)


def _protection(demand: _Demand, reqid: int, numbers: Iterator[int]) -> Protection:
    peer, rule, profile, local, remote, selector = demand
    if rule.mode is Mode.TRANSPORT:
        outbound = tuple(Template(each, Mode.TRANSPORT, reqid) for each in profile.protocols)
        inbound = outbound
    else:
        first, *rest = profile.protocols
        # The outer ones of a bundle go by the ends of the tunnel: the kernel takes them over.
        outer = tuple(Template(each, Mode.TRANSPORT, reqid) for each in rest)
        outbound = (Template(first, Mode.TUNNEL, reqid, local, remote), *outer)
        inbound = (Template(first, Mode.TUNNEL, reqid, remote, local), *outer)
    return Protection(
        peer=peer,
        profile=profile,
        mode=rule.mode,
        reqid=reqid,
        rule=rule.name,
        local=local,
        remote=remote,
        selector=selector,
        udp=rule.udp,
        entries=_entries(selector, numbers, outbound, inbound),
    )


def _entries(
    selector: Selector,
    numbers: Iterator[int],
    outbound: tuple[Template, ...] = (),
    inbound: tuple[Template, ...] = (),
) -> tuple[SpdEntry, SpdEntry, SpdEntry]:
    """For traffic on its way out and its answers, to this host and through it."""
    back = selector.reversed()
    return (
        SpdEntry(Direction.OUT, selector, _next(numbers), outbound),
        SpdEntry(Direction.IN, back, _next(numbers), inbound),
        SpdEntry(Direction.FWD, back, _next(numbers), inbound),
    )


def _breadth(selector: Selector) -> tuple[int, int]:
    """How many bits of the address are free, at this end and at the other."""
    ours, theirs = selector.source, selector.destination
    return ours.max_prefixlen - ours.prefixlen, theirs.max_prefixlen - theirs.prefixlen


def _next(numbers: Iterator[int]) -> int:
    number = next(numbers, None)
    if number is None:
        raise LocalError("the priority band is too small for what the policy protects here")
    return number


# --- what stays clear inside tunnels ------------------------------------------------------------


def _clear(me: Host, others: Iterable[Host], demands: Iterable[_Demand]) -> list[Selector]:
    """Outbound traffic that a tunnel would take though it is not the tunnel's."""
    tunnels = [demand.selector for demand in demands if demand.rule.mode is Mode.TUNNEL]
    if not tunnels:
        return []
    mine = _prefixes(me)
    foreign = (*itertools.chain.from_iterable(map(_prefixes, others)), _LOOPBACK)
    protected = {demand.selector for demand in demands}
    is_inside_there = _inside({selector.destination for selector in tunnels})
    is_inside_here = _inside({selector.source for selector in tunnels})
    inner = filter(is_inside_there, mine + foreign)
    clear = itertools.starmap(Selector, _of_one_family(mine, inner))
    transit = (Selector(prefix, _ANY[prefix.version]) for prefix in filter(is_inside_here, foreign))
    return [*(selector for selector in clear if selector not in protected), *transit]


def _inside(networks: Collection[IPNetwork]) -> Callable[[IPNetwork], bool]:
    """Whether a prefix lies within one of ``networks`` and is longer; quick for many of them."""
    heads = {(each.version, each.prefixlen, _head(each, each.prefixlen)) for each in networks}
    lengths = {(version, length) for version, length, _ in heads}

    def is_inside(prefix: IPNetwork) -> bool:
        return any(
            version == prefix.version
            and length < prefix.prefixlen
            and (version, length, _head(prefix, length)) in heads
            for version, length in lengths
        )

    return is_inside


def _head(prefix: IPNetwork, length: int) -> int:
    return int(prefix.network_address) >> (prefix.max_prefixlen - length)


# --- exemptions --------------------------------------------------------------------------------


def _exemptions(me: Host, options: Options, demands: Iterable[_Demand]) -> tuple[SpdEntry, ...]:
    numbers = iter(options.priorities[:EXEMPTION_COUNT])
    ipv6 = any(demand.selector.source.version == 6 for demand in demands)
    pairs = itertools.chain(
        _kink(me),
        _neighbor_discovery() if ipv6 else (),
        _servers(me, options.servers),
    )
    return tuple(SpdEntry(direction, selector, _next(numbers)) for direction, selector in pairs)


def _kink(me: Host) -> Iterator[tuple[Direction, Selector]]:
    """KINK of this host itself: from port 910 to port 910, nothing else of either port.

    Of nobody behind it: that goes into the tunnel, as all else.
    """
    port = PortMatch(KINK_PORT, 0xFFFF)
    for address in me.addresses:
        out = Selector(ip_network(address), _ANY[address.version], UDP, port, port)
        yield Direction.OUT, out
        yield Direction.IN, out.reversed()


def _neighbor_discovery() -> Iterator[tuple[Direction, Selector]]:
    """Without them the first packet waits for a neighbor that waits for an SA."""
    for icmp_type in (NEIGHBOR_SOLICITATION, NEIGHBOR_ADVERTISEMENT):
        match = PortMatch(icmp_type, 0xFFFF)  # the type stands where others have the source port
        for direction in (Direction.OUT, Direction.IN):
            yield direction, Selector(_ANY_V6, _ANY_V6, ICMPV6, match)


def _servers(
    me: Host, servers: Iterable[tuple[str, IPAddress]]
) -> Iterator[tuple[Direction, Selector]]:
    """Requests of this host to a server's port and their answers; not what others ask from there.

    On the server itself the same requests come in, from anyone.
    """
    for service, address in dict.fromkeys(servers):
        asked = address in me.addresses
        clients = _of_one_family(me.addresses, (address,))
        askers = (_ANY[address.version],) if asked else [ip_network(mine) for mine, _ in clients]
        for (protocol, port), asker in itertools.product(SERVICES[service], askers):
            request = Selector(
                asker,
                ip_network(address),
                protocol,
                destination_port=PortMatch(port, 0xFFFF),
            )
            yield (Direction.IN if asked else Direction.OUT), request
            yield (Direction.OUT if asked else Direction.IN), request.reversed()
