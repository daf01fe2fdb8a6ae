"""Three zones on five hosts, one of them the KDC, beside a printer and a stranger without kinkd.

What may pass is asked of ``oracle``: the document read a second time, by code of its own.
"""

from __future__ import annotations

import itertools
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime

import pytest

from tests.support import attempts, observe, scenario
from tests.support.attempts import Attempt
from tests.support.lab import Lab, wait_for
from tests.support.observe import Address
from tests.support.oracle import Oracle, Packet
from tests.support.scenario import Scenario, ends
from tests.support.topology import BRIDGE

KEYED = ("kdc", "alice", "bob", "carol", "vault")
OTHERS = ("printer", "stranger")
ZONES = """
schema = 1
version = $version
realm = "EXAMPLE.TEST"

[hosts.kdc]
fqdn = "kdc.example.test"
addresses = $kdc
[hosts.alice]
fqdn = "alice.example.test"
addresses = $alice
[hosts.bob]
fqdn = "bob.example.test"
addresses = $bob
[hosts.carol]
fqdn = "carol.example.test"
addresses = $carol
[hosts.vault]
fqdn = "vault.example.test"
addresses = $vault
[networks.printer]
prefixes = $printer
[servers]
kdc = ["kdc"]

[groups]
isolated = ["alice", "bob"]
boundary = ["carol"]
domain = ["isolated", "boundary", "vault", "kdc"]

[profiles.strong]
suites = ["aes256gcm16"]
group = "ecp384"

[[rules]]
name = "printing"
from = "all"
to = "printer"
traffic = ["tcp/9100", "tcp/631 from 32768-65535", "icmp"]
action = "clear"
[[rules]]
name = "nothing else with the printer"
from = "all"
to = "printer"
action = "block"
[[rules]]
name = "never used"
from = "all"
to = "all"
traffic = ["tcp/23", "tcp/8080", "udp/69"]
action = "block"
[[rules]]
name = "what the vault is for"
from = "domain"
to = "vault"
traffic = ["tcp/22", "tcp/5432", "udp/5000-5999", "icmp"]
action = "require"
profile = "strong"
[[rules]]
name = "what the vault tells"
from = "vault"
to = "isolated"
traffic = "udp/1514 from 514"
action = "require"
profile = "strong"
[[rules]]
name = "nothing else with the vault"
from = ["all", "world"]
to = "vault"
action = "block"
[[rules]]
name = "a range that isolated hosts do without"
from = "isolated"
to = "isolated"
traffic = "tcp/7000-7499"
action = "block"
[[rules]]
name = "isolation"
from = ["isolated", "kdc"]
to = "domain"
action = "require"
[[rules]]
name = "who comes to the boundary"
from = "world"
to = "boundary"
traffic = ["tcp/443", "icmp"]
action = "clear"
[[rules]]
name = "what the boundary asks"
from = "boundary"
to = "world"
traffic = ["tcp/80 from 32768-65535", "udp/53"]
action = "request"
[[rules]]
name = "what the isolated ask"
from = "isolated"
to = "world"
traffic = "tcp/80 from 32768-65535"
action = "clear"
[[rules]]
name = "the world stays outside"
from = "world"
to = "domain"
action = "block"
"""
SERVICES = (
    *(("tcp", port, 0) for port in (22, 23, 80, 443, 631, 5432, 6999, 7000, 7499, 7500, 8080)),
    *(("tcp", 9100, 0), ("tcp", 80, 1023), ("tcp", 631, 1023)),
    *(("udp", port, 0) for port in (53, 69, 1514, 4999, 5000, 5999)),
    *(("udp", 1514, 514), ("icmp", 0, 0)),
)
PATIENCE = 20  # seconds; most attempts are in vain, and wait for all of it


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(KEYED, bystanders=OTHERS, document=ZONES) as lab:
        lab.start()
        yield lab


@pytest.fixture(scope="module")
def senders(lab: Lab) -> dict[str, str]:
    """Who has kinkd, by Ethernet address."""
    return {lab[name].node.hardware_address(): name for name in KEYED}


def oracle(lab: Lab) -> Oracle:
    return Oracle(lab.policy.read_text())


def passes(judge: Oracle, packet: Packet) -> bool:
    """Whether a packet arrives, if kinkd does what the document demands."""
    parties = {judge.owner(packet.source)[0], judge.owner(packet.destination)[0]}
    if not parties & set(KEYED) or judge.is_exempt(packet):
        return True
    action = judge.demand(packet).action
    return action in ("clear", "request") or (action == "require" and parties <= set(KEYED))


def everything() -> list[Attempt]:
    """All pairs, both families, all services."""
    return [
        Attempt(*pair, family, *service)
        for pair in itertools.permutations((*KEYED, *OTHERS), 2)
        for family in (4, 6)
        for service in SERVICES
    ]


