"""What becomes of the realm's traffic when one document takes the place of another.

An **end** is a stretch of addresses with its owner before and its owner after: a host, what lies
behind it, a place, the world; for addresses that change hands, two of these. Between ends packets
are compared, exactly: whoever changes a group, an address or the order of two rules is told what
that does, and not what he has typed.

Of 5,000 hosts there are 25 million pairs. Ends are **alike** that the same rules name on the same
sides, in both documents; a row of the table of all pairs is worked out for all columns at once,
each set of alike ends a bit of an integer. Rows are looked at only as far as a rule or an end in
them differs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from enum import Enum
from ipaddress import ip_network
from typing import Final, NamedTuple

from kinkd.model import Action, IPNetwork, Mode
from kinkd.policy.realm import PROTECTING, WORLD, Owner, RealmPolicy, Rule, Term, in_reach
from kinkd.policy.traffic import ALL_PORTS, ANY, Traffic

_WORLD: Final = Owner(WORLD)


class End(NamedTuple):
    """Whose some addresses are, in one document and in the other."""

    before: Owner
    after: Owner

    @property
    def moves(self) -> bool:
        """Whether they change hands."""
        return self.before != self.after


class Within(Enum):
    """Whether two ends belong to one party, whose own traffic no rule is about."""

    NEVER = (False, False)
    BEFORE = (True, False)
    AFTER = (False, True)
    ALWAYS = (True, True)


def within(one: End, other: End) -> Within:
    """In which of the documents two ends belong to one party."""
    return Within((one.before.name == other.before.name, one.after.name == other.after.name))


class Verdict(NamedTuple):
    """What is done with a packet; ``profile``, ``mode`` and ``udp`` of what is protected."""

    action: Action
    audit: bool = False
    profile: str = ""
    mode: Mode = Mode.TRANSPORT
    udp: bool = False


def verdict(term: Term, *, behind: bool) -> Verdict:
    """What a term does; ``behind``: one end lies behind a gateway."""
    action = in_reach(term, behind=behind)
    audit = term.audit and action is not Action.CLEAR
    if action not in PROTECTING or term.rule is None or term.rule.profile is None:
        return Verdict(action, audit)
    return Verdict(action, audit, term.rule.profile.name, term.rule.mode, term.rule.udp)


class Delta(NamedTuple):
    """Of which packets another thing is done: those of ``traffic`` that are of none of ``but``.

    ``traffic`` is as the packets have it: ``ports`` are where they go to, ``source_ports`` where
    they come from. The rules are the names of those that decide; None: no rule does.
    """

    traffic: Traffic
    but: tuple[Traffic, ...]
    before: Verdict
    after: Verdict
    rule_before: str | None
    rule_after: str | None

    def reversed(self) -> Delta:
        """The same of packets the other way."""
        return self._replace(
            traffic=_reversed(self.traffic), but=tuple(_reversed(each) for each in self.but)
        )


@dataclass(frozen=True, slots=True)
class Change:
    """The same delta between every end of ``sources`` and every one of ``destinations``.

    Left out are pairs of one and the same party, unless ``within`` says so. ``both_ways``: the
    same is true of the packets back.
    """

    delta: Delta
    sources: Ends
    destinations: Ends
    within: Within = Within.NEVER
    both_ways: bool = False


class _Alike:
    """The sets of alike ends, by number; ``several``: those that have more than one."""

    def __init__(self, sets: Iterable[list[End]]) -> None:
        self.sets = list(sets)
        self.several = sum(1 << number for number, ends in enumerate(self.sets) if ends[1:])


class Ends:
    """Some ends: a bit for each set of alike ones, which are looked up when they are asked for."""

    __slots__ = ("_alike", "mask")

    def __init__(self, mask: int, alike: _Alike) -> None:
        self.mask = mask
        self._alike = alike

    def __iter__(self) -> Iterator[End]:
        for number in _bits(self.mask):
            yield from self._alike.sets[number]

    def __len__(self) -> int:
        several = _bits(self.mask & self._alike.several)
        return self.mask.bit_count() + sum(len(self._alike.sets[each]) - 1 for each in several)


def compare(old: RealmPolicy, new: RealmPolicy) -> list[Change]:
    """Everything that is done otherwise by ``new`` than by ``old``; what concerns most ends first.

    Traffic inside one party is not compared, nor is how a profile protects.
    """
    return _Comparison(old, new).changes()


# --- ends, and which of them are alike ---------------------------------------------------------


def ends(old: RealmPolicy, new: RealmPolicy) -> dict[End, list[IPNetwork]]:
    """All ends that there are, with the prefixes that make them; the world's has none."""
    owners = [_owners(policy) for policy in (old, new)]
    lengths = [sorted({(each.version, each.prefixlen) for each in of}) for of in owners]
    found: dict[End, list[IPNetwork]] = {End(_WORLD, _WORLD): []}
    for prefix in dict.fromkeys((*owners[0], *owners[1])):
        before, after = (
            of.get(prefix) or _around(prefix, of, its)
            for of, its in zip(owners, lengths, strict=True)
        )
        found.setdefault(End(before, after), []).append(prefix)
    return found


