"""The daemon's configuration, the trust in its files, and what ``kinkd check`` says."""

from __future__ import annotations

import os
import re
import socket
import struct
from ipaddress import ip_network
from pathlib import Path

import pytest

from kinkd.app import config
from kinkd.app.check import check, not_forwarded
from kinkd.errors import DocumentError
from kinkd.model import Direction, SpdEntry
from kinkd.policy import sources
from kinkd.policy.traffic import NO_PORT

ROOT = Path(__file__).resolve().parents[2]
POLICY = ROOT / "tests" / "data" / "policy.toml"


def write(directory: Path, text: str, policy: str | None = None) -> Path:
    path = directory / "kinkd.toml"
    path.write_text(text)
    (directory / "policy.toml").write_text(POLICY.read_text() if policy is None else policy)
    for file in directory.iterdir():
        file.chmod(0o644)
    return path


def counted(text: bytes) -> bytes:
    return struct.pack(">H", len(text)) + text


def keytab(path: Path, *components: bytes) -> None:
    entry = struct.pack(">H", len(components)) + counted(b"EXAMPLE.TEST")
    entry += b"".join(map(counted, components)) + struct.pack(">IIBH", 1, 0, 3, 18)
    entry += counted(bytes(32))
    path.write_bytes(b"\x05\x02" + struct.pack(">i", len(entry)) + entry)


def test_an_empty_configuration_means_the_defaults(tmp_path: Path) -> None:
    found = config.load(write(tmp_path, ""))
    assert found.host is None
    assert found.keytab == Path("/etc/kinkd/kinkd.keytab")
    assert found.policy_file == tmp_path / "policy.toml"
    assert found.state_directory == Path("/var/lib/kinkd")
    assert found.control_socket == Path("/run/kinkd/control.sock")
    assert found.reqids == range(0x4B000000, 0x4B010000)
    assert found.priorities == range(1_000_000, 2_000_000)
    assert (found.log_level, found.log_format, found.servers) == ("warning", "text", ())


def test_the_configuration_we_ship_says_what_the_defaults_are(tmp_path: Path) -> None:
    shipped = (ROOT / "conf" / "kinkd.toml").read_text()
    bare = config.load(write(tmp_path, shipped))
    assert bare == config.load(write(tmp_path, ""))
    lines = []
    for line in shipped.splitlines():
        text = line.removeprefix("# ")
        is_default = text != line and " = " in text and text.split(" = ")[0].isidentifier()
        lines.append(text if is_default and not text.startswith(("name", "krb5_config")) else line)
    written = config.load(write(tmp_path, "\n".join(lines)))
    assert written == bare


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[kerberos]\nkeytabs = 1\n", "kinkd.toml:2: kerberos.keytabs: unknown key; did you mean"),
        ("[log]\n\nlevel = 'loud'\n", 'kinkd.toml:3: log.level: "loud" is unknown'),
        ("[kernel]\nreqid_base = 0\n", "kinkd.toml:2: kernel.reqid_base: 0 is out of range"),
        ("[kernel]\nreqid_base = 0xFFFFFFFF\n", "out of range"),
        ("[exempt]\nkdc = ['kdc.test']\n", "is not an IP address"),
        ("[exempt]\ndns = ['127.0.0.53']\n", "127.0.0.53 is loopback"),
        ("[kerberos]\nkeytab = 'FILE:/k'\n", "without a type"),
        (f"[control]\nsocket = '/{'x' * 107}'\n", "107 octets at most"),
        ("[host]\nname = 'alcie'\n", 'kinkd.toml:2: host.name: "alcie" is no host of'),
        ("host = 1\n", "kinkd.toml:1: host: 1 is not a table; write [host]"),
    ],
)
def test_a_bad_configuration_is_one_line_and_exit_2(
    tmp_path: Path, text: str, message: str
) -> None:
    status, line = check(write(tmp_path, text))
    assert status == 2
    assert message in line
    assert "\n" not in line


def test_this_machine_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "bob")
    monkeypatch.setattr(socket, "getfqdn", lambda: pytest.fail("a resolver was asked"))
    assert config.resolve_policy(config.load(write(tmp_path, ""))).me.name == "bob"


def test_a_machine_that_no_host_is_named_like_is_told_what_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "alce")
    monkeypatch.setattr(socket, "getfqdn", lambda: "alce.test")
    status, line = check(write(tmp_path, ""))
    assert status == 2
    assert 'write name = "..." under [host]: did you mean "alice"?' in line


