"""Datagrams and a keytab to views: every field, checksums verified, contents decrypted, KEYMAT."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from kinkd.decode.keys import key_lengths
from kinkd.decode.pcap import Datagram
from kinkd.errors import KinkdError, LocalError, PeerError
from kinkd.kerberos import etypes, messages
from kinkd.kerberos.etypes import Key
from kinkd.kerberos.keytab import KeytabEntry
from kinkd.keying import keymat
from kinkd.model import IPAddress, Secret
from kinkd.wire import grammar, isakmp, kink
from kinkd.wire.numbers import KeyUsage, MessageType

_USAGE_TICKET = 2  # RFC 4120 §7.5.1
_USAGE_AUTHENTICATOR = 11


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
class PayloadView:
    """One KINK payload and what is in it."""

    payload: kink.Payload
    kerberos: ApReqView | ApRepView | messages.KrbErrorPart | None = None
    inner: tuple[PayloadView, ...] = ()
    quick_mode: tuple[isakmp.QuickModePayload, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True)
class KeymatView:
    """The keys of one SA, by the side that receives on it."""

    receiver: str
    destination: IPAddress
    protocol_id: int
    spi: bytes
    encryption: Secret = field(repr=False)
    authentication: Secret = field(repr=False)


@dataclass(frozen=True, slots=True)
class MessageView:
    """One datagram. ``verified`` None: there is no Cksum, or the key is not known."""

    datagram: Datagram
    header: kink.Header | None
    payloads: tuple[PayloadView, ...] = ()
    checksum: bytes = b""
    verified: bool | None = None
    keymat: tuple[KeymatView, ...] = ()
    problem: str = ""


@dataclass(slots=True)
class _Exchange:
    """What a command told that its REPLY needs."""

    epoch: int
    key: Key | None = None
    authenticators: set[tuple[int, int]] = field(default_factory=set)
    offer: tuple[isakmp.QuickModePayload, ...] = ()


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
        keys: tuple[KeymatView, ...] = ()
        problem = _breach(message, payloads)
        quick_mode = tuple(_quick_modes(payloads))
        if message.type is MessageType.CREATE:
            exchange.offer = quick_mode
        elif message.type is MessageType.REPLY:
            keys, unknown = _derive(exchange, quick_mode, datagram)
            problem = problem or unknown
        return MessageView(datagram, header, payloads, received.checksum, verified, keys, problem)

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
                    return PayloadView(payload, quick_mode=isakmp.decode(payload))
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
            plain = key.decrypt(_USAGE_AUTHENTICATOR, request.authenticator_cipher)
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
        for entry in self._entries:
            if entry.etype != sealed.etype:
                continue
            try:
                plain = _entry_key(entry).decrypt(_USAGE_TICKET, sealed.cipher)
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


def _breach(message: kink.Message, payloads: Sequence[PayloadView]) -> str:
    """What breaks the grammar of RFC 4430 §6, as far as it could be read."""
    try:
        grammar.check(message)
        for view in payloads:
            if view.inner:
                grammar.check_inner(message.type, tuple(part.payload for part in view.inner))
    except PeerError as error:
        return error.detail
    return ""


def _quick_modes(views: Iterable[PayloadView]) -> Iterable[isakmp.QuickModePayload]:
    for view in views:
        yield from view.quick_mode
        yield from _quick_modes(view.inner)


def _derive(
    exchange: _Exchange, answer: tuple[isakmp.QuickModePayload, ...], datagram: Datagram
) -> tuple[tuple[KeymatView, ...], str]:
    """The keys of every SA that a REPLY to CREATE agrees on, or why there are none."""
    chosen = [
        p for sa in answer if isinstance(sa, isakmp.SecurityAssociation) for p in sa.proposals
    ]
    offered = [
        p
        for sa in exchange.offer
        if isinstance(sa, isakmp.SecurityAssociation)
        for p in sa.proposals
    ]
    if not chosen or exchange.key is None:
        return (), ""
    if any(isinstance(payload, isakmp.KeyExchange) for payload in answer):
        return (), "KEYMAT holds g^xy of the KE payloads, which no capture shows"
    ni = next((p.data for p in exchange.offer if isinstance(p, isakmp.Nonce)), None)
    if ni is None:
        return (), "the nonce of the CREATE is not in the capture"
    nr = next((p.data for p in answer if isinstance(p, isakmp.Nonce)), b"")
    views: list[KeymatView] = []
    for proposal in chosen:
        lengths = key_lengths(proposal)
        if lengths is None:
            return (), "the key lengths of the chosen transform are not known"
        sides = [
            ("initiator", datagram.destination, own)
            for own in offered
            if (own.number, own.protocol_id) == (proposal.number, proposal.protocol_id)
        ]
        for receiver, destination, one in (*sides, ("responder", datagram.source, proposal)):
            material = keymat.derive(
                exchange.key.prf, one.protocol_id, one.spi, ni, nr, octets=lengths.total
            )
            views.append(_keys(receiver, destination, one, material, lengths.encryption))
    return tuple(views), ""


def _keys(
    receiver: str, destination: IPAddress, proposal: isakmp.Proposal, material: Secret, split: int
) -> KeymatView:
    view = KeymatView(
        receiver,
        destination,
        proposal.protocol_id,
        proposal.spi,
        Secret(material.value[:split]),
        Secret(material.value[split:]),
    )
    material.wipe()
    return view
