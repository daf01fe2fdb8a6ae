"""The policy of a daemon that runs: what its source and its administrator change, and break-glass.

The daemon is a real one, its control socket, journal and cache too; kernel, KDC and network are
not.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kinkd.app import config, daemon, loading, protocol, resources, startup
from kinkd.app.daemon import Daemon
from kinkd.document import Document
from kinkd.errors import KernelError, LocalError, TicketUnavailable
from kinkd.exchange.core import Start
from kinkd.exchange.effects import RecordSuspension, Report
from kinkd.exchange.endpoint import Endpoint
from kinkd.exchange.forms import Forms
from kinkd.kerberos.offline import OfflineAcceptor
from kinkd.kernel.memory import MemoryKernel
from kinkd.keying.algorithms import SUITES
from kinkd.model import Principal, SpdEntry, SpdKey
from kinkd.policy import cache, reader, sources
from tests.support.pair import OWNERSHIP, POSIX, Node, World, passes

PATIENCE = 20.0  # seconds until something that is to come is taken to be lost

POLICY = """
schema = 1
version = {version}
realm = "EXAMPLE.TEST"
[hosts.alice]
fqdn = "alice.example.test"
addresses = ["192.0.2.10"]
[hosts.bob]
fqdn = "bob.example.test"
addresses = ["192.0.2.11"]
[hosts.carol]
fqdn = "carol.example.test"
addresses = ["192.0.2.12"]
[[rules]]
name = "carol"
from = "alice"
to = "carol"
action = "block"
[[rules]]
name = "all"
from = "all"
to = "all"
action = "{action}"
"""


def document(version: int, action: str = "require") -> str:
    return POLICY.format(version=version, action=action)


@dataclass
class Held:
    """A source whose policy a test holds in its hand."""

    text: str
    name: str = "the directory"
    error: str = ""
    loads: int = 0
    changed: Callable[[], None] = field(default=lambda: None)
    stopped: bool = False

    def load(self) -> sources.Loaded:
        self.loads += 1
        if self.error:
            raise LocalError(f"{self.name}: {self.error}")
        parsed = reader.read(Document.parse(self.name, self.text.encode()))
        return sources.Loaded(parsed, self.text)

    def start(self, changed: Callable[[], None]) -> None:
        self.changed = changed

    def stop(self) -> None:
        self.stopped = True

    def state(self) -> dict[str, object]:
        return {"kind": "held", "loads": self.loads}

    def change_in_a_thread(self) -> None:
        thread = threading.Thread(target=self.changed)
        thread.start()
        thread.join()


class OpenKernel(MemoryKernel):
    """One whose events a loop can wait for: there are none."""

    def __init__(self) -> None:
        super().__init__(posix=time.time())
        self.refuses = False
        self.made_strict = False
        self._strict: set[SpdKey] = set()  # that were so once
        self._ends = socket.socketpair()

    def fileno(self) -> int:
        return self._ends[0].fileno()

    def close(self) -> None:
        """It outlives the daemon."""

    def write_policy(self, entry: SpdEntry) -> None:
        if self.refuses and entry.templates:
            raise KernelError(errno.EINVAL, "NEWPOLICY")
        super().write_policy(entry)
        if entry.block or any(not template.optional for template in entry.templates):
            self._strict.add(entry.key)
            self.made_strict = True

    def is_strict(self) -> bool:
        """Whether what the policy protects or blocks is; all of it, or none."""
        (answer,) = {
            entry.block or not all(template.optional for template in entry.templates)
            for entry in self.policies()
            if entry.key in self._strict
        }
        return answer


class NoKdc:
    """There is none to be reached."""

    def fetch(self, server: Principal, tgt: bytes | None = None) -> object:
        raise TicketUnavailable("KDC unreachable")

    def tgt(self) -> object:
        raise TicketUnavailable("KDC unreachable")


@pytest.fixture
def kernel() -> OpenKernel:
    return OpenKernel()


@pytest.fixture
def directory(tmp_path: Path, kernel: OpenKernel, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where configuration, state and control socket are; kernel, KDC and network stood in for."""
    (tmp_path / "kinkd.toml").write_text(
        f'[host]\nname = "alice"\n[state]\ndirectory = "{tmp_path}"\n'
        f'[control]\nsocket = "{tmp_path}/s"\n'
    )
    monkeypatch.setattr(daemon, "open_sockets", list)
    monkeypatch.setattr(resources, "open_kernel", lambda: kernel)
    monkeypatch.setattr(startup, "GssAcceptor", lambda *_: OfflineAcceptor([], time.time))
    monkeypatch.setattr(startup, "ticket_source", lambda *_: NoKdc())
    monkeypatch.setattr(startup, "_set_larval_drop", lambda: None)
    return tmp_path


