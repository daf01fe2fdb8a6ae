"""Another policy while daemons run and traffic goes on: what it does not change stays."""

from __future__ import annotations

import signal
import time

import pytest

from tests.support import observe
from tests.support.lab import DaemonError, Host, Lab, wait_for

FIRST = """
[[rules]]
name = "before all others"
from = "{}"
to = "{}"
action = "clear"
"""


def spis(host: Host) -> set[int]:
    return {state.spi for state in host.states()}


@pytest.fixture(scope="module")
def lab():
    with Lab(("alice", "bob", "carol"), families=(4,)) as lab:
        lab.start()
        yield lab


@pytest.fixture
def original(lab: Lab):
    """The policy of the lab, which is there again after the test."""
    text = lab.policy_text()
    yield text
    lab.policy.write_text(text)
    for host in lab.hosts.values():
        host.ask("reload", "--accept-older")


def with_rule(text: str, rule: str, version: int) -> str:
    at = text.index("[[rules]]")
    return text[:at].replace("version = 1", f"version = {version}") + rule + text[at:]


def test_a_rule_more_moves_entries_and_neither_sas_nor_packets(lab: Lab, original: str):
    alice, bob, carol = lab["alice"], lab["bob"], lab["carol"]
    for peer in (bob, carol):
        assert alice.ping(peer).lost == 0
    kept = {state.spi for state in lab.states_between("alice", "bob")}
    clear = f"icmp and host {alice.node.ipv4} and host {bob.node.ipv4}"
    with lab.capture("alice", clear) as capture:
        pinging = alice.node.popen("ping", "-n", "-i", "0.01", "-W", "2", str(bob.node.ipv4))
        time.sleep(0.5)
        lab.policy.write_text(with_rule(original, FIRST.format("alice", "carol"), 2))
        answer = alice.ask("reload")
        carol.ask("reload")
        time.sleep(1)
        pinging.send_signal(signal.SIGINT)
        result = observe.read_ping(pinging.communicate(timeout=20)[0])
    assert (result.lost, observe.read_capture(capture)) == (0, [])
    assert answer["policy_version"] == 2
    assert answer["sas_deleted"] == 1
    assert {state.spi for state in lab.states_between("alice", "bob")} == kept
    wait_for(lambda: not lab.states_between("carol", "alice"), "carol loses hers, too")
    assert alice.ping(carol).lost == 0  # in clear


def test_a_mistake_is_one_line_and_changes_nothing(lab: Lab, original: str):
    alice, bob = lab["alice"], lab["bob"]
    assert alice.ping(bob).lost == 0
    before = spis(alice), sorted(alice.policies())
    lab.policy.write_text(original + '\n[[rules]]\nname = "x"\nfrom = "nobody"\n')
    with pytest.raises(DaemonError, match=r"policy\.toml.*nobody"):
        alice.ask("reload")
    assert alice.running
    assert (spis(alice), sorted(alice.policies())) == before
    assert alice.ping(bob).lost == 0


def test_a_hangup_reloads(lab: Lab, original: str):
    alice = lab["alice"]
    lab.policy.write_text(original.replace("version = 1", "version = 7"))
    assert alice.process is not None
    alice.process.send_signal(signal.SIGHUP)
    wait_for(lambda: alice.ask("status")["policy_version"] == 7, "the new version is in force")


def test_a_host_that_is_removed_loses_its_sas_within_seconds(lab: Lab, original: str):
    alice, bob, carol = lab["alice"], lab["bob"], lab["carol"]
    for peer in (bob, carol):
        assert alice.ping(peer).lost == 0
    start = original.index("[hosts.carol]")
    lab.policy.write_text(original[:start] + original[original.index("[[rules]]") :])
    for host in (alice, bob):
        host.ask("reload")
    wait_for(lambda: not lab.states_between("alice", "carol"), "alice loses hers")
    wait_for(lambda: not lab.states_between("carol", "alice"), "carol loses hers")
    assert carol.ping(alice, patience=3).received == 0  # she may still think that she must
    assert alice.ping(bob).lost == 0
