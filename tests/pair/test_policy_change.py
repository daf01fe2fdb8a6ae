"""Another policy comes into force while the daemon runs: what it does not change stays."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kinkd.document import Document
from kinkd.errors import KernelError, LocalError
from kinkd.exchange.endpoint import Changes
from kinkd.keying.algorithms import SUITES
from kinkd.model import SpdEntry
from kinkd.policy import reader
from tests.support.pair import World, passes

SUITE_NAMES = frozenset(SUITES)
HOSTS = """
schema = 1
version = {version}
realm = "EXAMPLE.TEST"
[hosts.alice]
fqdn = "alice.example.test"
addresses = ["10.0.0.1"]
[hosts.bob]
fqdn = "bob.example.test"
addresses = ["10.0.0.2"]
[hosts.carol]
fqdn = "carol.example.test"
addresses = ["10.0.0.3"]
"""
ALL = """
[[rules]]
name = "all"
from = "all"
to = "all"
action = "require"
profile = "fast"
"""
WITHOUT_CAROL = """
[[rules]]
name = "carol is free"
from = "carol"
to = "all"
action = "clear"
"""
PROFILE = """
[profiles.other]
suites = ["{suite}"]
group = "none"
[[rules]]
name = "all"
from = "all"
to = "all"
action = "require"
profile = "other"
"""


def document(rules: str, version: int = 1) -> str:
    return HOSTS.format(version=version) + rules


def apply(world: World, name: str, text: str) -> Changes:
    """Have a host go by another document."""
    world.realm = reader.read(Document.parse("policy", text.encode()))
    policy = world.policy(world[name].host)
    suites = {4: SUITE_NAMES, 6: SUITE_NAMES}
    changes = world[name].endpoint.apply(policy, suites, world.now)
    world.settle()
    return changes


def keyed(rules: str = ALL) -> World:
    world = World(document=document(rules))
    for peer in ("bob", "carol"):
        world.acquire("alice", peer)
        world.run()
    assert len(world["alice"].endpoint.pairs) == 2
    return world


def kernel_of(world: World, name: str) -> tuple[set[object], set[SpdEntry]]:
    kernel = world[name].kernel
    return {state.id for state in kernel.states()}, set(kernel.policies())


def test_the_same_again_changes_nothing() -> None:
    world = keyed()
    before = kernel_of(world, "alice")
    world.sent.clear()
    assert apply(world, "alice", document(ALL, version=2)) == (0, 0)
    world.run(5.0)
    assert kernel_of(world, "alice") == before
    assert not world.sent
    assert world["alice"].endpoint.policy.version == 2


def test_a_rule_that_is_put_before_others_moves_entries_and_keeps_every_sa() -> None:
    world = keyed()
    before = kernel_of(world, "alice")
    more = """
