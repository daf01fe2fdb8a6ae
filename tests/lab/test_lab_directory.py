"""The realm's policy from a directory: real daemons, a real slapd, and what becomes of either.

slapd runs on ds, which runs kinkd too and is under ``require`` like all others.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from kinkd.cli.kinkd import EXIT_FAILED
from kinkd.document import Document
from kinkd.policy import reader, resolve
from tests.support import observe, scenario
from tests.support.directory import BASE, host
from tests.support.directory_lab import (
    DirectoryLab,
    cached_text,
    policy_of,
    restart,
    source_of,
)
from tests.support.lab import DaemonError, Host, wait_for
from tests.support.scenario import Scenario, initiate
from tests.support.slapd import DirectoryError

SLOW = 150  # seconds that a fault may take to be seen, and its end
RUNNING = ("alice", "bob", "carol", "ds")


@pytest.fixture(scope="module")
def lab() -> Iterator[DirectoryLab]:
    """alice, bob, carol and ds, started without any policy of before; dave is to come."""
    with DirectoryLab(("alice", "bob", "carol"), later=("dave",)) as lab:
        begun = time.monotonic()
        lab.start(*RUNNING)
        ready = time.monotonic() - begun
        assert lab["alice"].ping(lab["bob"]).lost == 0
        assert lab["ds"].ping(lab["carol"]).lost == 0
        scenario.note(
            "directory: four hosts from nothing", ready=ready, talk=time.monotonic() - begun
        )
        yield lab


@pytest.fixture
def version(lab: DirectoryLab) -> Iterator[int]:
    """One more than what is in force, which all have in the end."""
    number = max(policy_of(lab[name])["version"] for name in RUNNING) + 1
    yield number
    await_all(lab, lambda each: source_of(each)["fault"] is None, "the directory is there")


def head(lab: DirectoryLab, **values: object) -> None:
    """Change the policy's own entry."""
    lab.slapd.set(BASE, **{name: str(value) for name, value in values.items()})


def await_all(lab: DirectoryLab, condition: Callable[[Host], bool], what: str) -> float:
    """Wait until it holds on every host; how many seconds that took."""
    begun = time.monotonic()
    for name in RUNNING:
        wait_for(lambda name=name: condition(lab[name]), f"{name}: {what}", SLOW)
    return time.monotonic() - begun


def in_force(lab: DirectoryLab, version: int) -> float:
    return await_all(lab, lambda each: policy_of(each)["version"] == version, f"{version}")


def spd(lab: DirectoryLab) -> dict[str, list[str]]:
    return {name: sorted(lab[name].policies()) for name in RUNNING}


def answered(one: Host, other: Host) -> bool:
    """Whether a ping is; a kernel may forbid even to send it."""
    try:
        return one.ping(other, patience=2).received == 1
    except RuntimeError:
        return False


def rule(number: int, sides: tuple[str, str], action: str) -> str:
    """The LDIF of a rule that comes before those of the lab."""
    return (
        f"dn: cn=more {number},ou=rules,{BASE}\nobjectClass: kinkdRule\ncn: more {number}\n"
        f"kinkdOrder: {number - 10_000}\nkinkdFrom: {sides[0]}\nkinkdTo: {sides[1]}\n"
        f"kinkdAction: {action}\n\n"
    )


def rule_dn(number: int) -> str:
    return f"cn=more {number},ou=rules,{BASE}"


def test_the_directory_gives_what_the_file_does(lab: DirectoryLab) -> None:
    """``kinkctl policy export`` of the lab's document is what was added."""
    text = lab.policy.read_text()
    start, end = text.index("[hosts.dave]"), text.index("[[rules]]")
    file = reader.read(Document.parse("file", (text[:start] + text[end:]).encode()))
    for name in RUNNING:
        kept = reader.read(Document.parse("kept", cached_text(lab[name]).encode()))
        options = resolve.Options()
        assert resolve.resolve(kept, name, options) == resolve.resolve(file, name, options)
    before = sorted(lab["alice"].policies())
    lab["alice"].stop()
    lab["alice"].configure(policy=lab.policy)
    lab.policy.write_text(text[:start] + text[end:])
    try:
        lab["alice"].start()
        from_file = sorted(lab["alice"].policies())
        lab["alice"].stop()
    finally:
        lab.policy.write_text(text)
        lab.follow(lab["alice"])
        lab["alice"].start()
    # A directory's own server is reached in clear.
    assert [each for each in before if not re.search("port (389|636) ", each)] == from_file


