"""The etypes against the vectors of RFC 3961, RFC 3962 and RFC 8009 and a recorded exchange."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import LocalError, PeerError
from kinkd.kerberos import etypes
from kinkd.kerberos.keytab import read_keytab
from kinkd.kerberos.messages import Usage, read_ap_req, read_enc_ticket
from kinkd.keying.keymat import derive
from kinkd.model import Secret
from tests.support import recorded_kerberos as recorded

ALL = sorted(etypes.SUPPORTED)

# RFC 3961 A.1
N_FOLD = [
    (b"012345", "be072631276b1955"),
    (b"password", "78a07b6caf85fa"),
    (b"Rough Consensus, and Running Code", "bb6ed30870b7f0e0"),
    (b"password", "59e4a8ca7c0385c3c37b3f6d2000247cb6e6bd5b3e"),
    (
        b"MASSACHVSETTS INSTITVTE OF TECHNOLOGY",
        "db3b0d8f0b061e603282b308a50841229ad798fab9540c1b",
    ),
    (b"Q", "518a54a215a8452a518a54a215a8452a518a54a215"),
    (b"ba", "fb25d531ae8974499f52fd92ea9857c4ba24cf297e"),
    (b"kerberos", "6b65726265726f73"),
    (b"kerberos", "6b65726265726f737b9b5b2b93132b93"),
    (b"kerberos", "8372c236344e5f1550cd0747e15d62ca7a5a3bcea4"),
    (b"kerberos", "6b65726265726f737b9b5b2b93132b935c9bdcdad95c9899c4cae4dee6d6cae4"),
]

# RFC 3962 B: pass phrase, salt, iterations, 128-bit and 256-bit keys, which are
# DK(PBKDF2 output, "kerberos")
STRING_TO_KEY = [
    (
        b"password",
        b"ATHENA.MIT.EDUraeburn",
        1,
        "42263c6e89f4fc28b8df68ee09799f15",
        "fe697b52bc0d3ce14432ba036a92e65bbb52280990a2fa27883998d72af30161",
    ),
    (
        b"password",
        b"ATHENA.MIT.EDUraeburn",
        2,
        "c651bf29e2300ac27fa469d693bdda13",
        "a2e16d16b36069c135d5e9d2e25f896102685618b95914b467c67622225824ff",
    ),
    (
        b"password",
        b"ATHENA.MIT.EDUraeburn",
        1200,
        "4c01cd46d632d01e6dbe230a01ed642a",
        "55a6ac740ad17b4846941051e1e8b0a7548d93b0ab30a8bc3ff16280382b8c2a",
    ),
    (
        b"password",
        bytes.fromhex("1234567878563412"),
        5,
        "e9b23d52273747dd5c35cb55be619d8e",
        "97a4e786be20d81a382d5ebc96d5909cabcdadc87ca48f574504159f16c36e31",
    ),
    (
        b"X" * 64,
        b"pass phrase equals block size",
        1200,
        "59d1bb789a828b1aa54ef9c2883f69ed",
        "89adee3608db8bc71f1bfbfe459486b05618b70cbae22092534e56c553ba4b34",
    ),
    (
        b"X" * 65,
        b"pass phrase exceeds block size",
        1200,
        "cb8005dc5f90179a7f02104c0018751d",
        "d78c5c9cb872a8c9dad4697f0bb5b2d21496c82beb2caeda2112fceea057401b",
    ),
    (
        bytes.fromhex("f09d849e"),
        b"EXAMPLE.COMpianist",
        50,
        "f149c1f2e154a73452d43e7fe62a56e5",
        "4b6d9839f84406df1f09cc166db4b83c571848b784a3d6bdc346589a3e393f9e",
    ),
]

# RFC 3962 B: ciphertext stealing
CTS_KEY = b"chicken teriyaki"
CTS_PLAIN = b"I would like the General Gau's Chicken, please, and wonton soup."
CTS = {
    17: "c6353568f2bf8cb4d8a580362da7ff7f97",
    31: "fc00783e0efdb2c1d445d4c8eff7ed2297687268d6ecccc0c07b25e25ecfe5",
    32: "39312523a78662d5be7fcbcc98ebf5a897687268d6ecccc0c07b25e25ecfe584",
    47: "97687268d6ecccc0c07b25e25ecfe584b3fffd940c16a18c1b5549d2f838029e"
    "39312523a78662d5be7fcbcc98ebf5",
    48: "97687268d6ecccc0c07b25e25ecfe5849dad8bbb96c4cdc03bc103e1a194bbd8"
    "39312523a78662d5be7fcbcc98ebf5a8",
    64: "97687268d6ecccc0c07b25e25ecfe58439312523a78662d5be7fcbcc98ebf5a8"
    "4807efe836ee89a526730dbc2f7bc8409dad8bbb96c4cdc03bc103e1a194bbd8",
}

# RFC 8009 A
SHA2_KEYS = {
    19: bytes.fromhex("3705d96080c17728a0e800eab6e0d23c"),
    20: bytes.fromhex("6d404d37faf79f9df0d33568d320669800eb4836472ea8a026d16b7182460c52"),
}
SHA2_DERIVED = [
    (19, 0x99, "b31a018a48f54776f403e9a396325dc3"),
    (19, 0xAA, "9b197dd1e8c5609d6e67c3e37c62c72e"),
    (19, 0x55, "9fda0e56ab2d85e1569a688696c26a6c"),
    (20, 0x99, "ef5718be86cc84963d8bbb5031e9f5c4ba41f28faf69e73d"),
    (20, 0xAA, "56ab22bee63d82d7bc5227f6773f8ea7a5eb1c825160c38312980c442e5c7e49"),
    (20, 0x55, "69b16514e3cd8e56b82010d5c73012b622c4d00ffc23ed1f"),
]
SHA2_ENCRYPTED = [
    (
        19,
        "",
        "7e5895eaf2672435bad817f545a37148",
        "ef85fb890bb8472f4dab20394dca781dad877eda39d50c870c0d5a0a8e48c718",
    ),
    (
        19,
        "000102030405",
        "7bca285e2fd4130fb55b1a5c83bc5b24",
        "84d7f30754ed987bab0bf3506beb09cfb55402cef7e6877ce99e247e52d16ed4421dfdf8976c",
    ),
    (
        19,
        "000102030405060708090a0b0c0d0e0f",
        "56ab21713ff62c0a1457200f6fa9948f",
        "3517d640f50ddc8ad3628722b3569d2ae07493fa8263254080ea65c1008e8fc295fb4852e7d83e1e7c48c37eebe6b0d3",
    ),
    (
        19,
        "000102030405060708090a0b0c0d0e0f1011121314",
        "a7a4e29a4728ce10664fb64e49ad3fac",
        "720f73b18d9859cd6ccb4346115cd336c70f58edc0c4437c5573544c31c813bce1e6d072c186b39a413c2f92ca9b8334a287ffcbfc",
    ),
    (
        20,
        "",
        "f764e9fa15c276478b2c7d0c4e5f58e4",
        "41f53fa5bfe7026d91faf9be959195a058707273a96a40f0a01960621ac612748b9bbfbe7eb4ce3c",
    ),
    (
        20,
        "000102030405",
        "b80d3251c1f6471494256ffe712d0b9a",
        "4ed7b37c2bcac8f74f23c1cf07e62bc7b75fb3f637b9f559c7f664f69eab7b6092237526ea0d1f61cb20d69d10f2",
    ),
    (
        20,
        "000102030405060708090a0b0c0d0e0f",
        "53bf8a0d105265d4e276428624ce5e63",
        "bc47ffec7998eb91e8115cf8d19dac4bbbe2e163e87dd37f49beca92027764f68cf51f14d798c2273f35df574d1f932e40c4ff255b36a266",
    ),
    (
        20,
        "000102030405060708090a0b0c0d0e0f1011121314",
        "763e65367e864f02f55153c7e3b58af1",
        "40013e2df58e8751957d2878bcd2d6fe101ccfd556cb1eae79db3c3ee86429f2b2a602ac86fef6ecb647d6295fae077a1feb517508d2c16b4192e01f62",
    ),
]

# What two other implementations agreed on: session key, nonce, SPI, KEYMAT as their kernels
# had it (PRF of 20 octets), and KEYMAT with libkrb5's PRF of 16 octets.
AGREED = [
    (
        "esp2way",
        18,
        "d4ddbbf132a9e4a524d13f1a4942e212ec07a21bd23ff5877d8937fbc14e200c",
        "600b1e5723360ef9a24a39064a92297c",
        "0d7d4993",
        "097944bf966243da19dd329d98ed4f5157999253fa3a2b54d4b4de075144c1d2f6c94b5a",
        "5799925314ecf47d55313ace389d70bc1efe9047302ce5b44adcae98e3a7611924bcc388",
    ),
    (
        "esp2way-etype17",
        17,
        "4c83b950d79bf058975be6f7ec552cfe",
        "7f85335753ef70df22ab4e5209d829c0",
        "05ac0a31",
        "9794780174396f6d7ed7a9432ab2090cebad32724d4d2609302d3c1e3b4955c773b07155",
        "ebad32729fb41a32f338c83bb1b03f63f5bb733ab35efc157087e7c86474d4f661c927f6",
    ),
]


@pytest.mark.parametrize(("text", "folded"), N_FOLD)
def test_n_fold_gives_the_vectors_of_rfc_3961(text: bytes, folded: str) -> None:
    assert etypes.n_fold(text, len(folded) // 2).hex() == folded


@pytest.mark.parametrize(("phrase", "salt", "iterations", "short", "long"), STRING_TO_KEY)
def test_derived_keys_are_those_of_rfc_3962_string_to_key(
    phrase: bytes, salt: bytes, iterations: int, short: str, long: str
) -> None:
    for etype, expected in ((17, short), (18, long)):
        size = len(expected) // 2
        base = hashlib.pbkdf2_hmac("sha1", phrase, salt, iterations, size)
        assert etypes.key(etype, base)._derived(b"kerberos", size).value.hex() == expected


@pytest.mark.parametrize("length", CTS)
def test_ciphertext_stealing_gives_the_vectors_of_rfc_3962(length: int) -> None:
    aes = etypes._AesCts(Secret(CTS_KEY))
    cipher = bytes.fromhex(CTS[length])
    assert aes.encrypt(CTS_PLAIN[:length]) == cipher
    assert aes.decrypt(cipher) == CTS_PLAIN[:length]


@pytest.mark.parametrize(("etype", "kind", "expected"), SHA2_DERIVED)
def test_derived_keys_are_those_of_rfc_8009(etype: int, kind: int, expected: str) -> None:
    derived = etypes.key(etype, SHA2_KEYS[etype])._derive(2, kind, len(expected) // 2)
    assert derived.value.hex() == expected


@pytest.mark.parametrize(("etype", "plain", "confounder", "cipher"), SHA2_ENCRYPTED)
def test_encryption_gives_the_vectors_of_rfc_8009(
    etype: int, plain: str, confounder: str, cipher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = etypes.key(etype, SHA2_KEYS[etype])
    monkeypatch.setattr(etypes.os, "urandom", lambda count: bytes.fromhex(confounder)[:count])
    assert key.encrypt(2, bytes.fromhex(plain)).hex() == cipher
    assert key.decrypt(2, bytes.fromhex(cipher)).hex() == plain


@pytest.mark.parametrize(
    ("etype", "checksum"),
    [
        (19, "d78367186643d67b411cba9139fc1dee"),
        (20, "45ee791567eefca37f4ac1e0222de80d43c3bfa06699672a"),
    ],
)
def test_checksums_are_those_of_rfc_8009(etype: int, checksum: str) -> None:
    key = etypes.key(etype, SHA2_KEYS[etype])
    assert key.checksum(2, bytes(range(21))).hex() == checksum
    assert key.checksum_octets == len(checksum) // 2


@pytest.mark.parametrize(
    ("etype", "output"),
    [
        (19, "9d188616f63852fe86915bb840b4a886ff3e6bb0f819b49b893393d393854295"),
        (
            20,
            "9801f69a368c2bf675e59521e177d9a07f67efe1cfde8d3c8d6f6a0256e3b17d"
            "b3c1b62ad1b8553360d17367eb1514d2",
        ),
    ],
)
def test_prf_gives_the_vectors_of_rfc_8009(etype: int, output: str) -> None:
    assert etypes.key(etype, SHA2_KEYS[etype]).prf(b"test").hex() == output


@pytest.mark.rfc("4430-5-4")
@pytest.mark.parametrize(("name", "etype", "octets", "nonce", "spi", "keymat", "_other"), AGREED)
def test_prf_of_20_octets_gives_the_keys_the_other_implementation_used(
    name: str, etype: int, octets: str, nonce: str, spi: str, keymat: str, _other: str
) -> None:
    key = etypes.key(etype, bytes.fromhex(octets))
    found = derive(key.prf, 3, bytes.fromhex(spi), bytes.fromhex(nonce), octets=36)
    assert found.value.hex() == keymat


@pytest.mark.parametrize(("name", "etype", "octets", "nonce", "spi", "_keymat", "other"), AGREED)
def test_prf_of_libkrb5_is_told_apart(
    name: str, etype: int, octets: str, nonce: str, spi: str, _keymat: str, other: str
) -> None:
    """krb5_c_prf encrypts 16 octets of the hash; our last 4 octets are its first 4."""
    key = etypes.key(etype, bytes.fromhex(octets))
    derived = key._derived(b"prf", len(octets) // 2)

    def prf16(data: bytes) -> bytes:
        aes = Cipher(algorithms.AES(derived.value), modes.ECB()).encryptor()
        return aes.update(hashlib.sha1(data).digest()[:16])

    found = derive(prf16, 3, bytes.fromhex(spi), bytes.fromhex(nonce), octets=36)
    assert found.value.hex() == other
    assert key.prf(b"any")[16:] == prf16(b"any")[:4]


@pytest.mark.rfc("4430-4-12")
@pytest.mark.parametrize(("name", "etype", "octets", "nonce"), [each[:4] for each in AGREED])
def test_recorded_checksums_and_ciphertexts_verify(
    name: str, etype: int, octets: str, nonce: str
) -> None:
    key = etypes.key(etype, bytes.fromhex(octets))
    for message in recorded.exchange(name):
        assert key.verify(40, message.signed, message.checksum)
        assert not key.verify(40, message.signed + b"\0", message.checksum)
        assert key.decrypt(39, message.cipher)[0] == 6  # InnerNextPload: KINK_ISAKMP
    assert bytes.fromhex(nonce) in key.decrypt(39, recorded.exchange(name)[0].cipher)


@pytest.mark.parametrize(("name", "etype", "octets"), [each[:3] for each in AGREED])
def test_recorded_tickets_hold_the_session_key(name: str, etype: int, octets: str) -> None:
    ticket = read_ap_req(recorded.exchange(name)[0].kerberos).ticket
    for entry in read_keytab(recorded.keytab(name)):
        if entry.principal == ticket.sname and entry.etype == ticket.etype:
            plain = etypes.key(entry.etype, entry.key).decrypt(Usage.TICKET, ticket.cipher)
            part = read_enc_ticket(plain)
            assert (part.session_etype, part.session_key.value.hex()) == (etype, octets)
            return
    pytest.fail("the keytab lacks the service")


@given(st.sampled_from(ALL), st.binary(max_size=200), st.integers(0, 1024))
def test_what_is_encrypted_decrypts_to_itself(etype: int, plain: bytes, usage: int) -> None:
    key = etypes.random_key(etype)
    cipher = key.encrypt(usage, plain)
    assert key.decrypt(usage, cipher) == plain
    assert len(cipher) == 16 + len(plain) + key.checksum_octets


@given(st.sampled_from(ALL), st.binary(min_size=1, max_size=80), st.data())
def test_one_changed_bit_is_noticed(etype: int, plain: bytes, data: st.DataObject) -> None:
    key = etypes.random_key(etype)
    cipher = bytearray(key.encrypt(39, plain))
    checksum = bytearray(key.checksum(40, plain))
    bit = data.draw(st.integers(0, len(cipher) * 8 - 1))
    cipher[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PeerError, match="bad-integrity"):
        key.decrypt(39, bytes(cipher))
    checksum[bit // 8 % len(checksum)] ^= 1 << bit % 8
    assert not key.verify(40, plain, bytes(checksum))


@pytest.mark.parametrize("etype", ALL)
def test_another_usage_or_too_few_octets_do_not_decrypt(etype: int) -> None:
    key = etypes.random_key(etype)
    cipher = key.encrypt(39, b"plain")
    for usage, octets in ((40, cipher), (39, cipher[:-1]), (39, cipher[:20]), (39, b"")):
        with pytest.raises(PeerError, match="bad-integrity"):
            key.decrypt(usage, octets)
    assert not key.verify(40, b"plain", key.checksum(40, b"plain")[:-1])
    assert not key.verify(40, b"plain", key.checksum(39, b"plain"))


@pytest.mark.parametrize("etype", ALL)
def test_a_wiped_key_holds_no_octets_and_refuses_to_work(etype: int) -> None:
    key = etypes.random_key(etype)
    cipher = key.encrypt(39, b"plain")
    key.checksum(40, b"")
    key.prf(b"")
    derived = [key._sealing[39][0].secret, key._sealing[39][1], key._checking[40]]
    key.wipe()
    assert not any(any(secret.value) for secret in derived)
    assert len(key.secret) == 0
    for use in (
        lambda: key.encrypt(39, b""),
        lambda: key.decrypt(39, cipher),
        lambda: key.checksum(40, b""),
        lambda: key.prf(b""),
    ):
        with pytest.raises(LocalError, match="wiped"):
            use()


@pytest.mark.parametrize("etype", ALL)
def test_repr_shows_the_etype_and_no_octets(etype: int) -> None:
    key = etypes.key(etype, b"\xa5" * (32 if etype in (18, 20) else 16))
    assert repr(key) == f"<Kerberos key of {etypes.NAMES[etype]}>"


@pytest.mark.parametrize(("etype", "length"), [(23, 16), (3, 8), (0, 0), (17, 32), (20, 16)])
def test_other_etypes_and_lengths_are_refused(etype: int, length: int) -> None:
    with pytest.raises(LocalError):
        etypes.key(etype, bytes(length))


def test_the_checksum_mechanism_is_the_one_the_etype_requires() -> None:
    found = {etype: etypes.random_key(etype).checksum_type for etype in ALL}
    assert found == {17: 15, 18: 16, 19: 19, 20: 20}


@pytest.mark.rfc("4430-4-13")
def test_every_checksum_type_that_is_used_is_keyed() -> None:
    assert set(etypes.SUPPORTED) == {17, 18, 19, 20}
    for etype in etypes.SUPPORTED:
        one, other = etypes.random_key(etype), etypes.random_key(etype)
        checksum = one.checksum(40, b"message")
        assert one.verify(40, b"message", checksum)
        assert not other.verify(40, b"message", checksum)
