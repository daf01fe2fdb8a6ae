"""What somebody deletes in the kernel is put back: SAs, SPD entries, lost questions."""

from __future__ import annotations

from tests.support import observe
from tests.support.lab import Host, Lab, wait_for


def spis(host: Host) -> set[int]:
    return {state.spi for state in host.states()}


def delete(host: Host) -> None:
    """Each SA of a host by its name, as an administrator would."""
    host.node.ip(
        *(f"xfrm state delete dst {s.destination} proto esp spi {s.spi}" for s in host.states())
    )


def test_sas_that_somebody_deletes_are_made_anew_without_any_traffic(keyed: Lab):
    alice, bob = keyed["alice"], keyed["bob"]
    old = spis(alice)
    delete(bob)
    wait_for(lambda: old.isdisjoint(spis(alice)) and len(spis(bob)) == 2, "a new pair")
    assert alice.ping(bob).lost == 0
    assert bob.counters()["reconcile.sas"] >= 1
    assert bob.logged("sa-vanished")


def test_a_flush_of_sas_is_repaired(keyed: Lab):
    alice, bob = keyed["alice"], keyed["bob"]
    old = spis(alice)
    alice.node.run("ip", "xfrm", "state", "flush")
    wait_for(lambda: len(spis(alice)) == 2 and not spis(alice) & old, "a new pair")
    assert alice.ping(bob).lost == 0


def test_spd_entries_that_somebody_deletes_are_written_again_at_once(keyed: Lab):
    alice, bob = keyed["alice"], keyed["bob"]
    entries = sorted(alice.policies())
    clear = f"icmp and host {alice.node.ipv4} and host {bob.node.ipv4}"
    with keyed.capture("alice", clear) as capture:
        pinging = alice.node.popen(
            *("ping", "-n", "-i", "0.005", "-c", "600", "-W", "2", str(bob.node.ipv4))
        )
        for _ in range(3):
            alice.node.run("ip", "xfrm", "policy", "flush")
            wait_for(lambda: sorted(alice.policies()) == entries, "the entries are back")
        observe.read_ping(pinging.communicate(timeout=60)[0])
    seen = len(observe.read_capture(capture))
    print(f"three flushes of the SPD under pings at 5 ms: {seen} packets in clear")
    assert alice.counters()["reconcile.policies"] >= 3 * len(entries)
    assert alice.ping(bob).lost == 0
    with keyed.capture("alice", clear) as capture:
        assert alice.ping(bob, count=20, interval=0.01).lost == 0
    assert not observe.read_capture(capture)


def test_a_packet_that_waits_while_kinkd_restarts_is_sent_by_the_next_start(lab: Lab):
    alice, bob = lab["alice"], lab["bob"]
    lab.unkey("alice", "bob")
    bob.stop()  # nobody answers alice
    pinging = alice.node.popen("ping", "-n", "-c", "1", "-W", "30", str(bob.node.ipv4))
    wait_for(lambda: alice.counters().get("acquired", 0) > 0, "the kernel asks")
    alice.stop()
    lab.start("alice", "bob")
    result = observe.read_ping(pinging.communicate(timeout=60)[0])
    assert result.received == 1
    print(f"answered {result.rtts[1]:.0f} ms after it was sent, over a restart of both")
