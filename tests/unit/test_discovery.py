"""Servers that this host has to reach in clear, where its system has them written."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kinkd.app.discovery import client_ports, kdcs, resolvers
from kinkd.document import Document
from kinkd.errors import LocalError
from kinkd.kerberos import libkrb5
from kinkd.model import IPAddress
from kinkd.policy import reader, resolve
from kinkd.policy.realm import RealmPolicy

ROOT = Path(__file__).resolve().parents[2]
POLICY = """
schema = 1
version = 1
realm = "EXAMPLE.TEST"
[hosts.alice]
fqdn = "alice.example.test"
addresses = ["192.0.2.10", "2001:db8::10"]
[hosts.kdc]
fqdn = "kdc1.example.test"
addresses = ["192.0.2.88", "2001:db8::88"]
[[rules]]
name = "all"
from = "all"
to = "all"
action = "require"
"""


@pytest.fixture(scope="module")
def policy() -> RealmPolicy:
    return reader.read(Document.parse("policy", POLICY.encode()))


def dns(*words: str) -> list[tuple[str, IPAddress]]:
    return [("dns", ip_address(word)) for word in words]


def kdc(*words: str) -> list[tuple[str, IPAddress]]:
    return [("kdc", ip_address(word)) for word in words]


def is_a_servers_own(address: IPAddress) -> bool:
    kinds = (address.is_loopback, address.is_multicast, address.is_unspecified)
    return not any(kinds) and "%" not in str(address)


def resolve_with(policy: RealmPolicy, servers: list[tuple[str, IPAddress]]) -> None:
    """Whatever was found, there are entries for it, of one form each, that reach the server."""
    found = resolve.resolve(policy, "alice", resolve.Options(servers=tuple(servers)))
    assert len({entry.key for entry in found.entries}) == len(found.entries)
    mine = policy.hosts["alice"].addresses
    for _, address in servers:
        if address in mine:
            continue
        assert any(
            not entry.templates and not entry.block and entry.selector.destination[0] == address
            for entry in found.entries
        )


# --- resolv.conf --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", dns()),
        (b"nameserver 192.0.2.53\n", dns("192.0.2.53")),
        (
            b"nameserver\t192.0.2.53 \t # why\nnameserver 2001:db8::53",
            dns("192.0.2.53", "2001:db8::53"),
        ),
        (b"nameserver 192.0.2.53\r\n", dns("192.0.2.53")),
        (b"search a b\nnameserver 192.0.2.53\nnameserver 192.0.2.53\n", dns("192.0.2.53")),
        (b"#nameserver 192.0.2.1\n; nameserver 192.0.2.2\n nameserver 192.0.2.3\n", dns()),
        (b"nameserver\nnameserver \nnameserverx 192.0.2.1\nNAMESERVER 192.0.2.1\n", dns()),
        (b"nameserver a.example.test\nnameserver 192.0.2.256\nnameserver 192.0.2\n", dns()),
        (b"nameserver 127.0.0.53\nnameserver ::1\nnameserver 0.0.0.0\nnameserver ::\n", dns()),
        (b"nameserver fe80::1%eth0\nnameserver fe80::1\nnameserver 169.254.169.253\n", dns()),
        (b"nameserver 224.0.0.251\nnameserver ff02::fb\n", dns()),
        (b"nameserver 2001:db8::53%eth0\n", dns("2001:db8::53")),
        (b"nameserver ::ffff:192.0.2.53\nnameserver ::ffff:127.0.0.1\n", dns("192.0.2.53")),
        (b"# \x85nameserver 192.0.2.1\n# \x0cnameserver 192.0.2.2\n\xff\xfe\n", dns()),
        ("# \u2028nameserver 192.0.2.1\n".encode(), dns()),
        (b"nameserver 192.0.2.53\0\n", dns()),
    ],
)
def test_resolvers_are_those_that_the_c_library_asks(
    tmp_path: Path, text: bytes, found: list[tuple[str, IPAddress]]
) -> None:
    path = tmp_path / "resolv.conf"
    path.write_bytes(text)
    assert resolvers([path]) == found


def test_all_files_count_and_none_has_to_be_there(tmp_path: Path) -> None:
    one, other = tmp_path / "resolv.conf", tmp_path / "upstream"
    one.write_text("nameserver 127.0.0.53\nnameserver 192.0.2.1\n")
    other.write_text("nameserver 192.0.2.2\nnameserver 192.0.2.1\n")
    assert resolvers([one, other]) == dns("192.0.2.1", "192.0.2.2")
    assert resolvers([tmp_path / "none", other]) == dns("192.0.2.2", "192.0.2.1")
    assert resolvers([tmp_path, Path("/nul\0"), tmp_path / "none"]) == []


lines = st.one_of(
    st.binary(max_size=40),
    st.builds(
        lambda word, gap, address, rest: f"{word}{gap}{address}{rest}".encode("utf-8", "replace"),
        st.sampled_from(["nameserver", " nameserver", "#nameserver", "options", ""]),
        st.sampled_from([" ", "\t", "  ", "", "\u00a0"]),
        st.one_of(st.ip_addresses().map(str), st.text(max_size=12)),
        st.sampled_from(["", " ", "%eth0", "%", "/32", "\r", ":53", " # x"]),
    ),
)


@given(st.lists(lines, max_size=6).map(b"\n".join))
@example(b"nameserver 192.0.2.10")  # this host itself
def test_any_resolv_conf_gives_servers_that_can_be_exempt(text: bytes) -> None:
    realm = reader.read(Document.parse("policy", POLICY.encode()))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "resolv.conf"
        path.write_bytes(text)
        found = resolvers([path])
    assert len(set(found)) == len(found) <= text.count(b"nameserver")
    for _, address in found:
        assert is_a_servers_own(address)
    resolve_with(realm, found)


# --- krb5.conf ----------------------------------------------------------------------------------

PROGRAM = """
import json, os, sys
from pathlib import Path
from kinkd.app import discovery
from kinkd.document import Document
from kinkd.kerberos import libkrb5
from kinkd.policy import reader
policy = reader.read(Document.parse("policy", sys.argv[1].encode()))
for path in sys.argv[2:]:
    if os.fork() == 0:
        os.environ["KRB5_CONFIG"] = path
        found = discovery.kdcs(policy, ("EXAMPLE.TEST", "AD.EXAMPLE.TEST", "EXAMPLE.TEST"))
        print(json.dumps([f"{kind} {address}" for kind, address in found]), flush=True)
        os._exit(0)
    if os.wait()[1]:
        print("null", flush=True)
