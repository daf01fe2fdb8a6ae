"""DER is read strictly and written in its one form."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import PeerError
from kinkd.kerberos import der
from kinkd.kerberos.der import Reader

NAMES = st.text(st.characters(categories=["L", "N", "P"]), min_size=1)


@given(st.integers(-(1 << 31), (1 << 31) - 1))
def test_integers_survive(number: int) -> None:
    assert Reader(der.integer(number)).integer() == number


@given(st.integers(0, (1 << 32) - 1))
def test_uint32_is_read_positive_and_as_the_negative_some_write(number: int) -> None:
    assert Reader(der.integer(number)).uint32() == number
    signed = number - (1 << 32) if number >> 31 else number
    assert Reader(der.integer(signed)).uint32() == number


@given(st.binary(max_size=70000 - 10))
def test_octet_strings_survive_up_to_the_size_of_a_datagram(content: bytes) -> None:
    encoded = der.octets(content)
    if len(encoded) <= der.MAX_OCTETS:
        assert Reader(encoded).octets() == content


@given(st.integers(0, 253402300799))
def test_times_survive(seconds: int) -> None:
    assert Reader(der.kerberos_time(seconds)).time() == seconds


@given(NAMES, st.integers(0, (1 << 32) - 1))
def test_names_and_flags_survive(name: str, bits: int) -> None:
    assert Reader(der.string(name)).string() == name
    assert Reader(der.flags(bits)).flags() == bits


@pytest.mark.parametrize(
    ("octets", "method"),
    [
        ("0201", "integer"),  # cut off
        ("02020001", "integer"),  # not the shortest
        ("0202ffff", "integer"),
        ("0200", "integer"),
        ("02050100000000", "integer"),  # beyond Int32
        ("0206010000000000", "uint32"),
        ("02010100", "integer"),  # trailing octet
        ("040101", "integer"),  # another type
        ("02810101", "integer"),  # a length not the shortest
        ("0480", "octets"),  # indefinite length
        ("0482007f" + "00" * 127, "octets"),
        ("04820080" + "00" * 128, "octets"),
        ("048300010000", "octets"),
        ("0203100000", "microseconds"),
        ("0201ff", "microseconds"),
        ("03020700", "flags"),  # fewer than 32 bits
        ("03050800000000", "flags"),
        ("03050100000001", "flags"),  # an unused bit set
        ("1b00", "string"),
        ("1b0141ff", "string"),
        ("1b01ff", "string"),  # not UTF-8
        ("1b02410a", "string"),  # a line feed in a name
        ("180f" + b"20261123080709+".hex(), "time"),
        ("180f" + b"20261323080709Z".hex(), "time"),
        ("180f" + b"20261123080760Z".hex(), "time"),
        ("180f" + b"00001123080709Z".hex(), "time"),
        ("180d" + b"261123080709Z".hex(), "time"),
        ("1811" + b"20261123080709.0Z".hex(), "time"),
    ],
)
def test_what_is_not_der_of_the_type_is_refused(octets: str, method: str) -> None:
    with pytest.raises(PeerError, match="malformed-kerberos"):
        getattr(Reader(bytes.fromhex(octets)), method)()


def test_a_length_reaching_beyond_its_parent_is_refused() -> None:
    inner = b"\x02\x05\x01"  # an INTEGER that claims what follows its SEQUENCE
    with pytest.raises(PeerError, match="cut off"):
        Reader(der.sequence(inner) + b"\1\1\1\1").enter(der.SEQUENCE).integer()


def test_later_fields_are_passed_over_only_in_order() -> None:
    first, last = der.field(3, b""), der.field(9, b"\xff")
    Reader(first + last).extensions(2)
    for octets in (last + first, first + first, first + b"\x02\x01\x01", first + b"\xbf\x20\x00"):
        with pytest.raises(PeerError):
            Reader(octets).extensions(2)


def test_text_for_people_never_fails_and_holds_no_control_characters() -> None:
    text = Reader(der.value(der.GENERAL_STRING, b"no\n\x1b[31m\xff")).text()
    assert text == "no\\x0a\\x1b[31m\\xff"


def test_more_octets_than_a_datagram_holds_are_refused() -> None:
    with pytest.raises(PeerError, match="malformed"):
        Reader(bytes(der.MAX_OCTETS + 1))
