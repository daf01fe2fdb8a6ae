"""What this host's daemon has at hand about traffic with one other host; nothing is asked for it.

The document's side is ``kinkd.policy.explain``; what is found here is plain data, for it and for
``kinkctl``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Final

from kinkd.errors import KinkdError, LocalError
from kinkd.exchange.core import Peer
from kinkd.exchange.endpoint import Endpoint
from kinkd.exchange.pairs import SaPair
from kinkd.kerberos import messages
from kinkd.kernel.port import Kernel
from kinkd.model import (
    Direction,
    Host,
    IPAddress,
    Ownership,
    PortMatch,
    Selector,
    SpdEntry,
)
from kinkd.policy.match import HostPolicy

XFRM_STAT: Final = Path("/proc/net/xfrm_stat")
_WHOLE: Final = 0xFFFF
_COUNTER: Final = re.compile(r"^(\w+)\s+(\d+)\s*$", re.M)

Facts = dict[str, object]


@dataclass(frozen=True, slots=True)
class Question:
    """Packets from this host to another: what leaves here, by the names of the document."""

    peer: Host
    out: Selector

    @property
    def ends(self) -> tuple[IPAddress, IPAddress]:
        """Ours, and the other."""
        return self.out.source.network_address, self.out.destination.network_address


def read_question(policy: HostPolicy, asked: Mapping[str, object]) -> Question | None:
    """What kinkctl asks: ``source`` and ``destination`` of the packets of the side that asks.

    Either is ``{"name": HOST, "address": ADDRESS}``; ``protocol``, ``source_port`` and
    ``destination_port`` are numbers, 0 where none is meant. None: this host is neither of the two,
    or the other is no host.

    Raises:
        LocalError: it is no question.
    """
    try:
        names, addresses = [], []
        for key in ("source", "destination"):
            end = asked[key]
            names.append(str(end["name"]))  # type: ignore[index]  # what is no mapping is refused
            addresses.append(ip_address(end["address"]))  # type: ignore[index]  # as above
        numbers = [int(str(asked.get(key, 0))) for key in ("protocol", *_PORTS)]
        wanted = Selector(
            ip_network(addresses[0]),
            ip_network(addresses[1]),
            numbers[0],
            *(PortMatch(port, _WHOLE if port else 0) for port in numbers[1:]),
        )
    except (KeyError, TypeError, ValueError):
        raise LocalError(
            'explain wants "source" and "destination", each a name and an address, and numbers of'
            " protocol and ports"
        ) from None
    if policy.me.name not in names or names[0] == names[1]:
        return None
    mine = names.index(policy.me.name)
    peer = policy.host_by_name(names[1 - mine])
    if peer is None:
        return None
    return Question(peer, wanted if mine == 0 else wanted.reversed())


_PORTS: Final = ("source_port", "destination_port")


def facts(
    endpoint: Endpoint,
    kernel: Kernel,
    ownership: Ownership,
    negotiations: Iterable[Mapping[str, object]],
    asked: Mapping[str, object],
    xfrm_stat: Path = XFRM_STAT,
    clock: Callable[[], float] = time.time,
) -> Facts:
    """The answer to the control command "explain": see ``read_question`` for what is asked.

    Raises:
        LocalError: it is no question.
        KernelError: the kernel does not say what it has.
    """
    policy = endpoint.policy
    found: Facts = {
        "host": policy.me.name,
        "policy_version": policy.version,
        "xfrm_errors": xfrm_errors(xfrm_stat),
        "drops": {
            name.removeprefix("drop."): count
            for name, count in sorted(endpoint.counters.items())
            if name.startswith("drop.")
        },
    }
    question = read_question(policy, asked)
    if question is None:
        return {**found, "peer": None}
    return {
        **found,
        "peer": question.peer.name,
        "principals": {
            "ours": [str(policy.me.client), str(policy.me.service)],
            "theirs": [str(question.peer.client), str(question.peer.service)],
        },
        **_of_peer(endpoint.peer(question.peer), clock()),
        **_of_kernel(endpoint, kernel, ownership, question, clock()),
        "last_negotiation": _last(negotiations, question.peer.name),
    }


def _of_peer(peer: Peer, posix: float) -> Facts:
    return {
        "ticket": _ticket(peer, posix),
        "ticket_fault": peer.ticket_fault,
        "user_to_user": peer.user_to_user,
        "clock_offset_seconds": round(peer.clock_offset, 3),
        "epoch": peer.epoch,
        "round_trip_ms": None
        if peer.round_trip.smoothed is None
        else round(peer.round_trip.smoothed * 1000, 1),
    }


def _ticket(peer: Peer, posix: float) -> Facts | None:
    """The ticket that commands go out with; its kvno is that of the key of the other host."""
    ticket = peer.ticket
    if ticket is None or ticket.end <= posix:
        return None
    described: Facts = {
        "server": str(ticket.server),
        "etype": ticket.key.etype,
        "seconds_left": int(ticket.end - posix),
    }
    try:
        header = messages.read_ap_req(ticket.authenticate().ap_req).ticket
    except KinkdError:  # it has ended meanwhile
        return described
    return {**described, "kvno": header.kvno, "encrypted_etype": header.etype}


def _of_kernel(
    endpoint: Endpoint,
    kernel: Kernel,
    ownership: Ownership,
    question: Question,
    posix: float,
) -> Facts:
    there = kernel.policies()
    ways = {"spd_out": (Direction.OUT, question.out)}
    ways["spd_in"] = (_arriving(endpoint.policy.me, question), question.out.reversed())
    found: Facts = {
        name: _entry_facts(deciding(there, *way), ownership) for name, way in ways.items()
    }
    out = ways["spd_out"]
    local, remote = question.ends
    larval = [
        state
        for state in kernel.states()
        if state.larval and (state.id.source, state.id.destination) == (local, remote)
    ]
    pairs = [
        pair
        for pair in endpoint.pairs.of_host(question.peer.name)
        if pair.selector.covers(question.out)
    ]
    return {
        **found,
        "spd_wanted": deciding(endpoint.policy.entries, *out) is not None,
        "sas": [_pair(pair, kernel, posix) for pair in pairs],
        "kernel_waits_for_sa": bool(larval),
    }


def _arriving(me: Host, question: Question) -> Direction:
    """Of what comes for a network behind this host the kernel asks its entries of forwarding."""
    return Direction.IN if question.ends[0] in me.addresses else Direction.FWD


def deciding(
    entries: Iterable[SpdEntry], direction: Direction, packet: Selector
) -> SpdEntry | None:
    """The entry that decides for all these packets: the first by priority."""
    matching = [
        entry for entry in entries if entry.direction is direction and entry.selector.covers(packet)
    ]
    return min(matching, key=lambda entry: entry.priority, default=None)


def _entry_facts(entry: SpdEntry | None, ownership: Ownership) -> Facts | None:
    if entry is None:
        return None
    strict = entry.block or any(not template.optional for template in entry.templates)
    return {
        "entry": entry_words(entry),
        "ours": entry.priority in ownership.priorities,
        "strict": strict,
        "priority": entry.priority,
    }


def entry_words(entry: SpdEntry) -> str:
    """An SPD entry in the order in which ip-xfrm(8) has it."""
    selector = entry.selector
    parts = [f"src {selector.source} dst {selector.destination}"]
    if selector.protocol:
        parts.append(f"proto {selector.protocol}")
    for name, match in (("sport", selector.source_port), ("dport", selector.destination_port)):
        if match.mask:
            mask = "" if match.mask == _WHOLE else f"/{match.mask:#06x}"
            parts.append(f"{name} {match.port}{mask}")
    parts.append(f"dir {entry.direction.name.lower()} priority {entry.priority}")
    if entry.block:
        return " ".join((*parts, "block"))
    for template in entry.templates:
        kind = "use" if template.optional else "required"
        parts.append(
            f"{template.protocol.name.lower()} {template.mode.name.lower()}"
            f" reqid {template.reqid:#x} {kind}"
        )
    return " ".join(parts if entry.templates else (*parts, "allow"))


def _pair(pair: SaPair, kernel: Kernel, posix: float) -> Facts:
    inbound = [kernel.state(sa) for sa in pair.inbound]
    outbound = [kernel.state(sa) for sa in pair.outbound]
    into, out = inbound[0], outbound[0]  # of a bundle, what carries the packets
    return {
        "spi_in": f"{pair.sas[0].inbound:#010x}",
        "spi_out": f"{pair.sas[0].outbound:#010x}",
        "suite": pair.suite,
        "role": pair.role.value,
        "age_seconds": max(0, int(posix) - pair.created),
        "packets_in": into.packets if into else 0,
        "packets_out": out.packets if out else 0,
        "octets_in": into.octets if into else 0,
        "octets_out": out.octets if out else 0,
        "installed": None not in (*inbound, *outbound),
    }


def _last(negotiations: Iterable[Mapping[str, object]], peer: str) -> dict[str, object] | None:
    of_peer = [dict(each) for each in negotiations if each.get("peer") == peer]
    return of_peer[-1] if of_peer else None


def xfrm_errors(path: Path = XFRM_STAT) -> dict[str, int]:
    """What the kernel has counted of packets that IPsec dropped, all peers together, since boot."""
    try:
        text = path.read_text()
    except OSError:  # a kernel without CONFIG_XFRM_STATISTICS
        return {}
    return {name: int(count) for name, count in _COUNTER.findall(text) if int(count)}
