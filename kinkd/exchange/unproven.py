"""What is done about a REPLY without Cksum: who sent it, and whether it is true, nobody has proven.

It is said to people, and never ends a command (RFC 4430 §4.2.8). Where it says that our ticket is
no good, another is fetched, at a bounded rate: a peer whose key changed can say so in no other way.
"""

from __future__ import annotations

from kinkd.exchange.core import Peer
from kinkd.exchange.effects import Path
from kinkd.exchange.tickets import Tickets
from kinkd.kerberos import messages
from kinkd.kerberos.port import Ticket
from kinkd.wire import kink
from kinkd.wire.numbers import kink_error_name

# RFC 4120 §7.5.9: BAD_INTEGRITY, MODIFIED, BADKEYVER, NOKEY
STALE_KEY = frozenset({31, 41, 44, 45})
USER_TO_USER_REQUIRED = 69


def heed(
    tickets: Tickets, peer: Peer, ticket: Ticket, message: kink.Message, path: Path, now: float
) -> str:
    """Act on it as far as that is harmless; what it claims, in words for people.

    Raises:
        PeerError: it cannot be read.
    """
    for payload in message.payloads:
        match payload:
            case kink.KinkError():
                return kink_error_name(payload.code)
            case kink.KrbError():
                error = messages.read_krb_error(payload.krb_error)
                if error.code in STALE_KEY:
                    tickets.doubt(peer, ticket, path, now)
                elif error.code == USER_TO_USER_REQUIRED:
                    tickets.want_user_to_user(peer, ticket, path, now)
                return error.name
            case kink.TgtRep(tgt):
                tickets.tgt_offered(peer, ticket, tgt, path, now)
                return "its TGT is another now"
            case _:
                continue
    return "a REPLY without Cksum and without an error"
