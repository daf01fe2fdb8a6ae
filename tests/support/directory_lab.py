"""The laboratory with its policy in a directory: slapd on the host ds, which runs kinkd as well.

with DirectoryLab(("alice", "bob")) as lab:
    lab.start()
    lab.slapd.set(host("bob"), kinkdDisabled="TRUE")
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from kinkd.app import protocol
from kinkd.document import Document
from kinkd.policy.directory import ldif
from tests.support.directory import BASE, host
from tests.support.lab import Host, Lab
from tests.support.slapd import Directory

DS = "ds"
_PATIENCE = 40.0  # seconds for an answer of a kinkd


class DirectoryLab(Lab):
    """``hosts`` and ds. ``later``: hosts that the directory does not have yet."""

    def __init__(self, hosts: Sequence[str], *, later: Sequence[str] = (), **more: Any) -> None:
        super().__init__((*hosts, DS, *later), families=(4,), **more)
        self.later = tuple(later)
        self.slapd: Directory

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._make_directory()
        except BaseException:
            self._stack.close()
            raise
        return self

    def _make_directory(self) -> None:
        node = self[DS].node
        self.slapd = Directory(
            self.realm, self.directory / "slapd", node=node, fqdn="ds.example.test"
        )
        self._stack.enter_context(self.slapd)
        self.slapd.add("\n\n".join(each for each in self.records() if not self._is_later(each)))
        for each in self.hosts.values():
            self.follow(each)

    def follow(self, each: Host) -> None:
        """Configure a host to have its policy from the directory."""
        text = each.config.read_text().replace(
            f'[policy]\nfile = "{self.policy}"\n',
            f'[directory]\nuri = "{self.slapd.uri}"\nserver = "{self.slapd.principal}"\n'
            f'base = "{BASE}"\n',
        )
        each.config.write_text(text)

    def records(self) -> list[str]:
        """The LDIF of the policy, entry by entry."""
        document = Document.parse("policy.toml", self.policy.read_bytes())
        return [each for each in ldif.export(document, BASE).split("\n\n") if "dn:" in each]

    def record(self, name: str) -> str:
        """That of a host."""
        return next(each for each in self.records() if f"dn: {host(name)}\n" in each) + "\n\n"

    def _is_later(self, record: str) -> bool:
        return any(f"dn: {host(name)}\n" in record for name in self.later)

    @contextmanager
    def cut(self, name: str) -> Iterator[None]:
        """Meanwhile nothing reaches a host, and nobody is told."""
        self.topology.wire.ip(f"link set {name} down")
        try:
            yield
        finally:
            self.topology.wire.ip(f"link set {name} up")


def policy_of(each: Host) -> dict[str, Any]:
    """What ``kinkctl policy show`` asks; may be called in several threads."""
    return protocol.ask(str(each.socket), "policy", _PATIENCE)


def source_of(each: Host) -> dict[str, Any]:
    """What the source of its policy says of itself."""
    found: dict[str, Any] = policy_of(each)["source_state"]
    return found


def cached_text(each: Host) -> str:
    """The document that its kinkd keeps for the next start."""
    from kinkd.policy import cache

    return cache.load(Path(each.state)).document


def restart(each: Host, signum: int = signal.SIGTERM) -> None:
    """Stop a kinkd and start it."""
    each.stop(signum)
    each.start()
