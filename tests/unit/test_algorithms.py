"""The table of ESP protections against the figures of the RFCs, and against the decoder's own."""

from __future__ import annotations

import pytest

from kinkd.decode.keys import key_lengths
from kinkd.exchange import quickmode
from kinkd.keying.algorithms import SUITES
from kinkd.keying.negotiate import Demands
from kinkd.model import IpsecProtocol, Lifetime, Mode, Suite
from kinkd.wire import isakmp
from tests.support.pair import offer

# Transform id, Key Length, Authentication Algorithm; octets of KEYMAT for either key; ICV bits.
FIGURES = {
    "aes256gcm16": (20, 256, None, 36, 0, 128),  # RFC 4106 §8.1, §8.2
    "aes128gcm16": (20, 128, None, 20, 0, 128),
    "chacha20poly1305": (250, None, None, 36, 0, 128),  # RFC 7634 §2, RFC 2407 §6.5
    "aes256ccm16": (16, 256, None, 35, 0, 128),  # RFC 4309 §7.1, §7.2
    "aes128ccm16": (16, 128, None, 19, 0, 128),
    "aes256-sha512": (12, 256, 7, 32, 64, 256),  # RFC 3602 §5.2, RFC 4868 §2.3, §2.6
    "aes128-sha512": (12, 128, 7, 16, 64, 256),
    "aes256-sha384": (12, 256, 6, 32, 48, 192),
    "aes128-sha384": (12, 128, 6, 16, 48, 192),
    "aes256-sha256": (12, 256, 5, 32, 32, 128),
    "aes128-sha256": (12, 128, 5, 16, 32, 128),
    "aes256ctr-sha256": (13, 256, 5, 36, 32, 128),  # RFC 3686 §5.1
    "aes128ctr-sha256": (13, 128, 5, 20, 32, 128),
    "aes256-sha1": (12, 256, 2, 32, 20, 96),  # RFC 2404 §3
    "aes128-sha1": (12, 128, 2, 16, 20, 96),
    "aes256gmac": (23, 256, None, 36, 0, 128),  # RFC 4543 §5.2, §9
    "aes128gmac": (23, 128, None, 20, 0, 128),
    "null-sha256": (11, None, 5, 0, 32, 128),  # RFC 2410
    "ah-sha512": (7, None, 7, 0, 64, 256),  # RFC 4868 §2.3, §2.6; RFC 2407 §4.4.3
    "ah-sha384": (6, None, 6, 0, 48, 192),
    "ah-sha256": (5, None, 5, 0, 32, 128),
    "ah-sha1": (3, None, 2, 0, 20, 96),  # RFC 2404 §3
}
SINGLE = [suite for suite in SUITES.values() if len(suite.transforms) == 1]


def test_the_table_says_what_the_rfcs_say() -> None:
    found = {
        suite.name: (
            transform.transform_id,
            transform.key_bits,
            transform.authentication_id,
            transform.encryption_octets,
            transform.authentication_octets,
            transform.icv_bits,
        )
        for suite in SINGLE
        for transform in suite.transforms
    }
    assert found == FIGURES


def test_no_two_suites_are_one_transform_on_the_wire() -> None:
    seen = {
        tuple((t.protocol, t.transform_id, t.key_bits, t.authentication_id) for t in s.transforms)
        for s in SUITES.values()
    }
    assert len(seen) == len(SUITES)


def test_a_bundle_is_esp_within_ah_for_every_two_of_them() -> None:
    esp = [s for s in SINGLE if s.protocols == (IpsecProtocol.ESP,)]
    ah = [s for s in SINGLE if s.protocols == (IpsecProtocol.AH,)]
    assert len(esp) + len(ah) == len(SINGLE)
    for outer in ah:
        for inner in esp:
            assert SUITES[f"{outer.name}+{inner.name}"].transforms == (
                *inner.transforms,
                *outer.transforms,
            )
    assert len(SUITES) == len(SINGLE) + len(esp) * len(ah)


def test_every_suite_protects_integrity() -> None:
    for transform in (t for suite in SUITES.values() for t in suite.transforms):
        assert (transform.aead is None) == (transform.authentication_id is not None)
        assert bool(transform.aead) != bool(transform.authentication)
        ah = transform.protocol is IpsecProtocol.AH
        assert bool(transform.encryption or transform.aead) is not ah


@pytest.mark.parametrize("esn", [False, True])
@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_an_offer_reads_back_as_its_suite_alone(suite: Suite, esn: bool) -> None:
    proposals = offer(suite, 0x2000, esn=esn)
    (read,) = quickmode.read_creation(quickmode.creation(proposals, bytes(16))).offers
    fitting = [
        (other.name, wide)
        for other in SUITES.values()
        for wide in (False, True)
        if read.is_for(other, Demands(Mode.TRANSPORT, Lifetime(600), esn=(wide,)))
    ]
    assert fitting == [(suite.name, esn)]
    for proposal, transform in zip(proposals, reversed(suite.transforms), strict=True):
        lengths = key_lengths(proposal)
        assert lengths is not None
        wanted = (transform.encryption_octets, transform.authentication_octets)
        assert (lengths.encryption, lengths.authentication) == wanted


@pytest.mark.parametrize("value", [0, 2])
def test_another_value_of_the_esn_attribute_is_never_chosen(value: int) -> None:  # RFC 4304 §3
    suite = SUITES["aes256gcm16"]
    (proposal,) = offer(suite, 0x2000)
    (transform,) = proposal.transforms
    odd = isakmp.Transform(1, 20, (*transform.attributes, isakmp.Attribute(11, value)))
    changed = isakmp.Proposal(1, proposal.protocol_id, proposal.spi, (odd,))
    (read,) = quickmode.read_creation(quickmode.creation((changed,), bytes(16))).offers
    assert not read.is_for(suite, Demands(Mode.TRANSPORT, Lifetime(600), esn=(False, True)))