class Living:
    """A daemon that runs, and its control socket."""

    def __init__(self, directory: Path) -> None:
        self._socket = str(directory / "s")

    async def ask(self, command: str, **arguments: object) -> dict[str, object]:
        return await asyncio.to_thread(protocol.ask, self._socket, command, PATIENCE, **arguments)

    async def policy(self) -> dict[str, object]:
        return await self.ask("policy")

    async def until(self, reached: Callable[[dict[str, object]], bool]) -> dict[str, object]:
        """Wait until the policy is like that."""
        async with asyncio.timeout(PATIENCE):
            while not reached(found := await self.policy()):
                await asyncio.sleep(0.01)
        return found


@asynccontextmanager
async def living(directory: Path, source: sources.Source) -> AsyncIterator[Living]:
    """A life of the daemon, from its start to its end."""
    loaded = loading.load(config.load(directory / "kinkd.toml"), source)
    made = Daemon(loaded, source, frozenset())
    life = asyncio.create_task(made.run())
    try:
        while not (directory / "s").exists():
            await asyncio.sleep(0.01)
            if life.done():
                life.result()
        yield Living(directory)
    finally:
        made._stop.set()
        await life


def run(test: Coroutine[None, None, None]) -> None:
    asyncio.run(test)


# --- which policy -------------------------------------------------------------------------------


def test_an_older_policy_is_refused_until_an_administrator_says_so(
    directory: Path, kernel: OpenKernel
) -> None:
    source = Held(document(7))

    async def test() -> None:
        async with living(directory, source) as kinkd:
            source.text = document(3, "clear")
            before, cached = kernel.policies(), (directory / "policy-cache.json").read_bytes()
            refusal = (
                "the directory: version 3 is older than version 7, which is the last that was in"
                " force on this host: a copy of before? If it is meant, run kinkctl reload"
                " --accept-older"
            )
            for arguments in ({}, {"accept_older": False}):
                with pytest.raises(LocalError) as caught:
                    await kinkd.ask("reload", **arguments)
                assert str(caught.value) == refusal
            found = await kinkd.policy()
            assert (found["version"], found["fault"]) == (7, refusal)
            assert kernel.policies() == before
            assert (directory / "policy-cache.json").read_bytes() == cached

            taken = await kinkd.ask("reload", accept_older=True)
            assert taken["policy_version"] == 3
            found = await kinkd.policy()
            assert (found["version"], found["fault"]) == (3, "")
            assert kernel.policies() != before

    run(test())
    # It is what counts from now on, over a new start, too.
    assert cache.load(directory).document == document(3, "clear")
    assert cache.version_in_force(directory) == 3
    found = loading.load(config.load(directory / "kinkd.toml"), source)
    assert (found.policy.version, found.fault) == (3, "")


def test_a_start_without_its_source_says_so_until_that_is_mended(
    directory: Path, kernel: OpenKernel
) -> None:
    source = Held(document(7))

    async def one_life() -> None:
        async with living(directory, source):
            pass

    async def test() -> None:
        source.error = "no answer"
        async with living(directory, source) as kinkd:
            found = await kinkd.policy()
            assert (found["version"], found["fault"]) == (7, "the directory: no answer")
            assert kernel.is_strict()
            source.error = ""
            await kinkd.ask("reload")
            assert (await kinkd.policy())["fault"] == ""

    run(one_life())
    assert source.stopped
    run(test())
    assert cache.version_in_force(directory) == 7