def _owners(policy: RealmPolicy) -> dict[IPNetwork, Owner]:
    found: dict[IPNetwork, Owner] = {}
    for host in policy.hosts.values():
        found.update((ip_network(each), Owner(host.name)) for each in host.addresses)
        found.update((each, Owner(host.name, behind=True)) for each in host.networks)
    for place in policy.places.values():
        found.update((each, Owner(place.name)) for each in place.prefixes)
    return found


def _around(
    prefix: IPNetwork, owners: Mapping[IPNetwork, Owner], lengths: Sequence[tuple[int, int]]
) -> Owner:
    """Whose a prefix is that has no owner of its own: that of the longest one around it."""
    for version, length in reversed(lengths):
        if version == prefix.version and length < prefix.prefixlen:
            owner = owners.get(prefix.supernet(new_prefix=length))
            if owner is not None:
                return owner
    return _WORLD


_Flags = tuple[bool, bool, bool, bool]


class _Outcome(NamedTuple):
    """A term as packets meet it."""

    traffic: Traffic
    verdict: Verdict
    rule: str | None


@dataclass(frozen=True, slots=True, eq=False)
class _Outcomes:
    """All that is done with packets from one end to another: the first that matches decides.

    ``number``: the same where the same is done, by whatever rules.
    """

    each: tuple[_Outcome, ...]
    number: int


class _Numbers:
    """Of things that are equal, one number: what is compared often is compared by that."""

    def __init__(self) -> None:
        self._numbers: dict[object, int] = {}

    def of(self, thing: object) -> int:
        return self._numbers.setdefault(thing, len(self._numbers))


class _Side:
    """One of the two documents, by sets of alike ends."""

    def __init__(self, policy: RealmPolicy, owners: list[Owner], numbers: _Numbers) -> None:
        self.policy = policy
        self._numbers = numbers
        self.owners = owners  # of each set the first one's: all others fare alike
        kinds = [policy.kind(owner.name) for owner in owners]
        self.sources = [kind[0] for kind in kinds]
        self.destinations = [kind[1] for kind in kinds]
        self.from_rule = _columns(self.sources, len(policy.rules))
        self.to_rule = _columns(self.destinations, len(policy.rules))
        self.whole = [ANY in rule.traffic for rule in policy.rules]
        self.flags = [self._flags(owner) for owner in owners]
        self._of_flags: dict[_Flags, int] = {}
        for number, flags in enumerate(self.flags):
            self._of_flags[flags] = self._of_flags.get(flags, 0) | 1 << number
        self._known: dict[tuple[object, ...], _Outcomes] = {}
        self.inside = self._outcomes([_Outcome(ANY, Verdict(Action.CLEAR), None)])

    def _flags(self, owner: Owner) -> _Flags:
        host = self.policy.hosts.get(owner.name)
        if host is None:
            return (False, False, False, owner.behind)
        return (True, host.disabled, host.audit, owner.behind)

    def row(self, one: int, columns: int) -> Iterator[tuple[int, _Outcomes]]:
        """What is done with packets from ``one`` to each of ``columns``."""
        for found, key in self._parts(one, columns):
            for flags, of_flags in self._of_flags.items():
                if mask := found & of_flags:
                    known = (key, self.flags[one], flags)
                    outcomes = self._known.get(known)
                    if outcomes is None:
                        outcomes = self._known[known] = self.between(one, _first(mask))
                    yield mask, outcomes

    def between(self, one: int, other: int) -> _Outcomes:
        """What is done with packets from one to another, of different parties."""
        here, there = self.owners[one], self.owners[other]
        behind = here.behind or there.behind
        return self._outcomes(
            _Outcome(
                term.traffic if term.asks else _reversed(term.traffic),
                verdict(term, behind=behind),
                None if term.rule is None else term.rule.name,
            )
            for term in self.policy.terms(here.name, there.name)
        )

    def _outcomes(self, each: Iterable[_Outcome]) -> _Outcomes:
        found = tuple(each)
        return _Outcomes(found, self._numbers.of(tuple(one[:2] for one in found)))

    def _parts(self, one: int, columns: int) -> Iterator[tuple[int, tuple[int, ...]]]:
        """``columns`` in parts, each with the rules that speak of it up to one of any traffic."""
        asks, answers = self.sources[one], self.destinations[one]
        live: list[tuple[int, tuple[int, ...]]] = [(columns, ())]
        left = asks | answers
        while left and live:
            bit = left & -left
            left ^= bit
            number = bit.bit_length() - 1
            forward = self.to_rule[number] if asks & bit else 0
            back = self.from_rule[number] if answers & bit else 0
            if not (forward | back) & columns:
                continue
            after: list[tuple[int, tuple[int, ...]]] = []
            for mask, key in live:
                if rest := mask & ~(forward | back):
                    after.append((rest, key))
                ways = (forward & back, forward & ~back, back & ~forward)
                for way, named in enumerate(ways):
                    if hit := mask & named:
                        part = (hit, (*key, number * 3 + way))
                        if self.whole[number]:
                            yield part
                        else:
                            after.append(part)
            live = after
        yield from live


