"""A document is read where nobody but root and this process's user can have written it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import DocumentError
from kinkd.policy import sources

ROOT = Path(__file__).resolve().parents[2]
TEXT = b"schema = 1\n"
NOBODY = 65534
is_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A policy in a directory of its own."""
    (tmp_path / "etc").mkdir(mode=0o755)
    return written(tmp_path / "etc" / "policy.toml")


def written(path: Path) -> Path:
    path.write_bytes(TEXT)
    path.chmod(0o644)
    return path


def refusal(path: Path | str) -> str:
    """Why it is not read: one line, the path first."""
    with pytest.raises(DocumentError) as caught:
        sources.read_octets(str(path))
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert "\n" not in said
    return said.removeprefix(f"{path}: ")


# --- the file -----------------------------------------------------------------------------------


@given(st.integers(0, 0o7777))
def test_a_file_is_read_exactly_if_nobody_else_writes_it(mode: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = written(Path(name) / "policy.toml")
        path.chmod(mode | 0o400)
        if mode & 0o022:
            assert f"mode {mode | 0o400:04o}); chmod go-w" in refusal(path)
        else:
            assert sources.read_octets(str(path)) == TEXT


@is_root
def test_a_file_of_another_user_is_not_trusted(path: Path) -> None:
    os.chown(path, NOBODY, 0)
    assert refusal(path).startswith(f"owned by uid {NOBODY}, who could change it")


def test_what_is_no_file_is_refused_at_once(path: Path) -> None:
    assert refusal(path.parent) == "not a regular file"
    fifo = path.with_name("fifo")
    os.mkfifo(fifo, 0o600)
    assert refusal(fifo) == "not a regular file"  # and nobody waits for a writer
    assert refusal(path.with_name("none")) == "cannot be read: No such file or directory"
    assert refusal(path / "below") == "cannot be read: Not a directory"
    loop = path.with_name("loop")
    loop.symlink_to("loop")
    assert refusal(loop) == "cannot be read: Too many levels of symbolic links"
    with pytest.raises(DocumentError, match="is not the path of a file"):
        sources.read_octets(f"{path}\0")


def test_a_file_may_be_as_long_as_the_longest(path: Path) -> None:
    assert sources.read_octets(str(path), len(TEXT)) == TEXT
    with pytest.raises(DocumentError, match="larger than"):
        sources.read_octets(str(path), len(TEXT) - 1)


# --- its directory ------------------------------------------------------------------------------


@given(st.integers(0, 0o7777))
def test_a_directory_in_which_others_write_is_one_line_with_its_name(mode: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        path = written(Path(name) / "policy.toml")
        path.parent.chmod(mode | 0o700)
        if mode & 0o022 and not mode & stat.S_ISVTX:
            said = refusal(path)
            assert said.startswith(f"in {name}, where others can replace it (mode ")
            assert said.endswith(f"chmod go-w {name}")
        else:  # in a sticky one nobody else removes a file of ours
            assert sources.read_octets(str(path)) == TEXT
        path.parent.chmod(0o700)


@is_root
def test_the_owner_of_a_directory_could_replace_what_is_in_it(path: Path) -> None:
    os.chown(path.parent, NOBODY, 0)
    for mode in (0o755, 0o700, 0o1777):
        path.parent.chmod(mode)
        said = refusal(path)
        assert said == f"in {path.parent}, whose owner, uid {NOBODY}, could replace it"


@is_root
def test_in_a_sticky_directory_a_link_is_its_owners_to_replace(path: Path) -> None:
    path.parent.chmod(0o1777)
    link = path.with_name("link.toml")
    link.symlink_to(path.name)
    assert sources.read_octets(str(link)) == TEXT
    os.chown(link, NOBODY, 0, follow_symlinks=False)
    assert "where others can replace it" in refusal(link)


def test_every_directory_with_a_link_on_the_way_to_the_file_counts(
    path: Path, tmp_path: Path
) -> None:
    middle, first = tmp_path / "middle", tmp_path / "first"
    for directory in (middle, first):
        directory.mkdir(mode=0o755)
    (middle / "second.toml").symlink_to(os.path.relpath(path, middle))
    start = first / "policy.toml"
    start.symlink_to(middle / "second.toml")
    assert sources.read_octets(str(start)) == TEXT
    for directory in (first, middle, path.parent):
        directory.chmod(0o775)
        assert refusal(start).startswith(f"in {directory}, where others")
        directory.chmod(0o755)
    assert sources.read_octets(str(start)) == TEXT


def test_a_path_may_be_relative(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    assert sources.read_octets("policy.toml") == TEXT
    path.parent.chmod(0o777)
    assert refusal("policy.toml").startswith(f"in {path.parent}, where others")


def config_map(volume: Path) -> Path:
    """A file as the kubelet lays it out: it changes all of a volume by one rename."""
    inner = volume / "..2026_01_31_12_00_00.123456789"
    inner.mkdir(parents=True, mode=0o755)
    written(inner / "policy.toml")
    (volume / "..data").symlink_to(inner.name)
    (volume / "policy.toml").symlink_to("..data/policy.toml")
    return volume / "policy.toml"


def test_a_config_map_is_read_through_its_links(tmp_path: Path) -> None:
    path = config_map(tmp_path / "volume")
    assert sources.read_octets(str(path)) == TEXT
    path.parent.chmod(0o777)  # in which anybody could turn ..data round
    assert refusal(path).startswith(f"in {path.parent}, where others")


def test_a_volume_of_mode_0777_is_good_where_it_is_mounted_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_map(tmp_path / "volume")
    path.parent.chmod(0o777)
    asked: list[str] = []

    def read_only(directory: str) -> SimpleNamespace:
        asked.append(directory)
        return SimpleNamespace(f_flag=os.ST_RDONLY | os.ST_NOSUID)

    monkeypatch.setattr(os, "statvfs", read_only)
    assert sources.read_octets(str(path)) == TEXT
    assert asked == [str(path.parent)]


@is_root
def test_root_is_trusted_by_whoever_reads() -> None:
    program = (
        "import os, sys; from kinkd.policy import sources; os.setresuid(*[65534] * 3)\n"
        "print(sources.read_octets(sys.argv[1]))"
    )
    with tempfile.TemporaryDirectory() as name:
        for mode in (0o755, 0o1777):
            Path(name).chmod(mode)
            path = written(Path(name) / "policy.toml")
            command = [sys.executable, "-B", "-c", program, str(path)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            assert done.stdout == f"{TEXT!r}\n"


# --- the source ---------------------------------------------------------------------------------


def test_a_file_is_a_source_that_never_calls_by_itself(path: Path) -> None:
    path.write_bytes((ROOT / "conf" / "policy.toml").read_bytes())
    source: sources.Source = sources.FileSource(str(path))
    source.start(lambda: pytest.fail("called"))
    found = source.load()
    assert (found.text, found.policy.version) == (path.read_text(), 1)
    path.write_text("schema = \n")
    with pytest.raises(DocumentError, match=r"policy\.toml:1: not TOML"):
        source.load()
    assert source.state() == {"kind": "file"}
    source.stop()
