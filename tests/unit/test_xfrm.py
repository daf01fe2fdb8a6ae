"""XFRM messages, octet for octet against the layouts of linux/xfrm.h."""

from __future__ import annotations

import ctypes
import errno
import struct
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import KernelError
from kinkd.kernel import answers, layouts, netlink, xfrm
from kinkd.kernel.layouts import Attribute, Type
from kinkd.kernel.netlink import LayoutError, MalformedMessage, Message
from kinkd.kernel.port import Sa, SaId, SaLimits
from kinkd.keying.algorithms import SUITES
from kinkd.model import (
    Direction,
    IpsecProtocol,
    Mode,
    PortMatch,
    Secret,
    Selector,
    SpdEntry,
    Suite,
    Template,
)

GCM, CBC = SUITES["aes256gcm16"], SUITES["aes256-sha256"]
A4, B4 = IPv4Address("10.9.0.1"), IPv4Address("10.9.0.2")
A6, B6 = IPv6Address("fd09::1"), IPv6Address("fd09::2")


def sa(suite: Suite = GCM, source: str = "10.9.0.1", destination: str = "10.9.0.2") -> Sa:
    ends = ip_address(source), ip_address(destination)
    keymat = Secret(bytes(range(1, suite.keymat_octets + 1)))
    name = SaId(*ends, 0x01020304)
    return Sa(name, Mode.TRANSPORT, 7, Selector.between(*ends), suite, keymat)


def only(datagram: bytearray) -> tuple[Message, dict[int, bytes]]:
    """The one message of a datagram and its attributes, by the fixed part its table gives."""
    (message,) = netlink.messages(datagram)
    layout = xfrm._TABLE[Type(message.type)][0]
    attached = netlink.attributes(message.payload[layout.size :])
    return message, {kind: bytes(octets) for kind, octets in attached.items()}


def test_an_install_puts_every_field_where_the_kernel_looks_for_it() -> None:
    limits = SaLimits(10, 20, 1000, 2000, None, 4)
    message, attached = only(xfrm.install(replace(sa(), limits=limits), 99))
    body = message.payload
    assert (message.type, message.flags, message.sequence) == (0x10, 0x1 | 0x4, 99)
    assert bytes(body[0:4]) == B4.packed
    assert bytes(body[16:20]) == A4.packed
    assert struct.unpack_from("=HBBB", body, 40) == (2, 32, 32, 0)
    assert bytes(body[56:60]) == B4.packed
    assert bytes(body[72:77]) == bytes([1, 2, 3, 4, 50])
    assert bytes(body[80:84]) == A4.packed
    infinite = 2**64 - 1
    assert struct.unpack_from("=8Q", body, 96) == (1000, 2000, infinite, 4, 10, 20, 0, 0)
    assert struct.unpack_from("=IIHBBB", body, 204) == (0, 7, 2, 0, 0, 0)
    assert set(attached) == {Attribute.ALG_AEAD, Attribute.REPLAY_ESN_VAL}


def test_an_aead_key_goes_with_its_salt_and_icv() -> None:
    _, attached = only(xfrm.install(sa(), 1))
    algorithm = attached[Attribute.ALG_AEAD]
    assert algorithm[:64].rstrip(b"\0") == b"rfc4106(gcm(aes))"
    assert struct.unpack_from("=II", algorithm, 64) == (36 * 8, 128)
    assert algorithm[72:] == bytes(range(1, 37))


def test_keymat_is_split_into_encryption_key_and_then_authentication_key() -> None:
    _, attached = only(xfrm.install(sa(CBC), 1))
    crypt, auth = attached[Attribute.ALG_CRYPT], attached[Attribute.ALG_AUTH_TRUNC]
    assert crypt[:64].rstrip(b"\0") == b"cbc(aes)"
    assert crypt[64:] == struct.pack("=I", 256) + bytes(range(1, 33))
    assert auth[:64].rstrip(b"\0") == b"hmac(sha256)"
    assert auth[64:] == struct.pack("=II", 256, 128) + bytes(range(33, 65))
    assert Attribute.ALG_AUTH not in attached


def test_the_replay_window_goes_in_the_attribute_without_the_esn_flag() -> None:
    message, attached = only(xfrm.install(sa(), 1))
    assert message.payload[215] == 0  # replay_window
    assert message.payload[216] == 0  # flags
    replay = attached[Attribute.REPLAY_ESN_VAL]
    assert replay == struct.pack("=6I", 4, 0, 0, 0, 0, 128) + bytes(16)
    _, attached = only(xfrm.install(replace(sa(), replay_window=0), 1))
    assert Attribute.REPLAY_ESN_VAL not in attached


def test_esn_is_the_flag_beside_the_same_attribute() -> None:
    message, attached = only(xfrm.install(replace(sa(), esn=True), 1))
    assert message.payload[215] == 0  # replay_window
    assert message.payload[216] == 128  # XFRM_STATE_ESN
    replay = attached[Attribute.REPLAY_ESN_VAL]
    assert replay == struct.pack("=6I", 4, 0, 0, 0, 0, 128) + bytes(16)


