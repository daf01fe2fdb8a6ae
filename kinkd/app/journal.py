"""What must outlive the process: EPOCH, XIDs, and which SPIs belong to whom. No keys.

An SQLite database in the state directory. Its schema carries a version. A later version only adds
tables, and columns that have a default, and goes on keeping what the version before it reads; it
says so in ``readable_by``. So a kinkd that was upgraded, and one that was put back by one version,
take up what the other left.

A file that SQLite finds damaged is put aside: SAs that nothing is known of are then removed and
their peers told, which costs a moment; a daemon that does not start costs more.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from ipaddress import ip_address, ip_network
from pathlib import Path as FilePath

from kinkd.errors import LocalError
from kinkd.exchange.effects import ForgetDebt, Path, RecordBurial, RecordDebt
from kinkd.exchange.pairs import CommandId, Role, SaPair, Spis
from kinkd.model import IpsecProtocol, Lifetime, Mode, PortMatch, Selector

NAME = "journal.db"
"""In the state directory."""

_SCHEMA_VERSION = 2
_READABLE_BY = "readable_by"  # the oldest schema version whose kinkd may use the file
_ANSWERED_SECONDS = 600  # as exchange.core.MEMORY_SECONDS: until no authenticator is fresh
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE pair (
    local TEXT NOT NULL,
    remote TEXT NOT NULL,
    sas TEXT NOT NULL,  -- protocol:inbound:outbound of each SPI pair, separated by spaces
    mode INTEGER NOT NULL,
    udp INTEGER NOT NULL,
    selector TEXT NOT NULL,  -- our outbound traffic
    host TEXT NOT NULL,
    principal TEXT NOT NULL,
    reqid INTEGER NOT NULL,
    suite TEXT NOT NULL,
    role TEXT NOT NULL,
    seconds INTEGER NOT NULL,
    kilobytes INTEGER,
    created INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    xid INTEGER NOT NULL,
    fingerprint INTEGER NOT NULL,
    etype INTEGER NOT NULL,
    PRIMARY KEY (local, sas)
) STRICT;
CREATE TABLE debt (
    local TEXT NOT NULL,
    protocol INTEGER NOT NULL,
    spi INTEGER NOT NULL,
    remote TEXT NOT NULL,
    host TEXT NOT NULL,
    until INTEGER NOT NULL,
    PRIMARY KEY (local, remote, protocol, spi)
) STRICT;
CREATE TABLE answered (
    host TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    xid INTEGER NOT NULL,
    fingerprint INTEGER NOT NULL,
    ended INTEGER NOT NULL,
    PRIMARY KEY (host, epoch, xid, fingerprint)
) STRICT;
"""
# What SQLite says where another file would do no better: no space, no right, a failing disk.
_NOT_ITS_FAULT = tuple(
    f"SQLITE_{name}"
    for name in ("AUTH", "BUSY", "CANTOPEN", "FULL", "IOERR", "LOCKED", "NOMEM", "PERM", "READONLY")
)
# Whose commands they were that are remembered by a host's name, what hosts have deleted before it
# came to be, and with whom there were SAs where they are only requested. Tables more do not change
# the version.
_LATER = """
CREATE TABLE IF NOT EXISTS client (host TEXT PRIMARY KEY, principal TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS burial (
    host TEXT NOT NULL,
    protocol INTEGER NOT NULL,
    spi INTEGER NOT NULL,
    buried INTEGER NOT NULL,
    PRIMARY KEY (host, protocol, spi)
) STRICT;
CREATE TABLE IF NOT EXISTS secured (host TEXT PRIMARY KEY, principal TEXT NOT NULL) STRICT;
"""
_COLUMNS = (
    "local, remote, sas, mode, udp, selector, host, principal, reqid, suite, role, "
    "seconds, kilobytes, created, epoch, xid, fingerprint, etype"
)


