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
from kinkd.kernel.port import Acquire, Sa, SaId, SaLimits
from kinkd.keying.algorithms import SUITES
from kinkd.model import (
    Direction,
    IpsecProtocol,
    Mode,
    PortMatch,
    Secret,
    Selector,
    SpdEntry,
    Template,
    Transform,
)

TRANSFORMS = list({t: None for suite in SUITES.values() for t in suite.transforms})
(GCM,), (CBC,), (NULL,), (AH,) = (
    SUITES[name].transforms for name in ("aes256gcm16", "aes256-sha256", "null-sha256", "ah-sha256")
)
A4, B4 = IPv4Address("10.9.0.1"), IPv4Address("10.9.0.2")
A6, B6 = IPv6Address("fd09::1"), IPv6Address("fd09::2")


def sa(transform: Transform = GCM, source: str = "10.9.0.1", destination: str = "10.9.0.2") -> Sa:
    ends = ip_address(source), ip_address(destination)
    keymat = Secret(bytes(range(1, transform.keymat_octets + 1)))
    name = SaId(*ends, 0x01020304, transform.protocol)
    return Sa(name, Mode.TRANSPORT, 7, Selector.between(*ends), transform, keymat)


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
    _, attached = only(xfrm.install(sa(NULL), 1))
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
        ({"transform": AH}, "a transform of AH"),
        ({"transform": replace(GCM, encryption="cbc(aes)")}, "beside an AEAD"),
        ({"tunnelled": True, "selector": Selector.between(A6, B6)}, "another family"),
        ({"tunnelled": True, "mode": Mode.TUNNEL}, "tunnel of its own"),
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
    keyless = replace(CBC, authentication_octets=0)
    for transform in (naked, keyless, replace(naked, encryption=None)):
        with pytest.raises(LayoutError, match="no integrity"):
            xfrm.install(sa(transform), 1)


def test_ah_is_an_authentication_algorithm_alone_truncated_in_so_many_words() -> None:
    message, attached = only(xfrm.install(sa(AH), 1))
    assert message.payload[76] == 51
    assert set(attached) == {Attribute.ALG_AUTH_TRUNC, Attribute.REPLAY_ESN_VAL}
    auth = attached[Attribute.ALG_AUTH_TRUNC]
    assert auth[:64].rstrip(b"\0") == b"hmac(sha256)"
    assert auth[64:] == struct.pack("=II", 256, 128) + bytes(range(1, 33))


def test_ah_is_padded_to_32_bits_in_ipv4_and_to_64_in_ipv6() -> None:
    flags = [
        only(xfrm.install(replace(sa(transform, *ends), esn=esn), 1))[0].payload[216]
        for transform in (AH, GCM)
        for ends in ((str(A4), str(B4)), (str(A6), str(B6)))
        for esn in (False, True)
    ]
    assert flags == [64, 64 | 128, 0, 128, 0, 128, 0, 128]  # XFRM_STATE_ALIGN4, XFRM_STATE_ESN


@pytest.mark.parametrize(
    "transform",
    [
        replace(AH, encryption="cbc(aes)"),
        replace(AH, aead="rfc4106(gcm(aes))"),
        replace(AH, encryption_octets=16),
        replace(AH, authentication=None),
        replace(AH, authentication_octets=0),
    ],
)
def test_ah_that_encrypts_or_does_not_authenticate_is_never_encoded(transform: Transform) -> None:
    with pytest.raises(LayoutError, match="is no AH"):
        xfrm.install(sa(transform), 1)


def test_esp_in_udp_has_port_4500_at_both_ends() -> None:
    _, attached = only(xfrm.install(replace(sa(), udp=True), 1))
    port = (4500).to_bytes(2, "big")
    assert attached[4] == struct.pack("=H", 2) + port + port + bytes(18)  # XFRMA_ENCAP
    with pytest.raises(LayoutError, match="only ESP goes in UDP"):
        xfrm.install(replace(sa(AH), udp=True), 1)


