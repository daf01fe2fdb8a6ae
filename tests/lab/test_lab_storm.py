"""Traffic to thousands of addresses where nobody is: live peers do not notice."""

from __future__ import annotations

import socket
import time

import pytest

from tests.support import observe, scenario
from tests.support.lab import Lab, wait_for

HOSTS, ADDRESSES = 50, 50  # dead hosts, and how many addresses each has


def dead_address(host: int, number: int) -> str:
    return f"10.66.{host}.{number + 1}"


@pytest.mark.long
def test_live_peers_do_not_notice_a_storm_of_acquires_to_dead_ones():
    with Lab(("alice", "bob", "carol"), families=(4,)) as lab:
        alice, bob, carol = lab["alice"], lab["bob"], lab["carol"]
        dead = []
        for host in range(HOSTS):
            addresses = ", ".join(f'"{dead_address(host, n)}"' for n in range(ADDRESSES))
            lab.realm.add_host(f"dead{host}", lab.directory / f"dead{host}.keytab")
            dead.append(
                f'[hosts.dead{host}]\nfqdn = "dead{host}.example.test"\naddresses = [{addresses}]\n'
            )
        text = lab.policy_text()
        at = text.index("[[rules]]")
        lab.policy.write_text(text[:at] + "".join(dead) + text[at:])
        alice.node.ip("route add 10.66.0.0/16 dev eth0")
        lab.start("bob", "carol")
        alice.start()
        assert alice.ping(bob).lost == 0
        before = scenario.rss(alice)

        def flood() -> float:
            began = time.monotonic()
            for host in range(HOSTS):
                # What the kernel holds back fills the buffer of the socket that sent it.
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                    for number in range(ADDRESSES):
                        s.sendto(b"x", (dead_address(host, number), 9))
            return time.monotonic() - began

        pinging = alice.node.popen(
            *("ping", "-n", "-i", "0.01", "-c", "1000", "-W", "5", str(bob.node.ipv4))
        )
        took = alice.node.python(flood)
        fresh = alice.ping(carol, patience=30)  # she was never heard before
        answer = alice.ask("initiate", "bob")
        result = observe.read_ping(pinging.communicate(timeout=120)[0])
        growth = scenario.rss(alice) - before
        scenario.note(
            f"{HOSTS * ADDRESSES} acquires to dead peers",
            sent_in=f"{took:.2f} s",
            lost_to_bob=result.lost,
            carol_keyed_in=f"{fresh.rtts[1]:.0f} ms",
            RSS=f"{growth:+} KiB",
        )
        assert result.lost < 10  # of 1000, on one processor with all else
        assert answer["pairs"][0]["ok"]
        assert fresh.lost == 0
        assert growth < 65536
        wait_for(
            lambda: observe.count_states(alice.node).larval == 0,
            "no larval state is left",
            timeout=240,
        )
