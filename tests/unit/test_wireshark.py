"""``conf/wireshark/kink.lua``: tshark sees what our own codec sees, and stumbles over nothing.

A start of tshark takes a second: each runs over many messages at once.
"""

from __future__ import annotations

import json
import random
import re
from ipaddress import ip_address

import pytest

from kinkd.decode.reader import Reader
from kinkd.errors import PeerError
from kinkd.kerberos import messages
from kinkd.kerberos.keytab import read_keytab
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import (
    AttributeClass,
    EspTransform,
    KinkErrorCode,
    MessageType,
    NotifyType,
    ProtocolId,
)
from tests.support import own, recordings, tshark

RECORDED = {name: recordings.datagrams(name) for name in recordings.NAMES}
EVERY_RECORDED = [datagram.octets for found in RECORDED.values() for datagram in found]


def numbers(row, field):
    return [int(value, 0) for value in row[field]]


def kinds(payloads):
    """The payload types as they are on the wire."""
    octets = kink.encode(kink.Message(MessageType.STATUS, 0, tuple(payloads)))
    chain, kind, found = octets[16:], octets[12], []
    while kind:
        found.append(kind)
        length = int.from_bytes(chain[2:4])
        kind, chain = chain[0], chain[length + -length % 4 :]
    return found


HEADER_FIELDS = (
    "kink4430.type",
    "kink4430.version",
    "kink4430.reserved",
    "kink4430.length",
    "kink4430.doi",
    "kink4430.xid",
    "kink4430.nextpayload",
    "kink4430.ackreq",
    "kink4430.reserved2",
    "kink4430.cksumlen",
    "kink4430.cksum",
    "kink4430.payload.type",
    "kink4430.payload.next",
    "kink4430.payload.length",
    "kink4430.epoch",
    "kink4430.encrypted",
)


def test_tshark_reads_every_recorded_message_as_we_do(tmp_path):
    fields = (*HEADER_FIELDS, "_ws.malformed", "kink4430.handed")
    found = tshark.rows(tmp_path, tshark.capture(EVERY_RECORDED), fields)
    assert len(found) == len(EVERY_RECORDED)
    for row, octets in zip(found, EVERY_RECORDED, strict=True):
        head, received = kink.header(octets), kink.decode(octets)
        message = received.message
        assert numbers(row, "kink4430.type") == [head.type]
        assert numbers(row, "kink4430.version") == [1]
        assert numbers(row, "kink4430.reserved") == [0]
        assert numbers(row, "kink4430.length") == [len(octets)]
        assert numbers(row, "kink4430.doi") == [1]
        assert numbers(row, "kink4430.xid") == [head.xid]
        assert numbers(row, "kink4430.ackreq") == [int(head.ack_request)]
        assert numbers(row, "kink4430.reserved2") == [0]
        assert numbers(row, "kink4430.cksumlen") == [len(received.checksum)]
        assert "".join(row["kink4430.cksum"]) == received.checksum.hex()
        types = kinds(message.payloads)
        assert numbers(row, "kink4430.nextpayload") == types[:1]
        assert numbers(row, "kink4430.payload.type") == types
        assert numbers(row, "kink4430.payload.next") == [*types[1:], 0]
        epochs = [payload.epoch for payload in message.payloads if hasattr(payload, "epoch")]
        assert numbers(row, "kink4430.epoch") == epochs
        ciphers = [p.cipher.hex() for p in message.payloads if isinstance(p, kink.Encrypt)]
        assert row["kink4430.encrypted"] == ciphers
        assert row["_ws.malformed"] == row["kink4430.handed"] == []
    seen = {MessageType(numbers(row, "kink4430.type")[0]) for row in found}
    assert seen == set(MessageType) - {MessageType.GETTGT}


