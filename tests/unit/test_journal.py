"""What outlives the process, and what a new start makes of it."""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import time
from dataclasses import replace
from ipaddress import IPv6Address, ip_network
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinkd.app import recovery
from kinkd.app.journal import Journal
from kinkd.errors import LocalError
from kinkd.exchange import installing, spd
from kinkd.exchange.effects import ForgetDebt, RecordBurial, RecordDebt
from kinkd.exchange.effects import Path as Ends
from kinkd.exchange.forms import Forms
from kinkd.exchange.installing import Agreement, Seeds
from kinkd.exchange.pairs import Role, SaPair, Spis
from kinkd.kerberos import etypes
from kinkd.kernel.memory import MemoryKernel
from kinkd.keying.algorithms import SUITES
from kinkd.keying.negotiate import Terms
from kinkd.model import (
    Direction,
    IpsecProtocol,
    Lifetime,
    Mode,
    Ownership,
    PortMatch,
    Selector,
    SpdEntry,
)
from kinkd.policy.match import HostPolicy
from tests.support.pair import ALICE, BOB, REQID, policy_of

OWNERSHIP = Ownership(range(0x4B000000, 0x4B010000), range(1000, 2000))
POLICY = policy_of(ALICE, (BOB,))
PROTECTION = POLICY.protections[0]

spis = st.integers(256, (1 << 32) - 1)
ports = st.integers(0, 0xFFFF)
pairs = st.builds(
    SaPair,
    host=st.text(min_size=1, max_size=20),
    principal=st.text(min_size=1, max_size=20),
    local=st.ip_addresses(),
    remote=st.ip_addresses(),
    sas=st.lists(
        st.builds(Spis, st.sampled_from(IpsecProtocol), spis, spis), min_size=1, max_size=2
    ).map(tuple),
    mode=st.sampled_from(Mode),
    udp=st.booleans(),
    selector=st.builds(
        Selector,
        st.ip_addresses().map(ip_network),
        st.ip_addresses().map(ip_network),
        st.integers(0, 255),
        st.builds(PortMatch, ports, ports),
        st.builds(PortMatch, ports, ports),
    ),
    reqid=st.integers(1, (1 << 32) - 1),
    suite=st.sampled_from(sorted(SUITES)),
    role=st.sampled_from(Role),
    lifetime=st.builds(Lifetime, st.integers(1, 1 << 31), st.none() | st.integers(1, 1 << 31)),
    created=st.integers(0, 1 << 40),
    epoch=st.integers(0, (1 << 32) - 1),
    xid=st.integers(0, (1 << 32) - 1),
    fingerprint=st.integers(0, (1 << 56) - 1),
    etype=st.sampled_from([17, 18, 19, 20]),
)


def pair(spi: int = 0x1000) -> SaPair:
    return SaPair(
        host="bob",
        principal="kink/bob.example.test@EXAMPLE.TEST",
        local=ALICE.addresses[0],
        remote=BOB.addresses[0],
        sas=(Spis(IpsecProtocol.ESP, spi, spi + 1),),
        mode=Mode.TRANSPORT,
        udp=False,
        selector=PROTECTION.selector,
        reqid=REQID,
        suite="aes256gcm16",
        role=Role.INITIATOR,
        lifetime=Lifetime(3600),
        created=1,
        epoch=2,
        xid=3,
        fingerprint=0,
        etype=18,
    )


def install(kernel: MemoryKernel, known: SaPair, *, outbound: bool = True) -> None:
    agreed = agreement(known)
    limits = installing.responder_limits(known.lifetime)
    agreed.install_inbound(kernel, known.inbound, limits)
    if outbound:
        core = SimpleNamespace(kernel=kernel, policy=POLICY, in_the_way=frozenset(), forms=Forms())
        agreed.install_outbound(core, known.outbound, limits)  # type: ignore[arg-type]  # what it asks


def agreement(known: SaPair, reqid: int = REQID) -> Agreement:
    protection = replace(PROTECTION, reqid=reqid, entries=())
    terms = Terms(known.mode, known.lifetime)
    key = etypes.key(18, bytes(32))
    suite = SUITES[known.suite]
    return Agreement(protection, known.selector, suite, terms, key, 1 << 40, Seeds(bytes(16)))


