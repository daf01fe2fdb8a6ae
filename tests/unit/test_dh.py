"""Diffie-Hellman groups: RFC 3526, RFC 5903 §8, RFC 7748 §6.1, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import warnings
from functools import cache

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.utils import CryptographyDeprecationWarning
from hypothesis import given, settings
from hypothesis import strategies as st

from kinkd.errors import LocalError, PeerError
from kinkd.keying.dh import (
    GROUPS,
    EcpPrivate,
    Ephemeral,
    Group,
    ModpPrivate,
    X25519Private,
    generate,
)
from kinkd.wire.numbers import NotifyType

with warnings.catch_warnings():
    warnings.simplefilter("ignore", CryptographyDeprecationWarning)
    from cryptography.hazmat.primitives.asymmetric.dh import (
        DHParameterNumbers,
        DHPrivateNumbers,
        DHPublicNumbers,
    )

# RFC 3526 §§3-7: the number, n, and the constant of the prime's formula.
MODP = {
    14: (2048, 124476),
    15: (3072, 1690314),
    16: (4096, 240904),
    17: (6144, 929484),
    18: (8192, 4743158),
}
CURVES = {19: ec.SECP256R1(), 20: ec.SECP384R1(), 21: ec.SECP521R1()}
P25519 = 2**255 - 19

# RFC 5903 §8: i, r, and the KE data and secret they give.
RFC5903 = {
    19: (
        "C88F01F5 10D9AC3F 70A292DA A2316DE5 44E9AAB8 AFE84049 C62A9C57 862D1433",
        "C6EF9C5D 78AE012A 011164AC B397CE20 88685D8F 06BF9BE0 B283AB46 476BEE53",
        "DAD0B653 94221CF9 B051E1FE CA5787D0 98DFE637 FC90B9EF 945D0C37 72581180"
        "5271A046 1CDB8252 D61F1C45 6FA3E59A B1F45B33 ACCF5F58 389E0577 B8990BB3",
        "D12DFB52 89C8D4F8 1208B702 70398C34 2296970A 0BCCB74C 736FC755 4494BF63"
        "56FBF3CA 366CC23E 8157854C 13C58D6A AC23F046 ADA30F83 53E74F33 039872AB",
        "D6840F6B 42F6EDAF D13116E0 E1256520 2FEF8E9E CE7DCE03 812464D0 4B9442DE",
    ),
    20: (
        "099F3C70 34D4A2C6 99884D73 A375A67F 7624EF7C 6B3C0F16 0647B674 14DCE655"
        "E35B5380 41E649EE 3FAEF896 783AB194",
        "41CB0779 B4BDB85D 47846725 FBEC3C94 30FAB46C C8DC5060 855CC9BD A0AA2942"
        "E0308312 916B8ED2 960E4BD5 5A7448FC",
        "667842D7 D180AC2C DE6F74F3 7551F557 55C7645C 20EF73E3 1634FE72 B4C55EE6"
        "DE3AC808 ACB4BDB4 C88732AE E95F41AA 9482ED1F C0EEB9CA FC498462 5CCFC23F"
        "65032149 E0E144AD A0241815 35A0F38E EB9FCFF3 C2C947DA E69B4C63 4573A81C",
        "E558DBEF 53EECDE3 D3FCCFC1 AEA08A89 A987475D 12FD950D 83CFA417 32BC509D"
        "0D1AC43A 0336DEF9 6FDA41D0 774A3571 DCFBEC7A ACF31964 72169E83 8430367F"
        "66EEBE3C 6E70C416 DD5F0C68 759DD1FF F83FA401 42209DFF 5EAAD96D B9E6386C",
        "11187331 C279962D 93D60424 3FD592CB 9D0A926F 422E4718 7521287E 7156C5C4"
        "D6031355 69B9E9D0 9CF5D4A2 70F59746",
    ),
    21: (
        "0037ADE9 319A89F4 DABDB3EF 411AACCC A5123C61 ACAB57B5 393DCE47 608172A0"
        "95AA85A3 0FE1C295 2C6771D9 37BA9777 F5957B26 39BAB072 462F68C2 7A57382D 4A52",
        "0145BA99 A847AF43 793FDD0E 872E7CDF A16BE30F DC780F97 BCCC3F07 8380201E"
        "9C677D60 0B343757 A3BDBF2A 3163E4C2 F869CCA7 458AA4A4 EFFC311F 5CB15168 5EB9",
        "0015417E 84DBF28C 0AD3C278 713349DC 7DF153C8 97A1891B D98BAB43 57C9ECBE"
        "E1E3BF42 E00B8E38 0AEAE57C 2D107564 94188594 2AF5A7F4 601723C4 195D176C ED3E"
        "017CAE20 B6641D2E EB695786 D8C94614 6239D099 E18E1D5A 514C739D 7CB4A10A"
        "D8A78801 5AC405D7 799DC75E 7B7D5B6C F2261A6A 7F150743 8BF01BEB 6CA3926F 9582",
        "00D0B397 5AC4B799 F5BEA16D 5E13E9AF 971D5E9B 984C9F39 728B5E57 39735A21"
        "9B97C356 436ADC6E 95BB0352 F6BE64A6 C2912D4E F2D0433C ED2B6171 640012D9 460F"
        "015C6822 6383956E 3BD066E7 97B623C2 7CE0EAC2 F551A10C 2C724D98 52077B87"
        "220B6536 C5C408A1 D2AEBB8E 86D678AE 49CB5709 1F473229 6579AB44 FCD17F0F C56A",
        "01144C7D 79AE6956 BC8EDB8E 7C787C45 21CB086F A64407F9 7894E5E6 B2D79B04"
        "D1427E73 CA4BAA24 0A347868 59810C06 B3C715A3 A8CC3151 F2BEE417 996D19F3 DDEA",
    ),
}


def ids(group: Group) -> str:
    return group.name


every_group = pytest.mark.parametrize("group", GROUPS.values(), ids=ids)
every_modp = pytest.mark.parametrize("group", [GROUPS[n] for n in MODP], ids=ids)
every_ecp = pytest.mark.parametrize("group", [GROUPS[n] for n in CURVES], ids=ids)


def floor_of_pi_shifted(bits: int) -> int:
    """[2^bits pi] by Machin's formula, with 64 bits to spare."""
    one = 1 << bits + 64

    def arctan_of_inverse(x: int) -> int:
        term = total = one // x
        for divisor in range(3, bits + 64, 2):
            term //= -x * x
            total += term // divisor
        return total

    return 4 * (4 * arctan_of_inverse(5) - arctan_of_inverse(239)) >> 64


