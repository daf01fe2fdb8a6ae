"""The control protocol over an upgrade: each side speaks its version and the one before."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from kinkd.app import protocol
from kinkd.errors import LocalError


def serve(path: Path, answers: list[Callable[[dict[str, object]], dict[str, object]]]) -> None:
    """A daemon that answers so many requests, one after the other."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(1)

    def run() -> None:
        with listening, listening.accept()[0] as s, s.makefile("rb") as stream:
            for answer in answers:
                request = json.loads(stream.readline())
                s.sendall(json.dumps(answer(request)).encode() + b"\n")

    threading.Thread(target=run, daemon=True).start()


def refusing(speaks: list[int]) -> Callable[[dict[str, object]], dict[str, object]]:
    return lambda _: {"version": speaks[-1], "ok": False, "error": "no", "speaks": speaks}


def answering(request: dict[str, object]) -> dict[str, object]:
    return {"version": request["version"], "ok": True, "result": {"in": request["version"]}}


def test_who_was_upgraded_asks_an_older_daemon_in_its_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "VERSION", 2)
    monkeypatch.setattr(protocol, "SPOKEN", range(1, 3))
    serve(tmp_path / "s", [refusing([1, 1]), answering])
    assert protocol.ask(str(tmp_path / "s"), "status", 5.0) == {"in": 1}


def test_who_was_not_upgraded_asks_a_newer_daemon_in_his_own(tmp_path: Path) -> None:
    serve(tmp_path / "s", [answering])
    assert protocol.ask(str(tmp_path / "s"), "status", 5.0) == {"in": 1}


def test_where_there_is_no_common_version_it_is_said_in_one_line(tmp_path: Path) -> None:
    serve(tmp_path / "s", [refusing([7, 8])])
    with pytest.raises(LocalError, match="version 1 is spoken here"):
        protocol.ask(str(tmp_path / "s"), "status", 5.0)


@pytest.mark.parametrize("version", [0, 2, 99, "1", None])
def test_a_version_that_is_not_spoken_is_refused(version: object) -> None:
    with pytest.raises(protocol.UnspokenError):
        protocol.decode(json.dumps({"version": version, "command": "status"}).encode())
