"""``kinkd guard``: which policy it takes, what it does to the kernel, and its unit."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from kinkd.app import config as configuration
from kinkd.app import guard, recovery, resources
from kinkd.app.journal import Journal
from kinkd.cli import kinkd
from kinkd.errors import LocalError
from kinkd.kernel.memory import MemoryKernel
from kinkd.kernel.port import Kernel
from kinkd.model import Direction, Selector, SpdEntry
from kinkd.policy import cache, resolve, sources

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = (ROOT / "tests" / "data" / "policy.toml").read_text()
OLDER = SHIPPED.replace("version = 1 ", "version = 7 ")
UNITS = ROOT / "conf"


class GuardedKernel(MemoryKernel):
    """A kernel without any algorithm, in which the guard must touch no SA."""

    def __init__(self) -> None:
        super().__init__()
        self.sa_requests: list[str] = []
        for name in ("probe", "allocate_spi", "install_inbound", "install_outbound", "remove"):
            setattr(self, name, lambda *_, name=name, **__: self.sa_requests.append(name))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> GuardedKernel:
    """What ``kinkd guard`` takes for the kernel."""
    made = GuardedKernel()

    @contextmanager
    def opened() -> Iterator[Kernel]:
        yield made

    monkeypatch.setattr(guard, "open_kernel", opened)
    return made


@pytest.fixture(autouse=True)
def no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("a resolver is asked")

    for name in ("getfqdn", "getaddrinfo", "gethostbyname", "gethostbyaddr"):
        monkeypatch.setattr(socket, name, asked)
    monkeypatch.setattr(socket, "gethostname", lambda: "kernel-lab")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A configuration for alice, with a good policy and an empty state directory."""
    (tmp_path / "state").mkdir()
    write(tmp_path / "policy.toml", SHIPPED)
    return write(tmp_path / "kinkd.toml", '[host]\nname = "alice"\n[state]\ndirectory = "state"\n')


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o644)
    return path


def remember(config: Path, document: str = OLDER, host: str = "alice", version: int = 0) -> None:
    cached = cache.CachedPolicy(host, "the document", document, version)
    cache.store(config.parent / "state", cached)


def wanted(config: Path, host: str = "alice") -> tuple[SpdEntry, ...]:
    policy = sources.load_file(str(config.parent / "policy.toml"))
    return resolve.resolve(policy, host, resolve.Options()).entries


