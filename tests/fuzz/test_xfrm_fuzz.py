"""Netlink messages of any octets are read or raise MalformedMessage, nothing else."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.kernel import answers, layouts, netlink, xfrm
from kinkd.kernel.layouts import Type
from kinkd.kernel.netlink import MalformedMessage, Message
from kinkd.kernel.port import Deleted, Sa, SaId
from kinkd.keying.algorithms import SUITES
from kinkd.model import Direction, IpsecProtocol, Mode, Secret, Selector, SpdEntry, Template

A, B = IPv4Address("10.9.0.1"), IPv4Address("10.9.0.2")
ESP, _ = SUITES["ah-sha256+aes128-sha256"].transforms
SA = Sa(
    SaId(A, B, 77),
    Mode.TRANSPORT,
    7,
    Selector.between(A, B),
    ESP,
    Secret(bytes(ESP.keymat_octets)),
    udp=True,
)
TEMPLATES = (
    Template(IpsecProtocol.ESP, Mode.TUNNEL, 7, A, B),
    Template(IpsecProtocol.AH, Mode.TRANSPORT, 7),
)
ENTRY = SpdEntry(Direction.OUT, SA.selector, 5, TEMPLATES)
POLICY = bytes(xfrm.update_policy(ENTRY, 1)[16:])
STATE = bytes(xfrm.install(SA, 1)[16:])
ACQUIRE = STATE[56:80] + STATE[80:96] + STATE[:56] + POLICY[:168] + bytes(16) + POLICY[168:]
DELETED = STATE[56:80] + struct.pack("=HH", 4 + len(STATE[:224]), 6) + STATE[:224]
SEEDS = {
    Type.DELSA: DELETED,
    Type.NEWSA: STATE,
    Type.NEWPOLICY: POLICY,
    Type.EXPIRE: STATE[:224] + b"\1" + bytes(7),
    Type.ACQUIRE: ACQUIRE,
}


def read(message: Message) -> None:
    readers = {
        Type.NEWSA: (answers.read_state, answers.read_spi),
        Type.NEWPOLICY: (answers.read_policy,),
    }
    for reader in readers.get(message.type, (answers.read_event, netlink.answer)):  # type: ignore[call-overload]
        with contextlib.suppress(MalformedMessage):
            reader(message)


@given(st.binary(max_size=600))
def test_any_octets_parse_or_raise_the_named_error(datagram: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        for message in netlink.messages(datagram):
            read(message)


@given(st.sampled_from([*Type, 2, 3]), st.integers(0, 0xFFFF), st.binary(max_size=600))
def test_any_body_under_a_good_header_parses_or_raises_the_named_error(
    kind: int, flags: int, body: bytes
) -> None:
    read(Message(kind, flags, 1, memoryview(body)))


@given(
    st.sampled_from(list(SEEDS)),
    st.lists(st.tuples(st.integers(0, 599), st.integers(0, 255)), max_size=6),
    st.integers(0, 600),
)
def test_a_good_message_with_octets_changed_or_cut_parses_or_raises_the_named_error(
    kind: Type, changes: list[tuple[int, int]], length: int
) -> None:
    body = bytearray(SEEDS[kind])
    for position, value in changes:
        body[position % len(body)] = value
    read(Message(kind, 0, 1, memoryview(body)[:length]))


@pytest.mark.parametrize("kind", SEEDS)
def test_every_seed_is_a_message_that_can_be_read(kind: Type) -> None:
    message = Message(kind, 0, 1, memoryview(SEEDS[kind]))
    reader = {Type.NEWSA: answers.read_state, Type.NEWPOLICY: answers.read_policy}
    assert reader.get(kind, answers.read_event)(message) is not None  # type: ignore[operator]


@pytest.mark.parametrize("kind", SEEDS)
def test_every_seed_cut_within_its_fixed_part_is_refused(kind: Type) -> None:
    reader = {Type.NEWSA: answers.read_state, Type.NEWPOLICY: answers.read_policy}
    fixed = {Type.NEWSA: layouts.USERSA, Type.NEWPOLICY: layouts.POLICY}
    fixed |= {Type.EXPIRE: layouts.EXPIRE, Type.ACQUIRE: layouts.ACQUIRE}
    fixed |= {Type.DELSA: layouts.USERSA_ID}
    for length in range(fixed[kind].size):
        message = Message(kind, 0, 1, memoryview(SEEDS[kind])[:length])
        with pytest.raises(MalformedMessage):
            reader.get(kind, answers.read_event)(message)  # type: ignore[operator]


def test_an_acquire_reads_as_what_asked_for_it() -> None:
    event = answers.read_event(Message(Type.ACQUIRE, 0, 1, memoryview(ACQUIRE)))
    assert event == replace(event, source=A, destination=B, reqid=7)  # type: ignore[type-var]


def test_a_deletion_names_the_sa() -> None:
    assert answers.read_event(Message(Type.DELSA, 0, 1, memoryview(DELETED))) == Deleted(SA.id)


@pytest.mark.parametrize("kind", [Type.FLUSHSA, Type.DELPOLICY, Type.FLUSHPOLICY, Type.POLEXPIRE])
def test_where_much_is_deleted_it_is_not_said_what(kind: Type) -> None:
    assert answers.read_event(Message(kind, 0, 1, memoryview(b""))) == Deleted()