@given(st.lists(pairs, max_size=5, unique_by=lambda p: (p.local, p.sas)))
def test_pairs_come_back_as_they_were(known: list[SaPair]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        journal = Journal(Path(directory) / "journal.db")
        for each in known:
            journal.record(each)
        assert journal.pairs() == known
        for each in known:
            journal.forget(each)
        assert not journal.pairs()
        journal.close()


def test_the_journal_outlives_the_process_and_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    journal = Journal(path)
    journal.record(pair())
    journal.set_meta("epoch", 7)
    del journal
    again = Journal(path)
    assert (again.pairs(), again.meta("epoch")) == ([pair()], 7)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_journal_of_another_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(LocalError, match="version 99"):
        Journal(path)


def test_an_unwritable_state_directory_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="state directory") as caught:
        Journal(tmp_path / "missing" / "journal.db")
    assert "\n" not in str(caught.value)


def later_version(path: Path, *, readable_by: int) -> None:
    """What a kinkd of the next version may make of the file."""
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 3")
        db.execute("CREATE TABLE novelty (thing TEXT) STRICT")
        db.execute("ALTER TABLE pair ADD COLUMN novelty INTEGER DEFAULT 7")
        db.execute("INSERT INTO meta VALUES ('readable_by', ?)", (readable_by,))
    db.close()


def test_what_the_next_version_added_does_not_keep_this_one_from_its_pairs(
    tmp_path: Path,
) -> None:
    journal_of(tmp_path, pair()).close()
    path = tmp_path / "journal.db"
    later_version(path, readable_by=2)
    journal = Journal(path)
    assert journal.pairs() == [pair()]
    journal.forget(pair())
    journal.record(pair(0x2000))
    journal.close()
    with sqlite3.connect(path) as db:  # and it is still the next version's file
        assert db.execute("PRAGMA user_version").fetchone() == (3,)
        assert db.execute("SELECT novelty FROM pair").fetchall() == [(7,)]
    db.close()


def test_what_this_version_would_misread_is_refused(tmp_path: Path) -> None:
    journal_of(tmp_path, pair()).close()
    later_version(tmp_path / "journal.db", readable_by=3)
    with pytest.raises(LocalError, match="version 3"):
        Journal(tmp_path / "journal.db")


def test_a_damaged_file_is_put_aside_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    nonsense = b"not a database, but long enough to be taken for one" * 20
    path.write_bytes(nonsense)
    journal = Journal(path)
    assert "put aside" in journal.damage
    assert (tmp_path / "journal.db.damaged").read_bytes() == nonsense
    journal.record(pair())
    journal.close()
    again = Journal(path)
    assert (again.pairs(), again.damage) == ([pair()], "")
    assert path.stat().st_mode & 0o777 == 0o600


