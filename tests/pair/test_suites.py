"""A profile of each suite, with and without ESN, from policy to SAs on both sides."""

from __future__ import annotations

import pytest

from kinkd.keying.algorithms import SUITES
from kinkd.model import IpsecProtocol, Lifetime, Profile, Suite
from tests.support.pair import World

HOUR = Lifetime(3600)


def keyed(profile: Profile, other: Profile | None = None) -> World:
    """Alice under ``profile`` keys bob, who is under ``other`` where that is given."""
    world = World(profile=profile)
    if other is not None:
        world.nodes["bob"] = World(profile=other)["bob"]
    world.acquire("alice", "bob")
    world.run()
    return world


def passes(world: World) -> list[str]:
    alice, bob = world["alice"], world["bob"]
    return [
        one.kernel.send(other.kernel, one.address, other.address)
        for one, other in ((alice, bob), (bob, alice))
    ]


@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
@pytest.mark.parametrize("esn", [False, True], ids=["", "esn"])
def test_a_profile_of_one_suite_keys_both_directions(suite: Suite, esn: bool) -> None:
    world = keyed(Profile("one", (suite,), HOUR, esn=(esn,)))
    assert passes(world) == ["+".join(p.name.lower() for p in reversed(suite.protocols))] * 2
    kernel_names = {
        tuple(n for n in (t.aead, t.encryption, t.authentication) if n) for t in suite.transforms
    }
    sas = 2 * len(suite.transforms)
    for node in world.nodes.values():
        (pair,) = node.endpoint.pairs
        assert pair.suite == suite.name
        states = node.kernel.states()
        assert {state.algorithms for state in states} == kernel_names
        assert [state.esn for state in states] == [esn] * sas
        # 64-bit sequence numbers need no end by packets (RFC 4303 §3.3.3); 32-bit ones do.
        assert [state.limits.hard_packets is None for state in states] == [esn] * sas


@pytest.mark.parametrize("asked", [False, True])
def test_hosts_that_disagree_on_esn_do_not_key(asked: bool) -> None:
    suites = (SUITES["aes256gcm16"],)
    world = keyed(
        Profile("one", suites, HOUR, esn=(asked,)), Profile("one", suites, HOUR, esn=(not asked,))
    )
    (failed,) = world["alice"].events("create-failed")
    assert failed["reason"] == "refused-by-peer: NO-PROPOSAL-CHOSEN"
    for node in world.nodes.values():
        assert not [state for state in node.kernel.states() if not state.larval]


def test_a_suite_without_encryption_is_not_taken_from_a_peer_unless_policy_names_it() -> None:
    others = tuple(
        s
        for name, s in SUITES.items()
        if s.protocols == (IpsecProtocol.ESP,) and name != "null-sha256"
    )
    world = keyed(Profile("one", (SUITES["null-sha256"],), HOUR), Profile("one", others, HOUR))
    (failed,) = world["alice"].events("create-failed")
    assert failed["reason"] == "refused-by-peer: NO-PROPOSAL-CHOSEN"
