"""A peer of which nothing comes: only one's own packet counters show it."""

from __future__ import annotations

import signal

from tests.support.lab import Lab, wait_for

PATIENCE = 90  # seconds; the looks are 5 s apart, and the fourth one heals


def test_where_nothing_comes_back_a_new_pair_is_made_once(keyed: Lab):
    alice, bob = keyed["alice"], keyed["bob"]
    old = {state.spi for state in alice.states()}
    with keyed.without_esp("bob"):  # what it sends is lost
        pinging = alice.node.popen("ping", "-n", "-i", "0.5", str(bob.node.ipv4))
        try:
            wait_for(
                lambda: (
                    alice.counters().get("one-way", 0) == 1
                    and old.isdisjoint(state.spi for state in alice.states())
                ),
                "alice replaces the pair",
                PATIENCE,
            )
        finally:
            pinging.send_signal(signal.SIGINT)
            pinging.communicate(timeout=20)
    assert alice.counters()["status.asked"] == 1
    assert alice.ping(bob).lost == 0
