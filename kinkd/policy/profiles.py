"""The crypto profiles of a policy document."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from kinkd.document import Item, show
from kinkd.keying.algorithms import GROUP_NUMBERS, SUITES
from kinkd.model import IpsecProtocol, Lifetime, Profile, Suite
from kinkd.policy.names import checked_name, distinct

DEFAULT_PROFILE: Final = "standard"
FAST_PROFILE: Final = "fast"
DEFAULT_GROUP: Final = "ecp256"
NO_GROUP: Final = "none"
TRY: Final = "try"  # of esn: 64 bits first, 32 where the peer has no more
MAXIMUM_SUITES: Final = 16  # with AH and ESP, with and without ESN: 64 proposals
MINIMUM_LIFETIME: Final = 30  # seconds; a rekey needs some of them
MAXIMUM_LIFETIME: Final = 7 * 86400
MINIMUM_VOLUME: Final = 1 << 20  # octets
DEFAULT_TICKET_GRACE: Final = "10m"
MAXIMUM_TICKET_GRACE: Final = 86400  # seconds
MAXIMUM_VOLUME: Final = (1 << 32) * 1024 - 1  # LIFE_DURATION counts kilobytes in 32 bits

_GROUPS: Final = (*GROUP_NUMBERS, NO_GROUP)


def read_profiles(item: Item) -> dict[str, Profile]:
    """The profiles by name, those that are there without being written included."""
    suites, lifetime = (SUITES["aes256gcm16"], SUITES["aes128gcm16"]), Lifetime(3600)
    groups = (GROUP_NUMBERS[DEFAULT_GROUP],)
    profiles = {
        DEFAULT_PROFILE: Profile(DEFAULT_PROFILE, suites, lifetime, groups),
        FAST_PROFILE: Profile(FAST_PROFILE, suites, lifetime),
    }
    for name, entry in item.entries():
        table = entry.table("suites", "lifetime", "volume", "group", "esn", "ticket_grace")
        seconds = table.item("lifetime", "1h").duration(MINIMUM_LIFETIME, MAXIMUM_LIFETIME)
        volume = table.optional("volume")
        kilobytes = None if volume is None else volume.size(MINIMUM_VOLUME, MAXIMUM_VOLUME) // 1024
        # Whoever does not think of it has forward secrecy.
        group = table.item("group", DEFAULT_GROUP).one_or_more()
        profiles[checked_name(name, entry)] = Profile(
            name,
            _suites(table.item("suites", hint='["aes256gcm16"]')),
            Lifetime(seconds, kilobytes),
            distinct(group, lambda each: GROUP_NUMBERS.get(each.choice(_GROUPS))),
            _esn(table.item("esn", False)),
            table.item("ticket_grace", DEFAULT_TICKET_GRACE).duration(0, MAXIMUM_TICKET_GRACE),
        )
    return profiles


def _suites(item: Item) -> tuple[Suite, ...]:
    items = item.one_or_more()
    if len(items) > MAXIMUM_SUITES:
        raise item.error(f"{len(items)} suites; {MAXIMUM_SUITES} at most are offered to a peer")
    suites = distinct(items, lambda each: SUITES[each.choice(SUITES)])
    first = suites[0]
    for place, suite in zip(items, suites, strict=True):
        # One SPD entry stands for them all, and it names the protocols.
        if suite.protocols != first.protocols:
            raise place.error(
                f"{show(suite.name)} is {protocol_words(suite.protocols)}, but {show(first.name)}"
                f" {protocol_words(first.protocols)}; a profile's suites have the same protocols"
            )
    return suites


def protocol_words(protocols: Iterable[IpsecProtocol]) -> str:
    """What a packet looks like on its way, from the inside out: "ESP", "ESP in AH"."""
    return " in ".join(protocol.name for protocol in protocols)


def _esn(item: Item) -> tuple[bool, ...]:
    if item.value == TRY:
        return (True, False)
    if not isinstance(item.value, bool):
        raise item.error(f"{show(item.value)} is neither true, nor false, nor {show(TRY)}")
    return (item.value,)
