"""What is remembered of the last policy makes the next one fast, and nothing else of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinkd.document import Document
from kinkd.errors import DocumentError, LocalError
from kinkd.model import Protection, SpdEntry
from kinkd.policy import resolve
from kinkd.policy.match import HostPolicy
from kinkd.policy.reader import Memory, read
from kinkd.policy.realm import RealmPolicy
from kinkd.policy.resolve import Options
from tests.support.documents import HOSTS, documents
from tests.support.large_policy import Size, host_names, large_policy

SMALL = Size(hosts=200, groups=40, rules=30)
CHANGES = (
    # A word of the document, and another for it.
    *(("disabled = true", "disabled = 1"), ("disabled = true", "disabled = false")),
    *(("audit = true", "audit = 1.0"), ("audit = true", "audit = false"), ("R.TEST", "S.TEST")),
    *(("192.0.2.2", "192.0.2.3"), ("192.0.2.2", "192.0.2.77"), ("a.r.test", "b.x.test")),
    *(("[hosts.a]", "[hosts.e]"), ("[hosts.d]", "[hosts.Z]"), ("require", "request")),
    *(("transport", "tunnel"), ("fqdn = ", "user = "), ("[rules]", "[rulez]"), ("tcp", "udp")),
    *(('g = ["', 'g = ["nobody", "'), ("aes256-sha256", "aes128-sha256"), ("198.51.100", "10.9.9")),
)

changed = st.builds(
    lambda text, changes: [text, *(text.replace(*each) for each in changes), text],
    documents(),
    st.lists(st.sampled_from(CHANGES), min_size=1, max_size=3),
)

HALF = settings(max_examples=settings().max_examples // 2, deadline=None)
"""Of what is costly."""
turns = st.one_of(st.lists(documents(), min_size=2, max_size=3), changed)


def outcome(text: str, memory: Memory | None) -> RealmPolicy | str:
    try:
        return read(Document.parse("p", text.encode()), memory)
    except DocumentError as error:
        return str(error)


def said(policy: RealmPolicy) -> tuple[object, ...]:
    """All that can be seen of a policy."""
    terms = [policy.terms(one, other) for one in policy.hosts for other in policy.hosts]
    lines = [policy.place(rule) for rule in policy.rules]
    kinds = {name: policy.kind(name) for name in (*policy.hosts, *policy.places, "world")}
    return policy, terms, lines, kinds, policy.warnings, list(policy.prefixes())


def view(
    policy: RealmPolicy, name: str, options: Options, memory: resolve.Memory | None
) -> HostPolicy | str:
    try:
        return resolve.resolve(policy, name, options, memory)
    except LocalError as error:
        return str(error)


@dataclass(frozen=True)
class Parts:
    """What stands in a protection without being compared or shown."""

    protection: Protection
    entries: tuple[SpdEntry, ...]
    requested: tuple[SpdEntry, ...]
    when_keyed: tuple[SpdEntry, ...]


def parts(policy: HostPolicy | str) -> list[Parts]:
    if isinstance(policy, str):
        return []
    return [
        Parts(each, each.entries, each.requested, each.when_keyed) for each in policy.protections
    ]


@HALF
@given(turns, st.sampled_from(HOSTS), st.booleans())
def test_documents_in_turn_are_read_and_resolved_as_if_each_were_the_first(
    texts: list[str], name: str, narrow: bool
) -> None:
    memory, remembered = Memory(), resolve.Memory()
    options = Options(reqids=range(1, 40)) if narrow else Options()  # names collide
    for text in texts:
        found, plain = outcome(text, memory), outcome(text, None)
        if isinstance(found, str) or isinstance(plain, str):
            assert found == plain
            continue
        assert said(found) == said(plain)
        ours, theirs = view(found, name, options, remembered), view(plain, name, options, None)
        assert ours == theirs
        assert parts(ours) == parts(theirs)


def test_what_has_not_changed_is_the_same_objects() -> None:
    names = host_names(SMALL)
    memory, remembered = Memory(), resolve.Memory()
    views = []
    for moved in ("", names[-1]):
        document = Document.parse("p", large_policy(SMALL, moved=moved).encode())
        policy = read(document, memory)
        views.append(resolve.resolve(policy, names[1], Options(), remembered))
    before, after = ({id(each) for each in view.protections} for view in views)
    assert len(after - before) < 10 < len(after & before)


def test_a_memory_holds_what_the_last_document_needs() -> None:
    memory, remembered = Memory(), resolve.Memory()
    for moved in ("", *host_names(SMALL)[10:20], ""):
        document = Document.parse("p", large_policy(SMALL, moved=moved).encode())
        policy = read(document, memory)
        view = resolve.resolve(policy, "web00001", Options(), remembered)
    fresh = resolve.Memory()
    assert view == resolve.resolve(policy, "web00001", Options(), fresh)
    assert remembered.makings.keys() == fresh.makings.keys()
    assert remembered.demands.keys() == fresh.demands.keys()
    assert remembered.known.networks.keys() == fresh.known.networks.keys()


def test_a_document_that_is_refused_leaves_the_memory_as_it_was() -> None:
    memory = Memory()
    text = large_policy(SMALL)
    read(Document.parse("p", text.encode()), memory)
    before = memory.inhabitants
    with pytest.raises(DocumentError):
        read(Document.parse("p", text.replace('"all"', '"nobody"').encode()), memory)
    assert memory.inhabitants is before
