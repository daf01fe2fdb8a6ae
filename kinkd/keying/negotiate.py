"""What is offered, what is chosen, and whether the answer is the one that was hoped for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kinkd.errors import PeerError
from kinkd.model import Lifetime, Mode, Suite
from kinkd.wire.numbers import NotifyType

DEFAULT_LIFETIME_SECONDS = 28800
"""What an SA lives where no lifetime was negotiated (RFC 2407 §4.5)."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One transform of one ESP proposal, with its attributes read.

    ``readable`` is false where an attribute was there that we do not understand: such a
    transform may not be chosen (RFC 2407 §4.5).
    """

    proposal: int
    transform: int
    spi: int
    transform_id: int
    key_bits: int | None
    authentication_id: int | None
    mode: Mode | None
    lifetime: Lifetime
    group: int | None = None
    readable: bool = True
    esn: bool = False  # sequence numbers of 64 bits (RFC 4304 §2)

    def is_for(self, suite: Suite, mode: Mode, *, group: int | None, esn: bool) -> bool:
        """Whether this transform is ``suite`` in ``mode``, with a KE payload of ``group``."""
        return (
            self.readable
            and self.transform_id == suite.transform_id
            and self.key_bits == suite.key_bits
            and self.authentication_id == suite.authentication_id
            and self.mode is mode
            and self.group == group
            and self.esn is esn
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """The responder's decision. ``optimistic``: it is what the initiator has keyed already."""

    offer: Offer
    suite: Suite
    lifetime: Lifetime
    optimistic: bool


def choose(
    offers: Sequence[Offer],
    suites: Iterable[Suite],
    mode: Mode,
    lifetime: Lifetime,
    *,
    group: int | None = None,
    esn: bool = False,
) -> Choice:
    """Pick one of the initiator's offers.

    The optimistic one wins where policy allows it at all, since it saves a message
    (RFC 4430 §3.2); else the order of the initiator decides.

    Raises:
        PeerError: NO-PROPOSAL-CHOSEN (14), RFC 4430 §5.5.
    """
    allowed = tuple(suites)
    for position, offer in enumerate(offers):
        for suite in allowed:
            if offer.is_for(suite, mode, group=group, esn=esn):
                optimistic = position == 0 and group is None  # RFC 4430 §3.2: never with a KE
                return Choice(offer, suite, shorter(offer.lifetime, lifetime), optimistic)
    raise PeerError(
        "no-proposal-chosen",
        f"none of the {len(offers)} offered transforms is allowed by the policy",
        notify=NotifyType.NO_PROPOSAL_CHOSEN,
    )


def shorter(one: Lifetime, other: Lifetime) -> Lifetime:
    """The lower of each bound (RFC 4430 §3.2: a responder may lower, never raise)."""
    volumes = [v for v in (one.kilobytes, other.kilobytes) if v is not None]
    return Lifetime(min(one.seconds, other.seconds), min(volumes, default=None))


def check_answer(offered: Offer, answered: Offer) -> Lifetime:
    """The lifetime in force where the responder took this offer of ours.

    All attributes must be identical but the lifetimes, which may only be lower
    (RFC 4430 §3.2).

    Raises:
        PeerError: another transform, or a raised lifetime. No code: an initiator has no
            message to report it with (RFC 4430 §3.5).
    """
    same = (
        answered.readable
        and (answered.proposal, answered.transform) == (offered.proposal, offered.transform)
        and answered.transform_id == offered.transform_id
        and answered.key_bits == offered.key_bits
        and answered.authentication_id == offered.authentication_id
        and answered.mode is offered.mode
        and answered.group == offered.group
        and answered.esn is offered.esn
    )
    if not same:
        raise PeerError("other-proposal-chosen", "the responder chose what was not offered")
    raised = answered.lifetime.seconds > offered.lifetime.seconds or (
        answered.lifetime.kilobytes is not None
        and offered.lifetime.kilobytes is not None
        and answered.lifetime.kilobytes > offered.lifetime.kilobytes
    )
    if raised:
        raise PeerError("raised-lifetime", "the responder raised a lifetime it may only lower")
    return shorter(answered.lifetime, offered.lifetime)