"""


def kdcs_of(directory: Path, texts: list[bytes]) -> Iterator[list[str]]:
    """What is found by the real libkrb5 with each of these as krb5.conf, a process each."""
    paths = []
    for number, text in enumerate(texts):
        paths.append(directory / f"krb5.conf.{number}")
        paths[-1].write_bytes(text)
    command = [sys.executable, "-B", "-c", PROGRAM, POLICY, *map(str, paths)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(texts)
    yield from found


def realm(*relations: str, name: str = "EXAMPLE.TEST") -> bytes:
    inside = "".join(f"  {relation}\n" for relation in relations)
    return f"[realms]\n {name} = {{\n{inside} }}\n".encode()


KRB5_CONF = [
    (b"", []),
    (realm(), []),
    (realm("kdc = 192.0.2.1"), ["192.0.2.1"]),
    (realm("kdc = 192.0.2.1:88", "kdc = 192.0.2.2"), ["192.0.2.1", "192.0.2.2"]),
    (realm("kdc = 2001:db8::1", "kdc = [2001:db8::2]:88"), ["2001:db8::1", "2001:db8::2"]),
    (realm("kdc = [2001:db8::3]", "kdc = tcp/192.0.2.4"), ["2001:db8::3", "192.0.2.4"]),
    (
        realm("kpasswd_server = 192.0.2.5:464", "admin_server = 192.0.2.6"),
        ["192.0.2.6", "192.0.2.5"],
    ),
    (realm("kdc = kdc1.example.test"), ["192.0.2.88", "2001:db8::88"]),
    (realm("kdc = KDC1.Example.Test.:88"), ["192.0.2.88", "2001:db8::88"]),
    (realm("kdc = kdc"), []),  # a name of the document's own
    (realm("kdc = kdc2.example.test", "kdc = 192.0.2.1"), ["192.0.2.1"]),  # who is that?
    (realm("kdc = https://kdc1.example.test/KdcProxy"), []),
    (realm("kdc = 192.0.2.1 192.0.2.2", "kdc = 192.0.2.3 # third"), ["192.0.2.1", "192.0.2.3"]),
    (realm("kdc = 127.0.0.1", "kdc = ::1", "kdc = fe80::1%eth0", "kdc = 0.0.0.0"), []),
    (realm("kdc = 2001:db8::1%eth0"), ["2001:db8::1"]),
    (realm("kdc = 192.0.2.1", name="AD.EXAMPLE.TEST"), ["192.0.2.1"]),
    (realm("kdc = 192.0.2.1", name="OTHER.TEST"), []),
    (realm("kdc = 192.0.2.1", name="example.test"), []),  # realms are not folded
    (realm("kdc = {", "a = b", "}"), []),
    (realm("kdc = caf\u00e9.example.test", 'kdc = ""', "kdc = :", "kdc = ["), []),
    (realm("kdc = 192.0.2.1").replace(b"192.0.2.1", b"\xff\xfe"), []),
    (b"[realms]\n EXAMPLE.TEST = 192.0.2.1\n", []),
    (b"[realms\nEXAMPLE.TEST = {\n", []),  # which libkrb5 refuses
    (b"\0" * 100, []),
]


def test_kdcs_are_what_krb5_conf_has_by_address_or_by_a_name_of_the_policys(
    tmp_path: Path,
) -> None:
    found = kdcs_of(tmp_path, [text for text, _ in KRB5_CONF])
    for (text, wanted), got in zip(KRB5_CONF, found, strict=True):
        assert list(dict.fromkeys(got)) == [f"kdc {address}" for address in wanted], text


def test_damaged_krb5_confs_end_nothing(tmp_path: Path) -> None:
    chance = random.Random(4430)  # the same each time
    texts = []
    for _ in range(60):
        text = bytearray(
            realm("kdc = 192.0.2.1", "kdc = [2001:db8::2]:88", "kdc* = kdc1.example.test")
        )
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(text))
            text[at : at + chance.randrange(3)] = chance.choice(
                (b"", b"\n", b"}", b"{", b"[", b"=", b"\0", b"\xff", b"include x\n", b"1", b":")
            )
        texts.append(bytes(text))
    for text, found in zip(texts, kdcs_of(tmp_path, texts), strict=True):
        assert isinstance(found, list), text
        assert all(is_a_servers_own(ip_address(each.split()[1])) for each in found), text


def test_of_two_realms_both_kdcs_are_found(tmp_path: Path) -> None:
    text = realm("kdc = 192.0.2.1") + realm("kdc = 192.0.2.2", name="AD.EXAMPLE.TEST")
    (found,) = kdcs_of(tmp_path, [text])
    assert found == ["kdc 192.0.2.1", "kdc 192.0.2.2"]


def test_without_krb5_conf_there_are_none(tmp_path: Path) -> None:
    (tmp_path / "krb5.conf.0").mkdir()
    command = [sys.executable, "-B", "-c", PROGRAM, POLICY, str(tmp_path / "none"), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n[]\n"


def test_where_libkrb5_cannot_start_there_are_none(
    policy: RealmPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: str) -> list[str]:
        raise LocalError("libkrb5 cannot start")

    monkeypatch.setattr(libkrb5, "configured_kdcs", refused)
    assert list(kdcs(policy, ["EXAMPLE.TEST"])) == []


@given(
    st.lists(
        st.one_of(
            st.text(max_size=20),
            st.tuples(
                st.sampled_from(["", "tcp/", "udp/", "[", "https://"]),
                st.one_of(
                    st.ip_addresses(v=4).map(IPv4Address),
                    st.ip_addresses(v=6).map(IPv6Address),
                    st.just("kdc1.example.test"),
                ),
                st.sampled_from(["", ":88", "]", "]:88", ":", "%eth0", " x", "."]),
            ).map(lambda parts: "".join(map(str, parts))),
        ),
        max_size=5,
    )
)
def test_whatever_is_written_as_a_kdc_can_be_exempt_or_is_passed_over(written: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libkrb5, "configured_kdcs", lambda _: written)
        realm_policy = reader.read(Document.parse("policy", POLICY.encode()))
        found = list(kdcs(realm_policy, ["EXAMPLE.TEST"]))
    for service, address in found:
        assert service == "kdc"
        assert is_a_servers_own(address)
    resolve_with(realm_policy, found)


# --- ports --------------------------------------------------------------------------------------

DEFAULT = range(32768, 61000)


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("32768\t60999\n", DEFAULT),
        ("40000 50000", range(40000, 50001)),
        ("1024 65535\n", range(1024, 65536)),
        ("10000 20000\n", range(10000, 20001)),
        ("20000 60000", range(20000, 60001)),
        ("65535 65535", range(65535, 65536)),
        ("1 1", range(1, 2)),
        ("0 65535", DEFAULT),
        ("-5 65535", DEFAULT),
        ("40000 70000", DEFAULT),
        ("1024 70000", DEFAULT),
        ("20000 10000", DEFAULT),
        ("70000 80000", DEFAULT),
        ("32768", DEFAULT),
        ("1 2 3", DEFAULT),
        ("a b", DEFAULT),
        ("", DEFAULT),
        ("\x00", DEFAULT),
    ],
)
def test_client_ports_are_the_systems_or_the_kernels_default(
    tmp_path: Path, text: str, ports: range
) -> None:
    path = tmp_path / "ip_local_port_range"
    path.write_text(text)
    assert client_ports(path) == ports


def test_without_the_sysctl_it_is_the_kernels_default(tmp_path: Path) -> None:
    assert client_ports(tmp_path / "none") == DEFAULT
    (tmp_path / "octets").write_bytes(b"\xff\xfe 1")
    assert client_ports(tmp_path / "octets") == DEFAULT


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_every_range_is_ports_that_can_be_exempt(low: int, high: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "range"
        path.write_text(f"{low}\t{high}\n")
        ports = client_ports(path)
    assert 0 < ports.start < ports.stop <= 65536
    if low <= high:
        assert set(range(low, high + 1)) <= set(ports)
    realm_policy = reader.read(Document.parse("policy", POLICY.encode()))
    server = ip_address("192.0.2.53")
    options = resolve.Options(servers=(("dns", server),), client_ports=ports)
    entries = [
        entry
        for entry in resolve.resolve(realm_policy, "alice", options).entries
        if entry.selector.source[0] == server and entry.selector.protocol == 17
    ]
    covered: list[int] = []
    for match in (entry.selector.destination_port for entry in entries):
        covered += range(match.port, match.port + (match.mask ^ 0xFFFF) + 1)
    # Of high ones all to the end: in one mask instead of many.
    last = 65536 if ports.start >= 32768 else ports.stop
    assert sorted(covered) == list(range(ports.start, last))
