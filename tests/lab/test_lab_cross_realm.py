"""Hosts of three realms that trust each other in a row, A - B - C, each with a KDC of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.lab import DaemonError, Lab

REALMS = {"alice": "A.TEST", "bob": "B.TEST", "carol": "C.TEST"}
OVER_B = (("A.TEST", "C.TEST", "B.TEST"), ("C.TEST", "A.TEST", "B.TEST"))


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(tuple(REALMS), realms=REALMS, paths=OVER_B) as lab:
        lab.start()
        yield lab


@pytest.mark.parametrize(("one", "other", "hops"), [("alice", "bob", 1), ("alice", "carol", 2)])
def test_hosts_of_two_realms_key_each_other(lab: Lab, one: str, other: str, hops: int) -> None:
    for source, target in ((one, other), (other, one)):
        lab.unkey(source, target)
        with lab.capture(source, "udp port 910") as pcap:
            assert lab[source].ping(lab[target], family=4).lost == 0
        rows = lab[source].ask("peers")["peers"]
        ticket = next(row["ticket"] for row in rows if row["peer"] == target)
        assert ticket["server"] == lab[target].principal
        assert ticket["client"] == lab[source].principal
        (pair,) = (row for row in lab[target].sas() if row["peer"] == source)
        assert pair["principal"] == lab[source].principal  # with the realm that it is of
        (*_, said) = lab[source].logged("sa-established")
        print(
            f"{ticket['client']} -> {ticket['server']}, {hops} hops: etype {ticket['etype']},"
            f" ticket {ticket['octets']} octets\n  {said}"
        )
        assert "CREATE xid" in lab.decode(pcap, lab[target].keytab)


def test_a_namesake_of_another_realm_is_nobody(lab: Lab) -> None:
    """kink/alice of C.TEST is not kink/alice of A.TEST, whatever C's KDC says."""
    lab.unkey("alice", "bob")
    impostor = lab["alice"]
    name = impostor.principal.replace("A.TEST", "C.TEST")
    keytab = impostor.directory / "impostor.keytab"
    lab.realms["C.TEST"].add(name, keytab=keytab)
    policy = impostor.directory / "policy.toml"
    policy.write_text(lab.policy_text().replace(impostor.principal, name))
    impostor.stop()
    impostor.configure(policy=policy, keytab=keytab)
    try:
        impostor.start()
        with pytest.raises(DaemonError, match="NO-PROPOSAL-CHOSEN"):
            impostor.ask("initiate", "bob")
        assert lab["bob"].counters()["drop.unknown-principal"] >= 1
        assert not [row for row in lab["bob"].sas() if row["peer"] == "alice"]
    finally:
        impostor.stop()
        impostor.configure(policy=lab.policy)
        impostor.start()
    assert impostor.ping(lab["bob"], family=4).lost == 0