@cache
def prime_of(group: Group) -> int:
    n, constant = MODP[group.number]
    return 2**n - 2 ** (n - 64) - 1 + 2**64 * (floor_of_pi_shifted(n - 130) + constant)


def modp_with(group: Group, x: int) -> Ephemeral:
    numbers = DHParameterNumbers(prime_of(group), 2)
    public = DHPublicNumbers(pow(2, x, numbers.p), numbers)
    return Ephemeral(group, ModpPrivate(DHPrivateNumbers(x, public).private_key()))


def ecp_with(group: Group, x: int) -> Ephemeral:
    return Ephemeral(group, EcpPrivate(ec.derive_private_key(x, CURVES[group.number])))


def x25519_with(octets: bytes) -> Ephemeral:
    return Ephemeral(GROUPS[31], X25519Private(X25519PrivateKey.from_private_bytes(octets)))


def check(error: PeerError) -> None:
    assert error.reason == "bad-public-value"
    assert error.notify == NotifyType.PAYLOAD_MALFORMED == 16
    assert error.kink_error is None


def refusal(ephemeral: Ephemeral, peer_public: bytes) -> PeerError:
    with pytest.raises(PeerError) as caught:
        ephemeral.agree(peer_public)
    check(caught.value)
    return caught.value


# --- the groups are the ones of the RFCs


