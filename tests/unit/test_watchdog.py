"""The sign of life for the service manager is given for work, and only where it is wanted."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinkd.app import watchdog
from kinkd.app.watchdog import Watchdog
from kinkd.errors import LocalError


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's socket."""
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(path))
        s.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        yield s


@pytest.mark.parametrize(
    ("micros", "pid", "expected"),
    [
        ("30000000", "me", 30.0),
        ("30000000", "", 30.0),
        ("30000000", "1", None),
        ("", "me", None),
        ("0", "me", None),
        ("soon", "me", None),
    ],
)
def test_it_is_wanted_where_the_environment_says_so_of_this_process(
    monkeypatch: pytest.MonkeyPatch, micros: str, pid: str, expected: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", micros)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "me" else pid)
    assert watchdog.interval() == expected


def signs(manager: socket.socket) -> int:
    count = 0
    while True:
        try:
            count += manager.recv(100) == b"WATCHDOG=1"
        except BlockingIOError:
            return count


@pytest.mark.parametrize("works", [True, False])
def test_a_sign_is_given_for_work_that_was_done(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, works: bool
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000")
    checks: list[None] = []

    def check() -> None:
        checks.append(None)
        if not works:
            raise LocalError("nothing is done")

    async def run() -> None:
        watched = Watchdog(check)
        watched.start()
        while len(checks) < 4:
            await asyncio.sleep(0.001)
        watched.stop()

    asyncio.run(run())
    assert signs(manager) == (len(checks) if works else 0)


def test_where_it_is_not_wanted_nothing_is_checked(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)

    async def run() -> None:
        watched = Watchdog(lambda: pytest.fail("checked"))
        watched.start()
        await asyncio.sleep(0.01)
        watched.stop()

    asyncio.run(run())
    assert signs(manager) == 0
