"""The daemon: the one place where sockets, timers, threads and the core meet."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections import deque

from kinkd.app import addresses, hardening, recovery, startup
from kinkd.app.config import Config, resolve_for_host
from kinkd.app.control import ControlServer
from kinkd.app.journal import Journal
from kinkd.app.logs import log
from kinkd.app.notify import notify
from kinkd.app.operator import Operator, Services
from kinkd.app.tickets import Fetch, TicketWorkers
from kinkd.app.udp import UdpSocket, open_esp_in_udp, open_sockets
from kinkd.errors import LocalError, TicketUnavailable
from kinkd.exchange.effects import (
    Command,
    FetchTgt,
    FetchTicket,
    ForgetDebt,
    ForgetPair,
    RecordDebt,
    RecordPair,
    Report,
    ReserveXids,
    Send,
)
from kinkd.kerberos.port import Tgt, Ticket
from kinkd.kernel.port import KernelEvent
from kinkd.policy import sources
from kinkd.policy.match import HostPolicy

_NEGOTIATIONS_SHOWN = 20


class Daemon:
    """One host's kinkd. Build it, then ``await run()``; every start-up fault is a LocalError."""

    def __init__(self, config: Config, policy: HostPolicy) -> None:
        self._config = config
        self._policy = policy
        self._lock = startup.lock_state(config.state_directory)
        self._sockets = open_sockets()
        self._esp_in_udp = open_esp_in_udp(policy)
        self._journal = Journal(config.state_directory / "journal.db")
        self._unwritten: list[Command] = []  # journal entries that could not be written yet
        self._kernel = startup.open_kernel()
        self._negotiations: deque[dict[str, object]] = deque(maxlen=_NEGOTIATIONS_SHOWN)
        self._timer: asyncio.TimerHandle | None = None
        self._stop = asyncio.Event()
        self._deaf = False
        self._endpoint = startup.prepare(config, policy, self._kernel, self._journal)
        self._tickets: TicketWorkers | None = None

    async def run(self) -> None:
        """Serve until told to stop. SAs and policies stay in the kernel: nothing leaks."""
        loop = asyncio.get_running_loop()
        source = startup.ticket_source(self._config, self._policy)
        self._tickets = TicketWorkers(source, self._ticket_fetched)
        operator = Operator(
            Services(
                endpoint=self._endpoint,
                kernel=self._kernel,
                ownership=recovery.Ownership(self._config.reqids, self._config.priorities),
                negotiations=self._negotiations,
                now=self._now,
                carry_out=self._carry_out,
                deafen=self._deafen,
                stop=self._stop.set,
            )
        )
        control = ControlServer(self._config.control_socket, operator.handlers())
        await control.start()
        for udp in self._sockets:
            loop.add_reader(udp.fileno(), self._datagrams, udp)
        loop.add_reader(self._kernel.fileno(), self._kernel_events)
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hangup)
        self._endpoint.start(self._now())
        self._carry_out()  # what the start left to be told to peers, too
        log(logging.INFO, "ready", host=self._policy.me.name, epoch=self._endpoint.epoch)
        notify("READY=1")
        try:
            await self._stop.wait()
        finally:
            notify("STOPPING=1")
            await control.stop()
            self._deafen()
            self._close()

    # What the loop calls. After every event the core's commands are carried out.

    def _now(self) -> float:
        now = time.monotonic()
        self._endpoint.set_posix(time.time() - now)
        return now

    def _datagrams(self, udp: UdpSocket) -> None:
        for datagram, path in udp.receive():
            try:
                self._endpoint.receive(datagram, path, self._now())
            finally:  # the timer is set again, whatever went wrong
                self._carry_out()

    def _kernel_events(self) -> None:
        self._handle(deque(self._kernel.events()))

    def _handle(self, events: deque[KernelEvent]) -> None:
        try:
            while events:
                self._endpoint.kernel_event(events.popleft(), self._now())
        finally:
            if events:  # a fault in one of them is no reason to lose the others
                asyncio.get_running_loop().call_soon(self._handle, events)
            self._carry_out()

    def _ticket_fetched(self, wanted: Fetch, result: Ticket | Tgt | TicketUnavailable) -> None:
        if self._deaf:
            return
        now = self._now()
        try:
            match wanted, result:
                case FetchTicket(server), TicketUnavailable():
                    self._endpoint.ticket_failed(server, result, now)
                case _, TicketUnavailable():
                    self._endpoint.tgt_failed(result, now)
                case _, Tgt():
                    self._endpoint.tgt_ready(result, now)
                case FetchTicket(server), _:
                    self._endpoint.ticket_ready(server, result, now)
        finally:
            self._carry_out()

    def _tick(self) -> None:
        try:
            self._endpoint.tick(self._now())
        finally:
            self._carry_out()

    def _hangup(self) -> None:
        log(logging.WARNING, "reload-unsupported", hint="restart kinkd: SAs and policies survive")

    # What the core wants done.

    def _carry_out(self) -> None:
        for command in self._endpoint.commands():
            match command:
                case Send():
                    self._send(command)
                case FetchTicket() | FetchTgt():
                    if self._tickets is not None:
                        self._tickets.fetch(command)
                case Report():
                    self._report(command)
                case RecordPair() | ForgetPair() | RecordDebt() | ForgetDebt() | ReserveXids():
                    self._unwritten.append(command)
                    self._write_journal()
        self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        when = self._endpoint.next_timer()
        if when is not None and not self._deaf:
            delay = max(0.0, when - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._tick)

    def _write_journal(self) -> bool:
        """Write what is not written yet, in order; False: some of it still is not."""
        try:
            while self._unwritten:
                match self._unwritten[0]:
                    case RecordPair(pair):
                        self._journal.record(pair)
                    case ForgetPair(pair):
                        self._journal.forget(pair)
                    case RecordDebt() as debt:
                        self._journal.owe(debt)
                    case ForgetDebt() as debt:
                        self._journal.paid(debt)
                    case ReserveXids(below):
                        recovery.reserve_xids(self._journal, below)
                del self._unwritten[0]
        except LocalError as error:
            log(logging.ERROR, "journal-unwritable", reason=str(error))
            return False
        return True

    def _send(self, command: Send) -> None:
        # What sending depends on is durable first: an XID used twice under one EPOCH, or an SA
        # that a restart does not know, would be worse than silence. Peers ask again.
        if self._unwritten and not self._write_journal():
            return
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

    def _report(self, command: Report) -> None:
        log(command.level, command.event, **command.fields)
        if command.event in ("sa-established", "create-failed"):
            shown = {name: _plain(value) for name, value in command.fields.items()}
            self._negotiations.append({"event": command.event, **shown})

    # The end.

    def _deafen(self) -> None:
        """Listen to nobody any more; what the control socket asks is still answered."""
        if self._deaf:
            return
        self._deaf = True
        loop = asyncio.get_running_loop()
        for udp in self._sockets:
            loop.remove_reader(udp.fileno())
        loop.remove_reader(self._kernel.fileno())
        self._set_timer()

    def _close(self) -> None:
        for udp in self._sockets:
            udp.close()
        for esp in self._esp_in_udp:
            esp.close()
        self._kernel.close()
        self._journal.close()
        os.close(self._lock)


def _plain(value: object) -> object:
    return value if isinstance(value, int | float | str) else str(value)


def serve(config: Config) -> None:
    """Run the daemon until it is told to stop.

    Raises:
        LocalError, KernelError: why it cannot start, in one line; nothing was applied.
    """
    realm_policy = sources.load_file(str(config.policy_file))
    policy = resolve_for_host(config, realm_policy)
    for warning in (*realm_policy.warnings, *addresses.missing(policy.me.addresses)):
        log(logging.WARNING, "policy-warning", text=warning)
    if config.krb5_config is not None:
        os.environ["KRB5_CONFIG"] = str(config.krb5_config)  # before libkrb5 makes a context
    hardening.forbid_core_dumps()
    if not hardening.lock_memory():
        log(logging.INFO, "memory-not-locked", hint="LimitMEMLOCK=infinity")

    async def main() -> None:
        await Daemon(config, policy).run()

    asyncio.run(main())