@pytest.mark.long
def test_a_start_without_directory_and_kdc_is_from_the_cache(lab: DirectoryLab) -> None:
    alice, bob = lab["alice"], lab["bob"]
    wait_for(lambda: source_of(alice)["reachable"] is True, "alice reads", SLOW)
    with Scenario(lab, "directory: alice restarts with slapd down") as s:
        lab.slapd.kill()
        begun = time.monotonic()
        restart(alice)
        s.note(restart=time.monotonic() - begun)
        wait_for(lambda: bool(source_of(alice)["fault"]), "alice misses it", SLOW)
        s.note(fault=source_of(alice)["fault"])
    assert s.figures.unharmed() == []
    lab.unkey("alice", "bob")
    assert alice.ping(bob).lost == 0  # keyed anew
    with Scenario(lab, "directory: alice restarts with slapd and KDC down") as s:
        lab.realm.stop()
        begun = time.monotonic()
        alice.stop()
        s.note(stop=time.monotonic() - begun)
        begun = time.monotonic()
        alice.start()
        s.note(start=time.monotonic() - begun)
        assert alice.ask("status")["policy_version"] == 1
    assert s.figures.unharmed() == []
    lab.realm.start()
    lab.slapd.start()
    begun = time.monotonic()
    await_all(lab, lambda each: source_of(each)["fault"] is None, "the directory is found again")
    scenario.note("directory: slapd and KDC back", all_follow=time.monotonic() - begun)


def test_a_host_is_disabled_and_enabled(lab: DirectoryLab, version: int) -> None:
    """The directory is reached by a disabled host, too, or it would never learn of its end."""
    alice, carol = lab["alice"], lab["carol"]
    for name in ("alice", "bob", "ds"):
        assert carol.ping(lab[name]).lost == 0
    assert initiate(alice, lab["bob"])
    with Scenario(lab, "directory: carol is disabled, enabled") as s:
        pinging = carol.node.popen(
            *("ping", "-n", "-D", "-i", "0.1", "-W", "1", str(alice.node.ipv4))
        )
        time.sleep(1)
        begun, posix = time.monotonic(), time.time()
        lab.slapd.set(host("carol"), kinkdDisabled="TRUE")
        for name in ("alice", "bob", "ds"):
            wait_for(lambda name=name: not between(lab, name, "carol"), f"{name} and carol: no SAs")
        s.note(gone_everywhere=time.monotonic() - begun)
        pinging.send_signal(signal.SIGINT)
        answers = observe.read_ping(pinging.communicate(timeout=30)[0]).answers
        s.note(last_answer=max(answers) - posix)
        assert not answered(carol, alice)
        assert not answered(alice, carol)
        lab.slapd.kill()
        await_all(lab, lambda each: bool(source_of(each)["fault"]), "slapd is missed")
        lab.slapd.start()
        head(lab, kinkdVersion=version)
        s.note(found_by_carol=in_force(lab, version))
        assert lab["bob"].logged("directory-lost")
        assert lab["bob"].logged("directory-reached")
        begun = time.monotonic()
        lab.slapd.set(host("carol"), kinkdDisabled="FALSE")
        wait_for(lambda: answered(alice, carol), "carol is back", SLOW)
        s.note(back=time.monotonic() - begun)
    assert s.figures.unharmed() == []


def between(lab: DirectoryLab, name: str, peer: str) -> list[observe.KernelSa]:
    return lab.states_between(name, peer) + lab.states_between(peer, name)


@pytest.mark.long
def test_an_action_changes(lab: DirectoryLab, version: int) -> None:
    """The rule comes with the count of rules, and its action changes like any attribute."""
    alice, carol = lab["alice"], lab["carol"]
    assert alice.ping(carol).lost == 0
    with Scenario(lab, "directory: a rule is added, changed, deleted") as s:
        lab.slapd.add(rule(1, ("alice", "carol"), "block"))
        wait_for(lambda: "kinkdRuleCount" in policy_of(alice)["fault"], "the count is told")
        assert alice.ping(carol).lost == 0
        head(lab, kinkdVersion=version, kinkdRuleCount=2)
        s.note(blocked=in_force(lab, version))
        assert not answered(alice, carol)
        begun = time.monotonic()
        lab.slapd.set(rule_dn(1), kinkdAction="clear")
        with lab.capture("alice", f"icmp and host {carol.node.ipv4}") as clear:
            wait_for(lambda: answered(alice, carol), "clear", SLOW)
            s.note(in_clear=time.monotonic() - begun)
        assert observe.read_capture(clear)
        lab.slapd.delete(rule_dn(1))
        head(lab, kinkdVersion=version + 1, kinkdRuleCount=1)
        s.note(required=in_force(lab, version + 1))
        assert alice.ping(carol).lost == 0
        assert lab.states_between("alice", "carol")
    assert s.figures.unharmed() == []


