"""Two hosts of a throw-away realm, with a keytab each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from kinkd.kerberos.accepting import GssAcceptor
from kinkd.kerberos.gss import GssTicketSource
from kinkd.model import Principal
from tests.support.realm import Realm

ALICE = "kink/alice.example.test"
BOB = "kink/bob.example.test"


@dataclass(frozen=True)
class Pair:
    """Two hosts of a realm: alice asks, bob accepts."""

    realm: Realm
    alice: Principal
    bob: Principal
    alice_keytab: Path
    bob_keytab: Path

    def source(self) -> GssTicketSource:
        return GssTicketSource(str(self.alice_keytab), self.alice)

    def acceptor(self, state: Path, birth: float = 0.0) -> GssAcceptor:
        return GssAcceptor(str(self.bob_keytab), f"file2:{state}/rcache", birth)


def make_pair(realm: Realm) -> Pair:
    alice_keytab, bob_keytab = (realm.directory / f"{host}.keytab" for host in ("alice", "bob"))
    alice = Principal.parse(realm.add(ALICE, keytab=alice_keytab))
    bob = Principal.parse(realm.add(BOB, keytab=bob_keytab))
    return Pair(realm, alice, bob, alice_keytab, bob_keytab)


def use(realm: Realm, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Make ``realm`` this process's, with no credentials of whoever runs the tests."""
    for name, value in realm.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KRB5CCNAME", f"FILE:{home}/no-ccache")
    monkeypatch.delenv("KRB5_KTNAME", raising=False)
    monkeypatch.delenv("KRB5_CLIENT_KTNAME", raising=False)
