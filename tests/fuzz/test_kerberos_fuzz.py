"""No octets of a peer raise anything but the named errors out of the Kerberos readers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import PeerError, TicketRefused
from kinkd.kerberos import der, etypes, messages
from kinkd.kerberos.keytab import read_keytab
from kinkd.kerberos.messages import Usage
from kinkd.kerberos.offline import OfflineAcceptor
from tests.support import recorded_kerberos as recorded

CREATE, REPLY = recorded.exchange("esp2way")
ACCEPTOR = OfflineAcceptor(read_keytab(recorded.keytab("esp2way")), lambda: 1795421240)
OPENED = ACCEPTOR.open(CREATE.kerberos)
AUTHENTICATOR = OPENED.key.decrypt(
    Usage.AP_REQ_AUTHENTICATOR, messages.read_ap_req(CREATE.kerberos).authenticator_cipher
)
KRB_ERROR = messages.build_krb_error(
    37, OPENED.server.realm, OPENED.server, 1, 2, client_time=(3, 4), text="text"
)


def ticket_plain() -> bytes:
    ticket = messages.read_ap_req(CREATE.kerberos).ticket
    for entry in read_keytab(recorded.keytab("esp2way")):
        if (entry.principal, entry.etype) == (ticket.sname, ticket.etype):
            return etypes.key(entry.etype, entry.key).decrypt(Usage.TICKET, ticket.cipher)
    raise LookupError(ticket.sname)


READERS: list[tuple[Callable[[bytes], object], bytes]] = [
    (messages.read_ap_req, CREATE.kerberos),
    (messages.read_enc_ticket, ticket_plain()),
    (messages.read_authenticator, AUTHENTICATOR),
    (lambda raw: messages.read_ap_rep(OPENED.key, raw), REPLY.kerberos),
    (messages.read_krb_error, KRB_ERROR),
    (messages.gss_unframe, messages.gss_frame(CREATE.kerberos, messages.TOKEN_AP_REQ)),
]


@given(st.sampled_from(READERS), st.data())
def test_mutated_messages_raise_only_peer_errors(
    case: tuple[Callable[[bytes], object], bytes], data: st.DataObject
) -> None:
    read, genuine = case
    mutated = bytearray(genuine)
    positions = st.integers(0, min(len(mutated), 200) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(positions)] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(mutated)))
    with contextlib.suppress(PeerError):
        read(bytes(mutated[:cut]))


@given(st.sampled_from(READERS), st.binary(max_size=300))
def test_any_octets_raise_only_peer_errors(
    case: tuple[Callable[[bytes], object], bytes], octets: bytes
) -> None:
    with contextlib.suppress(PeerError):
        case[0](octets)


@given(st.binary(max_size=300), st.integers(0, 200))
def test_the_acceptor_refuses_with_ticket_refused_alone(octets: bytes, at: int) -> None:
    spliced = CREATE.kerberos[:at] + octets + CREATE.kerberos[at + len(octets) :]
    for ap_req in (octets, spliced):
        with contextlib.suppress(TicketRefused):
            ACCEPTOR.accept(ACCEPTOR.open(ap_req))


@pytest.mark.parametrize("depth", [10, 1000, 16000])
def test_deep_nesting_costs_nothing(depth: int) -> None:
    octets = b""
    for _ in range(depth):
        octets = der.value(der.SEQUENCE, octets)
        if len(octets) > der.MAX_OCTETS - 8:
            break
    for read, _ in READERS:
        with pytest.raises(PeerError):
            read(octets)
