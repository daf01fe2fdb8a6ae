"""Views as plain dictionaries for JSON; key material only where it is asked for."""

from __future__ import annotations

import dataclasses
import enum
from ipaddress import IPv4Address, IPv6Address

from kinkd.model import Principal, Secret

Json = None | bool | int | str | list["Json"] | dict[str, "Json"]


def plain(value: object, *, show_keys: bool) -> Json:
    """``value`` in terms of JSON: octets in hex, dataclasses as objects that name their class."""
    match value:
        case Secret():
            return value.value.hex() if show_keys else None
        case enum.Enum():
            return value.name
        case None | bool() | int() | str():
            return value
        case bytes():
            return value.hex()
        case Principal() | IPv4Address() | IPv6Address():
            return str(value)
        case tuple() | list():
            if hasattr(value, "_asdict"):
                return {
                    name: plain(part, show_keys=show_keys) for name, part in value._asdict().items()
                }
            return [plain(part, show_keys=show_keys) for part in value]
    if dataclasses.is_dataclass(value):
        found: dict[str, Json] = {"record": type(value).__name__}
        for entry in dataclasses.fields(value):
            found[entry.name] = plain(getattr(value, entry.name), show_keys=show_keys)
        return found
    return str(value)
