"""What the core asks of Kerberos.

``kerberos.gss`` is the real thing; ``kerberos.offline`` is a second, pure implementation from
keytab octets and a given clock. Nothing here waits for a network: the one call that does,
``TicketSource.fetch``, is made in a worker thread by the application.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from kinkd.model import Principal, Secret


class SessionKey(Protocol):
    """A Kerberos key and the operations of its etype (RFC 3961 §3). No repr shows its octets."""

    @property
    def etype(self) -> int:
        """17, 18 (RFC 3962), 19 or 20 (RFC 8009)."""

    @property
    def checksum_octets(self) -> int:
        """Length of the etype's required checksum."""

    def encrypt(self, usage: int, plain: bytes) -> bytes:
        """RFC 3961 §3 ``encrypt`` under the specific key of ``usage``, random confounder."""

    def decrypt(self, usage: int, cipher: bytes) -> bytes:
        """The inverse. Raises PeerError("bad-integrity") where the octets are not genuine."""

    def checksum(self, usage: int, data: bytes) -> bytes:
        """RFC 3961 §3 ``get_mic`` of the required checksum mechanism."""

    def verify(self, usage: int, data: bytes, checksum: bytes) -> bool:
        """``verify_mic``, in constant time."""

    def prf(self, data: bytes) -> bytes:
        """RFC 3961 §3 ``pseudo-random``: 20 octets for etypes 17/18, 32 and 48 for 19 and 20."""


@dataclass(frozen=True, slots=True)
class Authenticator:
    """One AP-REQ that was made, and the (ctime, cusec) its AP-REP must repeat (RFC 4120 §3.2.4)."""

    ap_req: bytes = field(repr=False)  # raw KRB_AP_REQ, DER
    ctime: int  # POSIX seconds
    cusec: int
    offset: float = 0.0  # seconds by which that time is ahead of this host's clock


class Ticket(Protocol):
    """A service ticket of ours for a peer, pinned: its session key never changes (RFC 4430 §9)."""

    @property
    def client(self) -> Principal: ...
    @property
    def server(self) -> Principal: ...
    @property
    def key(self) -> SessionKey: ...
    @property
    def end(self) -> int:
        """POSIX seconds at which the ticket ends."""

    @property
    def octets(self) -> int:
        """Size of the encoded ticket."""

    def authenticate(self, offset: float = 0.0) -> Authenticator:
        """A new AP-REQ with a fresh authenticator, mutual authentication requested. No network.

        ``offset``: by how many seconds its time is ahead of our clock's (RFC 4430 §3.5).

        Raises:
            TicketUnavailable: the ticket has expired.
        """


@dataclass(frozen=True, slots=True)
class OpenedTicket:
    """A peer's AP-REQ whose ticket was decrypted: the key is known, nothing else is proven yet."""

    client: Principal
    server: Principal
    key: SessionKey
    start: int  # POSIX seconds
    end: int  # POSIX seconds
    octets: int  # size of the encoded ticket
    ap_req: bytes = field(repr=False)
    user_to_user: bool = False  # it is encrypted in the session key of a TGT of ours


@dataclass(frozen=True, slots=True)
class Accepted:
    """A peer's AP-REQ that Kerberos accepts: fresh, not a replay. ``ap_rep`` is the raw answer."""

    ap_rep: bytes = field(repr=False)
    ctime: int
    cusec: int


@dataclass(frozen=True, slots=True)
class Tgt:
    """A ticket-granting ticket of ours, for peers that key us user-to-user (RFC 4430 §3.1).

    Never an inter-realm one. Its session key opens what the KDC makes of it for them.
    """

    client: Principal
    ticket: bytes = field(repr=False)  # DER
    etype: int
    key: Secret  # whoever holds the TGT last wipes it
    end: int  # POSIX seconds


class Acceptor(Protocol):
    """The responder's side of RFC 4120 §3.2.3, in the two steps that the Cksum comes between."""

    def open(self, ap_req: bytes) -> OpenedTicket:
        """Decrypt the ticket. Changes nothing.

        With the keytab; one for user-to-user, as its AP-REQ says (USE-SESSION-KEY, RFC 4120
        §5.5.1), with the session key of a TGT that ``add_tgt`` was given, and no other key.

        Raises:
            UserToUserRefused: none of them opens it (RFC 4430 §3.7.1).
            TicketRefused: with the KRB-ERROR code to relay: 31 (wrong key), 44/45 (key not here),
                14 (session key of an etype that KINK does not use), 40 (not an AP-REQ),
                69 (there is no keytab: user-to-user is the only way).
        """

    def add_tgt(self, tgt: Tgt) -> None:
        """From now on, until it ends, what is encrypted in the session key of ``tgt`` is opened.

        Those of before stay until they end: peers still have tickets under them.

        Raises:
            LocalError: it cannot be used.
        """

    def accept(self, opened: OpenedTicket) -> Accepted:
        """Check the authenticator: freshness, clock, replay. Call it after the Cksum verified.

        Raises:
            TicketRefused: 37 (clock), 32 (expired), 33 (not yet valid); None for a replay.
        """


class TicketSource(Protocol):
    """The initiator's side: tickets from the KDC. Blocks; thread-safe."""

    def fetch(self, server: Principal, tgt: bytes | None = None) -> Ticket:
        """A new ticket for ``server``; with its ``tgt`` (DER), a user-to-user one (RFC 4120 §3.3).

        A TGT that is not that of ``server`` gets none.

        Raises:
            TicketUnavailable: in words, the KDC's or libkrb5's reason.
        """

    def tgt(self) -> Tgt:
        """A ticket-granting ticket of our own realm: the one in use, or a new one.

        Raises:
            TicketUnavailable: as above.
        """
