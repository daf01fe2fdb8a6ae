"""The decoder on messages of our own: whatever KINK can carry, in words, and every key."""

from __future__ import annotations

import io
import json
import struct

import pytest

from kinkd.cli import decode as command
from kinkd.decode import keys, text, words
from kinkd.decode.document import plain
from kinkd.decode.pcap import Datagram
from kinkd.decode.reader import MessageView, Reader, Unread
from kinkd.decode.summary import Summary
from kinkd.errors import PeerError
from kinkd.kerberos import messages
from kinkd.model import IpsecProtocol
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import (
    AhTransform,
    AuthenticationAlgorithm,
    EspTransform,
    MessageType,
    NotifyType,
    ProtocolId,
)
from tests.support import own
from tests.support.pair import World

READ = {name: make() for name, make in own.WORLDS.items()}


def views(world: World) -> list[MessageView]:
    reader = Reader(own.keytab(world))
    return [reader.read(datagram) for datagram in own.datagrams(world)]


def shown(world: World) -> str:
    return "\n".join(
        line for view in views(world) for line in text.render_message(view, 0, show_keys=False)
    )


def kernel_keys(world: World) -> dict[tuple[str, int, int], tuple[bytes, bytes]]:
    """Of all SAs with keys, by destination, protocol and SPI."""
    found = {}
    for node in world.nodes.values():
        for entry in node.kernel._states.values():
            if entry.sa is not None:
                octets, split = bytes(entry.sa.keymat.value), entry.sa.transform.encryption_octets
                name = (str(entry.id.destination), int(entry.id.protocol), entry.id.spi)
                found[name] = octets[:split], octets[split:]
    return found


def read_keys(world: World) -> dict[tuple[str, int, int], tuple[bytes, bytes]]:
    numbers = {2: int(IpsecProtocol.AH), 3: int(IpsecProtocol.ESP)}
    return {
        (str(one.destination), numbers[one.protocol_id], int.from_bytes(one.spi)): (
            bytes(one.encryption.value),
            bytes(one.authentication.value),
        )
        for view in views(world)
        for one in view.keymat
    }


@pytest.mark.parametrize("name", sorted({*READ} - {"refusals"}))
def test_every_message_is_read_and_verified(name):
    for view in views(READ[name]):
        assert view.verified
        assert not view.problem
        assert not [payload.problem for payload in view.flat if payload.problem]


@pytest.mark.rfc("4430-7-1", "4430-7-2")
@pytest.mark.parametrize(
    "name", ["fast", "bundle", "second bundle", "tunnels", "in UDP", "wrong clock"]
)
def test_the_keys_are_those_of_both_kernels(name):
    assert kernel_keys(READ[name])
    assert read_keys(READ[name]) == kernel_keys(READ[name])


def test_several_quick_modes_are_matched_with_their_answers():
    world = READ["several"]
    (_, reply) = views(world)
    assert [one.quick_mode for one in reply.keymat] == [1, 1, 2, 2]
    assert [one.spi.hex() for one in reply.keymat[::2]] == ["00002001", "00002002"]
    assert [len(one.encryption) for one in reply.keymat] == [36, 36, 20, 20]
    # They were made by hand at the initiator: the responder's kernel has them all.
    assert read_keys(world) == kernel_keys(world)
    assert "KEYMAT  KINK_ISAKMP 2, ESP(3) spi 0x00002002, inbound at the initiator" in shown(world)


def test_answers_that_cannot_be_matched_have_no_keys():
    world = own.several()
    reader = Reader(own.keytab(world))
    create, reply = own.datagrams(world)
    reader.read(create)
    exchange = next(iter(reader._exchanges.values()))
    exchange.offers = exchange.offers[:1]
    view = reader.read(reply)
    assert (view.keymat, view.keyless) == ((), ("2 answers to 1 KINK_ISAKMP payloads",))


def test_with_a_ke_payload_it_says_why_there_are_no_keys():
    world = READ["forward secrecy"]
    assert not read_keys(world)
    lines = shown(world)
    assert "GROUP_DESCRIPTION(3) = 19 ecp256" in lines
    found_summary = Summary()
    for view in views(world):
        found_summary.add(view)
    (said,) = found_summary.lines(0)
    assert said.endswith("AES_GCM_16(20) 256 bits group 19 ecp256 TRANSPORT(2)")
    assert "  KEYMAT  none: g^xy of the KE payloads goes into KEYMAT" in lines
    assert "KE  64 octets  " in lines


