"""Views as text for people: every field, key material only where it is asked for."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator

from kinkd.decode.pcap import Other
from kinkd.decode.reader import (
    ApRepView,
    ApReqView,
    KeymatView,
    MessageView,
    PayloadView,
)
from kinkd.kerberos import messages
from kinkd.model import Secret
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import (
    AhTransform,
    AttributeClass,
    AuthenticationAlgorithm,
    EncapsulationMode,
    EspTransform,
    IdType,
    KinkErrorCode,
    LifeType,
    MessageType,
    NotifyType,
    ProtocolId,
)

_INDENT = "  "

_VALUES: dict[int, type[enum.IntEnum]] = {
    AttributeClass.LIFE_TYPE: LifeType,
    AttributeClass.ENCAPSULATION_MODE: EncapsulationMode,
    AttributeClass.AUTHENTICATION_ALGORITHM: AuthenticationAlgorithm,
}


def render_other(packet: Other, start: int) -> str:
    """One line for a packet that is not KINK; ``start``: nanoseconds of the first packet."""
    ends = f" {packet.source} > {packet.destination}" if packet.source else ""
    mark = "  clear" if packet.clear else ""
    return f"{_offset(packet.time, start)}{ends}  {packet.kind} {packet.detail}".rstrip() + mark


def render_message(view: MessageView, start: int, *, show_keys: bool) -> Iterator[str]:
    """The lines for a KINK message; ``start``: nanoseconds of the first packet.

    What a peer put into names and texts cannot steer the terminal: it is escaped.
    """
    for line in _message(view, start, show_keys):
        if line.isprintable():
            yield line
        else:
            yield "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


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
        yield f"{_offset(packet.time, start)} {ends}  {_name(MessageType, head.type)}"
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
    for keys in view.keymat:
        yield from _keymat(keys, show_keys)
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
    for part in view.inner:
        yield from _payload(part, deeper, show_keys)
    for element in view.quick_mode:
        for line in _quick_mode(element):
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
    sealed = view.request.ticket
    kvno = "" if sealed.kvno is None else f" kvno {sealed.kvno}"
    yield (
        f"AP-REQ  options {_bits(view.request.ap_options)}"
        f"  ticket for {sealed.sname}  etype {sealed.etype}{kvno}  {len(sealed.raw)} octets"
    )
    ticket = view.ticket
    if ticket is not None:
        yield (
            f"ticket  client {ticket.client}  session etype {ticket.session_etype}"
            f"{_secret(' key ', ticket.session_key, show_keys)}  flags {_bits(ticket.flags)}"
        )
        start = "" if ticket.start is None else f"  start {_utc(ticket.start)}"
        yield f"ticket  authtime {_utc(ticket.authtime)}{start}  end {_utc(ticket.end)}"
    part = view.authenticator
    if part is not None:
        yield (
            f"authenticator  client {part.client}  ctime {_utc(part.ctime)} cusec {part.cusec}"
            f"  cksum {_or_none(part.checksum)}  subkey {'yes' if part.subkey else 'none'}"
            f"  seq {_or_none(part.sequence)}"
        )
    if view.problem:
        yield f"! {view.problem}"


def _krb_error(error: messages.KrbErrorPart) -> Iterator[str]:
    name = messages.KRB_ERROR_NAMES.get(error.code, "unnamed")
    client = "" if error.ctime is None else f"  ctime {_utc(error.ctime)} cusec {error.cusec}"
    yield f"KRB-ERROR {error.code} {name}  from {error.server}"
    yield f"stime {_utc(error.stime)} susec {error.susec}{client}  text {error.text!r}"


def _quick_mode(payload: isakmp.QuickModePayload) -> Iterator[str]:
    match payload:
        case isakmp.SecurityAssociation(proposals, doi, situation):
            yield f"SA  doi {doi}  situation {situation}"
            for proposal in proposals:
                yield from (_INDENT + line for line in _proposal(proposal))
        case isakmp.Nonce(data):
            yield f"NONCE  {data.hex()}"
        case isakmp.KeyExchange(data):
            yield f"KE  {data.hex()}"
        case isakmp.Identification(id_type, protocol, port, data):
            kind = _name(IdType, id_type)
            yield f"ID  {kind}  protocol {protocol}  port {port}  {data.hex()}"
        case isakmp.Notification(protocol_id, spi, kind_number, data, doi):
            yield (
                f"NOTIFY  {_name(NotifyType, kind_number)}  doi {doi}"
                f"  {_name(ProtocolId, protocol_id)}  spi {spi.hex() or 'none'}"
                f"  data {data.hex() or 'none'}"
            )
        case isakmp.Delete(protocol_id, spis, doi):
            yield (
                f"DELETE  doi {doi}  {_name(ProtocolId, protocol_id)}"
                f"  spi {' '.join(spi.hex() for spi in spis)}"
            )


def _proposal(proposal: isakmp.Proposal) -> Iterator[str]:
    protocol = _name(ProtocolId, proposal.protocol_id)
    yield f"PROPOSAL {proposal.number}  {protocol}  spi {proposal.spi.hex()}"
    names = AhTransform if proposal.protocol_id == ProtocolId.AH else EspTransform
    for transform in proposal.transforms:
        kind = _name(names, transform.transform_id)
        yield f"{_INDENT}TRANSFORM {transform.number}  {kind}"
        for attribute in transform.attributes:
            yield f"{_INDENT * 2}{_attribute(attribute)}"


def _attribute(attribute: isakmp.Attribute) -> str:
    names = _VALUES.get(attribute.type)
    value = _name(names, attribute.value) if names else str(attribute.value)
    return f"{_name(AttributeClass, attribute.type)} = {value}"


def _keymat(keys: KeymatView, show_keys: bool) -> Iterator[str]:
    protocol = _name(ProtocolId, keys.protocol_id)
    yield (
        f"{_INDENT}KEYMAT  {protocol} spi {keys.spi.hex()}, inbound at the {keys.receiver}"
        f" {keys.destination}"
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


def _bits(value: int) -> str:
    return f"{value:#010x}"


def _or_none(value: int | None) -> str:
    return "none" if value is None else str(value)


def _name(names: type[enum.IntEnum], number: int) -> str:
    """``NAME(number)``, or the bare number where it has no name here."""
    try:
        return f"{names(number).name}({number})"
    except ValueError:
        return str(number)
