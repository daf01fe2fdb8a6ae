"""The last policy that was in force, kept for a start that finds no good one.

A file of JSON in the state directory. ``version`` changes where an older reader would
misunderstand it; what is merely added are keys that an older reader does not know, and passes over.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kinkd.document import MAXIMUM_OCTETS, Document, show
from kinkd.errors import DocumentError, LocalError
from kinkd.policy import reader, sources
from kinkd.policy.realm import RealmPolicy

VERSION: Final = 1
_NAME: Final = "policy-cache.json"
_MAXIMUM_OCTETS: Final = 2 * MAXIMUM_OCTETS + 65536  # in JSON no octet of TOML becomes three
_SURROGATE: Final = re.compile("[\ud800-\udfff]")  # JSON can say it, UTF-8 cannot


@dataclass(frozen=True, slots=True)
class CachedPolicy:
    """A policy as it was in force.

    ``host`` is the name in it of the host it was resolved for, ``source`` what it was read from,
    in words, ``version`` the document's; 0: written by a kinkd that did not say.
    """

    host: str
    source: str
    document: str
    version: int = 0

    def policy(self, directory: Path) -> RealmPolicy:
        """Read the document. Faults are placed in the cache of the state ``directory``.

        Raises:
            DocumentError: this version of kinkd does not understand it.
        """
        name = f"{directory / _NAME}: document"
        return reader.read(Document.parse(name, self.document.encode()))


def store(directory: Path, policy: CachedPolicy) -> None:
    """Replace the cache in the state ``directory``: what is there is the old or the new one, whole.

    Only one process at a time may call it: who has the lock of the directory.

    Raises:
        LocalError: it cannot be written; the old one is still there.
    """
    entry = {
        "version": VERSION,
        "host": policy.host,
        "source": policy.source,
        "document": policy.document,
        "policy_version": policy.version,
    }
    path = directory / _NAME
    fresh = directory / f"{_NAME}.new"
    try:
        _write(fresh, json.dumps(entry, ensure_ascii=False, indent=1).encode())
        os.replace(fresh, path)
        _sync(directory)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise LocalError(f"{path}: cannot be written: {error.strerror}") from None


def load(directory: Path) -> CachedPolicy:
    """What ``store`` left in the state ``directory``.

    Raises:
        DocumentError: there is none, it is damaged, not to be trusted, or of another version.
    """
    path = str(directory / _NAME)
    octets = sources.read_octets(path, _MAXIMUM_OCTETS)
    try:
        entry = json.loads(octets.decode())
    except (ValueError, RecursionError):
        raise DocumentError(path, None, "damaged: not JSON") from None
    if not isinstance(entry, dict):
        raise DocumentError(path, None, "damaged: no object")
    version = entry.get("version")
    if version != VERSION or isinstance(version, bool):
        raise DocumentError(
            path, None, f"of version {show(version)}, this kinkd reads version {VERSION}"
        )
    number = entry.get("policy_version", 0)
    if not isinstance(number, int) or isinstance(number, bool):
        raise DocumentError(path, None, 'damaged: no number under "policy_version"')
    host, source, document = (_text(path, entry, key) for key in ("host", "source", "document"))
    return CachedPolicy(host, source, document, number)


def version_in_force(directory: Path) -> int:
    """The version of the cached policy; 0: there is none that tells."""
    try:
        return load(directory).version
    except DocumentError:
        return 0


def _text(path: str, entry: dict[str, object], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or _SURROGATE.search(value):
        raise DocumentError(path, None, f"damaged: no text under {show(key)}")
    return value


def _write(path: Path, octets: bytes) -> None:
    path.unlink(missing_ok=True)  # left by a start that was killed; it may have any mode
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(octets)
        file.flush()
        os.fsync(descriptor)


def _sync(directory: Path) -> None:
    """Make a rename in it durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
