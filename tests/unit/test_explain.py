"""Why two ends do, or do not, talk: the most likely cause, case by case."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import kinkd.kerberos.gss
from kinkd.document import Document
from kinkd.errors import LocalError
from kinkd.policy.explain import (
    TICKET_FAULTS,
    Cause,
    EntrySeen,
    Kind,
    SaSeen,
    Seen,
    cause,
    find,
    parse_traffic,
    situation,
)
from kinkd.policy.reader import read

POLICY = read(
    Document.parse(
        "p.toml",
        b"""schema = 1
version = 7
realm = "R.TEST"
[hosts.alice]
fqdn = "alice.r.test"
addresses = ["10.0.0.1"]
[hosts.bob]
fqdn = "bob.r.test"
addresses = ["10.0.0.2"]
[hosts.six]
fqdn = "six.r.test"
addresses = ["fd00::6"]
[hosts.out]
fqdn = "out.r.test"
addresses = ["10.0.0.7"]
disabled = true
[hosts.watched]
fqdn = "watched.r.test"
addresses = ["10.0.0.8"]
audit = true
[hosts.asked]
fqdn = "asked.r.test"
addresses = ["10.0.0.9"]
[hosts.gate]
fqdn = "gate.r.test"
addresses = ["10.0.0.10"]
networks = ["10.9.0.0/16"]
[networks.printers]
prefixes = ["10.1.0.0/24"]
[networks.guests]
prefixes = ["10.2.0.0/24"]
[[rules]]
name = "no telnet"
from = "all"
to = "all"
traffic = "tcp/23"
action = "block"
[[rules]]
name = "one way"
from = "alice"
to = "bob"
traffic = "udp/514"
action = "clear"
back = "block"
[[rules]]
name = "asked"
from = "alice"
to = ["asked", "guests"]
action = "request"
[[rules]]
name = "printing"
from = "all"
to = "printers"
action = "require"
[[rules]]
name = "all"
from = "all"
to = "all"
action = "require"
""",
    )
)

GOOD = Seen(
    here="alice",
    peer="bob",
    out=EntrySeen("src 10.0.0.1/32 dst 10.0.0.2/32 dir out priority 1010000"),
    inbound=EntrySeen("src 10.0.0.2/32 dst 10.0.0.1/32 dir in priority 1010000"),
    has_ticket=True,
    pairs=(SaSeen(3, 3),),
    version=7,
)
NONE = replace(GOOD, pairs=())
FOREIGN = EntrySeen("src 10.0.0.0/8 dst 0.0.0.0/0 dir out priority 5 block", ours=False)
KDC_DOWN = "no KDC of R.TEST can be reached: is it up, and does krb5.conf or DNS name it?"
UNKNOWN = (
    "the KDC does not know the service kink/bob.r.test@R.TEST: create the principal, or correct"
    " its name in the policy"
)
SKEW = "the clocks of this host and the KDC differ: run NTP on both"
KEYTAB = "keytab /k holds no key of kink/alice.r.test@R.TEST: add it with ktadd"


def asked(source: str, destination: str, traffic: str = "any", seen: Seen | None = None) -> Cause:
    found = situation(
        POLICY, find(POLICY, source), find(POLICY, destination), parse_traffic(traffic)
    )
    return cause(found, seen)


@pytest.mark.parametrize(
    ("question", "kind", "words"),
    [
        (("alice", "bob", "tcp/23"), Kind.BLOCKED, 'Rule "no telnet" (p.toml:'),
        (("alice", "bob", "udp/514"), Kind.BLOCKED, "that bob answers to alice"),
        (("alice", "bob", "tcp/23"), Kind.BLOCKED, "between alice and bob"),
        (("alice", "8.8.8.8"), Kind.NO_RULE, "passes in clear"),
        (("alice", "10.2.0.5"), Kind.CLEAR, "since guests has no kinkd"),
        (("alice", "10.9.0.5"), Kind.CLEAR, "lies behind a gateway"),
        (("alice", "10.1.0.5", "tcp/9100"), Kind.UNKEYABLE, "printers has no kinkd"),
        (("alice", "out"), Kind.DISABLED, "out is disabled"),
        (("alice", "six"), Kind.FAMILIES, "no addresses of one family"),
        (("10.9.0.5", "10.9.0.6"), Kind.INSIDE, "both ends are gate's"),
        (("alice", "watched"), Kind.AUDIT, "nothing is dropped for it"),
        (("alice", "bob"), Kind.UNSEEN, "ask for tcp/23 and for udp/514 apart"),
        (("alice", "bob", "tcp/443"), Kind.UNSEEN, "run kinkctl explain on one of the two hosts"),
    ],
)
def test_what_the_document_alone_says(question: tuple[str, ...], kind: Kind, words: str) -> None:
    found = asked(*question)
    assert found.kind is kind
    assert words.lower() in str(found).lower()


@pytest.mark.parametrize(
    ("seen", "kind", "words"),
    [
        (GOOD, Kind.WELL, "all is well"),
        (replace(GOOD, suspended=90), Kind.SUSPENDED, "for another 90 s"),
        (replace(GOOD, out=FOREIGN), Kind.FOREIGN, "packets out: src 10.0.0.0/8"),
        (replace(GOOD, inbound=FOREIGN), Kind.FOREIGN, "packets in: src 10.0.0.0/8"),
        (replace(GOOD, missing=("10.0.0.1",)), Kind.NO_ADDRESS, "10.0.0.1 is an address of alice"),
        (replace(GOOD, out=None), Kind.NO_ENTRY, "kinkctl reload"),
        (replace(GOOD, pairs=(SaSeen(0, 5),)), Kind.NOTHING_IN, "IP protocol 50"),
        (replace(GOOD, pairs=(SaSeen(0, 5), SaSeen(1, 0))), Kind.WELL, "all is well"),
        (replace(GOOD, pairs=(SaSeen(0, 0),)), Kind.WELL, "all is well"),
        (replace(GOOD, pairs=(SaSeen(9, 9, whole=False),)), Kind.SA_LOST, "kinkctl initiate bob"),
        (replace(NONE, has_ticket=False, ticket_fault=KDC_DOWN), Kind.KDC_UNREACHABLE, "no KDC"),
        (replace(NONE, has_ticket=False, ticket_fault=UNKNOWN), Kind.PRINCIPAL_UNKNOWN, "create"),
        (replace(NONE, has_ticket=False, ticket_fault=SKEW), Kind.CLOCK, "run NTP"),
        (replace(NONE, has_ticket=False, ticket_fault=KEYTAB), Kind.NO_TICKET, "add it with ktadd"),
        # A ticket that is there will do, whatever kept the next one away.
        (replace(GOOD, ticket_fault=KDC_DOWN), Kind.WELL, "all is well"),
        (replace(NONE, clock_offset=-400), Kind.CLOCK, "400 s behind"),
        (replace(NONE, clock_offset=200), Kind.UNTRIED, "kinkctl initiate bob"),
        (replace(NONE, failure="no answer"), Kind.SILENT, "UDP port 910"),
        (replace(NONE, failure="no answer; others wait"), Kind.SILENT, "UDP port 910"),
        (
            replace(NONE, failure="refused-by-peer: NO-PROPOSAL-CHOSEN"),
            Kind.REFUSED,
            "not made: refused-by-peer: NO-PROPOSAL-CHOSEN",
        ),
        (replace(NONE, drops=(("address-not-bound", 2),)), Kind.NOT_BOUND, "address-not-bound"),
        (
            replace(NONE, drops=(("unknown-principal", 1),), failure="no answer"),
            Kind.NOT_BOUND,
            "the principal and the addresses of bob",
        ),
        (replace(NONE, drops=(("malformed", 9),)), Kind.UNTRIED, "there are none"),
        (NONE, Kind.UNTRIED, "kinkctl initiate bob makes them now"),
    ],
)
def test_what_a_host_has_seen_of_traffic_that_is_required(
    seen: Seen, kind: Kind, words: str
) -> None:
    found = asked("alice", "bob", "tcp/443", seen)
    assert (found.kind, words in str(found)) == (kind, True), str(found)


@pytest.mark.parametrize(
    ("question", "seen", "kind"),
    [
        # What settles the matter by itself comes before what it may hide.
        (("alice", "bob", "tcp/23"), NONE, Kind.BLOCKED),
        (("alice", "bob", "tcp/23"), replace(NONE, suspended=9), Kind.SUSPENDED),
        (("alice", "8.8.8.8"), replace(NONE, suspended=9), Kind.NO_RULE),
        (("alice", "8.8.8.8"), replace(NONE, out=FOREIGN), Kind.FOREIGN),
        (("alice", "watched"), replace(NONE, failure="no answer"), Kind.AUDIT),
        (("alice", "asked"), replace(NONE, peer="asked"), Kind.IN_CLEAR),
        (("alice", "asked"), replace(NONE, peer="asked", failure="no answer"), Kind.SILENT),
        (("alice", "bob"), replace(NONE, missing=("10.0.0.1",), failure="x"), Kind.NO_ADDRESS),
        (
            ("alice", "bob"),
            replace(NONE, has_ticket=False, ticket_fault=KDC_DOWN, failure=KDC_DOWN),
            Kind.KDC_UNREACHABLE,
        ),
        (("alice", "bob"), replace(NONE, clock_offset=999, failure="no answer"), Kind.CLOCK),
    ],
)
def test_which_of_two_causes_is_named(question: tuple[str, ...], seen: Seen, kind: Kind) -> None:
    assert asked(*question, *["any"] * (3 - len(question)), seen).kind is kind


def test_every_cause_there_is_has_a_case() -> None:
    marks = [
        mark
        for test in (
            test_what_the_document_alone_says,
            test_what_a_host_has_seen_of_traffic_that_is_required,
            test_which_of_two_causes_is_named,
        )
        for mark in test.pytestmark
    ]
    proven = {value for mark in marks for row in mark.args[1] for value in row}
    assert set(Kind) <= {value for value in proven if isinstance(value, Kind)}


def test_the_words_by_which_ticket_faults_are_known_are_those_that_are_used() -> None:
    used = " ".join(Path(kinkd.kerberos.gss.__file__).read_text().split())
    assert all(words in used for _, known in TICKET_FAULTS for words in known)


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("alice", "alice"),
        ("Alice.R.test.", "alice"),
        ("10.0.0.2", "bob"),
        ("10.9.1.1", "gate"),
        ("fd00::6", "six"),
        ("fd00::7", "world"),
        ("printers", "printers"),
    ],
)
def test_an_end_is_named_as_people_do(word: str, name: str) -> None:
    assert find(POLICY, word).name == name


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("alcie", 'did you mean "alice"'),
        ("world", "write an address"),
        ("10.0.0.300", "no host, domain name or network"),
    ],
)
def test_who_nobody_is_is_refused_in_words(word: str, said: str) -> None:
    with pytest.raises(LocalError, match=said):
        find(POLICY, word)


def test_traffic_that_is_none_is_refused_in_words() -> None:
    with pytest.raises(LocalError, match="no protocol known here"):
        parse_traffic("tpc/80")
