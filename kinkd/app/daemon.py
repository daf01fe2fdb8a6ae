"""The daemon: the one place where sockets, timers, threads and the core meet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections import deque
from ipaddress import ip_address

from kinkd.app import addresses, files, hardening, journal, loading, recovery, resources, startup
from kinkd.app.auditing import Auditor
from kinkd.app.config import Config
from kinkd.app.control import ControlServer
from kinkd.app.journal import Journal
from kinkd.app.loading import Loaded
from kinkd.app.logs import log, set_level
from kinkd.app.notify import notify
from kinkd.app.operator import Operator, Services
from kinkd.app.tickets import Fetch, TicketWorkers
from kinkd.app.udp import EspInUdp, UdpSocket, open_sockets
from kinkd.app.watchdog import LATE_SECONDS, Watchdog
from kinkd.errors import KinkdError, LocalError, TicketUnavailable
from kinkd.exchange.effects import (
    Command,
    FetchTgt,
    FetchTicket,
    ForgetDebt,
    ForgetPair,
    ForgetSecured,
    RecordBurial,
    RecordDebt,
    RecordPair,
    RecordSecured,
    RecordSuspension,
    Report,
    ReserveXids,
    Send,
)
from kinkd.exchange.endpoint import Changes
from kinkd.exchange.timing import TokenBucket
from kinkd.kerberos.port import Tgt, Ticket
from kinkd.kernel.port import KernelEvent, SaId
from kinkd.model import IPAddress, Ownership
from kinkd.policy import cache
from kinkd.policy.sources import Source

_NEGOTIATIONS_SHOWN = 20
_SAID_SECONDS = 60.0  # between two lines about a journal that cannot be written
_NOBODYS = SaId(ip_address("192.0.2.1"), ip_address("192.0.2.2"), 0x100)  # RFC 5737


class Daemon:
    """One host's kinkd. Build it, then ``await run()``; every start-up fault is a LocalError."""

    def __init__(
        self,
        loaded: Loaded,
        source: Source,
        here: frozenset[IPAddress],
        file_before: files.State | None = None,
    ) -> None:
        config, policy = loaded.config, loaded.policy
        self._loaded = loaded
        self._source = source
        self._file_before = file_before
        self._fault = loaded.fault  # why the source's policy is not in force
        self._in_force_since = time.time()
        self._lock = resources.lock_state(config.state_directory)
        self._sockets = open_sockets()
        self._esp_in_udp = EspInUdp(policy)
        self._journal = Journal(config.state_directory / journal.NAME)
        self._send_failures = TokenBucket(rate=2, burst=20)  # of which people are told
        self._unwritable_said = float("-inf")
        self._unwritten: list[Command] = []  # journal entries that could not be written yet
        self._kernel = resources.open_kernel()
        self._negotiations: deque[dict[str, object]] = deque(maxlen=_NEGOTIATIONS_SHOWN)
        self._timer: asyncio.TimerHandle | None = None
        self._stop = asyncio.Event()
        self._deaf = False
        self._endpoint = startup.prepare(config, policy, self._kernel, self._journal)
        self._tickets: TicketWorkers | None = None
        self._watchdog = Watchdog(self._check)
        self._addresses = addresses.Watcher(
            here, lambda: self._endpoint.policy.me.addresses, self._addresses_up
        )
        self._reloading = asyncio.Lock()
        self._hangups: set[asyncio.Task[object]] = set()
        self._auditor = Auditor(self._endpoint)
        self._remember()

    def _remember(self) -> None:
        """Keep the policy that is in force now, for a boot that finds no good one."""
        loaded = self._loaded
        me, version = loaded.policy.me.name, loaded.policy.version
        cached = cache.CachedPolicy(me, loaded.source, loaded.document, version)
        try:
            cache.store(loaded.config.state_directory, cached)
        except LocalError as error:
            log(logging.WARNING, "policy-not-cached", reason=error)

    async def run(self) -> None:
        """Serve until told to stop. SAs and policies stay in the kernel: nothing leaks."""
        loop = asyncio.get_running_loop()
        config = self._loaded.config
        tickets = startup.ticket_source(config, self._loaded.policy)
        self._tickets = TicketWorkers(tickets, self._ticket_fetched)
        operator = Operator(
            Services(
                endpoint=self._endpoint,
                kernel=self._kernel,
                ownership=Ownership(config.reqids, config.priorities),
                negotiations=self._negotiations,
                now=self._now,
                carry_out=self._carry_out,
                deafen=self._deafen,
                reload=self.reload,
                policy=self.policy_state,
                audit=self._auditor.report,
                stop=self._stop.set,
            )
        )
        control = ControlServer(config.control_socket, operator.handlers())
        await control.start()
        for udp in self._sockets:
            loop.add_reader(udp.fileno(), self._datagrams, udp)
        loop.add_reader(self._kernel.fileno(), self._kernel_events)
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._hangup)
        self._addresses.start()
        self._endpoint.start(self._now())
        self._carry_out()  # what the start left to be told to peers, too
        self._watchdog.start()
        self._source.start(lambda: self._source_changed(loop))
        self._auditor.follow(self._loaded)
        watch = self._watch_file(loop)
        log(logging.INFO, "ready", host=self._loaded.policy.me.name, epoch=self._endpoint.epoch)
        notify("READY=1")
        try:
            await self._stop.wait()
        finally:
            notify("STOPPING=1")
            if watch is not None:
                watch.stop()
            self._source.stop()
            self._auditor.stop()
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

    def _addresses_up(self, up: frozenset[IPAddress]) -> None:
        self._endpoint.addresses_up(up, self._now())
        self._carry_out()

    def _check(self) -> None:
        """Whether work is done. Raises LocalError, KernelError."""
        self._kernel.state(_NOBODYS)
        when = self._endpoint.next_timer()
        late = 0.0 if when is None else time.monotonic() - when
        if late > LATE_SECONDS:
            raise LocalError(f"what was due {late:.0f} s ago is not done")

    def _hangup(self) -> None:
        if len(self._hangups) > 1:
            return  # one reads, and one that waits for it will read what is there by then

        async def attempt() -> None:
            with contextlib.suppress(KinkdError):  # it was logged
                await self.reload()

        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(attempt())
        self._hangups.add(task)
        task.add_done_callback(self._hangups.discard)

    def _watch_file(self, loop: asyncio.AbstractEventLoop) -> files.Watch | None:
        """See the policy's file change, where it is in a file."""
        config = self._loaded.config
        if config.directory is not None:
            return None
        return files.Watch(
            str(config.policy_file), loop.call_later, self._hangup, known=self._file_before
        )

    def _source_changed(self, loop: asyncio.AbstractEventLoop) -> None:
        """The policy is another now; called from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(self._hangup)

    async def reload(self, *, accept_older: bool = False) -> Changes:
        """Read configuration and policy again, and go by them: by all of it, or by none.

        ``accept_older``: a policy of an earlier version than the one in force, too.

        Raises:
            LocalError, KernelError: why not, in one line; what was before is in force.
        """
        async with self._reloading:
            notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            try:
                # A realm of thousands of hosts takes seconds to read.
                fresh = await asyncio.to_thread(
                    loading.reload, self._loaded, self._source, accept_older=accept_older
                )
                changes = self._apply(fresh)
            except KinkdError as error:
                self._fault = str(error)
                log(logging.ERROR, "reload-refused", reason=str(error))
                raise
            finally:
                notify("READY=1")
            for warning in fresh.warnings:
                log(logging.WARNING, "policy-warning", text=warning)
            log(
                logging.WARNING if changes.pairs else logging.INFO,
                "reloaded",
                policy_version=fresh.policy.version,
                entries_changed=changes.entries,
                sas_deleted=changes.pairs,
            )
            return changes

    def policy_state(self, *, document: bool = False) -> dict[str, object]:
        """Which policy is in force, and how much of it; with its text where ``document``."""
        forms, now = self._endpoint.forms, time.time()
        return {
            "version": self._loaded.policy.version,
            "source": self._loaded.source,
            "source_state": self._source.state(),
            "age_seconds": int(now - self._in_force_since),
            "fault": self._fault,
            "suspended_seconds": max(0, int(forms.suspended_until - now)),
            "in_clear": sorted({str(remote) for _, remote, _ in forms.clear}),
            "secured": sorted(forms.secured),
            **({"document": self._loaded.document} if document else {}),
        }

    def _apply(self, fresh: Loaded) -> Changes:
        suites = startup.probe(self._kernel, fresh.policy)
        self._esp_in_udp.follow(fresh.policy)
        try:
            changes = self._endpoint.apply(fresh.policy, suites, self._now())
        finally:
            self._carry_out()
        self._loaded = fresh
        self._fault, self._in_force_since = "", time.time()
        self._auditor.follow(fresh)
        set_level(fresh.config.log_level)
        self._remember()
        return changes

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
                case _:
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
                    case RecordBurial() as burial:
                        self._journal.bury(burial)
                    case RecordSecured(host, principal):
                        self._journal.secure(host, principal)
                    case ForgetSecured(host):
                        self._journal.forget_secured(host)
                    case RecordSuspension(until):
                        recovery.record_suspension(self._journal, until)
                    case ReserveXids(below):
                        recovery.reserve_xids(self._journal, below)
                del self._unwritten[0]
        except LocalError as error:
            if time.monotonic() >= self._unwritable_said + _SAID_SECONDS:
                self._unwritable_said = time.monotonic()
                waiting = len(self._unwritten)
                log(logging.ERROR, "journal-unwritable", reason=str(error), entries=waiting)
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
                    if self._send_failures.take(time.monotonic()):
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
        self._addresses.stop()
        self._watchdog.stop()
        self._set_timer()

    def _close(self) -> None:
        for udp in self._sockets:
            udp.close()
        self._esp_in_udp.close()
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
    if config.krb5_config is not None:
        os.environ["KRB5_CONFIG"] = str(config.krb5_config)  # before libkrb5 makes a context
    source = loading.source_of(config)
    file_before = files.state_of(str(config.policy_file))
    loaded = loading.load(config, source)
    if loaded.fault:
        log(logging.ERROR, "policy-of-before", version=loaded.policy.version, reason=loaded.fault)
    here = addresses.local_addresses()
    for warning in (*loaded.warnings, *addresses.missing(loaded.policy.me.addresses, here)):
        log(logging.WARNING, "policy-warning", text=warning)
    hardening.forbid_core_dumps()
    if not hardening.lock_memory():
        log(logging.INFO, "memory-not-locked", hint="LimitMEMLOCK=infinity")

    async def main() -> None:
        await Daemon(loaded, source, here, file_before).run()

    asyncio.run(main())