def test_the_digits_of_pi_are_right_before_they_are_relied_on() -> None:
    assert floor_of_pi_shifted(64) == 0x3_243F6A8885A308D3


def test_the_formula_gives_what_rfc_3526_section_3_writes_out() -> None:
    text = f"{prime_of(GROUPS[14]):X}"
    assert text.startswith("FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74")
    assert text.endswith("3995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF")


@every_modp
def test_the_generator_is_two_and_the_prime_that_of_rfc_3526(group: Group) -> None:
    ours = generate(group)
    numbers = ours._private._key.private_numbers()
    assert ours.public == pow(2, numbers.x, prime_of(group)).to_bytes(group.public_octets)
    assert numbers.public_numbers.parameter_numbers.p == prime_of(group)
    assert numbers.x.bit_length() > 200  # RFC 3526 §8 asks for about 220 bits at least


def test_the_table() -> None:
    assert {g.number: (g.name, g.public_octets, g.secret_octets) for g in GROUPS.values()} == {
        14: ("modp2048", 256, 256),
        15: ("modp3072", 384, 384),
        16: ("modp4096", 512, 512),
        17: ("modp6144", 768, 768),
        18: ("modp8192", 1024, 1024),
        19: ("ecp256", 64, 32),
        20: ("ecp384", 96, 48),
        21: ("ecp521", 132, 66),
        31: ("curve25519", 32, 32),
    }
    assert all(GROUPS[number].number == number for number in GROUPS)


# --- agreement


@pytest.mark.parametrize("number", RFC5903)
def test_the_vectors_of_rfc_5903(number: int) -> None:
    i, r, ke_i, ke_r, shared = (bytes.fromhex(text) for text in RFC5903[number])
    initiator = ecp_with(GROUPS[number], int.from_bytes(i))
    responder = ecp_with(GROUPS[number], int.from_bytes(r))
    assert (initiator.public, responder.public) == (ke_i, ke_r)
    assert initiator.agree(ke_r).value == shared
    assert responder.agree(ke_i).value == shared


def test_the_vector_of_rfc_7748() -> None:
    alice = x25519_with(
        bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    )
    bob = x25519_with(
        bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    )
    assert alice.public.hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert bob.public.hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert alice.agree(bob.public).value.hex() == shared
    assert bob.agree(alice.public).value.hex() == shared


@every_group
def test_two_fresh_values_agree_and_each_run_is_another(group: Group) -> None:
    secrets = []
    for _ in range(2):
        ours, theirs = generate(group), generate(group)
        assert ours.public != theirs.public
        assert len(ours.public) == len(theirs.public) == group.public_octets
        secret = ours.agree(theirs.public)
        assert len(secret) == group.secret_octets
        assert secret == theirs.agree(ours.public)
        secrets.append(secret)
    assert secrets[0] != secrets[1]


@every_modp
def test_a_secret_that_begins_with_zeros_keeps_them(group: Group) -> None:
    prime, x = prime_of(group), 2**200 + 1
    step = pow(2, x, prime)
    secret, y = step, 1
    while secret.bit_length() > prime.bit_length() - 8:  # one in 256 does
        secret, y = secret * step % prime, y + 1
    expected = secret.to_bytes(group.secret_octets)
    assert expected[0] == 0
    assert 2 < y < 5000
    ours, theirs = modp_with(group, x), modp_with(group, y)
    assert theirs.public == pow(2, y, prime).to_bytes(group.public_octets)  # padded too
    assert ours.agree(theirs.public).value == expected