def test_allowed_pairs_talk_and_forbidden_ones_do_not(lab: Lab, senders: dict[str, str]):
    judge, nodes = oracle(lab), lab.topology.nodes
    tried = everything()
    expected = {each for each in tried if all(passes(judge, p) for p in each.packets(nodes))}
    with lab.capture(BRIDGE) as pcap:
        answered = attempts.reach(nodes, tried, PATIENCE)
        found = set(answered)
        time.sleep(1)
    judged = judge.judge(pcap, senders)
    scenario.note(
        f"{len(tried)} attempts at once between {len(KEYED) + len(OTHERS)} hosts",
        answered=len(found),
        wrongly_answered=len(found - expected),
        unanswered=len(expected - found),
        slowest=max(answered.values()),
        forbidden_packets=len(judged.forbidden),
    )
    scenario.note("on the wire meanwhile", **judged.counts)
    assert sorted(found - expected) == []
    assert sorted(expected - found) == []
    assert judged.forbidden == []
    assert judged.counts["IPsec"] > len(expected)
    assert len(tried) // 4 < len(expected) < 3 * len(tried) // 4


# --- past `require` ---------------------------------------------------------------------------

FALSE_FRIENDS = (88, 53, 123, 910, 389)  # ports of services that are exempt somewhere
INNER = (22, 25, 88, 443, 464, 500, 910, 4500, 8080, 32767)  # none from which a program asks
OUTER = (32768, 40000, 60999)


def forgeries(source: Address, target: Address) -> list[Packet]:
    """From ports of trusted services to all kinds of ports, and an echo request."""
    ports = [(17, one, other) for one in FALSE_FRIENDS for other in (*INNER, *OUTER)]
    ports += [(6, one, other) for one in FALSE_FRIENDS for other in (*INNER, *OUTER)]
    ports += [(1, 8, 0)] if source.version == 4 else [(58, 128, 0)]
    return [Packet(source, target, *each) for each in ports]


def is_answer(packet: Packet, servers: set[Address]) -> bool:
    """Whether it may be the answer of the KDC to a program that asks."""
    numbers = {(6, 88), (17, 88), (6, 464), (17, 464)}
    asked = packet.source in servers and packet.destination_port >= 32768
    return asked and (packet.protocol, packet.source_port) in numbers


@pytest.mark.parametrize("target", ["alice", "vault", "kdc"])
def test_nothing_forged_comes_past_require_but_what_answers_the_kdc(lab: Lab, target: str):
    """By root of an allowed host, of the KDC and of a stranger; as themselves and as another."""
    node = lab[target].node
    kdc: set[Address] = {lab["kdc"].node.ipv4, lab["kdc"].node.ipv6}
    sent: list[Packet] = []
    with attempts.delivered(node) as heard:
        for liar in ("bob", "kdc", "stranger"):
            packets = [
                forged
                for name in ("bob", "kdc", "carol", "stranger")
                for family in (4, 6)
                for forged in forgeries(lab.topology[name].address(family), node.address(family))
                if target not in (liar, name)
            ]
            attempts.inject(lab.topology[liar], node, packets)
            sent += packets
    allowed = {each for each in sent if is_answer(each, kdc)}
    at_service = {
        each for each in sent if target == "kdc" and each.destination_port in (88, 464)
    } & {each for each in sent if each.protocol in (6, 17)}
    kink = {each for each in sent if each[2:] == (17, 910, 910)}
    through = set(heard)
    scenario.note(
        f"{len(sent)} forged packets to {target}",
        came_through=len(through),
        answers_of_the_KDC=len(through & allowed),
        requests_to_the_KDC=len(through & at_service),
        to_KINK=len(through & kink),
    )
    assert sorted(through - allowed - at_service - kink) == []
    assert kink <= through  # else nothing was sent
    assert at_service <= through


def test_a_service_on_a_port_of_clients_is_not_reached_from_the_kdcs_ports(lab: Lab):
    """By its own root, through its kernel: it goes under an SA, or not at all."""
    tried = [
        Attempt(source, "alice", family, protocol, port, own)
        for source in ("kdc", "bob", "stranger", "carol")
        for family in (4, 6)
        for own in (53, 123, 389)
        for protocol, port in (("tcp", 22), ("udp", 5353), ("tcp", 8080), ("udp", 69))
    ]
    nodes, judge = lab.topology.nodes, oracle(lab)
    expected = {each for each in tried if all(passes(judge, p) for p in each.packets(nodes))}
    senders = {lab[name].node.hardware_address(): name for name in KEYED}
    with lab.capture(BRIDGE) as pcap:
        found = set(attempts.reach(nodes, tried, PATIENCE / 2))
    assert found == expected
    assert judge.judge(pcap, senders).forbidden == []


# --- the KDC is one of them -------------------------------------------------------------------


