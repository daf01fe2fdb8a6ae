"""The realm's directory as the source of the policy, asked with this host's own ticket."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from kinkd.app.logs import log
from kinkd.errors import DocumentError, LocalError
from kinkd.kerberos import keytab, libkrb5
from kinkd.model import Principal
from kinkd.policy.directory.options import DirectoryOptions
from kinkd.policy.directory.session import Client
from kinkd.policy.directory.source import DirectorySource
from kinkd.policy.sources import Loaded

_SPEAKERS: Final = ("kink", "host")  # the first components of principals that get tickets


class ToldSource(DirectorySource):
    """It is logged when the directory is lost, and when it is found again.

    What was read stays good meanwhile, so that nothing else would tell.
    """

    _told: object = None

    def load(self) -> Loaded:
        """The policy (see ``DirectorySource.load``).

        Raises:
            LocalError: there is none. A mistake in the directory is none in what this host has:
                unlike one in a file, it is worth another start.
        """
        try:
            return super().load()
        except DocumentError as error:
            raise LocalError(str(error)) from None

    def start(self, changed: Callable[[], None]) -> None:
        """Begin to keep the replica."""

        def tell_and_call() -> None:
            self._tell()
            changed()

        super().start(tell_and_call)

    def _tell(self) -> None:
        fault = self.state()["fault"]
        if fault == self._told:
            return
        self._told = fault
        if fault is None:
            log(logging.WARNING, "directory-reached", source=self.name)
        else:
            log(logging.ERROR, "directory-lost", source=self.name, reason=fault)


def directory_source(options: DirectoryOptions, path: Path | None) -> ToldSource:
    """The directory, asked as a principal of the keytab at ``path``.

    Raises:
        LocalError: there is no keytab.
    """
    if path is None:
        raise LocalError("a directory is asked with a key of this host; name a keytab")

    def credentials() -> Client:
        client = _client(options, path)
        return Client(libkrb5.initial_credentials(str(path), client), client.realm)

    return ToldSource(options, credentials)


def _client(options: DirectoryOptions, path: Path) -> Principal:
    """Whom this host binds as: who is configured, else its machine account, kink/FQDN, host/FQDN.

    The policy that says who this host is may be what is asked for.
    """
    try:
        held = dict.fromkeys(each.principal for each in keytab.read_keytab(path.read_bytes()))
    except OSError as error:
        raise LocalError(f"keytab {path}: cannot be read: {error.strerror}") from None
    if options.client is not None:
        for principal in held:
            if options.client in (str(principal), str(principal).rpartition("@")[0]):
                return principal
        raise LocalError(f"keytab {path}: no key for {options.client}, directory.client")
    accounts = [each for each in held if each.components[-1].endswith("$")]
    named = [each for kind in _SPEAKERS for each in held if each.components[0] == kind]
    for principal in (*accounts, *named, *held):
        return principal
    raise LocalError(f"keytab {path}: it holds no key")
