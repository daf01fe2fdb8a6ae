"""What a policy of 5,000 hosts in a directory takes: the first refresh, a change.

Starts a realm and a slapd of its own.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from kinkd.model import Principal
from kinkd.policy.directory import assemble
from kinkd.policy.directory.source import DirectorySource
from tests.support.directory import credentials, entries, host, hosts_text, options
from tests.support.realm import Realm
from tests.support.slapd import Directory

HOSTS, CHANGES = 5000, 20


def main() -> int:
    with tempfile.TemporaryDirectory() as name, Realm(Path(name, "realm")) as realm:
        os.environ.update(realm.environment)
        keytab = Path(name, "keytab")
        client = Principal.parse(realm.add("kink/alice.example.test", keytab=keytab))
        with Directory(realm, Path(name, "slapd")) as slapd:
            slapd.add(entries(hosts_text(HOSTS)))
            measure(DirectorySource(options(slapd.port), credentials(keytab, client)), slapd)
    return 0


def measure(source: DirectorySource, slapd: Directory) -> None:
    """Print the figures of one source."""
    changed = threading.Event()
    begun, processor = time.monotonic(), time.process_time()
    source.start(changed.set)
    changed.wait()
    print(f"{'first refresh':40} {time.monotonic() - begun:9.3f} s")
    print(f"{'  of them on our processor':40} {time.process_time() - processor:9.3f} s")
    begun = time.monotonic()
    policy = source.load().policy
    print(f"{'load, model.read and all':40} {time.monotonic() - begun:9.3f} s")
    assert len(policy.hosts) == HOSTS
    told, commit, put_together = [], [], []
    inner = source._commit
    source._commit = lambda: commit.append(timed(inner))  # type: ignore[method-assign]  # to time it
    for number in range(CHANGES):
        changed.clear()
        slapd.set(host(f"h{number}"), kinkdFqdn=f"x{number}.example.test")
        begun = time.monotonic()
        changed.wait()
        told.append(time.monotonic() - begun)
        parts = list((source._parts or {}).values())
        put_together.append(timed(lambda parts=parts: assemble.assemble("", parts)))
    source.stop()
    print(f"{'a change, to changed()':40} {median(told):9.3f} s")
    print(f"{'  of them at work (replica, part)':40} {median(commit):9.4f} s")
    print(f"{'the document, put together anew':40} {median(put_together):9.4f} s")


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


if __name__ == "__main__":
    sys.exit(main())
