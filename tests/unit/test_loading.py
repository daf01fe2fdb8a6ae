"""Configuration and policy are read again while the daemon runs: all of it, or nothing."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from kinkd.app import config, loading
from kinkd.app.loading import Loaded
from kinkd.errors import DocumentError, LocalError
from kinkd.policy import cache
from kinkd.policy.cache import CachedPolicy

POLICY = """
schema = 1
version = {version}
realm = "EXAMPLE.TEST"
[hosts.alice]
fqdn = "alice.example.test"
addresses = ["10.0.0.1"]
[hosts.bob]
fqdn = "bob.example.test"
addresses = ["10.0.0.2"]
[[rules]]
name = "all"
from = "all"
to = "all"
action = "require"
"""


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    (tmp_path / "policy.toml").write_text(POLICY.format(version=1))
    write(tmp_path)
    return start(tmp_path)


def start(directory: Path) -> Loaded:
    found = config.load(directory / "kinkd.toml")
    return loading.load(found, loading.source_of(found))


def again(before: Loaded, *, accept_older: bool = False) -> Loaded:
    return loading.reload(before, loading.source_of(before.config), accept_older=accept_older)


def write(directory: Path, more: str = "", name: str = "alice") -> None:
    text = (
        f'[host]\nname = "{name}"\n[policy]\nfile = "{directory}/policy.toml"\n'
        f'[state]\ndirectory = "{directory}"\n{more}'
    )
    (directory / "kinkd.toml").write_text(text)


def test_another_version_of_the_policy_is_taken(loaded: Loaded, tmp_path: Path) -> None:
    text = POLICY.format(version=2)
    (tmp_path / "policy.toml").write_text(text)
    fresh = again(loaded)
    assert (fresh.policy.version, fresh.document, fresh.warnings) == (2, text, loaded.warnings)


@pytest.mark.parametrize("broken", ["policy.toml", "kinkd.toml"])
def test_a_mistake_is_one_line_that_says_where(loaded: Loaded, tmp_path: Path, broken: str) -> None:
    path = tmp_path / broken
    path.write_text(path.read_text() + "\nnonsense = \n")
    with pytest.raises(DocumentError, match=broken):
        again(loaded)


def test_what_needs_a_new_start_is_said_and_left_as_it_was(loaded: Loaded, tmp_path: Path) -> None:
    write(tmp_path, '[control]\nsocket = "/run/elsewhere.sock"\n[log]\nlevel = "debug"\n')
    fresh = again(loaded)
    assert fresh.config.control_socket == loaded.config.control_socket
    assert fresh.config.log_level == "debug"
    assert fresh.warnings[-1] == "control.socket changes with the next start"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('fqdn = "alice.example.test"', 'fqdn = "alice.example.test"\nservice = "kink/other"'),
        ("[hosts.alice]", "[hosts.alicia]"),
    ],
)
def test_another_identity_of_this_host_needs_a_new_start(
    loaded: Loaded, tmp_path: Path, old: str, new: str
) -> None:
    text = POLICY.format(version=2).replace(old, new)
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(LocalError):
        again(loaded)


def test_no_resolver_is_asked_for_a_name_that_is_known(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (tmp_path / "kinkd.toml").read_text().replace('name = "alice"\n', "")
    (tmp_path / "kinkd.toml").write_text(text)
    monkeypatch.setattr(socket, "gethostname", lambda: "alice")
    first = start(tmp_path)
    monkeypatch.setattr(socket, "gethostname", lambda: pytest.fail("asked"))
    monkeypatch.setattr(socket, "getfqdn", lambda: pytest.fail("asked"))
    assert again(first).policy.me.name == "alice"


# --- what was last in force ---------------------------------------------------------------------


def remember(directory: Path, version: int, document: str = "", host: str = "alice") -> None:
    """The cache as a daemon leaves it that went by a version of the policy."""
    text = document or POLICY.format(version=version)
    cache.store(directory, CachedPolicy(host, "/etc/kinkd/policy.toml", text, version))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Configuration and policy of version 3, which was never in force."""
    (tmp_path / "policy.toml").write_text(POLICY.format(version=3))
    write(tmp_path)
    return tmp_path


OLDER = (
    "policy.toml: version 3 is older than version 7, which is the last that was in force on this"
    " host: a copy of before? If it is meant, run kinkctl reload --accept-older"
)


def test_a_policy_that_was_rolled_back_is_refused_at_a_start(directory: Path) -> None:
    remember(directory, 7)
    found = start(directory)
    assert (found.policy.version, found.realm.version) == (7, 7)
    assert found.document == POLICY.format(version=7)
    assert found.source == "/etc/kinkd/policy.toml"
    assert found.fault == f"{directory}/{OLDER}"


def test_a_policy_that_was_rolled_back_is_refused_at_a_reload(directory: Path) -> None:
    remember(directory, 7)
    before = start(directory)
    with pytest.raises(LocalError) as caught:
        again(before)
    assert str(caught.value) == f"{directory}/{OLDER}"


def test_an_older_one_is_taken_where_an_administrator_says_so(directory: Path) -> None:
    remember(directory, 7)
    found = again(start(directory), accept_older=True)
    assert (found.policy.version, found.fault) == (3, "")
    assert found.source == f"{directory}/policy.toml"
    assert again(found).policy.version == 3  # which needs to be said once
    (directory / "policy.toml").write_text(POLICY.format(version=2))
    with pytest.raises(LocalError, match="version 2 is older than version 3"):
        again(found)