def test_the_text_names_modes_sequence_numbers_and_identities():
    tunnels, in_udp = shown(READ["tunnels"]), shown(READ["in UDP"])
    for line in (
        "PROPOSAL 1  AH(2)  spi 0x03e80001",
        "TRANSFORM 1  SHA2_512(7)",
        "AUTHENTICATION_ALGORITHM(5) = HMAC_SHA2_512(7)",
        "ENCAPSULATION_MODE(4) = TUNNEL(1)",
        "ESN(11) = 1 64-bit sequence numbers",
        "IDci  IPV4_ADDR_SUBNET(4)  10.20.0.0/16  protocol any  port any",
        "IDcr  IPV4_ADDR(1)  10.0.0.2  protocol any  port any",
        "REPLY(3) to CREATE",
    ):
        assert line in tunnels
    assert "ENCAPSULATION_MODE(4) = UDP_TUNNEL(3)" in in_udp
    assert "IDci  IPV6_ADDR_SUBNET(6)  2001:db8:20::/48  protocol any" in in_udp


def test_the_text_tells_a_kerberos_error_with_both_clocks():
    lines = shown(READ["wrong clock"])
    assert "KRB-ERROR 37 KRB_AP_ERR_SKEW: Clock skew too great" in lines
    assert "stime 2027-01-15T08:10:00Z susec 0  ctime 2027-01-15T08:00:00Z cusec 0" in lines
    assert "the server's clock is +600 s off the client's" in lines
    assert "from kink/bob.example.test@EXAMPLE.TEST  text " in lines


def test_the_text_names_what_was_refused_and_why():
    lines = shown(READ["refusals"])
    for line in (
        "NOTIFY  NO_PROPOSAL_CHOSEN(14)  doi 1  ESP(3)  spi none  data none",
        "NOTIFY  INVALID_PAYLOAD_TYPE(1)  doi 1  ESP(3)  spi none  data payload type KE(4)",
        "data payload type VENDOR_ID(13)",
        "NOTIFY  INVALID_SPI(11)  doi 1  AH(2)  spi 0x00009999  data none",
        "NOTIFY  PAYLOAD_MALFORMED(16)",
        "NOTIFY  INITIAL_CONTACT(24578)",
        "DELETE  doi 1  AH(2)  spi 0x00009999",
        "KINK_ERROR  BADQMVERS(6)",
        "KINK_ERROR  U2UDENIED(7)",
        "KINK_TGT_REQ  name 'kink/bob@EXAMPLE.TEST'",
        "REPLY(3) to GETTGT",
        "ISAKMP payload VENDOR_ID(13)  unread: 76656e64",
        "! ISAKMP payload type 13",
        "! a CREATE with Nonce",
        "! version 2.0",
    ):
        assert line in lines


def test_the_command_line_reads_them_from_a_file_as_json(tmp_path):
    path = tmp_path / "own.pcap"
    path.write_bytes(own.capture(READ["tunnels"]))
    out = io.StringIO()
    assert command.run(str(path), None, False, True, out) == 0
    whole = json.loads(out.getvalue())
    assert [one["command"] for one in whole["commands"]] == ["CREATE", "CREATE"]
    assert [one["replies"] for one in whole["commands"]] == [1, 1]
    assert len(whole["packets"]) == 4


def found(value: object, record: str) -> list[dict]:
    """All objects of one class in a document of JSON."""
    if isinstance(value, list):
        return [one for part in value for one in found(part, record)]
    if not isinstance(value, dict):
        return []
    inside = [one for part in value.values() for one in found(part, record)]
    return [value, *inside] if value.get("record") == record else inside


def document(world: World) -> object:
    return plain(views(world), show_keys=False)


def test_json_says_in_words_what_the_numbers_are():
    tunnels = document(READ["tunnels"])
    identities = {(one["name"], one["said"]) for one in found(tunnels, "Identification")}
    assert ("IPV4_ADDR_SUBNET(4)", "10.20.0.0/16  protocol any  port any") in identities
    attributes = {(one["name"], one["said"]) for one in found(tunnels, "Attribute")}
    assert ("ENCAPSULATION_MODE(4)", "TUNNEL(1)") in attributes
    proposals = {(one["protocol"], *one["said"]) for one in found(tunnels, "Proposal")}
    assert {("AH(2)", "SHA2_512(7)"), ("ESP(3)", "AES_CBC(12)")} <= proposals
    assert {one["protocol"] for one in found(tunnels, "KeymatView")} == {"AH(2)", "ESP(3)"}
    refusals = document(READ["refusals"])
    notified = {(one["name"], one["said"]) for one in found(refusals, "Notification")}
    assert ("INVALID_PAYLOAD_TYPE(1)", "payload type KE(4)") in notified
    assert {one["protocol"] for one in found(refusals, "Delete")} == {"AH(2)", "ESP(3)"}
    assert found(refusals, "Unread")[0]["type"] == 1