class Journal:
    """The journal of one daemon. Every method raises ``LocalError`` where it cannot be used.

    ``mend``: where the file is damaged, put it aside and begin a new one, instead of refusing it.
    """

    def __init__(self, path: FilePath, *, mend: bool = True) -> None:
        self._path = path
        self.damage = ""  # in words, where the file was damaged and a new one begun
        try:
            # Created before SQLite opens it, so that it never exists with a wider mode.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            try:
                self._open()
            except (sqlite3.Error, ValueError) as error:
                name = getattr(error, "sqlite_errorname", "")
                if name.startswith(_NOT_ITS_FAULT):
                    raise
                if not mend:
                    self._db.close()
                    raise LocalError(f"the journal {path} is damaged: {error}") from error
                self._put_aside(error)
                self._open()
        except (OSError, sqlite3.Error) as error:
            raise LocalError(
                f"the journal {path} cannot be used: {error}; "
                "is the state directory there and writable for this user?"
            ) from error

    def _open(self) -> None:
        self._db = sqlite3.connect(self._path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._prepare()
        self._db.executescript(_LATER)
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        self._read()

    def _read(self) -> None:
        """Whether all can be read. Raises sqlite3.Error or ValueError."""
        try:
            self.pairs()
            self.debts()
            self.answered()
            self.clients()
            self.burials()
            self.secured()
        except LocalError as error:
            raise error.__cause__ or error from None

    def _put_aside(self, error: Exception) -> None:
        self._db.close()
        aside = self._path.with_name(f"{self._path.name}.damaged")
        self._path.replace(aside)
        for suffix in ("-wal", "-shm"):  # of the damaged file, not of the one to come
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self.damage = f"{error}; put aside as {aside}"

    def close(self) -> None:
        """Let the database go."""
        self._db.close()

    def meta(self, name: str) -> int | None:
        """A single value, or None."""
        row = self._execute("SELECT value FROM meta WHERE name = ?", name).fetchone()
        return None if row is None else int(row[0])

    def set_meta(self, name: str, value: int) -> None:
        """Write a single value, durably: it outlives a power failure."""
        self._execute("PRAGMA synchronous = FULL")
        try:
            self._execute("INSERT OR REPLACE INTO meta (name, value) VALUES (?, ?)", name, value)
        finally:
            self._execute("PRAGMA synchronous = NORMAL")

    def record(self, pair: SaPair) -> None:
        """Remember a live pair. It outlives the process; with the machine the SAs go as well."""
        self._execute(
            f"INSERT OR REPLACE INTO pair ({_COLUMNS}) VALUES ({', '.join('?' * 18)})",  # noqa: S608  # constants only
            str(pair.local),
            str(pair.remote),
            _write_spis(pair.sas),
            int(pair.mode),
            int(pair.udp),
            _write_selector(pair.selector),
            pair.host,
            pair.principal,
            pair.reqid,
            pair.suite,
            pair.role.value,
            pair.lifetime.seconds,
            pair.lifetime.kilobytes,
            pair.created,
            pair.epoch,
            pair.xid,
            pair.fingerprint,
            pair.etype,
        )
        if pair.role is Role.RESPONDER:
            self._execute(
                "INSERT OR REPLACE INTO client (host, principal) VALUES (?, ?)",
                pair.host,
                pair.principal,
            )

    def forget(self, pair: SaPair) -> None:
        """The pair is gone; the CREATE of a peer that made it is remembered a while longer."""
        if pair.role is Role.RESPONDER:
            self._execute(
                "INSERT OR REPLACE INTO answered (host, epoch, xid, fingerprint, ended) "
                "VALUES (?, ?, ?, ?, unixepoch())",
                pair.host,
                *pair.command,
            )
            self._execute("DELETE FROM answered WHERE ended < unixepoch() - ?", _ANSWERED_SECONDS)
        self._execute(
            "DELETE FROM pair WHERE local = ? AND sas = ?",
            str(pair.local),
            _write_spis(pair.sas),
        )

    def owe(self, debt: RecordDebt) -> None:
        """Remember what a peer is still to delete. No keys are of it, only an SPI of ours."""
        self._execute(
            "INSERT OR REPLACE INTO debt (local, protocol, spi, remote, host, until) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            str(debt.path.local),
            int(debt.protocol),
            debt.spi,
            str(debt.path.remote),
            debt.host,
            int(debt.until),
        )

    def paid(self, debt: ForgetDebt) -> None:
        """The peer has deleted it."""
        self._execute(
            "DELETE FROM debt WHERE local = ? AND remote = ? AND protocol = ? AND spi = ?",
            str(debt.path.local),
            str(debt.path.remote),
            int(debt.protocol),
            debt.spi,
        )

    def bury(self, burial: RecordBurial) -> None:
        """Remember what a peer has deleted before it came to be, as long as it may yet come."""
        self._execute(
            "INSERT OR REPLACE INTO burial (host, protocol, spi, buried) "
            "VALUES (?, ?, ?, unixepoch())",
            burial.host,
            int(burial.protocol),
            burial.spi,
        )

    def secure(self, host: str, principal: str) -> None:
        """Remember that there were SAs with a host of which the policy only requests them."""
        self._execute(
            "INSERT OR REPLACE INTO secured (host, principal) VALUES (?, ?)", host, principal
        )

    def forget_secured(self, host: str) -> None:
        """There were none, as far as the next life is concerned."""
        self._execute("DELETE FROM secured WHERE host = ?", host)

    def secured(self) -> dict[str, str]:
        """The principals, by host, with which there were."""
        return dict(self._execute("SELECT host, principal FROM secured").fetchall())

    def burials(self) -> list[RecordBurial]:
        """What peers have deleted lately that had not come to be."""
        self._execute("DELETE FROM burial WHERE buried < unixepoch() - ?", _ANSWERED_SECONDS)
        rows = self._execute("SELECT host, protocol, spi FROM burial ORDER BY buried")
        return [RecordBurial(host, IpsecProtocol(protocol), spi) for host, protocol, spi in rows]

    def debts(self) -> list[RecordDebt]:
        """What peers are still to delete, as far as they can still have it."""
        self._execute("DELETE FROM debt WHERE until <= unixepoch()")
        rows = self._execute("SELECT host, local, remote, protocol, spi, until FROM debt")
        return [
            RecordDebt(
                host,
                Path(ip_address(local), ip_address(remote)),
                IpsecProtocol(protocol),
                spi,
                float(until),
            )
            for host, local, remote, protocol, spi, until in rows
        ]

    def answered(self) -> list[tuple[str, CommandId]]:
        """The CREATEs, by host, whose pairs were forgotten lately."""
        rows = self._execute(
            "SELECT host, epoch, xid, fingerprint FROM answered WHERE ended >= unixepoch() - ?",
            _ANSWERED_SECONDS,
        )
        return [(host, CommandId(*command)) for host, *command in rows]

    def clients(self) -> dict[str, str | None]:
        """Who sent the CREATEs that are remembered, by host; None: a version before did not say."""
        remembered = (
            f"SELECT host FROM pair WHERE role = '{Role.RESPONDER.value}' "  # noqa: S608  # constants
            "UNION SELECT host FROM answered"
        )
        self._execute(f"DELETE FROM client WHERE host NOT IN ({remembered})")  # noqa: S608  # constants
        rows = self._execute(
            f"SELECT host, principal FROM ({remembered}) LEFT JOIN client USING (host)"  # noqa: S608
        )
        return dict(rows.fetchall())

    def pairs(self) -> list[SaPair]:
        """Every pair that was recorded and not forgotten."""
        rows = self._execute(f"SELECT {_COLUMNS} FROM pair ORDER BY rowid")  # noqa: S608  # constants only
        return [
            SaPair(
                host=host,
                principal=principal,
                local=ip_address(local),
                remote=ip_address(remote),
                sas=_read_spis(sas),
                mode=Mode(mode),
                udp=bool(udp),
                selector=_read_selector(selector),
                reqid=reqid,
                suite=suite,
                role=Role(role),
                lifetime=Lifetime(seconds, kilobytes),
                created=created,
                epoch=epoch,
                xid=xid,
                fingerprint=fingerprint,
                etype=etype,
            )
            for (
                local,
                remote,
                sas,
                mode,
                udp,
                selector,
                host,
                principal,
                reqid,
                suite,
                role,
                seconds,
                kilobytes,
                created,
                epoch,
                xid,
                fingerprint,
                etype,
            ) in rows
        ]

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise LocalError(f"the journal {self._path} cannot be used: {error}") from error

    def _prepare(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            with contextlib.closing(self._db.cursor()) as cursor:
                cursor.executescript(
                    f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;"
                )
        elif version < _SCHEMA_VERSION or not self._is_readable(version):
            raise LocalError(
                f"the journal {self._path} is of version {version}, this kinkd knows version "
                f"{_SCHEMA_VERSION}; run a kinkd that knows it, or move the file away "
                "(existing SAs are then removed at start)"
            )

    def _is_readable(self, version: int) -> bool:
        """Whether what a later version wrote can be used by this one."""
        if version == _SCHEMA_VERSION:
            return True
        try:
            statement = "SELECT value FROM meta WHERE name = ?"
            row = self._db.execute(statement, (_READABLE_BY,)).fetchone()
        except sqlite3.OperationalError:  # of a version that has no such table any more
            return False
        return row is not None and int(row[0]) <= _SCHEMA_VERSION


def _write_spis(sas: tuple[Spis, ...]) -> str:
    return " ".join(f"{int(protocol)}:{inbound}:{outbound}" for protocol, inbound, outbound in sas)


def _read_spis(text: str) -> tuple[Spis, ...]:
    found = (map(int, each.split(":")) for each in text.split())
    return tuple(
        Spis(IpsecProtocol(protocol), inbound, outbound) for protocol, inbound, outbound in found
    )


def _write_selector(selector: Selector) -> str:
    ports = (selector.source_port, selector.destination_port)
    numbers = (selector.protocol, *(number for port in ports for number in (port.port, port.mask)))
    return f"{selector.source} {selector.destination} {' '.join(map(str, numbers))}"


def _read_selector(text: str) -> Selector:
    source, destination, *numbers = text.split()
    protocol, source_port, source_mask, port, mask = map(int, numbers)
    return Selector(
        ip_network(source),
        ip_network(destination),
        protocol,
        PortMatch(source_port, source_mask),
        PortMatch(port, mask),
    )
