"""What should not come, comes: each is named and counted, and kinkd lives on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kinkd.decode import pcap
from kinkd.wire.numbers import MessageType
from tests.support.lab import DaemonError, Host, Lab
from tests.support.topology import Node

SILENCE = 1.0  # seconds


@contextmanager
def kink_socket(node: Node) -> Iterator[socket.socket]:
    """A socket at port 910 of a host on which no kinkd runs."""

    def bind() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((str(node.ipv4), 910))
        made.settimeout(SILENCE)
        return made

    with node.python(bind) as made:
        yield made


def answer(via: socket.socket, host: Host, datagram: bytes) -> bytes | None:
    via.sendto(datagram, (str(host.node.ipv4), 910))
    try:
        while (received := via.recv(65535))[0] != MessageType.REPLY:
            pass  # a host that has just come to life asks whether anyone knows it
    except TimeoutError:
        return None
    return received


def drops(host: Host) -> dict[str, int]:
    return {k: v for k, v in host.counters().items() if k.startswith("drop.")}


def risen(host: Host, before: dict[str, int]) -> dict[str, int]:
    return {k: v - before.get(k, 0) for k, v in drops(host).items() if v != before.get(k, 0)}


@pytest.fixture
def create(lab: Lab) -> bytes:
    """A CREATE of alice to bob as it was on the wire, already answered."""
    lab.unkey("alice", "bob")
    with lab.capture("alice", "udp port 910") as path:
        assert lab["alice"].ping(lab["bob"]).lost == 0
    source = lab["alice"].node.ipv4
    for packet in pcap.read(Path(path).read_bytes()):
        if isinstance(packet, pcap.Datagram) and packet.source == source:
            return packet.octets
    raise AssertionError("no CREATE was captured")


@pytest.mark.parametrize(
    "datagram",
    [b"\0", b"\0" * 10, b"\xff" * 1400, bytes(range(256)) * 4],
    ids=["one octet", "ten octets", "ones", "all octets"],
)
def test_garbage_is_dropped_under_a_name_and_kinkd_lives_on(lab: Lab, datagram: bytes):
    bob = lab["bob"]
    before = drops(bob)
    with kink_socket(lab["carol"].node) as via:
        via.sendto(datagram, (str(bob.node.ipv4), 910))
    assert sum(risen(bob, before).values()) == 1
    assert lab["alice"].ask("initiate", "bob")["pairs"][0]["ok"]


@pytest.mark.rfc("4430-4-14")
def test_a_wrong_checksum_is_met_with_silence(lab: Lab, create: bytes):
    bob = lab["bob"]
    before, states = drops(bob), bob.states()
    wrong = create[:-1] + bytes([create[-1] ^ 1])
    with kink_socket(lab["carol"].node) as via:
        assert answer(via, bob, wrong) is None
    assert risen(bob, before) == {"drop.bad-checksum": 1}
    assert bob.states() == states


def test_a_replayed_create_is_met_with_silence_and_keys_nothing(lab: Lab, create: bytes):
    bob = lab["bob"]
    before, states = drops(bob), bob.states()
    with kink_socket(lab["carol"].node) as via:
        assert answer(via, bob, create) is None
    assert risen(bob, before) == {"drop.replay": 1}
    assert {state.spi for state in bob.states()} == {state.spi for state in states}


def test_an_overheard_authenticator_cannot_be_burnt(lab: Lab, create: bytes):
    """A message that fails its Cksum leaves no trace in the replay cache."""
    bob = lab["bob"]
    before = drops(bob)
    with kink_socket(lab["carol"].node) as via:
        for _ in range(2):
            assert answer(via, bob, create[:-1] + bytes([create[-1] ^ 1])) is None
    assert risen(bob, before) == {"drop.bad-checksum": 2}


def test_a_ticket_under_a_key_the_peer_lacks_is_refused_by_name():
    with Lab() as lab:
        alice, bob = lab["alice"], lab["bob"]
        lab.realm.change_key(bob.principal)  # bob's keytab does not learn of it
        lab.start()
        failed = alice.kinkctl("--json", "initiate", "bob", check=False)
        assert failed.returncode == 1
        assert sum(drops(bob).values()) > 0
        assert bob.running
        assert not bob.states()
        lab.realm.write_keytab(bob.keytab, bob.principal)
        assert all(pair["ok"] for pair in alice.ask("initiate", "bob")["pairs"])


def test_without_a_kdc_nothing_is_keyed_until_it_is_back():
    with Lab() as lab:
        alice, bob = lab["alice"], lab["bob"]
        lab.realm.stop()
        lab.start()
        failed = alice.kinkctl("--json", "initiate", "bob", check=False)
        assert failed.returncode == 1
        assert "EXAMPLE.TEST" in failed.stdout + failed.stderr  # whose KDC it was
        assert alice.running
        lab.realm.start()
        assert alice.ping(bob, patience=40).lost == 0


@pytest.mark.parametrize("fault", ["keytab", "state", "policy"])
def test_a_daemon_that_cannot_start_says_why_in_one_line(lab: Lab, fault: str):
    carol = lab["carol"]
    good = carol.config.read_text()
    paths = {"keytab": carol.keytab, "state": carol.state, "policy": lab.policy}
    missing = "/proc/nothing/here"
    carol.config.write_text(good.replace(f'"{paths[fault]}"', f'"{missing}"'))
    carol.log_file.unlink(missing_ok=True)
    try:
        with pytest.raises(DaemonError):
            carol.start()
        assert carol.wait() == (2 if fault == "policy" else 1)
        last = carol.log().splitlines()[-1]
        assert last.startswith("kinkd: ")
        assert missing in last
        assert "Traceback" not in carol.log()
        assert carol.policies() == []
    finally:
        carol.config.write_text(good)