def test_a_tunnel_s_selector_may_be_of_another_family_and_says_so() -> None:
    inner = Selector.between(A6, B6)
    tunnel = replace(sa(), mode=Mode.TUNNEL, selector=inner)
    message, _ = only(xfrm.install(tunnel, 1))
    assert struct.unpack_from("=HBBB", message.payload, 40) == (10, 128, 128, 0)
    assert struct.unpack_from("=IHBB", message.payload, 208) == (7, 2, 1, 0)
    xfrm.check_bundle([replace(sa(), mode=Mode.TUNNEL)])


def test_the_sas_of_a_bundle_fit_together() -> None:
    esp, ah = sa(), sa(AH)
    xfrm.check_bundle([esp, ah])
    networks = Selector(ip_network("10.1.0.0/24"), ip_network("10.2.0.0/24"))
    tunnel = replace(esp, mode=Mode.TUNNEL, selector=networks)
    around = replace(ah, selector=networks, tunnelled=True)
    xfrm.check_bundle([tunnel, around])
    elsewhere = replace(around, id=replace(around.id, destination=IPv4Address("10.9.0.3")))
    other = replace(around, selector=Selector.between(A4, B4))
    for sas, words in (
        ([around], "not around the tunnel"),
        ([around, tunnel], "not around the tunnel"),
        ([esp, around], "not around the tunnel"),
        ([tunnel, other], "not around the tunnel"),
        ([tunnel, elsewhere], "not around the tunnel"),
        ([tunnel, ah], "pinned to its ends"),
        ([replace(esp, udp=True), ah], "within a bundle"),
        ([esp, replace(ah, keymat=Secret(b"short"))], "octets of KEYMAT"),
    ):
        with pytest.raises(LayoutError, match=words):
            xfrm.check_bundle(sas)


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


ESP_TRANSPORT = Template(IpsecProtocol.ESP, Mode.TRANSPORT, 7)
AH_TRANSPORT = Template(IpsecProtocol.AH, Mode.TRANSPORT, 8)
TUNNEL4 = Template(IpsecProtocol.ESP, Mode.TUNNEL, 7, A4, B4)
TUNNEL6 = Template(IpsecProtocol.ESP, Mode.TUNNEL, 7, A6, B6)


def test_a_template_puts_every_field_where_the_kernel_looks_for_it() -> None:
    entry = SpdEntry(Direction.OUT, Selector.between(A4, B4), 5, (AH_TRANSPORT, TUNNEL6))
    message, attached = only(xfrm.update_policy(entry, 3))
    assert message.type == 0x19
    first, second = attached[Attribute.TMPL][:64], attached[Attribute.TMPL][64:]
    assert first[:16] == first[28:44] == bytes(16)
    assert first[20] == 51
    assert struct.unpack_from("=H", first, 24) == (2,)
    assert struct.unpack_from("=IBBB", first, 44) == (8, 0, 0, 0)
    assert first[52:] == b"\xff" * 12
    assert (second[:16], second[28:44]) == (B6.packed, A6.packed)
    assert second[20] == 50
    assert struct.unpack_from("=H", second, 24) == (10,)
    assert struct.unpack_from("=IBBB", second, 44) == (7, 1, 0, 0)
    assert len(second) == 64


def test_a_policy_without_templates_has_no_attribute() -> None:
    _, attached = only(xfrm.update_policy(SpdEntry(Direction.OUT, Selector.between(A4, B4), 5), 3))
    assert attached == {}