@every_ecp
def test_a_coordinate_that_begins_with_zeros_keeps_them(group: Group) -> None:
    # Our private value is 1, so the secret is the x of the peer's point.
    curve = CURVES[group.number]
    limit = (1 << group.secret_octets * 8 - 8) // (256 if group.number == 21 else 1)
    for k in range(1, 5000):
        point = ec.derive_private_key(k, curve).public_key().public_numbers()
        if point.x < limit:
            break
    expected = point.x.to_bytes(group.secret_octets)
    assert expected[0] == 0
    theirs = ecp_with(group, k)
    assert theirs.public == expected + point.y.to_bytes(group.secret_octets)
    assert ecp_with(group, 1).agree(theirs.public).value == expected


# --- what a peer cannot make us agree with


@every_group
def test_a_public_value_of_another_length(group: Group) -> None:
    public = generate(group).public
    for wrong in (b"", public[1:], public[:-1], public + b"\0", b"\0" + public, b"\4" + public):
        error = refusal(generate(group), wrong)
        assert f"{len(wrong)} octets, not {group.public_octets}" in error.detail


@every_modp
def test_modp_values_outside_their_range(group: Group) -> None:
    prime, octets = prime_of(group), group.public_octets
    for bad in (0, 1, prime - 1, prime, prime + 1, prime + 2, 2 ** (8 * octets) - 1):
        assert "2..p-2" in refusal(generate(group), bad.to_bytes(octets)).detail
    assert generate(group).agree((2).to_bytes(octets))
    try:  # p-2 is in range, but OpenSSL 3 looks at its order, too: that of no honest value
        assert generate(group).agree((prime - 2).to_bytes(octets))
    except PeerError as error:
        check(error)
        assert "2..p-2" not in error.detail  # noqa: PT017  # both are right


@every_ecp
def test_coordinates_of_the_field_and_no_others(group: Group) -> None:
    octets = group.secret_octets
    size = CURVES[group.number].key_size
    # The field primes of FIPS 186-4 appendix D.1.2.
    prime = {
        256: 2**256 - 2**224 + 2**192 + 2**96 - 1,
        384: 2**384 - 2**128 - 2**96 + 2**32 - 1,
        521: 2**521 - 1,
    }[size]
    public = generate(group).public
    x, y = int.from_bytes(public[:octets]), int.from_bytes(public[octets:])
    negated = (prime - y).to_bytes(octets)
    assert generate(group).agree(public[:octets] + negated)  # -P: the prime is this one
    for bad_x, bad_y in ((x, (y + 1) % prime), (0, 0), (prime, y), (x, prime), (y, x)):
        refusal(generate(group), bad_x.to_bytes(octets) + bad_y.to_bytes(octets))
    if size == 521:  # where every coordinate can be written a second time, above the prime
        for bad_x, bad_y in ((x + prime, y), (x, y + prime)):
            refusal(generate(group), bad_x.to_bytes(octets) + bad_y.to_bytes(octets))
    refusal(generate(group), bytes(2 * octets))
    refusal(generate(group), b"\xff" * (2 * octets))