def test_what_a_source_tells_from_its_thread_is_taken(directory: Path, kernel: OpenKernel) -> None:
    source = Held(document(1))

    async def test() -> None:
        async with living(directory, source) as kinkd:
            source.text = document(2, "clear")
            source.change_in_a_thread()
            found = await kinkd.until(lambda found: found["version"] == 2)
            assert found["source"] == "the directory"
            assert not any(entry.templates for entry in kernel.policies())

    run(test())
    source.change_in_a_thread()  # nobody is there any more: no fault of the source's
    assert cache.version_in_force(directory) == 2


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (document(1, "clear"), "", "version 1 is older than version 2"),
        (document(3, "nonsense"), "", "nonsense"),
        ("version = \n", "", "not TOML"),
        (document(3, "clear").replace("alice", "anna"), "", '"alice" is no host of'),
        ("", "no answer", "no answer"),
    ],
)
def test_what_is_refused_leaves_everything_as_it_was(
    directory: Path, kernel: OpenKernel, text: str, error: str, said: str
) -> None:
    source = Held(document(2))

    async def test() -> None:
        async with living(directory, source) as kinkd:
            first = await kinkd.policy()
            before, cached = kernel.policies(), (directory / "policy-cache.json").read_bytes()
            source.text, source.error = text, error
            source.change_in_a_thread()
            found = await kinkd.until(lambda found: found["fault"] != "")
            assert said in str(found["fault"])
            assert "\n" not in str(found["fault"])
            assert (found["version"], found["source"]) == (first["version"], first["source"])
            assert kernel.policies() == before
            assert (directory / "policy-cache.json").read_bytes() == cached

            source.text, source.error = document(3), ""
            source.change_in_a_thread()
            found = await kinkd.until(lambda found: found["version"] == 3)
            assert found["fault"] == ""

    run(test())


def test_what_the_kernel_refuses_is_a_fault_and_the_old_policy_stays(
    directory: Path, kernel: OpenKernel
) -> None:
    source = Held(document(1, "clear"))

    async def test() -> None:
        async with living(directory, source) as kinkd:
            before = set(kernel.policies())
            source.text = document(2)
            kernel.refuses = True
            with pytest.raises(LocalError, match="NEWPOLICY"):
                await kinkd.ask("reload")
            found = await kinkd.policy()
            assert found["version"] == 1
            assert "NEWPOLICY" in str(found["fault"])
            assert set(kernel.policies()) == before
            kernel.refuses = False
            await kinkd.ask("reload")
            assert (await kinkd.policy())["fault"] == ""

    run(test())


def test_a_source_that_tells_much_is_read_no_more_often_than_it_takes(
    directory: Path, kernel: OpenKernel
) -> None:
    source = Held(document(1))

    async def test() -> None:
        async with living(directory, source) as kinkd:
            before = source.loads
            for version in range(2, 200):
                source.text = document(version)
                source.changed()
            await kinkd.until(lambda found: found["version"] == 199)
            assert 1 <= source.loads - before <= 2

    run(test())