@pytest.mark.parametrize(
    ("selector", "templates", "families"),
    [
        (Selector.between(A4, B4), (ESP_TRANSPORT, AH_TRANSPORT), [2, 2]),
        (Selector.between(A6, B6), (ESP_TRANSPORT, AH_TRANSPORT), [10, 10]),
        (Selector.between(A6, B6), (TUNNEL4, AH_TRANSPORT), [2, 2]),
        (Selector.between(A4, B4), (TUNNEL6, AH_TRANSPORT), [10, 10]),
        (Selector.between(A4, B4), (ESP_TRANSPORT, TUNNEL6, AH_TRANSPORT), [2, 10, 10]),
    ],
)
def test_a_transport_template_is_of_the_family_that_the_tunnel_before_it_left(
    selector: Selector, templates: tuple[Template, ...], families: list[int]
) -> None:
    _, attached = only(xfrm.update_policy(SpdEntry(Direction.OUT, selector, 5, templates), 3))
    found = attached[Attribute.TMPL]
    assert [struct.unpack_from("=H", found, at)[0] for at in range(24, len(found), 64)] == families


def test_a_policy_that_contradicts_itself_is_never_encoded() -> None:
    selector = Selector.between(A4, B4)
    for templates, block in (
        ((ESP_TRANSPORT,), True),
        ((replace(ESP_TRANSPORT, mode=Mode.TUNNEL),), False),
        ((replace(ESP_TRANSPORT, source=A4, destination=B4),), False),
        ((replace(TUNNEL4, source=None),), False),
        ((replace(TUNNEL4, source=A6),), False),
        ((ESP_TRANSPORT, replace(AH_TRANSPORT, source=A4)), False),
        ((ESP_TRANSPORT,) * 7, False),
    ):
        with pytest.raises(LayoutError):
            xfrm.update_policy(SpdEntry(Direction.OUT, selector, 5, templates, block), 1)
    with pytest.raises(LayoutError, match="two families"):
        xfrm.update_policy(SpdEntry(Direction.OUT, Selector(ip_network(A4), ip_network(B6)), 5), 1)


@pytest.mark.parametrize(("family", "number"), [(4, 2), (6, 10)])
@pytest.mark.parametrize("direction", [Direction.IN, Direction.OUT])
def test_the_exemption_of_a_socket_allows_everything_one_way(
    family: int, number: int, direction: Direction
) -> None:
    value = xfrm.socket_bypass(direction, family)
    infinite = 2**64 - 1
    selector = bytes(40) + struct.pack("=H", number) + bytes(14)
    limits = struct.pack("=8Q", *(infinite,) * 4, *(0,) * 4) + bytes(32)
    # linux/xfrm.h: priority, index, dir, action XFRM_POLICY_ALLOW, flags, share, padding.
    assert value == selector + limits + struct.pack("=IIBBBB4x", 0, 0, direction, 0, 0, 0)
    assert len(value) == 168


networks4 = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
    lambda pair: ip_network(pair, strict=False)
)
networks6 = st.tuples(st.integers(2**32, 2**128 - 1), st.integers(0, 128)).map(
    lambda pair: ip_network((IPv6Address(pair[0]), pair[1]), strict=False)
)
ports = st.builds(PortMatch, st.integers(0, 65535), st.integers(0, 65535))


@st.composite
def templates(draw: st.DrawFn) -> Template:
    ends: dict[str, object] = {}
    if mode := draw(st.sampled_from(Mode)):
        networks = draw(st.sampled_from([networks4, networks6]))
        ends = {"source": draw(networks)[0], "destination": draw(networks)[0]}
    return Template(
        draw(st.sampled_from(IpsecProtocol)),
        mode,
        draw(st.integers(0, 2**32 - 1)),
        optional=draw(st.booleans()),
        **ends,  # type: ignore[arg-type]
    )


@st.composite
def entries(draw: st.DrawFn) -> SpdEntry:
    networks = draw(st.sampled_from([networks4, networks6]))
    source, destination = draw(networks), draw(networks)
    selector = Selector(source, destination, draw(st.integers(0, 255)), draw(ports), draw(ports))
    block = draw(st.booleans())
    chosen = () if block else tuple(draw(st.lists(templates(), max_size=6)))
    direction = draw(st.sampled_from(Direction))
    return SpdEntry(direction, selector, draw(st.integers(0, 2**32 - 1)), chosen, block)


