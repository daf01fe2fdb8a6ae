"""The table of ESP protections against the figures of the RFCs, and against the decoder's own."""

from __future__ import annotations

import pytest

from kinkd.decode.keys import key_lengths
from kinkd.exchange import quickmode
from kinkd.keying.algorithms import SUITES
from kinkd.model import Lifetime, Mode, Suite
from kinkd.wire import isakmp

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
}


def test_the_table_says_what_the_rfcs_say() -> None:
    found = {
        name: (
            suite.transform_id,
            suite.key_bits,
            suite.authentication_id,
            suite.encryption_octets,
            suite.authentication_octets,
            suite.icv_bits,
        )
        for name, suite in SUITES.items()
    }
    assert found == FIGURES


def test_no_two_suites_are_one_transform_on_the_wire() -> None:
    seen = {(s.transform_id, s.key_bits, s.authentication_id) for s in SUITES.values()}
    assert len(seen) == len(SUITES)


def test_every_suite_protects_integrity() -> None:
    for suite in SUITES.values():
        assert (suite.aead is None) == (suite.authentication_id is not None)
        assert bool(suite.aead) != bool(suite.encryption and suite.authentication)


@pytest.mark.parametrize("esn", [False, True])
@pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
def test_an_offer_reads_back_as_its_suite_alone(suite: Suite, esn: bool) -> None:
    proposal = quickmode.propose(suite, Mode.TRANSPORT, Lifetime(600), 0x2000, esn=esn)
    (offer,) = quickmode.read_creation(quickmode.creation((proposal,), bytes(16))).offers
    fitting = [
        (other.name, wide)
        for other in SUITES.values()
        for wide in (False, True)
        if offer.is_for(other, Mode.TRANSPORT, group=None, esn=wide)
    ]
    assert fitting == [(suite.name, esn)]
    lengths = key_lengths(proposal)
    assert lengths is not None
    wanted = (suite.encryption_octets, suite.authentication_octets)
    assert (lengths.encryption, lengths.authentication) == wanted


@pytest.mark.parametrize("value", [0, 2])
def test_another_value_of_the_esn_attribute_is_never_chosen(value: int) -> None:  # RFC 4304 §3
    suite = SUITES["aes256gcm16"]
    proposal = quickmode.propose(suite, Mode.TRANSPORT, Lifetime(600), 0x2000)
    (transform,) = proposal.transforms
    odd = isakmp.Transform(1, 20, (*transform.attributes, isakmp.Attribute(11, value)))
    changed = isakmp.Proposal(1, proposal.protocol_id, proposal.spi, (odd,))
    (offer,) = quickmode.read_creation(quickmode.creation((changed,), bytes(16))).offers
    for esn in (False, True):
        assert not offer.is_for(suite, Mode.TRANSPORT, group=None, esn=esn)
