"""The kernel writer against a real kernel; ``ip -d xfrm`` is the second opinion.

Run inside a kernel that has ESP: ``tests/support/in_kernel -- pytest tests/lab``.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kinkd.errors import KernelError
from kinkd.kernel.port import Acquire, Deleted, Expire, Overrun, Sa, SaLimits
from kinkd.kernel.socket import XfrmSocket
from kinkd.keying.algorithms import SUITES
from kinkd.model import (
    Direction,
    IpsecProtocol,
    Mode,
    PortMatch,
    Selector,
    SpdEntry,
    Suite,
    Template,
    Transform,
)
from tests.support.kernel_lab import (
    GCM,
    PORT,
    REQID,
    Side,
    hosts,
    nothing_arrives,
    pair_of,
    raw,
    require,
    rule,
    sa,
    sides_of,
    templates,
    udp,
    wait_for,
)
from tests.support.topology import Node, Topology


@pytest.fixture(scope="module")
def network() -> Iterator[Topology]:
    with hosts() as topology:
        yield topology


@pytest.fixture
def sides(network: Topology) -> Iterator[dict[str, Side]]:
    with sides_of(network) as made:
        yield made


LONE = [name for name, suite in SUITES.items() if len(suite.transforms) == 1]
AH = [name for name in LONE if SUITES[name].protocols == (IpsecProtocol.AH,)]
ONE_OF_EACH_KIND = (
    "aes256gcm16",
    "chacha20poly1305",
    "aes256ccm16",
    "aes256-sha512",
    "aes256ctr-sha256",
    "aes256gmac",
    "null-sha256",
    *AH,
)
EVERY_SUITE = [
    *((name, 4, False) for name in LONE),
    *((name, 6, False) for name in ONE_OF_EACH_KIND),
    *((name, 4, True) for name in ONE_OF_EACH_KIND),
]
VECTOR_OCTETS = {
    "rfc4106(gcm(aes))": 8,  # RFC 4106 §3.1
    "rfc4309(ccm(aes))": 8,  # RFC 4309 §3.1
    "rfc4543(gcm(aes))": 8,  # RFC 4543 §3.1
    "rfc7539esp(chacha20,poly1305)": 8,  # RFC 7634 §2
    "rfc3686(ctr(aes))": 8,  # RFC 3686 §3.1
    "cbc(aes)": 16,  # RFC 3602 §3
    "ecb(cipher_null)": 0,  # RFC 2410 §2.3
}


def octets_on_the_wire(transform: Transform, family: int) -> int:
    """Of 13 octets of UDP. A raw socket of IPv4 gives the IP header, too."""
    ip, icv = 20 if family == 4 else 0, transform.icv_bits // 8
    if transform.protocol is IpsecProtocol.AH:  # RFC 4302 §2.2, §2.6: 12 octets, ICV, padding
        unit = 4 if family == 4 else 8
        return ip + -(-(12 + icv) // unit) * unit + 13
    # RFC 4303 §2: SPI and sequence number, vector, 13 octets padded to 16 with the trailer, ICV.
    vector = VECTOR_OCTETS[transform.encryption or transform.aead or ""]
    return ip + 8 + vector + 16 + icv


@pytest.mark.parametrize(("name", "family", "esn"), EVERY_SUITE)
def test_a_pair_carries_traffic_and_ip_agrees_on_it(
    sides: dict[str, Side], name: str, family: int, esn: bool
) -> None:
    suite = SUITES[name]
    (transform,) = suite.transforms
    alice, bob = sides["alice"], sides["bob"]
    out = require(alice, bob, family, suite)
    ends = pair_of(alice.node, bob.node, family)
    spi = bob.kernel.allocate_spi(*ends, REQID, transform.protocol)
    made = replace(sa(alice.node, bob.node, family, spi, suite), esn=esn)
    bob.kernel.install_inbound([made])
    alice.kernel.install_outbound([made], [out])
    with (
        udp(alice.node, family) as sender,
        udp(bob.node, family) as receiver,
        raw(bob.node, family, transform.protocol) as packets,
    ):
        sender.sendto(b"hello", (str(bob.node.address(family)), PORT))
        assert receiver.recv(64) == b"hello"
        packet = packets.recv(2048)
    assert len(packet) == octets_on_the_wire(transform, family)
    legible = transform.protocol is IpsecProtocol.AH or "gmac" in name or "null" in name
    assert (b"hello" in packet) is legible
    for side in (alice, bob):
        state = side.kernel.state(made.id)
        assert state is not None
        assert state.packets == 1
        assert (state.id, state.reqid, state.selector) == (made.id, REQID, made.selector)
        assert state.esn is esn
        names = (transform.aead, transform.encryption, transform.authentication)
        assert state.algorithms == tuple(name for name in names if name)
        assert not state.larval
        assert state in side.kernel.states()
        agrees_with_ip(side.node, made)


def agrees_with_ip(node: Node, made: Sa) -> None:
    shown = node.run("ip", "-d", "-s", "xfrm", "state").stdout
    transform = made.transform
    assert f"src {made.id.source} dst {made.id.destination}" in shown
    assert f"proto {made.id.protocol.name.lower()} spi 0x{made.id.spi:08x}" in shown
    assert f"reqid {REQID}(0x{REQID:08x}) mode transport" in shown
    assert f"sel src {made.selector.source} dst {made.selector.destination}" in shown
    assert "replay_window 128, bitmap-length 4" in shown
    flags = re.search(r"flag (.*) \(0x", shown)
    assert flags is not None
    align4 = made.id.protocol is IpsecProtocol.AH and made.id.source.version == 4
    wanted = {name for name, there in (("align4", align4), ("esn", made.esn)) if there}
    assert set(flags[1].split()) == wanted
    key, split = made.keymat.value.hex(), 2 * transform.encryption_octets
    if transform.aead:
        assert f"aead {transform.aead} 0x{key}" in shown
    if transform.encryption:
        encryption = f"0x{key[:split]}" if split else "\n"  # with null there is no key to show
        assert f"enc {transform.encryption} {encryption}" in shown
    if transform.authentication:
        assert f"auth-trunc {transform.authentication} 0x{key[split:]}" in shown
    shown_icv = re.search(r"^\s+(?:aead|auth-trunc) .* (\d+)$", shown, flags=re.MULTILINE)
    assert shown_icv is not None
    assert int(shown_icv[1]) == transform.icv_bits


@pytest.mark.parametrize("family", [4, 6])
def test_an_acquire_holds_the_packet_and_the_outbound_sa_releases_it(
    sides: dict[str, Side], family: int
) -> None:
    alice, bob = sides["alice"], sides["bob"]
    out = require(alice, bob, family)
    with udp(alice.node, family) as sender, udp(bob.node, family) as receiver:
        for number in range(3):
            sender.sendto(bytes([number]), (str(bob.node.address(family)), PORT))
        acquire = wait_for(alice.kernel, lambda event: isinstance(event, Acquire))
        assert isinstance(acquire, Acquire)
        ends = alice.node.address(family), bob.node.address(family)
        assert (acquire.source, acquire.destination) == ends
        assert (acquire.reqid, acquire.mode) == (REQID, Mode.TRANSPORT)
        assert acquire.flow.protocol == socket.IPPROTO_UDP
        assert acquire.flow.destination_port == PortMatch(PORT, 0xFFFF)
        assert nothing_arrives(receiver)
        made = sa(alice.node, bob.node, family, 0x1234)
        bob.kernel.install_inbound([made])  # no reservation: UPDSA is refused, NEWSA follows
        alice.kernel.install_outbound([made], [out])
        assert [receiver.recv(64) for _ in range(3)] == [b"\0", b"\1", b"\2"]


def test_a_cleared_acquire_comes_again_with_the_next_packet(sides: dict[str, Side]) -> None:
    alice, bob = sides["alice"], sides["bob"]
    require(alice, bob, 4)
    with udp(alice.node, 4) as sender:
        to = (str(bob.node.ipv4), PORT)
        sender.sendto(b"1", to)
        first = wait_for(alice.kernel, lambda event: isinstance(event, Acquire))
        assert isinstance(first, Acquire)
        alice.kernel.clear_acquire(first)
        assert alice.kernel.states() == []
        sender.sendto(b"2", to)
        again = wait_for(alice.kernel, lambda event: isinstance(event, Acquire))
    assert isinstance(again, Acquire)
    assert again.sequence != first.sequence


def test_an_acquire_that_nobody_answers_expires_with_spi_0(sides: dict[str, Side]) -> None:
    alice, bob = sides["alice"], sides["bob"]
    require(alice, bob, 4)
    with udp(alice.node, 4) as sender:
        sender.sendto(b"1", (str(bob.node.ipv4), PORT))
        wait_for(alice.kernel, lambda event: isinstance(event, Acquire))
        assert [state.larval for state in alice.kernel.states()] == [True]
        lapsed = wait_for(alice.kernel, lambda event: isinstance(event, Expire))
    assert isinstance(lapsed, Expire)
    assert (lapsed.id.spi, lapsed.hard) == (0, True)


def test_soft_and_hard_limits_in_packets_are_told(sides: dict[str, Side]) -> None:
    alice, bob = sides["alice"], sides["bob"]
    out = require(alice, bob, 4)
    made = replace(
        sa(alice.node, bob.node, 4, 0x777), limits=SaLimits(soft_packets=2, hard_packets=4)
    )
    alice.kernel.install_outbound([made], [out])
    state = alice.kernel.state(made.id)
    assert state is not None
    assert state.limits == made.limits
    with udp(alice.node, 4) as sender:
        to = (str(bob.node.ipv4), PORT)
        for _ in range(3):
            sender.sendto(b"x", to)
        soft = Expire(made.id, REQID, hard=False)
        assert wait_for(alice.kernel, lambda event: isinstance(event, Expire)) == soft
        sender.sendto(b"x", to)
        with pytest.raises(OSError, match="Invalid argument"):
            sender.sendto(b"x", to)
        hard = Expire(made.id, REQID, hard=True)
        assert wait_for(alice.kernel, lambda event: isinstance(event, Expire)) == hard
    assert alice.kernel.state(made.id) is None


def test_soft_and_hard_limits_in_seconds_are_told(sides: dict[str, Side]) -> None:
    alice, bob = sides["alice"], sides["bob"]
    limits = SaLimits(soft_seconds=1, hard_seconds=2)
    made = replace(sa(alice.node, bob.node, 6, 0x778), limits=limits)
    bob.kernel.install_inbound([made])
    seen = [wait_for(bob.kernel, lambda event: isinstance(event, Expire)) for _ in range(2)]
    assert seen == [Expire(made.id, REQID, hard=False), Expire(made.id, REQID, hard=True)]


def test_what_somebody_deletes_is_told_and_what_is_added_is_not(sides: dict[str, Side]) -> None:
    """An SA that is added would be told with its keys: the kernel keeps that to itself."""
    alice, bob = sides["alice"], sides["bob"]
    out = require(alice, bob, 4)
    made = sa(alice.node, bob.node, 4, 0x779)
    alice.kernel.install_outbound([made], [out])
    assert alice.kernel.events() == []
    alice.node.ip(f"xfrm state delete dst {bob.node.ipv4} proto esp spi 0x779")
    assert wait_for(alice.kernel, lambda _: True) == Deleted(made.id)
    alice.kernel.install_outbound([made], [out])
    for what in ("state", "policy"):
        alice.node.run("ip", "xfrm", what, "flush")
        assert wait_for(alice.kernel, lambda _: True) == Deleted()
    assert set(alice.kernel._event) == {0}


def test_a_larval_state_names_the_acquire_it_stands_for(sides: dict[str, Side]) -> None:
    alice, bob = sides["alice"], sides["bob"]
    require(alice, bob, 4)
    with udp(alice.node, 4) as sender:
        sender.sendto(b"1", (str(bob.node.ipv4), PORT))
        acquire = wait_for(alice.kernel, lambda event: isinstance(event, Acquire))
        assert isinstance(acquire, Acquire)
        (larval,) = alice.kernel.states()
        assert (larval.sequence, larval.id.spi) == (acquire.sequence, 0)
        assert larval.selector == acquire.flow
        alice.kernel.clear_acquire(acquire)
        assert alice.kernel.states() == []


def test_esp_from_a_keyed_host_with_another_s_source_is_refused(sides: dict[str, Side]) -> None:
    alice, bob, carol = sides["alice"], sides["bob"], sides["carol"]
    out = require(alice, bob, 4)
    claimed = Selector.between(carol.node.ipv4, bob.node.ipv4)
    bob.kernel.write_policy(rule(Direction.IN, claimed, templates(GCM)))
    keyed = sa(carol.node, bob.node, 4, 0x666)
    bob.kernel.install_inbound([keyed])
    # Carol claims alice's address: the same SPI and key, sent from that address.
    forged = replace(
        keyed,
        id=replace(keyed.id, source=alice.node.ipv4),
        selector=Selector.between(alice.node.ipv4, bob.node.ipv4),
    )
    carol.node.ip(f"addr add {alice.node.ipv4}/32 dev lo")
    try:
        carol.kernel.write_policy(out)
        carol.kernel.install_outbound([forged], [out])
        with udp(bob.node, 4) as receiver:
            made = carol.node.python(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            with made as sender:
                sender.bind((str(alice.node.ipv4), PORT))
                before = bob.node.xfrm_counters()["XfrmInStateMismatch"]
                sender.sendto(b"forged", (str(bob.node.ipv4), PORT))
                assert nothing_arrives(receiver)
        assert bob.node.xfrm_counters()["XfrmInStateMismatch"] == before + 1
    finally:
        carol.node.ip(f"addr del {alice.node.ipv4}/32 dev lo")


def test_refusals_name_the_request_and_give_the_kernel_s_words(sides: dict[str, Side]) -> None:
    alice, bob = sides["alice"], sides["bob"]
    (gcm,) = GCM.transforms
    odd = sa(alice.node, bob.node, 4, 0x999, Suite("odd", (replace(gcm, encryption_octets=19),)))
    with pytest.raises(KernelError, match=r"NEWSA ESP SA 0x00000999") as caught:
        alice.kernel.install_outbound([odd], [])
    assert caught.value.errno == errno.EINVAL
    assert caught.value.explanation
    missing = replace(gcm, aead="rfc4106(gcm(none))")
    with pytest.raises(KernelError, match="AEAD algorithm not found") as caught:
        alice.kernel.probe(missing, 4)
    assert caught.value.errno == errno.ENOSYS
    made = sa(alice.node, bob.node, 4, 0x999)
    alice.kernel.install_outbound([made], [])
    with pytest.raises(KernelError) as caught:
        alice.kernel.install_outbound([made], [])
    assert caught.value.errno == errno.EEXIST


def test_an_outbound_sa_whose_policy_is_refused_does_not_stay(sides: dict[str, Side]) -> None:
    alice, bob = sides["alice"], sides["bob"]
    made = sa(alice.node, bob.node, 4, 0x998)
    ends = alice.node.ipv4, bob.node.ipv4
    template = Template(IpsecProtocol.ESP, Mode.TUNNEL, REQID, *ends, optional=True)
    refused = SpdEntry(Direction.OUT, Selector.between(*ends), 5, (template,))
    with pytest.raises(KernelError, match=r"UPDPOLICY out policy.*optional template not allowed"):
        alice.kernel.install_outbound([made], [refused])
    assert alice.kernel.states() == []


@pytest.mark.parametrize("family", [4, 6])
def test_a_probe_leaves_nothing_behind(sides: dict[str, Side], family: int) -> None:
    for transform in {transform for suite in SUITES.values() for transform in suite.transforms}:
        for esn in (False, True):
            sides["alice"].kernel.probe(transform, family, esn=esn)
    assert sides["alice"].kernel.states() == []


def test_policies_come_back_as_written_and_a_second_write_replaces(
    sides: dict[str, Side],
) -> None:
    alice, bob = sides["alice"], sides["bob"]
    ends4, ends6 = (pair_of(alice.node, bob.node, family) for family in (4, 6))
    wide = Selector.between(*ends6)
    both = SUITES["ah-sha256+aes256gcm16"]
    written = [
        rule(Direction.OUT, Selector.between(*ends4), templates(GCM)),
        SpdEntry(Direction.IN, wide.reversed(), 7, block=True),
        SpdEntry(Direction.OUT, replace(wide, protocol=58, source_port=PortMatch(136, 0xFFFF)), 3),
        SpdEntry(Direction.FWD, wide, 9, templates(GCM, ends6)),
        SpdEntry(Direction.OUT, replace(wide, protocol=6), 10, templates(both)),
        SpdEntry(Direction.IN, wide, 11, templates(both, ends4)),
    ]
    for entry in written:
        alice.kernel.write_policy(entry)
    assert sorted(alice.kernel.policies(), key=str) == sorted(written, key=str)
    shown = alice.node.run("ip", "-d", "xfrm", "policy").stdout
    assert f"reqid {REQID} mode transport" in shown
    assert re.search(rf"tmpl src {ends4[0]} dst {ends4[1]}\s+proto esp .* mode tunnel", shown)
    assert re.search(r"tmpl src 0\.0\.0\.0 dst 0\.0\.0\.0\s+proto ah .* mode transport", shown)
    assert re.search(r"proto (ipv6-icmp|58) type 136", shown)  # a name where /etc/protocols is
    assert [alice.kernel.policy(*entry.key) for entry in written] == written
    again = replace(written[0], priority=50)
    alice.kernel.write_policy(again)
    assert alice.kernel.policy(*again.key) == again
    assert sorted(alice.kernel.policies(), key=str) == sorted([again, *written[1:]], key=str)
    assert alice.kernel.remove_policy(Direction.OUT, again.selector)
    assert not alice.kernel.remove_policy(Direction.OUT, again.selector)
    assert alice.kernel.policy(*again.key) is None
    assert sorted(alice.kernel.policies(), key=str) == sorted(written[1:], key=str)


def test_what_others_put_into_the_kernel_is_read_and_left_alone(sides: dict[str, Side]) -> None:
    alice, bob = sides["alice"], sides["bob"]
    key = "0x" + "11" * 20
    alice.node.ip(
        f"xfrm state add src 10.9.9.1 dst 10.9.9.2 proto esp spi 0x500 mode tunnel"
        f" aead rfc4106(gcm(aes)) {key} 128",
        f"xfrm state add src 10.9.9.1 dst 10.9.9.2 proto ah spi 0x501 auth hmac(sha256) {key}",
        "xfrm policy add src 10.9.9.0/24 dst 10.9.8.0/24 dir out priority 4 action block",
    )
    before = alice.node.run("ip", "xfrm", "state").stdout
    out = require(alice, bob, 4)
    made = sa(alice.node, bob.node, 4, 0x502)
    alice.kernel.install_outbound([made], [out])
    assert {state.id.spi for state in alice.kernel.states()} == {0x500, 0x501, 0x502}
    assert alice.kernel.remove(made.id)
    assert not alice.kernel.remove(made.id)
    assert alice.kernel.remove_policy(Direction.OUT, out.selector)
    assert alice.node.run("ip", "xfrm", "state").stdout == before
    (left,) = alice.kernel.policies()
    assert (left.block, str(left.selector.source)) == (True, "10.9.9.0/24")


def test_events_that_did_not_fit_show_as_an_overrun(
    sides: dict[str, Side],
) -> None:
    alice, bob = sides["alice"], sides["bob"]
    with alice.node.python(lambda: XfrmSocket(event_buffer=8192)) as deaf:
        for spi in range(0x1000, 0x1000 + 60):
            made = replace(sa(alice.node, bob.node, 4, spi), limits=SaLimits(hard_seconds=1))
            deaf.install_inbound([made])
        while alice.kernel.states():
            wait_for(alice.kernel, lambda event: isinstance(event, Expire))
        events = deaf.events()
    assert Overrun() in events
    assert 0 < sum(isinstance(event, Expire) for event in events) < 60
