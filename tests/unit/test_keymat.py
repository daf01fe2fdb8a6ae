"""KEYMAT, RFC 4430 §7 and RFC 2409 §5.5."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.kerberos.etypes import key
from kinkd.keying.dh import GROUPS, Group, generate
from kinkd.keying.keymat import derive


def prf(data: bytes) -> bytes:
    return hmac.digest(b"key", data, hashlib.sha1)


THEIR_SPI = b"\x04\x83\x29\x11"
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


@pytest.mark.rfc("4430-7-2")
@pytest.mark.parametrize(("etype", "prf_octets"), [(17, 20), (18, 20), (19, 32), (20, 48)])
@pytest.mark.parametrize("nr", [b"", b"R" * 32])
def test_with_a_key_exchange_every_block_is_that_of_rfc_2409_section_5_5(
    etype: int, prf_octets: int, nr: bytes
) -> None:
    session = key(etype, bytes(range(16 if etype in (17, 19) else 32)))
    gxy = b"\0\0" + bytes(range(100, 130))  # as long as its group wants it, zeros and all
    tail = gxy + b"\x03" + SPI + b"I" * 32 + nr
    k1 = session.prf(tail)
    k2 = session.prf(k1 + tail)
    k3 = session.prf(k2 + tail)
    k4 = session.prf(k3 + tail)
    assert len(k1) == prf_octets
    keymat = derive(session.prf, 3, SPI, b"I" * 32, nr, octets=4 * prf_octets, shared=gxy)
    assert bytes(keymat.value) == k1 + k2 + k3 + k4


def test_zeros_before_the_shared_secret_count() -> None:
    with_zero = derive(prf, 3, SPI, b"Ni", octets=36, shared=b"\0gxy")
    assert with_zero != derive(prf, 3, SPI, b"Ni", octets=36, shared=b"gxy")


@pytest.mark.parametrize("group", GROUPS.values(), ids=lambda group: group.name)
def test_both_ends_of_a_key_exchange_come_to_the_same_two_keys(group: Group) -> None:
    def keys(gxy: bytes | bytearray) -> list[bytes]:
        return [
            bytes(derive(prf, 3, spi, b"Ni", b"Nr", octets=36, shared=gxy).value)
            for spi in (SPI, THEIR_SPI)
        ]

    ours, theirs = generate(group), generate(group)
    a, b = ours.agree(theirs.public), theirs.agree(ours.public)
    one = keys(a.value)
    assert one == keys(b.value)
    assert one[0] != one[1]
    # The session key and all that went over the wire in clear are not enough.
    assert one[0] not in {keys(known)[0] for known in (b"", ours.public, theirs.public)}
    assert one != keys(generate(group).agree(generate(group).public).value)


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
