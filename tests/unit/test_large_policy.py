"""The document that benchmarks are made with is one that a realm could have."""

from __future__ import annotations

import tomllib

import pytest

from kinkd.document import Document
from kinkd.model import Action, Mode
from kinkd.policy.reader import read
from kinkd.policy.realm import RealmPolicy
from kinkd.policy.resolve import Options, resolve
from kinkd.policy.traffic import parse
from tests.support.large_policy import PORT_TRAFFIC, Size, host_names, large_policy

SMALL = Size(hosts=700, groups=40, rules=30)


@pytest.fixture(scope="module")
def policy() -> RealmPolicy:
    return realm(large_policy(SMALL))


def realm(text: str) -> RealmPolicy:
    return read(Document.parse("large.toml", text.encode()))


def test_it_has_what_was_asked_for(policy: RealmPolicy) -> None:
    assert list(policy.hosts) == host_names(SMALL)
    assert len(policy.rules) == SMALL.rules
    assert len(tomllib.loads(large_policy(SMALL))["groups"]) == SMALL.groups
    assert {rule.action for rule in policy.rules} == {Action.REQUIRE, Action.CLEAR}
    assert [rule.mode for rule in policy.rules[-2:]] == [Mode.TUNNEL, Mode.TRANSPORT]
    assert policy.rules[-1].source == policy.hosts.keys()


def test_groups_are_lists_and_groups_of_groups() -> None:
    groups = tomllib.loads(large_policy(SMALL))["groups"]
    nested = [name for name, members in groups.items() if set(members) <= groups.keys()]
    assert 5 < len(nested) < len(groups) / 2


def test_many_rules_decide(policy: RealmPolicy) -> None:
    assert len([text for text in policy.warnings if "never decides" in text]) < SMALL.rules / 2


def test_hosts_and_gateways_have_something_to_install(policy: RealmPolicy) -> None:
    host, gateway = resolve(policy, "web00001", Options()), resolve(policy, "gw00000", Options())
    assert len(host.protections) > SMALL.hosts
    assert {each.mode for each in gateway.protections} == set(Mode)


def test_it_is_the_same_for_the_same_seed() -> None:
    assert large_policy(SMALL) == large_policy(SMALL)
    assert large_policy(SMALL) != large_policy(SMALL, seed=2)


def test_a_host_that_moves_changes_nothing_else(policy: RealmPolicy) -> None:
    name = host_names(SMALL)[-1]
    other = realm(large_policy(SMALL, moved=name))
    assert {each for each in policy.hosts if policy.hosts[each] != other.hosts[each]} == {name}
    assert other.rules == policy.rules


def test_rules_about_services_are_in_words_that_are_understood() -> None:
    rules = tomllib.loads(large_policy(SMALL, ports=True))["rules"]
    words = {rule.get("traffic", "any") for rule in rules}
    assert {str(parse(word)) for word in words} == words
    assert len(words & set(PORT_TRAFFIC)) > len(PORT_TRAFFIC) / 2
