"""What a peer is told whose ticket and Cksum are good, and whose authenticator Kerberos refuses.

The session key is known then, so the KRB-ERROR stands in KINK_ENCRYPT, under a Cksum, beside an
AP-REP that repeats the authenticator's time (RFC 4430 §3.5, §4.2.3): the peer may believe it.
The AP-REP proves only that we hold the key; nothing was accepted.

A refused authenticator is in no replay cache, so whoever overheard the command can make us answer
it again and again. It cannot choose to whom, since we answer at the host's own addresses alone,
and each host has a rate of its own: what is spent is never another's.
"""

from __future__ import annotations

from kinkd.exchange.core import Core
from kinkd.exchange.effects import Path
from kinkd.exchange.verified import CommandRefused, seal, sign
from kinkd.kerberos import messages
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType


def krb_error(
    core: Core, code: int, now: float, client_time: tuple[int, int] | None = None
) -> kink.KrbError:
    """A KRB-ERROR of ours (RFC 4120 §5.9.1); ``client_time`` is (ctime, cusec) as it was sent."""
    me, posix = core.policy.me.service, core.posix(now)
    susec = int(posix % 1 * 1_000_000)
    return kink.KrbError(
        messages.build_krb_error(code, me.realm, me, int(posix), susec, client_time=client_time)
    )


def refuse_provably(core: Core, refused: CommandRefused, xid: int, path: Path, now: float) -> None:
    """Answer a command that Kerberos refused: a host of the policy, where it is at home."""
    host = core.policy.host_by_client(refused.ticket.client)
    if refused.krb_error is None or host is None or path.remote not in host.addresses:
        return
    if not core.peer(host).refusals.take(now):
        core.counters["refusal-withheld"] += 1
        return
    key = refused.ticket.key
    error = krb_error(core, refused.krb_error, now, refused.client_time)
    if refused.client_time is None:
        # Nothing to repeat in an AP-REP; a key is shared all the same, so there is a Cksum (§6).
        datagram = sign(kink.Message(MessageType.REPLY, xid, (error,)), key)
    else:
        proof = kink.ApRep(core.epoch, messages.build_ap_rep(key, *refused.client_time))
        datagram = seal(MessageType.REPLY, xid, proof, (error,), key)
    core.send(datagram, path)
