"""The policy that was in force last: whole, for the daemon's user alone, or refused in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import DocumentError, LocalError
from kinkd.policy import cache, sources
from kinkd.policy.cache import CachedPolicy

POLICY = Path(__file__).resolve().parents[2] / "conf" / "policy.toml"
CACHED = CachedPolicy("alice", "/etc/kinkd/policy.toml", POLICY.read_text())


def entry(**changes: object) -> bytes:
    known = {"version": 1, "host": "alice", "source": "a file", "document": CACHED.document}
    return json.dumps({**known, **changes}).encode()


def write(directory: Path, octets: bytes, mode: int = 0o600) -> Path:
    path = directory / "policy-cache.json"
    path.write_bytes(octets)
    path.chmod(mode)
    return path


def refusal(directory: Path) -> str:
    with pytest.raises(DocumentError) as caught:
        cache.load(directory).policy(directory)
    text = str(caught.value)
    assert text.startswith(f"{directory}/policy-cache.json: ")
    assert "\n" not in text
    return text.removeprefix(f"{directory}/policy-cache.json: ")


def test_what_is_stored_comes_back_and_means_the_same(tmp_path: Path) -> None:
    cache.store(tmp_path, CachedPolicy("bob", "elsewhere", "schema = 1\n"))
    cache.store(tmp_path, CACHED)
    found = cache.load(tmp_path)
    assert found == CACHED
    assert found.policy(tmp_path) == sources.load_file(str(POLICY))


def test_the_text_of_a_loaded_policy_is_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    text = CACHED.document.replace("\n", "\r\n") + "# bob's café\r\n"
    path.write_bytes(text.encode())
    loaded = sources.load(str(path))
    assert loaded.text == text.replace("\r\n", "\n")
    cache.store(tmp_path, CachedPolicy("alice", str(path), loaded.text))
    assert cache.load(tmp_path).policy(tmp_path) == loaded.policy


def test_it_is_one_file_for_its_owner_alone_whatever_was_left_behind(tmp_path: Path) -> None:
    left = tmp_path / "policy-cache.json.new"
    left.write_text("half of a policy")
    left.chmod(0o666)
    before = os.umask(0)
    try:
        cache.store(tmp_path, CACHED)
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["policy-cache.json"]
    assert (tmp_path / "policy-cache.json").stat().st_mode & 0o777 == 0o600


def test_it_is_on_the_disk_before_it_takes_the_place_of_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(tmp_path, CachedPolicy("bob", "elsewhere", "schema = 1\n"))
    steps: list[str] = []
    replace = os.replace

    def fsync(descriptor: int) -> None:
        steps.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")

    def noted(source: Path, destination: Path) -> None:
        assert cache.load(tmp_path).host == "bob"
        assert json.loads(source.read_text())["host"] == "alice"
        steps.append("rename")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", noted)
    cache.store(tmp_path, CACHED)
    assert steps == ["fsync policy-cache.json.new", "rename", f"fsync {tmp_path.name}"]


def test_what_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.store(tmp_path, CACHED)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LocalError, match=r"policy-cache.json: cannot be written: No space left"):
        cache.store(tmp_path, CachedPolicy("bob", "elsewhere", "schema = 1\n"))
    assert cache.load(tmp_path) == CACHED
    assert [path.name for path in tmp_path.iterdir()] == ["policy-cache.json"]


def test_a_newer_kinkd_may_have_added_keys(tmp_path: Path) -> None:
    write(tmp_path, entry(source_kind="ldap", cookies=[1, {}]))
    assert cache.load(tmp_path).policy(tmp_path).version == 1


@pytest.mark.parametrize(
    ("octets", "text"),
    [
        (b"", "damaged: not JSON"),
        (entry()[:-1], "damaged: not JSON"),
        (entry().replace(b"alice", b"al\xffce"), "damaged: not JSON"),
        (b"[" * 200_000, "damaged: not JSON"),
        (b'{"version": ' + b"1" * 5000 + b"}", "damaged: not JSON"),
        (b"[1]", "damaged: no object"),
        (b"{}", "of version"),
        (entry(version=2), "of version 2, this kinkd reads version 1"),
        (entry(version="1"), 'of version "1", this kinkd reads version 1'),
        (entry(version=True), "of version true"),
        (entry(host=None), 'damaged: no text under "host"'),
        (entry(document=["schema = 1"]), 'damaged: no text under "document"'),
        (entry(document="schema = 2\n"), "document:1: "),
        (entry(document="schema = \n"), "document:1: not TOML"),
        (entry(document="\ud800"), "damaged"),
        (entry(policy_version="7"), 'damaged: no number under "policy_version"'),
        (entry(policy_version=True), 'damaged: no number under "policy_version"'),
        (entry(policy_version=None), 'damaged: no number under "policy_version"'),
        (entry(policy_version=7.0), 'damaged: no number under "policy_version"'),
    ],
)
def test_what_is_damaged_or_of_another_version_is_refused_in_one_line(
    tmp_path: Path, octets: bytes, text: str
) -> None:
    write(tmp_path, octets)
    assert refusal(tmp_path).startswith(text)
    if not text.startswith("document"):
        assert cache.version_in_force(tmp_path) == 0


def test_the_version_that_was_in_force_is_told_even_if_its_policy_is_not_understood(
    tmp_path: Path,
) -> None:
    assert cache.version_in_force(tmp_path) == 0
    cache.store(tmp_path, CachedPolicy("alice", "a file", "schema = 99\n", 7))
    assert cache.version_in_force(tmp_path) == 7
    assert cache.load(tmp_path) == CachedPolicy("alice", "a file", "schema = 99\n", 7)
    write(tmp_path, entry())  # by a kinkd that did not say
    assert (cache.version_in_force(tmp_path), cache.load(tmp_path).version) == (0, 0)
    cache.store(tmp_path, CachedPolicy("alice", "a file", "schema = 1\n", 7))
    (tmp_path / "policy-cache.json").chmod(0o606)
    assert cache.version_in_force(tmp_path) == 0


def test_what_others_can_write_is_no_policy(tmp_path: Path) -> None:
    write(tmp_path, entry(), 0o620)
    assert "others can write it" in refusal(tmp_path)


def test_what_others_can_replace_is_no_policy(tmp_path: Path) -> None:
    cache.store(tmp_path, CACHED)
    tmp_path.chmod(0o770)
    assert "where others can replace it" in refusal(tmp_path)


def test_a_file_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path, b"")
    os.truncate(path, 1 << 40)
    assert refusal(tmp_path) == "larger than 32 MiB"


def test_where_there_is_none_it_says_so(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "cannot be read: No such file or directory"


@given(st.binary(max_size=200) | st.text().map(lambda text: entry(document=text)))
def test_any_octets_are_a_policy_or_refused(octets: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write(directory, octets)
        assert refusal(directory)