def test_a_keytab_opens_tickets_authenticators_and_replies(tmp_path):
    folder = recordings.INTEROP / "delete"
    printed = tshark.run(
        tmp_path,
        *("-o", "kerberos.decrypt:TRUE", "-o", f"kerberos.file:{folder / 'realm.keytab'}"),
        *("-r", str(folder / "exchange.pcap"), "-Y", "kink4430", "-T", "json"),
        "--no-duplicate-keys",
    )
    found = [packet["_source"]["layers"]["kink4430"] for packet in json.loads(printed)]
    assert [layer["kink4430.type"] for layer in found] == ["1", "3", "2", "3"]
    create, reply = json.dumps(found[0]), json.dumps(found[1])
    assert '"kerberos.crealm": "KINK.TEST"' in create  # both of the ticket and the authenticator
    assert '"alice.kink.test"' in create
    assert "encTicketPart_element" in create
    (ctime,) = set(re.findall(r'"kerberos.ctime": "([^"]+)"', create))
    (cusec,) = set(re.findall(r'"kerberos.cusec": "(\d+)"', create))
    assert f'"kerberos.ctime": "{ctime}"' in reply
    assert f'"kerberos.cusec": "{cusec}"' in reply


def test_a_lone_kerberos_error_is_read_by_name(tmp_path):
    printed = tshark.run(
        tmp_path,
        *("-r", str(recordings.INTEROP / "wrongkey" / "exchange.pcap"), "-c", "8", "-V"),
        *("-Y", "kink4430.payload.type == 3 && kink4430.unauthenticated"),
    )
    assert "Payload: KINK_KRB_ERROR" in printed
    assert "error-code: eRR-BAD-INTEGRITY (31)" in printed


SA = isakmp.SecurityAssociation(
    (
        isakmp.Proposal(
            1,
            ProtocolId.ESP,
            bytes.fromhex("c0ffee01"),
            (
                isakmp.Transform(
                    1,
                    EspTransform.AES_GCM_16,
                    (isakmp.Attribute(AttributeClass.LIFE_DURATION, 3600),),
                ),
            ),
        ),
    )
)
QUICK_MODE = (
    SA,
    isakmp.Nonce(bytes(range(16))),
    isakmp.KeyExchange(bytes(64)),
    isakmp.Identification(1, 6, 80, bytes((10, 99, 0, 1))),
    isakmp.Notification(ProtocolId.ESP, b"\1\2\3\4", NotifyType.NO_PROPOSAL_CHOSEN),
    isakmp.Delete(ProtocolId.ESP, (b"\5\6\7\x08",)),
)


def reply(*payloads, checksum=b"", **header):
    message = kink.Message(MessageType.REPLY, 0xDEADBEEF, payloads, **header)
    signed = kink.encode(message, protected=bool(checksum))
    return kink.with_checksum(signed, checksum)


def changed(octets, offset, values):
    return octets[:offset] + values + octets[offset + len(values) :]


def recorded_ticket():
    """The DER ticket of a recorded AP-REQ."""
    payload = kink.decode(EVERY_RECORDED[0]).message.payloads[0]
    return messages.read_ap_req(payload.ap_req).ticket.raw


OUR_FIELDS = (
    *HEADER_FIELDS[:2],
    "kink4430.xid",
    "kink4430.ackreq",
    "kink4430.princname",
    "kink4430.error",
    "kink4430.isakmp.nextpayload",
    "kink4430.isakmp.qmmaj",
    "kink4430.isakmp.qmmin",
    "isakmp.typepayload",
    "isakmp.prop.protoid",
    "isakmp.spi",
    "isakmp.trans.id",
    "isakmp.nonce",
    "isakmp.id.data.ipv4_addr",
    "isakmp.notify.msgtype",
    "isakmp.delete.spi",
    "kerberos.SNameString",
    "_ws.col.Info",
    "_ws.expert.message",
)