def test_a_change_while_the_one_before_is_read_is_not_lost(
    directory: Path, kernel: OpenKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Held(document(1))
    reading, go_on = threading.Event(), threading.Event()
    load = source.load

    def slow() -> sources.Loaded:
        found = load()
        reading.set()
        go_on.wait(PATIENCE)
        return found

    async def test() -> None:
        async with living(directory, source) as kinkd:
            monkeypatch.setattr(source, "load", slow)
            source.text = document(2)
            source.change_in_a_thread()
            await asyncio.to_thread(reading.wait, PATIENCE)
            source.text = document(3)  # which that load has not seen
            source.change_in_a_thread()
            assert (await kinkd.policy())["version"] == 1
            go_on.set()
            await kinkd.until(lambda found: found["version"] == 3)

    run(test())


def test_the_same_version_with_another_text_is_said(
    directory: Path, kernel: OpenKernel, caplog: pytest.LogCaptureFixture
) -> None:
    source = Held(document(1))

    async def test() -> None:
        async with living(directory, source) as kinkd:
            source.text = document(1, "clear")
            await kinkd.ask("reload")

    with caplog.at_level(logging.WARNING, "kinkd"):
        run(test())
    texts = [getattr(record, "fields", {}).get("text", "") for record in caplog.records]
    assert any(text.startswith("the directory has changed, and its version") for text in texts)


# --- break-glass --------------------------------------------------------------------------------


def test_break_glass_lasts_over_a_restart_until_it_is_ended(
    directory: Path, kernel: OpenKernel
) -> None:
    source = Held(document(1))

    async def test() -> None:
        async with living(directory, source) as kinkd:
            assert kernel.is_strict()
            assert (await kinkd.policy())["suspended_seconds"] == 0
            await kinkd.ask("break-glass", seconds=3600, reason="the KDC is on fire")
            assert not kernel.is_strict()
            source.text = document(2)
            await kinkd.ask("reload")  # another policy is not enforced, either
            assert not kernel.is_strict()
        kernel.made_strict = False
        async with living(directory, source) as kinkd:
            assert not kernel.is_strict()
            assert not kernel.made_strict  # not for a moment
            left = (await kinkd.policy())["suspended_seconds"]
            assert isinstance(left, int)
            assert 0 < left <= 3600
            await kinkd.ask("break-glass", seconds=0)
            assert kernel.is_strict()
            assert (await kinkd.policy())["suspended_seconds"] == 0
        async with living(directory, source) as kinkd:
            assert kernel.is_strict()
            assert (await kinkd.policy())["suspended_seconds"] == 0

    run(test())


def test_break_glass_is_loud(
    directory: Path, kernel: OpenKernel, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with living(directory, Held(document(1))) as kinkd:
            await kinkd.ask("break-glass", seconds=60, reason="why\nnot")

    with caplog.at_level(logging.INFO, "kinkd"):
        run(test())
    said = {r.getMessage(): (r.levelno, getattr(r, "fields", {})) for r in caplog.records}
    level, fields = said["break-glass"]
    assert (level, fields) == (logging.ERROR, {"seconds": 60, "reason": "why\nnot"})
    level, fields = said["enforcement-suspended"]
    assert (level, fields["hint"]) == (logging.ERROR, "kinkctl break-glass --end")


@pytest.mark.parametrize("seconds", [None, -1, 86401, 10**30, 1.5, "60", True, [60]])
def test_break_glass_takes_no_nonsense(
    directory: Path, kernel: OpenKernel, seconds: object
) -> None:
    async def test() -> None:
        async with living(directory, Held(document(1))) as kinkd:
            with pytest.raises(LocalError, match="name a time of up to 24 hours"):
                await kinkd.ask("break-glass", seconds=seconds)
            assert kernel.is_strict()

    run(test())


def entries_of(node: Node) -> set[SpdEntry]:
    return set(node.kernel.policies())


def relaxed(node: Node) -> set[SpdEntry]:
    return {entry.relaxed() for entry in node.endpoint.policy.entries}


def test_the_endpoint_ends_a_suspension_in_time_and_reminds_of_it() -> None:
    world = World()
    alice = world["alice"]
    strict = set(alice.endpoint.policy.entries)
    assert entries_of(alice) == strict != relaxed(alice)
    alice.endpoint.suspend(POSIX + 600.5, world.now)
    assert entries_of(alice) == relaxed(alice)
    assert passes(world, "alice", "bob") != "clear"  # the far end enforces
    world["bob"].endpoint.suspend(POSIX + 600.5, world.now)
    world.settle()
    world.run(600)  # the reconciler has been there, and minds nothing
    assert entries_of(alice) == relaxed(alice)
    said = [fields["seconds_left"] for fields in alice.events("enforcement-suspended")]
    assert len(said) == 11  # once a minute, and as it began
    assert said == sorted(said, reverse=True)  # type: ignore[type-var]  # numbers
    assert not alice.events("enforcement-resumed")
    world.run(1)
    assert entries_of(alice) == strict
    assert len(alice.events("enforcement-resumed")) == 1
    assert alice.endpoint.forms.suspended_until == 0.0
    world.run(600)
    assert len(alice.events("enforcement-suspended")) == 11


def test_a_second_word_on_a_suspension_replaces_the_first() -> None:
    world = World()
    alice = world["alice"]
    for left in (60.0, 3000.0):
        alice.endpoint.suspend(POSIX + left, world.now)
    world.run(2999)
    assert entries_of(alice) == relaxed(alice)
    world.run(2)
    assert entries_of(alice) == set(alice.endpoint.policy.entries)
    alice.endpoint.suspend(POSIX + world.now + 3000, world.now)
    alice.endpoint.suspend(POSIX + world.now - 1, world.now)  # which is past
    assert entries_of(alice) == set(alice.endpoint.policy.entries)
    world.settle()
    said = len(alice.events("enforcement-suspended"))
    world.run(4000)
    assert len(alice.events("enforcement-suspended")) == said


def test_a_new_start_takes_up_a_suspension_and_ends_it() -> None:
    world = World()
    old = world["alice"]
    old.endpoint.suspend(POSIX + 100, 0.0)
    suites = frozenset(SUITES)
    start = Start(
        *(2000, 512, lambda number: number, {4: suites, 6: suites}, OWNERSHIP, os.urandom),
        forms=Forms(suspended_until=POSIX + 100),
    )
    policy, kernel = old.endpoint.policy, old.kernel
    endpoint = Endpoint(policy, kernel, old.acceptor, start)
    endpoint.set_posix(POSIX)
    endpoint.start(40.0)
    assert any(
        isinstance(command, Report) and command.event == "enforcement-suspended"
        for command in endpoint.commands()
    )
    endpoint.tick(99.0)
    assert set(kernel.policies()) == relaxed(old)
    endpoint.tick(100.0)
    assert set(kernel.policies()) == set(policy.entries)
    assert RecordSuspension(0.0) in endpoint.commands()
