"""What is offered, what is chosen, and whether the answer is one that was offered. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kinkd.errors import PeerError
from kinkd.model import IpsecProtocol, Lifetime, Mode, Suite, Transform
from kinkd.wire.numbers import NotifyType

DEFAULT_LIFETIME_SECONDS = 28800
"""What an SA lives where no lifetime was negotiated (RFC 2407 §4.5)."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a transform says beside its algorithms (RFC 2407 §4.5, RFC 4304 §2, RFC 3947 §5.1).

    ``mode`` None: not said, or not known to us. ``group`` None: without a KE payload.
    """

    mode: Mode | None
    lifetime: Lifetime
    udp: bool = False  # ESP in UDP (RFC 3948)
    group: int | None = None
    esn: bool = False  # sequence numbers of 64 bits

    def within(self, lifetime: Lifetime) -> Terms:
        """The same, for no longer than ``lifetime``."""
        bound = shorter(self.lifetime, lifetime)
        return self if bound == self.lifetime else replace(self, lifetime=bound)


@dataclass(frozen=True, slots=True)
class Part:
    """One transform of one protocol of a proposal, with its attributes read.

    ``readable`` is false where something stands there that we do not understand: such a
    transform may not be chosen (RFC 2407 §4.5). ``protocol`` None: neither ESP nor AH.
    """

    protocol: IpsecProtocol | None
    transform: int
    spi: int
    transform_id: int
    key_bits: int | None
    authentication_id: int | None
    terms: Terms
    readable: bool = True

    def is_for(self, transform: Transform) -> bool:
        """Whether the algorithms are these."""
        return (
            self.readable
            and self.protocol is transform.protocol
            and self.transform_id == transform.transform_id
            and self.key_bits == transform.key_bits
            and self.authentication_id == transform.authentication_id
        )


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to take a proposal: a transform for each of its protocols (RFC 2408 §4.2)."""

    proposal: int
    parts: tuple[Part, ...]

    @property
    def terms(self) -> Terms:
        """Those of all its parts; the shortest lifetime counts."""
        terms = self.parts[0].terms
        for part in self.parts[1:]:
            terms = terms.within(part.terms.lifetime)
        return terms

    def part(self, protocol: IpsecProtocol) -> Part:
        """The part of one protocol.

        Raises:
            KeyError: it has none.
        """
        for part in self.parts:
            if part.protocol is protocol:
                return part
        raise KeyError(protocol)

    def is_for(self, suite: Suite, demands: Demands) -> bool:
        """Whether this is ``suite`` as the policy demands it."""
        if len(self.parts) != len(suite.transforms):
            return False
        if not all(any(p.is_for(t) for p in self.parts) for t in suite.transforms):
            return False
        terms = self.terms
        same = all(replace(p.terms, lifetime=terms.lifetime) == terms for p in self.parts[1:])
        return same and demands.allow(terms)


@dataclass(frozen=True, slots=True)
class Demands:
    """What the policy demands of the terms; ``lifetime`` may only be lowered."""

    mode: Mode
    lifetime: Lifetime
    udp: bool = False
    groups: tuple[int | None, ...] = (None,)
    esn: tuple[bool, ...] = (False,)

    def allow(self, terms: Terms) -> bool:
        """Whether these terms are what is demanded, whatever the lifetime."""
        return (
            terms.mode is self.mode
            and terms.udp is self.udp
            and terms.group in self.groups
            and terms.esn in self.esn
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """The responder's decision. ``optimistic``: it is what the initiator has keyed already."""

    offer: Offer
    suite: Suite
    terms: Terms
    optimistic: bool


def choose(offers: Sequence[Offer], suites: Iterable[Suite], demands: Demands) -> Choice:
    """Pick one of the initiator's offers.

    The optimistic one wins where policy allows it at all, since it saves a message
    (RFC 4430 §3.2); else the order of the initiator decides.

    Raises:
        PeerError: NO-PROPOSAL-CHOSEN (14), RFC 4430 §5.5.
    """
    allowed = tuple(suites)
    for position, offer in enumerate(offers):
        for suite in allowed:
            if offer.is_for(suite, demands):
                terms = offer.terms.within(demands.lifetime)
                optimistic = position == 0 and terms.group is None  # RFC 4430 §3.2: never with KE
                return Choice(offer, suite, terms, optimistic)
    raise PeerError(
        "no-proposal-chosen",
        f"none of the {len(offers)} offers is allowed by the policy",
        notify=NotifyType.NO_PROPOSAL_CHOSEN,
    )


def shorter(one: Lifetime, other: Lifetime) -> Lifetime:
    """The lower of each bound (RFC 4430 §3.2: a responder may lower, never raise)."""
    volumes = [v for v in (one.kilobytes, other.kilobytes) if v is not None]
    return Lifetime(min(one.seconds, other.seconds), min(volumes, default=None))


def check_answer(offers: Sequence[Offer], answered: Offer) -> tuple[int, Terms]:
    """Which offer of ours the responder took, and the terms then in force.

    All attributes must be identical but the lifetimes, which may only be lower
    (RFC 4430 §3.2).

    Raises:
        PeerError: another transform, or a raised lifetime. No code: an initiator has no
            message to report it with (RFC 4430 §3.5).
    """
    for position, offered in enumerate(offers):
        if _is_answer(offered, answered):
            if any(_raises(offered, part) for part in answered.parts):
                raise PeerError("raised-lifetime", "the responder raised a lifetime it may lower")
            return position, answered.terms.within(offered.terms.lifetime)
    raise PeerError("other-proposal-chosen", "the responder chose what was not offered")


def _is_answer(offered: Offer, answered: Offer) -> bool:
    if answered.proposal != offered.proposal or len(answered.parts) != len(offered.parts):
        return False
    return all(
        any(_is_same(ours, theirs) for theirs in answered.parts if theirs.readable)
        for ours in offered.parts
    )


def _is_same(ours: Part, theirs: Part) -> bool:
    """All but the SPI, which is its receiver's, and the lifetime."""
    return replace(ours, spi=0) == replace(
        theirs, spi=0, terms=replace(theirs.terms, lifetime=ours.terms.lifetime)
    )


def _raises(offered: Offer, answered: Part) -> bool:
    ours = next(part for part in offered.parts if part.protocol is answered.protocol)
    before, after = ours.terms.lifetime, answered.terms.lifetime
    return after.seconds > before.seconds or (
        after.kilobytes is not None
        and before.kilobytes is not None
        and after.kilobytes > before.kilobytes
    )