@pytest.mark.long
def test_a_host_is_added_and_keyed(lab: DirectoryLab, version: int) -> None:
    alice, dave = lab["alice"], lab["dave"]
    with pytest.raises(DaemonError, match="dave"):
        dave.start()
    with Scenario(lab, "directory: dave is added") as s:
        begun = time.monotonic()
        lab.slapd.add(lab.record("dave"))
        head(lab, kinkdVersion=version)
        s.note(in_force=in_force(lab, version))
        dave.start()
        assert dave.ping(alice).lost == 0
        s.note(talks=time.monotonic() - begun)
        assert lab.states_between("alice", "dave")
        lab.slapd.delete(host("dave"))
        wait_for(lambda: not between(lab, "alice", "dave"), "alice forgets dave", SLOW)
        dave.stop()
    assert s.figures.unharmed() == []


@pytest.mark.long
def test_slapd_is_killed_in_the_middle_of_a_change(lab: DirectoryLab, version: int) -> None:
    """Half of the rules that are to come are there: none of them counts."""
    count, first = 1200, 100
    ldif = [rule(number, ("alice", "bob"), "clear") for number in range(count)]
    before = spd(lab)
    with Scenario(lab, "directory: slapd is killed in a change") as s:
        lab.slapd.add("".join(ldif[:first]))
        thread = threading.Thread(target=_add_in_vain, args=(lab, "".join(ldif[first:])))
        thread.start()
        wait_for(lambda: len(held(lab)) > first + 1, "the change has begun")
        lab.slapd.kill()
        thread.join()
        begun = time.monotonic()
        await_all(lab, lambda each: bool(source_of(each)["fault"]), "the end is noticed")
        s.note(noticed=time.monotonic() - begun)
        assert spd(lab) == before
        begun = time.monotonic()
        lab.slapd.start()
        await_all(lab, lambda each: "kinkdRuleCount" in policy_of(each)["fault"], "half is told")
        s.note(found_again=time.monotonic() - begun)
        there = held(lab)
        missing = [each for number, each in enumerate(ldif) if f"more {number}" not in there]
        s.note(half=f"{count - len(missing)} of {count} rules")
        assert 0 < len(missing) < count - first
        assert spd(lab) == before
        restart(lab["alice"])
        wait_for(lambda: "kinkdRuleCount" in policy_of(lab["alice"])["fault"], "told", SLOW)
        assert spd(lab) == before
    assert s.figures.unharmed() == []
    lab.slapd.add("".join(missing))
    head(lab, kinkdVersion=version, kinkdRuleCount=count + 1)
    whole = in_force(lab, version)
    with lab.capture("alice", f"icmp and host {lab['bob'].node.ipv4}") as clear:
        assert lab["alice"].ping(lab["bob"]).lost == 0
    assert observe.read_capture(clear)
    lab.slapd.delete(*(rule_dn(number) for number in range(count)))
    head(lab, kinkdVersion=version + 1, kinkdRuleCount=1)
    scenario.note(f"directory: {count} rules", come=whole, go=in_force(lab, version + 1))
    assert spd(lab) == before


def held(lab: DirectoryLab) -> list[str]:
    """The rules that are in the directory."""
    return lab.slapd.names(f"ou=rules,{BASE}")


@pytest.mark.long
def test_the_network_is_cut_in_the_middle_of_a_refresh(lab: DirectoryLab, version: int) -> None:
    """Nobody is told of the cut: silence has to be noticed, in a refresh and between two."""
    before = spd(lab)
    ds = lab["ds"].node
    lab.slapd.kill()
    await_all(lab, lambda each: bool(source_of(each)["fault"]), "slapd is missed")
    ds.run("tc", "qdisc", "add", "dev", "eth0", "root", "netem", "rate", "64kbit")
    lab.slapd.start()
    count = 300
    rules = "".join(rule(number, ("alice", "bob"), "clear") for number in range(count))
    lab.slapd.add(rules)
    wait_for(lambda: source_of(lab["alice"])["reachable"] is True, "alice is in a refresh", SLOW)
    with Scenario(lab, "directory: the network is cut in a refresh") as s:
        with lab.cut("ds"):
            begun = time.monotonic()
            wait_for(lambda: not source_of(lab["alice"])["reachable"], "the cut is noticed", SLOW)
            s.note(noticed=time.monotonic() - begun, fault=source_of(lab["alice"])["fault"])
            assert spd(lab) == before
        ds.run("tc", "qdisc", "del", "dev", "eth0", "root")
        lab.slapd.delete(*(rule_dn(number) for number in range(count)))
        begun = time.monotonic()
        head(lab, kinkdVersion=version)
        in_force(lab, version)
        s.note(healed=time.monotonic() - begun)
        assert spd(lab) == before
    assert s.figures.unharmed() == []
    with Scenario(lab, "directory: the network is cut while nothing happens") as s:
        with lab.cut("ds"):
            begun = time.monotonic()
            wait_for(lambda: not source_of(lab["bob"])["reachable"], "the cut is noticed", SLOW)
            s.note(noticed=time.monotonic() - begun, fault=source_of(lab["bob"])["fault"])
        begun = time.monotonic()
        head(lab, kinkdVersion=version + 1)
        in_force(lab, version + 1)
        s.note(healed=time.monotonic() - begun)
        assert spd(lab) == before
    assert s.figures.unharmed() == []


