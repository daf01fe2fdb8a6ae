"""A host boots: no packet of what its policy protects is on the wire in clear, daemon or not."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import observe
from tests.support.lab import Host, Lab

GUARD = (sys.executable, "-B", "-m", "kinkd.cli.kinkd", "guard", "--config")
ONE_CAPABILITY = ("setpriv", "--inh-caps=-all", "--bounding-set=-all,+net_admin")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """alice and bob, whose KDC is protected, too, but for what they must ask it."""
    with Lab() as lab:
        kdc = lab.topology["kdc"].ipv4
        with lab.policy.open("a") as policy:
            policy.write(f'[hosts.kdc]\nfqdn = "kdc.example.test"\naddresses = ["{kdc}"]\n')
        for host in lab.hosts.values():
            configure(host, lab.policy, lab)
        lab.start()
        yield lab


def configure(host: Host, policy: Path, lab: Lab) -> None:
    host.configure(policy=policy)
    with host.config.open("a") as config:
        config.write(f'[exempt]\nkdc = ["{lab.topology["kdc"].ipv4}"]\n')


def guard(host: Host) -> subprocess.CompletedProcess[str]:
    """Run ``kinkd guard`` with the capabilities of its unit."""
    return host.node.run(*ONE_CAPABILITY, *GUARD, host.config, check=False)


@contextmanager
def rebooted(host: Host) -> Iterator[None]:
    """Its kernel is as after a boot, no interface up; afterwards it is as the lab had it."""
    if host.running:
        host.stop(signal.SIGKILL)
    host.node.ip("xfrm state flush", "xfrm policy flush", "link set eth0 down")
    host.node.ip("link set lo down")
    assert (host.states(), host.policies()) == ([], [])
    try:
        yield
    finally:
        network_up(host)
        if not host.running:
            host.start()


def network_up(host: Host) -> None:
    """Both interfaces, with all addresses: those of IPv6 went when it was down."""
    host.node.ip(
        "link set lo up",
        "link set eth0 up",
        f"addr replace {host.node.ipv6}/64 dev eth0 nodad",
    )


def clear_packets(lab: Lab, pcap: Path) -> list[str]:
    """Of the traffic that the policy protects: what is neither ESP nor exempt."""
    kdc, bob = lab.topology["kdc"].ipv4, lab["bob"].node
    exempt = f"arp or ip proto 50 or ip6 proto 50 or udp port 910 or (host {kdc} and port 88)"
    neighbors = "(icmp6 and (ip6[40] == 135 or ip6[40] == 136))"
    ends = f"host {kdc} or host {bob.ipv4} or host {bob.ipv6}"
    return observe.read_capture(pcap, f"({ends}) and not ({exempt} or {neighbors})")


def counted(pcap: Path, expression: str) -> int:
    return len(observe.read_capture(pcap, expression))


def pings(host: Host, target: observe.Address) -> observe.Ping:
    return observe.ping(host.node, target, count=4, interval=0.2, patience=1)


def test_a_boot_sends_nothing_in_clear_until_the_daemon_keys(lab: Lab):
    alice, bob, kdc = lab["alice"], lab["bob"], lab.topology["kdc"]
    with rebooted(alice), lab.capture("alice") as pcap:
        done = guard(alice)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f"version 1 of the policy, from {lab.policy}\n")
        guarded = alice.policies()
        network_up(alice)
        unanswered = [pings(alice, end) for end in (bob.node.ipv4, bob.node.ipv6, kdc.ipv4)]
        unanswered.append(pings(bob, alice.node.ipv4))
        tickets = alice.node.run(
            *("kinit", "-k", "-t", alice.keytab, "-c", f"FILE:{alice.directory}/booted"),
            alice.client,
            check=False,
            env=alice.environment,
        )
        alice.start()
        answered = [alice.ping(bob, family=family, count=3) for family in (4, 6)]
        assert sorted(alice.policies()) == sorted(guarded)
    clear = clear_packets(lab, pcap)
    asked = counted(pcap, f"src {alice.node.ipv4} and dst {kdc.ipv4} and port 88")
    print(
        f"before the daemon: {sum(ping.sent for ping in unanswered)} pings,"
        f" {sum(ping.received for ping in unanswered)} answered; after: "
        f"{sum(ping.lost for ping in answered)} lost; in clear: {len(clear)};"
        f" to the KDC: {asked}, ESP: {counted(pcap, 'ip proto 50 or ip6 proto 50')}"
    )
    assert [ping.received for ping in unanswered] == [0, 0, 0, 0]
    assert tickets.returncode == 0, tickets.stderr
    assert asked >= 1
    assert [ping.lost for ping in answered] == [0, 0]
    assert clear == []
    assert counted(pcap, "ip proto 50") >= 6
    assert counted(pcap, "ip6 proto 50") >= 6


def test_without_it_the_same_boot_leaks(lab: Lab):
    alice, bob = lab["alice"], lab["bob"]
    with rebooted(alice), lab.capture("alice") as pcap:
        network_up(alice)
        pings(alice, bob.node.ipv4)
        pings(alice, bob.node.ipv6)
        alice.start()
    assert len(clear_packets(lab, pcap)) >= 8


def test_a_broken_policy_file_costs_nothing_where_there_was_a_good_one(lab: Lab, tmp_path: Path):
    alice, bob = lab["alice"], lab["bob"]
    before = sorted(alice.policies())
    broken = tmp_path / "policy.toml"
    broken.write_text("schema = 1\nversion = \n")
    try:
        with rebooted(alice), lab.capture("alice") as pcap:
            configure(alice, broken, lab)
            done = guard(alice)
            assert done.returncode == 0, done.stderr
            assert f"cached from {lab.policy} ({broken}:2: not TOML" in done.stdout
            assert sorted(alice.policies()) == before
            network_up(alice)
            assert pings(alice, bob.node.ipv4).received == 0
            assert pings(alice, bob.node.ipv6).received == 0
            configure(alice, lab.policy, lab)
            alice.start()
            assert alice.ping(bob).lost == 0
    finally:
        configure(alice, lab.policy, lab)
    assert clear_packets(lab, pcap) == []


def test_without_any_policy_the_unit_fails(lab: Lab, tmp_path: Path):
    alice = lab["alice"]
    try:
        with rebooted(alice):
            configure(alice, tmp_path / "nowhere.toml", lab)
            (alice.state / "policy-cache.json").unlink(missing_ok=True)
            done = guard(alice)
            configure(alice, lab.policy, lab)
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.count("\n") == 1
            assert alice.policies() == []
    finally:
        configure(alice, lab.policy, lab)


def test_beside_a_running_daemon_it_changes_nothing(lab: Lab, tmp_path: Path):
    alice, bob = lab["alice"], lab["bob"]
    assert alice.ping(bob).lost == 0
    before = alice.policies(), {state.spi for state in alice.states()}
    fewer = tmp_path / "policy.toml"  # would it be taken, entries would go
    fewer.write_text(
        'schema = 1\nversion = 2\nrealm = "EXAMPLE.TEST"\n'
        '[hosts.alice]\nfqdn = "alice.example.test"\naddresses = ["10.99.0.1"]\n'
    )
    configure(alice, fewer, lab)
    try:
        done = guard(alice)
    finally:
        configure(alice, lab.policy, lab)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"kinkd: a kinkd of {alice.state} is running: nothing to do\n"
    assert (alice.policies(), {state.spi for state in alice.states()}) == before
    assert alice.ping(bob).lost == 0
