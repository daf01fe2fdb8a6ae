"""Tickets from the KDC, fetched beside the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import Callable

from kinkd.app.logs import log
from kinkd.errors import KinkdError, TicketUnavailable
from kinkd.exchange.effects import FetchTgt, FetchTicket
from kinkd.kerberos.port import Tgt, Ticket, TicketSource

_WORKERS = 8
_OF_ONE_REALM = 3
"""Requests to one realm at once: where its KDC does not answer, the other realms have theirs."""

Fetch = FetchTicket | FetchTgt
Fetched = Callable[[Fetch, Ticket | Tgt | TicketUnavailable], None]


class _Requests:
    """What waits for a worker: first come, first served, but for realms that have enough."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Fetch] = []
        self._busy: Counter[str] = Counter()

    def put(self, wanted: Fetch) -> None:
        with self._changed:
            self._waiting.append(wanted)
            self._changed.notify()

    def take(self) -> Fetch:
        """The next one; blocks until there is one. Say ``done`` of it."""
        with self._changed:
            while True:
                for index, wanted in enumerate(self._waiting):
                    if self._busy[_realm(wanted)] < _OF_ONE_REALM:
                        del self._waiting[index]
                        self._busy[_realm(wanted)] += 1
                        return wanted
                self._changed.wait()

    def done(self, wanted: Fetch) -> None:
        with self._changed:
            self._busy[_realm(wanted)] -= 1
            self._changed.notify()


def _realm(wanted: Fetch) -> str:
    return wanted.server.realm if isinstance(wanted, FetchTicket) else ""


class TicketWorkers:
    """A few daemon threads: a KDC that does not answer delays neither the loop nor the exit."""

    def __init__(self, source: TicketSource, fetched: Fetched) -> None:
        self._source = source
        self._fetched = fetched
        self._loop = asyncio.get_running_loop()
        self._requests = _Requests()
        for number in range(_WORKERS):
            threading.Thread(target=self._work, name=f"ticket-{number}", daemon=True).start()

    def fetch(self, wanted: Fetch) -> None:
        """Ask for a ticket; ``fetched`` is called in the event loop."""
        self._requests.put(wanted)

    def _work(self) -> None:
        while True:
            wanted = self._requests.take()
            result: Ticket | Tgt | TicketUnavailable
            try:
                result = self._carry_out(wanted)
            except TicketUnavailable as error:
                result = error
            except KinkdError as error:  # krb5.conf broken meanwhile, say: asked again later
                result = TicketUnavailable(str(error))
            except Exception as error:  # noqa: BLE001  # one fault must not cost a peer all tickets
                fault = f"internal error: {type(error).__name__}"
                log(logging.ERROR, "internal-error", reason=fault)
                result = TicketUnavailable(fault)
            self._requests.done(wanted)
            try:
                self._loop.call_soon_threadsafe(self._fetched, wanted, result)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _carry_out(self, wanted: Fetch) -> Ticket | Tgt:
        match wanted:
            case FetchTicket(server, tgt):
                return self._source.fetch(server, tgt)
            case FetchTgt():
                return self._source.tgt()
