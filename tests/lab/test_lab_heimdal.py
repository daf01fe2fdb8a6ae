"""Hosts of a realm whose KDC is Heimdal's, and its keeper of credentials caches."""

from __future__ import annotations

from pathlib import Path

import pytest

from kinkd.kerberos.gss import GssTicketSource
from kinkd.model import Principal
from tests.support.heimdal import HeimdalRealm, kcm
from tests.support.lab import Lab
from tests.support.realm import Realm


@pytest.mark.long
@pytest.mark.parametrize("etype", [17, 18])
def test_heimdal_keys_hosts_and_their_keys_may_change(etype: int) -> None:
    with Lab(("alice", "bob"), kind=HeimdalRealm, etype=etype, profile="standard") as lab:
        lab.start()
        alice, bob = lab["alice"], lab["bob"]
        with lab.capture("alice", "udp port 910") as pcap:
            assert alice.ping(bob, family=4).lost == 0
        text = lab.decode(pcap, bob.keytab)
        (ticket,) = (row["ticket"] for row in alice.ask("peers")["peers"])
        whole = [line for line in text.splitlines() if line.startswith("  version ")]
        sizes = [int(line.split("length ")[1].split()[0]) for line in whole]
        print(
            f"{ticket['client']} -> {ticket['server']}: etype {ticket['etype']}, ticket"
            f" {ticket['octets']} octets, messages {sizes}\n  {alice.logged('sa-established')[-1]}"
        )
        assert ticket["etype"] == etype
        lab.realm.change_key(bob.principal)
        bob.keytab.unlink()
        lab.realm.write_keytab(bob.keytab, bob.principal)
        lab.unkey("bob", "alice")
        assert alice.ping(bob, family=4).lost == 0
        lab.unkey("bob", "alice")
        assert bob.ping(alice, family=4).lost == 0


@pytest.mark.long
def test_a_person_may_keep_tickets_in_kcm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with kcm(tmp_path) as socket, Realm(tmp_path / "realm") as realm:
        text = realm.config.read_text()
        realm.config.write_text(
            text.replace("[libdefaults]", f"[libdefaults]\n    kcm_socket = {socket}")
        )
        for name, value in realm.environment.items():
            monkeypatch.setenv(name, value)
        jane = Principal.parse(realm.add_person("jane", "secret"))
        bob = Principal.parse(realm.add("kink/bob.example.test"))
        realm.kinit("jane", "secret", "KCM:")
        ticket = GssTicketSource(None, jane, ccache="KCM:").fetch(bob)
        print(ticket)
        assert ticket.client == jane
