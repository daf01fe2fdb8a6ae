"""Tickets from the KDC, fetched beside the event loop."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable

from kinkd.errors import LocalError, TicketUnavailable
from kinkd.kerberos.port import Ticket, TicketSource
from kinkd.model import Principal

_WORKERS = 4

Fetched = Callable[[Principal, Ticket | TicketUnavailable], None]


class TicketWorkers:
    """A few daemon threads: a KDC that does not answer delays neither the loop nor the exit."""

    def __init__(self, source: TicketSource, fetched: Fetched) -> None:
        self._source = source
        self._fetched = fetched
        self._loop = asyncio.get_running_loop()
        self._wanted: queue.SimpleQueue[Principal] = queue.SimpleQueue()
        for number in range(_WORKERS):
            threading.Thread(target=self._work, name=f"ticket-{number}", daemon=True).start()

    def fetch(self, server: Principal) -> None:
        """Ask for a ticket; ``fetched`` is called in the event loop."""
        self._wanted.put(server)

    def _work(self) -> None:
        while True:
            server = self._wanted.get()
            result: Ticket | TicketUnavailable
            try:
                result = self._source.fetch(server)
            except LocalError as error:  # krb5.conf broken meanwhile, say: asked again later
                result = TicketUnavailable(str(error))
            try:
                self._loop.call_soon_threadsafe(self._fetched, server, result)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
