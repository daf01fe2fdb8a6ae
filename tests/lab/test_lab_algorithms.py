"""Every algorithm and every Diffie-Hellman group, each between two hosts of its own, by IPv4 and 6.

Nine hosts make 36 pairs of hosts: a daemon for each host tries them all.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from kinkd.keying.algorithms import GROUP_NUMBERS, SUITES
from kinkd.model import IpsecProtocol
from tests.support import observe
from tests.support.lab import Host, Lab, Rule
from tests.support.topology import BRIDGE

HOSTS = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan")
SINGLE = [suite.name for suite in SUITES.values() if len(suite.transforms) == 1]
BUNDLES = [
    "ah-sha512+null-sha256",
    "ah-sha384+chacha20poly1305",
    "ah-sha256+aes256gcm16",
    "ah-sha1+aes128-sha1",
]
PINGS = 2


@dataclass(frozen=True)
class Trial:
    """A suite or a group, and the two hosts that try it."""

    name: str
    hosts: tuple[str, str]
    suite: str
    group: str
    esn: bool

    @property
    def profile(self) -> str:
        esn = str(self.esn).lower()
        return (
            f'[profiles."{self.name.replace("+", ".")}"]\nsuites = "{self.suite}"\n'
            f'group = "{self.group}"\nesn = {esn}\n'
        )

    @property
    def rule(self) -> Rule:
        return Rule(self.name.replace("+", "."), self.hosts)


def trials() -> list[Trial]:
    """Every suite once in two messages, every second with ESN; every group once."""
    pairs = itertools.combinations(HOSTS, 2)
    suites = [
        Trial(name, next(pairs), name, "none", esn=bool(number % 2))
        for number, name in enumerate((*SINGLE, *BUNDLES))
    ]
    groups = [
        Trial(name, next(pairs), "aes256gcm16", name, esn=False) for name in sorted(GROUP_NUMBERS)
    ]
    return suites + groups


TRIALS = trials()


@dataclass(frozen=True)
class Crowd:
    """The laboratory after every pair of hosts was keyed and has pinged."""

    lab: Lab
    initiated: dict[str, list[dict[str, object]]]
    pings: dict[tuple[str, int], observe.Ping]
    states: dict[str, list[observe.KernelSa]]
    rows: dict[str, list[dict[str, object]]]
    derived: dict[int, bytes]

    def between(self, one: str, other: str) -> list[observe.KernelSa]:
        """In the kernel of ``one``."""
        ends = {self.lab[name].node.address(family) for name in (one, other) for family in (4, 6)}
        return [sa for sa in self.states[one] if {sa.source, sa.destination} <= ends]


@pytest.fixture(scope="module")
def crowd() -> Iterator[Crowd]:
    with Lab(
        HOSTS,
        rules=[trial.rule for trial in TRIALS],
        profiles="".join(trial.profile for trial in TRIALS),
    ) as lab:
        lab.start()
        yield _keyed(lab)


def _keyed(lab: Lab) -> Crowd:
    with lab.capture(BRIDGE, "udp port 910 or ip6 proto 44 or ip[6:2] & 0x3fff != 0") as pcap:
        initiated = {
            trial.name: lab[trial.hosts[0]].ask("initiate", trial.hosts[1])["pairs"]
            for trial in TRIALS
        }
    journeys = [(trial, family) for trial in TRIALS for family in (4, 6)]

    def ping(journey: tuple[Trial, int]) -> observe.Ping:
        trial, family = journey
        one, other = (lab[name] for name in trial.hosts)
        return one.ping(other, family=family, count=PINGS)

    with ThreadPoolExecutor(len(HOSTS)) as pool:
        results = pool.map(ping, journeys)
        pings = {(t.name, f): result for (t, f), result in zip(journeys, results, strict=True)}
    return Crowd(
        lab=lab,
        initiated=initiated,
        pings=pings,
        states={name: lab[name].states() for name in HOSTS},
        rows={name: lab[name].sas() for name in HOSTS},
        derived=_derived(lab, pcap),
    )


def _derived(lab: Lab, pcap: Path) -> dict[int, bytes]:
    keytab = lab.directory / "all.keytab"
    hosts: list[Host] = [lab[name] for name in HOSTS]
    lab.realm.write_keytab(keytab, *(host.principal for host in hosts))
    return lab.derived_keymat(pcap, keytab)


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_it_is_agreed_on_in_both_families_and_carries_traffic(crowd: Crowd, trial: Trial) -> None:
    one, other = trial.hosts
    assert [pair["ok"] for pair in crowd.initiated[trial.name]] == [True, True]
    assert [crowd.pings[trial.name, family].lost for family in (4, 6)] == [0, 0]
    for here, there in (trial.hosts, trial.hosts[::-1]):
        rows = [row for row in crowd.rows[here] if row["peer"] == there]
        assert [row["suite"] for row in rows] == [trial.suite] * 2
        assert {row["packets_in"] for row in rows} == {PINGS}
    keys = {sa.spi: sa.keymat for sa in crowd.between(one, other)}
    assert keys == {sa.spi: sa.keymat for sa in crowd.between(other, one)}
    assert len(keys) == 2 * 2 * len(SUITES[trial.suite].transforms)
    if trial.group == "none":
        assert keys.items() <= crowd.derived.items()
    else:
        assert crowd.derived.keys().isdisjoint(keys)  # who has all keytabs has none of these


@pytest.mark.parametrize("trial", TRIALS, ids=lambda trial: trial.name)
def test_the_kernel_has_the_algorithms_by_their_names(crowd: Crowd, trial: Trial) -> None:
    for transform in SUITES[trial.suite].transforms:
        named = {
            "aead": transform.aead,
            "enc": transform.encryption,
            "auth-trunc": transform.authentication,
        }
        protocol = "ah" if transform.protocol is IpsecProtocol.AH else "esp"
        states = [sa for sa in crowd.between(*trial.hosts) if sa.protocol == protocol]
        assert len(states) == 4
        for state in states:
            assert state.algorithms == {kind: name for kind, name in named.items() if name}
            assert len(state.keymat) == transform.keymat_octets
            assert state.esn == trial.esn
