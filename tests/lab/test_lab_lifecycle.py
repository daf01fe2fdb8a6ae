"""Daemons come and go; what the kernel holds stays, until it is told to go."""

from __future__ import annotations

import signal
import socket
import sys

import pytest

from tests.support import observe
from tests.support.lab import Host, Lab, wait_for


def in_kernel(host: Host) -> tuple[set[int], list[str]]:
    return {state.spi for state in host.states()}, sorted(host.policies())


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_restart_keeps_sas_and_policies_and_loses_no_packet(keyed: Lab, signum: int):
    alice, bob = keyed["alice"], keyed["bob"]
    before = in_kernel(alice)
    epoch = alice.ask("status")["epoch"]
    pinging = alice.node.popen("ping", "-n", "-i", "0.05", "-W", "2", str(bob.node.ipv4))
    status = alice.stop(signum)
    assert status == (-signum if signum == signal.SIGKILL else 0)
    assert in_kernel(alice) == before
    alice.start()
    pinging.send_signal(signal.SIGINT)
    result = observe.read_ping(pinging.communicate(timeout=20)[0])
    assert result.lost == 0
    assert in_kernel(alice) == before
    assert {int(row["spi_in"], 16) for row in alice.sas()} < before[0]
    assert alice.ask("status")["epoch"] == epoch


def test_a_restarted_daemon_deletes_and_makes_sas_with_the_peer_it_knew(keyed: Lab):
    alice, bob = keyed["alice"], keyed["bob"]
    old = {state.spi for state in alice.states()}
    alice.stop()
    alice.start()
    assert alice.ask("terminate", "bob")["sas"] == 1
    wait_for(lambda: not (alice.states() or bob.states()), "both kernels lose the pair")
    assert alice.ping(bob).lost == 0
    assert old.isdisjoint(state.spi for state in alice.states())


@pytest.mark.rfc("4430-3.3-2")
def test_shutdown_delete_empties_the_peers_kernel_and_then_ones_own(keyed: Lab):
    alice, bob = keyed["alice"], keyed["bob"]
    answer = alice.ask("shutdown", "--delete")
    assert answer["deleted"] == 1
    assert alice.wait() == 0
    assert in_kernel(alice) == (set(), [])
    wait_for(lambda: not bob.states(), "bob's kernel loses the pair")
    bob.kinkctl("shutdown", "--delete")
    assert bob.wait() == 0
    assert in_kernel(bob) == (set(), [])
    keyed.start("alice", "bob")
    assert alice.ping(bob).lost == 0


def test_what_others_put_into_the_kernel_is_left_alone(keyed: Lab):
    alice = keyed["alice"]
    ends = "src 192.0.2.1 dst 192.0.2.2"
    foreign = (
        f"xfrm state add {ends} proto esp spi 0x1234 mode transport reqid 42"
        f" aead rfc4106(gcm(aes)) 0x{'11' * 20} 128",
        f"xfrm policy add {ends} dir out priority 5 tmpl proto esp reqid 42 mode transport",
    )
    alice.node.ip(*foreign)
    try:
        alice.stop()
        alice.start()
        alice.kinkctl("shutdown", "--delete")
        alice.wait()
        spis, policies = in_kernel(alice)
        assert spis == {0x1234}
        assert [line.split()[:4] for line in policies] == [
            ["src", "192.0.2.1/32", "dst", "192.0.2.2/32"]
        ]
    finally:
        alice.node.ip(
            "xfrm state delete dst 192.0.2.2 proto esp spi 0x1234",
            f"xfrm policy delete {ends} dir out",
        )
        alice.start()


def test_initiate_makes_a_pair_without_traffic(lab: Lab):
    alice, bob = lab["alice"], lab["bob"]
    lab.unkey("alice", "bob")
    answer = alice.ask("initiate", "bob")
    assert [pair["ok"] for pair in answer["pairs"]] == [True, True]  # IPv4 and IPv6
    assert len(alice.states()) == len(bob.states()) == 4


def test_the_control_socket_is_for_root_alone(lab: Lab):
    assert lab["alice"].socket.stat().st_mode & 0o777 == 0o600


def test_the_service_manager_gets_signs_of_life(lab: Lab):
    carol = lab["carol"]
    path = carol.directory / "watchdog"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(60)
        with carol.log_file.open("a") as log:
            process = carol.node.popen(
                *(sys.executable, "-m", "kinkd.cli.kinkd", "run", "--config", carol.config),
                stdout=log,
                stderr=log,
                env={
                    **carol.environment,
                    "NOTIFY_SOCKET": str(path),
                    "WATCHDOG_USEC": "300000",
                },
            )
        try:
            said = [manager.recv(100) for _ in range(5)]
        finally:
            process.terminate()
            process.wait(20)
    assert sorted(said) == [b"READY=1", *[b"WATCHDOG=1"] * 4]
