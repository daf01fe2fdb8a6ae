"""The replica of the directory's content (RFC 4533): complete or as it was."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import LocalError
from kinkd.policy.directory import content
from kinkd.policy.directory.content import Content, Entry


def entry(uuid: str, value: str = "") -> Entry:
    return Entry(uuid, f"cn={uuid}", {"description": (value.encode(),)})


def filled(*uuids: str, cookie: str = "1") -> Content:
    """A replica that one refresh has filled."""
    found = Content()
    found.begin()
    for uuid in uuids:
        found.put(entry(uuid))
        found.present([uuid])
    found.set_cookie(cookie)
    found.end_present()
    found.refresh_done()
    found.commit()
    return found


def test_a_first_refresh_fills_it() -> None:
    found = filled("a", "b")
    assert set(found.entries) == {"a", "b"}
    assert found.cookie == "1"
    assert not found.has_news


def test_a_refresh_that_is_cut_leaves_nothing_behind() -> None:
    found = filled("a", "b")
    found.begin()
    found.put(entry("c"))
    found.delete(["a"])
    found.present(["c"])
    found.end_present()  # staged: b is gone
    found.set_cookie("2")
    assert set(found.entries) == {"a", "b"}
    with pytest.raises(AssertionError, match="not complete"):
        found.commit()
    found.begin()
    found.present(["a", "b"])
    found.end_present()
    found.refresh_done()
    assert found.commit() == {}
    assert set(found.entries) == {"a", "b"}
    assert found.cookie == "1"


def test_the_present_phase_deletes_what_it_does_not_name() -> None:
    found = filled("a", "b", "c")
    found.begin()
    found.put(entry("b", "new"))
    found.present(["a"])
    found.end_present()
    found.set_cookie("2")
    found.refresh_done()
    assert found.commit() == {"b": entry("b", "new"), "c": None}
    assert set(found.entries) == {"a", "b"}
    assert found.cookie == "2"


def test_the_delete_phase_deletes_what_it_names() -> None:
    found = filled("a", "b", "c")
    found.begin()
    found.delete(["c", "unknown"])
    found.refresh_done()
    assert found.commit() == {"c": None}
    assert set(found.entries) == {"a", "b"}


def test_a_present_phase_may_be_followed_by_a_delete_phase() -> None:
    found = filled("a", "b", "c")
    found.begin()
    found.present(["a", "b"])
    found.end_present()
    found.delete(["b"])
    found.refresh_done()
    assert found.commit() == {"b": None, "c": None}


def test_without_a_cookie_what_came_is_all_there_is() -> None:
    found = filled("a", "b")
    found.forget_cookie()
    found.begin()
    found.put(entry("b"))
    found.refresh_done()
    assert set(found.entries) == {"a", "b"}
    found.commit()
    assert set(found.entries) == {"b"}
    assert found.cookie is None


def test_after_the_refresh_nothing_is_deleted_but_by_name() -> None:
    found = filled("a", "b")
    found.end_present()  # what python-ldap makes of the end of a search
    assert not found.has_news
    found.put(entry("a", "new"))
    found.delete(["b"])
    found.set_cookie("2")
    assert found.has_news
    assert found.commit() == {"a": entry("a", "new"), "b": None}
    assert found.cookie == "2"


def test_a_cookie_alone_is_news_that_changes_nothing() -> None:
    found = filled("a")
    found.set_cookie("2")
    assert found.has_news
    assert found.commit() == {}
    assert found.cookie == "2"


def test_it_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "MAXIMUM_ENTRIES", 3)
    monkeypatch.setattr(content, "MAXIMUM_OCTETS", 100)
    found = filled("a", "b", "c")
    found.put(entry("a", "as many as before"))
    with pytest.raises(LocalError, match="more than 3 entries"):
        found.put(entry("d"))
    found = filled("a", "b")
    found.put(entry("a", "x" * 80))
    found.put(entry("a", "x" * 85))
    with pytest.raises(LocalError, match="more than"):
        found.put(entry("b", "x" * 10))


_UUIDS = st.sampled_from("abcdef")
_STEPS = st.lists(
    st.tuples(st.just("put"), _UUIDS, st.sampled_from("xy"))
    | st.tuples(st.just("delete"), _UUIDS)
    | st.tuples(st.just("done")),
    max_size=30,
)


@given(_STEPS, st.lists(st.tuples(st.sets(_UUIDS), st.booleans()), max_size=4))
def test_what_was_counted_is_what_is_there(
    steps: list[tuple[str, ...]], sessions: list[tuple[set[str], bool]]
) -> None:
    found, mirror = filled("a", "b"), {"a": entry("a"), "b": entry("b")}
    for step in steps:
        match step:
            case ("put", uuid, value):
                found.put(entry(uuid, value))
                mirror[uuid] = entry(uuid, value)
            case ("delete", uuid):
                found.delete([uuid])
                mirror.pop(uuid, None)
            case _:
                found.commit()
                assert found.entries == mirror
    found.commit()
    for present, whole in sessions:
        found.begin()
        found.present(present)
        found.end_present()
        if whole:
            found.refresh_done()
            found.commit()
            mirror = {uuid: each for uuid, each in mirror.items() if uuid in present}
        assert found.entries == mirror
        assert found._octets == sum(each.octets for each in found.entries.values())


def test_a_server_that_goes_on_and_on_fills_nothing() -> None:
    """UUIDs without end, of entries that are none, or come and go within one refresh."""
    found = filled("a")
    found.begin()
    for number in range(1000):
        found.present([f"stranger {number}"])
        found.put(entry(f"guest {number}"))
        found.delete([f"guest {number}"])
    assert found.staged == {}
    assert found._present == set()
    found.present(["a"])
    found.end_present()
    found.refresh_done()
    assert found.commit() == {}


def test_an_entry_that_is_deleted_and_added_again_is_there() -> None:
    found = filled("a")
    found.delete(["a"])
    found.put(entry("a", "new"))
    assert found.commit() == {"a": entry("a", "new")}
    found.put(entry("b"))
    found.delete(["b", "a"])
    assert found.commit() == {"a": None}