# The points of small order and their other encodings (RFC 7748 §6.1): u = 0, 1, -1, two of order 8.
SMALL_ORDER = [
    *(u.to_bytes(32, "little") for u in (0, 1, P25519 - 1, P25519, P25519 + 1)),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


@pytest.mark.parametrize("point", SMALL_ORDER, ids=bytes.hex)
def test_points_of_small_order_are_refused(point: bytes) -> None:
    refusal(generate(GROUPS[31]), point)
    refusal(generate(GROUPS[31]), point[:-1] + bytes((point[-1] | 0x80,)))


def test_the_unused_bit_of_curve25519_is_ignored() -> None:
    octets = bytes(range(32))
    peer = generate(GROUPS[31]).public
    marked = peer[:-1] + bytes((peer[-1] | 0x80,))
    assert x25519_with(octets).agree(marked) == x25519_with(octets).agree(peer)


@pytest.mark.parametrize("group", [GROUPS[n] for n in (14, 19, 20, 21, 31)], ids=ids)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_octets_agree_or_are_refused_by_name(group: Group, data: st.DataObject) -> None:
    right = st.binary(min_size=group.public_octets, max_size=group.public_octets)
    octets = data.draw(right | st.binary(max_size=2 * group.public_octets))
    ephemeral = generate(group)
    try:
        secret = ephemeral.agree(octets)
    except PeerError as error:
        check(error)
    else:
        assert len(octets) == group.public_octets
        assert len(secret) == group.secret_octets
        assert any(secret.value)


@every_ecp
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_point_with_a_flipped_bit_is_off_the_curve(group: Group, data: st.DataObject) -> None:
    public = ecp_with(group, data.draw(st.integers(1, 2**250))).public
    bit = data.draw(st.integers(0, 8 * len(public) - 1))
    flipped = int.from_bytes(public) ^ 1 << bit
    refusal(generate(group), flipped.to_bytes(len(public)))


# --- a private value serves once, and leaves nothing behind


@every_group
def test_a_private_value_agrees_once(group: Group) -> None:
    ours, peer = generate(group), generate(group).public
    public = ours.public
    ours.agree(peer)
    for value in (peer, generate(group).public, b""):
        with pytest.raises(LocalError, match="used up"):
            ours.agree(value)
    assert ours.public == public  # it may have to be sent again


@every_group
def test_a_refused_peer_gets_no_second_try(group: Group) -> None:
    for bad in (b"", b"\0" * group.public_octets):
        ours = generate(group)
        refusal(ours, bad)
        with pytest.raises(LocalError, match="used up"):
            ours.agree(generate(group).public)


def test_a_wiped_value_agrees_no_more() -> None:
    ours = generate(GROUPS[19])
    ours.wipe()
    ours.wipe()
    with pytest.raises(LocalError, match="used up"):
        ours.agree(generate(GROUPS[19]).public)


@pytest.mark.parametrize("end", ["agree", "wrong length", "no element", "wipe"])
def test_no_reference_to_the_private_value_is_left(end: str) -> None:
    """OpenSSL clears the private value with the last reference to its key."""
    key = X25519PrivateKey.generate()
    alone = sys.getrefcount(key)
    ours = Ephemeral(GROUPS[31], X25519Private(key))
    assert sys.getrefcount(key) > alone
    kept = None  # an error that someone holds on to holds no key
    if end == "agree":
        kept = ours.agree(generate(GROUPS[31]).public)
    elif end == "wrong length":
        kept = refusal(ours, b"")
    elif end == "no element":
        kept = refusal(ours, bytes(32))
    else:
        ours.wipe()
    assert sys.getrefcount(key) == alone
    del kept


@every_group
def test_every_private_value_is_fresh(group: Group) -> None:
    assert len({generate(group).public for _ in range(4)}) == 4


@every_group
def test_nothing_secret_shows_and_the_secret_can_be_wiped(group: Group) -> None:
    ours = generate(group)
    assert repr(ours) == f"<ephemeral value of {group.name}>"
    assert not hasattr(ours, "__dict__")
    secret = ours.agree(generate(group).public)
    assert repr(secret) == f"<secret of {group.secret_octets} octets>"
    secret.wipe()
    assert bytes(secret.value) == bytes(group.secret_octets)


# --- the library under it


def python(code: str) -> str:
    command = [sys.executable, "-B", "-W", "error", "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert not done.stderr
    return done.stdout.strip()


def test_no_group_warns_in_use() -> None:
    code = (
        "from kinkd.keying.dh import GROUPS, generate\n"
        "print([n for n in GROUPS if generate(GROUPS[n]).agree(generate(GROUPS[n]).public)])"
    )
    assert python(code) == "[14, 15, 16, 17, 18, 19, 20, 21, 31]"


def test_a_library_without_finite_fields_leaves_the_curves() -> None:
    code = (
        "import sys\n"
        "import cryptography.hazmat.primitives.serialization\n"
        "sys.modules['cryptography.hazmat.primitives.asymmetric.dh'] = None\n"
        "from kinkd.keying.dh import GROUPS\n"
        "print(list(GROUPS))"
    )
    assert python(code) == "[19, 20, 21, 31]"