def is_out(entry: SpdEntry) -> bool:
    return entry.direction is Direction.OUT


def test_exempted_servers_reach_the_policy(tmp_path: Path) -> None:
    text = "[host]\nname = 'alice'\n[exempt]\nkdc = ['192.0.2.99']\n"
    policy = config.resolve_policy(config.load(write(tmp_path, text)))
    exempt = [e for e in policy.entries if "192.0.2.99/32" in str(e.selector)]
    assert {
        (e.selector.protocol, e.selector.destination_port.port) for e in exempt if is_out(e)
    } == {(protocol, port) for protocol in (6, 17) for port in (88, 464)}
    # A connection without a port so far has no answers.
    asked = {e.selector for e in exempt if is_out(e) and e.selector.source_port != NO_PORT}
    assert {e.selector.reversed() for e in exempt if not is_out(e)} == asked
    assert all(selector.source_port.port >= 1024 for selector in asked)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_policy_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    path = write(tmp_path, "[host]\nname = 'alice'\n")
    (tmp_path / "policy.toml").chmod(mode)
    assert check(path) == (
        2,
        f"kinkd: {tmp_path}/policy.toml: others can write it (mode {mode:04o}); chmod go-w",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_policy_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text("")
    os.chown(path, 4711, -1)
    with pytest.raises(DocumentError, match="owned by uid 4711"):
        sources.read_trusted(str(path))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "missing"):
        with pytest.raises(DocumentError):
            sources.read_trusted(str(path))


def test_check_says_what_would_apply(tmp_path: Path) -> None:
    path = write(tmp_path, "[host]\nname = 'alice'\n[kerberos]\nkeytab = 'k'\n")
    keytab(tmp_path / "k", b"kink", b"alice.example.test")
    status, text = check(path)
    assert status == 0
    for words in (
        "this host      alice",
        "kink/alice.example.test@EXAMPLE.TEST, kvno 3, etype 18",
        "bob: ESP required, by rule 'everyone else'",
        "between      2001:db8::10 and 2001:db8::11, reqid 0x4b00",
        "profile      cbc: aes256-sha256, aes128-sha256; a new SA after 28800 s",
        "secrecy      forward, by ecp256",
        "printer: clear, by rule 'the printer knows no IPsec'",
        "out ::/0 -> ::/0 icmpv6 type 135: clear",
        "in  0.0.0.0/0 port 910 -> 192.0.2.10/32 port 910 udp: clear",
        "out 192.0.2.10/32 -> 192.0.2.11/32 any: require reqid 0x4b00",
    ):
        assert words in text


def test_check_says_what_goes_through_a_tunnel(tmp_path: Path) -> None:
    path = write(tmp_path, "[host]\nname = 'branch'\n[kerberos]\nkeytab = 'k'\n")
    keytab(tmp_path / "k", b"kink", b"gw.branch.example.test")
    status, text = check(path)
    assert status == 0
    for words in (
        "networks     10.20.0.0/16, 2001:db8:20::/48",
        "cloud: ESP required, by rule 'site to site'",
        "tunnels: aes256gcm16, chacha20poly1305; ESN where the peer has it; a new SA after 3600 s",
        "secrecy      forward, by ecp384 or ecp256",
        "tunnel from 198.51.100.1 to 203.0.113.1, in UDP of port 4500 at both ends",
        "between      10.20.0.0/16 and 10.30.0.0/16, reqid 0x4b00",
        "between      2001:db8:20::/48 and 2001:db8:30::/48, reqid 0x4b00",
    ):
        assert words in text
    require = re.compile(
        r"fwd 10\.30\.0\.0/16 -> 10\.20\.0\.0/16 any: require reqid 0x4b00[0-9a-f]{4},"
        r" tunnel from 203\.0\.113\.1 to 198\.51\.100\.1$",
        re.M,
    )
    assert require.search(text)


