"""Configuration and policy are read again while the daemon runs: all of it, or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinkd.app import config, loading
from kinkd.app.loading import Loaded
from kinkd.errors import DocumentError, LocalError

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
    return loading.load(config.load(tmp_path / "kinkd.toml"))


def write(directory: Path, more: str = "", name: str = "alice") -> None:
    text = (
        f'[host]\nname = "{name}"\n[policy]\nfile = "{directory}/policy.toml"\n'
        f'[state]\ndirectory = "{directory}"\n{more}'
    )
    (directory / "kinkd.toml").write_text(text)


def test_another_version_of_the_policy_is_taken(loaded: Loaded, tmp_path: Path) -> None:
    text = POLICY.format(version=2)
    (tmp_path / "policy.toml").write_text(text)
    fresh = loading.reload(loaded)
    assert (fresh.policy.version, fresh.document, fresh.warnings) == (2, text, loaded.warnings)


@pytest.mark.parametrize("broken", ["policy.toml", "kinkd.toml"])
def test_a_mistake_is_one_line_that_says_where(loaded: Loaded, tmp_path: Path, broken: str) -> None:
    path = tmp_path / broken
    path.write_text(path.read_text() + "\nnonsense = \n")
    with pytest.raises(DocumentError, match=broken):
        loading.reload(loaded)


def test_what_needs_a_new_start_is_said_and_left_as_it_was(loaded: Loaded, tmp_path: Path) -> None:
    write(tmp_path, '[control]\nsocket = "/run/elsewhere.sock"\n[log]\nlevel = "debug"\n')
    fresh = loading.reload(loaded)
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
        loading.reload(loaded)


def test_no_resolver_is_asked_for_a_name_that_is_known(
    loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (tmp_path / "kinkd.toml").read_text().replace('name = "alice"\n', "")
    (tmp_path / "kinkd.toml").write_text(text)
    monkeypatch.setattr(config.socket, "gethostname", lambda: "alice")
    first = loading.load(config.load(tmp_path / "kinkd.toml"))
    monkeypatch.setattr(config.socket, "gethostname", lambda: pytest.fail("asked"))
    monkeypatch.setattr(config.socket, "getfqdn", lambda: pytest.fail("asked"))
    assert loading.reload(first).policy.me.name == "alice"
