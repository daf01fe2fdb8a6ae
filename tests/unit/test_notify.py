"""What the service manager is told and asked to keep."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kinkd.app import notify

TAKING = """
import os
from kinkd.app.notify import take_kept
os.environ["LISTEN_PID"] = str(os.getpid() + {other})
kept = take_kept()
print([(name, s.getsockname()[1], s.get_inheritable()) for name, s in kept.items()], take_kept())
"""


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(path)
        s.settimeout(5)
        yield s


@pytest.fixture
def esp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        yield s


def test_the_service_manager_is_handed_the_socket_and_its_name(
    manager: socket.socket, esp: socket.socket
) -> None:
    notify.keep("esp-in-udp4", esp)
    said, descriptors, _, _ = socket.recv_fds(manager, 100, 4)
    assert said == b"FDSTORE=1\nFDNAME=esp-in-udp4"
    (descriptor,) = descriptors
    with socket.socket(fileno=descriptor) as same:
        assert same.getsockname() == esp.getsockname()
    notify.let_go("esp-in-udp4")
    assert manager.recv(100) == b"FDSTOREREMOVE=1\nFDNAME=esp-in-udp4"


def test_nobody_is_told_where_nobody_asked(
    monkeypatch: pytest.MonkeyPatch, esp: socket.socket
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.keep("esp-in-udp4", esp)
    monkeypatch.setenv("NOTIFY_SOCKET", "/proc/nothing/here")
    notify.notify("READY=1")


@pytest.mark.parametrize("other", [0, 1], ids=["for us", "for another process"])
def test_what_was_kept_is_taken_once_by_the_process_it_is_for(
    esp: socket.socket, other: int
) -> None:
    receive = ("bash", "-c", f'exec "$@" 3<&{esp.fileno()}', "bash")
    done = subprocess.run(
        [*receive, sys.executable, "-c", TAKING.format(other=other)],
        env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "esp-in-udp4"},
        pass_fds=[esp.fileno()],
        capture_output=True,
        text=True,
        check=True,
    )
    found = [] if other else [("esp-in-udp4", esp.getsockname()[1], False)]
    assert done.stdout == f"{found} {{}}\n"