@pytest.mark.parametrize(
    ("group", "words"),
    [
        ('"none"', "NOT forward: a stolen Kerberos key opens recorded traffic"),
        ('["ecp256", "none"]', "forward, by ecp256, without where a peer cannot"),
        ('["none", "ecp256"]', "NOT forward, but by ecp256 where a peer insists"),
    ],
)
def test_check_puts_forward_secrecy_into_words(tmp_path: Path, group: str, words: str) -> None:
    policy = POLICY.read_text().replace('group = "ecp384"', f"group = {group}")
    path = write(tmp_path, "[host]\nname = 'alice'\n[kerberos]\nkeytab = 'k'\n", policy)
    keytab(tmp_path / "k", b"kink", b"alice.example.test")
    assert f"secrecy      {words}" in check(path)[1]


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "warned"),
    [
        ("1", "1", []),
        ("0", "1", ["net.ipv4.ip_forward = 1"]),
        ("1", None, ["net.ipv6.conf.all.forwarding = 1"]),
    ],
)
def test_a_gateway_that_does_not_forward_is_warned_of(
    tmp_path: Path, ipv4: str, ipv6: str | None, warned: list[str]
) -> None:
    (tmp_path / "net" / "ipv4").mkdir(parents=True)
    (tmp_path / "net" / "ipv4" / "ip_forward").write_text(f"{ipv4}\n")
    if ipv6 is not None:
        (tmp_path / "net" / "ipv6" / "conf" / "all").mkdir(parents=True)
        (tmp_path / "net" / "ipv6" / "conf" / "all" / "forwarding").write_text(f"{ipv6}\n")
    networks = (ip_network("10.1.0.0/16"), ip_network("2001:db8:1::/48"))
    warnings = list(not_forwarded(networks, tmp_path))
    assert [warning.partition("; ")[2] for warning in warnings] == warned
    assert list(not_forwarded((), tmp_path)) == []


PERSON = """
schema = 1
version = 1
realm = "EXAMPLE.TEST"
[hosts.laptop]
user = "jane"
addresses = ["192.0.2.50"]
[hosts.alice]
fqdn = "alice.example.test"
addresses = ["192.0.2.10"]
[[rules]]
name = "all"
from = "all"
to = "all"
action = "require"
"""


@pytest.mark.parametrize(
    "ccache",
    [
        "FILE:/run/user/1000/krb5cc",
        "DIR:/c",
        "KCM:",
        "KCM:1000",
        "KEYRING:persistent:1000",
        "default",
    ],
)
def test_a_person_needs_a_credentials_cache_and_no_keytab(tmp_path: Path, ccache: str) -> None:
    text = f'[host]\nname = "laptop"\n[kerberos]\nccache = "{ccache}"\n'
    path = write(tmp_path, text, PERSON)
    found = config.load(path)
    assert (found.keytab, found.ccache) == (None, ccache)
    status, said = check(path)
    assert status == 0
    assert f"tickets        of the credentials cache {ccache}, jane@EXAMPLE.TEST's" in said
    assert "jane@EXAMPLE.TEST, user-to-user: it has a ticket-granting ticket and no key" in said
    assert "keytab" not in said
    assert "gone 600 s after its ticket's end" in said


@pytest.mark.parametrize(
    "ccache", ["", "jane", "MEMORY:x", "file:/x", "FILE:krb5cc", "DIR:", "/tmp/krb5cc"]
)
def test_what_is_no_credentials_cache_is_refused(tmp_path: Path, ccache: str) -> None:
    path = write(tmp_path, f'[kerberos]\nccache = "{ccache}"\n')
    with pytest.raises(DocumentError, match=r"kinkd\.toml:2: kerberos\.ccache: "):
        config.load(path)


def test_a_keytab_may_be_a_credential_of_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, '[kerberos]\nkeytab = "${CREDENTIALS_DIRECTORY}/kinkd.keytab"\n')
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    with pytest.raises(DocumentError, match="LoadCredential="):
        config.load(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/kinkd.service")
    assert config.load(path).keytab == Path("/run/credentials/kinkd.service/kinkd.keytab")


def test_a_keytab_that_everyone_may_read_is_warned_of(tmp_path: Path) -> None:
    text = f'[host]\nname = "alice"\n[kerberos]\nkeytab = "{tmp_path}/keytab"\n'
    path = write(tmp_path, text)
    keytab(tmp_path / "keytab", b"kink", b"alice.example.test")
    for mode, warned in ((0o644, True), (0o640, False)):
        (tmp_path / "keytab").chmod(mode)
        status, said = check(path)
        assert (status, "everyone on this machine may read" in said) == (0, warned)
    assert "etype 18 (aes256-cts-hmac-sha1-96)" in said


def test_check_refuses_a_keytab_without_a_key_of_this_host(tmp_path: Path) -> None:
    path = write(tmp_path, "[host]\nname = 'alice'\n[kerberos]\nkeytab = 'k'\n")
    status, line = check(path)
    assert (status, "cannot be read: No such file" in line) == (2, True)
    keytab(tmp_path / "k", b"kink", b"bob.example.test")
    status, line = check(path)
    assert status == 2
    assert "no key for kink/alice.example.test@EXAMPLE.TEST" in line
