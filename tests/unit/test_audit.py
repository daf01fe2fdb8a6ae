"""What would be dropped is counted, and nothing else, whatever the packets are."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.app import audit
from kinkd.app.audit import GRACE_SECONDS, PER_SECOND, ROWS, Audit, Instant, in_audit, packet_of
from kinkd.document import Document
from kinkd.kernel.capture import Seen
from kinkd.model import Direction, IPAddress, Selector
from kinkd.policy.exemptions import Breadth, exemptions
from kinkd.policy.reader import read
from kinkd.policy.realm import Packet, RealmPolicy
from tests.support import packets

HEAD = """
schema = 1
version = 1
realm = "EXAMPLE.TEST"
[hosts.alice]
fqdn = "alice.example.test"
addresses = ["192.0.2.1", "2001:db8::1"]
networks = ["198.51.100.0/24"]
[hosts.bob]
fqdn = "bob.example.test"
addresses = ["192.0.2.2", "2001:db8::2"]
networks = ["203.0.113.0/24"]
[hosts.carol]
fqdn = "carol.example.test"
addresses = ["192.0.2.3"]
[networks.printers]
prefixes = ["192.0.2.128/25"]
"""
ALICE, BOB, CAROL, PRINTER, STRANGER = (
    *("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.200", "8.8.8.8"),
)
TCP, UDP = 6, 17


def rule(name: str, one: str, other: str, action: str, more: str = "audit = true") -> str:
    return (
        f'[[rules]]\nname = "{name}"\nfrom = "{one}"\nto = "{other}"\naction = "{action}"\n{more}\n'
    )


ISOLATED = rule("isolated", "all", "all", "require")
BLOCKED = rule("strangers", "world", "all", "block")
DOCUMENT = ISOLATED + BLOCKED


def policy(rules: str, head: str = HEAD) -> RealmPolicy:
    return read(Document.parse("policy.toml", (head + rules).encode()))


def octets(packet: Packet) -> bytes:
    """The packet's headers, and a little more."""
    body = struct.pack("!HH", packet.source_port, packet.destination_port)
    if packet.protocol in (1, 58):
        body = bytes((packet.source_port, packet.destination_port))
    return packets.ip(packet.source, packet.destination, packet.protocol, body + bytes(16))


def packet(
    source: str, destination: str, to: int = 443, by: int = 50000, protocol: int = TCP
) -> Packet:
    return Packet(ip_address(source), ip_address(destination), protocol, by, to)


