"""Daemons, KDCs and memories go away; traffic goes on, or comes back (RFC 4430 §3.7)."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kinkd.policy.resolve import REQID_BASE, REQID_COUNT
from tests.support.lab import Host, Lab, wait_for
from tests.support.scenario import Scenario, initiate

CHECKOUT = Path(__file__).parents[2]
DOWN = 5.0  # seconds
AIM = 2.0  # seconds to recovery after the peer's loss of state
SLOW = 5
"""So much longer may it take in User-Mode Linux, beside other tests."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(("alice", "bob"), families=(4,)) as lab:
        lab.start()
        assert initiate(lab["alice"], lab["bob"])
        yield lab


@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.long)])
def test_crossing_rekeys(lab: Lab, count: int):
    """Both initiate at the same moment, again and again: one pair is left."""
    alice, bob = lab["alice"], lab["bob"]
    begun = _crossed(lab)
    with (
        # Longer than it takes to have both begin.
        lab.delay("alice", "bob", milliseconds=20),
        Scenario(lab, f"{count} crossing rekeys, 40 ms round trip") as s,
        ThreadPoolExecutor(2) as pool,
    ):
        for _ in range(count):
            both = [pool.submit(initiate, *ends) for ends in ((alice, bob), (bob, alice))]
            assert any(each.result() for each in both)
    crossed = _crossed(lab) - begun
    s.note(seen_to_cross=crossed)
    assert s.figures.unharmed() == []
    assert crossed >= count  # by one host or by both
    assert len(alice.sas()) == len(bob.sas()) == 1


def _crossed(lab: Lab) -> int:
    return sum(host.counters().get("create.crossed", 0) for host in lab.hosts.values())


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_a_daemon_that_is_down_for_five_seconds(lab: Lab, signum: signal.Signals):
    alice = lab["alice"]
    with Scenario(lab, f"{signum.name}, {DOWN:g} s down, start") as s:
        epoch, before = alice.ask("status")["epoch"], {sa.spi for sa in alice.states()}
        alice.stop(signum)
        time.sleep(DOWN)
        alice.start()
    assert s.figures.unharmed() == []
    assert {sa.spi for sa in alice.states()} == before
    assert alice.ask("status")["epoch"] == epoch
    assert initiate(alice, lab["bob"])  # what it took over it can replace


def test_rekeys_without_a_kdc(lab: Lab):
    """Tickets live on."""
    assert initiate(lab["alice"], lab["bob"])  # has one, whatever came before
    requests = len(lab.realm.requests())
    lab.realm.stop()
    try:
        with Scenario(lab, "5 rekeys, KDC stopped") as s:
            for _ in range(5):
                assert initiate(lab["alice"], lab["bob"])
                time.sleep(0.2)
    finally:
        lab.realm.start()
    assert s.figures.unharmed() == []
    assert len(lab.realm.requests()) == requests


def test_a_peer_that_was_killed_and_has_lost_its_sas(lab: Lab):
    """It announces what it lost, and its new EPOCH: both sides key anew.

    Most of the time to recovery is that of a start of Python in User-Mode Linux: what counts is
    how long after READY.
    """
    bob = lab["bob"]
    with Scenario(lab, "peer: SIGKILL, SAs lost, 1 s down, start") as s:
        time.sleep(0.5)
        bob.stop(signal.SIGKILL)
        lost = lose_states(bob)
        time.sleep(1)
        bob.start()
        ready = time.time()
        wait_for(
            lambda: lost.isdisjoint(sa.spi for sa in lab["alice"].states()),
            "alice keys anew",
            AIM * SLOW,
        )
        time.sleep(1)
    back = max(end - ready for begin, end in s.figures.ping.outages if begin < ready)
    s.note(seconds_after_ready=back)
    assert not s.figures.clear
    assert s.figures.ping.lost > 100  # or nothing was lost that could come back
    assert back < AIM * SLOW
    assert [(left.states, left.larval) for left in s.figures.after] == [(2, 0), (2, 0)]


def lose_states(host: Host) -> set[int]:
    """The kernel forgets all that is kinkd's; the SPIs."""
    ours = range(REQID_BASE, REQID_BASE + REQID_COUNT)
    lost = [sa for sa in host.states() if sa.reqid in ours]
    assert lost
    host.node.ip(
        *(f"xfrm state delete dst {sa.destination} proto {sa.protocol} spi {sa.spi}" for sa in lost)
    )
    return {sa.spi for sa in lost}


@pytest.mark.long
def test_an_upgrade_from_the_version_before_and_back(lab: Lab, tmp_path: Path):
    """The code before the last change of it, on the journal that the code after it has written."""
    alice, bob = lab["alice"], lab["bob"]
    before = _version_before(tmp_path)

    def start(environment: dict[str, str]) -> None:
        alice.stop()
        alice.more_environment = environment
        alice.start()

    try:
        start(before)
        assert initiate(alice, bob)
        with Scenario(lab, "upgrade by one version, downgrade") as s:
            for environment in ({}, before):
                spis = {sa.spi for sa in alice.states()}
                start(environment)
                assert {sa.spi for sa in alice.states()} == spis
                assert {int(row["spi_in"], 16) for row in alice.sas()} < spis
                assert initiate(alice, bob)
    finally:
        start({})
    assert s.figures.unharmed() == []


def _version_before(directory: Path) -> dict[str, str]:
    """What makes a Python run the code as it was before its last change; else the test skips."""
    try:
        newest = _git("rev-list", "-1", "HEAD", "--", "kinkd").decode().strip()
        archive = _git("archive", f"{newest}^", "kinkd", "conf")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this checkout has no history to go back in: {error}")
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive, check=True)
    # The working directory comes before PYTHONPATH, unless it is left out.
    environment = {"PYTHONPATH": str(directory), "PYTHONSAFEPATH": "1"}
    found = subprocess.run(
        [sys.executable, "-c", "import kinkd; print(kinkd.__file__)"],
        capture_output=True,
        check=True,
        env=environment,
        text=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(directory)
    return environment


def _git(*words: str) -> bytes:
    command = ["git", "-C", str(CHECKOUT), "-c", f"safe.directory={CHECKOUT}", *words]
    return subprocess.run(command, capture_output=True, check=True).stdout
