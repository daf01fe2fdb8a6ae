"""What a crash between two steps leaves, and reloads that come back to what was before."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from kinkd.app import addresses, recovery, startup, udp
from kinkd.app.journal import Journal
from kinkd.exchange.acquires import _Rest
from kinkd.exchange.effects import Path as Ends
from kinkd.exchange.effects import RecordDebt
from kinkd.exchange.pairs import Role
from kinkd.kernel.memory import MemoryKernel
from kinkd.model import IpsecProtocol
from kinkd.policy.match import HostPolicy
from tests.support.pair import ALICE, BOB, World, policy_of
from tests.unit.test_journal import OWNERSHIP, POLICY, install, journal_of, pair


def test_a_start_that_ends_before_peers_were_told_leaves_it_to_the_next(tmp_path: Path) -> None:
    """The control socket cannot be made, say: systemd starts the daemon again."""
    kernel = MemoryKernel()
    half = replace(pair(0x2000), created=int(time.time()))
    journal = journal_of(tmp_path, pair(), half)
    install(kernel, pair())
    install(kernel, half, outbound=False)
    first = recovery.recover(kernel, journal, OWNERSHIP, POLICY)
    assert first.lost == (half,)
    journal.close()  # and nothing of it was carried out
    journal = Journal(tmp_path / "journal.db")
    second = recovery.recover(kernel, journal, OWNERSHIP, POLICY)
    owed = {debt.spi for debt in journal.debts()}
    named = {sa.spi for sa in second.unclaimed} | {p.sas[0].inbound for p in second.lost}
    assert 0x2000 in owed | named, "its peer sends into nothing until the SA's end"


def test_port_4500_can_be_wanted_dropped_and_wanted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three reloads, as Daemon._apply opens sockets and keeps them."""

    def esp_in_udp(_: int) -> socket.socket:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            s.bind(("127.0.0.1", port))  # raises as port 4500 does where it is taken
        except OSError:
            s.close()
            raise
        return s

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(udp, "_esp_in_udp", esp_in_udp)
    plain = policy_of(ALICE, (BOB,))
    inside: HostPolicy = replace(
        plain, protections=tuple(replace(each, udp=True) for each in plain.protections)
    )
    sockets = udp.EspInUdp(plain)
    try:
        for fresh in (inside, plain, inside):
            sockets.follow(fresh)
    finally:
        sockets.close()


def test_a_verified_message_costs_the_same_however_many_peers_rest() -> None:
    world = World()
    endpoint = world["alice"].endpoint
    acquires = endpoint._acquires
    peer = endpoint.peer(BOB)

    def cost(count: int) -> float:
        acquires._rests = {
            (p := Ends(ALICE.addresses[0], IPv4Address("10.9.0.0") + n)): _Rest(p, until=9.0)
            for n in range(count)
        }
        best = float("inf")
        for _ in range(5):
            began = time.perf_counter()
            for _ in range(20):
                endpoint._core.heard(peer, 1.0)
            best = min(best, (time.perf_counter() - began) / 20)
        return best

    few, many = cost(1), cost(10_000)
    assert many < 50e-6 + 20 * few, f"{many * 1e6:.0f} us for each message, not {few * 1e6:.0f}"


def test_debts_that_a_start_recalls_are_not_written_once_more() -> None:
    world = World()
    endpoint = world["alice"].endpoint
    path = Ends(ALICE.addresses[0], BOB.addresses[0])
    debts = [
        RecordDebt("bob", path, IpsecProtocol.ESP, 0x1000 + n, 1_800_003_000.0) for n in range(200)
    ]
    endpoint.commands()
    endpoint.recall_debts(debts, 0.0)
    written = [each for each in endpoint.commands() if isinstance(each, RecordDebt)]
    assert not written, f"{len(written)} rows that are there"


@pytest.mark.parametrize("table", ["pair", "debt", "answered", "meta"])
def test_a_later_version_may_add_columns_that_have_a_default(tmp_path: Path, table: str) -> None:
    """As the docstring says of it; and this version, put back, goes on writing."""
    journal = journal_of(tmp_path)
    journal.set_meta("readable_by", 2)
    journal._db.execute(f"ALTER TABLE {table} ADD COLUMN more INTEGER NOT NULL DEFAULT 0")
    journal._db.execute("PRAGMA user_version = 3")
    journal.close()
    journal = Journal(tmp_path / "journal.db")
    theirs = replace(pair(), role=Role.RESPONDER)
    path = Ends(ALICE.addresses[0], BOB.addresses[0])
    journal.record(theirs)
    journal.owe(RecordDebt("bob", path, IpsecProtocol.ESP, 0x1000, 1_800_003_000.0))
    journal.set_meta("xids", 512)
    journal.forget(theirs)


def test_an_address_that_came_while_the_kernel_could_not_be_read_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pyroute2 raises where there are no descriptors left, say; no other change may follow."""
    told: list[object] = []
    faults = [OSError(24, "Too many open files")]

    def here() -> frozenset[object]:
        if faults:
            raise faults.pop()
        return frozenset(ALICE.addresses)

    async def main() -> None:
        monkeypatch.setattr(addresses, "local_addresses", frozenset)
        watcher = addresses.Watcher(frozenset(), lambda: ALICE.addresses, told.append)
        monkeypatch.setattr(addresses, "_SETTLE_SECONDS", 0.001)
        watcher.start()
        monkeypatch.setattr(addresses, "local_addresses", here)
        watcher._changed()
        await asyncio.sleep(0.5)
        watcher.stop()

    asyncio.run(main())
    assert told


def test_where_a_host_has_another_name_now_old_commands_count_as_replays(tmp_path: Path) -> None:
    """What it sent is remembered by its old name, and would be carried out again."""
    journal = journal_of(tmp_path, replace(pair(), role=Role.RESPONDER))
    cache = tmp_path / "rcache"
    cache.touch()
    journal.set_meta("replay-cache-birth", 1000)
    assert startup._replay_cache_birth(journal, cache, POLICY) == 1000
    renamed = policy_of(ALICE, (replace(BOB, name="robert"),))
    assert startup._replay_cache_birth(journal, cache, renamed) > time.time() - 60