def test_who_accepts_an_older_one_accepts_no_bad_one(directory: Path) -> None:
    remember(directory, 7)
    before = start(directory)
    (directory / "policy.toml").write_text(POLICY.format(version=2) + "nonsense = 1\n")
    with pytest.raises(DocumentError, match=r"policy\.toml:\d+: .*nonsense"):
        again(before, accept_older=True)


@pytest.mark.parametrize("version", [7, 8])
def test_what_is_no_older_than_the_last_is_taken_at_a_start(directory: Path, version: int) -> None:
    remember(directory, 7)
    (directory / "policy.toml").write_text(POLICY.format(version=version))
    found = start(directory)
    assert (found.policy.version, found.fault) == (version, "")
    assert found.source == f"{directory}/policy.toml"


def absent(path: Path) -> None:
    path.unlink()


def broken(path: Path) -> None:
    path.write_text("version = \n")


def of_others(path: Path) -> None:
    path.chmod(0o664)


def given_away(path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root gives files away")
    os.chown(path, 65534, -1)


def not_of_us(path: Path) -> None:
    path.write_text(POLICY.format(version=9).replace("alice", "anna"))


FAULTS = [
    (absent, "policy.toml: cannot be read: No such file or directory"),
    (broken, "policy.toml:1: not TOML"),
    (of_others, "policy.toml: others can write it (mode 0664); chmod go-w"),
    (given_away, "policy.toml: owned by uid 65534, who could change it"),
    (not_of_us, 'host.name: "alice" is no host of'),
]


@pytest.mark.parametrize(("spoil", "said"), FAULTS)
def test_where_no_good_policy_can_be_had_a_start_goes_by_the_last(
    directory: Path, spoil: Callable[[Path], None], said: str
) -> None:
    remember(directory, 7)
    spoil(directory / "policy.toml")
    found = start(directory)
    assert (found.policy.version, found.policy.me.name) == (7, "alice")
    assert said in found.fault
    assert "\n" not in found.fault
    with pytest.raises(LocalError) as caught:  # and a reload changes nothing
        again(found)
    assert said in str(caught.value)


@pytest.mark.parametrize(("spoil", "said"), FAULTS)
@pytest.mark.parametrize(
    "left",
    [
        None,
        b"{",
        b'{"version": 1, "host": "alice", "source": "x", "document": "schema = 1"}',
        b'{"version": 2}',
    ],
)
def test_without_a_usable_cache_the_fault_is_the_sources(
    directory: Path, spoil: Callable[[Path], None], said: str, left: bytes | None
) -> None:
    if left is not None:
        (directory / "policy-cache.json").write_bytes(left)
    spoil(directory / "policy.toml")
    with pytest.raises(LocalError) as caught:
        start(directory)
    assert said in str(caught.value)
    assert "policy-cache" not in str(caught.value)


def test_a_cache_that_others_can_write_is_none(directory: Path) -> None:
    remember(directory, 7)
    (directory / "policy-cache.json").chmod(0o622)
    found = start(directory)
    assert (found.policy.version, found.fault) == (3, "")
    absent(directory / "policy.toml")
    with pytest.raises(LocalError, match=r"policy\.toml: cannot be read"):
        start(directory)


def test_a_cache_of_an_earlier_kinkd_is_of_use_and_no_floor(directory: Path) -> None:
    remember(directory, 7)
    path = directory / "policy-cache.json"
    entry = json.loads(path.read_text())
    del entry["policy_version"]
    path.write_text(json.dumps(entry))
    assert cache.version_in_force(directory) == 0
    assert start(directory).policy.version == 3
    absent(directory / "policy.toml")
    assert start(directory).policy.version == 7


def test_a_fallback_finds_the_host_that_only_a_resolver_could_name(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "kinkd.toml"
    path.write_text(path.read_text().replace('name = "alice"\n', ""))
    remember(directory, 7, host="bob")
    absent(directory / "policy.toml")
    for name in ("gethostname", "getfqdn"):
        monkeypatch.setattr(socket, name, lambda: pytest.fail("asked"))
    assert start(directory).policy.me.name == "bob"


def test_after_a_fallback_the_next_good_policy_is_taken(directory: Path) -> None:
    remember(directory, 7)
    absent(directory / "policy.toml")
    before = start(directory)
    (directory / "policy.toml").write_text(POLICY.format(version=7))
    found = again(before)
    assert (found.policy.version, found.fault) == (7, "")
    assert found.source == f"{directory}/policy.toml"
    assert not any("raise it" in warning for warning in found.warnings)


def test_a_change_without_a_new_version_is_taken_with_a_warning(directory: Path) -> None:
    before = start(directory)
    (directory / "policy.toml").write_text(POLICY.format(version=3) + "# another word\n")
    found = again(before)
    (warning,) = set(found.warnings) - set(before.warnings)
    assert warning == (
        f"{directory}/policy.toml has changed, and its version is still 3: raise it with every"
        " change, so that it tells which policy a host has"
    )
    assert found.document != before.document
    assert again(found).warnings == before.warnings  # said of a change once
