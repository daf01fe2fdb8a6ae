"""``kinkd guard``: the policy's SPD entries in the kernel before there is a network.

Between boot and the daemon nothing would keep this host from sending in clear what its policy
protects. With the entries and without SAs such traffic is dropped. No resolver is asked and
nothing is loaded that an early start would wait for.
"""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import NamedTuple

from kinkd.app import config as configuration
from kinkd.app import discovery, journal, recovery
from kinkd.app.config import Config
from kinkd.app.resources import StateInUse, lock_state, open_kernel
from kinkd.errors import LocalError
from kinkd.exchange import spd
from kinkd.exchange.forms import Forms
from kinkd.model import SpdEntry
from kinkd.policy import cache, resolve, sources
from kinkd.policy.match import HostPolicy
from kinkd.policy.realm import RealmPolicy


class Chosen(NamedTuple):
    """The policy to install, and where it is from, in words."""

    policy: HostPolicy
    source: str


def guard(path: Path | str) -> str:
    """Install this host's SPD entries, and remove those of an earlier policy of ours.

    SAs and what others have installed are left alone. Where a daemon runs it has done all this.

    Returns:
        what was done, in one line.

    Raises:
        DocumentError: the configuration is not good.
        LocalError: there is no policy, not even a cached one; or a foreign policy is in the way.
        KernelError: the kernel refuses an entry.
    """
    config = configuration.load(path)
    try:
        lock = lock_state(config.state_directory)
    except StateInUse:
        return f"a kinkd of {config.state_directory} is running: nothing to do"
    try:
        chosen = choose(config)
        with open_kernel() as kernel:
            spd.install(kernel, _entries(config, chosen.policy), config.priorities)
    finally:
        os.close(lock)
    policy = chosen.policy
    return (
        f"{len(policy.entries)} SPD entries for {policy.me.name} are in place: "
        f"version {policy.version} of the policy, {chosen.source}"
    )


def _entries(config: Config, policy: HostPolicy) -> tuple[SpdEntry, ...]:
    """The entries as the daemon will have them.

    What is only requested, and was never had, is in clear until somebody can ask for it. Where the
    journal cannot be read, all of it was had; if it is damaged, the daemon is to find and say it.
    """
    path = config.state_directory / journal.NAME
    forms = Forms()
    if path.exists():
        try:
            with contextlib.closing(journal.Journal(path, mend=False)) as opened:
                forms = recovery.read_forms(opened)
        except LocalError:
            return policy.entries
    forms.clear.update(protection.slot for protection in policy.protections)
    return forms.wanted(policy)


def choose(config: Config) -> Chosen:
    """The policy file's policy, else the cached one.

    Raises:
        LocalError: neither can be used.
    """
    last = cache.version_in_force(config.state_directory)
    try:
        _refuse_directory(config)
        policy = sources.load_file(str(config.policy_file))
        if policy.version >= last:
            return Chosen(_resolve(config, policy), f"from {config.policy_file}")
        fault = LocalError(
            f"{config.policy_file}: version {policy.version} is older than version {last}, the last"
            " that was in force"
        )
    except LocalError as error:
        fault = error
    try:
        cached = cache.load(config.state_directory)
        host = _resolve(config, cached.policy(config.state_directory), cached.host)
    except LocalError as error:
        raise LocalError(
            f"no policy to go by, nothing is protected: {fault}; nor is there a cached one: "
            f"{error}; mend the policy (kinkd check), then start kinkd-guard again"
        ) from None
    return Chosen(host, f"cached from {cached.source} ({fault})")


def _refuse_directory(config: Config) -> None:
    if config.directory is not None:
        raise LocalError("the policy is in a directory, which is not asked so early")


def _resolve(config: Config, policy: RealmPolicy, remembered: str | None = None) -> HostPolicy:
    """What ``policy`` means to this host, which is found as the daemon does, but for its resolver.

    ``remembered``: its name in the policy when a resolver could be asked.
    """
    name = config.host or resolve.identify(policy, [socket.gethostname()]) or remembered
    if name is None:
        raise LocalError(
            f"{config.policy_file} has no host of this machine's name ({socket.gethostname()}), "
            f'and at boot no resolver is asked; write name = "..." under [host] of {config.path}'
        )
    servers = (*config.servers, *discovery.resolvers())
    return resolve.resolve(policy, name, configuration.options(config, servers))
