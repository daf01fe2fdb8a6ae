"""The keytab reader: recorded files, what writers leave behind, and damage."""

from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import LocalError
from kinkd.kerberos.keytab import read_keytab
from kinkd.model import Principal
from tests.support import recorded_kerberos as recorded

HOST = Principal(("kink", "bob.kink.test"), "KINK.TEST")


def entry(kvno: int = 1, etype: int = 18, key: bytes = b"k" * 32, tail: bytes = b"") -> bytes:
    names = b"".join(
        struct.pack(">H", len(text)) + text for text in (b"KINK.TEST", b"kink", b"bob.kink.test")
    )
    body = struct.pack(">H", 2) + names + struct.pack(">IIBhH", 1, 0, kvno, etype, len(key))
    return struct.pack(">i", len(body + key + tail)) + body + key + tail


def test_a_recorded_keytab_is_read_whole() -> None:
    entries = read_keytab(recorded.keytab("esp2way"))
    assert HOST in {each.principal for each in entries}
    assert {each.etype for each in entries} >= {17, 18}
    assert all(each.kvno == 1 for each in entries)
    assert all(len(each.key) == (32 if each.etype in (18, 20) else 16) for each in entries)


def test_holes_of_removed_entries_are_passed_over() -> None:
    hole = struct.pack(">i", -7) + b"removed"
    assert len(read_keytab(b"\5\2" + entry() + hole + entry())) == 2


def test_the_32_bit_kvno_counts_unless_it_is_zero() -> None:
    octets = b"\5\2" + entry(44, tail=struct.pack(">I", 300)) + entry(44, tail=bytes(4))
    assert [each.kvno for each in read_keytab(octets)] == [300, 44]


def test_no_repr_shows_a_key() -> None:
    assert "kkkk" not in repr(read_keytab(b"\5\2" + entry()))


@pytest.mark.parametrize(
    "octets",
    [b"", b"\5\1", b"text", b"\5\2" + entry()[:-1], b"\5\2\0", b"\5\2" + struct.pack(">iH", 2, 0)],
)
def test_what_is_not_a_keytab_is_refused(octets: bytes) -> None:
    with pytest.raises(LocalError, match="keytab"):
        read_keytab(octets)


@given(st.binary(max_size=120))
def test_no_octets_raise_another_error(octets: bytes) -> None:
    with contextlib.suppress(LocalError):
        read_keytab(b"\5\2" + octets)
