"""Whom the directory must prove to be, what it must encrypt, and when waiting ends."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kinkd.errors import LocalError
from kinkd.model import Principal
from kinkd.policy.directory import bind
from kinkd.policy.directory.session import Client
from kinkd.policy.directory.source import DirectorySource
from tests.support.directory import credentials, entries, following, host, options
from tests.support.realm import Realm
from tests.support.realm_pair import Pair, make_pair, use
from tests.support.slapd import Directory

_REFUSED = r"refuses the bind|no authentication"


@pytest.fixture
def realm_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """A realm whose tickets end after six seconds."""
    with Realm(tmp_path / "realm", lifetime=6, clockskew=1) as realm:
        use(realm, monkeypatch, tmp_path)
        yield make_pair(realm)


def source(pair: Pair, port: int, **more: object) -> DirectorySource:
    return DirectorySource(options(port, **more), credentials(pair.alice_keytab, pair.alice))


def test_a_server_without_the_key_is_refused(own_pair: Pair, tmp_path: Path) -> None:
    """An impostor that KDC and DNS send us to."""
    impostor = tmp_path / "impostor.keytab"
    own_pair.realm.add("ldap/localhost", keytab=impostor)
    own_pair.realm.change_key("ldap/localhost")
    with (
        Directory(own_pair.realm, tmp_path / "slapd", keytab=impostor) as slapd,
        pytest.raises(LocalError, match=_REFUSED),
    ):
        source(own_pair, slapd.port).load()


def test_a_server_of_another_name_is_refused(own_pair: Pair, tmp_path: Path) -> None:
    own_pair.realm.add("ldap/ds.example.test")
    with Directory(own_pair.realm, tmp_path / "slapd") as slapd:
        slapd.add(entries())
        assert source(own_pair, slapd.port).load()
        other = Principal(("ldap", "ds.example.test"), own_pair.realm.name)
        with pytest.raises(LocalError, match=_REFUSED):
            source(own_pair, slapd.port, expected=other).load()
        nobody = replace(other, components=("ldap", "nobody.example.test"))
        with pytest.raises(LocalError, match=r"no authentication with ldap/nobody\.example\.test@"):
            source(own_pair, slapd.port, expected=nobody).load()


def test_a_server_that_does_not_encrypt_is_refused(own_pair: Pair, tmp_path: Path) -> None:
    for number, maximum in enumerate((0, 1)):  # no layer, integrity alone
        keytab = tmp_path / f"{number}.keytab"
        own_pair.realm.add("ldap/localhost", keytab=keytab)
        own_pair.realm.delete("ldap/localhost")
        own_pair.realm.add("ldap/localhost", keytab=keytab)
        secprops = f"noanonymous,maxssf={maximum}"
        with Directory(
            own_pair.realm, tmp_path / f"slapd{number}", secprops=secprops, keytab=keytab
        ) as slapd:
            slapd.add(entries())
            with pytest.raises(LocalError, match="does not encrypt"):
                source(own_pair, slapd.port).load()
        own_pair.realm.delete("ldap/localhost")


def test_no_ticket_is_no_bind(own_pair: Pair, tmp_path: Path) -> None:
    with Directory(own_pair.realm, tmp_path / "slapd") as slapd:
        slapd.add(entries())
        own_pair.realm.delete("ldap/localhost")
        with pytest.raises(
            LocalError, match=r"no authentication with ldap/localhost@EXAMPLE\.TEST"
        ):
            source(own_pair, slapd.port).load()


def test_a_kdc_that_is_away_is_a_fault_and_no_end(own_pair: Pair, tmp_path: Path) -> None:
    with Directory(own_pair.realm, tmp_path / "slapd") as slapd:
        slapd.add(entries())
        own_pair.realm.stop()
        with following(source(own_pair, slapd.port)) as follower:
            follower.error("Cannot contact any KDC")
            own_pair.realm.start()
            follower.policy(lambda policy: True)


def test_the_end_of_the_ticket_does_not_end_the_following(realm_pair: Pair, tmp_path: Path) -> None:
    with Directory(realm_pair.realm, tmp_path / "slapd") as slapd:
        slapd.add(entries())
        with following(source(realm_pair, slapd.port)) as follower:
            follower.policy(lambda policy: True)
            bound = follower.source.state()["since"]
            time.sleep(8)
            slapd.set(host("alice"), kinkdFqdn="a.example.test")
            follower.policy(lambda policy: policy.fqdns["alice"] == "a.example.test")
            slapd.kill()
            follower.state(reachable=False)
            slapd.start()
            follower.state(reachable=True, fault=None)
            slapd.set(host("alice"), kinkdFqdn="b.example.test")
            follower.policy(lambda policy: policy.fqdns["alice"] == "b.example.test")
            assert follower.source.state()["since"] != bound


# --- servers that misbehave ---------------------------------------------------------------------


@contextlib.contextmanager
def server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """Takes connections, one after the other, and lets ``answer`` deal with them."""

    def run() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    answer(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _response(code: int, token: bytes = b"", message: int = 1) -> bytes:
    fields = bind._tlv(0x0A, bytes((code,))) + bind._tlv(4, b"") + bind._tlv(4, b"no")
    if token:
        fields += bind._tlv(0x87, token)
    number = bind._tlv(2, bytes((message,)))
    return bind._tlv(0x30, number + bind._tlv(0x61, fields))


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (b"", "the server ended the connection"),
        (b"HTTP/1.1 400\r\n\r\n" + bytes(100), "no answer to a bind"),
        (_response(0), "the bind ended before the server proved who it is"),
        (_response(0, b"token"), "the bind ended before the server proved who it is"),
        (_response(14, b"token"), "no authentication with"),
        (_response(14, b"token", message=2), "the answer to another request"),
        (_response(49), "the server refuses the bind: no"),
        (_response(7), "the server does no GSSAPI that encrypts"),
    ],
)
def test_who_does_not_prove_anything_is_refused(own_pair: Pair, octets: bytes, said: str) -> None:
    own_pair.realm.add("ldap/localhost")

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(octets)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(65536)

    with server(answer) as port, pytest.raises(LocalError, match=said):
        source(own_pair, port).load()


def test_a_server_that_says_nothing_is_given_up_and_stop_does_not_wait(own_pair: Pair) -> None:
    own_pair.realm.add("ldap/localhost")
    released = threading.Event()
    with server(lambda connection: connection.recv(1 << 20) and released.wait(60)) as port:
        silent = source(own_pair, port, timeout=1.0)
        with pytest.raises(LocalError, match="the server does not answer"):
            silent.load()
        released.set()


def test_stop_ends_a_session_that_waits(own_pair: Pair, tmp_path: Path) -> None:
    with Directory(own_pair.realm, tmp_path / "slapd") as slapd:
        slapd.add(entries())
        waiting = source(own_pair, slapd.port)
        with following(waiting) as follower:
            follower.policy(lambda policy: True)
            calls = follower.calls
        assert waiting.state()["reachable"] is False
        assert not any(each.name.startswith("directory") for each in threading.enumerate())
        assert follower.calls == calls


def test_stop_waits_for_no_ticket() -> None:
    """A KDC can take long not to answer, and stop() is called in the daemon's loop."""
    asked, answered = threading.Event(), threading.Event()

    def ask() -> Client:
        asked.set()
        answered.wait()
        raise LocalError("no ticket")

    # So long would it wait for a connection.
    waiting = DirectorySource(options(1, timeout=3600.0), ask)
    waiting.start(lambda: None)
    thread = waiting._thread
    assert asked.wait(30)
    waiting.stop()
    answered.set()
    assert thread is not None
    thread.join()
