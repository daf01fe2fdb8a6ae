"""The configuration and the policy that a daemon goes by: at its start, and at every reload."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from kinkd.app import config as configuration
from kinkd.app.config import Config
from kinkd.errors import LocalError
from kinkd.policy import sources
from kinkd.policy.match import HostPolicy

_OF_A_LIFE: Final = {
    "host": "host.name",
    "keytab": "kerberos.keytab",
    "ccache": "kerberos.ccache",
    "krb5_config": "kerberos.krb5_config",
    "state_directory": "state.directory",
    "control_socket": "control.socket",
    "reqids": "kernel.reqid_base",
    "priorities": "kernel.priority_base",
    "log_format": "log.format",
}
"""What cannot change while a daemon runs, and what the configuration file calls it."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read, all of it good. ``document`` is the policy's text."""

    config: Config
    policy: HostPolicy
    document: str
    warnings: tuple[str, ...]


def load(config: Config) -> Loaded:
    """The policy that a configuration leads to.

    Raises:
        DocumentError, LocalError: it is not good, or this host is not in it.
    """
    return _load(config, None)


def reload(before: Loaded) -> Loaded:
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
    loaded = _load(replace(fresh, **kept), before.policy.me.name)
    me, was = loaded.policy.me, before.policy.me
    if (me.name, me.service, me.client, me.user_to_user) != (
        *(was.name, was.service, was.client),
        was.user_to_user,
    ):
        raise LocalError(
            f"{loaded.config.policy_file}: this host is another than before ({me.name}, "
            f"{me.client}); restart kinkd for that"
        )
    warnings = tuple(f"{_OF_A_LIFE[name]} changes with the next start" for name in kept)
    return replace(loaded, warnings=(*loaded.warnings, *warnings))


def _load(config: Config, known: str | None) -> Loaded:
    realm, document = sources.load(str(config.policy_file))
    policy = configuration.resolve_for_host(config, realm, known)
    return Loaded(config, policy, document, tuple(realm.warnings))
