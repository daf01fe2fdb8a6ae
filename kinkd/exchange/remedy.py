"""What is done about a refusal by Kerberos that the responder has proven to be its own.

Proven means: the REPLY's Cksum verified and its AP-REP repeats an authenticator of ours that is
outstanding, so it was made by the peer, after our command (RFC 4430 §3.5). What anyone could have
sent never gets here.
"""

from __future__ import annotations

from kinkd.exchange.core import Core, Peer
from kinkd.exchange.effects import Level
from kinkd.exchange.verified import VerifiedReply
from kinkd.kerberos import messages
from kinkd.kerberos.messages import KrbErrorPart
from kinkd.kerberos.port import Authenticator, Ticket
from kinkd.wire import kink

TKT_EXPIRED, SKEW = 32, 37  # RFC 4120 §7.5.9

LARGEST_OFFSET = 86400.0
"""Seconds of difference that are believed. A peer that lies about its clock harms its own pair
alone: the time goes into authenticators that only it can read, under tickets that only it accepts
and that end when the KDC said. So the bound need not be tight. Where the clocks are a day apart no
usual ticket is valid on both, and the time of an authenticator stays one that can be written."""


def krb_error(reply: VerifiedReply) -> KrbErrorPart | None:
    """The KRB-ERROR in a REPLY. Raises PeerError where it cannot be read."""
    for payload in reply.inner:
        if isinstance(payload, kink.KrbError):
            return messages.read_krb_error(payload.krb_error)
    return None


def apply(core: Core, peer: Peer, error: KrbErrorPart, sent: Authenticator, ticket: Ticket) -> bool:
    """Correct what the peer found wrong with us; False: it is nothing that we can correct.

    Args:
        core: who is told of it.
        peer: the responder. Its ``clock_offset`` or its ``ticket`` changes.
        error: what it answered.
        sent: the authenticator of ours that it refused.
        ticket: whose authenticator that was.
    """
    if error.code == SKEW:
        return _learn_clock(core, peer, error, sent)
    if error.code == TKT_EXPIRED:
        if peer.ticket is ticket:  # else there is a newer one already
            peer.ticket = None
        return True
    return False


def _learn_clock(core: Core, peer: Peer, error: KrbErrorPart, sent: Authenticator) -> bool:
    """RFC 4430 §3.5: the difference of the two times in the error, added to what was in ours.

    The one learnt last counts, until a restart. The time between our sending and the peer's
    clock reading is in it; a transaction lasts for a tenth of the usual limit.
    """
    if (error.ctime, error.cusec) != (sent.ctime, sent.cusec):
        return False  # not "the correct client's time"
    difference = (error.stime - sent.ctime) + (error.susec - sent.cusec) / 1_000_000
    offset = sent.offset + difference
    if abs(offset) > LARGEST_OFFSET:
        core.counters["clock-offset-refused"] += 1
        core.report(
            Level.WARNING, "clock-offset-refused", peer=peer.host.name, seconds=round(offset)
        )
        return False
    peer.clock_offset = offset
    core.counters["clock-offset-learnt"] += 1
    core.report(Level.WARNING, "clock-offset-learnt", peer=peer.host.name, seconds=round(offset, 3))
    return True
