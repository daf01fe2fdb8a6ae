"""What kinkctl shows, as plain data: the stable schema behind ``--json``."""

from __future__ import annotations

import time

from kinkd.exchange.core import Peer
from kinkd.exchange.endpoint import Endpoint
from kinkd.exchange.pairs import SaPair
from kinkd.kernel.port import Kernel
from kinkd.model import Protection


def sas(endpoint: Endpoint, kernel: Kernel) -> dict[str, object]:
    """Every live SA pair, with what the kernel counts."""
    return {"sas": [_pair(pair, kernel) for pair in endpoint.pairs]}


def _pair(pair: SaPair, kernel: Kernel) -> dict[str, object]:
    inbound = [kernel.state(sa) for sa in pair.inbound]
    outbound = [kernel.state(sa) for sa in pair.outbound]
    into, out = inbound[0], outbound[0]  # of a bundle, what carries the packets
    return {
        "peer": pair.host,
        "principal": pair.principal,
        **traffic(pair),
        "spi_in": f"{pair.sas[0].inbound:#010x}",
        "spi_out": f"{pair.sas[0].outbound:#010x}",
        "spis": [
            {
                "protocol": spis.protocol.name.lower(),
                "in": f"{spis.inbound:#010x}",
                "out": f"{spis.outbound:#010x}",
            }
            for spis in pair.sas
        ],
        "suite": pair.suite,
        "etype": pair.etype,
        "role": pair.role.value,
        "age_seconds": max(0, int(time.time()) - pair.created),
        "lifetime_seconds": pair.lifetime.seconds,
        "octets_in": into.octets if into else 0,
        "octets_out": out.octets if out else 0,
        "packets_in": into.packets if into else 0,
        "packets_out": out.packets if out else 0,
        "installed": None not in (*inbound, *outbound),
    }


def traffic(thing: SaPair | Protection) -> dict[str, object]:
    """Between which addresses SAs are, and what they carry from here to there."""
    return {
        "local": str(thing.local),
        "remote": str(thing.remote),
        "mode": thing.mode.name.lower(),
        "udp": thing.udp,
        "source": str(thing.selector.source),
        "destination": str(thing.selector.destination),
    }


def peers(endpoint: Endpoint) -> dict[str, object]:
    """Every host that the policy lets us talk to under protection."""
    rows: dict[str, dict[str, object]] = {}
    for protection in endpoint.policy.protections:
        row = rows.setdefault(
            protection.peer.name,
            {
                "peer": protection.peer.name,
                "principal": str(protection.peer.service),
                "addresses": [],
                "rule": protection.rule,
                "profile": protection.profile.name,
                "sas": len(endpoint.pairs.of_host(protection.peer.name)),
                **_ticket(endpoint.peer(protection.peer)),
            },
        )
        addresses = row["addresses"]
        remote = str(protection.remote)
        if isinstance(addresses, list) and remote not in addresses:
            addresses.append(remote)
    return {"peers": list(rows.values())}


def _ticket(peer: Peer) -> dict[str, object]:
    """The ticket that commands to a peer go out with, and why there is none, or no newer one."""
    ticket = peer.ticket
    described = ticket and {
        "client": str(ticket.client),
        "server": str(ticket.server),
        "etype": ticket.key.etype,
        "octets": ticket.octets,
        "seconds_left": int(ticket.end - time.time()),
    }
    return {
        "user_to_user": peer.user_to_user,
        "ticket": described,
        "ticket_fault": peer.ticket_fault,
        "clock_offset_seconds": round(peer.clock_offset, 3),
    }


def status(
    endpoint: Endpoint, negotiations: list[dict[str, object]], started: float
) -> dict[str, object]:
    """The daemon at a glance."""
    return {
        "host": endpoint.policy.me.name,
        "principal": str(endpoint.policy.me.service),
        "epoch": endpoint.epoch,
        "uptime_seconds": int(time.monotonic() - started),
        "policy_version": endpoint.policy.version,
        "peers": len(endpoint.policy.peers),
        "sas": len(endpoint.pairs),
        "negotiating": endpoint.commands_under_way,
        "waiting": endpoint.acquires_waiting,
        "timers": endpoint.timers,
        "counters": endpoint.counters,
        "last_negotiations": negotiations,
    }