@settings(max_examples=50)
@given(at=st.floats(0, 1), length=st.integers(1, 4096), octet=st.integers(0, 255))
def test_wherever_the_file_is_damaged_the_daemon_starts(at: float, length: int, octet: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        journal = journal_of(Path(name), *(pair(spi) for spi in range(0x1000, 0x1080, 2)))
        journal._execute("PRAGMA wal_checkpoint(TRUNCATE)")
        journal.close()
        path = Path(name, "journal.db")
        octets = bytearray(path.read_bytes())
        start = int(at * len(octets))
        octets[start : start + length] = bytes((octet,)) * len(octets[start : start + length])
        path.write_bytes(octets)
        if start < 100:  # the header: there stands the version, which may then be another's
            with contextlib.suppress(LocalError):
                Journal(path).close()
            return
        again = Journal(path)
        again.pairs()
        again.record(pair(0x9000))
        again.close()


def journal_of(tmp_path: Path, *known: SaPair) -> Journal:
    journal = Journal(tmp_path / "journal.db")
    journal.set_meta("epoch", 500)
    recovery.reserve_xids(journal, 256)
    for each in known:
        journal.record(each)
    return journal


def test_what_journal_and_kernel_agree_on_is_adopted_under_the_same_epoch(tmp_path: Path) -> None:
    kernel, journal = MemoryKernel(), journal_of(tmp_path, pair())
    install(kernel, pair())
    found = recovery.recover(kernel, journal, OWNERSHIP, POLICY)
    assert found.pairs == (pair(),)
    assert (found.epoch, found.first_xid) == (500, 256)
    assert len(kernel.states()) == 2


def test_a_half_pair_goes_and_with_the_last_sa_the_epoch_changes(tmp_path: Path) -> None:
    kernel, journal = MemoryKernel(), journal_of(tmp_path, pair())
    install(kernel, pair(), outbound=False)
    found = recovery.recover(kernel, journal, OWNERSHIP, POLICY)
    assert (found.pairs, len(found.unclaimed)) == ((), 1)
    assert found.epoch != 500
    assert not kernel.states()
    assert not journal.pairs()


def test_a_half_pair_beside_a_whole_one_is_named_so_that_its_peer_can_be_told(
    tmp_path: Path,
) -> None:
    kernel, journal = MemoryKernel(), journal_of(tmp_path, pair(), pair(0x2000))
    install(kernel, pair())
    install(kernel, pair(0x2000), outbound=False)
    found = recovery.recover(kernel, journal, OWNERSHIP, POLICY)
    assert (found.pairs, found.lost) == ((pair(),), (pair(0x2000),))
    assert found.epoch == 500


def test_a_create_whose_pair_ended_is_remembered(tmp_path: Path) -> None:
    journal = journal_of(tmp_path)
    theirs = replace(pair(), role=Role.RESPONDER)
    for each in (pair(), theirs):
        journal.record(each)
        journal.forget(each)
    assert Journal(tmp_path / "journal.db").answered() == [(theirs.host, theirs.command)]


@pytest.mark.parametrize(
    "policy",
    [
        policy_of(ALICE, (replace(BOB, name="carol"),)),  # his address is another's now
        policy_of(ALICE, ()),
        replace(POLICY, protections=(replace(PROTECTION, udp=True),)),
        replace(POLICY, protections=(replace(PROTECTION, mode=Mode.TUNNEL),)),
        replace(
            POLICY,
            protections=(replace(PROTECTION, selector=replace(PROTECTION.selector, protocol=6)),),
        ),
    ],
    ids=["another host", "no rule", "udp", "tunnel", "less traffic"],
)
def test_a_pair_that_the_policy_of_today_would_not_make_is_given_up(
    tmp_path: Path, policy: HostPolicy
) -> None:
    kernel, journal = MemoryKernel(), journal_of(tmp_path)
    journal.record(pair())
    install(kernel, pair())
    found = recovery.recover(kernel, journal, OWNERSHIP, policy)
    assert found.pairs == ()
    assert not kernel.states()
    assert not journal.pairs()


def test_an_sa_of_our_block_that_nobody_claims_goes(tmp_path: Path) -> None:
    kernel, journal = MemoryKernel(), journal_of(tmp_path)
    install(kernel, pair())
    assert recovery.recover(kernel, journal, OWNERSHIP, POLICY).unclaimed == (
        *pair().inbound,
        *pair().outbound,
    )
    assert not kernel.states()


def test_an_sa_outside_our_block_is_never_touched(tmp_path: Path) -> None:
    kernel, journal = MemoryKernel(), journal_of(tmp_path)
    foreign = agreement(pair(), reqid=42)
    foreign.install_inbound(kernel, pair().inbound, installing.responder_limits(Lifetime(60)))
    recovery.recover(kernel, journal, OWNERSHIP, POLICY)
    recovery.remove_everything(kernel, OWNERSHIP)
    assert len(kernel.states()) == 1


def test_an_epoch_differs_from_the_one_before_even_with_a_clock_set_back(tmp_path: Path) -> None:
    journal = journal_of(tmp_path)
    journal.set_meta("epoch", 0xFFFFFFF0)
    first = recovery.recover(MemoryKernel(), journal, OWNERSHIP, POLICY).epoch
    second = recovery.recover(MemoryKernel(), journal, OWNERSHIP, POLICY).epoch
    assert len({0xFFFFFFF0, first, second}) == 3


def test_policies_are_written_and_stale_ones_of_ours_go(tmp_path: Path) -> None:
    kernel, policy = MemoryKernel(), policy_of(ALICE, (BOB,))
    stale = SpdEntry(
        Direction.OUT,
        Selector(ip_network("10.9.9.9/32"), ip_network("10.9.9.8/32")),
        1500,
        PROTECTION.entries[0].templates,
    )
    kernel.write_policy(stale)
    spd.install(kernel, policy.entries, OWNERSHIP.priorities)
    assert set(kernel.policies()) == set(policy.entries)


def test_a_foreign_policy_in_the_way_is_refused_and_nothing_is_written() -> None:
    kernel, policy = MemoryKernel(), policy_of(ALICE, (BOB,))
    foreign = replace(policy.entries[1], priority=7)
    kernel.write_policy(foreign)
    with pytest.raises(LocalError, match="in the way"):
        spd.install(kernel, policy.entries, OWNERSHIP.priorities)
    assert kernel.policies() == [foreign]


def test_a_foreign_policy_beside_ours_is_never_touched() -> None:
    kernel, policy = MemoryKernel(), policy_of(ALICE, (BOB,))
    foreign = SpdEntry(
        Direction.OUT,
        Selector.between(IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")),
        7,
        block=True,
    )
    kernel.write_policy(foreign)
    spd.install(kernel, policy.entries, OWNERSHIP.priorities)
    recovery.remove_everything(kernel, OWNERSHIP)
    assert kernel.policies() == [foreign]


def test_what_peers_still_owe_outlives_the_process_until_it_is_paid_or_void(
    tmp_path: Path,
) -> None:
    journal = journal_of(tmp_path)
    path = Ends(ALICE.addresses[0], BOB.addresses[0])
    late = float(int(time.time()) + 1000)
    owed = [RecordDebt("bob", path, protocol, 0x1000, late) for protocol in IpsecProtocol]
    for each in (*owed, RecordDebt("bob", path, IpsecProtocol.ESP, 0x2000, late - 2000)):
        journal.owe(each)
    journal.owe(owed[0])  # once more, and no more of it
    journal.close()
    again = journal_of(tmp_path)
    assert sorted(again.debts(), key=lambda each: each.protocol) == owed
    again.paid(ForgetDebt(path, owed[0].protocol, 0x1000))
    assert again.debts() == owed[1:]


def test_what_was_deleted_before_it_came_is_remembered_for_its_time(tmp_path: Path) -> None:
    journal = journal_of(tmp_path)
    buried = [RecordBurial("bob", protocol, 0x1000) for protocol in IpsecProtocol]
    for each in (*buried, buried[0]):
        journal.bury(each)
    assert set(Journal(tmp_path / "journal.db").burials()) == set(buried)
    journal._execute("UPDATE burial SET buried = buried - 601")
    assert journal.burials() == []


# --- how strictly the policy is enforced --------------------------------------------------------


def test_who_was_secured_outlives_the_process_until_forgotten(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.db")
    assert recovery.read_forms(journal) == Forms()
    for host, principal in (("bob", "kink/b@A"), ("carol", "kink/c@A"), ("bob", "kink/b@B")):
        journal.secure(host, principal)
    journal.close()
    journal = Journal(tmp_path / "journal.db")
    assert recovery.read_forms(journal).secured == {"bob": "kink/b@B", "carol": "kink/c@A"}
    for host in ("bob", "nobody"):
        journal.forget_secured(host)
    assert recovery.read_forms(journal).secured == {"carol": "kink/c@A"}
    journal.close()


def test_a_suspension_is_taken_up_while_time_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_800_000_000.0
    journal = Journal(tmp_path / "journal.db")
    recovery.record_suspension(journal, now + 3600.5)
    journal.close()
    journal = Journal(tmp_path / "journal.db")

    def at(instant: float) -> float:
        monkeypatch.setattr(time, "time", lambda: instant)
        return recovery.read_forms(journal).suspended_until

    assert at(now) == now + 3600
    assert at(now + 3599) == now + 3600
    assert at(now + 3600) == 0.0
    assert at(now + 10**8) == 0.0
    assert at(now - recovery.LONGEST_SUSPENSION) == 0.0  # a clock that was set back
    recovery.record_suspension(journal, 0.0)
    assert at(now) == 0.0
    journal.close()


def test_a_journal_that_is_only_to_be_read_is_not_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    nonsense = b"not a database, but long enough to be taken for one" * 20
    path.write_bytes(nonsense)
    with pytest.raises(LocalError, match=r"journal\.db is damaged"):
        Journal(path, mend=False)
    assert path.read_bytes() == nonsense
    assert not path.with_name("journal.db.damaged").exists()
