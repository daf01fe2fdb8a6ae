"""Views as plain dictionaries for JSON; key material only where it is asked for."""

from __future__ import annotations

import dataclasses
import enum
from ipaddress import IPv4Address, IPv6Address

from kinkd.decode import words
from kinkd.decode.keys import KeymatView
from kinkd.model import Principal, Secret
from kinkd.wire import isakmp

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
        return found | _said(value)
    return str(value)


def _said(value: object) -> dict[str, Json]:
    """In words what numbers and octets of an ISAKMP payload say, beside them."""
    match value:
        case isakmp.Attribute():
            name, said = words.attribute(value)
            return {"name": name, "said": said}
        case isakmp.Proposal():
            protocol, names = value.protocol_id, words.TRANSFORMS.get(value.protocol_id, {})
            kinds = [words.name(names, each.transform_id) for each in value.transforms]
            return {"protocol": words.name(words.PROTOCOLS, protocol), "said": [*kinds]}
        case isakmp.Identification():
            return {
                "name": words.name(words.ID_TYPES, value.id_type),
                "said": words.identity(value),
            }
        case isakmp.Notification():
            name = words.name(words.NOTIFICATIONS, value.type)
            return {"name": name, "said": words.notified(value)}
        case isakmp.Delete() | KeymatView():
            return {"protocol": words.name(words.PROTOCOLS, value.protocol_id)}
    return {}
