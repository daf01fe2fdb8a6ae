"""The daemon: the one place where sockets, timers, threads and the core meet."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from kinkd.app import hardening, recovery, views
from kinkd.app.config import Config, resolve_for_host
from kinkd.app.control import Arguments, ControlServer, Handler
from kinkd.app.journal import Journal
from kinkd.app.logs import LOGGER, log
from kinkd.app.notify import notify
from kinkd.app.tickets import TicketWorkers
from kinkd.app.udp import UdpSocket, open_sockets
from kinkd.errors import KernelError, LocalError, PeerError, TicketUnavailable
from kinkd.exchange.core import Start
from kinkd.exchange.effects import (
    Command,
    FetchTicket,
    ForgetPair,
    RecordPair,
    Report,
    ReserveXids,
    Send,
)
from kinkd.exchange.endpoint import Endpoint
from kinkd.exchange.pairs import SaPair
from kinkd.kerberos.gss import GssAcceptor, GssTicketSource
from kinkd.kerberos.port import Ticket
from kinkd.kernel.socket import XfrmSocket
from kinkd.model import Host, IPAddress, Principal, Suite
from kinkd.policy import sources
from kinkd.policy.match import HostPolicy

_REPLAY_CACHE_BIRTH = "replay-cache-birth"
_NEGOTIATIONS_SHOWN = 20
_DELETE_PATIENCE = 5.0  # seconds that shutdown waits for peers to answer a DELETE


class Daemon:
    """One host's kinkd. Build it, then ``await run()``; every start-up fault is a LocalError."""

    def __init__(self, config: Config, policy: HostPolicy) -> None:
        self._config = config
        self._policy = policy
        self._started = time.monotonic()
        self._journal = Journal(config.state_directory / "journal.db")
        self._kernel = XfrmSocket()
        self._sockets: list[UdpSocket] = []
        self._negotiations: deque[dict[str, object]] = deque(maxlen=_NEGOTIATIONS_SHOWN)
        self._timer: asyncio.TimerHandle | None = None
        self._stop = asyncio.Event()
        self._ownership = recovery.Ownership(config.reqids, config.priorities)
        self._endpoint = self._make_endpoint()
        self._tickets: TicketWorkers | None = None

    async def run(self) -> None:
        """Serve until told to stop. SAs and policies stay in the kernel (DESIGN: no leak)."""
        loop = asyncio.get_running_loop()
        self._sockets = open_sockets()
        source = GssTicketSource(str(self._config.keytab), self._policy.me.client)
        self._tickets = TicketWorkers(source, self._ticket_fetched)
        recovery.install_policies(self._kernel, self._policy, self._ownership)
        control = ControlServer(self._config.control_socket, self._handlers())
        await control.start()
        for udp in self._sockets:
            loop.add_reader(udp.fileno(), self._datagrams, udp)
        loop.add_reader(self._kernel.fileno(), self._kernel_events)
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hangup)
        log(logging.INFO, "ready", host=self._policy.me.name, epoch=self._endpoint.epoch)
        notify("READY=1")
        try:
            await self._stop.wait()
        finally:
            notify("STOPPING=1")
            await control.stop()
            self._close(loop)

    def _make_endpoint(self) -> Endpoint:
        """Everything that must be right before we claim to be ready."""
        state = self._config.state_directory
        replay_cache = state / "rcache"
        acceptor = GssAcceptor(
            str(self._config.keytab), str(replay_cache), self._replay_cache_birth(replay_cache)
        )
        suites = {family: self._probe(family) for family in self._families()}
        _set_larval_drop()
        recovered = recovery.recover(self._kernel, self._journal, self._ownership)
        start = Start(recovered.epoch, recovered.first_xid, suites, secrets.token_bytes)
        endpoint = Endpoint(self._policy, self._kernel, acceptor, start)
        endpoint.adopt(recovered.pairs)
        log(
            logging.INFO,
            "recovered",
            epoch=recovered.epoch,
            adopted=len(recovered.pairs),
            removed=recovered.removed,
        )
        return endpoint

    def _replay_cache_birth(self, path: Path) -> float:
        """Authenticators from before the replay cache's birth may be replays: they are refused."""
        birth = self._journal.meta(_REPLAY_CACHE_BIRTH)
        if birth is None or not path.exists():
            birth = int(time.time())
            self._journal.set_meta(_REPLAY_CACHE_BIRTH, birth)
        return float(birth)

    def _families(self) -> set[int]:
        return {local.version for local, _, _ in self._policy.protections}

    def _probe(self, family: int) -> frozenset[str]:
        """The suites of the policy that this kernel has; none at all: we cannot serve."""
        wanted: dict[str, Suite] = {}
        for _, _, protection in self._policy.protections:
            wanted.update((suite.name, suite) for suite in protection.profile.suites)
        known: set[str] = set()
        refusal = ""
        for name, suite in wanted.items():
            try:
                self._kernel.probe(suite, family)
                known.add(name)
            except KernelError as error:
                refusal = str(error)
                log(logging.WARNING, "suite-unavailable", suite=name, family=family, reason=refusal)
        if wanted and not known:
            raise LocalError(
                f"this kernel has no ESP for IPv{family} with any suite of the policy: {refusal}"
            )
        return frozenset(known)

    # What the loop calls. After every event the core's commands are carried out.

    def _now(self) -> float:
        now = time.monotonic()
        self._endpoint.set_posix(time.time() - now)
        return now

    def _datagrams(self, udp: UdpSocket) -> None:
        for datagram, path in udp.receive():
            self._endpoint.receive(datagram, path, self._now())
            self._carry_out()

    def _kernel_events(self) -> None:
        for event in self._kernel.events():
            self._endpoint.kernel_event(event, self._now())
        self._carry_out()

    def _ticket_fetched(self, server: Principal, result: Ticket | TicketUnavailable) -> None:
        if isinstance(result, TicketUnavailable):
            self._endpoint.ticket_failed(server, str(result), self._now())
        else:
            self._endpoint.ticket_ready(server, result, self._now())
        self._carry_out()

    def _tick(self) -> None:
        self._endpoint.tick(self._now())
        self._carry_out()

    def _carry_out(self) -> None:
        for command in self._endpoint.commands():
            self._carry_out_one(command)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = self._endpoint.next_timer()
        if when is not None:
            delay = max(0.0, when - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _carry_out_one(self, command: Command) -> None:
        match command:
            case Send():
                self._send(command)
            case FetchTicket(server):
                if self._tickets is not None:
                    self._tickets.fetch(server)
            case RecordPair(pair):
                self._journal.record(pair)
            case ForgetPair(pair):
                self._journal.forget(pair)
            case ReserveXids(below):
                recovery.reserve_xids(self._journal, below)
            case Report(level, event, fields):
                log(level, event, **fields)
                if event in ("sa-established", "create-failed"):
                    shown = {name: _plain(value) for name, value in fields.items()}
                    self._negotiations.append({"event": event, **shown})

    def _send(self, command: Send) -> None:
        family = socket.AF_INET if command.path.local.version == 4 else socket.AF_INET6
        for udp in self._sockets:
            if udp.family == family:
                try:
                    udp.send(command.datagram, command.path)
                except OSError as error:  # sent again when the timer T runs out
                    log(
                        logging.WARNING,
                        "send-failed",
                        peer=command.path.remote,
                        octets=len(command.datagram),
                        reason=error.strerror,
                    )

    def _hangup(self) -> None:
        log(logging.WARNING, "reload-unsupported", hint="restart kinkd: SAs and policies survive")

    def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for udp in self._sockets:
            loop.remove_reader(udp.fileno())
            udp.close()
        loop.remove_reader(self._kernel.fileno())
        self._kernel.close()
        self._journal.close()

    # What kinkctl asks.

    def _handlers(self) -> dict[str, Handler]:
        return {
            "status": self._answer_status,
            "sas": self._answer_sas,
            "peers": self._answer_peers,
            "initiate": self._answer_initiate,
            "terminate": self._answer_terminate,
            "shutdown": self._answer_shutdown,
        }

    async def _answer_status(self, _: Arguments) -> dict[str, object]:
        return views.status(self._endpoint, list(self._negotiations), self._started)

    async def _answer_sas(self, _: Arguments) -> dict[str, object]:
        return views.sas(self._endpoint, self._kernel)

    async def _answer_peers(self, _: Arguments) -> dict[str, object]:
        return views.peers(self._endpoint)

    async def _answer_initiate(self, arguments: Arguments) -> dict[str, object]:
        host = self._host(arguments)
        pairs = [(lo, re) for lo, re, p in self._policy.protections if p.peer.name == host.name]
        if not pairs:
            raise LocalError(f"no rule of the policy protects traffic with {host.name}")
        results = await asyncio.gather(*(self._initiate(local, remote) for local, remote in pairs))
        return {"peer": host.name, "pairs": results}

    async def _initiate(self, local: IPAddress, remote: IPAddress) -> dict[str, object]:
        done: asyncio.Future[dict[str, object]] = asyncio.get_running_loop().create_future()

        def ended(pair: SaPair | None, reason: str, _: float) -> None:
            if done.done():  # whoever asked is gone
                return
            row = {"local": str(local), "remote": str(remote), "ok": pair is not None}
            done.set_result(row if pair is not None else {**row, "reason": reason})

        try:
            self._endpoint.initiate(local, remote, self._now(), ended)
        except PeerError as error:
            raise LocalError(str(error)) from error
        self._carry_out()
        return await done

    async def _answer_terminate(self, arguments: Arguments) -> dict[str, object]:
        host = self._host(arguments)
        return {"peer": host.name, "sas": await self._terminate([host])}

    async def _terminate(self, hosts: list[Host]) -> int:
        """Send DELETE for all pairs with these hosts, and wait until it is over."""
        over: list[asyncio.Event] = []
        count = 0
        for host in hosts:
            event = asyncio.Event()
            over.append(event)
            count += self._endpoint.terminate(host, self._now(), _setter(event))
        self._carry_out()
        await asyncio.gather(*(event.wait() for event in over))
        return count

    async def _answer_shutdown(self, arguments: Arguments) -> dict[str, object]:
        deleted = 0
        if arguments.get("delete"):
            self._endpoint.stop_creating()
            deleted = len(self._endpoint.pairs)
            try:
                async with asyncio.timeout(_DELETE_PATIENCE):
                    await self._terminate(list(self._policy.peers))
            except TimeoutError:
                log(logging.WARNING, "delete-unanswered")
            recovery.remove_everything(self._kernel, self._ownership)
        # The answer goes out before the loop ends.
        asyncio.get_running_loop().call_later(0.05, self._stop.set)
        return {"deleted": deleted}

    def _host(self, arguments: Arguments) -> Host:
        name = str(arguments.get("peer", ""))
        host = self._policy.host_by_name(name)
        if host is None:
            known = ", ".join(peer.name for peer in self._policy.peers)
            raise LocalError(f"no host {name!r} in the policy; there are {known}")
        return host


def _setter(event: asyncio.Event) -> Callable[[float], None]:
    return lambda _: event.set()


def _plain(value: object) -> object:
    return value if isinstance(value, int | float | str) else str(value)


def _set_larval_drop() -> None:
    """Have the kernel hold the first packets instead of dropping them, if we may say so."""
    sysctl = Path("/proc/sys/net/core/xfrm_larval_drop")
    try:
        if sysctl.read_text().strip() != "0":
            sysctl.write_text("0")
    except OSError:
        log(
            logging.WARNING,
            "larval-drop",
            hint="packets are lost while an SA is made: sysctl net.core.xfrm_larval_drop=0",
        )


def serve(config: Config) -> None:
    """Run the daemon until it is told to stop.

    Raises:
        LocalError, KernelError: why it cannot start, in one line; nothing was applied.
    """
    realm_policy = sources.load_file(str(config.policy_file))
    policy = resolve_for_host(config, realm_policy)
    for warning in realm_policy.warnings:
        log(logging.WARNING, "policy-warning", text=warning)
    if config.krb5_config is not None:
        os.environ["KRB5_CONFIG"] = str(config.krb5_config)  # before libkrb5 makes a context
    hardening.forbid_core_dumps()
    if not hardening.lock_memory():
        LOGGER.info("memory-not-locked", extra={"fields": {"hint": "LimitMEMLOCK=infinity"}})

    async def main() -> None:
        await Daemon(config, policy).run()

    asyncio.run(main())