def test_null_encryption_is_an_algorithm_without_a_key() -> None:
    _, attached = only(xfrm.install(sa(SUITES["null-sha256"]), 1))
    name = b"ecb(cipher_null)"
    assert attached[Attribute.ALG_CRYPT] == name.ljust(64, b"\0") + struct.pack("=I", 0)
    auth = attached[Attribute.ALG_AUTH_TRUNC]
    assert auth[64:] == struct.pack("=II", 256, 128) + bytes(range(1, 33))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"keymat": Secret(b"short")}, "octets of KEYMAT"),
        ({"selector": Selector(ip_network("10.9.0.0/24"), ip_network(B4))}, "address pair"),
        ({"selector": Selector.between(B4, A4)}, "address pair"),
        ({"replay_window": 4097}, "replay window"),
        ({"replay_window": 0, "esn": True}, "ESN without a replay window"),
        ({"id": SaId(A4, B4, 0)}, "SPI"),
        ({"id": SaId(A6, B4, 5)}, "two families"),
        ({"suite": replace(CBC, authentication=None)}, "KEYMAT|integrity"),
    ],
)
def test_an_sa_that_contradicts_itself_is_never_encoded(
    changed: dict[str, object], words: str
) -> None:
    with pytest.raises(LayoutError, match=words) as caught:
        xfrm.install(replace(sa(), **changed), 1)  # type: ignore[arg-type]
    assert "0102" not in str(caught.value).replace("0x01020304", "")


def test_encryption_without_integrity_is_never_encoded() -> None:
    naked = replace(CBC, authentication=None, authentication_octets=0)
    with pytest.raises(LayoutError, match="integrity"):
        xfrm.install(sa(naked), 1)


def test_an_attribute_that_the_table_does_not_have_is_refused() -> None:
    with pytest.raises(LayoutError, match="DELSA with attribute"):
        xfrm.request(Type.DELSA, 0, 1, bytes(24), [(Attribute.TMPL, (bytes(64),))])
    with pytest.raises(LayoutError, match="23 octets"):
        xfrm.request(Type.DELSA, 0, 1, bytes(23))
    with pytest.raises(LayoutError, match="not a request"):
        xfrm.request(Type.ACQUIRE, 0, 1, b"")


def test_a_struct_of_another_size_cannot_be_imported() -> None:
    with pytest.raises(ImportError, match="packs to 4 octets"):
        netlink.sized("wrong", "I", 8)


@pytest.mark.parametrize("template", [None, Template(IpsecProtocol.ESP, Mode.TRANSPORT, 7)])
def test_a_policy_has_a_template_exactly_where_protection_is_demanded(
    template: Template | None,
) -> None:
    entry = SpdEntry(Direction.OUT, Selector.between(A4, B4), 5, template)
    message, attached = only(xfrm.update_policy(entry, 3))
    assert message.type == 0x19
    assert (Attribute.TMPL in attached) is (template is not None)
    if template is not None:
        tmpl = attached[Attribute.TMPL]
        assert struct.unpack_from("=H", tmpl, 24) == (2,)
        assert struct.unpack_from("=IBBB", tmpl, 44) == (7, 0, 0, 0)
        assert tmpl[52:] == b"\xff" * 12


def test_a_policy_that_contradicts_itself_is_never_encoded() -> None:
    template = Template(IpsecProtocol.ESP, Mode.TRANSPORT, 7)
    selector = Selector.between(A4, B4)
    for entry in (
        SpdEntry(Direction.OUT, selector, 5, template, block=True),
        SpdEntry(Direction.OUT, selector, 5, replace(template, mode=Mode.TUNNEL)),
        SpdEntry(Direction.OUT, selector, 5, replace(template, source=A4, destination=B4)),
        SpdEntry(Direction.OUT, Selector(ip_network(A4), ip_network(B6)), 5, template),
    ):
        with pytest.raises(LayoutError):
            xfrm.update_policy(entry, 1)


networks4 = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
    lambda pair: ip_network(pair, strict=False)
)
networks6 = st.tuples(st.integers(2**32, 2**128 - 1), st.integers(0, 128)).map(
    lambda pair: ip_network((IPv6Address(pair[0]), pair[1]), strict=False)
)
ports = st.builds(PortMatch, st.integers(0, 65535), st.integers(0, 65535))


@st.composite
def entries(draw: st.DrawFn) -> SpdEntry:
    networks = draw(st.sampled_from([networks4, networks6]))
    source, destination = draw(networks), draw(networks)
    selector = Selector(source, destination, draw(st.integers(0, 255)), draw(ports), draw(ports))
    ends: dict[str, object] = {}
    if mode := draw(st.sampled_from(Mode)):
        ends = {"source": source[0], "destination": destination[0]}
    template = Template(
        draw(st.sampled_from(IpsecProtocol)),
        mode,
        draw(st.integers(0, 2**32 - 1)),
        optional=draw(st.booleans()),
        **ends,  # type: ignore[arg-type]
    )
    block = draw(st.booleans())
    chosen = None if block else draw(st.sampled_from([None, template]))
    direction = draw(st.sampled_from(Direction))
    return SpdEntry(direction, selector, draw(st.integers(0, 2**32 - 1)), chosen, block)


