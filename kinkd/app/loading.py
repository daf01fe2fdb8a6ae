"""The configuration and the policy that a daemon goes by: at its start, and at every reload.

The version of the policy only rises: one that is older than what was last in force on this host is
a copy of before, until an administrator says otherwise here. Where no good policy can be had at a
start, the one that was last in force is.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import Final

from kinkd.app import config as configuration
from kinkd.app.config import Config
from kinkd.errors import LocalError
from kinkd.policy import cache, sources
from kinkd.policy.match import HostPolicy
from kinkd.policy.realm import RealmPolicy
from kinkd.policy.resolve import Memory
from kinkd.policy.sources import Source

_OF_A_LIFE: Final = {
    "host": "host.name",
    "keytab": "kerberos.keytab",
    "ccache": "kerberos.ccache",
    "krb5_config": "kerberos.krb5_config",
    "policy_file": "policy.file",
    "directory": "directory",
    "state_directory": "state.directory",
    "control_socket": "control.socket",
    "reqids": "kernel.reqid_base",
    "priorities": "kernel.priority_base",
    "log_format": "log.format",
}
"""What cannot change while a daemon runs, and what the configuration file calls it."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read, all of it good.

    ``document`` is the policy's text, ``source`` says where it is from. ``fault`` is why the policy
    is the one that was last in force, and not the source's; empty: it is the source's.
    """

    config: Config
    policy: HostPolicy
    realm: RealmPolicy
    document: str
    source: str
    warnings: tuple[str, ...] = ()
    fault: str = ""
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)


def load(config: Config, source: Source) -> Loaded:
    """The policy that a configuration leads to, or the one that was last in force.

    Raises:
        DocumentError, LocalError: it is not good, or this host is not in it; and there is none
            from before.
    """
    if config.directory is not None:
        # A directory may be far away, or down; what it has to say comes as a change.
        with contextlib.suppress(LocalError):
            return last_in_force(config, "")
    try:
        found = source.load()
        _refuse_older(found.policy, cache.version_in_force(config.state_directory), source)
        memory = Memory()
        policy = configuration.resolve_for_host(config, found.policy, memory=memory)
        return Loaded(
            *(config, policy, found.policy, found.text, source.name, found.policy.warnings),
            memory=memory,
        )
    except LocalError as error:
        fault = error
    try:
        return last_in_force(config, str(fault))
    except LocalError:
        raise fault from None


def last_in_force(config: Config, fault: str) -> Loaded:
    """The policy of the cache. ``fault``: why not the source's.

    Raises:
        DocumentError, LocalError: there is none, or it cannot be used.
    """
    cached = cache.load(config.state_directory)
    realm = cached.policy(config.state_directory)
    policy = configuration.resolve_for_host(config, realm, cached.host)
    return Loaded(config, policy, realm, cached.document, cached.source, (), fault)


def reload(before: Loaded, source: Source, *, accept_older: bool = False) -> Loaded:
    """Read all again. What needs a new start is left as it was, with a warning.

    Raises:
        DocumentError, LocalError: something is not good; what was before stays in force.
    """
    fresh = configuration.load(before.config.path)
    kept = {
        name: getattr(before.config, name)
        for name in _OF_A_LIFE
        if getattr(before.config, name) != getattr(fresh, name)
    }
    config = replace(fresh, **kept)
    found = source.load()
    if not accept_older:
        _refuse_older(found.policy, before.policy.version, source)
    policy = configuration.resolve_for_host(
        config, found.policy, before.policy.me.name, before.memory
    )
    _refuse_another(policy, before, source)
    warnings = [f"{_OF_A_LIFE[name]} changes with the next start" for name in kept]
    same_version = found.policy.version == before.policy.version
    if config.directory is None and same_version and found.text != before.document:
        warnings.append(
            f"{source.name} has changed, and its version is still {found.policy.version}: raise it"
            " with every change, so that it tells which policy a host has"
        )
    return Loaded(
        *(config, policy, found.policy, found.text, source.name),
        warnings=(*found.policy.warnings, *warnings),
        memory=before.memory,
    )


def _refuse_older(policy: RealmPolicy, last: int, source: Source) -> None:
    if policy.version < last:
        raise LocalError(
            f"{source.name}: version {policy.version} is older than version {last}, which is the"
            " last that was in force on this host: a copy of before? If it is meant, run"
            " kinkctl reload --accept-older"
        )


def _refuse_another(policy: HostPolicy, before: Loaded, source: Source) -> None:
    me, was = policy.me, before.policy.me
    if (me.name, *me.principals) != (was.name, *was.principals):
        raise LocalError(
            f"{source.name}: this host is another than before ({me.name}, {me.client}); restart"
            " kinkd for that"
        )


def source_of(config: Config) -> Source:
    """Where the policy comes from.

    Raises:
        LocalError: a directory cannot be asked from here.
    """
    if config.directory is None:
        return sources.FileSource(str(config.policy_file))
    # Whoever has no directory needs nothing of it.
    from kinkd.app.directory import directory_source  # noqa: PLC0415

    return directory_source(config.directory, config.keytab)
