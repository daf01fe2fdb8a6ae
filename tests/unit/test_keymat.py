"""KEYMAT, RFC 4430 §7 and RFC 2409 §5.5."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.keying.keymat import derive


def prf(data: bytes) -> bytes:
    return hmac.digest(b"key", data, hashlib.sha1)


SPI = b"\x0d\x7d\x49\x93"


@pytest.mark.rfc("4430-7-2", "4430-5.4-1")
def test_blocks_are_chained_and_each_carries_the_whole_seed() -> None:
    seed = b"\x03" + SPI + b"Ni" + b"Nr"
    first = prf(seed)
    second = prf(first + seed)
    assert bytes(derive(prf, 3, SPI, b"Ni", b"Nr", octets=40).value) == first + second


def test_a_shared_secret_stands_first_in_every_block() -> None:
    seed = b"gxy" + b"\x03" + SPI + b"Ni"
    first = prf(seed)
    expected = first + prf(first + seed)[:4]
    assert bytes(derive(prf, 3, SPI, b"Ni", octets=24, shared=b"gxy").value) == expected


@given(st.integers(1, 200))
def test_the_length_is_what_was_asked_and_a_shorter_one_is_a_prefix(octets: int) -> None:
    long = derive(prf, 3, SPI, b"Ni", octets=200)
    assert derive(prf, 3, SPI, b"Ni", octets=octets).value == long.value[:octets]


@given(st.binary(min_size=8, max_size=64), st.binary(min_size=8, max_size=64))
def test_every_input_matters(ni: bytes, nr: bytes) -> None:
    base = derive(prf, 3, SPI, ni, octets=36)
    assert derive(prf, 2, SPI, ni, octets=36) != base
    assert derive(prf, 3, b"\0\0\1\0", ni, octets=36) != base
    assert derive(prf, 3, SPI, ni, nr, octets=36) != base


def test_a_secret_shows_and_keeps_nothing() -> None:
    secret = derive(prf, 3, SPI, b"nonce", octets=36)
    assert secret.value.hex() not in repr(secret)
    secret.wipe()
    assert bytes(secret.value) == bytes(36)
