"""A ticket-granting ticket with much authorization data, which its KDC copies into every ticket.

It is minted with the KDC's own key, as the KDC of a person in thousands of groups would mint it.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path

from kinkd.kerberos import der, etypes, messages
from kinkd.kerberos.keytab import read_keytab
from kinkd.model import Principal
from tests.support.realm import Realm

_IF_RELEVANT = 1  # RFC 4120 §5.2.6.1
_UNKNOWN = 1000  # an ad-type that nobody knows
_FORWARDABLE_INITIAL = 0x40400000


def write_ccache(path: Path, realm: Realm, client: Principal, octets: int) -> None:
    """A credentials cache of ``client`` with such a TGT, of ``octets`` more than usual."""
    keytab = path.with_name(f"{path.name}.krbtgt")
    server = Principal(("krbtgt", realm.name), realm.name)
    realm.write_keytab(keytab, str(server))
    entry = read_keytab(keytab.read_bytes())[0]
    session = etypes.random_key(entry.etype)
    now = int(time.time())
    part = messages.EncTicket(
        client, session.etype, session.secret, _FORWARDABLE_INITIAL, now, now, now + 36000
    )
    data = _data(_IF_RELEVANT, _data(_UNKNOWN, bytes(octets)))
    key = etypes.key(entry.etype, entry.key)
    ticket = messages.build_ticket(server, entry.kvno, key, part, data)
    path.write_bytes(
        b"\x05\x04\x00\x00"
        + _principal(client)
        + _principal(client)
        + _principal(server)
        + struct.pack(">H", session.etype)
        + _counted(bytes(session.secret.value))
        + struct.pack(">IIII", now, now, now + 36000, 0)
        + struct.pack(">BIII", 0, _FORWARDABLE_INITIAL, 0, 0)
        + _counted(ticket)
        + _counted(b"")
    )


def _data(kind: int, octets: bytes) -> bytes:
    """AuthorizationData of one element."""
    element = der.sequence(der.field(0, der.integer(kind)), der.field(1, der.octets(octets)))
    return der.sequence(element)


def _principal(principal: Principal) -> bytes:
    parts = [_counted(each.encode()) for each in (principal.realm, *principal.components)]
    return struct.pack(">II", 1, len(parts) - 1) + b"".join(parts)


def _counted(octets: bytes) -> bytes:
    return struct.pack(">I", len(octets)) + octets
