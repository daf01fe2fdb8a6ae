"""From the realm's document to what one host has to install.

**Which entry decides.** Of the prefixes at both ends the longest say whose an address is, and among
the rules for two parties the first that matches a packet decides. So entries are asked in this
order: first the longer prefix at this end, then the longer one at the other, then the order of the
rules. A prefix that says what a broader one around it says has no entries, and two halves of a
prefix that say the same are one: see ``prefixes``. Traffic that is clear has entries only where
something broader, or something later, would take it.

**Priorities.** A smaller number wins. Ours fill one band, 1,000,000 to 1,999,999 unless configured
otherwise: a priority of seven digits that begins with 1 is kinkd's. The first 10,000 are for the
exemptions. The others are shared out to the pairs of prefix lengths that there are; within such a
share numbers count the rules' terms. Two entries of one number never match one packet: so a host
more changes none of the others' entries.

**At this end**, prefixes of others inside our networks get entries that let pass in clear, to
anywhere: whom the document names speaks for himself, and ESP of his own must not be taken for
traffic of ours. What the document does not name goes into the tunnel, a neighbor on the same link
as well.

Loopback: no host may have such an address in the document. The kernel asks no IPv4 policy on it;
IPv6 is asked for: there ::1 and a host's own addresses are among what is always clear.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Final, NamedTuple

from kinkd.errors import LocalError
from kinkd.model import (
    Host,
    IPAddress,
    IPNetwork,
    Mode,
    Protection,
    Selector,
    SpdEntry,
    lone,
)
from kinkd.policy.entries import (
    Made,
    Makers,
    Makings,
    Written,
    breadth,
    transport_name,
    tunnel_ends,
    tunnel_name,
)
from kinkd.policy.exemptions import EXEMPTION_COUNT, Exempt, exemptions
from kinkd.policy.match import HostPolicy
from kinkd.policy.prefixes import lone_number, lone_place, number, place
from kinkd.policy.profiles import protocol_words
from kinkd.policy.realm import RealmPolicy
from kinkd.policy.tables import ANYWHERE, Known, Ruling, Sayings, Table, View, free_bits

REQID_BASE: Final = 0x4B00_0000  # "K"; far above what others count up from 1
REQID_COUNT: Final = 0x1_0000
PRIORITY_BASE: Final = 1_000_000
PRIORITY_COUNT: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Options:
    """What this host's configuration adds to the realm's document.

    ``servers`` holds (service, address), the service one of ``exemptions.SERVICES``.
    ``client_ports``: from which this host's programs ask (net.ipv4.ip_local_port_range).
    """

    reqids: range = range(REQID_BASE, REQID_BASE + REQID_COUNT)
    priorities: range = range(PRIORITY_BASE, PRIORITY_BASE + PRIORITY_COUNT)
    servers: tuple[tuple[str, IPAddress], ...] = ()
    client_ports: range = range(32768, 61000)


@dataclass(slots=True)
class Memory:
    """What one host was told by the last policy: most of the next will be the same."""

    me: Host | None = None
    known: Known = field(default_factory=Known)
    demands: dict[str, _Wanted] = field(default_factory=dict)
    makings: Makings = field(default_factory=dict)
    exempt: tuple[list[Exempt], range] | None = None


def resolve(
    policy: RealmPolicy, name: str, options: Options, memory: Memory | None = None
) -> HostPolicy:
    """What ``policy`` means to the host it calls ``name``.

    What ``memory`` holds makes it fast, and nothing else of it: it is this policy's afterwards.

    Raises:
        LocalError: no such host, or the reqid block or the priority band is too small.
    """
    me = policy.hosts.get(name)
    if me is None:
        raise LocalError(f"{name!r} is no host of the policy")
    memory = Memory() if memory is None else memory
    if memory.me is not me:
        memory.me, memory.known, memory.demands, memory.makings = me, Known(), {}, {}
    others = tuple(host for host in policy.hosts.values() if host.name != name)
    said = Sayings(policy, me, memory.known)
    tables = {prefix: Table(prefix, said) for prefix in me.prefixes}
    wanted = _wanted(said, others, tables, memory.demands)
    demands = sorted(
        itertools.chain.from_iterable(each.demands for each in wanted.values()),
        key=attrgetter("breadth"),
    )
    makers = Makers(me, _reqids(policy, demands, options.reqids), options.client_ports)
    servers = (*policy.servers, *options.servers)
    exempt = exemptions(me, servers, options.client_ports, breadth(tables.values()))
    numbers = options.priorities[:EXEMPTION_COUNT]
    if len(exempt) > len(numbers):
        raise LocalError(f"{len(exempt)} exemptions are too many; name fewer servers")
    if memory.exempt != (exempt, options.client_ports):
        memory.exempt, memory.makings = (exempt, options.client_ports), {}
    foreign = {version: said.foreign(version) for version in ANYWHERE}
    band = options.priorities[EXEMPTION_COUNT:]
    written = Written(tables, makers, foreign, band, frozenset(exempt), memory.makings)
    protections = tuple(demand.met(written, makers) for demand in demands)
    named = {demand.peer.name: demand.peer for demand in demands}
    memory.known, memory.demands, memory.makings = said.fresh, wanted, written.makings
    return HostPolicy(
        me=me,
        version=policy.version,
        peers=tuple(named.values()),
        protections=protections,
        entries=(
            *(SpdEntry(*each, number) for each, number in zip(exempt, numbers, strict=False)),
            *sorted(written.entries(), key=attrgetter("priority")),
        ),
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


# --- reqids ------------------------------------------------------------------------------------


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
    starts = {name: zlib.crc32(name.encode()) % len(block) for name in sorted(set(names))}
    used = set(taken)
    if len(used) + len(starts) > len(block):
        raise LocalError(
            f"{len(starts)} profiles or tunnels are too many for what is free of the reqid block"
            f" of {len(block)}"
        )
    reqids: dict[str, int] = {}
    for displaced in (False, True):
        for name, start in starts.items():
            if name not in reqids and (displaced or block[start] not in used):
                onward = itertools.chain(block[start:], block[:start])
                reqids[name] = next(reqid for reqid in onward if reqid not in used)
                used.add(reqids[name])
    return reqids


def _reqids(policy: RealmPolicy, demands: Iterable[_Demand], block: range) -> dict[str, int]:
    """Those of all profiles first: no tunnel changes them, and they are the same at all hosts."""
    reqids = reqids_of(map(transport_name, policy.profiles.values()), block)
    tunnels = (demand.reqid_name for demand in demands if demand.ruling.mode is Mode.TUNNEL)
    return reqids | reqids_of(tunnels, block, reqids.values())


# --- what is protected -------------------------------------------------------------------------


@dataclass(slots=True)
class _Demand:
    """What is to be protected between this host and a peer.

    ``here``: the number of the prefix at this end, ``there``: the place of that at the other.
    ``breadth``: how many bits of the address are free, at this end and at the other. ``last`` is
    what it came to with another policy, and of which entries.
    """

    peer: Host
    ruling: Ruling
    local: IPAddress
    remote: IPAddress
    selector: Selector
    here: int
    there: int
    breadth: tuple[int, int]
    reqid_name: str
    initiates: bool
    last: tuple[Protection, Made] | None = None

    def met(self, written: Written, makers: Makers) -> Protection:
        """The protection, with its reqid and SPD entries."""
        made, reqid = written.of(self.here, self.there), makers.reqids[self.reqid_name]
        if self.last is None or self.last[1] is not made or self.last[0].reqid != reqid:
            ruling = self.ruling
            protection = Protection(
                peer=self.peer,
                profile=ruling.profile,
                mode=ruling.mode,
                reqid=reqid,
                rule=ruling.rule,
                local=self.local,
                remote=self.remote,
                selector=self.selector,
                udp=ruling.udp,
                entries=made.entries,
                requested=made.requested,
                when_keyed=made.when_keyed,
                initiates=self.initiates,
            )
            self.last = (protection, made)
        return self.last[0]


class _Wanted(NamedTuple):
    """All that is to be protected between this host and a peer."""

    peer: Host
    ruling: Ruling
    initiates: bool
    demands: tuple[_Demand, ...]


def _wanted(
    said: Sayings, others: Iterable[Host], tables: Collection[IPNetwork], known: dict[str, _Wanted]
) -> dict[str, _Wanted]:
    """What is to be protected, by peer; ``known`` is of another policy."""
    found: dict[str, _Wanted] = {}
    for peer in others:
        view = said.view(peer.name)
        if view.ruling is None:
            continue
        wanted = known.get(peer.name)
        if (
            wanted is None
            or wanted.peer is not peer
            or wanted.ruling is not view.ruling
            or wanted.initiates != view.initiates
        ):
            demands = _demands(said.me, peer, view, tables)
            wanted = _Wanted(peer, view.ruling, view.initiates, tuple(demands))
        found[peer.name] = wanted
    return found


def _demands(me: Host, peer: Host, view: View, tables: Iterable[IPNetwork]) -> Iterator[_Demand]:
    ruling = view.ruling
    if ruling is None:
        return
    if ruling.mode is Mode.TRANSPORT:
        reqid_name = transport_name(ruling.profile)
        for local in me.addresses:
            for remote in peer.addresses:
                if local.version == remote.version:
                    selector = Selector(lone(local), lone(remote))
                    yield _Demand(
                        *(peer, ruling, local, remote, selector),
                        *(lone_number(local), lone_place(remote), (0, 0)),
                        *(reqid_name, view.initiates),
                    )
    elif (ends := tunnel_ends(me, peer)) is not None:
        for here, there in itertools.product(tables, peer.prefixes):
            if here.version == there.version:
                _check_families(ruling, ends, here, there)
                yield _Demand(
                    *(peer, ruling, *ends, Selector(here, there), number(here), place(there)),
                    (free_bits(here), free_bits(there)),
                    tunnel_name(ruling.profile, here, there, peer),
                    view.initiates,
                )


def _check_families(
    ruling: Ruling, ends: tuple[IPAddress, IPAddress], here: IPNetwork, there: IPNetwork
) -> None:
    protocols = ruling.profile.protocols
    if len(protocols) > 1 and here.version != ends[0].version:
        raise LocalError(
            f"rule {ruling.rule!r}: {protocol_words(protocols)} between {ends[0]}"
            f" and {ends[1]} cannot carry {here} to {there}, of another"
            " address family (the kernel has no such thing); take a profile of ESP"
        )
