"""``prefixes.fewest`` for both families and by networks, as tests and benchmarks speak of it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import TypeVar

from kinkd.model import IPNetwork
from kinkd.policy.prefixes import fewest, network_at, place

_Said = TypeVar("_Said", bound=Hashable)


def aggregate(
    said: Mapping[IPNetwork, _Said],
    default: _Said,
    keep: Callable[[_Said], bool] = lambda _: False,
) -> dict[IPNetwork, _Said]:
    """The same in fewer prefixes, ordered by address, the given objects where they stay."""
    result: dict[IPNetwork, _Said] = {}
    for family, bits in ((IPv4Network, 32), (IPv6Network, 128)):
        given = {place(each): each for each in said if isinstance(each, family)}
        of_family = {at: said[network] for at, network in given.items()}
        for at, value in fewest(of_family, bits, default, keep).items():
            result[given.get(at) or network_at(at, family)] = value
    return result
