"""An LDAP connection that is authenticated and encrypted by GSSAPI (SASL, RFC 4752).

The bind is made here and not by libldap: python-ldap holds the interpreter for as long as a SASL
bind takes, and the rest of kinkd with it. So libldap speaks to one end of a pair of sockets, and
the relay at the other end puts what it says into GSSAPI's encryption. Credentials and the server's
principal are given by name: no default of the process is touched, and no DNS is believed.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from typing import Final, Protocol

from gssapi import MechType, NameType, RequirementFlag
from gssapi import raw as gss
from gssapi.raw import GSSError

from kinkd.errors import LocalError
from kinkd.model import Principal
from kinkd.policy.directory import bind
from kinkd.policy.directory.options import Server

_CONFIDENTIALITY: Final = 4  # RFC 4752 §3.1
_GREATEST_FRAME: Final = 1 << 20  # octets that the server may encrypt at once
_GREATEST_MESSAGE: Final = 1 << 24  # octets; an entry is much smaller, a set of UUIDs is, too
_READ: Final = 1 << 16
_FLAGS: Final = (
    RequirementFlag.mutual_authentication
    | RequirementFlag.confidentiality
    | RequirementFlag.integrity
    | RequirementFlag.replay_detection
    | RequirementFlag.out_of_sequence_detection
)
_KEEPALIVE: Final = {
    # A cut is noticed after 30 s, whichever end has something to say.
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 4,
    socket.TCP_USER_TIMEOUT: 30_000,  # ms
}


class Ccache(Protocol):
    """A credentials cache with a ticket-granting ticket."""

    @property
    def name(self) -> str:
        """As GSSAPI names it."""


class SecureStream:
    """A bound connection. What is written to ``inner`` goes to the server, and back.

    Args:
        server: where to connect.
        expected: whom it must prove to be.
        ccache: whose ticket-granting ticket to use; a service ticket is put into it.
        timeout: seconds for the connection, and for the bind.

    Raises:
        LocalError: it cannot be made; the text says why.
    """

    def __init__(self, server: Server, expected: Principal, ccache: Ccache, timeout: float) -> None:
        self._server = server
        self.fault = ""  # why it ended
        self._outer = _connect(server, timeout)
        try:
            exchange = bind.Exchange(self._outer, str(server), timeout)
            self._context, self._limit = _bind(exchange, server, expected, ccache)
        except GSSError as error:
            self._outer.close()
            words = "; ".join(error.get_all_statuses(error.min_code, False))
            raise LocalError(f"{server}: no authentication with {expected}: {words}") from None
        except OSError as error:
            self._outer.close()
            words = "the server does not answer" if isinstance(error, TimeoutError) else str(error)
            raise LocalError(f"{server}: {words}") from None
        except BaseException:
            self._outer.close()
            raise
        self._outer.settimeout(timeout)  # of sending; what is received was waited for
        self._lengths = bind.Lengths(_GREATEST_MESSAGE)
        self._relayed, self.inner = socket.socketpair()
        self._thread = threading.Thread(target=self._relay, name="directory relay", daemon=True)
        self._thread.start()

    def shut_down(self) -> None:
        """Have whoever waits on the connection find it ended. From any thread."""
        for end in (self._outer, self._relayed):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the connection up."""
        self.shut_down()
        self._thread.join()
        for end in (self._outer, self._relayed, self.inner):
            end.close()

    def _relay(self) -> None:
        """Both directions in one thread: a security context is nothing to be shared."""
        received = bytearray()
        try:
            with selectors.DefaultSelector() as selector:
                for end in (self._outer, self._relayed):
                    selector.register(end, selectors.EVENT_READ)
                while all(self._pass_on(key.fileobj, received) for key, _ in selector.select()):
                    pass
        except GSSError as error:
            self.fault = "; ".join(error.get_all_statuses(error.min_code, False))
        except (OSError, bind.Malformed) as error:
            self.fault = str(error)
        finally:
            self.shut_down()

    def _pass_on(self, end: object, received: bytearray) -> bool:
        """Read what came from one end and give it to the other; False: it has ended."""
        if end is self._relayed:
            octets = self._relayed.recv(self._limit)
            if octets:
                self._outer.sendall(_frame(_encrypt(self._context, octets)))
            return bool(octets)
        octets = self._outer.recv(_READ)
        if not octets:
            self.fault = "the server ended the connection"
        received += octets
        while (frame := _next_frame(received)) is not None:
            message = _decrypt(self._context, frame)
            self._lengths.follow(message)
            self._relayed.sendall(message)
        return bool(octets)