@given(entries())
def test_a_policy_reads_back_as_it_was_written(entry: SpdEntry) -> None:
    (message,) = netlink.messages(xfrm.update_policy(entry, 1))
    assert answers.read_policy(message) == entry


@given(
    st.sampled_from(list(SUITES.values())),
    st.sampled_from([("10.9.0.1", "10.9.0.2"), ("fd09::1", "fd09::2")]),
    st.integers(1, 2**32 - 1),
    st.builds(SaLimits, *[st.none() | st.integers(1, 2**64 - 2)] * 6),
    st.booleans(),
)
def test_an_sa_reads_back_as_it_was_written(
    suite: Suite, ends: tuple[str, str], spi: int, limits: SaLimits, esn: bool
) -> None:
    made = sa(suite, *ends)
    made = replace(made, id=replace(made.id, spi=spi), limits=limits, esn=esn)
    (message,) = netlink.messages(xfrm.install(made, 1))
    state = answers.read_state(message)
    assert state is not None
    assert (state.id, state.mode, state.reqid) == (made.id, made.mode, made.reqid)
    assert (state.selector, state.limits) == (made.selector, limits)
    names = (suite.aead, suite.encryption, suite.authentication)
    assert state.algorithms == tuple(name for name in names if name)
    assert state.esn is esn
    assert not state.larval
    assert answers.read_spi(message) == spi


def test_a_foreign_policy_that_the_model_cannot_say_does_not_look_like_a_bypass() -> None:
    entry = SpdEntry(
        Direction.OUT,
        Selector.between(A4, B4),
        5,
        Template(IpsecProtocol.ESP, Mode.TRANSPORT, 7),
    )
    written = xfrm.update_policy(entry, 1)
    template = bytes(written[-64:])
    body = bytes(written[16 : 16 + 168])
    twice = netlink.encode(0x13, 0, 1, body, [(Attribute.TMPL, (template, template))])
    (message,) = netlink.messages(twice)
    assert answers.read_policy(message) == replace(entry, template=None, block=True)


def test_a_policy_of_a_socket_or_a_mark_is_passed_over() -> None:
    entry = SpdEntry(Direction.OUT, Selector.between(A4, B4), 5)
    body = bytearray(xfrm.update_policy(entry, 1)[16:])
    mark = struct.pack("=II", 1, 0xFFFFFFFF)
    (marked,) = netlink.messages(netlink.encode(0x13, 0, 1, body, [(Attribute.MARK, (mark,))]))
    assert answers.read_policy(marked) is None
    body[160] = 3
    (bound,) = netlink.messages(netlink.encode(0x13, 0, 1, body))
    assert answers.read_policy(bound) is None


def acknowledgement(code: int, flags: int, quoted: bytes, text: bytes) -> Message:
    attributes = [(1, (text,))] if text else []
    body = struct.pack("=i", code) + quoted
    (message,) = netlink.messages(netlink.encode(2, flags, 5, body, attributes))
    return message


def test_an_acknowledgement_gives_errno_and_the_kernel_s_words() -> None:
    header = netlink.HEADER.pack(24, 0x10, 5, 5, 0)
    text = b"Unsupported mode\0"
    capped = acknowledgement(-errno.EINVAL, 0x300, header, text)
    assert netlink.answer(capped) == netlink.Answer(errno.EINVAL, "Unsupported mode")
    whole = acknowledgement(-errno.EINVAL, 0x200, header + bytes(8), text)
    assert netlink.answer(whole) == netlink.Answer(errno.EINVAL, "Unsupported mode")
    assert netlink.answer(acknowledgement(0, 0x100, header, b"")) == netlink.Answer(0)
    with pytest.raises(MalformedMessage):
        netlink.answer(acknowledgement(5, 0, header, b""))


def test_a_malformed_message_is_a_kernel_error() -> None:
    with pytest.raises(KernelError) as caught:
        list(netlink.messages(b"\xff" * 20))
    assert caught.value.errno == errno.EBADMSG


def test_the_structs_are_as_long_as_the_compiler_makes_them() -> None:
    class Lifetime(ctypes.Structure):
        _fields_ = [(f"f{number}", ctypes.c_uint64) for number in range(8)]

    class SelectorC(ctypes.Structure):
        _fields_ = [
            ("daddr", ctypes.c_uint32 * 4),
            ("saddr", ctypes.c_uint32 * 4),
            ("ports", ctypes.c_uint16 * 4),
            ("family", ctypes.c_uint16),
            ("bytes", ctypes.c_uint8 * 3),
            ("ifindex", ctypes.c_int),
            ("user", ctypes.c_uint32),
        ]

    assert ctypes.sizeof(Lifetime) == 64
    assert ctypes.sizeof(SelectorC) == layouts.SELECTOR.size
