"""What a document's words do in a kernel, one document after the other in the same laboratory."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from kinkd.app import protocol
from kinkd.errors import LocalError
from tests.support import attempts, observe, scenario
from tests.support.attempts import FAMILIES, Attempt
from tests.support.lab import Host, Lab, wait_for
from tests.support.oracle import Oracle
from tests.support.topology import BRIDGE, Node

HOSTS = """
schema = 1
version = $version
realm = "EXAMPLE.TEST"
[hosts.alice]
fqdn = "alice.example.test"
addresses = $alice
[hosts.bob]
fqdn = "bob.example.test"
addresses = $bob
"""
BLOCKED = """
[[rules]]
name = "nobody else"
from = "all"
to = "world"
action = "block"
"""
PATIENCE = 10  # seconds


def rule(source: str, target: str, traffic: str, action: str) -> str:
    return (
        f'[[rules]]\nname = "{source} {target} {traffic} {action}"\nfrom = "{source}"\n'
        f'to = "{target}"\ntraffic = "{traffic}"\naction = "{action}"\n'
    )


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(("alice", "bob"), document=HOSTS + rule("all", "all", "any", "require")) as lab:
        lab.start()
        yield lab


def judged(lab: Lab, tried: list[Attempt]) -> tuple[set[Attempt], list[str], int]:
    """Who was answered; what went out in clear and must not; and how much was of IPsec."""
    senders = [host.node.hardware_address() for host in lab.hosts.values()]
    with lab.capture(BRIDGE) as pcap:
        answered = attempts.reach(lab.topology.nodes, tried, PATIENCE)
    found = Oracle(lab.policy.read_text()).judge(pcap, senders)
    return set(answered), found.forbidden, found.counts["IPsec"]


def test_the_ports_of_who_asks_count_though_a_connection_begins_without_one(lab: Lab):
    """The kernel asks the policies for port 0, and of IPv6 it does so only then."""
    lab.roll_out(HOSTS + rule("alice", "bob", "tcp/25 from 32768-65535", "require"))
    tried = [Attempt("alice", "bob", family, "tcp", 25) for family in (4, 6)]
    answered, forbidden, protected = judged(lab, tried)
    assert (answered, forbidden) == (set(tried), [])
    assert protected >= 10


def test_servers_are_reached_by_tcp_where_all_others_are_blocked(lab: Lab):
    servers = "[servers]\nkdc = $carol\ndirectory = $carol\ndns = $carol\n"
    lab.roll_out(HOSTS.replace("[hosts.alice]", servers + "[hosts.alice]") + BLOCKED)
    services = [("tcp", port) for port in (88, 389, 53)] + [("udp", 88), ("udp", 53)]
    tried = [
        Attempt("alice", "carol", family, *service) for family in (4, 6) for service in services
    ]
    others = [Attempt("alice", "carol", family, "tcp", 80) for family in (4, 6)]
    answered, forbidden, _ = judged(lab, tried + others)
    assert (answered, forbidden) == (set(tried), [])


# --- versions ---------------------------------------------------------------------------------

REQUIRED = rule("all", "all", "any", "require")


def command(host: Host, name: str, **arguments: object) -> dict[str, object]:
    return protocol.ask(str(host.socket), name, 40, **arguments)


def bare(host: Host) -> None:
    """It never had a kinkd, as far as its kernel knows."""
    host.stop(signal.SIGKILL)
    host.node.ip("xfrm state flush", "xfrm policy flush")


@pytest.fixture
def required(lab: Lab) -> Lab:
    """Everything between alice and bob is, and both run."""
    alice, bob = lab["alice"], lab["bob"]
    for host in (alice, bob):
        if not host.running:
            lab.publish(HOSTS + REQUIRED)
            host.start()
    lab.roll_out(HOSTS + REQUIRED)
    assert alice.ping(bob).lost == 0
    return lab


def test_an_older_document_is_refused_until_an_administrator_takes_it(required: Lab):
    alice, bob = required["alice"], required["bob"]
    older = required.policy.read_text()
    version = required.roll_out(HOSTS + REQUIRED)
    open_to_all = older.replace('action = "require"', 'action = "clear"')
    refused = len(alice.logged("reload-refused"))
    required.replace_policy(open_to_all)
    begun = time.monotonic()
    wait_for(lambda: len(alice.logged("reload-refused")) > refused, "it is refused")
    scenario.note("an older document in the file", seconds_until_refused=time.monotonic() - begun)
    for start in (False, True):
        if start:
            alice.stop()
            alice.start()
            assert alice.logged("policy-of-before")
        found = command(alice, "policy")
        assert found["version"] == version
        assert f"version {version - 1} is older than version {version}" in str(found["fault"])
        with required.capture("alice") as pcap:
            assert alice.ping(bob, count=3).lost == 0
        senders = [alice.node.hardware_address()]
        assert Oracle(older).judge(pcap, senders).forbidden == []
    with pytest.raises(LocalError, match="--accept-older"):
        command(alice, "reload")
    for host in (alice, bob):
        assert command(host, "reload", accept_older=True)["policy_version"] == version - 1
    assert command(alice, "policy")["fault"] == ""
    wait_for(lambda: not alice.states(), "there is nothing to protect any more")
    assert alice.ping(bob).lost == 0


def test_a_broken_document_changes_nothing_and_the_cache_starts_a_daemon(required: Lab):
    alice, bob = required["alice"], required["bob"]
    before, good = command(alice, "policy")["version"], required.policy.read_text()
    refused = len(alice.logged("reload-refused"))
    required.replace_policy(good + '[[rules]]\nname = "x"\nfrom = "nobody"\n')
    wait_for(lambda: len(alice.logged("reload-refused")) > refused, "it is refused")
    assert "nobody" in str(command(alice, "policy")["fault"])
    assert alice.ping(bob).lost == 0
    bare(alice)
    alice.start()
    found = command(alice, "policy")
    assert (found["version"], "nobody" in str(found["fault"])) == (before, True)
    assert alice.ping(bob).lost == 0
    assert alice.states()


# --- audit ------------------------------------------------------------------------------------


def audited(host: Host) -> list[dict[str, object]]:
    rows = command(host, "audit")["rows"]
    assert isinstance(rows, list)
    return rows


@pytest.mark.long
@pytest.mark.parametrize("of", ["rule", "host"])
def test_in_audit_all_is_keyed_and_nothing_dropped_and_what_would_be_is_told(
    required: Lab, of: str
):
    alice, bob, carol = required["alice"], required["bob"], required.topology["carol"]
    blocked = BLOCKED + "audit = true\n" * (of == "rule")
    wanted = REQUIRED + "audit = true\n" * (of == "rule")
    hosts = HOSTS.replace("$alice", "$alice\naudit = true" if of == "host" else "$alice")
    required.roll_out(hosts + wanted + blocked)
    assert alice.ping(bob, count=3).lost == 0
    wait_for(lambda: bool(alice.states() and bob.states()), "they are keyed all the same")
    time.sleep(1)
    keyed = [row for row in audited(alice) if row["party"] == "bob" and alice.sas()]
    world = observe.ping(alice.node, carol.ipv4, count=5, interval=0.2)
    assert world.lost == 0
    wait_for(lambda: any(row["party"] == "world" for row in audited(alice)), "it is told")
    time.sleep(1)
    told = {
        (row["direction"], row["action"]): row for row in audited(alice) if row["party"] == "world"
    }
    bare(bob)
    alice.node.ip("xfrm state flush")
    clear = alice.ping(bob, count=5)
    wait_for(
        lambda: any(row["party"] == "bob" for row in audited(alice)), "bob's is told as well", 60
    )
    scenario.note(
        f"audit on a {of}",
        would_be_blocked={key[0]: row["packets"] for key, row in told.items()},
        told_while_keyed=sum(int(str(row["packets"])) for row in keyed),
        lost=clear.lost,
        rows=len(audited(alice)),
    )
    assert clear.lost == 0
    assert told["out", "block"]["packets"] == 5


# --- break-glass ------------------------------------------------------------------------------


@pytest.mark.long
def test_break_glass_lets_pass_for_its_time_and_not_longer(required: Lab):
    alice, bob = required["alice"], required["bob"]
    bare(bob)
    alice.node.ip("xfrm state flush")
    lasts = 25

    def passes() -> bool:
        return observe.ping(alice.node, bob.node.ipv4, count=2, patience=1).received == 2

    assert not passes()
    command(alice, "break-glass", seconds=lasts, reason="the KDC is on fire")
    end = time.monotonic() + lasts
    assert passes()
    alice.stop()
    stopped = passes()
    alice.start()
    restarted = passes()
    left = command(alice, "policy")["suspended_seconds"]
    wait_for(lambda: not command(alice, "policy")["suspended_seconds"], "it is over", lasts + 10)
    time.sleep(max(0.0, end - time.monotonic()) + 1)
    scenario.note(
        "break-glass",
        passes_with_daemon_stopped=stopped,
        and_restarted=restarted,
        left=left,
    )
    assert stopped
    assert restarted
    assert not passes()
    assert any("fire" in line for line in alice.logged("break-glass"))
    assert alice.logged("enforcement-suspended")
    assert alice.logged("enforcement-resumed")


# --- the link, this host itself, and the way to the peer ------------------------------------------


def test_a_host_talks_to_itself_and_to_its_link_with_the_world_blocked(required: Lab):
    required.roll_out(HOSTS + REQUIRED + BLOCKED)
    alice, carol = required["alice"].node, required.topology["carol"]
    loopback = {"lo4": ("127.0.0.1", 4), "lo6": ("::1", 6)}
    ends = {**loopback, "own4": (str(alice.ipv4), 4), "own6": (str(alice.ipv6), 6)}
    took = {}
    for name, (address, family) in ends.items():
        begun = time.monotonic()
        assert talk(alice, address, FAMILIES[family]) == b"to myself"
        took[name] = time.monotonic() - begun
        assert observe.ping(alice, address, patience=2).lost == 0
    scenario.note("self-connections, the world blocked", **took)
    link = [("224.0.0.251", 5353), ("255.255.255.255", 9999), ("ff02::fb%eth0", 5353)]
    link.append((link_local(carol), 5353))
    with required.capture("alice") as pcap:
        sent = {f"{address} {port}": send(alice, address, port) for address, port in link}
        sent["lease"] = send(alice, str(carol.ipv4), 67, own=68)
        sent["lease of IPv6"] = send(alice, str(carol.ipv6), 547, own=546)
        refused = send(alice, str(carol.ipv4), 9999)
        time.sleep(0.5)
    packets = observe.read_capture(pcap, f"udp and ether src {alice.hardware_address()}")
    scenario.note("to the link, the world blocked", sent=len(sent), on_the_wire=len(packets))
    assert set(sent.values()) == {""}
    assert "not permitted" in refused
    assert len(packets) == len(sent)


def talk(node: Node, address: str, family: int) -> bytes:
    """One word over a connection of TCP to a host itself."""

    def connect() -> bytes:
        with (
            socket.create_server((address, 7000), family=family) as listener,
            socket.create_connection((address, 7000), 5) as one,
        ):
            listener.settimeout(5)
            other, _ = listener.accept()
            with other:
                other.settimeout(5)
                one.sendall(b"to myself")
                return other.recv(100)

    return node.python(connect)


def link_local(node: Node) -> str:
    """Its address of the link alone, as others on the link write it."""
    text = node.run("ip", "-6", "-o", "addr", "show", "dev", "eth0", "scope", "link").stdout
    return text.split("inet6 ")[1].partition("/")[0] + "%eth0"


def send(node: Node, address: str, port: int, own: int = 0) -> str:
    """One datagram; what the kernel says against it."""

    def attempt() -> str:
        kind, _, _, _, end = socket.getaddrinfo(address, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(kind, socket.SOCK_DGRAM) as sender:
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
            sender.bind(("", own))
            try:
                sender.sendto(b"to the link", end)
            except OSError as error:
                return str(error)
            return ""

    return node.python(attempt)


NARROW = 1300  # octets, of the way through the router


@pytest.fixture
def narrow(required: Lab) -> Iterator[Lab]:
    """Between alice and bob is carol, who forwards packets of fewer octets than the links take."""
    carol, ends = required.topology["carol"], (required["alice"].node, required["bob"].node)
    required.roll_out(HOSTS + REQUIRED + BLOCKED)
    for node in (carol, *ends):
        for name in ("all", "eth0", "default"):
            node.sysctl(f"net.ipv4.conf.{name}.send_redirects", 0)
            node.sysctl(f"net.ipv4.conf.{name}.accept_redirects", 0)
            node.sysctl(f"net.ipv6.conf.{name}.accept_redirects", 0)
    carol.sysctl("net.ipv4.ip_forward", 1)
    carol.sysctl("net.ipv6.conf.all.forwarding", 1)
    ways = [(one, two) for one, two in (ends, ends[::-1])]
    for family, bits in ((4, 32), (6, 128)):
        for here, there in ways:
            to = f"{there.address(family)}/{bits}"
            here.ip(f"route add {to} via {carol.address(family)}")
            carol.ip(f"route add {to} dev eth0 mtu lock {NARROW}")
    yield required
    for family, bits in ((4, 32), (6, 128)):
        for here, there in ways:
            here.ip(f"route del {there.address(family)}/{bits} via {carol.address(family)}")
            carol.ip(f"route del {there.address(family)}/{bits} dev eth0")


@pytest.mark.parametrize("family", [4, pytest.param(6, marks=pytest.mark.long)])
def test_the_path_mtu_is_learnt_under_require(narrow: Lab, family: int):
    alice, bob = narrow["alice"].node, narrow["bob"].node
    first = narrow["alice"].ping(narrow["bob"], family=family, count=5)
    with narrow.capture("alice") as pcap:
        begun = time.monotonic()
        got = transfer(alice, bob, family, 1 << 20)
        took = time.monotonic() - begun
        large = alice.run(
            *("ping", "-n", "-M", "do", "-c", "3", "-W", "2", "-s", "1300"),
            str(bob.address(family)),
            check=False,
        )
        fits = alice.run(
            *("ping", "-n", "-M", "do", "-c", "3", "-W", "2", "-s", "1100"),
            str(bob.address(family)),
            check=False,
        )
    kind = "icmp[0] == 3 and icmp[1] == 4" if family == 4 else "icmp6 and ip6[40] == 2"
    told = len(observe.read_capture(pcap, kind))
    route = alice.run("ip", f"-{family}", "route", "get", str(bob.address(family))).stdout
    learnt = re.findall(r"mtu (?:lock )?(\d+)", route)
    scenario.note(
        f"path MTU {NARROW}, require, IPv{family}",
        first_pings_lost=first.lost,
        octets=got,
        seconds=took,
        errors_on_the_wire=told,
        learnt=learnt,
        too_large=observe.read_ping(large.stdout + large.stderr).received,
        that_fits=observe.read_ping(fits.stdout + fits.stderr).received,
    )
    assert got == 1 << 20
    assert told >= 1
    assert observe.read_ping(fits.stdout).received == 3
    assert "too long" in large.stdout + large.stderr or "mtu" in large.stdout + large.stderr


def transfer(here: Node, there: Node, family: int, octets: int) -> int:
    """Send so much over a connection; how much arrived within half a minute."""
    address = (str(there.address(family)), 7001)
    with there.python(lambda: socket.create_server(address, family=FAMILIES[family])) as listener:
        one = here.python(lambda: socket.create_connection(address, 20))
        other, _ = listener.accept()
        with one, other, ThreadPoolExecutor(1) as pool:
            one.settimeout(30)
            other.settimeout(15)
            sending = pool.submit(one.sendall, bytes(octets))
            got = 0
            try:
                while got < octets and (piece := other.recv(1 << 16)):
                    got += len(piece)
            except TimeoutError:
                one.shutdown(socket.SHUT_RDWR)
            sending.exception()
    return got