def _connect(server: Server, timeout: float) -> socket.socket:
    try:
        # Bound beforehand: the kernel looks its policies up before it chooses a port, and where
        # traffic with the server is blocked, port 0 is none of those that reach it in clear.
        found = socket.create_connection((server.host, server.port), timeout, ("", 0))
    except OSError as error:
        raise LocalError(f"{server}: cannot be reached: {error.strerror or error}") from None
    found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        found.setsockopt(socket.IPPROTO_TCP, option, value)
    return found


def _bind(
    exchange: bind.Exchange, server: Server, expected: Principal, ccache: Ccache
) -> tuple[gss.SecurityContext, int]:
    """An established context with encryption, and how much may be encrypted with it at once."""
    # As octets: gssapi passes pointers into a str's encoding that it has already let go.
    creds = gss.acquire_cred_from(
        {b"ccache": ccache.name.encode()}, mechs=[MechType.kerberos], usage="initiate"
    ).creds
    # The exact principal: a host-based name would be canonicalised by DNS.
    target = gss.import_name(str(expected).encode(), NameType.kerberos_principal)
    context, token = None, None
    while True:
        made = gss.init_sec_context(
            target, creds, context=context, mech=MechType.kerberos, flags=_FLAGS, input_token=token
        )
        context = made.context
        token = exchange.step(made.token or b"")
        if not made.more_steps:
            break
    if _FLAGS & made.flags != _FLAGS:
        raise LocalError(f"{server}: the server does not prove who it is, or does not encrypt")
    return context, _choose_layer(exchange, context, token, server)


def _choose_layer(
    exchange: bind.Exchange, context: gss.SecurityContext, token: bytes | None, server: Server
) -> int:
    """RFC 4752 §3.1: the server offers layers, we take the one that encrypts."""
    offer = gss.unwrap(context, token or b"").message
    if len(offer) != 4 or not offer[0] & _CONFIDENTIALITY:
        raise LocalError(f"{server}: the server does not encrypt: it offers no such layer")
    choice = bytes((_CONFIDENTIALITY,)) + _GREATEST_FRAME.to_bytes(3, "big")
    exchange.finish(gss.wrap(context, choice, confidential=False).message)
    greatest = int.from_bytes(offer[1:], "big")
    limit: int = gss.wrap_size_limit(context, greatest, confidential=True)
    if limit <= 0:
        raise LocalError(f"{server}: the server takes no messages: {greatest} octets at most")
    return min(limit, _READ)


def _encrypt(context: gss.SecurityContext, octets: bytes) -> bytes:
    made = gss.wrap(context, octets, confidential=True)
    if not made.encrypted:
        raise bind.Malformed("GSSAPI does not encrypt")
    message: bytes = made.message
    return message


def _decrypt(context: gss.SecurityContext, frame: bytes) -> bytes:
    made = gss.unwrap(context, frame)
    if not made.encrypted:
        raise bind.Malformed("the server sends something that is not encrypted")
    message: bytes = made.message
    return message


def _frame(octets: bytes) -> bytes:
    return len(octets).to_bytes(4, "big") + octets


def _next_frame(received: bytearray) -> bytes | None:
    """Take one (RFC 4422 §3.7) from the front of what was received; None: it is not whole yet."""
    if len(received) < 4:
        return None
    length = int.from_bytes(received[:4], "big")
    if length > _GREATEST_FRAME:
        raise bind.Malformed(f"the server sends a frame of {length} octets")
    if len(received) < 4 + length:
        return None
    frame = bytes(received[4 : 4 + length])
    del received[: 4 + length]
    return frame