def test_our_own_messages_are_read_to_the_last_field(tmp_path):
    unassigned = kink.KinkError(4242)
    sent = [
        reply(kink.ApRep(5, b""), isakmp.encode(QUICK_MODE), checksum=bytes(12), ack_request=True),
        kink.encode(
            kink.Message(MessageType.GETTGT, 7, (kink.TgtReq(b"kink/bob.kink.test@KINK.TEST"),)),
            protected=False,
        ),
        reply(kink.TgtRep(recorded_ticket())),
        *(reply(kink.KinkError(code)) for code in KinkErrorCode),
        reply(unassigned),
    ]
    create, gettgt, ticket, *errors, other = tshark.rows(tmp_path, tshark.capture(sent), OUR_FIELDS)

    assert numbers(create, "kink4430.xid") == [0xDEADBEEF]
    assert create["kink4430.ackreq"] == ["1"]
    assert create["kink4430.isakmp.nextpayload"] == ["1"]
    assert create["kink4430.isakmp.qmmaj"] == ["1"]
    assert create["kink4430.isakmp.qmmin"] == ["0"]
    assert create["isakmp.typepayload"] == ["1", "2", "3", "10", "4", "5", "11", "12"]
    assert create["isakmp.prop.protoid"] == ["3"]
    assert create["isakmp.spi"] == ["c0ffee01", "01020304"]
    assert create["isakmp.trans.id"] == ["20"]
    assert create["isakmp.nonce"] == [bytes(range(16)).hex()]
    assert create["isakmp.id.data.ipv4_addr"] == ["10.99.0.1"]
    assert create["isakmp.notify.msgtype"] == ["14"]
    assert create["isakmp.delete.spi"] == ["05060708"]
    assert create["_ws.col.Info"] == ["REPLY XID 0xdeadbeef ACKREQ: AP_REP, ISAKMP"]

    assert gettgt["kink4430.princname"] == ["kink/bob.kink.test@KINK.TEST"]
    assert ticket["kerberos.SNameString"] == ["kink", "bob.kink.test"]
    for code, row in zip(KinkErrorCode, errors, strict=True):
        assert numbers(row, "kink4430.error") == [code]
        assert f"KINK_{code.name}" in row["_ws.expert.message"]
        assert row["_ws.col.Info"] == [f"REPLY XID 0xdeadbeef: ERROR (KINK_{code.name})"]
    assert "RESERVED TO IANA 4242" in other["_ws.expert.message"]


QUICK_MODE_FIELDS = (
    "isakmp.typepayload",
    "isakmp.prop.number",
    "isakmp.prop.protoid",
    "isakmp.spi",
    "isakmp.trans.id",
    "isakmp.ipsec.attr.encap_mode",
    "isakmp.ipsec.attr.auth_algorithm",
    "isakmp.ipsec.attr.key_length",
    "isakmp.ipsec.attr.group_description",
    "isakmp.ipsec.attr.ext_seq_nbr",
    "isakmp.nonce",
    "isakmp.key_exchange.data",
    "isakmp.id.type",
    "isakmp.id.protoid",
    "isakmp.id.port",
    "isakmp.id.data.ipv4_addr",
    "isakmp.id.data.ipv4_subnet",
    "isakmp.id.data.ipv4_range_start",
    "isakmp.id.data.ipv4_range_end",
    "isakmp.id.data.ipv6_addr",
    "isakmp.id.data.ipv6_subnet",
    "isakmp.id.data.ipv6_range_start",
    "isakmp.id.data.ipv6_range_end",
    "isakmp.notify.msgtype",
    "isakmp.delete.protoid",
    "isakmp.delete.spi",
)
_ATTRIBUTES = {  # SA attribute classes
    3: "group_description",
    4: "encap_mode",
    5: "auth_algorithm",
    6: "key_length",
    11: "ext_seq_nbr",
}
_ADDRESSES = {  # identity types
    1: ("ipv4_addr",),
    4: ("ipv4_addr", "ipv4_subnet"),
    5: ("ipv6_addr",),
    6: ("ipv6_addr", "ipv6_subnet"),
    7: ("ipv4_range_start", "ipv4_range_end"),
    8: ("ipv6_range_start", "ipv6_range_end"),
}