@pytest.mark.long
def test_an_entry_that_makes_no_sense(lab: DirectoryLab, version: int) -> None:
    alice = lab["alice"]
    before = spd(lab)
    with Scenario(lab, "directory: an entry makes no sense, and is mended") as s:
        lab.slapd.set(host("carol"), kinkdAddress="10.77.0.4.5")
        await_all(
            lab, lambda each: _tells(each, host("carol"), "kinkdAddress"), "the entry is told"
        )
        assert any(host("carol") in line for line in alice.logged("reload-refused"))
        assert host("carol") in alice.ask("status")["policy_fault"]
        restart(alice)
        wait_for(lambda: _tells(alice, host("carol"), "kinkdAddress"), "it is told again", SLOW)
        shutil.rmtree(lab["dave"].state)
        lab["dave"].state.mkdir()
        with pytest.raises(DaemonError, match="kinkdAddress"):
            lab["dave"].start()  # it has no policy of before
        assert lab["dave"].wait() == EXIT_FAILED  # and is to be started again
        assert spd(lab) == before
        begun = time.monotonic()
        lab.slapd.set(host("carol"), kinkdAddress=str(lab["carol"].node.ipv4))
        await_all(lab, lambda each: policy_of(each)["fault"] == "", "nothing is wrong any more")
        s.note(mended=time.monotonic() - begun)
        assert spd(lab) == before
    assert s.figures.unharmed() == []


def _tells(each: Host, *words: str) -> bool:
    return all(word in policy_of(each)["fault"] for word in words)


@pytest.mark.long
def test_a_replica_that_was_rolled_back(lab: DirectoryLab, version: int) -> None:
    head(lab, kinkdVersion=version)
    in_force(lab, version)
    head(lab, kinkdVersion=1)
    await_all(lab, lambda each: _tells(each, "version 1 is older", "--accept-older"), "it is told")
    restart(lab["alice"])
    wait_for(lambda: _tells(lab["alice"], "version 1 is older"), "it is told again", SLOW)
    assert policy_of(lab["alice"])["version"] == version
    with pytest.raises(DaemonError, match="version 1 is older"):
        lab["alice"].ask("reload")
    assert lab["alice"].ask("reload", "--accept-older")["policy_version"] == 1
    assert policy_of(lab["alice"])["fault"] == ""
    assert policy_of(lab["bob"])["version"] == version
    head(lab, kinkdVersion=version + 1)
    in_force(lab, version + 1)


@pytest.mark.long
def test_tickets_end_while_the_directory_is_followed() -> None:
    lifetime = 40
    with DirectoryLab(("alice", "bob"), lifetime=lifetime) as lab:
        lab.start()
        assert initiate(lab["alice"], lab["bob"])
        since = [source_of(lab[name])["since"] for name in ("alice", "bob", "ds")]
        with Scenario(lab, "directory: tickets of 40 s end") as s:
            time.sleep(2 * lifetime)
            begun = time.monotonic()
            head(lab, kinkdVersion=2)
            for name in ("alice", "bob", "ds"):
                wait_for(lambda name=name: policy_of(lab[name])["version"] == 2, name, SLOW)
            s.note(follows=time.monotonic() - begun)
        now = [source_of(lab[name])["since"] for name in ("alice", "bob", "ds")]
        s.note(same_connection=since == now)
        assert s.figures.unharmed() == []


def _add_in_vain(lab: DirectoryLab, ldif: str) -> None:
    with contextlib.suppress(DirectoryError):
        lab.slapd.add(ldif)
