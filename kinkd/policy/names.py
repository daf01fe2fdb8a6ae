"""What the parts of a policy document have in common: names, lists without repetitions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from kinkd.document import Item, show
from kinkd.policy.realm import ALL, WORLD

RESERVED: Final = {
    ALL: "is the group of every host",
    WORLD: "is whoever has an address that the document gives to nobody",
}

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_Read = TypeVar("_Read")


def checked_name(name: str, item: Item) -> str:
    """A name that the document's writer may choose.

    Raises:
        DocumentError: it is none, or has a meaning already.
    """
    if not _NAME.fullmatch(name):
        raise item.error("a name is of letters, digits, '.', '_' and '-', 64 at most")
    if name in RESERVED:
        raise item.error(f"{show(name)} {RESERVED[name]}; take another name")
    return name


def distinct(items: Iterable[Item], reader: Callable[[Item], _Read]) -> tuple[_Read, ...]:
    """What is read of each item; two that are the same are refused."""
    values: list[_Read] = []
    for item in items:
        if (value := reader(item)) in values:
            raise item.error(f"{show(item.value)} stands here twice")
        values.append(value)
    return tuple(values)
