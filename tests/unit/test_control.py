"""The control protocol, and what kinkctl makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.app import protocol
from kinkd.app.control import Arguments, ControlServer
from kinkd.cli import kinkctl, kinkd
from kinkd.cli.tables import duration, octets, table
from kinkd.errors import LocalError

SA = {
    "peer": "bob",
    "principal": "kink/bob.example.test@EXAMPLE.TEST",
    "local": "10.0.0.1",
    "remote": "10.0.0.2",
    "spi_in": "0x00001000",
    "spi_out": "0x00002000",
    "suite": "aes256gcm16",
    "etype": 18,
    "role": "initiator",
    "age_seconds": 61,
    "lifetime_seconds": 3600,
    "octets_in": 2048,
    "octets_out": 10,
}


async def sas(_: Arguments) -> dict[str, object]:
    return {"sas": [SA]}


async def initiate(arguments: Arguments) -> dict[str, object]:
    if arguments["peer"] != "bob":
        raise LocalError("no such host; there is bob")
    row = {"local": "10.0.0.1", "remote": "10.0.0.2", "ok": False, "reason": "no answer"}
    return {"peer": "bob", "pairs": [row]}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "control.sock"
    loop = asyncio.new_event_loop()
    control = ControlServer(path, {"sas": sas, "initiate": initiate})
    loop.run_until_complete(control.start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield path
    asyncio.run_coroutine_threadsafe(control.stop(), loop).result(5)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert not path.exists()


def raw(path: Path, line: bytes) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(5)
        s.connect(str(path))
        s.sendall(line)
        with s.makefile("rb") as stream:
            answer = json.loads(stream.readline())
    assert isinstance(answer, dict)
    return answer


def test_the_socket_is_for_its_owner_alone(server: Path) -> None:
    assert server.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"[]\n",
        b"{}\n",
        b'{"version": 2, "command": "sas"}\n',
        b'{"version": 1, "command": "nonsense"}\n',
        b'{"version": 1, "command": "sas", "arguments": 5}\n',
        b"\xff\xfe\n",
    ],
)
def test_nonsense_is_answered_in_words_and_the_server_lives_on(server: Path, line: bytes) -> None:
    assert raw(server, line)["ok"] is False
    assert protocol.ask(str(server), "sas", 5) == {"sas": [SA]}


def test_a_line_without_end_costs_nobody_else(server: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(str(server))
        with contextlib.suppress(ConnectionError):  # the server hangs up
            s.sendall(b"x" * protocol.LONGEST_REQUEST * 64)
    assert protocol.ask(str(server), "sas", 5) == {"sas": [SA]}


def test_kinkctl_prints_a_table_or_json(server: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kinkctl.main(["--socket", str(server), "sas"]) == 0
    shown = capsys.readouterr().out
    assert "0x00001000" in shown
    assert "1m01s of 1h00m" in shown
    for arguments in (["--json", "sas"], ["sas", "--json"]):
        assert kinkctl.main(["--socket", str(server), *arguments]) == 0
        assert json.loads(capsys.readouterr().out) == {"version": 1, "sas": [SA]}


def test_a_failed_initiate_is_an_exit_status_and_a_reason(
    server: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kinkctl.main(["--socket", str(server), "initiate", "bob"]) == 1
    assert "failed: no answer" in capsys.readouterr().out
    assert kinkctl.main(["--socket", str(server), "initiate", "eve"]) == 1
    assert capsys.readouterr().err == "kinkctl: no such host; there is bob\n"


def test_no_daemon_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kinkctl.main(["--socket", str(tmp_path / "none"), "status"]) == 1
    assert "is it running?" in capsys.readouterr().err


def test_a_bad_configuration_is_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "kinkd.toml"
    path.write_text('[kerberos]\nkeytb = "x"\n')
    for command in ("run", "check"):
        assert kinkd.main([command, "--config", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert f"{path}:2:" in error


@given(st.integers(0, 10**8))
def test_quantities_are_short(number: int) -> None:
    assert len(duration(number)) <= 8
    assert len(octets(number)) <= 10


def test_columns_line_up() -> None:
    lines = table([{"a": "x", "b": 1}, {"a": "longer", "b": 22}]).splitlines()
    assert [line.index(c) for line, c in zip(lines, ("B", "1", "2"), strict=True)] == [8, 8, 8]
