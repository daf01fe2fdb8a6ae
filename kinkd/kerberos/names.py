"""Principals as the NAME of a GSS exported name token (RFC 1964 §2.1.3), which GETTGT carries.

The string is the principal with its realm; what would be read as something else is quoted.
"""

from __future__ import annotations

from typing import Final, NoReturn

from kinkd.errors import PeerError
from kinkd.model import Principal

_QUOTED: Final = {"\0": "0", "\b": "b", "\t": "t", "\n": "n", "@": "@", "/": "/", "\\": "\\"}
_MEANT: Final = {letter: char for char, letter in _QUOTED.items()}
_ESCAPES: Final = str.maketrans({char: "\\" + letter for char, letter in _QUOTED.items()})


def exported_name(principal: Principal) -> bytes:
    """The octets of ``principal``, its realm included."""
    components = "/".join(part.translate(_ESCAPES) for part in principal.components)
    return f"{components}@{principal.realm.translate(_ESCAPES)}".encode()


def read_exported_name(octets: bytes) -> Principal:
    """The principal that ``octets`` name.

    Raises:
        PeerError: "malformed-kerberos": they name none.
    """
    try:
        text = octets.decode()
    except UnicodeDecodeError:
        _malformed("it is not UTF-8")
    parts, separators = [""], ""
    characters = iter(text)
    for char in characters:
        if char == "\\":
            meant = _MEANT.get(next(characters, ""))
            if meant is None:
                _malformed("a stray backslash")
            parts[-1] += meant
        elif char in "/@":
            separators += char
            parts.append("")
        elif char in _QUOTED:
            _malformed(f"{char!r} stands unquoted")
        else:
            parts[-1] += char
    if not separators.endswith("@") or separators.count("@") != 1 or not all(parts):
        _malformed("not of the form name@REALM")
    return Principal(tuple(parts[:-1]), parts[-1])


def _malformed(why: str) -> NoReturn:
    raise PeerError("malformed-kerberos", f"a principal's name: {why}")
