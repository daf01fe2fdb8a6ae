"""A host whose clock is twenty minutes off is told so, provably, and keys (RFC 4430 §3.5)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.lab import DaemonError, Lab

FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


def by_another_clock(seconds: int) -> dict[str, str]:
    """What gives a program another time of day, and no other monotonic clock."""
    return {
        "LD_PRELOAD": str(FAKETIME[0]),
        "FAKETIME": f"{seconds:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def restart(lab: Lab, seconds: int) -> None:
    """Begin a second life, in which bob has another clock: the first one asks who knows it."""
    lab.start()
    for host in lab.hosts.values():
        host.stop()
    lab["bob"].more_environment = by_another_clock(seconds)
    lab.start()


def test_a_clock_that_is_ahead_by_twenty_minutes_is_learnt() -> None:
    with Lab(("alice", "bob"), profile="standard", families=(4,)) as lab:
        restart(lab, 1200)
        with lab.capture("alice", "udp port 910") as pcap:
            assert lab["alice"].ping(lab["bob"], family=4).lost == 0
        text = lab.decode(pcap, lab["bob"].keytab)
        print(text)
        assert "KRB_AP_ERR_SKEW" in text
        (learnt,) = lab["alice"].logged("clock-offset-learnt")
        (row,) = lab["alice"].ask("peers")["peers"]
        print(learnt, *lab["alice"].logged("sa-established"), sep="\n")
        assert row["clock_offset_seconds"] == pytest.approx(1200, abs=60)
        lab.unkey("alice", "bob")
        # The KDC has told bob's libkrb5 what time it is.
        assert lab["bob"].ping(lab["alice"], family=4).lost == 0


def test_to_a_clock_that_is_behind_a_new_ticket_is_not_valid_yet() -> None:
    """Kerberos itself knows no way (RFC 4120 §3.2.3): it is said, and the other end can begin."""
    with Lab(("alice", "bob"), profile="standard", families=(4,)) as lab:
        restart(lab, -1200)
        with pytest.raises(DaemonError, match="refused-by-peer: KRB_AP_ERR_TKT_NYV"):
            lab["alice"].ask("initiate", "bob")
        (said, *_) = lab["bob"].logged("reason=ticket-not-yet-valid")
        print(said)
        assert "the clock of this host is behind the KDC's" in said
        assert lab["bob"].ping(lab["alice"], family=4).lost == 0
        assert lab["alice"].ping(lab["bob"], family=4).lost == 0
