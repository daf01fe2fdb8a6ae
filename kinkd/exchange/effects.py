"""What the core wants done. The application carries commands out in the order they were given:
what sending depends on (a journal entry) stands before the sending."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from kinkd.exchange.pairs import SaPair
from kinkd.model import IPAddress, IpsecProtocol, Principal
from kinkd.wire.numbers import KINK_PORT


@dataclass(frozen=True, slots=True)
class Path:
    """Where a datagram came from, or goes to."""

    local: IPAddress
    remote: IPAddress
    port: int = KINK_PORT


@dataclass(frozen=True, slots=True)
class Send:
    """Send a datagram from ``path.local``, port 910."""

    datagram: bytes = field(repr=False)
    path: Path


@dataclass(frozen=True, slots=True)
class FetchTicket:
    """Get a ticket from the KDC; the answer is the event ``ticket_ready`` or ``ticket_failed``.

    ``tgt``: the peer's, DER, for a user-to-user ticket (RFC 4430 §3.1).
    """

    server: Principal
    tgt: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class FetchTgt:
    """Get a TGT of our own to give to peers; the answer is ``tgt_ready`` or ``tgt_failed``."""


@dataclass(frozen=True, slots=True)
class RecordPair:
    """Make a live SA pair durable: which SPIs, with whom, how they came about. No keys."""

    pair: SaPair


@dataclass(frozen=True, slots=True)
class ForgetPair:
    """The pair is gone from the kernel."""

    pair: SaPair


@dataclass(frozen=True, slots=True)
class RecordDebt:
    """Make durable that a peer is still to delete what it may have made for an SPI of ours.

    It may have it until ``until``, POSIX seconds; after that nothing is owed.
    """

    host: str
    path: Path
    protocol: IpsecProtocol
    spi: int
    until: float


@dataclass(frozen=True, slots=True)
class ForgetDebt:
    """The peer has deleted it, or it has come to its end."""

    path: Path
    protocol: IpsecProtocol
    spi: int


@dataclass(frozen=True, slots=True)
class RecordBurial:
    """Make durable that a peer has deleted an SPI of its own which we do not know.

    A CREATE of before that names it may yet come, and must not be carried out.
    """

    host: str
    protocol: IpsecProtocol
    spi: int


@dataclass(frozen=True, slots=True)
class RecordSecured:
    """Make durable that there were SAs with a host whose traffic the policy merely requests them
    for: it is required from now on. ``principal`` is who the host was."""

    host: str
    principal: str


@dataclass(frozen=True, slots=True)
class ForgetSecured:
    """A host's traffic is merely requested to be protected again."""

    host: str


@dataclass(frozen=True, slots=True)
class RecordSuspension:
    """Make durable until when nothing is enforced, POSIX seconds; 0: it is."""

    until: float


@dataclass(frozen=True, slots=True)
class ReserveXids:
    """Make durable that XIDs below this bound may have been used under the present EPOCH."""

    below: int


class Level(enum.IntEnum):
    """How loud a report is, by the numbers of ``logging``."""

    DEBUG = 10
    INFO = 20
    WARNING = 30
    ERROR = 40


@dataclass(frozen=True, slots=True)
class Report:
    """Something happened that people or metrics want to know. Never key material."""

    level: Level
    event: str
    fields: dict[str, object]


Command = (
    Send
    | FetchTicket
    | FetchTgt
    | RecordPair
    | ForgetPair
    | RecordDebt
    | ForgetDebt
    | RecordBurial
    | RecordSecured
    | ForgetSecured
    | RecordSuspension
    | ReserveXids
    | Report
)
