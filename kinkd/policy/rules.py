"""The rules of a policy document, and its own tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kinkd.document import Item, Table, show
from kinkd.model import Action, IpsecProtocol, Mode, Profile
from kinkd.policy import traffic as words
from kinkd.policy.groups import Parties
from kinkd.policy.names import distinct
from kinkd.policy.profiles import DEFAULT_PROFILE, protocol_words
from kinkd.policy.realm import PROTECTING, Expectation, Rule
from kinkd.policy.traffic import Traffic

_MODES: Final = {mode.name.lower(): mode for mode in Mode}
_ACTIONS: Final = {action.value: action for action in Action}
_RULE_KEYS: Final = (
    *("name", "from", "to", "traffic", "action", "back"),
    *("profile", "mode", "udp_encapsulation", "audit"),
)


def read_rules(
    items: list[Item], parties: Parties, profiles: Mapping[str, Profile]
) -> tuple[Rule, ...]:
    """The rules in their order.

    Raises:
        DocumentError: one cannot be meant.
    """
    rules: dict[str, Rule] = {}
    for item in items:
        rule = _rule(item.table(*_RULE_KEYS), parties, profiles)
        if rules.setdefault(rule.name, rule) is not rule:
            raise (
                item.table(*_RULE_KEYS)
                .item("name")
                .error(f"a rule before is called {show(rule.name)}, too")
            )
    return tuple(rules.values())


def _rule(table: Table, parties: Parties, profiles: Mapping[str, Profile]) -> Rule:
    name = table.item("name", hint='"what the rule is for"').string()
    source = parties.side(table.item("from", hint='"all"'))
    destination = parties.side(table.item("to", hint='"all"'))
    traffic = distinct(table.item("traffic", "any").one_or_more(), read_traffic)
    action = _action(table.item("action", hint='"require"'))
    back = _action(table.item("back", action.value))
    audit = table.item("audit", False).boolean()
    if not PROTECTING & {action, back}:
        for key in ("profile", "mode", "udp_encapsulation"):
            if (written := table.optional(key)) is not None:
                raise written.error(
                    f'traffic that is not protected has no {key}; leave it out, or "require"'
                )
        return Rule(name, source, destination, traffic, action, back, None, audit=audit)
    profile = profiles[table.item("profile", DEFAULT_PROFILE).choice(profiles)]
    mode = _MODES[table.item("mode", Mode.TRANSPORT.name.lower()).choice(_MODES)]
    encapsulation = table.item("udp_encapsulation", False)
    if encapsulation.boolean() and IpsecProtocol.AH in profile.protocols:
        raise encapsulation.error(
            f"UDP carries ESP alone (RFC 3948), and profile {show(profile.name)} is"
            f" {protocol_words(profile.protocols)}; leave it out, or take a profile of ESP"
        )
    return Rule(
        *(name, source, destination, traffic, action, back, profile, mode),
        udp=encapsulation.boolean(),
        audit=audit,
    )


def _action(item: Item) -> Action:
    return _ACTIONS[item.choice(_ACTIONS)]


def read_traffic(item: Item) -> Traffic:
    """Traffic in the words of ``kinkd.policy.traffic``.

    Raises:
        DocumentError: they are not understood.
    """
    try:
        return words.parse(item.string())
    except ValueError as error:
        raise item.error(str(error)) from None


def read_expectation(item: Item, parties: Parties) -> Expectation:
    """One of the document's own tests.

    Raises:
        DocumentError: it cannot be meant.
    """
    table = item.table("from", "to", "traffic", "expect", "back")
    expected = _action(table.item("expect", hint='"require"'))
    return Expectation(
        parties.side(table.item("from", hint='"alice"')),
        parties.side(table.item("to", hint='"bob"')),
        read_traffic(table.item("traffic", "any")),
        expected,
        _action(table.item("back", expected.value)),
    )
