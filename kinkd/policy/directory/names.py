"""Distinguished names (RFC 4514), as far as comparing, placing and making them goes."""

from __future__ import annotations

import unicodedata
from typing import Final

import ldap
from ldap.dn import dn2str, str2dn

_VALUE_FORMAT: Final = 1  # what dn2str asks for and does not read

# One tuple for each RDN, the entry's own first; of (attribute type, value), both prepared.
Dn = tuple[tuple[tuple[str, str], ...], ...]


def parse(text: str) -> Dn:
    """The name in a form in which equal names are equal.

    Values are compared without case and with blanks squeezed, as the naming attributes cn, ou and
    dc are (caseIgnoreMatch, RFC 4517 §4.2.11).

    Raises:
        ValueError: it is no distinguished name.
    """
    return tuple(
        tuple(sorted((kind.lower(), prepare(value)) for kind, value, _ in rdn))
        for rdn in _split(text)
    )


def prepare(value: str) -> str:
    """A value as caseIgnoreMatch compares it (RFC 4518)."""
    return " ".join(unicodedata.normalize("NFKC", value).casefold().split())


def is_within(name: Dn, base: Dn) -> bool:
    """Whether ``name`` is ``base`` or below it."""
    return name[-len(base) :] == base if base else True


def own_value(text: str) -> str:
    """The value in the first RDN, unescaped: of its cn if it has one. Raises ValueError."""
    rdns = _split(text)
    if not rdns:
        raise ValueError("the root has no name")
    rdn = rdns[0]
    return next((value for kind, value, _ in rdn if kind.lower() == "cn"), rdn[0][1])


def readable(text: str) -> str:
    r"""The name as people write it, on one line: ``\,`` and not ``\2C``."""
    found: str = dn2str(_split(text))
    return found if found.isprintable() else text.encode("unicode_escape").decode("ascii")


def child(name: str, base: str, kind: str = "cn") -> str:
    """The name of an entry below ``base``."""
    text: str = dn2str([[(kind, name, _VALUE_FORMAT)]])
    return f"{text},{base}"


def common_base(names: list[str]) -> str:
    """The deepest name that all ``names`` are within; empty: there is none. Raises ValueError."""
    first, prepared = _split(names[0]), [parse(name) for name in names]
    for start in range(len(first)):
        if all(is_within(name, prepared[0][start:]) for name in prepared):
            text: str = dn2str(first[start:])
            return text
    return ""


def _split(text: str) -> list[list[tuple[str, str, int]]]:
    try:
        return [[(kind, value or "", flags) for kind, value, flags in rdn] for rdn in str2dn(text)]
    except (ldap.DECODING_ERROR, ValueError):  # ValueError: a NUL within
        raise ValueError(f"{text!r} is not a distinguished name") from None
