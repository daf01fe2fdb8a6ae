"""XIDs that nobody else can foresee.

An XID must not be used twice under one EPOCH (RFC 4430 §4), so they are counted; but whoever knows
where we are could answer, unproven and from anywhere, what we are about to ask. So what is sent is
the number's image under a permutation that is the host's secret: distinct, and no more to be
guessed than a random one.
"""

from __future__ import annotations

import hmac
from typing import Final

_ROUNDS: Final = 4  # of a balanced Feistel network: a permutation whatever the round function
_HALF: Final = 16  # bits


def permuted(key: bytes, epoch: int, number: int) -> int:
    """The XID, 32 bits, that stands for the ``number`` of a command under ``epoch``."""
    left, right = number >> _HALF & 0xFFFF, number & 0xFFFF
    for step in range(_ROUNDS):
        block = epoch.to_bytes(4) + bytes((step,)) + right.to_bytes(2)
        mixed = int.from_bytes(hmac.digest(key, block, "sha256")[:2])
        left, right = right, left ^ mixed
    return left << _HALF | right