def alone(kind: MessageType, *payloads: kink.Payload, xid: int = 5) -> list[str]:
    """The lines of one unauthenticated message."""
    send = own.datagrams(READ["fast"])[0]
    octets = kink.encode(kink.Message(kind, xid, payloads), protected=False)
    view = Reader().read(Datagram(0, send.source, 910, send.destination, 910, octets))
    return list(text.render_message(view, 0, show_keys=False))


def test_a_tgt_is_told_by_its_names():
    request = READ["fast"].sent[0]
    proof = kink.decode(request.datagram).message.payloads[0]
    assert isinstance(proof, kink.ApReq)
    ticket = messages.read_ap_req(proof.ap_req).ticket.raw
    lines = alone(MessageType.REPLY, kink.TgtRep(ticket))
    assert lines[2] == f"  KINK_TGT_REP  {len(ticket)} octets"
    assert lines[3].startswith("    ticket for kink/bob.example.test@EXAMPLE.TEST  etype 18 aes256")
    assert "    ! " in alone(MessageType.REPLY, kink.TgtRep(b"no ticket"))[3]


def test_unknown_numbers_are_told_as_such():
    unknown = isakmp.SecurityAssociation(
        (
            isakmp.Proposal(
                1, 9, b"\1\2", (isakmp.Transform(1, 99, (isakmp.Attribute(77, 70000),)),)
            ),
        )
    )
    parts = (
        unknown,
        isakmp.Identification(99, 200, 0, b"abc"),
        isakmp.Notification(9, b"", 12345, b"\xab"),
        isakmp.Delete(7, (b"\1",)),
    )
    lines = "\n".join(
        alone(
            MessageType.STATUS, isakmp.encode(parts), kink.Unknown(200, b"\xcd"), kink.KinkError(9)
        )
    )
    for line in (
        "PROPOSAL 1  9  spi 0x0102",
        "TRANSFORM 1  99",
        "77 = 70000",
        "ID  99  616263  protocol 200  port any",
        "NOTIFY  12345  doi 1  9  spi none  data ab",
        "DELETE  doi 1  7  spi 0x01",
        "payload type 200  cd",
        "KINK_ERROR  9",
    ):
        assert line in lines.replace("IDci", "ID")


@pytest.mark.parametrize(
    ("data", "words_"),
    [
        ((1, b"\x0a\0\0\1"), "10.0.0.1"),
        ((4, b"\x0a\x14\0\0\xff\xff\0\0"), "10.20.0.0/16"),
        ((4, b"\x0a\x14\1\2\xff\xff\0\0"), "10.20.0.0/16"),
        ((4, b"\x0a\x14\0\0\xff\0\xff\0"), "10.20.0.0 mask 255.0.255.0"),
        ((4, bytes(8)), "0.0.0.0/0"),
        ((5, bytes(15) + b"\1"), "::1"),
        ((6, b"\x20\1" + bytes(14) + b"\xff\xff" + bytes(14)), "2001::/16"),
        ((7, b"\x0a\0\0\1\x0a\0\0\x09"), "10.0.0.1-10.0.0.9"),
        ((8, bytes(15) + b"\1" + bytes(15) + b"\2"), "::1-::2"),
        ((1, b"\x0a\0\0"), "0a0000"),
        ((2, b"host"), "686f7374"),
        ((1, b""), "nothing"),
    ],
)
def test_identities_are_told_as_addresses_subnets_and_ranges(data, words_):
    kind, octets = data
    assert words.identity(isakmp.Identification(kind, 6, 443, octets)) == (
        f"{words_}  protocol TCP(6)  port 443"
    )


def test_flags_are_told_by_name_and_the_others_by_number():
    assert words.flags(words.AP_OPTIONS, 3 << 29) == "use-session-key,mutual-required"
    assert words.flags(words.TICKET_FLAGS, 1 << 24 | 1) == "invalid,bit-31"
    assert words.flags(words.AP_OPTIONS, 0) == "none"


