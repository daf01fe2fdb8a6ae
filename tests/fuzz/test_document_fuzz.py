"""Any octets are a policy document, or are refused by a DocumentError on one line."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from kinkd.document import Document
from kinkd.errors import DocumentError
from kinkd.policy.reader import read

EXAMPLE = (Path(__file__).resolve().parents[2] / "conf" / "policy.toml").read_bytes()
MARKS = rb"[ ] { } = , # \ 1 true inf -1 all [[rules]] [hosts.alice] 1979-05-27".split()
WORDS = st.sampled_from([*MARKS, b'"', b'"""', b"'''", b"\n", b"\r\n", b"\xff"])


def survives(octets: bytes) -> None:
    refusal = None
    try:
        document = Document.parse("p", octets)
        for _, item in document.root.entries():
            document.line((*item.path, "x", 0))
        read(document)
    except DocumentError as error:
        refusal = error
    if refusal is not None:
        assert "\n" not in str(refusal)
        assert refusal.line is None or 1 <= refusal.line <= octets.count(b"\n") + 1


@given(st.binary(max_size=200))
def test_any_octets_are_read_or_refused(octets: bytes) -> None:
    survives(octets)


@given(st.lists(WORDS, max_size=40))
def test_any_words_of_toml_are_read_or_refused(words: list[bytes]) -> None:
    survives(b"".join(words))


@given(st.integers(0, len(EXAMPLE)), st.integers(0, 30), st.lists(WORDS | st.binary(max_size=4)))
def test_any_change_of_a_good_document_is_read_or_refused(
    start: int, length: int, words: list[bytes]
) -> None:
    survives(EXAMPLE[:start] + b"".join(words) + EXAMPLE[start + length :])


def test_the_example_we_ship_is_read_without_a_warning() -> None:
    assert read(Document.parse("p", EXAMPLE)).warnings == ()