class Expected(dict):
    """What tshark is to show of Quick Mode payloads, in its fields."""

    def __init__(self, payloads):
        super().__init__({field: [] for field in QUICK_MODE_FIELDS})
        for payload in payloads:
            for part in isakmp.decode(payload):
                self.read(part)

    def add(self, field, value):
        self[f"isakmp.{field}"].append(value.hex() if isinstance(value, bytes) else str(int(value)))

    def read(self, part):
        kind = isakmp.encode([part]).first
        self.add("typepayload", kind)
        match part:
            case isakmp.SecurityAssociation(proposals):
                for each in proposals:
                    self.read_proposal(each)
            case isakmp.Nonce(data):
                self.add("nonce", data)
            case isakmp.KeyExchange(data):
                self.add("key_exchange.data", data)
            case isakmp.Identification(kind, protocol, port, data):
                self.add("id.type", kind)
                self.add("id.protoid", protocol)
                self.add("id.port", port)
                names = _ADDRESSES[kind]
                size = len(data) // len(names)
                for at, name in enumerate(names):
                    text = str(ip_address(data[at * size : (at + 1) * size]))
                    self[f"isakmp.id.data.{name}"].append(text)
            case isakmp.Notification():
                if part.spi:
                    self.add("spi", part.spi)
                self.add("notify.msgtype", part.type)
            case isakmp.Delete(protocol, spis):
                self.add("delete.protoid", protocol)
                for spi in spis:
                    self.add("delete.spi", spi)

    def read_proposal(self, proposal):
        self.add("typepayload", 2)
        self.add("prop.number", proposal.number)
        self.add("prop.protoid", proposal.protocol_id)
        self.add("spi", proposal.spi)
        for transform in proposal.transforms:
            self.add("typepayload", 3)
            self.add("trans.id", transform.transform_id)
            for each in transform.attributes:
                if each.type in _ATTRIBUTES:
                    self.add(f"ipsec.attr.{_ATTRIBUTES[each.type]}", each.value)


def quick_modes(views):
    """The KINK_ISAKMP payloads of each message that has any."""
    for view in views:
        found = tuple(each.payload for each in view.flat if isinstance(each.payload, kink.Isakmp))
        if found and not any(each.problem for each in view.flat):
            yield found


def every_quick_mode():
    for name in recordings.NAMES:
        reader = Reader(read_keytab(recordings.keytab(name)))
        yield from quick_modes(map(reader.read, RECORDED[name]))
    for make in own.WORLDS.values():
        world = make()
        reader = Reader(own.keytab(world))
        yield from quick_modes(map(reader.read, own.datagrams(world)))


IDENTITIES = [
    isakmp.Identification(kind, 17, 53, bytes((10,)) * size)
    for kind, size in ((1, 4), (5, 16), (7, 8), (8, 32))
] + [
    isakmp.Identification(4, 0, 0, bytes((10, 20, 0, 0, 255, 255, 0, 0))),
    isakmp.Identification(6, 0, 0, bytes((32, 1)) + bytes(14) + b"\xff" * 6 + bytes(10)),
]


def test_quick_modes_in_clear_are_read_as_we_read_them(tmp_path):
    """All that was ever recorded or that we make, taken out of KINK_ENCRYPT."""
    found = [*every_quick_mode(), (isakmp.encode(IDENTITIES),)]
    several = [payloads for payloads in found if len(payloads) > 1]
    assert len(several) == 2  # the CREATE and its REPLY
    proof = kink.decode(EVERY_RECORDED[1]).message.payloads[0]
    sent = [reply(proof, *payloads, checksum=bytes(12)) for payloads in found]
    fields = (*QUICK_MODE_FIELDS, "kink4430.payload.type", "kink4430.length.bad", "_ws.malformed")
    rows = tshark.rows(tmp_path, tshark.capture(sent), fields)
    for row, payloads in zip(rows, found, strict=True):
        assert {field: row[field] for field in QUICK_MODE_FIELDS} == Expected(payloads)
        assert numbers(row, "kink4430.payload.type") == [2] + [6] * len(payloads)
        assert row["kink4430.length.bad"] == row["_ws.malformed"] == []


