"""A KDC that is gone for two ticket periods, and an account that is gone for good."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from tests.support import observe
from tests.support.lab import Lab

TICKET, LIFETIME, GRACE = 90, 30, 10  # seconds
BRIEF = f"""
[profiles.brief]
suites = ["aes256gcm16"]
lifetime = "{LIFETIME}s"
group = "none"
ticket_grace = "{GRACE}s"
"""
CLEAR = "icmp and host {}"
EVERY = 0.5  # seconds from one ping to the next


@pytest.mark.long
def test_a_kdc_that_is_gone_for_two_ticket_periods() -> None:
    with Lab(("alice", "bob"), profile="brief", profiles=BRIEF, lifetime=TICKET) as lab:
        lab.start()
        alice, bob = lab["alice"], lab["bob"]
        assert alice.ping(bob).lost == 0
        begun = time.time()
        lab.realm.stop()
        with (
            ThreadPoolExecutor(1) as pool,
            lab.capture("alice", CLEAR.format(bob.node.ipv4)) as clear,
        ):
            seconds = 2 * TICKET + 60
            pings = pool.submit(
                observe.ping,
                alice.node,
                bob.node.ipv4,
                count=int(seconds / EVERY),
                interval=EVERY,
                patience=60,
            )
            time.sleep(2 * TICKET)
            before = len(lab.realm.requests())
            lab.realm.start()
            back = time.time() - begun
            result = pings.result()
        times = [when - begun for when in result.answers]
        alive = [when for when in times if when < back]
        healed = min(when for when in times if when > back)
        rekeys = len([x for x in alice.logged("sa-established") if "cause=rekey" in x])
        requests = len(lab.realm.requests()) - before
        print(f"tickets of {TICKET} s, SAs of {LIFETIME} s, grace {GRACE} s, etype 18")
        print(f"KDC gone: traffic for {max(alive):.1f} s more, {rekeys} rekeys in all")
        print(f"KDC back: traffic after {healed - back:.1f} s, {requests} requests to it")
        print(f"in clear: {len(observe.read_capture(clear))} packets")
        assert not observe.read_capture(clear)
        assert max(alive) > LIFETIME  # rekeys go on while the ticket lives
        assert max(alive) < TICKET + GRACE + 2
        assert all(b - a < 3 * EVERY for a, b in pairwise(alive))  # no gap
        assert requests < 20
        for host in (alice, bob):
            assert len(host.states()) <= 4


@pytest.mark.long
def test_an_account_that_is_disabled_dies_out() -> None:
    with Lab(("alice", "bob"), profile="brief", profiles=BRIEF, lifetime=TICKET) as lab:
        lab.start()
        alice, bob = lab["alice"], lab["bob"]
        assert bob.ping(alice).lost == 0
        assert alice.ping(bob).lost == 0
        lab.realm.disable(bob.principal)
        begun = time.time()
        with lab.capture("alice", CLEAR.format(bob.node.ipv4)) as clear:
            result = observe.ping(
                alice.node, bob.node.ipv4, count=int((TICKET + 40) / EVERY), interval=EVERY
            )
        last = max(result.answers) - begun
        print(f"disabled: traffic for {last:.1f} s more; tickets of {TICKET} s, grace {GRACE} s")
        assert LIFETIME < last < TICKET + GRACE + 2
        assert not observe.read_capture(clear)
        assert not lab.states_between("alice", "bob") or not any(
            sa.spi for sa in lab.states_between("alice", "bob")
        )