[[rules]]
name = "first"
from = "bob"
to = "carol"
action = "require"
profile = "fast"
"""
    apply(world, "alice", document(more + ALL))
    world.run(5.0)
    assert kernel_of(world, "alice")[0] == before[0]
    for peer in ("bob", "carol"):
        assert passes(world, "alice", peer) == passes(world, peer, "alice") == "esp"


def test_a_host_that_is_not_protected_any_more_loses_its_sas_and_no_other_does() -> None:
    world = keyed()
    kept = world["alice"].endpoint.pairs.of_host("bob")
    changes = apply(world, "alice", document(WITHOUT_CAROL + ALL))
    assert changes.pairs == 1
    world.run(5.0)
    assert list(world["alice"].endpoint.pairs) == kept
    assert not list(world["carol"].endpoint.pairs), "it was told"
    assert passes(world, "alice", "bob") == "esp"


def test_a_host_that_is_removed_is_told_and_can_key_nothing_any_more() -> None:
    world = keyed()
    text = document(ALL)
    start = text.index("[hosts.carol]")
    end = text.index("[[rules]]")
    apply(world, "alice", text[:start] + text[end:])
    world.run(5.0)
    assert not list(world["carol"].endpoint.pairs)
    assert not world["carol"].kernel.states()
    world.acquire("carol", "alice")
    world.run(5.0)
    assert not world["alice"].endpoint.pairs.of_host("carol")
    assert world["alice"].endpoint.counters["drop.unknown-principal"] >= 1
    # And it may come back.
    apply(world, "alice", text)
    world.run(60.0)
    world.initiate("carol", "alice")
    world.run(5.0)
    assert len(world["alice"].endpoint.pairs.of_host("carol")) == 1


def test_an_algorithm_that_is_withdrawn_takes_its_sas_with_it() -> None:
    world = keyed(PROFILE.format(suite="aes128gcm16"))
    for name in ("alice", "bob"):
        apply(world, name, document(PROFILE.format(suite="aes256gcm16")))
    world.run(5.0)
    assert not world["alice"].endpoint.pairs.of_host("bob")
    world.acquire("alice", "bob")
    world.run(1.0)
    assert [pair.suite for pair in world["alice"].endpoint.pairs.of_host("bob")] == ["aes256gcm16"]
    assert passes(world, "alice", "bob") == "esp"


def test_a_principal_that_is_another_is_another_host() -> None:
    world = keyed()
    text = document(ALL).replace(
        'fqdn = "bob.example.test"', 'fqdn = "bob.example.test"\nservice = "kink/robert"'
    )
    changes = apply(world, "alice", text)
    assert changes.pairs == 1
    assert world["alice"].endpoint.peer(world.realm.hosts["bob"]).ticket is None  # type: ignore[union-attr]
    assert world["alice"].endpoint.pairs.of_host("carol")


def test_a_create_that_is_under_way_ends_where_it_is_no_more_wanted_and_else_goes_on() -> None:
    world = World(document=document(ALL))
    told: list[tuple[str, str]] = []
    for peer in ("bob", "carol"):
        wanted = world.protection("alice", peer)
        world["alice"].endpoint.initiate(
            wanted, world.now, lambda pair, reason, _, peer=peer: told.append((peer, reason))
        )
    world.settle()
    apply(world, "alice", document(WITHOUT_CAROL + ALL))
    assert told == [("carol", "the policy has changed")]
    world.run(5.0)
    assert ("bob", "") in told
    assert [pair.host for pair in world["alice"].endpoint.pairs] == ["bob"]
    assert not list(world["carol"].endpoint.pairs)


def test_a_half_that_awaits_its_ack_goes_where_it_is_no_more_wanted() -> None:
    rules = ALL.replace('"fast"', '"standard"')
    world = World(document=document(rules))
    world.acquire("carol", "alice")
    world.deliver(world.wire.popleft())  # alice has answered; her half is there
    assert world["alice"].kernel.states()
    apply(world, "alice", document(WITHOUT_CAROL + rules))
    assert not world["alice"].kernel.states()
    world.run(60.0)
    assert not list(world["carol"].endpoint.pairs)


def test_what_rests_is_tried_anew_under_another_policy() -> None:
    world = World(document=document(PROFILE.format(suite="aes128gcm16")))
    apply(world, "alice", document(PROFILE.format(suite="aes256gcm16")))
    for _ in range(6):
        world.acquire("alice", "bob")
        world.run(40.0)
    assert world["alice"].endpoint._acquires._rests
    apply(world, "alice", document(PROFILE.format(suite="aes128gcm16")))
    world.acquire("alice", "bob")
    world.run(1.0)
    assert len(world["alice"].endpoint.pairs) == 1


def test_a_policy_that_the_kernel_refuses_leaves_the_old_one_in_force(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = keyed()
    before = kernel_of(world, "alice")
    kernel = world["alice"].kernel
    write, written = kernel.write_policy, []

    def refuse(entry: SpdEntry) -> None:
        written.append(entry)
        if len(written) == 3:
            raise KernelError(22, "UPDPOLICY")
        write(entry)

    monkeypatch.setattr(kernel, "write_policy", refuse)
    with pytest.raises(KernelError):
        apply(world, "alice", document(PROFILE.format(suite="aes256gcm16"), version=2))
    assert kernel_of(world, "alice") == before
    assert world["alice"].endpoint.policy.version == 1
    assert len(world["alice"].endpoint.pairs) == 2


def test_an_entry_of_others_in_the_way_of_a_new_policy_changes_nothing() -> None:
    world = keyed(WITHOUT_CAROL.replace("carol", "bob").replace('to = "all"', 'to = "bob"') + ALL)
    entry = next(each for each in world["alice"].endpoint.policy.entries if each.templates)
    foreign = replace(entry, priority=5)
    world["alice"].kernel.write_policy(foreign)
    before = kernel_of(world, "alice")
    with pytest.raises(LocalError, match="in the way"):
        apply(world, "alice", document(PROFILE.format(suite="aes256gcm16")))
    assert kernel_of(world, "alice") == before


def test_an_entry_of_others_where_nothing_changes_keeps_no_policy_from_coming() -> None:
    world = keyed()
    foreign = replace(next(iter(world["alice"].endpoint.policy.entries)), priority=5)
    world["alice"].kernel.write_policy(foreign)
    apply(world, "alice", document(PROFILE.format(suite="aes256gcm16"), version=2))
    policy = world["alice"].endpoint.policy
    assert policy.version == 2
    there = {entry.key: entry for entry in policy.entries} | {foreign.key: foreign}
    assert set(world["alice"].kernel.policies()) == set(there.values())


def test_an_address_that_is_back_sends_what_waits_and_asks_for_what_rests() -> None:
    world = World(document=document(ALL))
    world.acquire("alice", "bob")
    world.run(8.0, lambda _: [])
    alice = world["alice"]
    world.sent.clear()
    for _ in range(100):  # a link that flaps sends no more than the timer would
        alice.endpoint.addresses_up(alice.host.addresses, world.now)
        world.settle()
    assert len(world.sent) == 1
    world.run(0.1)
    assert passes(world, "alice", "bob") == "esp"
