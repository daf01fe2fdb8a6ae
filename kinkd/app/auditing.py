"""The audit of a running daemon: looked at by a timer, as long as the policy has anything in it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Final

from kinkd.app.audit import Audit, Instant, in_audit
from kinkd.app.loading import Loaded
from kinkd.app.logs import log
from kinkd.errors import KernelError, LocalError
from kinkd.exchange.endpoint import Endpoint
from kinkd.kernel.capture import Capture
from kinkd.model import IPAddress
from kinkd.policy.exemptions import EXEMPTION_COUNT, Exempt

_PAUSE: Final = 0.25  # seconds between two looks


class Auditor:
    """Has an ``Audit`` while there is something to audit. Called in the daemon's loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._audit: Audit | None = None
        self._fault = ""
        self._handle: asyncio.TimerHandle | None = None

    def follow(self, loaded: Loaded) -> None:
        """Audit what this policy has in audit, from now on."""
        policy, me = loaded.realm, loaded.policy.me.name
        if not in_audit(policy, me):
            self.stop()
            return
        exempt = _exempt(loaded)
        if self._audit is not None:
            self._audit.follow(policy, me, exempt)
            return
        try:
            source = Capture()
        except LocalError as error:
            self._fault = str(error)
            log(logging.ERROR, "audit-blind", reason=self._fault)
            return
        self._fault = ""
        self._audit = Audit(policy, me, source, self._is_protected, exempt)
        self._look()

    def report(self) -> dict[str, object]:
        """What enforcement would have dropped, and how far to trust that: see ``Audit.report``."""
        audited = {} if self._audit is None else self._audit.report()
        return {"active": self._audit is not None, "fault": self._fault, **audited}

    def stop(self) -> None:
        """Look no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._audit is not None:
            self._audit.close()
            self._audit = None

    def _look(self) -> None:
        self._handle = asyncio.get_running_loop().call_later(_PAUSE, self._look)
        if self._audit is not None:
            with contextlib.suppress(KernelError):  # an interface went away
                self._audit.read(Instant(time.monotonic(), time.time()))

    def _is_protected(self, local: IPAddress, remote: IPAddress) -> bool:
        return self._endpoint.pairs.protects(local, remote)


def _exempt(loaded: Loaded) -> list[Exempt]:
    bound = loaded.config.priorities[EXEMPTION_COUNT]
    return [entry.key for entry in loaded.policy.entries if entry.priority < bound]
