"""Everything that must be right before the daemon claims to be ready, in the order that a second
daemon, started by mistake beside a living one, fails before it has touched anything."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import time
from functools import partial
from pathlib import Path

from kinkd.app import recovery
from kinkd.app.config import DEFAULT_CCACHE, Config
from kinkd.app.journal import Journal
from kinkd.app.logs import log
from kinkd.errors import KernelError, LocalError
from kinkd.exchange.core import Start
from kinkd.exchange.endpoint import Endpoint
from kinkd.exchange.xids import permuted
from kinkd.kerberos.accepting import GssAcceptor
from kinkd.kerberos.gss import GssTicketSource
from kinkd.kernel.port import Kernel
from kinkd.kernel.socket import XfrmSocket
from kinkd.model import Suite
from kinkd.policy.match import HostPolicy

_REPLAY_CACHE_BIRTH = "replay-cache-birth"
_LARVAL_DROP = Path("/proc/sys/net/core/xfrm_larval_drop")


def lock_state(directory: Path) -> int:
    """Take the state directory for this process alone; the lock ends with the descriptor.

    Raises:
        LocalError: another kinkd has it, or it is not there.
    """
    path = directory / "lock"
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise LocalError(
            f"the state directory {directory} cannot be used: {error.strerror}; "
            "is it there and writable for this user?"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise LocalError(f"another kinkd uses the state directory {directory}") from None
    return descriptor


def open_kernel() -> XfrmSocket:
    """The kernel's SA and policy databases.

    Raises:
        LocalError: without CAP_NET_ADMIN.
        KernelError: a kernel without XFRM.
    """
    try:
        return XfrmSocket()
    except KernelError as error:
        if error.errno != errno.EPERM:
            raise
        raise LocalError(
            "the kernel's SAs and policies need CAP_NET_ADMIN: run kinkd by its systemd unit, "
            "or as root"
        ) from None


def prepare(config: Config, policy: HostPolicy, kernel: Kernel, journal: Journal) -> Endpoint:
    """The endpoint, with all that an earlier life left behind.

    Raises:
        LocalError: keytab, replay cache, journal, or a kernel without ESP.
    """
    _check_socket_directory(config.control_socket)
    replay_cache = config.state_directory / "rcache"
    birth = _replay_cache_birth(journal, replay_cache)
    keytab = None if config.keytab is None else str(config.keytab)
    acceptor = GssAcceptor(keytab, str(replay_cache), birth)
    families: set[int] = {protection.local.version for protection in policy.protections}
    suites = {family: _probe(kernel, policy, family) for family in families}
    _set_larval_drop()
    ownership = recovery.Ownership(config.reqids, config.priorities)
    recovery.install_policies(kernel, policy, ownership)
    recovered = recovery.recover(kernel, journal, ownership, policy)
    xid = partial(permuted, recovery.xid_key(journal), recovered.epoch)
    start = Start(recovered.epoch, recovered.first_xid, xid, suites, secrets.token_bytes)
    endpoint = Endpoint(policy, kernel, acceptor, start)
    now = time.monotonic()
    endpoint.set_posix(time.time() - now)
    endpoint.adopt(recovered.pairs, now)
    endpoint.recall(journal.answered(), now)
    endpoint.recall_debts(journal.debts(), now)
    endpoint.disown(recovered.lost, now)
    endpoint.disown_unclaimed(recovered.unclaimed, now)
    log(
        logging.INFO,
        "recovered",
        epoch=recovered.epoch,
        adopted=len(recovered.pairs),
        lost=len(recovered.lost),
        removed=len(recovered.unclaimed),
    )
    return endpoint


def ticket_source(config: Config, policy: HostPolicy) -> GssTicketSource:
    """Where tickets come from: a person's credentials cache, or the keytab."""
    client = policy.me.client
    if config.ccache is not None:
        ccache = None if config.ccache == DEFAULT_CCACHE else config.ccache
        return GssTicketSource(None, client, ccache=ccache)
    return GssTicketSource(str(config.keytab), client)


def _check_socket_directory(path: Path) -> None:
    """The control socket is made last; that it can be made is found out first."""
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise LocalError(
            f"the control socket {path} cannot be made: {path.parent} is not there or not "
            "writable for this user"
        )


def _replay_cache_birth(journal: Journal, path: Path) -> float:
    """Authenticators from before the replay cache's birth may be replays: they are refused."""
    birth = journal.meta(_REPLAY_CACHE_BIRTH)
    if birth is None or not path.exists():
        birth = int(time.time())
        journal.set_meta(_REPLAY_CACHE_BIRTH, birth)
    return float(birth)


def _probe(kernel: Kernel, policy: HostPolicy, family: int) -> frozenset[str]:
    """The suites of the policy that this kernel has; none at all: we cannot serve."""
    wanted: dict[str, Suite] = {}
    with_esn: set[str] = set()  # the kernel uses another template for some algorithms then
    for protection in policy.protections:
        profile = protection.profile
        if protection.local.version == family:
            wanted.update((suite.name, suite) for suite in profile.suites)
            with_esn.update(suite.name for suite in profile.suites if True in profile.esn)
    refused: dict[str, KernelError] = {}
    for name, suite in wanted.items():
        try:
            for transform in suite.transforms:
                kernel.probe(transform, family, esn=name in with_esn)
        except KernelError as error:
            refused[name] = error
    if wanted and len(refused) == len(wanted):
        protocols = {p.name.lower() for suite in wanted.values() for p in suite.protocols}
        modules = ", ".join(sorted(f"{name}{family}" for name in protocols))
        raise LocalError(
            f"this kernel has none of the policy's suites for IPv{family}; try modprobe "
            f"{modules}, or a kernel built with IPsec ({next(iter(refused.values()))})"
        )
    for name, reason in refused.items():
        log(logging.WARNING, "suite-unavailable", suite=name, family=family, reason=reason)
    return frozenset(wanted) - frozenset(refused)


def _set_larval_drop() -> None:
    """Have the kernel hold the first packets instead of dropping them, if we may say so."""
    try:
        if _LARVAL_DROP.read_text().strip() != "0":
            _LARVAL_DROP.write_text("0")
    except OSError:
        log(
            logging.WARNING,
            "larval-drop",
            hint="packets are lost while an SA is made: sysctl net.core.xfrm_larval_drop=0",
        )
