"""KEYMAT: the keys of an SA out of the ticket's session key (RFC 4430 §7, RFC 2409 §5.5)."""

from __future__ import annotations

from collections.abc import Callable

from kinkd.model import Secret


def derive(
    prf: Callable[[bytes], bytes],
    protocol_id: int,
    spi: bytes,
    ni: bytes,
    nr: bytes = b"",
    *,
    octets: int,
    shared: bytes | bytearray = b"",
) -> Secret:
    """The first ``octets`` octets of KEYMAT for the SA that ``spi`` names.

    K1 = prf(SKEYID_d, [g^xy |] protocol | SPI | Ni_b [| Nr_b]),
    Kn = prf(SKEYID_d, Kn-1 | the same), concatenated.

    Args:
        prf: the etype's pseudo-random function under the session key (SKEYID_d).
        protocol_id: ISAKMP protocol id of the SA, 3 for ESP (RFC 2407 §4.4.1).
        spi: the SPI its receiver chose, as on the wire.
        ni: the initiator's nonce, without payload header.
        nr: the responder's nonce; empty where there is none (RFC 4430 §7).
        octets: how many octets the SA's algorithms take.
        shared: g(qm)^xy of a KE exchange, padded as its group wants it; else empty.
    """
    seed = b"".join((shared, bytes((protocol_id,)), spi, ni, nr))
    material = Secret(b"")
    block = prf(seed)
    material.value += block
    while len(material) < octets:
        block = prf(block + seed)
        material.value += block
    # Slice assignment keeps the one buffer: its surplus is zeroed before it is cut off.
    surplus = len(material) - octets
    material.value[octets:] = bytes(surplus)
    del material.value[octets:]
    return material
