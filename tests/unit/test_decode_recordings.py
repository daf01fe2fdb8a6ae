"""The decoder on racoon2's recorded exchanges: all of it, and key for key."""

from __future__ import annotations

import dataclasses
import io
import json
from ipaddress import ip_address

import pytest

from kinkd.cli import decode as command
from kinkd.decode import pcap, reader, text
from kinkd.decode.summary import Summary
from kinkd.errors import LocalError
from kinkd.kerberos.keytab import read_keytab
from kinkd.wire.numbers import ProtocolId
from tests.support import packets, recordings


def views(name, with_keytab=True):
    entries = read_keytab(recordings.keytab(name)) if with_keytab else []
    decoder = reader.Reader(entries)
    return [decoder.read(datagram) for datagram in recordings.datagrams(name)]


def decoded(name, *, keytab=True, show_keys=False, as_json=False):
    folder = recordings.INTEROP / name
    out = io.StringIO()
    keys = str(folder / "realm.keytab") if keytab else None
    assert command.run(str(folder / "exchange.pcap"), keys, show_keys, as_json, out) == 0
    return out.getvalue()


@pytest.mark.parametrize("name", recordings.NAMES)
def test_every_recorded_message_is_read_to_the_last_field(name):
    found = views(name)
    assert found
    for view in found:
        assert not view.problem
        assert not [payload.problem for payload in view.flat if payload.problem]
        for payload in view.flat:
            if isinstance(payload.kerberos, reader.ApReqView):
                assert payload.kerberos.authenticator is not None
            if isinstance(payload.kerberos, reader.ApRepView):
                assert payload.kerberos.matches


