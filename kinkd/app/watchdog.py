"""A sign of life for the service manager (sd_watchdog_enabled(3)), given for work that was done.

A loop that turns proves little. Before each sign the kernel's SA database answers a request, and
nothing that the core wants done is late. Where that fails there is no sign, and after WatchdogSec=
the service manager starts the daemon anew; SAs and policies stay in the kernel meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from kinkd.app.logs import log
from kinkd.app.notify import notify
from kinkd.errors import KinkdError

LATE_SECONDS = 10.0
"""So late the core's timers may run: a loop that is busy for longer serves nobody."""
_SIGNS = 3  # within the time in which one must come
_AGAIN = 10  # so much sooner is looked again where there was none


def interval() -> float | None:
    """Seconds within which the service manager wants a sign of us; None: it wants none."""
    micros, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not micros.isdecimal() or int(micros) == 0 or pid not in ("", str(os.getpid())):
        return None
    return int(micros) / 1e6


class Watchdog:
    """Gives the signs, as long as ``check`` does not raise."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """From now on, where they are wanted. Called in the loop that is to be watched."""
        seconds = interval()
        if seconds is not None:
            self._beat(seconds / _SIGNS)

    def stop(self) -> None:
        """No more of it."""
        if self._handle is not None:
            self._handle.cancel()

    def _beat(self, seconds: float) -> None:
        pause = seconds
        try:
            self._check()
        except KinkdError as error:
            log(logging.ERROR, "watchdog", reason=str(error))
            pause = seconds / _AGAIN  # what was late a moment ago may be done by then
        else:
            notify("WATCHDOG=1")
        self._handle = asyncio.get_running_loop().call_later(pause, self._beat, seconds)
