"""GETTGT (RFC 4430 §3.1, §6.6): asking a peer for its TGT, and giving ours to peers that ask.

Nothing here is authenticated. What is asked for is no secret: a TGT is of use to the KDC and to
whoever has its session key, and a ticket that was made from another's TGT is refused. So who forges
an answer makes us ask the KDC in vain, and ends nothing: the true one is waited for. And who asks
in another's name gets no more octets sent there than he sent himself: a GETTGT is as long as the
answer it hopes for. The octets behind its Length, which RFC 4430 §4 has every receiver ignore, make
it so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from kinkd.errors import LocalError, PeerError, TicketUnavailable
from kinkd.exchange.core import Core, Peer
from kinkd.exchange.effects import FetchTgt, Level, Path
from kinkd.exchange.timing import TRANSACTION_SECONDS, Timer, TokenBucket, back_off
from kinkd.kerberos import messages
from kinkd.kerberos.names import exported_name, read_exported_name
from kinkd.kerberos.port import Tgt
from kinkd.model import UserToUser
from kinkd.wire import grammar, kink
from kinkd.wire.numbers import GREATEST_DATAGRAM, KinkErrorCode, MessageType, kink_error_name

FIRST_LENGTH = 1400
"""Octets of the first GETTGT: a usual TGT fits, and it fits a usual path."""
NOT_US = 35  # KRB_AP_ERR_NOT_US, RFC 4120 §7.5.9
LONGEST_NAME = 1024  # octets
LONGEST_PAUSE = 60.0
"""Seconds to which the pause grows before our own TGT is asked for again."""
LONGEST_POLL = 900.0
"""Seconds after which our own TGT is looked at again: who runs kinit has another."""


class Asker(Protocol):
    """Who needs the TGTs of peers."""

    def is_wanted(self, peer: Peer) -> bool:
        """Whether there is still need of this peer's."""

    def tgt_given(self, peer: Peer, tgt: bytes, now: float) -> None:
        """It is there, DER."""

    def tgt_refused(self, peer: Peer, reason: str, now: float, *, denied: bool) -> None:
        """There is none; ``denied``: by the peer's policy, as somebody says."""

    def hint(self, peer: Peer, reason: str) -> None:
        """Why there may be none; it is asked for again."""


@dataclass(slots=True, eq=False)
class _Asked:
    """A GETTGT of ours that is under way."""

    peer: Peer
    path: Path
    xid: int
    started: float
    length: int = FIRST_LENGTH
    attempt: int = 0
    longer: bool = False
    hint: str = ""
    denied: bool = False
    timer: Timer | None = field(default=None, repr=False)


class TgtAsking:
    """Our GETTGTs, one for each peer at most."""

    def __init__(self, core: Core, asker: Asker) -> None:
        self._core = core
        self._asker = asker
        self._by_xid: dict[int, _Asked] = {}
        self._by_peer: dict[Peer, _Asked] = {}

    def asks(self, peer: Peer) -> bool:
        """Whether one is under way."""
        return peer in self._by_peer

    def ask(self, peer: Peer, path: Path, now: float) -> None:
        """Ask for the TGT of the peer's client principal, anew where that is under way."""
        self.cancel(peer)
        asked = _Asked(peer, Path(path.local, path.remote), self._core.next_xid(), now)
        self._by_xid[asked.xid] = self._by_peer[peer] = asked
        self._core.counters["gettgt.sent"] += 1
        self._send(asked, now)

    def cancel(self, peer: Peer) -> None:
        """Nothing more is hoped for."""
        asked = self._by_peer.pop(peer, None)
        if asked is not None:
            del self._by_xid[asked.xid]
            if asked.timer is not None:
                asked.timer.cancel()

    def receive(self, received: kink.Received, path: Path, now: float) -> bool:
        """Take the REPLY to a GETTGT; False: it answers none of ours.

        Raises:
            PeerError: it is not to be heeded.
        """
        message = received.message
        asked = self._by_xid.get(message.xid)
        if asked is None:
            return False
        if (path.local, path.remote) != (asked.path.local, asked.path.remote):
            raise PeerError("unexpected-reply", "from another address than was asked")
        grammar.check(message)
        match message.payloads[0]:
            case kink.TgtRep(tgt):
                self.check(asked.peer, tgt)
                self._asker.tgt_given(asked.peer, tgt, now)  # the KDC knows whether it is true
            case kink.KinkError(KinkErrorCode.REQUEST_TOO_SHORT):
                asked.longer = True  # when it is sent again: who forges it makes us no mill
            case kink.KinkError(code):
                asked.denied = code == KinkErrorCode.U2UDENIED
                self._hint(asked, kink_error_name(code))
            case kink.KrbError(raw):
                self._hint(asked, messages.read_krb_error(raw).name)
            case _:
                raise PeerError("unexpected-reply", "no answer to a GETTGT")
        return True

    def check(self, peer: Peer, tgt: bytes) -> None:
        """Refuse what cannot be the TGT of this peer's client (RFC 4430 §4.2.4).

        Whose it is only the KDC can read, and does.

        Raises:
            PeerError: not a ticket, or an inter-realm one.
        """
        header, realm = messages.read_ticket(tgt), peer.host.client.realm
        if header.sname.components != ("krbtgt", realm) or header.sname.realm != realm:
            raise PeerError("not-a-tgt", f"a ticket for {header.sname}, not a TGT of {realm}")

    def _hint(self, asked: _Asked, name: str) -> None:
        asked.hint = f"{asked.peer.host.name} gives no TGT out: {name}"
        self._asker.hint(asked.peer, asked.hint)

    def _send(self, asked: _Asked, now: float) -> None:
        if asked.timer is not None:
            asked.timer.cancel()
        name = exported_name(asked.peer.host.client)
        message = kink.Message(MessageType.GETTGT, asked.xid, (kink.TgtReq(name),))
        datagram = kink.encode(message, protected=False)
        self._core.send(datagram.ljust(asked.length, b"\0"), asked.path)
        wait = asked.peer.round_trip.timeout(asked.attempt)
        asked.timer = self._core.timers.at(now + wait, lambda then: self._timeout(asked, then))

    def _timeout(self, asked: _Asked, now: float) -> None:
        # An error may be anyone's, so the answer is waited for all the same; but for one that says
        # what else can be tried (RFC 4430 §4.2.8), which harms nobody.
        allowed = asked.peer.host.user_to_user is UserToUser.ALLOWED
        over = now >= asked.started + TRANSACTION_SECONDS or (asked.denied and allowed)
        if not self._asker.is_wanted(asked.peer):
            self.cancel(asked.peer)
            return
        if over:
            self.cancel(asked.peer)
            reason = asked.hint or f"{asked.peer.host.name} does not answer GETTGT"
            self._asker.tgt_refused(asked.peer, reason, now, denied=asked.denied)
            return
        asked.attempt += 1
        if asked.longer:
            asked.length = min(2 * asked.length, GREATEST_DATAGRAM)
            asked.longer = False
        self._core.counters["retransmitted"] += 1
        self._send(asked, now)


