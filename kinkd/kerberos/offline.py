"""Kerberos without libkrb5: the port from keytab octets and a given clock.

``OfflineAcceptor`` is the responder's side of RFC 4120 §3.2.3; ``OfflineTicketSource`` mints the
tickets a KDC would. They read captures, and join two peers in memory.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from kinkd.errors import (
    LocalError,
    PeerError,
    TicketRefused,
    TicketUnavailable,
    UserToUserRefused,
)
from kinkd.kerberos import etypes, messages
from kinkd.kerberos.etypes import Key
from kinkd.kerberos.keytab import KeytabEntry
from kinkd.kerberos.messages import ApReq, AuthenticatorPart, EncTicket, TicketHeader, Usage
from kinkd.kerberos.port import Accepted, Authenticator, OpenedTicket, SessionKey, Tgt
from kinkd.model import Principal

REPLAYS: Final = 1 << 16  # authenticators remembered at once
_INITIAL_FLAGS: Final = 0x00400000  # RFC 4120 §5.3: the INITIAL flag, bit 9

# KRB-ERROR codes, RFC 4120 §7.5.9
_ETYPE_NOSUPP: Final = 14
_BAD_INTEGRITY: Final = 31
_TKT_EXPIRED: Final = 32
_TKT_NYV: Final = 33
_BADMATCH: Final = 36
_SKEW: Final = 37
_MSG_TYPE: Final = 40
_BADKEYVER: Final = 44
_NOKEY: Final = 45
_USER_TO_USER_REQUIRED: Final = 69
_SERVER_NOMATCH: Final = 26
_MUST_USE_USER_TO_USER: Final = 27


@dataclass(frozen=True, slots=True)
class _ServiceKey:
    principal: Principal
    kvno: int
    key: Key


class _ReplayTable:
    """Authenticators that were accepted and whose time still would be (RFC 4120 §3.2.3)."""

    __slots__ = ("_ends", "_limit", "_seen")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._seen: set[bytes] = set()
        self._ends: list[tuple[float, bytes]] = []

    def add(self, digest: bytes, end: float, now: float) -> bool:
        """Remember one until ``end``; False: it is known, or there is no room to know it."""
        while self._ends and self._ends[0][0] < now:
            self._seen.discard(heapq.heappop(self._ends)[1])
        # Forgetting one that still could be replayed would be worse than refusing a new one.
        if digest in self._seen or len(self._seen) >= self._limit:
            return False
        self._seen.add(digest)
        heapq.heappush(self._ends, (end, digest))
        return True


class OfflineAcceptor:
    """``port.Acceptor`` from the keys of a keytab, with replay table in memory.

    Any key of the keytab will do, whatever principal the ticket names; that principal's are
    tried first. A ticket's addresses are not looked at: the port tells none.

    Args:
        entries: the keytab; keys of etypes that KINK cannot use here are passed over.
        clock: POSIX seconds.
        skew: clock skew allowed, seconds.
        replays: authenticators remembered at once; beyond them all are refused as replays.
    """

    def __init__(
        self,
        entries: Iterable[KeytabEntry],
        clock: Callable[[], float],
        skew: float = 300,
        *,
        replays: int = REPLAYS,
    ) -> None:
        self._keys = [
            _ServiceKey(entry.principal, entry.kvno, etypes.key(entry.etype, entry.key))
            for entry in entries
            if entry.etype in etypes.SUPPORTED
        ]
        self._clock = clock
        self._skew = skew
        self._replays = _ReplayTable(replays)
        self._tgts: list[Tgt] = []

    def add_tgt(self, tgt: Tgt) -> None:
        """Open what is encrypted in its session key, until it ends (see ``port.Acceptor``)."""
        self._tgts.append(tgt)

    def open(self, ap_req: bytes) -> OpenedTicket:
        """Decrypt the ticket with the keytab. Changes nothing.

        Raises:
            TicketRefused: 31 (wrong key), 44 (kvno not here), 45 (no key of the etype), 14
                (session key of an etype that KINK does not use), 33 (ticket flagged invalid),
                40 (not an AP-REQ, or a ticket that cannot be read), 69 (there is no keytab).
            UserToUserRefused: no TGT opens it.
        """
        request = self._read_ap_req(ap_req)
        ticket = request.ticket
        plain = (self._decrypt_user_to_user if request.user_to_user else self._decrypt)(ticket)
        try:
            part = messages.read_enc_ticket(plain)
        except PeerError as error:
            raise _malformed(error) from None
        if part.flags & messages.TICKET_FLAG_INVALID:  # RFC 4120 §3.2.3
            detail = "the ticket is flagged invalid"
            raise TicketRefused("ticket-not-yet-valid", detail, _TKT_NYV)
        return OpenedTicket(
            client=part.client,
            server=ticket.sname,
            key=_session_key(part),
            start=part.start,
            end=part.end,
            octets=len(ticket.raw),
            ap_req=ap_req,
            user_to_user=request.user_to_user,
        )

    def accept(self, opened: OpenedTicket) -> Accepted:
        """Check the authenticator: genuine, of the ticket's client, in time, not a replay.

        Raises:
            TicketRefused: 31 (authenticator not genuine), 36 (another client's), 32 (expired),
                33 (not yet valid), 37 (clock), 40 (cannot be read); None for a replay.
        """
        request = self._read_ap_req(opened.ap_req)
        part = _authenticator(opened.key, request)
        if part.client != opened.client:
            detail = f"a ticket of {opened.client}, an authenticator of {part.client}"
            raise TicketRefused("client-mismatch", detail, _BADMATCH)
        now = self._clock()
        self._check_times(opened, part, now)
        digest = sha256(f"{part.client} {part.ctime} {part.cusec} ".encode())
        digest.update(request.authenticator_cipher)
        end = part.ctime + 1 + self._skew  # the second of its microseconds
        # Last of all, so that what is refused is not remembered.
        if not self._replays.add(digest.digest(), end, now):
            detail = f"an authenticator of {part.client} was seen before"
            raise TicketRefused("replay", detail, None)
        answer = messages.build_ap_rep(opened.key, part.ctime, part.cusec)
        return Accepted(answer, part.ctime, part.cusec)

    def _check_times(self, opened: OpenedTicket, part: AuthenticatorPart, now: float) -> None:
        if opened.start - now > self._skew:  # RFC 4120 §3.2.3
            detail = f"the ticket of {opened.client} starts in {opened.start - now:.0f} s"
            raise TicketRefused("ticket-not-yet-valid", detail, _TKT_NYV)
        if now - opened.end > self._skew:
            detail = f"the ticket of {opened.client} ended {now - opened.end:.0f} s ago"
            raise TicketRefused("ticket-expired", detail, _TKT_EXPIRED)
        difference = part.ctime + part.cusec / 1e6 - now
        if abs(difference) > self._skew:  # RFC 4430 §3.5
            detail = f"the clock of {part.client} is {difference:+.0f} s off ours"
            raise TicketRefused("clock-skew", detail, _SKEW)

    @staticmethod
    def _read_ap_req(raw: bytes) -> ApReq:
        try:
            return messages.read_ap_req(raw)
        except PeerError as error:
            raise _malformed(error) from None

    def _decrypt_user_to_user(self, ticket: TicketHeader) -> bytes:
        now = self._clock()
        self._tgts = [tgt for tgt in self._tgts if tgt.end > now]
        for tgt in reversed(self._tgts):
            if tgt.etype == ticket.etype:
                try:
                    return etypes.key(tgt.etype, tgt.key).decrypt(Usage.TICKET, ticket.cipher)
                except PeerError:  # under another one's key
                    continue
        detail = f"no TGT of ours opens the ticket for {ticket.sname}"
        raise UserToUserRefused("user-to-user-unknown-tgt", detail, _BAD_INTEGRITY)

    def _decrypt(self, ticket: TicketHeader) -> bytes:
        if not self._keys:
            detail = "there is no keytab here: user-to-user is the only way"
            raise TicketRefused("user-to-user-required", detail, _USER_TO_USER_REQUIRED)
        candidates = [each for each in self._keys if each.key.etype == ticket.etype]
        if not candidates:
            detail = f"the keytab has no key of etype {ticket.etype} for {ticket.sname}"
            raise TicketRefused("ticket-no-key", detail, _NOKEY)
        if ticket.kvno is not None:
            candidates = [each for each in candidates if each.kvno == ticket.kvno]
        if not candidates:
            detail = f"the keytab has no kvno {ticket.kvno} for {ticket.sname}"
            raise TicketRefused("ticket-wrong-kvno", detail, _BADKEYVER)
        for each in sorted(candidates, key=lambda each: each.principal != ticket.sname):
            try:
                return each.key.decrypt(Usage.TICKET, ticket.cipher)
            except PeerError:  # another principal's key: the next one may fit
                continue
        detail = f"no key of the keytab opens the ticket for {ticket.sname}"
        raise TicketRefused("ticket-bad-integrity", detail, _BAD_INTEGRITY)


class OfflineTicket:
    """``port.Ticket``: a minted ticket and its session key."""

    __slots__ = ("_clock", "_last", "_raw", "_user_to_user", "client", "end", "key", "server")

    def __init__(
        self,
        raw: bytes,
        key: Key,
        client: Principal,
        server: Principal,
        end: int,
        clock: Callable[[], float],
        *,
        user_to_user: bool = False,
    ) -> None:
        self.client = client
        self.server = server
        self._user_to_user = user_to_user
        self.key = key
        self.end = end
        self._raw = raw
        self._clock = clock
        self._last = 0

    def __repr__(self) -> str:
        return f"<ticket of {self.client} for {self.server}>"

    @property
    def octets(self) -> int:
        """Size of the encoded ticket."""
        return len(self._raw)

    def authenticate(self, offset: float = 0.0) -> Authenticator:
        """A new AP-REQ. Its time is the clock's and ``offset``, or what follows the last one's."""
        self._last = messages.unused_time(self._clock() + offset, self._last)
        ctime, cusec = divmod(self._last, 1_000_000)
        ap_req = messages.build_ap_req(
            self._raw, self.key, self.client, ctime, cusec, user_to_user=self._user_to_user
        )
        return Authenticator(ap_req, ctime, cusec, offset)


class OfflineTicketSource:
    """``port.TicketSource`` that is its own KDC.

    Args:
        client: whom the tickets name.
        server_keys: per service its kvno and long-term key.
        clock: POSIX seconds.
        session_etype: the etype of the session keys.
        lifetime: of a ticket, seconds.
        host_clock: the client's own clock, by which authenticators are made; None: the KDC's.
        tgs: the KDC's own key, the same for all sources of a realm; None: no user-to-user.
        user_to_user_only: principals that are given no service tickets (RFC 4120 §7.5.9, 27).
    """

    def __init__(
        self,
        client: Principal,
        server_keys: Mapping[Principal, tuple[int, Key]],
        clock: Callable[[], float],
        session_etype: int = 18,
        lifetime: int = 36000,
        host_clock: Callable[[], float] | None = None,
        tgs: Key | None = None,
        user_to_user_only: Collection[Principal] = (),
    ) -> None:
        self._client = client
        self._server_keys = server_keys
        self._clock = clock
        self._session_etype = session_etype
        self._lifetime = lifetime
        self._host_clock = host_clock or clock
        self._tgs = tgs
        self._user_to_user_only = user_to_user_only
        self._held: Tgt | None = None

    def fetch(self, server: Principal, tgt: bytes | None = None) -> OfflineTicket:
        """A ticket for ``server`` with a session key of its own; with its ``tgt`` user-to-user.

        Raises:
            TicketUnavailable: no key of such a service was given, or the TGT is another's.
        """
        if tgt is not None:
            kvno, server_key = 0, self._session_key_of(server, tgt)
        elif server not in self._server_keys:
            raise TicketUnavailable(f"Server {server} not found in Kerberos database", 7)
        elif server in self._user_to_user_only:
            raise TicketUnavailable(
                f"the KDC gives tickets for {server} user-to-user alone", _MUST_USE_USER_TO_USER
            )
        else:
            kvno, server_key = self._server_keys[server]
        session = etypes.random_key(self._session_etype)
        raw, end = self._mint(server, kvno, server_key, session)
        return OfflineTicket(
            raw,
            session,
            self._client,
            server,
            end,
            self._host_clock,
            user_to_user=tgt is not None,
        )

    def tgt(self) -> Tgt:
        """The client's TGT: the same one while half of it is left."""
        now = self._clock()
        if self._held is None or self._held.end < now + self._lifetime / 2:
            if self._tgs is None:
                raise TicketUnavailable("this KDC gives no TGT")
            server = Principal(("krbtgt", self._client.realm), self._client.realm)
            session = etypes.random_key(self._session_etype)
            raw, end = self._mint(server, 1, self._tgs, session)
            self._held = Tgt(self._client, raw, session.etype, session.secret, end)
        return self._held

    def _mint(
        self, server: Principal, kvno: int, server_key: Key, session: Key
    ) -> tuple[bytes, int]:
        now = int(self._clock())
        part = EncTicket(
            client=self._client,
            session_etype=session.etype,
            session_key=session.secret,
            flags=_INITIAL_FLAGS,
            authtime=now,
            start=now,
            end=now + self._lifetime,
        )
        return messages.build_ticket(server, kvno, server_key, part), part.end

    def _session_key_of(self, server: Principal, tgt: bytes) -> Key:
        """RFC 4120 §3.3.3: the additional ticket must be a TGT, and that of the server."""
        try:
            header = messages.read_ticket(tgt)
            if self._tgs is None or header.sname.components[0] != "krbtgt":
                raise TicketUnavailable("the additional ticket is no TGT", 13)
            part = messages.read_enc_ticket(self._tgs.decrypt(Usage.TICKET, header.cipher))
        except PeerError as error:
            raise TicketUnavailable(str(error), _BAD_INTEGRITY) from None
        if part.client != server:
            raise TicketUnavailable(f"that TGT is of {part.client}", _SERVER_NOMATCH)
        if part.end <= self._clock():
            raise TicketUnavailable("the additional ticket has ended", _TKT_EXPIRED)
        return etypes.key(part.session_etype, part.session_key)


def _malformed(error: PeerError) -> TicketRefused:
    return TicketRefused("malformed-kerberos", error.detail, _MSG_TYPE)


def _session_key(part: EncTicket) -> Key:
    if part.session_etype not in etypes.SUPPORTED:
        detail = f"a session key of etype {part.session_etype} for {part.client}"
        raise TicketRefused("weak-session-key", detail, _ETYPE_NOSUPP)
    try:
        return etypes.key(part.session_etype, part.session_key)
    except LocalError as error:  # of another length than its etype's
        raise TicketRefused("malformed-kerberos", str(error), _MSG_TYPE) from None
    finally:
        part.session_key.wipe()


def _authenticator(key: SessionKey, request: ApReq) -> AuthenticatorPart:
    detail = "the authenticator is not of the ticket's session key"
    if request.authenticator_etype != key.etype:
        raise TicketRefused("ticket-bad-integrity", detail, _BAD_INTEGRITY)
    try:
        plain = key.decrypt(Usage.AP_REQ_AUTHENTICATOR, request.authenticator_cipher)
    except PeerError:
        raise TicketRefused("ticket-bad-integrity", detail, _BAD_INTEGRITY) from None
    try:
        return messages.read_authenticator(plain)
    except PeerError as error:
        raise _malformed(error) from None