class Wire:
    """Where packets are seen: those that the test puts there."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.lost = 0
        self.closed = False

    def read(self, limit: int) -> Iterator[Seen]:
        for _ in range(min(limit, len(self.seen))):
            yield self.seen.pop(0)

    def missed(self) -> int:
        lost, self.lost = self.lost, 0
        return lost

    def close(self) -> None:
        self.closed = True


class Bench:
    """An audit at alice, with hands on all that it knows."""

    def __init__(self, rules: str = DOCUMENT, me: str = "alice") -> None:
        self.wire = Wire()
        self.now = 1000.0
        self.keyed: set[tuple[str, str]] = set()
        self.audit = Audit(policy(rules), me, self.wire, self.is_protected)

    def is_protected(self, local: IPAddress, remote: IPAddress) -> bool:
        return (str(local), str(remote)) in self.keyed

    def out(self, *sent: Packet, interface: str = "eth0") -> Bench:
        self.wire.seen += [Seen(True, interface, octets(each)) for each in sent]
        return self.read()

    def into(self, *sent: Packet, interface: str = "eth0") -> Bench:
        self.wire.seen += [Seen(False, interface, octets(each)) for each in sent]
        return self.read()

    def read(self) -> Bench:
        self.audit.read(Instant(self.now, self.now + 1.7e9))
        return self

    def later(self, seconds: float = GRACE_SECONDS) -> Bench:
        self.now += seconds
        return self.read()

    def rows(self) -> list[tuple[object, ...]]:
        """After all that could wait has been decided."""
        self.later()
        names = ("direction", "party", "rule", "action", "traffic", "packets")
        return [tuple(row[name] for name in names) for row in self.audit.rows()]


# --- what counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("to", "by", "protocol", "traffic"),
    [
        (443, 50000, 6, "tcp/443"),
        (53, 40000, 17, "udp/53"),
        (50000, 443, 6, "tcp/443"),  # an answer, as far as ports tell
        (0, 8, 1, "icmp"),
        (0, 0, 47, "gre"),
        (0, 0, 89, "ospf"),
        (0, 0, 200, "ip/200"),
    ],
)
def test_a_packet_that_enforcement_would_drop_is_a_row(
    to: int, by: int, protocol: int, traffic: str
) -> None:
    sent = packet(ALICE, BOB, to, by, protocol)
    assert Bench().out(sent).rows() == [("out", "bob", "isolated", "require", traffic, 1)]


def test_a_row_says_since_when_how_often_and_what_the_first_one_was() -> None:
    bench = Bench().into(packet(STRANGER, ALICE, 22, 4711))
    bench.later(5).into(packet(STRANGER, ALICE, 22, 4712), packet("9.9.9.9", ALICE, 22, 1024))
    assert bench.audit.rows() == [
        {
            "direction": "in",
            "party": "world",
            "rule": "strangers",
            "place": bench.audit.rows()[0]["place"],
            "action": "block",
            "traffic": "tcp/22",
            "packets": 3,
            "first": 1_700_001_000,
            "last": 1_700_001_005,
            "sample": "8.8.8.8 port 4711 -> 192.0.2.1 port 22, protocol 6",
        }
    ]
    assert "policy.toml" in str(bench.audit.rows()[0]["place"])


def test_the_most_frequent_comes_first() -> None:
    sent = [packet(STRANGER, ALICE, port) for port in (1, 2, 2, 3, 2, 3)]
    found = Bench().into(*sent).rows()
    assert [row[-2:] for row in found] == [("tcp/2", 3), ("tcp/3", 2), ("tcp/1", 1)]


@pytest.mark.parametrize(
    ("rules", "sent"),
    [
        (rule("r", "all", "all", "require", ""), packet(ALICE, BOB)),  # enforced: the kernel counts
        (rule("r", "world", "all", "block", ""), packet(ALICE, STRANGER)),
        (rule("r", "all", "all", "clear"), packet(ALICE, BOB)),
        (ISOLATED, packet(ALICE, STRANGER)),  # no rule
        (ISOLATED, packet(ALICE, "198.51.100.7")),  # of one party
        (ISOLATED, packet(BOB, CAROL)),  # of others
        (ISOLATED, packet(ALICE, "203.0.113.9")),  # transport mode does not reach there
        (ISOLATED, packet(ALICE, BOB, 0, 0, 50)),
        (ISOLATED, packet(ALICE, BOB, 0, 0, 51)),
        (rule("r", "all", "all", "require", 'traffic = "udp"\naudit = true'), packet(ALICE, BOB)),
    ],
)
def test_what_enforcement_would_let_pass_or_does_itself_is_none(rules: str, sent: Packet) -> None:
    assert Bench(rules).out(sent).rows() == []


def test_the_service_is_at_the_side_that_answers() -> None:
    text = rule("web", "alice", "bob", "require", 'traffic = "tcp/40000-50000"\naudit = true')
    bench = Bench(text).out(packet(ALICE, BOB, 45000, 1024)).into(packet(BOB, ALICE, 1024, 45000))
    expected = ("bob", "web", "require", "tcp/45000", 1)
    assert bench.rows() == [("out", *expected), ("in", *expected)]


def test_a_host_in_audit_is_audited_by_every_rule() -> None:
    head = HEAD.replace("[hosts.bob]", "[hosts.bob]\naudit = true")
    rules = rule("r", "all", "all", "require", "")
    bench = Bench()
    bench.audit.follow(policy(rules, head), "alice")
    found = bench.out(packet(ALICE, BOB), packet(ALICE, CAROL)).rows()
    assert found == [("out", "bob", "r", "require", "tcp/443", 1)]


def test_of_a_disabled_host_all_would_be_blocked() -> None:
    head = HEAD.replace("[hosts.bob]", "[hosts.bob]\ndisabled = true")
    bench = Bench()
    bench.audit.follow(policy(ISOLATED, head), "alice")
    bench.out(packet(ALICE, BOB))
    assert [row["action"] for row in bench.audit.rows()] == ["block"]


@pytest.mark.parametrize(
    ("rules", "head", "expected"),
    [
        (DOCUMENT, HEAD, True),
        (rule("r", "all", "all", "require", ""), HEAD, False),
        (rule("r", "bob", "carol", "require"), HEAD, False),
        (rule("r", "bob", "alice", "require"), HEAD, True),
        ("", HEAD.replace("[hosts.bob]", "[hosts.bob]\naudit = true"), True),
    ],
)
def test_whether_there_is_anything_to_audit(rules: str, head: str, expected: bool) -> None:
    assert in_audit(policy(rules, head), "alice") is expected


# --- what an SA is for ---------------------------------------------------------------------------


def test_the_packets_that_had_two_hosts_keyed_do_not_count() -> None:
    bench = Bench().out(packet(ALICE, BOB), packet(ALICE, CAROL)).later(1)
    bench.keyed.add((ALICE, BOB))
    assert bench.audit.rows() == []
    assert bench.rows() == [("out", "carol", "isolated", "require", "tcp/443", 1)]


def test_while_an_sa_lives_what_is_seen_in_clear_came_out_of_it() -> None:
    bench = Bench(rule("r", "all", "all", "require", 'mode = "tunnel"\naudit = true'))
    bench.keyed.add(("198.51.100.7", "203.0.113.9"))
    bench.into(packet("203.0.113.9", "198.51.100.7"))
    bench.keyed.clear()  # its end, a moment later, changes nothing of that
    assert bench.rows() == []
    bench.into(packet("203.0.113.9", "198.51.100.7"))
    assert bench.rows() == [("in", "bob", "r", "require", "tcp/443", 1)]


def test_what_is_blocked_counts_beside_an_sa() -> None:
    telnet = rule("telnet", "all", "all", "block", 'traffic = "tcp/23"\naudit = true')
    bench = Bench(telnet + ISOLATED)
    bench.keyed.add((ALICE, BOB))
    bench.out(packet(ALICE, BOB, 23), packet(ALICE, BOB, 22))
    assert bench.rows() == [("out", "bob", "telnet", "block", "tcp/23", 1)]


def test_who_cannot_be_keyed_is_not_waited_for() -> None:
    bench = Bench(rule("r", "alice", "printers", "require")).out(packet(ALICE, PRINTER))
    assert [row["party"] for row in bench.audit.rows()] == ["printers"]


def test_while_it_waits_it_is_counted() -> None:
    bench = Bench().out(packet(ALICE, BOB)).later(GRACE_SECONDS - 1).out(packet(ALICE, BOB))
    assert (bench.audit.rows(), bench.audit.report()["waiting"]) == ([], 1)
    bench.later(1)
    (row,) = bench.audit.rows()
    times = 1_700_001_000, 1_700_001_000 + int(GRACE_SECONDS) - 1
    assert (row["packets"], row["first"], row["last"]) == (2, *times)
    assert bench.audit.report()["waiting"] == 0


def test_who_is_asked_about_sas_is_asked_once_for_all_packets_of_a_moment() -> None:
    asked: list[tuple[IPAddress, IPAddress]] = []

    def is_protected(local: IPAddress, remote: IPAddress) -> bool:
        asked.append((local, remote))
        return True

    wire = Wire()
    wire.seen = [Seen(True, "eth0", octets(packet(ALICE, BOB, port))) for port in range(50)]
    Audit(policy(DOCUMENT), "alice", wire, is_protected).read(Instant(0, 0))
    assert asked == [(ip_address(ALICE), ip_address(BOB))]


# --- the same packet twice -----------------------------------------------------------------------


def test_at_a_gateway_a_packet_counts_where_it_leaves_for_others() -> None:
    inside, there = "198.51.100.7", "203.0.113.9"
    tunnel = rule("r", "all", "all", "require", 'mode = "tunnel"\naudit = true')
    sent, answer = packet(inside, there), packet(there, inside, 50000, 443)
    bench = Bench(tunnel)
    bench.into(sent, interface="inside").out(sent)
    bench.into(answer).out(answer, interface="inside")
    expected = ("bob", "r", "require", "tcp/443", 1)
    assert bench.rows() == [("out", *expected), ("in", *expected)]


def test_on_the_port_of_a_bridge_a_packet_is_the_same() -> None:
    bench, one, other = Bench(), packet(STRANGER, ALICE, 1), packet(STRANGER, ALICE, 2)
    bench.into(one, other, interface="eth0").into(one, other, interface="br0")
    assert [row[-1] for row in bench.rows()] == [1, 1]
    bench.into(one, one, interface="eth0")  # sent again
    assert [row[-1] for row in bench.rows()] == [3, 1]


def test_what_is_remembered_for_that_is_little() -> None:
    bench, again = Bench(), packet(STRANGER, ALICE, 1)
    bench.into(again, *(packet(STRANGER, ALICE, 2, 1000 + port) for port in range(100)))
    bench.into(again, interface="br0")
    assert sorted(int(str(row[-1])) for row in bench.rows()) == [2, 100]


# --- exemptions ----------------------------------------------------------------------------------


def test_what_is_exempt_would_pass_and_its_look_alikes_would_not() -> None:
    realm = policy(rule("r", "all", "world", "block") + rule("s", "world", "all", "block"))
    both = frozenset((4, 6))
    servers = [("kdc", ip_address(STRANGER)), ("dns", ip_address(STRANGER))]
    exempt = exemptions(realm.hosts["alice"], servers, range(32768, 65536), Breadth(both, both))
    bench = Bench()
    bench.audit.follow(realm, "alice", exempt)
    bench.out(
        packet(ALICE, STRANGER, 88, 40000, TCP),
        packet(ALICE, STRANGER, 53, 40000, UDP),
        packet(ALICE, "9.9.9.9", 910, 910, UDP),
        packet("2001:db8::1", "2001:db8:9::1", 0, 136, 58),
    )
    bench.into(
        packet(STRANGER, ALICE, 40000, 88, TCP),
        packet("9.9.9.9", ALICE, 4, 3, 1),
        packet("2001:db8:9::1", "2001:db8::1", 0, 2, 58),
    )
    assert bench.rows() == []
    bench.into(packet(STRANGER, ALICE, 22, 88), packet("9.9.9.9", ALICE, 0, 8, 1))
    bench.out(packet(ALICE, "9.9.9.9", 88, 40000), packet(ALICE, STRANGER, 910, 40000, UDP))
    assert sorted(str(row[4]) for row in bench.rows()) == ["icmp", "tcp/22", "tcp/88", "udp/910"]


def test_an_exemption_is_of_its_direction() -> None:
    sent = packet(ALICE, BOB, 22)
    selector = Selector.between(ip_address(ALICE), ip_address(BOB))
    for direction, rows in ((Direction.OUT, 0), (Direction.IN, 1), (Direction.FWD, 1)):
        bench = Bench()
        bench.audit.follow(policy(DOCUMENT), "alice", [(direction, selector)])
        assert len(bench.out(sent).rows()) == rows


def test_to_what_is_behind_a_gateway_packets_are_forwarded() -> None:
    answer = packet(STRANGER, "198.51.100.7")
    selector = Selector.between(ip_address(STRANGER), ip_address("198.51.100.7"))
    for direction, rows in ((Direction.FWD, 0), (Direction.IN, 1)):
        bench = Bench()
        bench.audit.follow(policy(DOCUMENT), "alice", [(direction, selector)])
        assert len(bench.into(answer).rows()) == rows


# --- bounds --------------------------------------------------------------------------------------


def test_rows_are_bounded_and_what_is_more_is_counted_together() -> None:
    bench = Bench()
    for port in range(1, ROWS + 8):
        bench.into(packet(STRANGER, ALICE, port, 65000)).later(0.01)
    assert len(bench.rows()) == ROWS
    assert bench.audit.report()["others"] == 7
    bench.into(packet(STRANGER, ALICE, 1, 65000))
    assert bench.rows()[0][-1] == 2


def test_what_waits_is_bounded_and_what_is_more_counts_at_once() -> None:
    bench = Bench()
    for port in range(ROWS + 8):
        bench.out(packet(ALICE, BOB, port, 65000)).later(0.003)
    assert bench.audit.report()["waiting"] == ROWS
    assert len(bench.audit.rows()) == 8


def test_so_many_are_looked_at_in_a_second_and_no_more() -> None:
    bench = Bench().into(*(packet(STRANGER, ALICE) for _ in range(2 * PER_SECOND + 1)))
    for moment, left in ((0, PER_SECOND + 1), (0.5, PER_SECOND + 1), (0.5, 1), (1, 0)):
        bench.later(moment)
        assert len(bench.wire.seen) == left
    assert bench.audit.report()["looked_at"] == 2 * PER_SECOND + 1


def test_it_says_how_many_it_missed() -> None:
    bench = Bench()
    for lost in (3, 0, 4):
        bench.wire.lost = lost
        bench.read()
    assert bench.audit.report()["missed"] == 7


def test_its_end_is_the_end_of_the_source() -> None:
    bench = Bench().into(packet(STRANGER, ALICE))
    bench.audit.close()
    assert bench.wire.closed
    assert len(bench.audit.rows()) == 1


# --- another policy ------------------------------------------------------------------------------


def test_with_another_policy_those_rows_stay_that_it_agrees_with() -> None:
    bench = Bench().into(packet(STRANGER, ALICE)).out(packet(ALICE, BOB)).later()
    bench.out(packet(ALICE, CAROL))  # waits
    before = bench.audit.rows()
    assert len(before) == 2
    bench.audit.follow(policy(DOCUMENT + rule("late", "all", "all", "block")), "alice")
    assert bench.audit.rows() == before
    bench.audit.follow(policy(rule("isolated", "all", "all", "require", "") + BLOCKED), "alice")
    assert [row["rule"] for row in bench.audit.rows()] == ["strangers"]
    assert bench.audit.report()["waiting"] == 0
    bench.audit.follow(policy(""), "alice")
    assert bench.audit.rows() == []


# --- octets --------------------------------------------------------------------------------------

ADDRESSES = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.ip_addresses(v=4)),
    st.tuples(st.ip_addresses(v=6), st.ip_addresses(v=6)),
)


@given(ADDRESSES, st.sampled_from((1, 58, 6, 17, 33, 132, 136, 47, 255)), st.data())
def test_a_packet_is_read_as_it_was_written(
    ends: tuple[IPAddress, IPAddress], protocol: int, data: st.DataObject
) -> None:
    ports = (0, 0)
    if protocol in (1, 58):
        ports = data.draw(st.tuples(st.integers(0, 255), st.integers(0, 255)))
    elif protocol not in (47, 255):
        ports = data.draw(st.tuples(st.integers(0, 65535), st.integers(0, 65535)))
    written = Packet(*ends, protocol, *ports)
    whole = octets(written)
    assert packet_of(whole) == written
    if ends[0].version == 4:
        words = data.draw(st.integers(0, 10))
        options = bytes((0x45 + words,)) + whole[1:20] + bytes(4 * words) + whole[20:]
        assert packet_of(options) == written
    else:
        kinds = data.draw(st.lists(st.sampled_from((0, 43, 60, 44)), max_size=7))
        assert packet_of(extended(whole, kinds)) == written


def extended(whole: bytes, kinds: list[int]) -> bytes:
    """With these extension headers, of 8 and 16 octets; a fragment header of the first fragment."""
    chain, body = [*kinds, whole[6]], b""
    for number, kind in enumerate(kinds):
        length = 0 if kind == 44 else number % 2
        body += bytes((chain[number + 1], length)) + bytes(6 + 8 * length)
    return whole[:6] + bytes((chain[0],)) + whole[7:40] + body + whole[40:]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "45",
        octets(packet(ALICE, BOB))[:19].hex(),
        octets(packet(ALICE, BOB))[:23].hex(),
        "44" + octets(packet(ALICE, BOB))[1:].hex(),  # a header that is too short
        "4f" + octets(packet(ALICE, BOB))[1:].hex(),  # and one that is longer than the packet
        "55" + octets(packet(ALICE, BOB))[1:].hex(),
        "4500000000002001" + octets(packet(ALICE, BOB))[8:].hex(),  # beyond the first fragment
        octets(packet("2001:db8::1", "2001:db8::2"))[:39].hex(),
        octets(packet("2001:db8::1", "2001:db8::2"))[:43].hex(),
        extended(octets(packet("2001:db8::1", "2001:db8::2")), [0] * 9).hex(),
        extended(octets(packet("2001:db8::1", "2001:db8::2")), [44])[:42].hex() + "0008" * 20,
        (octets(packet("2001:db8::1", "2001:db8::2", 0, 0, 60)) + bytes([60, 255])).hex(),
    ],
)
def test_what_cannot_be_told_is_counted_as_that(text: str) -> None:
    assert packet_of(bytes.fromhex(text)) is None
    bench = Bench()
    bench.wire.seen.append(Seen(True, "eth0", bytes.fromhex(text)))
    assert bench.rows() == []
    assert bench.audit.report()["unreadable"] == 1


# Of IPv4, by and to whom the policy knows, and no fragment; all else is anything.
PLAUSIBLE = st.builds(
    lambda head, ends, rest: (
        b"\x45"
        + head[:5]
        + b"\0\0"
        + head[5:]
        + b"".join(ip_address(end).packed for end in ends)
        + rest
    ),
    st.binary(min_size=9, max_size=9),
    st.permutations([ALICE, BOB, STRANGER]).map(lambda names: names[:2]),
    st.binary(max_size=128),
)


@given(st.lists(st.tuples(st.booleans(), st.one_of(st.binary(max_size=200), PLAUSIBLE))))
def test_no_octets_are_more_than_a_row_or_a_number(seen: list[tuple[bool, bytes]]) -> None:
    bench = Bench()
    for outgoing, each in seen:
        bench.wire.seen.append(Seen(outgoing, "eth0", each))
        bench.later(0.5)
    bench.rows()
    report = bench.audit.report()
    assert json.loads(json.dumps(report)) == report
    assert report["looked_at"] == len(seen)
    counted = sum(int(str(row["packets"])) for row in bench.audit.rows())
    assert counted + int(str(report["unreadable"])) <= len(seen)


@given(st.binary(max_size=audit.ROWS))
def test_any_octets_are_a_packet_or_none(octets_: bytes) -> None:
    found = packet_of(octets_)
    if found is not None:
        assert audit.words(found)
        assert found.source.packed in octets_
