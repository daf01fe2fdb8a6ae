"""A change of a file is told once, when it is over, whatever the path leads through."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.app.files import Watch


class Loop:
    """An event loop's timers, one round at a time."""

    def __init__(self) -> None:
        self.timers: list[Timer] = []

    def call_later(self, seconds: float, call: Callable[[], None]) -> Timer:
        assert seconds > 0
        self.timers.append(Timer(self, call))
        return self.timers[-1]

    def round(self) -> None:
        due, self.timers = self.timers, []
        for timer in due:
            timer.call()


class Timer:
    def __init__(self, loop: Loop, call: Callable[[], None]) -> None:
        self.loop = loop
        self.call = call

    def cancel(self) -> None:
        self.loop.timers.remove(self)


class Reader:
    """Reads the file when told; every change makes its text longer, so no two are alike."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "policy.toml"
        self.written = 0
        self.tells = 0
        self.loop = Loop()
        self.watch = Watch(str(self.path), self.loop.call_later, self.read)
        self.text = self.now()

    def read(self) -> None:
        self.tells += 1
        self.text = self.now()

    def now(self) -> str | None:
        try:
            return self.path.read_text()
        except FileNotFoundError:
            return None

    def fresh(self) -> str:
        self.written += 1
        return "x" * self.written

    def write(self) -> None:
        if not os.path.lexists(self.path) or self.path.exists():
            self.path.write_text(self.fresh())

    def half(self) -> None:
        """An editor in the middle of it."""
        if self.path.exists():
            with self.path.open("a") as file:
                file.write(self.fresh())

    def replace(self) -> None:
        new = self.directory / "new"
        new.write_text(self.fresh())
        new.replace(self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def swap(self) -> None:
        """As Kubernetes does: path -> ..data/policy.toml, and ..data -> a new directory."""
        text = self.fresh()
        there = self.directory / f"..{self.written}"
        there.mkdir()
        (there / "policy.toml").write_text(text)
        link(self.directory / "..data", there.name)
        if not self.path.is_symlink():
            link(self.path, "..data/policy.toml")

    def dangle(self) -> None:
        link(self.path, "nowhere")

    def look(self) -> None:
        self.loop.round()


def link(path: Path, to: str) -> None:
    new = path.with_name("link")
    new.symlink_to(to)
    new.replace(path)


CHANGES = ("write", "half", "replace", "remove", "swap", "dangle")


@given(st.lists(st.sampled_from((*CHANGES, "look", "look")), max_size=30))
def test_when_the_changes_are_over_it_is_told_once_and_the_reader_has_the_last(
    steps: list[str],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        reader = Reader(Path(directory))
        for step in steps:
            before = reader.tells
            getattr(reader, step)()
            assert reader.tells <= before + (step == "look")
        pending, before = reader.text != reader.now(), reader.tells
        for _ in range(4):
            reader.look()
        assert reader.tells == before + pending
        assert reader.text == reader.now()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    (tmp_path / "policy.toml").write_text("")
    reader = Reader(tmp_path)
    yield reader
    reader.watch.stop()
    assert not reader.loop.timers


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_told_at_the_second_look(reader: Reader, change: str) -> None:
    getattr(reader, change)()
    reader.look()
    assert reader.tells == 0
    reader.look()
    assert reader.tells == 1
    assert reader.text == reader.now()


def test_nothing_is_told_while_it_is_being_written(reader: Reader) -> None:
    for _ in range(5):
        reader.half()
        reader.look()
    assert reader.tells == 0
    reader.look()
    assert reader.tells == 1


def test_the_same_size_written_in_place_is_told(reader: Reader) -> None:
    reader.path.write_text("a")
    reader.look()
    reader.look()
    times = reader.path.stat()
    reader.path.write_text("b")
    # Clocks of file systems are coarse: a later writer's time is another one.
    os.utime(reader.path, ns=(times.st_atime_ns, times.st_mtime_ns + 10_000_000))
    reader.look()
    reader.look()
    assert (reader.tells, reader.text) == (2, "b")


def test_a_change_that_is_taken_back_within_a_look_is_none(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.look()
    reader.write()
    reader.remove()
    reader.look()
    reader.look()
    assert reader.tells == 0


def test_what_is_written_while_it_is_read_is_told_again(reader: Reader) -> None:
    watch_read = reader.read

    def read_then_written() -> None:
        watch_read()
        if reader.tells == 1:
            reader.write()

    reader.watch.stop()
    reader.watch = Watch(str(reader.path), reader.loop.call_later, read_then_written)
    reader.write()
    for _ in range(5):
        reader.look()
    assert reader.tells == 2
    assert reader.text == reader.now()


def test_a_fault_of_the_reader_ends_nothing(tmp_path: Path) -> None:
    tells = 0

    def fail() -> None:
        nonlocal tells
        tells += 1
        raise RuntimeError("the reader's")

    loop = Loop()
    Watch(str(tmp_path / "f"), loop.call_later, fail)
    for text in ("a", "ab"):
        (tmp_path / "f").write_text(text)
        loop.round()
        with pytest.raises(RuntimeError, match="the reader's"):
            loop.round()
    assert tells == 2


def test_the_reader_may_stop_it(tmp_path: Path) -> None:
    loop = Loop()

    def stop() -> None:
        watch.stop()

    watch = Watch(str(tmp_path / "f"), loop.call_later, stop)
    (tmp_path / "f").write_text("a")
    loop.round()
    loop.round()
    assert not loop.timers


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "", "/proc/self/mem/x", "\udcff"])
def test_a_path_that_leads_nowhere_is_absent(path: str) -> None:
    loop = Loop()
    Watch(path, loop.call_later, lambda: pytest.fail("told"))
    for _ in range(3):
        loop.round()


def test_it_fits_the_event_loop(tmp_path: Path) -> None:
    path = tmp_path / "f"

    async def until_told() -> str:
        told = asyncio.Event()
        watch = Watch(str(path), asyncio.get_running_loop().call_later, told.set, 0.01)
        path.write_text("new")
        await asyncio.wait_for(told.wait(), 20)
        watch.stop()
        return path.read_text()

    assert asyncio.run(until_told()) == "new"
