"""Of any document: what the entries of the SPD do with a packet is what the document demands."""

from __future__ import annotations

import itertools
import re
import tomllib
from unittest import mock

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kinkd.document import Document
from kinkd.errors import DocumentError, LocalError
from kinkd.model import Direction, Mode, Protection, SpdEntry
from kinkd.policy import lint, realm
from kinkd.policy.exemptions import EXEMPTION_COUNT
from kinkd.policy.match import HostPolicy
from kinkd.policy.reader import read
from kinkd.policy.realm import WORLD, RealmPolicy
from kinkd.policy.resolve import Options, resolve
from kinkd.policy.traffic import ANY
from tests.support.documents import documents, packets
from tests.support.oracle import Demand, Oracle, Packet
from tests.unit.test_policy_resolve import meet

HALF = settings(max_examples=settings().max_examples // 2, deadline=None)
"""Of what is costly."""

EXEMPT = Options().priorities[:EXEMPTION_COUNT]
REFUSED = ("serves two hosts", "no addresses of one family", "of another address family")


def parsed(text: str) -> RealmPolicy:
    return read(Document.parse("p", text.encode()))


def views_of(policy: RealmPolicy) -> dict[str, HostPolicy]:
    return {name: resolve(policy, name, Options()) for name in policy.hosts}


def resolved(text: str) -> tuple[RealmPolicy, dict[str, HostPolicy]]:
    """The document as it is read, and as each host sees it; what is refused is no example."""
    try:
        policy = parsed(text)
        return policy, views_of(policy)
    except (DocumentError, LocalError) as error:
        assume(not any(words in str(error) for words in REFUSED))
        raise


def takes(entry: SpdEntry, packet: Packet) -> bool:
    """Whether the kernel finds a packet within the selector of an entry."""
    selector = entry.selector
    return (
        packet.source in selector.source
        and packet.destination in selector.destination
        and selector.protocol in (0, packet.protocol)
        and not (packet.source_port ^ selector.source_port.port) & selector.source_port.mask
        and not (packet.destination_port ^ selector.destination_port.port)
        & selector.destination_port.mask
    )


def decider(policy: HostPolicy, direction: Direction, packet: Packet) -> SpdEntry | None:
    """The entry that decides: of those that take a packet the one with the smallest number."""
    hits = [e for e in policy.entries if e.direction is direction and takes(e, packet)]
    numbers = [entry.priority for entry in hits]
    assert len(set(numbers)) == len(numbers)
    return min(hits, key=lambda entry: entry.priority, default=None)


def protection_of(policy: HostPolicy, packet: Packet, direction: Direction) -> Protection:
    """The most specific one of a packet's traffic."""
    ends = packet[:2] if direction is Direction.OUT else packet[1::-1]
    return next(
        each
        for each in policy.protections
        if ends[0] in each.selector.source and ends[1] in each.selector.destination
    )


def stands_in(policy: HostPolicy, entry: SpdEntry) -> bool:
    """Whether it is of a tunnel in audit, and another takes its place while there are SAs."""
    return any(
        other.key == entry.key and other.templates
        for each in policy.protections
        for other in each.when_keyed
    )


def done(policy: HostPolicy, direction: Direction, packet: Packet, keyed: bool) -> str | None:
    """What the entries make of a packet, in words; None: it is exempt.

    Between two hosts of the realm, an SA that an entry wants is one of the protection's.
    """
    entry = decider(policy, direction, packet)
    if entry is not None and entry.priority in EXEMPT:
        assert not entry.templates
        assert not entry.block
        return None
    if entry is not None and not entry.templates and stands_in(policy, entry):
        return "require in audit"
    if entry is None or not entry.templates:
        return "block" if entry is not None and entry.block else "clear"
    assert not entry.block
    word = "require"
    if keyed:
        protection = protection_of(policy, packet, direction)
        assert entry in protection.entries
        assert {each.reqid for each in entry.templates} == {protection.reqid}
        word = "request" if entry in protection.requested else "require"
    optional = {each.optional for each in entry.templates}
    assert len(optional) == 1
    return f"{word} in audit" if optional == {True} else word


def wanted(demand: Demand) -> str:
    """The same words, of what the document demands."""
    if not demand.audit or demand.action == "clear":
        return demand.action
    # Nothing is dropped: whoever can be keyed is, and all goes on without.
    return "clear" if demand.action == "block" else "require in audit"


def owned(text: str) -> list[str]:
    return [each for host in tomllib.loads(text)["hosts"].values() for each in host["addresses"]]


@HALF
@given(documents(), st.data())
def test_what_the_entries_of_both_hosts_do_with_a_packet_is_what_the_document_demands(
    text: str, data: st.DataObject
) -> None:
    _, views = resolved(text)
    oracle = Oracle(text)
    for packet in data.draw(st.lists(packets(owned(text)), min_size=8, max_size=24)):
        want = wanted(oracle.demand(packet))
        (one, _), (other, _) = oracle.owner(packet.source), oracle.owner(packet.destination)
        keyed = one in views and other in views
        for name, directions in ((one, [Direction.OUT]), (other, [Direction.IN, Direction.FWD])):
            for direction in directions if name in views else ():
                found = done(views[name], direction, packet, keyed)
                if found is None:
                    assert oracle.is_exempt(packet)
                else:
                    assert found == want, (name, direction.name, packet)


@HALF
@given(documents(), st.data())
def test_a_host_leaves_alone_what_is_neither_from_nor_to_its_own(
    text: str, data: st.DataObject
) -> None:
    """Also where it comes by: of others in networks behind a gateway, of the link itself."""
    _, views = resolved(text)
    oracle = Oracle(text)
    for packet in data.draw(st.lists(packets(owned(text)), min_size=8, max_size=24)):
        parties = {oracle.owner(end)[0] for end in packet[:2]}
        for name in views.keys() - parties:
            for direction in Direction:
                found = done(views[name], direction, packet, keyed=False)
                assert found in (None, "clear"), (name, direction.name, packet)


@HALF
@given(documents(), st.data())
def test_the_realms_own_answer_for_a_packet_is_what_the_document_demands(
    text: str, data: st.DataObject
) -> None:
    policy, _ = resolved(text)
    oracle = Oracle(text)
    for packet in data.draw(st.lists(packets(owned(text)), min_size=8, max_size=24)):
        decision = policy.decide(realm.Packet(*packet))
        demand = oracle.demand(packet)
        rule = decision.term.rule.name if decision.term.rule else ""
        assert (decision.action.value, decision.term.audit, rule) == demand, packet


@HALF
@given(documents())
def test_no_entry_stands_twice_and_none_of_one_number_take_the_same_packet(text: str) -> None:
    _, views = resolved(text)
    for view in views.values():
        assert len({entry.key for entry in view.entries}) == len(view.entries)
        assert all(entry.priority in Options().priorities for entry in view.entries)
        by_number: dict[tuple[Direction, int], list[SpdEntry]] = {}
        for entry in view.entries:
            by_number.setdefault((entry.direction, entry.priority), []).append(entry)
        for entries in by_number.values():
            for one, other in itertools.combinations(entries, 2):
                assert not meet(one.selector, other.selector)


@given(documents())
def test_both_sides_have_the_same_protections_and_who_may_initiate_is_who_waits_for_sas(
    text: str,
) -> None:
    policy, views = resolved(text)
    for one, other in itertools.permutations(views, 2):
        ours, theirs = views[one].with_host(other), views[other].with_host(one)
        mirrored = {each.selector.reversed(): each for each in theirs}
        assert {each.selector for each in ours} == mirrored.keys()
        for here in ours:
            there = mirrored[here.selector]
            assert (here.local, here.remote) == (there.remote, there.local)
            assert (here.rule, here.profile, here.mode, here.udp) == (
                *(there.rule, there.profile, there.mode, there.udp),
            )
            if here.mode is Mode.TRANSPORT:
                assert here.reqid == there.reqid
            assert set(here.requested) <= set(here.entries) <= set(views[one].entries)
        asks = policy.may_initiate(one, other)
        waiting = [
            e for each in ours for e in each.outbound_entries + each.when_keyed if e.templates
        ]
        heard = [e for each in theirs for e in each.entries if is_inbound(e) and e.templates]
        assert bool(waiting) == bool(heard) == (asks and bool(ours))


@given(documents())
def test_two_kinds_of_sa_are_refused_where_two_hosts_would_have_them_and_nowhere_else(
    text: str,
) -> None:
    with mock.patch.object(lint, "refuse"):
        policy = parsed(text)
    kinds = [
        {
            (term.rule.profile, term.rule.mode, term.rule.udp)
            for term in (*policy.terms(one, other), *policy.terms(other, one))
            if term.protects and term.rule is not None
        }
        for one, other in itertools.combinations(policy.hosts, 2)
    ]
    try:
        parsed(text)
    except DocumentError as error:
        assume("serves two hosts" in str(error))
        assert any(len(each) > 1 for each in kinds)
    else:
        assert all(len(each) <= 1 for each in kinds)


@given(documents())
def test_a_rule_that_is_said_never_to_decide_does_not(text: str) -> None:
    policy, _ = resolved(text)
    parties = (*policy.hosts, *policy.places, WORLD)
    deciding = {
        term.rule.name
        for one, other in itertools.permutations(parties, 2)
        if one in policy.hosts or other in policy.hosts
        for term in policy.terms(one, other)
        if term.rule is not None
    }
    warned = {
        match[1]
        for warning in policy.warnings
        if (match := re.search(r'rule "(\d+)" never decides', warning))
    }
    assert not warned & deciding
    whole = {rule.name for rule in policy.rules if ANY in rule.traffic}
    if len(whole) == len(policy.rules):
        assert warned == whole - deciding


def is_inbound(entry: SpdEntry) -> bool:
    return entry.direction is Direction.IN