def proposal(protocol: int, transform: int, *attributes: tuple[int, int]) -> isakmp.Proposal:
    pairs = tuple(isakmp.Attribute(kind, value) for kind, value in attributes)
    return isakmp.Proposal(1, protocol, b"\0\0\2\0", (isakmp.Transform(1, transform, pairs),))


AUTHENTICATION, KEY_LENGTH = 5, 6


@pytest.mark.parametrize(
    ("one", "lengths"),
    [
        (proposal(3, EspTransform.AES_GCM_16, (KEY_LENGTH, 256)), (36, 0)),
        (proposal(3, EspTransform.AES_CCM_16, (KEY_LENGTH, 128)), (19, 0)),
        (proposal(3, EspTransform.AES_CTR, (KEY_LENGTH, 128), (AUTHENTICATION, 5)), (20, 32)),
        (proposal(3, EspTransform.NULL, (AUTHENTICATION, 7)), (0, 64)),
        (proposal(3, EspTransform.AES_CBC, (KEY_LENGTH, 127)), None),
        (proposal(3, EspTransform.AES_CBC), None),
        (proposal(3, EspTransform.NULL, (AUTHENTICATION, 99)), None),
        (proposal(3, 99, (KEY_LENGTH, 128)), None),
        (proposal(2, AhTransform.SHA2_384, (AUTHENTICATION, 6)), (0, 48)),
        (proposal(2, 9, (AUTHENTICATION, 9)), (0, 16)),
        (proposal(2, AhTransform.SHA2_384), None),
        (proposal(2, AhTransform.AES_192_GMAC, (AUTHENTICATION, 12)), (0, 28)),
        (proposal(4, 2), (0, 0)),
        (proposal(1, 1), None),
        (isakmp.Proposal(1, 3, b"", ()), None),
    ],
)
def test_key_lengths_are_those_of_each_algorithms_rfc(one, lengths):
    found_lengths = keys.key_lengths(one)
    assert (
        None if found_lengths is None else (found_lengths.encryption, found_lengths.authentication)
    ) == lengths


def test_what_was_agreed_on_without_an_offer_or_a_nonce_has_no_keys():
    ends = keys.Ends(*own.ALICE.addresses, *own.BOB.addresses)
    chosen = isakmp.SecurityAssociation((proposal(2, 5, (AUTHENTICATION, 5)),))
    nonce = isakmp.Nonce(bytes(8))

    def derive(offer, answer):
        return keys.derive(lambda seed: bytes(20), offer, answer, ends, 1)

    assert len(derive([chosen, nonce], [chosen])) == 2
    assert derive([chosen, nonce], [isakmp.Notification(3, b"", NotifyType.INVALID_SPI)]) == ()
    with pytest.raises(keys.Keyless, match="nonce"):
        derive([chosen], [chosen])
    with pytest.raises(keys.Keyless, match="proposal 1 was not offered"):
        derive([nonce], [chosen])
    with pytest.raises(keys.Keyless, match="how long"):
        derive([chosen, nonce], [isakmp.SecurityAssociation((proposal(2, 5),))])


def test_what_can_be_read_of_a_broken_chain_is_read():
    """One bad payload does not hide the others."""
    body = isakmp.encode((isakmp.Nonce(b"n" * 8), isakmp.Delete(ProtocolId.ESP, (b"\0\0\2\0",))))
    broken = kink.Isakmp(body.first, body.body[:-1])
    with pytest.raises(PeerError):
        isakmp.decode(broken)
    cut = kink.Isakmp(10, body.body + struct.pack("!BxH", 0, 99))
    parts = own.datagrams(READ["fast"])[0]
    for payload, kinds in ((broken, [isakmp.Nonce, Unread]), (cut, [isakmp.Nonce, isakmp.Delete])):
        octets = kink.encode(kink.Message(MessageType.STATUS, 1, (payload,)), protected=False)
        view = Reader().read(Datagram(0, parts.source, 910, parts.destination, 910, octets))
        (read,) = view.payloads
        assert [type(part) for part in read.quick_mode] == kinds
        assert read.problem


def test_values_have_names_as_far_as_they_have_any():
    assert words.attribute(isakmp.Attribute(AUTHENTICATION, 12))[1] == "AES_192_GMAC(12)"
    assert words.attribute(isakmp.Attribute(3, 30)) == ("GROUP_DESCRIPTION(3)", "30")
    assert words.attribute(
        isakmp.Attribute(AUTHENTICATION, AuthenticationAlgorithm.HMAC_SHA2_256)
    ) == ("AUTHENTICATION_ALGORITHM(5)", "HMAC_SHA2_256(5)")
