"""Keys change under traffic: the pair goes on, and heals at once where it could not (§4.2.3)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import observe
from tests.support.lab import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(("alice", "bob")) as lab:
        lab.start()
        assert lab["alice"].ping(lab["bob"]).lost == 0
        yield lab


def rekey(lab: Lab) -> float:
    """A new pair, now; seconds it took."""
    begun = time.monotonic()
    (result,) = (
        row for row in lab["alice"].ask("initiate", "bob")["pairs"] if ":" not in row["local"]
    )
    assert result["ok"], result
    return time.monotonic() - begun


def test_keys_change_under_traffic_and_no_packet_is_lost(lab: Lab) -> None:
    alice, bob = lab["alice"], lab["bob"]
    with ThreadPoolExecutor(1) as pool:
        pings = pool.submit(
            observe.ping, alice.node, bob.node.ipv4, count=400, interval=0.02, patience=10
        )
        times = {"before": rekey(lab)}
        # As ktadd does it: the KDC has kvno 2, the keytab both.
        lab.realm.change_key(bob.principal)
        lab.realm.write_keytab(bob.keytab, bob.principal)
        times["kvno 1, both are there"] = rekey(lab)
        assert alice.counters().get("ticket-doubted", 0) == 0
        # The old one is taken away while alice has a ticket under it: bob cannot open that.
        bob.keytab.unlink()
        lab.realm.write_keytab(bob.keytab, bob.principal)
        time.sleep(1.1)  # bob looks at the file once a second
        times["kvno 1, only kvno 2 is there"] = rekey(lab)
        # Re-joined: KDC and keytab are new, bob's kinkd has not seen a ticket of it yet.
        lab.realm.change_key(bob.principal)
        times["kvno 2, the KDC has 3 and the keytab not yet"] = rekey(lab)
        lab.realm.write_keytab(bob.keytab, bob.principal)
        times["kvno 2, both are there"] = rekey(lab)
        result = pings.result()
    for what, seconds in times.items():
        print(f"{what:<48} {1000 * seconds:6.0f} ms")
    print(f"pings {result.sent}, lost {result.lost}; etype {alice.sas()[0]['etype']}")
    assert result.lost == 0
    assert alice.counters()["ticket-doubted"] == 1
    assert bob.counters()["drop.ticket-wrong-kvno"] >= 1
    assert len(alice.logged("create-failed")) == 0


def test_a_host_that_was_joined_anew_speaks_with_its_new_key(lab: Lab) -> None:
    """Its own TGT is under a key that is gone: it gets another without being restarted."""
    alice = lab["alice"]
    lab.realm.change_key(alice.principal)
    alice.keytab.unlink()
    lab.realm.write_keytab(alice.keytab, alice.principal)
    lab.unkey("alice", "bob")
    assert alice.ping(lab["bob"]).lost == 0
    assert lab["bob"].ping(alice).lost == 0
    assert lab["bob"].ask("initiate", "alice")["pairs"]
