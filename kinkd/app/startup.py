"""Everything that must be right before the daemon claims to be ready, in the order that a second
daemon, started by mistake beside a living one, fails before it has touched anything."""

from __future__ import annotations

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
from kinkd.exchange import spd
from kinkd.exchange.core import Start
from kinkd.exchange.endpoint import Endpoint
from kinkd.exchange.xids import permuted
from kinkd.kerberos.accepting import GssAcceptor
from kinkd.kerberos.gss import GssTicketSource
from kinkd.kernel.port import Kernel
from kinkd.model import Ownership, Suite
from kinkd.policy.match import HostPolicy

_REPLAY_CACHE_BIRTH = "replay-cache-birth"
_LARVAL_DROP = Path("/proc/sys/net/core/xfrm_larval_drop")


def prepare(config: Config, policy: HostPolicy, kernel: Kernel, journal: Journal) -> Endpoint:
    """The endpoint, with all that an earlier life left behind.

    Raises:
        LocalError: keytab, replay cache, journal, or a kernel without ESP.
    """
    _check_socket_directory(config.control_socket)
    replay_cache = config.state_directory / "rcache"
    birth = _replay_cache_birth(journal, replay_cache, policy)
    keytab = None if config.keytab is None else str(config.keytab)
    acceptor = GssAcceptor(keytab, str(replay_cache), birth)
    suites = probe(kernel, policy)
    _set_larval_drop()
    ownership = Ownership(config.reqids, config.priorities)
    forms = recovery.recover_forms(journal)
    spd.install(kernel, forms.wanted(policy), ownership.priorities)
    recovered = recovery.recover(kernel, journal, ownership, policy)
    xid = partial(permuted, recovery.xid_key(journal), recovered.epoch)
    start = Start(
        *(recovered.epoch, recovered.first_xid, xid, suites, ownership, secrets.token_bytes),
        forms=forms,
    )
    endpoint = Endpoint(policy, kernel, acceptor, start)
    now = time.monotonic()
    endpoint.set_posix(time.time() - now)
    endpoint.adopt(recovered.pairs, now)
    endpoint.recall(journal.answered(), now)
    endpoint.recall_burials(journal.burials(), now)
    endpoint.recall_debts(journal.debts(), now)
    endpoint.disown(recovered.lost, now)
    endpoint.disown_unclaimed(recovered.unclaimed, now)
    if recovered.is_first:
        endpoint.announce(now)
    if journal.damage:
        log(logging.ERROR, "journal-damaged", reason=journal.damage)
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


def _replay_cache_birth(journal: Journal, path: Path, policy: HostPolicy) -> float:
    """Authenticators from before the replay cache's birth may be replays: they are refused.

    So are those of before where a host has another name now, or a name another host: commands are
    remembered by names, and none must be carried out again.
    """
    birth = journal.meta(_REPLAY_CACHE_BIRTH)
    clients = {host.name: str(host.client) for host in policy.peers + policy.others}
    known = all(
        host in clients and client in (None, clients[host])
        for host, client in journal.clients().items()
    )
    if birth is None or not known or not path.exists():
        birth = int(time.time())
        journal.set_meta(_REPLAY_CACHE_BIRTH, birth)
    return float(birth)


def probe(kernel: Kernel, policy: HostPolicy) -> dict[int, frozenset[str]]:
    """The suites of a policy that the kernel has, for each address family that it needs.

    Raises:
        LocalError: it has none at all for one of them.
    """
    families = {protection.local.version for protection in policy.protections}
    return {family: _probe(kernel, policy, family) for family in families}


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
