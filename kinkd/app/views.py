"""What kinkctl shows, as plain data: the stable schema behind ``--json``."""

from __future__ import annotations

import time

from kinkd.exchange.endpoint import Endpoint
from kinkd.exchange.pairs import SaPair
from kinkd.kernel.port import Kernel


def sas(endpoint: Endpoint, kernel: Kernel) -> dict[str, object]:
    """Every live SA pair, with what the kernel counts."""
    return {"sas": [_pair(pair, kernel) for pair in endpoint.pairs]}


def _pair(pair: SaPair, kernel: Kernel) -> dict[str, object]:
    inbound, outbound = kernel.state(pair.inbound), kernel.state(pair.outbound)
    return {
        "peer": pair.host,
        "principal": pair.principal,
        "local": str(pair.local),
        "remote": str(pair.remote),
        "spi_in": f"{pair.inbound_spi:#010x}",
        "spi_out": f"{pair.outbound_spi:#010x}",
        "suite": pair.suite,
        "etype": pair.etype,
        "role": pair.role.value,
        "age_seconds": max(0, int(time.time()) - pair.created),
        "lifetime_seconds": pair.lifetime.seconds,
        "octets_in": inbound.octets if inbound else 0,
        "octets_out": outbound.octets if outbound else 0,
        "packets_in": inbound.packets if inbound else 0,
        "packets_out": outbound.packets if outbound else 0,
        "installed": inbound is not None and outbound is not None,
    }


def peers(endpoint: Endpoint) -> dict[str, object]:
    """Every host that the policy lets us talk to under protection."""
    rows: dict[str, dict[str, object]] = {}
    for _, remote, protection in endpoint.policy.protections:
        row = rows.setdefault(
            protection.peer.name,
            {
                "peer": protection.peer.name,
                "principal": str(protection.peer.service),
                "addresses": [],
                "rule": protection.rule,
                "profile": protection.profile.name,
                "sas": len(endpoint.pairs.of_host(protection.peer.name)),
            },
        )
        addresses = row["addresses"]
        if isinstance(addresses, list) and str(remote) not in addresses:
            addresses.append(str(remote))
    return {"peers": list(rows.values())}


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
        "peers": len({p.peer.name for _, _, p in endpoint.policy.protections}),
        "sas": len(endpoint.pairs),
        "negotiating": endpoint.commands_under_way,
        "counters": endpoint.counters,
        "last_negotiations": negotiations,
    }
