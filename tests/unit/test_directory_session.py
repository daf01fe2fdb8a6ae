"""What servers may say by RFC 4533 and OpenLDAP does not, octet by octet, through python-ldap."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from uuid import UUID

import pytest

from kinkd.errors import LocalError
from kinkd.policy.directory import bind, session
from kinkd.policy.directory.content import Content
from kinkd.policy.directory.options import DirectoryOptions, Server
from kinkd.policy.directory.session import Client, Session, Stale

OPTIONS = DirectoryOptions((Server("ds.example.test"),), "cn=kinkd,dc=test", timeout=5.0)
_STATE, _DONE, _INFO = (f"1.3.6.1.4.1.4203.1.9.1.{n}".encode() for n in (2, 3, 4))
A, B, C = (str(UUID(int=n)) for n in (1, 2, 3))


def ber(tag: int, *parts: bytes) -> bytes:
    return bind._tlv(tag, b"".join(parts))


def octets(uuid: str) -> bytes:
    return ber(4, UUID(uuid).bytes)


def boolean(value: bool) -> bytes:
    return ber(1, b"\xff" if value else b"\0")


def control(oid: bytes, value: bytes) -> bytes:
    return ber(0xA0, ber(0x30, ber(4, oid), ber(4, value)))


def entry(uuid: str, state: int = 1) -> bytes:
    """A SearchResultEntry with a Sync State Control."""
    found = ber(0x64, ber(4, f"cn={uuid}".encode()), ber(0x30))
    return found + control(_STATE, ber(0x30, ber(10, bytes((state,))), octets(uuid)))


def info(value: bytes) -> bytes:
    """A Sync Info Message."""
    return ber(0x79, ber(0x80, _INFO), ber(0x81, value))


def id_set(*uuids: str, deletes: bool = False) -> bytes:
    return info(ber(0xA3, boolean(deletes), ber(0x31, *map(octets, uuids))))


def end_of_presents(*, done: bool, cookie: bytes = b"p") -> bytes:
    return info(ber(0xA2, ber(4, cookie), boolean(done)))


def end_of_deletes(*, done: bool, cookie: bytes = b"d") -> bytes:
    return info(ber(0xA1, ber(4, cookie), boolean(done)))


def result(code: int, controls: bytes = b"") -> bytes:
    number = code.to_bytes(2, "big") if code > 127 else bytes((code,))
    return ber(0x65, ber(10, number), ber(4), ber(4, b"because")) + controls


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The other end of the connection of whoever makes a Session."""
    ours, inner = socket.socketpair()

    def shut_down() -> None:
        ours.shutdown(socket.SHUT_RDWR)

    stream = SimpleNamespace(inner=inner, fault="", shut_down=shut_down, close=lambda: None)
    monkeypatch.setattr(session, "SecureStream", lambda *_: stream)
    with ours, inner:
        yield ours


@pytest.fixture
def talk(server: socket.socket) -> Iterator[Callable[..., Session]]:
    """Makes a session with a content, to which the server says these things."""
    made: list[Session] = []

    def begin(content: Content, *said: bytes) -> Session:
        def answer() -> None:
            (_, request), *_ = bind._read(server.recv(65536))
            number = ber(2, bind._read(request)[0][1])
            server.sendall(b"".join(ber(0x30, number, each) for each in said))

        thread = threading.Thread(target=answer)
        thread.start()
        made.append(Session(OPTIONS, OPTIONS.servers[0], Client(SimpleNamespace(), "A"), content))
        thread.join()
        return made[-1]

    yield begin
    for each in made:
        each.close()


def filled(*uuids: str) -> Content:
    content = Content()
    content.begin()
    for uuid in uuids:
        content.put(session.Entry(uuid, f"cn={uuid}", {}))
    content.set_cookie("c")
    content.refresh_done()
    content.commit()
    return content


def refresh(talker: Session, content: Content) -> None:
    while content.refreshing:
        assert talker.poll(5.0)


def test_a_present_phase(talk: Callable[..., Session]) -> None:
    content = filled(A, B, C)
    talker = talk(content, id_set(A), entry(B, 2), end_of_presents(done=True))
    refresh(talker, content)
    assert content.entries.keys() == {A, B, C}
    assert content.commit().keys() == {B, C}
    assert content.entries.keys() == {A, B}
    assert content.cookie == "p"


def test_a_present_phase_and_then_a_delete_phase(talk: Callable[..., Session]) -> None:
    content = filled(A, B, C)
    said = (id_set(A, B), end_of_presents(done=False), id_set(B, deletes=True))
    talker = talk(content, *said, end_of_deletes(done=True))
    refresh(talker, content)
    content.commit()
    assert content.entries.keys() == {A}
    assert content.cookie == "d"


def test_an_entry_that_is_present_by_its_state(talk: Callable[..., Session]) -> None:
    content = filled(A, B)
    talker = talk(content, entry(A, 0), end_of_presents(done=True))
    refresh(talker, content)
    content.commit()
    assert content.entries.keys() == {A}


def test_the_end_of_a_search_deletes_nothing(talk: Callable[..., Session]) -> None:
    content = filled(A, B)
    end = result(0, control(_DONE, ber(0x30, ber(4, b"x"), boolean(False))))
    talker = talk(content, id_set(A, B), end_of_presents(done=True), end)
    refresh(talker, content)
    content.commit()
    with pytest.raises(LocalError, match="the server ended the search"):
        talker.poll(5.0)
    assert not content.staged
    assert content.entries.keys() == {A, B}


def test_a_search_that_ends_in_a_refresh_is_no_refresh(talk: Callable[..., Session]) -> None:
    content = filled(A, B)
    talker = talk(content, id_set(A), result(0))
    assert talker.poll(5.0)
    with pytest.raises(LocalError, match="the server ended the search"):
        talker.poll(5.0)
    assert content.refreshing


@pytest.mark.parametrize("code", [4096, 53, 80])  # e-syncRefreshRequired, RFC 4533 §2.6
def test_a_refusal_may_be_for_the_cookie(talk: Callable[..., Session], code: int) -> None:
    with pytest.raises(Stale, match=r"^ldap://ds\.example\.test: .*because"):
        talk(filled(A), result(code)).poll(5.0)


@pytest.mark.parametrize("code", [51, 52])  # busy, unavailable
def test_a_server_that_cannot_now_has_nothing_against_the_cookie(
    talk: Callable[..., Session], code: int
) -> None:
    with pytest.raises(LocalError) as caught:
        talk(filled(A), result(code)).poll(5.0)
    assert not isinstance(caught.value, Stale)


@pytest.mark.parametrize(
    "said",
    [
        info(b"\xa3"),
        info(b""),
        ber(0x64, ber(4, b"cn=a"), ber(0x30)) + control(_STATE, ber(0x30, ber(10, b"\x01"))),
        ber(0x64, ber(4, b"cn=a"), ber(0x30)) + control(_STATE, b""),
        ber(0x64, ber(4, b"cn=a"), ber(0x30)),
    ],
)
def test_what_is_no_rfc_4533_is_an_error(talk: Callable[..., Session], said: bytes) -> None:
    with pytest.raises(LocalError, match="no RFC 4533 in what it sends"):
        talk(filled(A), said).poll(5.0)


def test_nothing_said_is_no_news(talk: Callable[..., Session]) -> None:
    content = filled(A)
    assert not talk(content).poll(0.01)
    assert content.refreshing
