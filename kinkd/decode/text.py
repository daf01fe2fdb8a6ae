"""Views as text for people: every field, key material only where it is asked for."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator, Sequence

from kinkd.decode import words
from kinkd.decode.keys import KeymatView
from kinkd.decode.pcap import Other
from kinkd.decode.reader import (
    ApRepView,
    ApReqView,
    MessageView,
    PayloadView,
    QuickModePart,
    Unread,
)
from kinkd.kerberos import messages
from kinkd.model import Secret
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import KinkErrorCode, MessageType

_INDENT = "  "


def render_start(start: int) -> str:
    """The line above all others: when it was; ``start``: nanoseconds of the first packet."""
    return f"times from {_utc(start // 1_000_000_000)[:-1]}.{start // 1000 % 1_000_000:06}Z"


def render_others(packets: Sequence[Other], start: int) -> Iterator[str]:
    """A line for each kind of the packets that came between two KINK messages."""
    alike: dict[tuple[object, ...], list[Other]] = {}
    for one in packets:
        key = (one.kind, one.source, one.destination, one.detail, one.clear)
        alike.setdefault(key, []).append(one)
    for group in alike.values():
        first, last = group[0], group[-1]
        ends = f" {first.source} > {first.destination}" if first.source else ""
        line = f"{_offset(first.time, start)}{ends}  {first.kind} {first.detail}".rstrip()
        if first.sequence is not None:
            line += f" seq {first.sequence}"
        if len(group) > 1:
            line += f" to {last.sequence}" if last.sequence is not None else ""
            line += f"  {len(group)} packets until {_offset(last.time, start)}"
        yield _safe(line + ("  clear" if first.clear else ""))


def render_message(view: MessageView, start: int, *, show_keys: bool) -> Iterator[str]:
    """The lines for a KINK message; ``start``: nanoseconds of the first packet.

    What a peer put into names and texts cannot steer the terminal: it is escaped.
    """
    return map(_safe, _message(view, start, show_keys))


def _safe(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _message(view: MessageView, start: int, show_keys: bool) -> Iterator[str]:
    packet = view.datagram
    ends = (
        f"{packet.source} port {packet.source_port} > "
        f"{packet.destination} port {packet.destination_port}"
    )
    head = view.header
    if head is None:
        yield f"{_offset(packet.time, start)} {ends}  not KINK ({len(packet.octets)} octets)"
    else:
        to = f" to {view.command.name}" if view.command is not None else ""
        yield f"{_offset(packet.time, start)} {ends}  {_name(MessageType, head.type)}{to}"
        yield (
            f"{_INDENT}version {head.version}  length {head.length} of {len(packet.octets)}"
            f"  doi {head.doi}  xid {head.xid}  ackreq {int(head.ack_request)}"
            f"  cksumlen {head.checksum_length}"
        )
    for payload in view.payloads:
        yield from _payload(payload, _INDENT, show_keys)
    if view.checksum:
        verdict = {True: "verified", False: "WRONG", None: "not verified: no key"}[view.verified]
        yield f"{_INDENT}Cksum {view.checksum.hex()}  {verdict}"
    several = len({keys.quick_mode for keys in view.keymat}) > 1
    for keys in view.keymat:
        yield from _keymat(keys, several, show_keys)
    for reason in view.keyless:
        yield f"{_INDENT}KEYMAT  none: {reason}"
    if view.problem:
        yield f"{_INDENT}! {view.problem}"


def _payload(view: PayloadView, indent: str, show_keys: bool) -> Iterator[str]:
    deeper = indent + _INDENT
    yield indent + _payload_line(view.payload)
    match view.kerberos:
        case ApReqView():
            for line in _ap_req(view.kerberos, show_keys):
                yield deeper + line
        case ApRepView(ctime, cusec, matches):
            told = "matches an authenticator" if matches else "MATCHES NO AUTHENTICATOR SEEN"
            yield f"{deeper}AP-REP  ctime {_utc(ctime)} cusec {cusec}  {told}"
        case messages.KrbErrorPart():
            for line in _krb_error(view.kerberos):
                yield deeper + line
        case messages.TicketHeader():
            yield deeper + _ticket(view.kerberos)
    for part in view.inner:
        yield from _payload(part, deeper, show_keys)
    identities = 0
    for element in view.quick_mode:
        side = ""
        if isinstance(element, isakmp.Identification):  # RFC 2409 §5.5: IDci, then IDcr
            side = ("ci", "cr", "")[min(identities, 2)]
            identities += 1
        for line in _quick_mode(element, side):
            yield deeper + line
    if view.problem:
        yield f"{deeper}! {view.problem}"


def _payload_line(payload: kink.Payload) -> str:
    match payload:
        case kink.ApReq(epoch, raw):
            return f"KINK_AP_REQ  epoch {epoch} ({_utc(epoch)})  {len(raw)} octets"
        case kink.ApRep(epoch, raw):
            return f"KINK_AP_REP  epoch {epoch} ({_utc(epoch)})  {len(raw)} octets"
        case kink.KrbError(raw):
            return f"KINK_KRB_ERROR  {len(raw)} octets"
        case kink.TgtReq(name):
            return f"KINK_TGT_REQ  name {name.decode('utf-8', 'backslashreplace')!r}"
        case kink.TgtRep(tgt):
            return f"KINK_TGT_REP  {len(tgt)} octets"
        case kink.Isakmp(_, body, major, minor):
            return f"KINK_ISAKMP  quick mode {major}.{minor}  {len(body)} octets"
        case kink.Encrypt(cipher):
            return f"KINK_ENCRYPT  {len(cipher)} octets"
        case kink.KinkError(code):
            return f"KINK_ERROR  {_name(KinkErrorCode, code)}"
        case kink.Unknown(kind, body):
            return f"payload type {kind}  {body.hex()}"


def _ap_req(view: ApReqView, show_keys: bool) -> Iterator[str]:
    options = words.flags(words.AP_OPTIONS, view.request.ap_options)
    yield f"AP-REQ  options {options}  {_ticket(view.request.ticket)}"
    ticket = view.ticket
    if ticket is not None:
        yield (
            f"ticket  client {ticket.client}  session etype {words.etype(ticket.session_etype)}"
            f"{_secret(' key ', ticket.session_key, show_keys)}"
        )
        flags = words.flags(words.TICKET_FLAGS, ticket.flags)
        yield (
            f"ticket  authtime {_utc(ticket.authtime)}  start {_utc(ticket.start)}"
            f"  end {_utc(ticket.end)}  flags {flags}"
        )
    part = view.authenticator
    if part is not None:
        yield (
            f"authenticator  client {part.client}  ctime {_utc(part.ctime)} cusec {part.cusec}"
            f"  cksum {_or_none(part.checksum)}  subkey {'yes' if part.subkey else 'none'}"
            f"  seq {_or_none(part.sequence)}"
        )
    if view.problem:
        yield f"! {view.problem}"


def _ticket(sealed: messages.TicketHeader) -> str:
    kvno = "" if sealed.kvno is None else f" kvno {sealed.kvno}"
    return (
        f"ticket for {sealed.sname}  etype {words.etype(sealed.etype)}{kvno}"
        f"  {len(sealed.raw)} octets"
    )


def _krb_error(error: messages.KrbErrorPart) -> Iterator[str]:
    name = messages.KRB_ERROR_NAMES.get(error.code, "unnamed")
    meaning = messages.KRB_ERROR_TEXTS.get(error.code)
    yield f"KRB-ERROR {error.code} {name}{f': {meaning}' if meaning else ''}"
    client = "none"
    if error.ctime is not None:
        client = f"{_utc(error.ctime)} cusec {_or_none(error.cusec)}"
    yield f"stime {_utc(error.stime)} susec {error.susec}  ctime {client}"
    if error.ctime is not None:
        yield f"the server's clock is {error.stime - error.ctime:+} s off the client's"
    yield f"from {error.server}  text {error.text!r}"


def _quick_mode(payload: QuickModePart, side: str) -> Iterator[str]:
    match payload:
        case isakmp.SecurityAssociation(proposals, doi, situation):
            yield f"SA  doi {doi}  situation {situation}"
            for proposal in proposals:
                yield from (_INDENT + line for line in _proposal(proposal))
        case isakmp.Nonce(data):
            yield f"NONCE  {data.hex()}"
        case isakmp.KeyExchange(data):
            yield f"KE  {len(data)} octets  {data.hex()}"
        case isakmp.Identification():
            kind = words.name(words.ID_TYPES, payload.id_type)
            yield f"ID{side}  {kind}  {words.identity(payload)}"
        case isakmp.Notification():
            yield (
                f"NOTIFY  {words.name(words.NOTIFICATIONS, payload.type)}  doi {payload.doi}"
                f"  {words.name(words.PROTOCOLS, payload.protocol_id)}"
                f"  spi {words.spi(payload.spi)}  data {words.notified(payload) or 'none'}"
            )
        case isakmp.Delete(protocol_id, spis, doi):
            yield (
                f"DELETE  doi {doi}  {words.name(words.PROTOCOLS, protocol_id)}"
                f"  spi {' '.join(map(words.spi, spis))}"
            )
        case Unread(kind, body):
            yield f"ISAKMP payload {words.name(words.PAYLOADS, kind)}  unread: {body.hex()}"


def _proposal(proposal: isakmp.Proposal) -> Iterator[str]:
    protocol = words.name(words.PROTOCOLS, proposal.protocol_id)
    yield f"PROPOSAL {proposal.number}  {protocol}  spi {words.spi(proposal.spi)}"
    names = words.TRANSFORMS.get(proposal.protocol_id, {})
    for transform in proposal.transforms:
        yield f"{_INDENT}TRANSFORM {transform.number}  {words.name(names, transform.transform_id)}"
        for attribute in transform.attributes:
            name, value = words.attribute(attribute)
            yield f"{_INDENT * 2}{name} = {value}"


def _keymat(keys: KeymatView, several: bool, show_keys: bool) -> Iterator[str]:
    protocol = words.name(words.PROTOCOLS, keys.protocol_id)
    which = f"KINK_ISAKMP {keys.quick_mode}, " if several else ""
    yield (
        f"{_INDENT}KEYMAT  {which}{protocol} spi {words.spi(keys.spi)}, inbound at the"
        f" {keys.receiver} {keys.destination}"
    )
    for what, secret in (("enc ", keys.encryption), ("auth", keys.authentication)):
        if len(secret):
            yield f"{_INDENT * 2}{what} {len(secret) * 8} bits{_secret('  ', secret, show_keys)}"


def _secret(label: str, secret: Secret, show_keys: bool) -> str:
    return label + secret.value.hex() if show_keys else ""


def _offset(moment: int, start: int) -> str:
    return f"{(moment - start) / 1e9:+.6f} s"


def _utc(seconds: int) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def _or_none(value: int | None) -> str:
    return "none" if value is None else str(value)


def _name(names: type[enum.IntEnum], number: int) -> str:
    """``NAME(number)``, or the bare number where it has no name here."""
    try:
        return f"{names(number).name}({number})"
    except ValueError:
        return str(number)