class TgtGiving:
    """Our own TGT, and the answers to who asks for it."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._tgt: Tgt | None = None
        self._timer: Timer | None = None
        self._fetching = False
        self._failures = 0
        self._demands = TokenBucket(rate=0.2, burst=2)

    @property
    def enabled(self) -> bool:
        """Whether the policy lets us give it out."""
        return self._core.policy.me.user_to_user is not UserToUser.NEVER

    def start(self, now: float) -> None:
        """Have a TGT at hand before anyone asks."""
        if self.enabled:
            self._fetch()

    def ready(self, tgt: Tgt, now: float) -> None:
        """The answer to ``FetchTgt``."""
        if self._tgt is None or self._tgt.ticket != tgt.ticket:
            try:
                self._core.acceptor.add_tgt(tgt)
            except LocalError as error:
                tgt.key.wipe()
                self.failed(TicketUnavailable(str(error)), now)
                return
            self._tgt = tgt
        elif tgt is not self._tgt:
            tgt.key.wipe()  # a copy of what is there
        self._fetching, self._failures = False, 0
        left = tgt.end - self._core.posix(now)
        self._again(now + min(LONGEST_POLL, max(10.0, left / 2)))

    def failed(self, error: TicketUnavailable, now: float) -> None:
        """The other answer: asked for again, since peers depend on it."""
        self._fetching = False
        self._failures += 1
        self._core.counters["tgt-unavailable"] += 1
        self._core.report(Level.WARNING, "tgt-unavailable", reason=str(error))
        self._again(now + back_off(self._failures, LONGEST_PAUSE, self._core.random))

    def answer(self, message: kink.Message, length: int, path: Path, now: float) -> None:
        """Answer a GETTGT of ``length`` octets.

        Raises:
            PeerError: with what is answered instead: KINK_U2UDENIED (RFC 4430 §6.6),
                KRB_AP_ERR_NOT_US (§4.2.4), or nothing.
        """
        grammar.check(message)
        request = message.payloads[0]
        if not isinstance(request, kink.TgtReq):
            raise PeerError("malformed", "a GETTGT without KINK_TGT_REQ")
        if not self.enabled or not self._core.policy.between(path.local, path.remote):
            raise PeerError(
                "user-to-user-denied",
                "the policy gives no TGT of this host to that address",
                kink_error=KinkErrorCode.U2UDENIED,
            )
        me = self._core.policy.me.client
        if request.name != exported_name(me):
            if len(request.name) > LONGEST_NAME:
                raise PeerError("malformed-kerberos", f"a name of {len(request.name)} octets")
            wanted = read_exported_name(request.name)
            raise PeerError("not-us", f"the TGT of {wanted} is asked for", krb_error=NOT_US)
        self.give(message.xid, length, path, now)
        self._core.counters["gettgt.answered"] += 1

    def give(self, xid: int, length: int, path: Path, now: float) -> None:
        """Send our TGT to a host of the policy, in answer to ``length`` octets (§3.1, §3.7.1).

        Raises:
            PeerError: there is none, or the answer would be longer.
        """
        tgt = self._tgt
        if not self.enabled or tgt is None or tgt.end <= self._core.posix(now):
            if self.enabled and self._demands.take(now):
                self._fetch()
            raise PeerError("no-tgt", "this host has no TGT to give at the moment")
        reply = kink.Message(MessageType.REPLY, xid, (kink.TgtRep(tgt.ticket),))
        datagram = kink.encode(reply, protected=False)
        if len(datagram) > length:
            raise PeerError(
                "gettgt-too-short",
                f"{length} octets, and the TGT would be {len(datagram)}",
                kink_error=KinkErrorCode.REQUEST_TOO_SHORT,
            )
        # No longer than the question: only our own time is at stake. An error's bucket is not used
        # for it, or who sends rubbish in a host's name would keep that host from its answer.
        peer = self._core.policy.between(path.local, path.remote)[0].peer
        if not self._core.peer(peer).tgts.take(now):
            raise PeerError("too-many-gettgts", "asked for our TGT too often")
        self._core.send(datagram, path)

    def _fetch(self) -> None:
        if not self._fetching:
            self._fetching = True
            self._core.emit(FetchTgt())

    def _again(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._core.timers.at(when, lambda _: self._fetch())