@pytest.mark.long
def test_all_start_at_once_without_tickets_and_the_kdc_keys_and_is_keyed(
    lab: Lab, senders: dict[str, str]
):
    """Nobody has an SA or a ticket, and the entries are in place: a realm that comes up again."""
    for name in KEYED:
        lab[name].stop(signal.SIGKILL)
        lab[name].node.ip("xfrm state flush")
    pairs = [
        Attempt(*pair, family, "tcp", 22)
        for pair in itertools.permutations(KEYED, 2)
        for family in (4, 6)
        if pair[0] != "vault" and (pair != ("carol", "kdc"))
    ]
    with lab.capture(BRIDGE) as pcap:
        assert attempts.reach(lab.topology.nodes, pairs, 3) == {}
        lab.start()
        ready = time.monotonic()
        answered = attempts.reach(lab.topology.nodes, pairs, 60)
        took = time.monotonic() - ready
    judged = oracle(lab).judge(pcap, senders)
    scenario.note(
        f"{len(KEYED)} hosts start at once, the KDC among them",
        connections=len(pairs),
        answered=len(answered),
        seconds_after_ready=took,
        forbidden_packets=len(judged.forbidden),
    )
    assert sorted(set(pairs) - set(answered)) == []
    assert judged.forbidden == []


# --- a host is disabled -----------------------------------------------------------------------


def states_with(lab: Lab, gone: str) -> int:
    """SAs of all other hosts with one, and its own."""
    return sum(
        observe.count_states(lab[name].node, *ends(lab[name], lab[gone])).keyed
        + observe.count_states(lab[gone].node, *ends(lab[name], lab[gone])).keyed
        for name in KEYED
        if name != gone
    )


@contextmanager
def deletions(lab: Lab, gone: str) -> Iterator[dict[str, float]]:
    """When the kernel of each host has deleted its last SA with one, as it tells: POSIX seconds."""
    files = {name: lab.directory / f"{name}-{time.monotonic_ns()}.deleted" for name in KEYED}
    last: dict[str, float] = {}
    with ExitStack() as stack:
        for name, path in files.items():
            file = stack.enter_context(path.open("w"))
            monitor = lab[name].node.popen("ip", "-ts", "xfrm", "monitor", "SA", stdout=file)
            stack.callback(monitor.wait, 20)
            stack.callback(monitor.terminate)
            if monitor.stderr is not None:
                stack.callback(monitor.stderr.close)
        yield last
    own = {str(lab[gone].node.address(family)) for family in (4, 6)}
    pattern = re.compile(r"^\[(\S+)\] ?\s*Deleted src (\S+) dst (\S+)", re.MULTILINE)
    for name, path in files.items():
        for when, *between in pattern.findall(path.read_text()):
            if own & set(between):
                last[name] = datetime.fromisoformat(when).timestamp()


WITHOUT_BOB = ZONES.replace(
    """[hosts.bob]
fqdn = "bob.example.test"
addresses = $bob
""",
    "",
).replace('["alice", "bob"]', '["alice"]')
DISABLED = ZONES.replace("addresses = $bob", "addresses = $bob\ndisabled = true")


@pytest.mark.long
@pytest.mark.parametrize(
    ("what", "document"),
    [("disabled", DISABLED), ("removed", WITHOUT_BOB)],
    ids=lambda each: each[:8],
)
def test_a_host_that_is_taken_out_is_gone_within_seconds(lab: Lab, what: str, document: str):
    keyed = [
        Attempt("bob", peer, family, "tcp", 22)
        for peer in ("kdc", "alice", "carol", "vault")
        for family in (4, 6)
    ]
    assert set(attempts.reach(lab.topology.nodes, keyed, 30)) == set(keyed)
    before = states_with(lab, "bob")
    with Scenario(lab, f"bob is {what} in the file") as s:
        with deletions(lab, "bob") as last:
            time.sleep(1)
            published = time.time()
            lab.publish(document)
            wait_for(lambda: states_with(lab, "bob") == 0, "no SA with bob is left", 60)
        time.sleep(2)
        in_vain = attempts.reach(lab.topology.nodes, keyed, 3)
        begun = time.monotonic()
        lab.publish(ZONES)
        again: dict[Attempt, float] = {}
        while set(again) != set(keyed) and time.monotonic() < begun + 60:
            again = attempts.reach(lab.topology.nodes, keyed, 5)
        s.note(seconds_until_all_talk_again=time.monotonic() - begun)
    stopped, _ = max(s.figures.ping.outages, key=lambda outage: outage[1] - outage[0])
    s.note(
        SAs_before=before,
        last_answer_after=stopped - published,
        last_SA_deleted_after={name: round(when - published, 1) for name, when in last.items()},
    )
    assert before >= 4 * 2 * 2 * 2
    assert set(last) == set(KEYED)
    assert s.figures.ping.lost > 100
    assert s.figures.clear == ()
    assert in_vain == {}
    assert set(again) == set(keyed)
