"""The addresses of this machine: those that can be used, and word of every change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from ipaddress import ip_address

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from kinkd.app.logs import log
from kinkd.model import IPAddress

_NETLINK_ROUTE = 0
_LINK, _IPV4, _IPV6 = 0x1, 0x10, 0x100  # RTMGRP_LINK, _IPV4_IFADDR, _IPV6_IFADDR
_RUNNING = 0x40  # IFF_RUNNING: up, and the other end of the wire is there
_TENTATIVE = 0x40  # IFA_F_TENTATIVE: duplicate address detection is not over
_SETTLE_SECONDS = 0.05  # changes come in bursts
_LONGEST_PAUSE = 10.0  # between two attempts to read them


def local_addresses() -> frozenset[IPAddress]:
    """Every address of every interface of this network namespace that can be used now.

    pyroute2 has an event loop of its own: in a thread that runs one this cannot be called.
    """
    found: set[IPAddress] = set()
    with IPRoute() as routes:
        running = {link["index"] for link in routes.get_links() if link["flags"] & _RUNNING}
        for family in (socket.AF_INET, socket.AF_INET6):
            for message in routes.get_addr(family=family):
                # On a point-to-point link IFA_ADDRESS is the other end's.
                text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
                usable = message["index"] in running and not message["flags"] & _TENTATIVE
                if text and usable:
                    found.add(ip_address(text))
    return frozenset(found)


def missing(addresses: tuple[IPAddress, ...], here: frozenset[IPAddress]) -> list[str]:
    """A warning in words for each of these that is not ``here``."""
    return [
        f"{address} is an address of this host in the policy, but on no interface of it"
        for address in addresses
        if address not in here
    ]


class Watcher:
    """Tells when addresses have become usable, after they were not; in an event loop.

    Args:
        here: what can be used at first.
        mine: which addresses matter.
        up: called with those that are there now and were not before.
    """

    def __init__(
        self,
        here: frozenset[IPAddress],
        mine: Callable[[], tuple[IPAddress, ...]],
        up: Callable[[frozenset[IPAddress]], None],
    ) -> None:
        self._mine = mine
        self._up = up
        self._here = here
        self._looking: asyncio.Task[None] | None = None
        self._again = False
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE
        )
        self._socket.bind((0, _LINK | _IPV4 | _IPV6))

    def start(self) -> None:
        """Listen from now on."""
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._changed)

    def stop(self) -> None:
        """Listen no more."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        if self._looking is not None:
            self._looking.cancel()
        self._socket.close()

    def _changed(self) -> None:
        """Something has; what, is looked up once it has settled. ENOBUFS says no less."""
        with contextlib.suppress(OSError):
            while self._socket.recv(1 << 16):
                pass
        self._again = True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        pause = _SETTLE_SECONDS
        while self._again:
            await asyncio.sleep(pause)
            self._again = False
            try:
                self._compare(await asyncio.to_thread(local_addresses))
            except (OSError, NetlinkError) as error:  # no descriptors left, say
                log(logging.WARNING, "addresses-unknown", reason=str(error))
                self._again, pause = True, min(2 * pause, _LONGEST_PAUSE)

    def _compare(self, here: frozenset[IPAddress]) -> None:
        before, self._here = self._here, here
        mine = frozenset(self._mine())
        for address in (before - self._here) & mine:
            log(logging.WARNING, "address-gone", address=address)
        up = (self._here - before) & mine
        for address in up:
            log(logging.INFO, "address-up", address=address)
        if up:
            self._up(up)