@given(entries())
def test_a_policy_reads_back_as_it_was_written(entry: SpdEntry) -> None:
    (message,) = netlink.messages(xfrm.update_policy(entry, 1))
    assert answers.read_policy(message) == entry


@given(
    st.sampled_from(TRANSFORMS),
    st.sampled_from([("10.9.0.1", "10.9.0.2"), ("fd09::1", "fd09::2")]),
    st.integers(1, 2**32 - 1),
    st.builds(SaLimits, *[st.none() | st.integers(1, 2**64 - 2)] * 6),
    st.booleans(),
    st.sampled_from(Mode),
    st.booleans(),
)
def test_an_sa_reads_back_as_it_was_written(
    transform: Transform,
    ends: tuple[str, str],
    spi: int,
    limits: SaLimits,
    esn: bool,
    mode: Mode,
    udp: bool,
) -> None:
    made = sa(transform, *ends)
    udp = udp and transform.protocol is IpsecProtocol.ESP
    made = replace(made, id=replace(made.id, spi=spi), limits=limits, esn=esn, mode=mode, udp=udp)
    (message,) = netlink.messages(xfrm.install(made, 1))
    state = answers.read_state(message)
    assert state is not None
    assert (state.id, state.mode, state.reqid) == (made.id, mode, made.reqid)
    assert (state.selector, state.limits) == (made.selector, limits)
    names = (transform.aead, transform.encryption, transform.authentication)
    assert state.algorithms == tuple(name for name in names if name)
    assert (state.esn, state.udp) == (esn, udp)
    assert not state.larval
    assert answers.read_spi(message) == spi


def test_an_sa_in_udp_of_another_kind_is_not_esp_in_udp() -> None:
    body = bytes(xfrm.install(sa(), 1)[16 : 16 + 224])
    for kind, wanted in ((2, True), (1, False), (7, False)):
        encap = struct.pack("=H", kind) + bytes(22)
        (message,) = netlink.messages(netlink.encode(0x10, 0, 1, body, [(4, (encap,))]))
        state = answers.read_state(message)
        assert state is not None
        assert state.udp is wanted
    (message,) = netlink.messages(netlink.encode(0x10, 0, 1, body, [(4, (bytes(20),))]))
    with pytest.raises(MalformedMessage):
        answers.read_state(message)


@pytest.mark.parametrize("change", [(20, 108), (48, 4)], ids=["IPComp", "BEET"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_foreign_policy_that_the_model_cannot_say_does_not_look_like_a_bypass(
    which: int, change: tuple[int, int]
) -> None:
    entry = SpdEntry(Direction.OUT, Selector.between(A4, B4), 5, (ESP_TRANSPORT, AH_TRANSPORT))
    written = xfrm.update_policy(entry, 1)
    position, value = change
    written[16 + 168 + 4 + 64 * which + position] = value
    (message,) = netlink.messages(written)
    assert answers.read_policy(message) == replace(entry, templates=(), block=True)


def test_an_acquire_is_for_the_template_whose_protocol_it_names() -> None:
    entry = SpdEntry(Direction.OUT, Selector.between(A6, B6), 5, (TUNNEL4, AH_TRANSPORT))
    policy = bytes(xfrm.update_policy(entry, 1)[16:])
    for template in entry.templates:
        name = B4.packed.ljust(20, b"\0") + bytes([template.protocol, 0, 0, 0])
        head = name + A4.packed.ljust(16, b"\0") + policy[:56] + policy[:168] + bytes(16)
        body = memoryview(head + policy[168:])
        event = answers.read_event(Message(Type.ACQUIRE, 0, 1, body))
        assert isinstance(event, Acquire)
        assert (event.source, event.destination) == (A4, B4)
        assert (event.protocol, event.mode) == (template.protocol, template.mode)
        assert (event.reqid, event.flow) == (template.reqid, entry.selector)
    with pytest.raises(MalformedMessage, match="without its template"):
        answers.read_event(Message(Type.ACQUIRE, 0, 1, body[:280]))


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
