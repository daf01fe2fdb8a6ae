"""Links and addresses that go and come back: SAs stay, and what waited is sent at once."""

from __future__ import annotations

import signal
import time

import pytest

from tests.support import observe
from tests.support.lab import Host, Lab, wait_for


def spis(host: Host) -> set[int]:
    return {state.spi for state in host.states()}


@pytest.mark.parametrize("how", ["link", "cable", "address"])
def test_traffic_goes_on_over_the_same_sas(keyed: Lab, how: str):
    alice, bob = keyed["alice"], keyed["bob"]
    address = f"{alice.node.ipv4}/24"
    before = spis(alice)
    pinging = alice.node.popen("ping", "-n", "-D", "-i", "0.05", "-W", "1", str(bob.node.ipv4))
    try:
        time.sleep(0.5)
        _go(keyed, how, address)
        wait_for(lambda: bool(alice.logged("address-gone")), "alice notices")
        time.sleep(1)
        back = _come(keyed, how, address)
        wait_for(lambda: bool(alice.logged("address-up")), "alice notices")
        time.sleep(1)
    finally:
        pinging.send_signal(signal.SIGINT)
        result = observe.read_ping(pinging.communicate(timeout=20)[0])
        alice.log_file.write_text("")
    first = min(at for at in result.answers if at > back)
    print(f"{how}: first answer {first - back:.2f} s after it was back")
    assert spis(alice) == before
    assert alice.ping(bob).lost == 0


def test_a_question_that_could_not_be_sent_is_sent_when_the_link_is_up(lab: Lab):
    alice, bob = lab["alice"], lab["bob"]
    lab.unkey("alice", "bob")
    wire = lab.topology.wire
    wire.ip("link set bob down")
    pinging = alice.node.popen("ping", "-n", "-c", "1", "-W", "30", str(bob.node.ipv4))
    try:
        wait_for(lambda: alice.ask("status")["negotiating"] > 0, "alice asks")
        time.sleep(4)  # by now the next attempt is seconds away
        wire.ip("link set alice down")
        wait_for(lambda: bool(alice.logged("address-gone")), "alice notices")
        wire.ip("link set bob up", "link set alice up")
        up = time.time()
        wait_for(lambda: len(alice.states()) == 2, "they are keyed")
        print(f"keyed {time.time() - up:.2f} s after the links were up")
    finally:
        assert observe.read_ping(pinging.communicate(timeout=60)[0]).received == 1
        alice.log_file.write_text("")


def _go(lab: Lab, how: str, address: str) -> None:
    if how == "cable":
        lab.topology.wire.ip("link set alice down")
    elif how == "link":
        lab["alice"].node.ip("link set eth0 down")
    else:
        lab["alice"].node.ip(f"addr del {address} dev eth0")


def _come(lab: Lab, how: str, address: str) -> float:
    if how == "cable":
        lab.topology.wire.ip("link set alice up")
    elif how == "link":
        node = lab["alice"].node
        node.ip("link set eth0 up", f"addr replace {node.ipv6}/64 dev eth0 nodad")
    else:
        lab["alice"].node.ip(f"addr add {address} dev eth0")
    return time.time()
