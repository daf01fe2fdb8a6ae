"""Datagrams and a keytab to views: every field, checksums verified, contents decrypted, KEYMAT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from struct import Struct

from kinkd.decode.keys import Ends, Keyless, KeymatView, derive
from kinkd.decode.pcap import Datagram
from kinkd.errors import KinkdError, LocalError, MalformedIsakmp, PeerError, UnsupportedQuickMode
from kinkd.kerberos import etypes, messages
from kinkd.kerberos.etypes import Key
from kinkd.kerberos.keytab import KeytabEntry
from kinkd.model import IPAddress
from kinkd.wire import grammar, isakmp, kink
from kinkd.wire.cursor import Cursor
from kinkd.wire.numbers import KeyUsage, MessageType

_PAYLOAD = Struct("!BxH")  # the generic header, RFC 2408 §3.2


@dataclass(frozen=True, slots=True)
class ApReqView:
    """A KRB_AP_REQ; what the keytab did not open is None and ``problem`` says why."""

    request: messages.ApReq
    ticket: messages.EncTicket | None = None
    authenticator: messages.AuthenticatorPart | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class ApRepView:
    """A KRB_AP_REP. ``matches``: its time is that of an authenticator seen in the exchange."""

    ctime: int
    cusec: int
    matches: bool


@dataclass(frozen=True, slots=True)
class Unread:
    """An ISAKMP payload of a type that Quick Mode has not, or that cannot be read."""

    type: int
    body: bytes


QuickModePart = isakmp.QuickModePayload | Unread
KerberosView = ApReqView | ApRepView | messages.KrbErrorPart | messages.TicketHeader


@dataclass(frozen=True, slots=True)
class PayloadView:
    """One KINK payload and what is in it."""

    payload: kink.Payload
    kerberos: KerberosView | None = None
    inner: tuple[PayloadView, ...] = ()
    quick_mode: tuple[QuickModePart, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class MessageView:
    """One datagram. ``verified`` None: there is no Cksum, or the key is not known.

    ``command`` is what a REPLY answers; None: not in the capture. ``keyless`` says why SAs that
    were agreed on have no keys in ``keymat``.
    """

    datagram: Datagram
    header: kink.Header | None
    payloads: tuple[PayloadView, ...] = ()
    checksum: bytes = b""
    verified: bool | None = None
    command: MessageType | None = None
    keymat: tuple[KeymatView, ...] = ()
    keyless: tuple[str, ...] = ()
    problem: str = ""

    @property
    def flat(self) -> Iterator[PayloadView]:
        """The payloads, those inside KINK_ENCRYPT behind it."""
        for payload in self.payloads:
            yield payload
            yield from payload.inner


@dataclass(slots=True)
class _Exchange:
    """What a command told that its REPLY needs."""

    epoch: int
    command: MessageType | None = None
    key: Key | None = None
    authenticators: set[tuple[int, int]] = field(default_factory=set)
    offers: tuple[tuple[QuickModePart, ...], ...] = ()  # by KINK_ISAKMP payload


class Reader:
    """Reads datagrams in the order of the capture, with the keys of ``entries``."""

    def __init__(self, entries: Sequence[KeytabEntry] = ()) -> None:
        self._entries = tuple(entries)
        self._exchanges: dict[tuple[IPAddress, IPAddress, int], _Exchange] = {}
        self._tickets: dict[bytes, tuple[messages.EncTicket, Key]] = {}

    def read(self, datagram: Datagram) -> MessageView:
        """One datagram; what is wrong with it is in the view."""
        try:
            header = kink.header(datagram.octets)
        except PeerError as error:
            return MessageView(datagram, None, problem=error.detail)
        try:
            received = kink.decode(datagram.octets)
        except PeerError as error:
            return MessageView(datagram, header, problem=error.detail)
        message = received.message
        exchange = self._exchange(datagram, message)
        payloads = tuple(self._read_payload(payload, exchange) for payload in message.payloads)
        verified = None
        if received.checksum and exchange.key is not None:
            verified = exchange.key.verify(KeyUsage.CHECKSUM, received.signed, received.checksum)
        view = MessageView(datagram, header, payloads, received.checksum, verified)
        quick_modes = [
            part.quick_mode for part in view.flat if isinstance(part.payload, kink.Isakmp)
        ]
        if message.type is MessageType.REPLY:
            view = replace(view, command=exchange.command)
            if exchange.command is MessageType.CREATE:
                keymat, keyless = _derive(exchange, quick_modes, datagram)
                view = replace(view, keymat=keymat, keyless=keyless)
        elif message.type is not MessageType.ACK:  # which repeats the XID of the CREATE
            exchange.command, exchange.offers = message.type, tuple(quick_modes)
        return replace(view, problem=_breach(message, view))

    def _exchange(self, datagram: Datagram, message: kink.Message) -> _Exchange:
        ends = (datagram.source, datagram.destination)
        if message.type is MessageType.REPLY:
            found = self._exchanges.get((*ends[::-1], message.xid))
            return found if found is not None else _Exchange(0)
        epoch = next((p.epoch for p in message.payloads if isinstance(p, kink.ApReq)), 0)
        exchange = self._exchanges.get((*ends, message.xid))
        if exchange is None or exchange.epoch != epoch:  # a restart begins its XIDs anew
            exchange = self._exchanges[(*ends, message.xid)] = _Exchange(epoch)
        return exchange

    def _read_payload(self, payload: kink.Payload, exchange: _Exchange) -> PayloadView:
        try:
            match payload:
                case kink.ApReq(_, raw):
                    return PayloadView(payload, self._read_ap_req(raw, exchange))
                case kink.ApRep(_, raw):
                    return _read_ap_rep(payload, raw, exchange)
                case kink.KrbError(raw):
                    return PayloadView(payload, messages.read_krb_error(raw))
                case kink.Isakmp():
                    return _read_isakmp(payload)
                case kink.TgtRep(raw):
                    return PayloadView(payload, messages.read_ticket(raw))
                case kink.Encrypt(cipher):
                    return self._read_encrypt(payload, cipher, exchange)
                case _:
                    return PayloadView(payload)
        except PeerError as error:
            return PayloadView(payload, problem=error.detail or error.reason)

    def _read_encrypt(
        self, payload: kink.Payload, cipher: bytes, exchange: _Exchange
    ) -> PayloadView:
        if exchange.key is None:
            return PayloadView(payload, problem="the session key is not known")
        inner = kink.decode_inner(exchange.key.decrypt(KeyUsage.ENCRYPT, cipher))
        views = tuple(
            PayloadView(part, problem="KINK_ENCRYPT inside KINK_ENCRYPT")
            if isinstance(part, kink.Encrypt)
            else self._read_payload(part, exchange)
            for part in inner
        )
        return PayloadView(payload, inner=views)

    def _read_ap_req(self, raw: bytes, exchange: _Exchange) -> ApReqView:
        request = messages.read_ap_req(raw)
        try:
            ticket, key = self._open(request)
        except KinkdError as error:
            return ApReqView(request, problem=str(error))
        exchange.key = key
        try:
            plain = key.decrypt(messages.Usage.AP_REQ_AUTHENTICATOR, request.authenticator_cipher)
            authenticator = messages.read_authenticator(plain)
        except PeerError as error:
            return ApReqView(request, ticket, problem=f"authenticator: {error}")
        exchange.authenticators.add((authenticator.ctime, authenticator.cusec))
        return ApReqView(request, ticket, authenticator)

    def _open(self, request: messages.ApReq) -> tuple[messages.EncTicket, Key]:
        sealed = request.ticket
        known = self._tickets.get(sealed.raw)
        if known is not None:
            return known
        if request.user_to_user:
            raise LocalError(
                f"a user-to-user ticket: only {sealed.sname} has its key, with the TGT it is of"
            )
        for entry in self._entries:
            if entry.etype != sealed.etype:
                continue
            try:
                plain = _entry_key(entry).decrypt(messages.Usage.TICKET, sealed.cipher)
            except PeerError:
                continue  # the key of another service
            ticket = messages.read_enc_ticket(plain)
            key = etypes.key(ticket.session_etype, bytes(ticket.session_key.value))
            self._tickets[sealed.raw] = ticket, key
            return ticket, key
        raise LocalError(f"no key for the ticket of {sealed.sname}, etype {sealed.etype}")


def _entry_key(entry: KeytabEntry) -> Key:
    secret = entry.key
    return etypes.key(entry.etype, bytes(secret.value))


def _read_ap_rep(payload: kink.Payload, raw: bytes, exchange: _Exchange) -> PayloadView:
    if exchange.key is None:
        return PayloadView(payload, problem="the session key is not known")
    ctime, cusec = messages.read_ap_rep(exchange.key, raw)
    matches = (ctime, cusec) in exchange.authenticators
    return PayloadView(payload, ApRepView(ctime, cusec, matches))


def _read_isakmp(payload: kink.Isakmp) -> PayloadView:
    """Its Quick Mode payloads; where one cannot be read, the others all the same."""
    try:
        return PayloadView(payload, quick_mode=isakmp.decode(payload))
    except UnsupportedQuickMode as error:
        unread = Unread(payload.first, payload.body)
        return PayloadView(payload, quick_mode=(unread,), problem=error.detail)
    except PeerError as error:
        problem = error.detail
    parts: list[QuickModePart] = []
    cursor, kind = Cursor(payload.body, MalformedIsakmp), payload.first
    try:
        while kind and len(parts) < isakmp.MAX_PAYLOADS:
            following, length = cursor.unpack(_PAYLOAD)
            parts.append(_read_part(kind, cursor.take(length - _PAYLOAD.size)))
            kind = following
    except PeerError:
        parts.append(Unread(kind, cursor.rest()))
    return PayloadView(payload, quick_mode=tuple(parts), problem=problem)


def _read_part(kind: int, body: bytes) -> QuickModePart:
    alone = _PAYLOAD.pack(0, _PAYLOAD.size + len(body)) + body
    try:
        (part,) = isakmp.decode(kink.Isakmp(kind, alone))
    except PeerError:
        return Unread(kind, body)
    return part


def _breach(message: kink.Message, view: MessageView) -> str:
    """What breaks the grammar of RFC 4430 §6, as far as it could be read."""
    reply = message.type is MessageType.REPLY
    command = view.command if reply else message.type
    try:
        grammar.check(message)
        for payload in view.payloads:
            if payload.inner:
                grammar.check_inner(message.type, tuple(part.payload for part in payload.inner))
        for payload in view.flat:
            if isinstance(payload.payload, kink.Isakmp) and command and not payload.problem:
                parts = isakmp.decode(payload.payload)
                grammar.check_quick_mode(command, parts, reply=reply)
    except PeerError as error:
        return error.detail
    return ""


def _derive(
    exchange: _Exchange, answers: Sequence[tuple[QuickModePart, ...]], datagram: Datagram
) -> tuple[tuple[KeymatView, ...], tuple[str, ...]]:
    """The keys of every SA that a REPLY to CREATE agrees on, and why others have none.

    RFC 4430 §6.3 names no way to match the KINK_ISAKMP payloads of the two but their order.
    """
    key, offers = exchange.key, exchange.offers
    agreed = [any(isinstance(p, isakmp.SecurityAssociation) for p in parts) for parts in answers]
    if key is None or not any(agreed):
        return (), ()
    if len(answers) != len(offers):
        return (), (f"{len(answers)} answers to {len(offers)} KINK_ISAKMP payloads",)
    ends = Ends(initiator=datagram.destination, responder=datagram.source)
    found: list[KeymatView] = []
    reasons: list[str] = []
    for number, (offer, answer) in enumerate(zip(offers, answers, strict=True), 1):
        try:
            found += derive(key.prf, offer, answer, ends, number)
        except Keyless as error:
            reasons.append(str(error))
    return tuple(found), tuple(reasons)
