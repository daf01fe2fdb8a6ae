"""Servers that nobody has identified yet: what they say is bounded, in time and in octets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from kinkd.errors import LocalError
from kinkd.policy.directory import bind
from kinkd.policy.directory.bind import Exchange, Lengths, Malformed


def response(code: bytes, text: bytes) -> bytes:
    fields = bind._tlv(0x0A, code) + bind._tlv(4, b"") + bind._tlv(4, text)
    return bind._tlv(0x30, bind._tlv(2, b"\x01") + bind._tlv(0x61, fields))


@contextmanager
def saying(say: Callable[[socket.socket], None], timeout: float) -> Iterator[Exchange]:
    """An exchange with a server that does that."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=say, args=(theirs,))
    with theirs:
        with ours:
            thread.start()
            yield Exchange(ours, "ldap://ds.example.test", timeout)
        thread.join()


def test_an_octet_now_and_then_is_no_answer() -> None:
    """It comes always before a timeout of each octet would, and never to an end."""
    over = threading.Event()

    def drip(stream: socket.socket) -> None:
        stream.sendall(b"\x30\x82\xff\xff")
        while not over.wait(0.05):
            stream.sendall(b"\0")

    with saying(drip, 0.5) as exchange:
        with pytest.raises(TimeoutError):
            exchange.step(b"token")
        over.set()


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (response(b"\x7f" * 3000, b"no"), "an absurd result code"),
        (b"\x30\x85\0\0\0\0\1", "no length of LDAP"),
        (b"\x30\x80", "no length of LDAP"),
        (b"\x30\x84\xff\xff\xff\xff", "a message of absurd length"),
    ],
)
def test_what_is_absurd_is_refused(octets: bytes, said: str) -> None:
    with (
        saying(lambda stream: stream.sendall(octets), 10) as exchange,
        pytest.raises(LocalError, match=said),
    ):
        exchange.step(b"token")


def test_no_word_of_a_server_steers_a_terminal() -> None:
    text = b"\x1b]0;owned\x07 \x9b31m\nnext\xe2\x80\xae" + b"a" * 1000
    with (
        saying(lambda stream: stream.sendall(response(b"\x31", text)), 10) as exchange,
        pytest.raises(LocalError, match="refuses the bind") as error,
    ):
        exchange.step(b"token")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_messages_are_followed_however_they_are_cut(size: int) -> None:
    messages = [bind._tlv(0x30, bytes(length)) for length in (0, 1, 127, 128, 300, 70_000)]
    lengths = Lengths(70_000)
    for piece in _cut(messages, size):
        lengths.follow(piece)
    with pytest.raises(Malformed, match="a message of 70001 octets"):
        lengths.follow(bind._tlv(0x30, bytes(70_001))[:5])


def _cut(messages: list[bytes], size: int) -> Iterator[bytes]:
    octets = b"".join(messages)
    return (octets[at : at + size] for at in range(0, len(octets), size))
