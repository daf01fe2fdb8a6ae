"""A policy in a real directory, and whoever follows it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kinkd.document import Document
from kinkd.errors import LocalError
from kinkd.kerberos import libkrb5
from kinkd.model import Principal
from kinkd.policy.directory import ldif
from kinkd.policy.directory.options import DirectoryOptions, Server
from kinkd.policy.directory.session import Client
from kinkd.policy.directory.source import DirectorySource, Loaded
from kinkd.policy.realm import RealmPolicy
from tests.support.slapd import BASE

POLICY = """\
schema = 1
version = 1
realm = "EXAMPLE.TEST"
[hosts.alice]
fqdn = "alice.example.test"
addresses = ["192.0.2.2", "192.0.2.1"]
[hosts.bob]
fqdn = "bob.example.test"
addresses = ["192.0.2.3", "2001:db8::3"]
[hosts.carol]
fqdn = "carol.example.test"
addresses = ["192.0.2.4"]
[groups]
web = ["alice", "bob"]
[profiles.slow]
suites = ["aes256gcm16", "aes128gcm16"]
group = ["ecp384", "ecp256"]
[[rules]]
name = "the web, all of it"
from = "web"
to = "all"
action = "require"
profile = "slow"
[[rules]]
name = "  ä rest \\\\ "
from = "all"
to = "carol"
action = "clear"
"""


def entries(text: str = POLICY) -> str:
    """The LDIF of a document in TOML."""
    return ldif.export(Document.parse("policy.toml", text.encode()), BASE)


def host(name: str) -> str:
    """The DN of a host of the policy."""
    return f"cn={name},ou=hosts,{BASE}"


def host_entry(name: str, address: str) -> str:
    """The LDIF of a host more."""
    return (
        f"dn: {host(name)}\nobjectClass: device\nobjectClass: kinkdHost\ncn: {name}\n"
        f"kinkdFqdn: {name}.example.test\nkinkdAddress: {address}\n\n"
    )


def hosts_text(count: int) -> str:
    """The TOML of a policy of so many hosts."""
    hosts = "".join(
        f'[hosts.h{n}]\nfqdn = "h{n}.example.test"\n'
        f'addresses = ["10.0.{n >> 8}.{n & 255}", "2001:db8::{n:x}"]\n'
        for n in range(count)
    )
    rule = '[[rules]]\nname = "all"\nfrom = "all"\nto = "all"\naction = "require"\n'
    return f'schema = 1\nversion = 1\nrealm = "EXAMPLE.TEST"\n{hosts}{rule}'


def options(port: int, **more: Any) -> DirectoryOptions:
    """A server on this machine; impatient, as tests are."""
    found = {"timeout": 5.0, "retry": 0.05, "retry_limit": 0.2, **more}
    return DirectoryOptions(**{"servers": (Server("localhost", port),), "base": BASE, **found})


def credentials(keytab: Path, client: Principal) -> Callable[[], Client]:
    """What a daemon hands to its source."""
    return lambda: Client(libkrb5.initial_credentials(str(keytab), client), client.realm)


class Follower:
    """A source that was started, and how often it called."""

    def __init__(self, source: DirectorySource) -> None:
        self.source = source
        self._called = threading.Condition()
        self.calls = 0
        source.start(self._changed)

    def _changed(self) -> None:
        with self._called:
            self.calls += 1
            self._called.notify_all()

    def until(self, wanted: Callable[[Loaded | LocalError], bool]) -> Loaded | LocalError:
        """What ``load`` gives or raises once it is what is wanted; asked when there was a call."""
        deadline = time.monotonic() + 60
        while True:
            with self._called:
                seen = self.calls
            try:
                found: Loaded | LocalError = self.source.load()
            except LocalError as error:
                found = error
            if wanted(found):
                return found
            with self._called:
                if not self._called.wait_for(
                    lambda seen=seen: self.calls > seen, deadline - time.monotonic()
                ):
                    raise AssertionError(f"nothing more comes; the last was {found}")

    def policy(self, wanted: Callable[[RealmPolicy], bool]) -> RealmPolicy:
        """The policy, once it is what is wanted."""
        found = self.until(lambda each: isinstance(each, Loaded) and wanted(each.policy))
        assert isinstance(found, Loaded)
        return found.policy

    def error(self, words: str) -> LocalError:
        """The error of ``load``, once it has the words in it."""
        found = self.until(lambda each: isinstance(each, LocalError) and words in str(each))
        assert isinstance(found, LocalError)
        return found

    def state(self, **wanted: object) -> dict[str, object]:
        """The source's state, once these are what is wanted of it."""
        deadline = time.monotonic() + 60
        while True:
            found = self.source.state()
            if all(found[name] == value for name, value in wanted.items()):
                return found
            assert time.monotonic() < deadline, found
            time.sleep(0.01)


@contextmanager
def following(source: DirectorySource) -> Iterator[Follower]:
    """Started, and stopped in the end."""
    try:
        yield Follower(source)
    finally:
        source.stop()