def test_a_message_in_ip_fragments_is_decoded_as_it_is_in_one_piece(tmp_path):
    create = recordings.datagrams("esp2way")[0].octets
    whole = packets.udp(create)
    assert len(whole) > 800
    printed = []
    for frames in (
        [packets.ipv4(17, whole)],
        [
            packets.ipv4(17, whole[400:], fragment=400 // 8),
            packets.ipv4(17, whole[:400], fragment=0x2000),
        ],
    ):
        path = tmp_path / f"{len(frames)}.pcap"
        path.write_bytes(packets.capture(*frames))
        out = io.StringIO()
        keys = str(recordings.INTEROP / "esp2way" / "realm.keytab")
        assert command.run(str(path), keys, False, True, out) == 0
        printed.append(json.loads(out.getvalue()))
    single, cut = printed
    assert cut["packets"][1:] == single["packets"]
    assert cut["packets"][0]["detail"] == "an IP fragment"


@pytest.mark.rfc("4430-4-11")
@pytest.mark.rfc("4430-4-12")
@pytest.mark.parametrize("name", recordings.NAMES)
def test_every_recorded_checksum_verifies(name):
    for view in views(name):
        keyed = any(
            isinstance(payload.kerberos, reader.ApReqView | reader.ApRepView)
            for payload in view.payloads
        )
        assert view.verified is (True if keyed else None)


@pytest.mark.rfc("4430-5-4")
@pytest.mark.rfc("4430-7-2")
@pytest.mark.parametrize("name", recordings.KEYED)
def test_keymat_is_what_the_kernel_was_given(name):
    found = {}
    for view in views(name):
        for keys in view.keymat:
            protocol = ProtocolId(keys.protocol_id).name.lower()
            found[str(keys.destination), protocol, keys.spi.hex()] = (
                keys.encryption.value.hex(),
                keys.authentication.value.hex(),
            )
    assert recordings.kernel_keys(name).items() <= found.items()


def test_a_changed_octet_makes_the_checksum_wrong():
    datagram = recordings.datagrams("esp2way")[0]
    octets = bytearray(datagram.octets)
    octets[11] ^= 1  # the XID
    decoder = reader.Reader(read_keytab(recordings.keytab("esp2way")))
    changed = dataclasses.replace(datagram, octets=bytes(octets))
    assert decoder.read(changed).verified is False


@pytest.mark.parametrize("name", recordings.NAMES)
@pytest.mark.parametrize("as_json", [False, True])
def test_key_material_is_shown_only_where_it_is_asked_for(name, as_json):
    secrets = {entry.key.value.hex() for entry in read_keytab(recordings.keytab(name))}
    session = set()
    for view in views(name):
        for keys in view.keymat:
            secrets |= {keys.encryption.value.hex(), keys.authentication.value.hex()}
        for payload in view.flat:
            if isinstance(payload.kerberos, reader.ApReqView) and payload.kerberos.ticket:
                session.add(payload.kerberos.ticket.session_key.value.hex())
    hidden = decoded(name, as_json=as_json)
    assert session
    assert not [secret for secret in secrets | session if secret and secret in hidden]
    shown = decoded(name, as_json=as_json, show_keys=True)
    assert all(secret in shown for secret in session)


def test_without_a_keytab_the_frame_is_read_and_the_rest_is_named():
    for view in views("esp2way", with_keytab=False):
        assert view.verified is None
        assert view.header is not None
    shown = decoded("esp2way", keytab=False)
    assert "no key for the ticket of kink/bob.kink.test@KINK.TEST" in shown
    assert "not verified: no key" in shown


def test_the_text_tells_what_was_agreed_and_what_followed():
    shown = decoded("esp2way")
    for line in (
        "CREATE(1)",
        "REPLY(3)",
        "ticket  client kink/alice.kink.test@KINK.TEST",
        "PROPOSAL 1  ESP(3)  spi 0x0d7d4993",
        "KEY_LENGTH(6) = 128",
        "Cksum 2a342dd39a650055f061d56d  verified",
        "matches an authenticator",
        "10.99.0.1 > 10.99.0.2  ESP spi 0x08b12ecd seq 1 to 3  3 packets until",
    ):
        assert line in shown
    assert "KRB-ERROR 37" in decoded("skew")
    assert "KRB-ERROR 32" in decoded("tktexpired")
    assert "DELETE  doi 1  ESP(3)  spi 0x02558410" in decoded("delete")
    assert "ackreq 1" in decoded("esp3way-prop2")


def test_json_is_one_object_a_packet():
    whole = json.loads(decoded("esp2way", as_json=True))
    assert whole["version"] == 1
    objects = whole["packets"]
    assert [one["record"] for one in objects].count("MessageView") == 2
    assert {one["record"] for one in objects} == {"MessageView", "Other"}
    assert [one["command"] for one in whole["commands"]] == ["CREATE"]


HOPED_FOR = "AES_CBC(12) 128 bits TRANSPORT(2) HMAC_SHA(2)"
COMMANDS = {
    "ah_esp": [
        "CREATE xid 0: AH(2) spi 0x079c3030 SHA(3) TRANSPORT(2) HMAC_SHA(2), "
        f"ESP(3) spi 0x004b3a0f {HOPED_FOR}"
    ],
    "delete": [
        f"CREATE xid 0: ESP(3) spi 0x07ba5d8d {HOPED_FOR}",
        "DELETE xid 1: deleted ESP(3) spi 0x07ba5d8d",
    ],
    "noproposal": ["CREATE xid 0 sent 5 times: NO ANSWER"],
    "skew": [
        "CREATE xid 0: KRB_AP_ERR_SKEW",
        f"CREATE xid 1: ESP(3) spi 0x0ee7f5bb {HOPED_FOR}",
    ],
    "wrongkey": ["CREATE xid 0 sent 5 times: KRB_AP_ERR_BAD_INTEGRITY, unauthenticated"],
    "esp3way-prop2": [f"CREATE xid 0: ESP(3) spi 0x0b11d66a {HOPED_FOR}"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_at_the_end_stands_what_came_of_each_command(name):
    _, told = decoded(name).split("\ncommands:\n")
    assert [line.split("  ", 1)[1] for line in told.splitlines()] == COMMANDS[name]


def test_an_ack_that_never_came_is_missed():
    found = Summary()
    create, reply, ack = views("esp3way-prop2")
    for view in (create, reply):
        found.add(view)
    assert "".join(found.lines(0)).endswith("THE ACK IS MISSING")
    found.add(ack)
    found.add(reply)  # repeated before the ACK came
    assert "MISSING" not in "".join(found.lines(0))


def test_what_anyone_can_send_does_not_hide_a_proven_answer():
    found, proven, lone = Summary(), views("esp2way"), views("wrongkey")[1]
    for view in (*proven, lone):
        found.add(view)
    (line,) = found.lines(0)
    assert line.endswith(f"ESP(3) spi 0x08b12ecd {HOPED_FOR}")


def test_without_a_keytab_the_commands_are_told_all_the_same():
    shown = decoded("delete", keytab=False)
    assert "CREATE xid 0: answered, encrypted" in shown
    assert "DELETE xid 1: answered, encrypted" in shown


def test_times_are_counted_from_one_that_is_told():
    assert decoded("esp2way").startswith("times from 2026-11-23T08:07:")


@pytest.mark.parametrize("octets", [b"", b"\x0a\x0d\x0d\x0a", b"text", b"\xd4\xc3\xb2\xa1"])
def test_what_is_no_capture_is_one_clear_line(tmp_path, octets):
    path = tmp_path / "bad.pcap"
    path.write_bytes(octets)
    with pytest.raises(LocalError, match=r"^[^\n]*bad\.pcap: [^\n]+$"):
        command.run(str(path), None, False, False, io.StringIO())


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(LocalError, match="No such file"):
        command.run(str(tmp_path / "none"), None, False, False, io.StringIO())


def test_a_capture_that_is_cut_off_is_read_to_the_cut(tmp_path):
    path = tmp_path / "cut.pcap"
    path.write_bytes(recordings.capture("esp2way")[:-5])
    out = io.StringIO()
    with pytest.raises(LocalError, match="cut-off"):
        command.run(str(path), None, False, False, out)
    assert "CREATE(1)" in out.getvalue()
    assert "CREATE xid 0: answered, encrypted" in out.getvalue()


def test_a_keytab_that_is_none_is_one_clear_line(tmp_path):
    path = tmp_path / "bad.keytab"
    path.write_bytes(b"text")
    capture = str(recordings.INTEROP / "esp2way" / "exchange.pcap")
    with pytest.raises(LocalError, match=r"^[^\n]*bad\.keytab: [^\n]+$"):
        command.run(capture, str(path), False, False, io.StringIO())


def test_a_text_on_the_wire_cannot_steer_the_terminal():
    datagram = recordings.datagrams("wrongkey")[1]
    octets = datagram.octets.replace(b"Decrypt", b"\x1b[2Jypt", 1)
    assert octets != datagram.octets
    view = reader.Reader().read(dataclasses.replace(datagram, octets=octets))
    lines = list(text.render_message(view, 0, show_keys=False))
    assert all(line.isprintable() for line in lines)
    assert "\\x1b[2J" in "".join(lines)


def test_packets_between_messages_are_a_line_a_kind_in_the_order_of_the_first():
    a, b = ip_address("10.0.0.1"), ip_address("10.0.0.2")
    second = 1_000_000_000
    found = [
        pcap.Other(second, "ESP", False, a, b, "spi 0x00001234", 1),
        pcap.Other(2 * second, "ARP", True),
        pcap.Other(3 * second, "ESP", False, a, b, "spi 0x00001234", 9),
        pcap.Other(4 * second, "ESP", False, b, a, "spi 0x00005678", 1),
        pcap.Other(5 * second, "ARP", True),
        pcap.Other(6 * second, "unreadable", True, detail="\x1b[2J"),
    ]
    assert list(text.render_others(found, 0)) == [
        "+1.000000 s 10.0.0.1 > 10.0.0.2  ESP spi 0x00001234 seq 1 to 9"
        "  2 packets until +3.000000 s",
        "+2.000000 s  ARP  2 packets until +5.000000 s  clear",
        "+4.000000 s 10.0.0.2 > 10.0.0.1  ESP spi 0x00005678 seq 1",
        "+6.000000 s  unreadable \\x1b[2J  clear",
    ]