def run(config: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status, and the one line it printed."""
    status = kinkd.main(["guard", "--config", str(config)])
    out, err = capsys.readouterr()
    assert (out + err).count("\n") == 1
    assert bool(err) == bool(status)
    return status, out + err


def test_the_entries_of_the_policy_are_installed_and_no_sa_is_touched(
    config: Path, kernel: GuardedKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    remember(config)
    status, said = run(config, capsys)
    entries = wanted(config)
    assert status == 0
    assert said == (
        f"kinkd: {len(entries)} SPD entries for alice are in place: "
        f"version 1 of the policy, from {config.parent}/policy.toml\n"
    )
    assert set(kernel.policies()) == set(entries)
    assert any(entry.templates for entry in entries)
    assert not kernel.sa_requests


def test_what_an_earlier_policy_left_goes_and_what_is_foreign_stays(
    config: Path, kernel: GuardedKernel
) -> None:
    selector = Selector.between(ip_address("198.51.100.7"), ip_address("198.51.100.8"))
    old = SpdEntry(Direction.OUT, selector, 1_999_999)
    foreign = SpdEntry(Direction.IN, selector, 2_000_000)
    kernel.write_policy(old)
    kernel.write_policy(foreign)
    guard.guard(config)
    assert set(kernel.policies()) == {*wanted(config), foreign}


def test_a_foreign_policy_in_the_way_is_not_replaced(
    config: Path, kernel: GuardedKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = replace(wanted(config)[-1], priority=5)
    kernel.write_policy(foreign)
    status, said = run(config, capsys)
    assert status == 1
    assert "an IPsec policy of other software is in the way" in said
    assert kernel.policies() == [foreign]


@pytest.mark.parametrize(
    ("broken", "because"),
    [
        (None, "policy.toml: cannot be read: No such file or directory"),
        ("schema = 1\nversion = \n", "policy.toml:2: not TOML"),
        (SHIPPED.replace("alice", "anna"), "'alice' is no host of the policy"),
    ],
)
def test_where_the_file_is_no_good_the_cached_policy_protects(
    config: Path,
    kernel: GuardedKernel,
    capsys: pytest.CaptureFixture[str],
    broken: str | None,
    because: str,
) -> None:
    entries = wanted(config)
    remember(config)
    if broken is None:
        (config.parent / "policy.toml").unlink()
    else:
        write(config.parent / "policy.toml", broken)
    status, said = run(config, capsys)
    assert status == 0
    assert "version 7 of the policy, cached from the document (" in said
    assert because in said
    assert set(kernel.policies()) == set(entries)


def test_a_policy_that_others_can_write_is_no_better_than_a_broken_one(
    config: Path, kernel: GuardedKernel
) -> None:
    remember(config)
    (config.parent / "policy.toml").chmod(0o666)
    assert "version 7 of the policy, cached" in guard.guard(config)


def test_a_host_is_found_by_its_machines_name_and_nobody_is_asked(
    config: Path, kernel: GuardedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(config, '[state]\ndirectory = "state"\n')
    monkeypatch.setattr(socket, "gethostname", lambda: "bob")
    assert " for bob are in place" in guard.guard(config)
    assert set(kernel.policies()) == set(wanted(config, "bob"))


def test_a_host_that_only_a_resolver_finds_is_the_one_it_was(
    config: Path, kernel: GuardedKernel
) -> None:
    write(config, '[state]\ndirectory = "state"\n')
    remember(config, host="bob")
    said = guard.guard(config)
    assert " for bob are in place: version 7 of the policy, cached" in said
    assert "no host of this machine's name (kernel-lab)" in said
    assert set(kernel.policies()) == set(wanted(config, "bob"))


def test_a_configured_name_is_stronger_than_the_remembered_one(
    config: Path, kernel: GuardedKernel
) -> None:
    entries = wanted(config)
    remember(config, host="bob")
    (config.parent / "policy.toml").unlink()
    guard.guard(config)
    assert set(kernel.policies()) == set(entries)


def test_without_any_policy_it_fails_and_says_what_to_do(
    config: Path, kernel: GuardedKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "policy.toml").unlink()
    for _ in range(2):
        status, said = run(config, capsys)
        assert status == 1
        assert "policy.toml: cannot be read" in said
        assert "policy-cache.json: " in said
        assert "mend the policy (kinkd check)" in said
        (config.parent / "state" / "policy-cache.json").write_text("{")  # and damaged: the same
    assert not kernel.policies()


def test_a_mistake_in_the_configuration_is_told_from_the_lack_of_a_policy(
    config: Path, kernel: GuardedKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    remember(config)
    write(config, "[hosts]\n")
    status, said = run(config, capsys)
    assert status == 2
    assert said.startswith(f"kinkd: {config}:1: hosts: unknown key")
    assert not kernel.policies()


def test_beside_a_running_daemon_there_is_nothing_to_do(
    config: Path, kernel: GuardedKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    state = config.parent / "state"
    (config.parent / "policy.toml").unlink()  # that, too, is the daemon's concern
    lock = resources.lock_state(state)
    try:
        status, said = run(config, capsys)
    finally:
        os.close(lock)
    assert (status, said) == (0, f"kinkd: a kinkd of {state} is running: nothing to do\n")
    assert not kernel.policies()


def test_it_lets_go_of_the_state_directory(config: Path, kernel: GuardedKernel) -> None:
    for policy in (SHIPPED, ""):
        write(config.parent / "policy.toml", policy)
        try:
            guard.guard(config)
        except LocalError:
            assert not policy
        os.close(resources.lock_state(config.parent / "state"))


def test_a_state_directory_that_is_missing_is_no_running_daemon(
    config: Path, kernel: GuardedKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    (config.parent / "state").rmdir()
    status, said = run(config, capsys)
    assert status == 1
    assert "is it there and writable" in said


def test_it_loads_nothing_that_an_early_start_would_wait_for(config: Path) -> None:
    program = (
        "import sys\n"
        "from kinkd.app import config, guard\n"
        "guard.choose(config.load(sys.argv[1]))\n"
        "slow = {'asyncio', 'pyroute2', 'gssapi', 'cffi', 'logging'}\n"
        "print([m for m in sys.modules if m in slow or m.startswith('kinkd.kerberos')])\n"
    )
    command = [sys.executable, "-B", "-c", program, str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_policy_that_was_rolled_back_does_not_replace_the_last_one(
    config: Path, kernel: GuardedKernel, capsys: pytest.CaptureFixture[str]
) -> None:
    remember(config, version=7)
    status, said = run(config, capsys)
    assert status == 0
    assert said.endswith(
        f"version 7 of the policy, cached from the document ({config.parent}/policy.toml: version 1"
        " is older than version 7, the last that was in force)\n"
    )
    for version in (7, 8):
        write(
            config.parent / "policy.toml", SHIPPED.replace("version = 1 ", f"version = {version} ")
        )
        said = guard.guard(config)
        assert said.endswith(f"version {version} of the policy, from {config.parent}/policy.toml")


def test_a_cache_that_is_no_good_keeps_nobody_from_the_file(
    config: Path, kernel: GuardedKernel
) -> None:
    remember(config, version=7)
    cached = config.parent / "state" / "policy-cache.json"
    cached.chmod(0o666)
    assert guard.guard(config).endswith(
        f"version 1 of the policy, from {config.parent}/policy.toml"
    )
    cached.chmod(0o600)
    cached.write_text("{")
    assert guard.guard(config).endswith(
        f"version 1 of the policy, from {config.parent}/policy.toml"
    )


# --- how strictly -------------------------------------------------------------------------------

REQUESTED = """
schema = 1
version = 1
realm = "EXAMPLE.TEST"
[hosts.alice]
fqdn = "alice.example.test"
addresses = ["192.0.2.10"]
[hosts.bob]
fqdn = "bob.example.test"
addresses = ["192.0.2.11"]
[hosts.carol]
fqdn = "carol.example.test"
addresses = ["192.0.2.12"]
[[rules]]
name = "carol"
from = "alice"
to = "carol"
action = "block"
[[rules]]
name = "all"
from = "all"
to = "all"
action = "request"
"""
BOB = ip_address("192.0.2.11")


def with_bob(entries: list[SpdEntry]) -> list[SpdEntry]:
    """Those of all traffic with bob."""
    return [
        entry
        for entry in entries
        if entry.templates and BOB in (entry.selector.source[0], entry.selector.destination[0])
    ]


def in_clear(entries: list[SpdEntry]) -> bool:
    """Whether all of them let pass in clear; it is all or none."""
    (answer,) = {all(t.optional for t in entry.templates) for entry in entries}
    return answer


def journal_of(config: Path) -> Journal:
    return Journal(config.parent / "state" / "journal.db")


def test_what_is_only_requested_and_was_never_had_is_in_clear(
    config: Path, kernel: GuardedKernel
) -> None:
    write(config.parent / "policy.toml", REQUESTED)
    for journalled in (False, True):  # a host that was never up, and one that was
        guard.guard(config)
        found = with_bob(kernel.policies())
        assert {entry.direction for entry in found} >= {Direction.IN, Direction.OUT}
        assert in_clear(found)
        assert any(entry.block for entry in kernel.policies())
        assert (config.parent / "state" / "journal.db").exists() == journalled
        journal_of(config).close()


def test_what_was_secured_is_required_until_it_is_forgotten_or_another_host(
    config: Path, kernel: GuardedKernel
) -> None:
    write(config.parent / "policy.toml", REQUESTED)
    journal = journal_of(config)
    journal.secure("bob", "kink/bob.example.test@EXAMPLE.TEST")
    guard.guard(config)
    assert not in_clear(with_bob(kernel.policies()))
    journal.secure("bob", "kink/another.example.test@EXAMPLE.TEST")
    guard.guard(config)
    assert in_clear(with_bob(kernel.policies()))
    journal.secure("bob", "kink/bob.example.test@EXAMPLE.TEST")
    journal.forget_secured("bob")
    guard.guard(config)
    assert in_clear(with_bob(kernel.policies()))
    journal.close()


def test_a_journal_that_cannot_be_read_has_had_everything_and_is_left_to_the_daemon(
    config: Path, kernel: GuardedKernel
) -> None:
    octets = b"no database at all, but long enough for one" * 20
    write(config.parent / "policy.toml", REQUESTED)
    path = config.parent / "state" / "journal.db"
    path.write_bytes(octets)
    guard.guard(config)
    assert not in_clear(with_bob(kernel.policies()))
    assert path.read_bytes() == octets
    journal = journal_of(config)
    assert journal.damage
    journal.close()


def test_while_enforcement_is_suspended_nothing_is_enforced_at_boot(
    config: Path, kernel: GuardedKernel
) -> None:
    journal = journal_of(config)
    recovery.record_suspension(journal, time.time() + 3600)
    write(config.parent / "policy.toml", REQUESTED.replace('"request"', '"require"'))
    entries = wanted(config)
    guard.guard(config)
    found = kernel.policies()
    assert {entry.key for entry in found} == {entry.key for entry in entries}
    assert in_clear(with_bob(found))
    assert not any(entry.block for entry in found)
    for until in (time.time() - 1, 0.0):
        recovery.record_suspension(journal, until)
        guard.guard(config)
        assert set(kernel.policies()) == set(entries)
        assert not in_clear(with_bob(kernel.policies()))
        assert any(entry.block for entry in kernel.policies())
    journal.close()


# --- conf/kinkd-guard.service -------------------------------------------------------------------


def unit(name: str) -> dict[str, list[str]]:
    """The settings of a unit: ``Section.Key``, and the words of its values."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (UNITS / name).read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(f"{section}.{key}", []).extend(value.split())
    return found


def test_the_unit_comes_before_any_network_and_shares_the_daemons_state() -> None:
    ours, daemon = unit("kinkd-guard.service"), unit("kinkd.service")
    assert ours["Unit.DefaultDependencies"] == ["no"]
    assert {"network-pre.target", "shutdown.target"} <= set(ours["Unit.Before"])
    assert ours["Unit.Wants"] == ["network-pre.target"]
    assert ours["Unit.Conflicts"] == ["shutdown.target"]
    assert "/var/lib/kinkd" in ours["Unit.RequiresMountsFor"]
    assert (ours["Service.Type"], ours["Service.RemainAfterExit"]) == (["oneshot"], ["yes"])
    assert ours["Service.ExecStart"][1:] == ["guard", "--config", "/etc/kinkd/kinkd.toml"]
    assert not any("network.target" in word for word in ours["Unit.After"])
    for key in ("User", "Group", "StateDirectory", "StateDirectoryMode", "UMask"):
        assert ours[f"Service.{key}"] == daemon[f"Service.{key}"]
    assert "kinkd-guard.service" in daemon["Unit.After"]


def test_the_unit_may_do_what_it_must_and_no_more_than_the_daemon() -> None:
    ours, daemon = unit("kinkd-guard.service"), unit("kinkd.service")
    for key in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert ours[f"Service.{key}"] == ["CAP_NET_ADMIN"]
    fences = ("NoNew", "Protect", "Private", "Restrict", "Lock", "SystemCall", "LimitCORE")
    for key, value in daemon.items():
        setting = key.removeprefix("Service.")
        if setting.startswith(fences) and setting not in (
            "RestrictAddressFamilies",
            "RestartPreventExitStatus",
        ):
            assert ours[key] == value, key
    assert ours["Service.RestrictAddressFamilies"] == ["AF_NETLINK"]


def test_the_units_path_of_credentials_is_that_of_the_daemons_unit(
    config: Path, kernel: GuardedKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with config.open("a") as file:
        file.write('[kerberos]\nkeytab = "${CREDENTIALS_DIRECTORY}/keytab"\n')
    (word,) = unit("kinkd-guard.service")["Service.Environment"]
    name, _, value = word.partition("=")
    monkeypatch.setenv(name, value)
    assert configuration.load(config).keytab == Path("/run/credentials/kinkd.service/keytab")
    assert "from " in guard.guard(config)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_no_fault_in_the_units(tmp_path: Path) -> None:
    units = [tmp_path / name for name in ("kinkd.service", "kinkd-guard.service")]
    for path in units:
        shipped = (UNITS / path.name).read_text()
        path.write_text(re.sub(r"/opt/kinkd/bin/kink(d|ctl)", "/bin/true", shipped))
    command = ["systemd-analyze", "verify", "--man=no", *map(str, units)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
