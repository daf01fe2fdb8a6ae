"""Fewer prefixes that say the same.

What is said of a prefix holds for every address in it of which no longer prefix says anything
else. Two rules, and no third, make such a map small: siblings that say the same become their
parent, and what says no more than the next shorter prefix does is left out. Neither looks further
than a prefix, its sibling and what encloses them, so that little changes where little changes. The
exact minimum can be smaller, where every address of a prefix is spoken of: it then turns what most
of them say into what the prefix says. But a change of one address can turn all of that round.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Generic, TypeVar

from kinkd.model import IPAddress, IPNetwork

_Said = TypeVar("_Said", bound=Hashable)
_Value = TypeVar("_Value")
_Levels = list[dict[int, int]]
"""The numbers of values by length of the prefix, then by its bits: siblings differ in the last."""

BITS: Final = {4: 32, 6: 128}
"""Of an address, by family."""
_DEFAULT: Final = 0  # its number
_LENGTH_BITS: Final = 8  # of a place: the first address of a prefix, then its length
_LENGTH_MASK: Final = 0xFF


def fewest(
    said: Mapping[int, _Said], bits: int, default: _Said, keep: Callable[[_Said], bool]
) -> dict[int, _Said]:
    """The same for every address of a family in fewer prefixes, by their places, in that order.

    ``bits``: of an address. ``default`` is said of addresses in no prefix. A prefix of whose value
    ``keep`` is true stays as it is: neither merged, nor left out, nor given another value.

    Where one prefix of ``said`` comes, goes or changes, what changes of the result is that prefix,
    those that enclose it, the siblings of these all, and what it encloses with none of ``said``
    between.
    """
    # A number for each value: rules and the like take long to hash and to compare.
    distinct = {id(value): value for value in said.values()}
    numbers = {default: _DEFAULT}
    number_of = {key: numbers.setdefault(each, len(numbers)) for key, each in distinct.items()}
    values = list(numbers)
    kept = frozenset(number for number, value in enumerate(values) if keep(value))
    levels: _Levels = [{} for _ in range(bits + 1)]
    for at, value in said.items():
        length = at & _LENGTH_MASK
        levels[length][at >> _LENGTH_BITS + bits - length] = number_of[id(value)]
    _merge_siblings(levels, kept)
    return {at: values[n] for at, n in _telling(_placed(levels, bits), bits, kept)}


def place(network: IPNetwork) -> int:
    """Sorts by address, of prefixes that begin with the same one the shorter first."""
    return int(network.network_address) << _LENGTH_BITS | network.prefixlen


def lone_place(address: IPAddress) -> int:
    """That of the prefix of one address."""
    return int(address) << _LENGTH_BITS | address.max_prefixlen


def number(network: IPNetwork) -> int:
    """One of its own for every prefix of either family."""
    return place(network) << 1 | (network.version == 6)


def lone_number(address: IPAddress) -> int:
    """That of the prefix of one address."""
    return lone_place(address) << 1 | (address.version == 6)


def length_at(at: int) -> int:
    """The length of the prefix at a place."""
    return at & _LENGTH_MASK


def network_at(at: int, family: type[IPv4Network] | type[IPv6Network]) -> IPNetwork:
    """The prefix at a place."""
    return family((at >> _LENGTH_BITS, at & _LENGTH_MASK))


def _merge_siblings(levels: _Levels, kept: Collection[int]) -> None:
    for length in range(len(levels) - 1, 0, -1):
        here, above = levels[length], levels[length - 1]
        for head in [head for head in here if head & 1 and head ^ 1 in here]:
            number = here[head]
            # The parent's own value holds for no address: its halves have said otherwise.
            if (
                number == here[head ^ 1]
                and number not in kept
                and not (head >> 1 in above and above[head >> 1] in kept)
            ):
                above[head >> 1] = number
                del here[head], here[head ^ 1]


def _placed(levels: _Levels, bits: int) -> list[tuple[int, int]]:
    placed: list[tuple[int, int]] = []
    for length, level in enumerate(levels):
        shift = bits - length + _LENGTH_BITS
        placed += [(head << shift | length, number) for head, number in level.items()]
    placed.sort()  # no place stands twice
    return placed


def _telling(
    placed: Iterable[tuple[int, int]], bits: int, kept: Collection[int]
) -> Iterator[tuple[int, int]]:
    """Those that say something else than what encloses them does, and the kept ones."""
    enclosing: list[tuple[int, int]] = []  # the first place after it, and what it says
    for at, number in placed:
        while enclosing and enclosing[-1][0] <= at:
            enclosing.pop()
        around = enclosing[-1][1] if enclosing else _DEFAULT
        if number != around or number in kept:
            yield at, number
            if (length := at & _LENGTH_MASK) < bits:
                end = (at >> _LENGTH_BITS) + (1 << bits - length)
                enclosing.append((end << _LENGTH_BITS, number))


class Covering(Generic[_Value]):
    """Values by the place of a prefix, of one family, for the question which covers another."""

    def __init__(self, values: Mapping[int, _Value], bits: int) -> None:
        lengths: dict[int, dict[int, _Value]] = {}
        for at, value in values.items():
            length = at & _LENGTH_MASK
            lengths.setdefault(length, {})[at >> _LENGTH_BITS >> bits - length] = value
        self._levels = [
            (length, _LENGTH_BITS + bits - length, heads)
            for length, heads in sorted(lengths.items(), reverse=True)
        ]

    def __bool__(self) -> bool:
        return bool(self._levels)

    def of(self, at: int, *, itself: bool = True) -> _Value | None:
        """The value of the longest prefix that encloses the one at a place, or is it."""
        longest = (at & _LENGTH_MASK) - (not itself)
        for length, shift, heads in self._levels:
            if length <= longest and (value := heads.get(at >> shift)) is not None:
                return value
        return None
