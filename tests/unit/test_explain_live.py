"""What a daemon has at hand for ``kinkctl explain``: facts, and no request."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from kinkd.app import explain
from kinkd.errors import LocalError
from kinkd.model import Direction, IPAddress, PortMatch, Selector, SpdEntry
from kinkd.policy.explain import Seen
from tests.support.pair import ALICE, BOB, OWNERSHIP, POSIX, World

STAT = "XfrmInError             \t0\nXfrmInNoStates          \t3\nXfrmOutPolBlock         \t1\n"


def end(name: str, address: IPAddress | str) -> dict[str, str]:
    return {"name": name, "address": str(address)}


A, B = end("alice", ALICE.addresses[0]), end("bob", BOB.addresses[0])


def installed(world: World) -> World:
    for host in (ALICE, BOB):
        node = world[host.name]
        for entry in node.endpoint.policy.entries:
            node.kernel.write_policy(entry)
    return world


def asked(world: World, name: str, tmp_path: Path, **question: object) -> dict[str, Any]:
    stat = tmp_path / "xfrm_stat"
    stat.write_text(STAT)
    node = world[name]
    before = len(world.sent)
    clock = lambda: POSIX + world.now  # noqa: E731  # a clock, by name
    found = explain.facts(node.endpoint, node.kernel, OWNERSHIP, [], question, stat, clock)
    assert len(world.sent) == before
    assert not node.endpoint.commands()
    return found


def test_a_pair_that_is_keyed(tmp_path: Path) -> None:
    world = installed(World())
    world.initiate("alice", "bob")
    world.run()
    found = asked(world, "alice", tmp_path, source=A, destination=B)
    assert (found["host"], found["peer"]) == ("alice", "bob")
    (sa,) = found["sas"]
    (pair,) = world["alice"].endpoint.pairs
    assert sa["spi_in"] == f"{pair.sas[0].inbound:#010x}"
    assert (sa["installed"], sa["packets_out"]) == (True, 0)
    assert found["ticket"]["server"] == str(BOB.service)
    assert found["ticket"]["kvno"] == 1
    assert 0 < found["ticket"]["seconds_left"] <= 86400
    assert found["xfrm_errors"] == {"XfrmInNoStates": 3, "XfrmOutPolBlock": 1}
    assert found["round_trip_ms"] is not None
    for way in ("spd_out", "spd_in"):
        assert (found[way]["ours"], found[way]["strict"]) == (True, True)
    seen = Seen.read(found)
    assert seen is not None
    assert (seen.here, seen.peer, len(seen.pairs), seen.has_ticket) == ("alice", "bob", 1, True)


def test_who_asks_does_not_matter_to_what_goes_out_here(tmp_path: Path) -> None:
    world = installed(World())
    ways = [
        asked(world, "alice", tmp_path, source=one, destination=other)["spd_out"]
        for one, other in ((A, B), (B, A))
    ]
    assert ways[0] == ways[1]
    assert f"src {A['address']}/32 dst {B['address']}/32" in ways[0]["entry"]


def test_an_sa_that_the_kernel_has_lost_and_a_question_of_the_kernel(tmp_path: Path) -> None:
    world = installed(World())
    world.initiate("alice", "bob")
    world.run()
    kernel = world["alice"].kernel
    kernel.flush_states()
    assert kernel.traffic(ALICE.addresses[0], BOB.addresses[0], world.now) == "held"
    found = asked(world, "alice", tmp_path, source=A, destination=B)
    assert not found["sas"][0]["installed"]
    assert found["kernel_waits_for_sa"]


def test_what_decides_in_the_kernel_is_the_first_by_priority_whosever_it_is(
    tmp_path: Path,
) -> None:
    world = installed(World())
    wide = Selector(ip_network("10.0.0.0/8"), ip_network("10.0.0.0/8"), 6)
    web = replace(wide, destination_port=PortMatch(443, 0xFFFF))
    world["alice"].kernel.write_policy(SpdEntry(Direction.OUT, web, 5, block=True))
    world["alice"].kernel.write_policy(SpdEntry(Direction.OUT, wide, 3_000_000))
    question: dict[str, object] = {"source": A, "destination": B, "protocol": 6}
    to_web = asked(world, "alice", tmp_path, **question, destination_port=443)
    assert to_web["spd_out"]["entry"] == (
        "src 10.0.0.0/8 dst 10.0.0.0/8 proto 6 dport 443 dir out priority 5 block"
    )
    assert not to_web["spd_out"]["ours"]
    assert asked(world, "alice", tmp_path, **question, destination_port=80)["spd_out"]["ours"]
    # Asked by bob, alice answers from port 443 and not to it.
    back = asked(world, "alice", tmp_path, **question | {"source": B, "destination": A})
    assert back["spd_out"]["ours"]


def test_an_entry_that_is_gone_is_missed(tmp_path: Path) -> None:
    world = World()
    world["alice"].kernel.flush_policies()
    found = asked(world, "alice", tmp_path, source=A, destination=B)
    assert (found["spd_out"], found["spd_wanted"]) == (None, True)


def test_of_others_nothing_is_known_here(tmp_path: Path) -> None:
    world = World()
    found = asked(world, "alice", tmp_path, source=B, destination=end("carol", "10.0.0.3"))
    assert found["peer"] is None
    assert Seen.read(found) is None
    world_of_all = asked(world, "alice", tmp_path, source=A, destination=end("world", "8.8.8.8"))
    assert world_of_all["peer"] is None


def test_the_last_negotiation_is_the_last_with_this_peer(tmp_path: Path) -> None:
    node = World()["alice"]
    told = [
        {"event": "create-failed", "peer": "bob", "reason": "no answer"},
        {"event": "create-failed", "peer": "carol", "reason": "other"},
    ]
    question = {"source": A, "destination": B}
    found = explain.facts(node.endpoint, node.kernel, OWNERSHIP, told, question, tmp_path / "none")
    assert found["last_negotiation"] == told[0]
    assert found["xfrm_errors"] == {}
    seen = Seen.read(found)
    assert seen is not None
    assert seen.failure == "no answer"


@pytest.mark.parametrize(
    "question",
    [
        {},
        {"source": A},
        {"source": "alice", "destination": B},
        {"source": A, "destination": end("bob", "nowhere")},
        {"source": A, "destination": B, "protocol": "tcp"},
        {"source": A, "destination": {"name": "bob"}},
    ],
)
def test_what_is_no_question_is_refused_in_words(
    question: dict[str, object], tmp_path: Path
) -> None:
    with pytest.raises(LocalError, match="explain wants"):
        asked(World(), "alice", tmp_path, **question)