def test_messages_of_our_own_are_read_as_we_read_them(tmp_path):
    sent = [each.octets for make in own.WORLDS.values() for each in own.datagrams(make())]
    found = tshark.rows(tmp_path, tshark.capture(sent), (*HEADER_FIELDS, "_ws.malformed"))
    for row, octets in zip(found, sent, strict=True):
        head, message = kink.header(octets), kink.decode(octets).message
        assert numbers(row, "kink4430.type") == [head.type]
        assert numbers(row, "kink4430.xid") == [head.xid]
        assert numbers(row, "kink4430.length") == [len(octets)]
        assert numbers(row, "kink4430.ackreq") == [int(head.ack_request)]
        assert numbers(row, "kink4430.payload.type") == kinds(message.payloads)
        assert row["_ws.malformed"] == []
    assert {numbers(row, "kink4430.type")[0] for row in found} == {*map(int, MessageType)}


GOOD = reply(kink.ApRep(5, b"abc"), kink.Encrypt(b"c" * 32), checksum=bytes(12))
ALONE = reply(kink.KinkError(1))
FAULTS = {
    "kink4430.short": GOOD[:15],
    "kink4430.version.unknown": changed(GOOD, 1, b"\x20"),
    "kink4430.doi.unknown": changed(GOOD, 7, b"\x02"),
    "kink4430.unknown": changed(GOOD, 0, b"\x07"),
    "kink4430.length.bad": changed(GOOD, 2, b"\xff\xff"),
    "kink4430.cksum.unaligned": changed(GOOD, 14, b"\x00\x0b"),
    "kink4430.reserved.set": changed(GOOD, 13, b"\x01"),
    "kink4430.padding.set": changed(GOOD, 27, b"\x01"),
    "kink4430.chain.bad": changed(GOOD, 28, b"\x06"),
    "kink4430.trailing.present": GOOD + b"behind",
    "kink4430.unauthenticated": ALONE,
    "kink4430.isakmp.clear": reply(kink.Isakmp(0, b"")),
    "kink4430.isakmp.version": reply(kink.Isakmp(1, b"", 1, 1)),
    "kink4430.handed": GOOD,  # whose "abc" is no AP-REP
}
CLEAR = reply(isakmp.encode(QUICK_MODE))
SHORT = "A Quick Mode payload is too short or too long"
LENGTHS = {
    "Length 15, where 16 to 72 is possible": changed(ALONE.ljust(72, b"\0"), 3, b"\x0f"),
    "Checksum length 9, where 8 is the most possible": changed(ALONE, 14, b"\x00\x09"),
    "Payload length 3, where 4 to 8 is possible": changed(ALONE, 18, b"\x00\x03"),
    "Payload length 9, where 4 to 8 is possible": changed(ALONE, 18, b"\x00\x09"),
    "No room for the 4 octets this payload begins with": changed(ALONE, 18, b"\x00\x04"),
    "No room for the payload KINK_AP_REQ": changed(ALONE, 16, b"\x01"),
    "More than 256 payloads: the rest is not read": changed(
        ALONE[:16] + b"\x09\0\0\x04" * 300, 2, (16 + 1200).to_bytes(2)
    ),
}


