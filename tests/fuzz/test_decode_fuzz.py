"""A capture of any octets is read or refused in words; any datagram has a view."""

from __future__ import annotations

import dataclasses
import io
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from kinkd.decode import pcap, text
from kinkd.decode.document import plain
from kinkd.decode.reader import Reader
from kinkd.decode.summary import Summary
from kinkd.errors import LocalError
from kinkd.kerberos.keytab import read_keytab
from kinkd.wire import kink
from kinkd.wire.numbers import KeyUsage
from tests.support import own, packets, recordings

CAPTURES = [recordings.capture(name) for name in ("esp2way", "delete", "wrongkey")]
KEYS = read_keytab(recordings.keytab("esp2way"))
DATAGRAMS = recordings.datagrams("esp2way")
WHOLE = packets.udp(DATAGRAMS[0].octets)
CAPTURES.append(  # one message in two fragments
    packets.capture(
        packets.ipv4(17, WHOLE[:400], fragment=0x2000),
        packets.ipv4(17, WHOLE[400:], fragment=400 // 8),
    )
)


@st.composite
def damaged(draw, originals):
    octets = bytearray(draw(originals))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(octets)))
        octets[at : at + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(octets)


def shown(view: object) -> None:
    out = io.StringIO()
    if isinstance(view, pcap.Other):
        out.writelines(text.render_others([view, view], 0))
    else:
        out.writelines(text.render_message(view, 0, show_keys=True))
    json.dumps(plain(view, show_keys=True))


WORLD = own.WORLDS["tunnels"]()
CREATE, REPLY, *_ = own.datagrams(WORLD)


def session_key():
    reader = Reader(own.keytab(WORLD))
    reader.read(CREATE)
    (exchange,) = reader._exchanges.values()
    return exchange.key


KEY = session_key()


def clear(datagram) -> bytes:
    sealed = kink.decode(datagram.octets).message.payloads[1]
    assert isinstance(sealed, kink.Encrypt)
    return KEY.decrypt(KeyUsage.ENCRYPT, sealed.cipher)


def with_inside(datagram, inside: bytes):
    """The datagram with other octets inside KINK_ENCRYPT, genuine all the same."""
    message = kink.decode(datagram.octets).message
    sealed = kink.Encrypt(KEY.encrypt(KeyUsage.ENCRYPT, inside))
    changed = dataclasses.replace(message, payloads=(message.payloads[0], sealed))
    signed = kink.encode(changed)
    octets = kink.with_checksum(signed, KEY.checksum(KeyUsage.CHECKSUM, signed))
    return dataclasses.replace(datagram, octets=octets)


@settings(deadline=None)
@given(
    st.one_of(st.just(clear(CREATE)), damaged(st.just(clear(CREATE)))),
    st.one_of(st.binary(max_size=60), damaged(st.just(clear(REPLY)))),
)
def test_whatever_a_genuine_host_has_inside_is_shown(asked, answered):
    reader, summary = Reader(own.keytab(WORLD)), Summary()
    for datagram in (with_inside(CREATE, asked), with_inside(REPLY, answered)):
        view = reader.read(datagram)
        shown(view)
        summary.add(view)
        assert view.verified
    assert "\n" not in "".join(summary.lines(0))


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=100), damaged(st.sampled_from(CAPTURES))))
def test_any_capture_is_read_or_refused(octets):
    reader = Reader(KEYS)
    refusal = ""
    try:
        for packet in pcap.read(octets):
            shown(reader.read(packet) if isinstance(packet, pcap.Datagram) else packet)
    except LocalError as error:
        refusal = str(error)
    assert "\n" not in refusal


@settings(deadline=None)
@given(st.lists(damaged(st.sampled_from([packet.octets for packet in DATAGRAMS])), max_size=3))
def test_any_datagram_has_a_view(octets):
    reader, summary = Reader(KEYS), Summary()
    for datagram in (*DATAGRAMS, *(dataclasses.replace(DATAGRAMS[0], octets=o) for o in octets)):
        view = reader.read(datagram)
        shown(view)
        summary.add(view)
    assert "\n" not in "".join(summary.lines(0))
