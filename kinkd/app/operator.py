"""What an administrator asks by kinkctl, carried out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from kinkd.app import explain, recovery, views
from kinkd.app.control import Arguments, Handler
from kinkd.app.logs import log
from kinkd.app.recovery import LONGEST_SUSPENSION
from kinkd.document import Document, Item
from kinkd.errors import LocalError, PeerError
from kinkd.exchange.endpoint import Changes, Endpoint
from kinkd.exchange.pairs import SaPair
from kinkd.kernel.port import Kernel
from kinkd.model import Host, Ownership, Protection
from kinkd.policy.match import HostPolicy

_DELETE_PATIENCE = 5.0  # seconds that shutdown waits for peers to answer a DELETE
_LAST_WORDS = 0.05  # seconds for the answer to go out before the loop ends


@dataclass(frozen=True, slots=True)
class Services:
    """What the operator needs of the daemon.

    ``now`` is the core's clock; ``carry_out`` does what the core wants done; ``deafen`` stops
    listening to network and kernel; ``reload`` reads configuration and policy again; ``policy``
    says which is in force, ``audit`` what it would drop; ``stop`` ends the daemon.
    """

    endpoint: Endpoint
    kernel: Kernel
    ownership: Ownership
    negotiations: Iterable[dict[str, object]]
    now: Callable[[], float]
    carry_out: Callable[[], None]
    deafen: Callable[[], None]
    reload: Callable[..., Awaitable[Changes]]
    policy: Callable[..., dict[str, object]]
    audit: Callable[[], dict[str, object]]
    stop: Callable[[], None]


class Operator:
    """The handlers of the control protocol."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._endpoint = services.endpoint
        self._started = time.monotonic()

    def handlers(self) -> dict[str, Handler]:
        """By the name of the command."""
        return {
            "status": self._status,
            "sas": self._sas,
            "peers": self._peers,
            "initiate": self._initiate,
            "terminate": self._terminate,
            "reload": self._reload,
            "policy": self._show_policy,
            "audit": self._audit,
            "forget": self._forget,
            "break-glass": self._break_glass,
            "explain": self._explain,
            "shutdown": self._shutdown,
        }

    @property
    def _policy(self) -> HostPolicy:
        return self._endpoint.policy

    async def _status(self, _: Arguments) -> dict[str, object]:
        found = views.status(self._endpoint, list(self._services.negotiations), self._started)
        policy = self._services.policy()
        return {
            **found,
            "policy_source": policy["source"],
            "policy_fault": policy["fault"],
            "suspended_seconds": policy["suspended_seconds"],
            "tasks": len(asyncio.all_tasks()),
        }

    async def _sas(self, _: Arguments) -> dict[str, object]:
        return views.sas(self._endpoint, self._services.kernel)

    async def _peers(self, _: Arguments) -> dict[str, object]:
        return views.peers(self._endpoint)

    async def _initiate(self, arguments: Arguments) -> dict[str, object]:
        host = self._host(arguments)
        protections = self._policy.with_host(host.name)
        if not protections:
            raise LocalError(f"no rule of the policy protects traffic with {host.name}")
        if not protections[0].initiates:
            raise LocalError(
                f"by the policy only {host.name} begins: no traffic from here to it is protected"
            )
        results = await asyncio.gather(*map(self._create, protections))
        return {"peer": host.name, "pairs": results}

    async def _create(self, protection: Protection) -> dict[str, object]:
        done: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()

        def ended(pair: SaPair | None, reason: str, _: float) -> None:
            if done.done():  # whoever asked is gone
                return
            row = {**views.traffic(protection), "ok": pair is not None}
            done.set_result(row if pair is not None else {**row, "reason": reason})

        try:
            self._endpoint.initiate(protection, self._services.now(), ended)
        except PeerError as error:
            raise LocalError(str(error)) from error
        self._services.carry_out()
        return await done

    async def _terminate(self, arguments: Arguments) -> dict[str, object]:
        host = self._host(arguments)
        return {"peer": host.name, "sas": await self._delete([host])}

    async def _delete(self, hosts: Iterable[Host]) -> int:
        """Send DELETE for all pairs with these hosts, and wait until it is over."""
        over: list[asyncio.Event] = []
        count = 0
        for host in hosts:
            event = asyncio.Event()
            over.append(event)
            count += self._endpoint.terminate(host, self._services.now(), _setter(event))
        self._services.carry_out()
        await asyncio.gather(*(event.wait() for event in over))
        return count

    async def _reload(self, arguments: Arguments) -> dict[str, object]:
        changes = await self._services.reload(accept_older=arguments.get("accept_older") is True)
        return {
            "policy_version": self._policy.version,
            "entries_changed": changes.entries,
            "sas_deleted": changes.pairs,
        }

    async def _show_policy(self, arguments: Arguments) -> dict[str, object]:
        return self._services.policy(document=arguments.get("document") is True)

    async def _audit(self, _: Arguments) -> dict[str, object]:
        return self._services.audit()

    async def _forget(self, arguments: Arguments) -> dict[str, object]:
        host = self._host(arguments)
        known = self._endpoint.forget(host, self._services.now())
        self._services.carry_out()
        return {"peer": host.name, "known": known}

    async def _break_glass(self, arguments: Arguments) -> dict[str, object]:
        text = arguments.get("time")
        seconds = arguments.get("seconds") if text is None else _seconds(text)
        if type(seconds) is not int or not 0 <= seconds <= LONGEST_SUSPENSION:  # true is no time
            raise LocalError(f"name a time of up to {LONGEST_SUSPENSION // 3600} hours")
        log(
            logging.ERROR,
            "break-glass" if seconds else "break-glass-ended",
            seconds=seconds,
            reason=str(arguments.get("reason", "")),
        )
        now = self._services.now()
        try:
            self._endpoint.suspend(time.time() + seconds if seconds else 0.0, now)
        finally:  # what the kernel refuses is tried again, and is to be known to the next start
            self._services.carry_out()
        return {"suspended_seconds": seconds}

    async def _explain(self, arguments: Arguments) -> dict[str, object]:
        services = self._services
        facts = explain.facts(
            *(services.endpoint, services.kernel, services.ownership),
            *(services.negotiations, arguments),
        )
        until = services.endpoint.forms.suspended_until
        return {**facts, "suspended_seconds": max(0, int(until - time.time()))}

    async def _shutdown(self, arguments: Arguments) -> dict[str, object]:
        deleted = 0
        if arguments.get("delete"):
            self._endpoint.stop_creating(self._services.now())
            deleted = len(self._endpoint.pairs)
            try:
                async with asyncio.timeout(_DELETE_PATIENCE):
                    await self._delete(self._policy.peers)
            except TimeoutError:
                log(logging.WARNING, "delete-unanswered")
            # Nothing that arrives now may put back what is taken away.
            self._services.deafen()
            recovery.remove_everything(self._services.kernel, self._services.ownership)
        asyncio.get_running_loop().call_later(_LAST_WORDS, self._services.stop)
        return {"deleted": deleted}

    def _host(self, arguments: Arguments) -> Host:
        name = str(arguments.get("peer", ""))
        host = self._policy.host_by_name(name)
        if host is None:
            known = ", ".join(peer.name for peer in self._policy.peers)
            raise LocalError(f"{name!r} is no peer's name in the policy; there are {known}")
        return host


def _seconds(text: object) -> int:
    """A time in the words of people: ``"30m"``. Raises DocumentError."""
    return Item(Document("break-glass", "", {}), (), text).duration(1, LONGEST_SUSPENSION)


def _setter(event: asyncio.Event) -> Callable[[float], None]:
    return lambda _: event.set()