def test_quick_mode_payloads_that_cannot_be_are_not_handed_on(tmp_path):
    """An SA of under 12 octets makes the built-in dissector report a fault of its own."""
    alone = [
        reply(kink.Isakmp(1, bytes((0, 0, 0, size)).ljust(size, b"\0")))
        for size in (4, 7, 8, 11, 12)
    ]
    sent = [*alone, *(changed(CLEAR, 26, size.to_bytes(2)) for size in (3, 36, 37, 0x7FFF))]
    fields = ("_ws.expert.message", "isakmp.typepayload")
    found = tshark.rows(tmp_path, tshark.capture(sent), fields)
    refused = [SHORT in row["_ws.expert.message"] for row in found]
    assert refused == [True] * 4 + [False] + [True, False, True, True]
    assert [bool(row["isakmp.typepayload"]) for row in found] == [not bad for bad in refused]


def test_every_fault_is_named_in_the_expert_information(tmp_path):
    sent = [GOOD, *FAULTS.values(), *LENGTHS.values()]
    fields = (*FAULTS, "kink4430.data", "_ws.lua.error", "_ws.expert.message")
    good, *found = tshark.rows(tmp_path, tshark.capture(sent), fields)
    assert [name for name in FAULTS if good[name]] == ["kink4430.handed"]
    for name, row in zip(FAULTS, found, strict=False):
        assert row[name], name
    for words, row in zip(LENGTHS, found[len(FAULTS) :], strict=True):
        assert words in row["_ws.expert.message"]
    assert not [row for row in found if row["_ws.lua.error"]]


def mutations(seed, octets):
    """Damaged messages: single values changed, cut off, fields of length at their edges."""
    dice = random.Random(seed)
    for _ in range(12):
        wrong = bytearray(octets)
        for _ in range(dice.choice((1, 1, 2, 8))):
            wrong[dice.randrange(min(len(wrong), dice.choice((20, 80, 4000))))] = dice.choice(
                (0, 1, 3, 4, 7, 0x7F, 0x80, 0xFF, dice.randrange(256))
            )
        yield bytes(wrong)
    yield octets[: dice.randrange(len(octets))]
    yield changed(octets, dice.choice((2, 14, 18)), dice.randbytes(2))
    yield dice.randbytes(dice.randrange(1, 200))


@pytest.mark.parametrize("snap", [65535, 90])
def test_no_octets_make_the_dissector_fail(tmp_path, snap):
    whole = [CLEAR, reply(kink.TgtReq(b"name")), reply(kink.TgtRep(recorded_ticket()))]
    sent = [
        octets
        for seed, original in enumerate(EVERY_RECORDED + whole * 10)
        for octets in mutations(seed, original)
    ]
    fields = ("_ws.lua.error", "_ws.col.Protocol", "kink4430.type", "kink4430.short")
    found = tshark.rows(tmp_path, tshark.capture(sent, snap=snap), fields)
    assert len(found) == len(sent)
    for row, octets in zip(found, sent, strict=True):
        assert row["_ws.lua.error"] == [], octets.hex()
        if octets:
            assert row["_ws.col.Protocol"] == ["KINK"], octets.hex()
            assert bool(row["kink4430.type"]) == (len(octets) >= 16)


def test_what_we_refuse_tshark_marks(tmp_path):
    """Of the damaged messages, each that the codec calls malformed has an expert's remark."""
    sent = [
        octets
        for seed, original in enumerate(EVERY_RECORDED)
        for octets in mutations(seed, original)
        if octets
    ]
    # An unauthenticated message and a closed payload are remarked upon whatever their form.
    usual = {"kink4430.closed", "kink4430.unauthenticated"}
    fields = ("_ws.expert.message", *usual)
    found = tshark.rows(tmp_path, tshark.capture(sent), fields)
    refused = 0
    for row, octets in zip(found, sent, strict=True):
        try:
            kink.decode(octets)
        except PeerError:
            refused += 1
            usually = sum(bool(row[name]) for name in usual)
            assert len(row["_ws.expert.message"]) > usually, octets.hex()
    assert refused > len(sent) / 4