def _columns(masks: list[int], count: int) -> list[int]:
    """Of masks of rules, by set, the masks of sets, by rule."""
    found = [bytearray(len(masks) // 8 + 1) for _ in range(count)]
    for number, mask in enumerate(masks):
        for rule in _bits(mask):
            found[rule][number >> 3] |= 1 << (number & 7)
    return [int.from_bytes(each, "little") for each in found]


def _bits(mask: int) -> Iterator[int]:
    return (number for number, bit in enumerate(reversed(bin(mask))) if bit == "1")


def _first(mask: int) -> int:
    return (mask & -mask).bit_length() - 1


# --- the comparison ----------------------------------------------------------------------------


class _Comparison:
    def __init__(self, old: RealmPolicy, new: RealmPolicy) -> None:
        kinds: dict[tuple[object, ...], list[End]] = {}
        for end in ends(old, new):
            key = (_kind(old, end.before), _kind(new, end.after), end.moves)
            kinds.setdefault(key, []).append(end)
        self._alike = alike = _Alike(kinds.values())
        numbers = _Numbers()
        self._old = _Side(old, [each[0].before for each in alike.sets], numbers)
        self._new = _Side(new, [each[0].after for each in alike.sets], numbers)
        self._all = (1 << len(alike.sets)) - 1
        self._found: dict[tuple[Delta, Within], dict[int, int]] = {}
        self._known: dict[tuple[_Outcomes, _Outcomes, Within], list[dict[int, int]]] = {}
        self._by_name: dict[tuple[bool, str], set[int]] = {}
        for number, ends_alike in enumerate(self._alike.sets):
            for end in ends_alike:
                self._by_name.setdefault((False, end.before.name), set()).add(number)
                self._by_name.setdefault((True, end.after.name), set()).add(number)
        self._impossible = [self._within(number) for number in range(len(self._alike.sets))]

    def changes(self) -> list[Change]:
        """All of them."""
        for one, columns in self._suspects():
            self._compare_row(one, columns & ~self._impossible[one])
        made = [
            change
            for (delta, inside), rows in self._found.items()
            for change in self._blocks(delta, inside, rows)
        ]
        made = _paired(made)
        return sorted(made, key=lambda each: -len(each.sources) * len(each.destinations))

    def _suspects(self) -> Iterator[tuple[int, int]]:
        """The rows, and their columns, in which something can differ."""
        old_rules, new_rules = _aligned(self._old.policy, self._new.policy)
        dirty = 0
        for number in range(len(self._alike.sets)):
            before = (self._old.sources[number], self._old.destinations[number])
            after = (self._new.sources[number], self._new.destinations[number])
            other_kind = _seen(before, old_rules) != _seen(after, new_rules)
            if other_kind or self._old.flags[number] != self._new.flags[number]:
                dirty |= 1 << number
        touched = [
            (side.from_rule[number], side.to_rule[number])
            for side, kept in ((self._old, old_rules), (self._new, new_rules))
            for number in set(range(len(side.policy.rules))) - set(kept)
        ]
        for one in range(len(self._alike.sets)):
            columns = self._all if dirty >> one & 1 else dirty
            for sources, destinations in touched:
                columns |= (destinations if sources >> one & 1 else 0) | (
                    sources if destinations >> one & 1 else 0
                )
            if columns:
                yield one, columns

    def _compare_row(self, one: int, columns: int) -> None:
        after = list(self._new.row(one, columns))
        same: dict[int, int] = {}
        for mask, outcomes in after:
            same[outcomes.number] = same.get(outcomes.number, 0) | mask
        for mask, outcomes in self._old.row(one, columns):
            if left := mask & ~same.get(outcomes.number, 0):
                for other_mask, others in after:
                    if meet := left & other_mask:
                        self._note(outcomes, others, one, meet)

    def _note(
        self,
        before: _Outcomes,
        after: _Outcomes,
        one: int,
        columns: int,
        inside: Within = Within.NEVER,
    ) -> None:
        key = (before, after, inside)
        tables = self._known.get(key)
        if tables is None:
            deltas = _deltas(before.each, after.each)
            tables = [self._found.setdefault((delta, inside), {}) for delta in deltas]
            self._known[key] = tables
        for rows in tables:
            rows[one] = rows.get(one, 0) | columns

    # Pairs that are, before or after, of one party.

    def _within(self, one: int) -> int:
        """The columns in which no two ends are of different parties in both documents.

        What is to be said of two ends that are of one party in just one of them is noted.
        """
        impossible = 0
        names = {(False, end.before.name) for end in self._alike.sets[one]}
        names |= {(True, end.after.name) for end in self._alike.sets[one]}
        for other in set[int]().union(*(self._by_name[name] for name in names)):
            how = _ways(self._alike.sets[one], self._alike.sets[other])
            if Within.NEVER not in how:
                impossible |= 1 << other
            if Within.BEFORE in how:
                after = self._new.between(one, other)
                self._note(self._old.inside, after, one, 1 << other, Within.BEFORE)
            if Within.AFTER in how:
                before = self._old.between(one, other)
                self._note(before, self._new.inside, one, 1 << other, Within.AFTER)
        return impossible

    # From rows to blocks that people can read.

    def _blocks(self, delta: Delta, inside: Within, rows: dict[int, int]) -> Iterator[Change]:
        """Rows with the same columns together; pairs that cannot be count either way."""
        wide = {
            row: columns | (self._impossible[row] if inside is Within.NEVER else 0)
            for row, columns in rows.items()
        }
        common = Counter((*rows.values(), *wide.values()))
        blocks: dict[int, int] = {}
        for row, columns in rows.items():
            best = columns if common[columns] >= common[wide[row]] else wide[row]
            blocks[best] = blocks.get(best, 0) | 1 << row
        for columns, numbers in blocks.items():
            is_one = not numbers & (numbers - 1)  # then there is nobody to be like
            right = rows[_first(numbers)] if is_one else columns
            yield Change(delta, Ends(numbers, self._alike), Ends(right, self._alike), inside)


def _kind(policy: RealmPolicy, owner: Owner) -> tuple[object, ...]:
    host = policy.hosts.get(owner.name)
    flags = None if host is None else (host.disabled, host.audit)
    return (*policy.kind(owner.name), flags, owner.behind)


def _ways(one: list[End], other: list[End]) -> set[Within]:
    """What there is among pairs of the two; all but the very many that move from one party."""
    if len({end.before.name for end in (*one, *other)}) == 1:
        # Such as addresses of the world that hosts are given: all of them are of one party.
        afters = {end.after.name for end in one} | {end.after.name for end in other}
        return {Within.ALWAYS} if len(afters) == 1 else {Within.ALWAYS, Within.BEFORE}
    found: set[Within] = set()
    moving = one[0].moves or other[0].moves
    for here in one:
        for there in other:
            found.add(within(here, there))
            if not moving and Within.NEVER in found:
                return found
    return found


def _aligned(old: RealmPolicy, new: RealmPolicy) -> tuple[list[int], list[int]]:
    """The rules that stand in both documents in the same order and say the same, parties aside."""
    numbers = _Numbers()
    before, after = ([numbers.of(_said(rule)) for rule in policy.rules] for policy in (old, new))
    matcher = SequenceMatcher(None, before, after, autojunk=False)
    kept: tuple[list[int], list[int]] = ([], [])
    for block in matcher.get_matching_blocks():
        kept[0].extend(range(block.a, block.a + block.size))
        kept[1].extend(range(block.b, block.b + block.size))
    return kept


def _said(rule: Rule) -> tuple[object, ...]:
    profile = None if rule.profile is None else rule.profile.name
    return (
        *(rule.name, rule.traffic, rule.action, rule.back),
        *(profile, rule.mode, rule.udp, rule.audit),
    )


def _seen(kind: tuple[int, int], kept: list[int]) -> tuple[tuple[int, ...], ...]:
    """Which of the kept rules, by their place among these, name it on which side."""
    return tuple(
        tuple(place for place, number in enumerate(kept) if mask >> number & 1) for mask in kind
    )


def _deltas(before: Iterable[_Outcome], after: Iterable[_Outcome]) -> Iterator[Delta]:
    """Where two lists of outcomes differ, in either of which the first that matches decides.

    Of the two lists one is made: for each of the first, each of the second, what both are of.
    """
    made: list[Delta] = []
    for was in before:
        for will in after:
            traffic = _common(was.traffic, will.traffic)
            if traffic is None:
                continue
            hidden = [each for each in made if each.traffic.overlaps(traffic)]
            if _is_hidden(traffic, [each.traffic for each in hidden]):
                continue
            delta = Delta(traffic, (), was.verdict, will.verdict, was.rule, will.rule)
            but = (each.traffic for each in hidden if each[2:] != delta[2:])
            made.append(delta._replace(but=tuple(dict.fromkeys(but))))
    yield from (each for each in made if each.before != each.after)


def _paired(changes: list[Change]) -> list[Change]:
    """Two that say the same of packets there and back become one."""
    left = {_key(each.delta, each.sources, each.destinations, each): each for each in changes}
    found: list[Change] = []
    for each in changes:
        key = _key(each.delta, each.sources, each.destinations, each)
        if left.pop(key, None) is None:
            continue
        back = _key(each.delta.reversed(), each.destinations, each.sources, each)
        both_ways = back == key or left.pop(back, None) is not None
        found.append(_asking(replace(each, both_ways=both_ways)))
    return found


def _asking(change: Change) -> Change:
    """Of what is true both ways that which people would say: to a port, not from it."""
    traffic = change.delta.traffic
    if not change.both_ways or traffic.ports != ALL_PORTS or traffic.source_ports == ALL_PORTS:
        return change
    return replace(
        change,
        delta=change.delta.reversed(),
        sources=change.destinations,
        destinations=change.sources,
    )


def _key(delta: Delta, sources: Ends, destinations: Ends, change: Change) -> tuple[object, ...]:
    but = frozenset(delta.but)
    return delta._replace(but=()), but, sources.mask, destinations.mask, change.within


# --- sets of packets ---------------------------------------------------------------------------


def _reversed(traffic: Traffic) -> Traffic:
    return Traffic(traffic.number, traffic.source_ports, traffic.ports)


def _common(one: Traffic, other: Traffic) -> Traffic | None:
    """The packets that are of both."""
    if not one.overlaps(other):
        return None
    return Traffic(
        one.number or other.number,
        _both(one.ports, other.ports),
        _both(one.source_ports, other.source_ports),
    )


def _both(one: range, other: range) -> range:
    return range(max(one.start, other.start), min(one.stop, other.stop))


def _is_hidden(traffic: Traffic, by: list[Traffic]) -> bool:
    """Whether every packet of ``traffic`` is one of ``by``."""
    left = [traffic]
    for each in by:
        left = [rest for piece in left for rest in _without(piece, each)]
    return not left


def _without(traffic: Traffic, other: Traffic) -> Iterator[Traffic]:
    """What is left of some packets without those of ``other``, disjoint."""
    common = _common(traffic, other)
    if common is None or (traffic.number == 0 and other.number != 0):
        yield traffic  # of all protocols one is no great part
        return
    for ports in _outside(traffic.ports, common.ports):
        yield Traffic(traffic.number, ports, traffic.source_ports)
    for ports in _outside(traffic.source_ports, common.source_ports):
        yield Traffic(traffic.number, common.ports, ports)


def _outside(whole: range, part: range) -> Iterator[range]:
    if whole.start < part.start:
        yield range(whole.start, part.start)
    if part.stop < whole.stop:
        yield range(part.stop, whole.stop)
