"""The addresses of this machine, to tell a policy that means another from one that means it."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from pyroute2 import IPRoute

from kinkd.model import IPAddress


def local_addresses() -> frozenset[IPAddress]:
    """Every address of every interface of this network namespace."""
    found: set[IPAddress] = set()
    with IPRoute() as routes:
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in routes.get_addr(family=family):
                # On a point-to-point link IFA_ADDRESS is the other end's.
                text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
                if text:
                    found.add(ip_address(text))
    return frozenset(found)


def missing(addresses: tuple[IPAddress, ...]) -> list[str]:
    """A warning in words for each of these that is on no interface."""
    here = local_addresses()
    return [
        f"{address} is an address of this host in the policy, but on no interface of it"
        for address in addresses
        if address not in here
    ]
