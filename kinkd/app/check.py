"""``kinkd check``: is the configuration good, and what would it do on this host?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kinkd.app import addresses
from kinkd.app import config as configuration
from kinkd.app.config import Config
from kinkd.errors import KinkdError, LocalError
from kinkd.kerberos import keytab
from kinkd.keying import dh
from kinkd.model import Action, Direction, Host, Lifetime, PortMatch, Protection, SpdEntry
from kinkd.policy import sources
from kinkd.policy.match import HostPolicy
from kinkd.policy.model import RealmPolicy

GOOD = 0
BAD = 2

_PROTOCOLS = {0: "any", 6: "tcp", 17: "udp", 58: "icmpv6"}


def check(path: Path | str) -> tuple[int, str]:
    """Validate the configuration, its policy and the keytab.

    Returns:
        the exit status, 0 or 2, and the text: what would apply, or the one line of what is wrong.
    """
    try:
        config = configuration.load(path)
        policy = sources.load_file(str(config.policy_file))
        host = configuration.resolve_for_host(config, policy)
        keys = _keys(config.keytab, host.me)
    except KinkdError as error:
        return BAD, f"kinkd: {error}"
    lines = [
        *_identity(config, policy, host),
        *keys,
        "",
        *_peers(policy, host),
        "",
        *_entries(host),
    ]
    warnings = [*policy.warnings, *addresses.missing(host.me.addresses)]
    lines += [f"warning: {warning}" for warning in warnings]
    return GOOD, "\n".join(lines)


def _identity(config: Config, policy: RealmPolicy, host: HostPolicy) -> Iterator[str]:
    yield f"configuration  {config.path}"
    yield f"policy         {config.policy_file}, version {policy.version}, realm {policy.realm}"
    yield f"this host      {host.me.name}"
    yield f"  asked for as {host.me.service}"
    if host.me.client != host.me.service:
        yield f"  speaks as    {host.me.client}"
    yield f"  addresses    {', '.join(map(str, host.me.addresses))}"


def _keys(path: Path, me: Host) -> list[str]:
    """The keys of the keytab that this host needs.

    Raises:
        LocalError: it cannot be read, or has no key for a principal of this host.
    """
    try:
        entries = keytab.read_keytab(path.read_bytes())
    except OSError as error:
        raise LocalError(f"keytab {path}: cannot be read: {error.strerror}") from None
    except KinkdError as error:
        raise LocalError(f"keytab {path}: {error}") from None
    held = {entry.principal for entry in entries}
    for principal in (me.service, me.client):
        if principal not in held:
            others = ", ".join(sorted(map(str, held))) or "nothing"
            raise LocalError(
                f"keytab {path}: no key for {principal}; add one (ktadd, net ads): "
                f"it holds {others}"
            )
    return [
        f"keytab         {path}",
        *sorted(
            {
                f"  {entry.principal}, kvno {entry.kvno}, etype {entry.etype}"
                for entry in entries
                if entry.principal in (me.service, me.client)
            }
        ),
    ]


def _peers(policy: RealmPolicy, host: HostPolicy) -> Iterator[str]:
    first: dict[str, Protection] = {}
    for _, _, protection in host.protections:
        first.setdefault(protection.peer.name, protection)
    if not first:
        yield "no rule protects traffic of this host: all of it is clear"
    for protection in first.values():
        profile = protection.profile
        yield f"{protection.peer.name}: ESP required, by rule {protection.rule!r}"
        yield f"  principal    {protection.peer.client}"
        yield (
            f"  profile      {profile.name}: {', '.join(suite.name for suite in profile.suites)};"
            f" {'ESN; ' if profile.esn else ''}{_lifetime(profile.lifetime)}"
        )
        yield f"  secrecy      {_secrecy(profile.group)}"
        for local, remote, each in host.protections:
            if each.peer.name == protection.peer.name:
                yield f"  between      {local} and {remote}, reqid {each.reqid:#x}"
    for other in host.others:
        yield f"{other.name}: clear, {_why_clear(policy, host.me, other)}"


def _secrecy(group: int | None) -> str:
    if group is None:
        return "NOT forward: a stolen Kerberos key opens recorded traffic (group = none)"
    return f"forward, by {dh.GROUPS[group].name}"


def _lifetime(lifetime: Lifetime) -> str:
    volume = "" if lifetime.kilobytes is None else f" or {lifetime.kilobytes} KiB"
    return f"a new SA after {lifetime.seconds} s{volume}"


def _why_clear(policy: RealmPolicy, me: Host, other: Host) -> str:
    rule = policy.rule_between(me.name, other.name)
    if rule is None:
        return "no rule"
    if rule.action is Action.CLEAR:
        return f"by rule {rule.name!r}"
    return f"rule {rule.name!r} finds no addresses of one family"


def _entries(host: HostPolicy) -> Iterator[str]:
    yield "SPD entries, the first that matches decides:"
    for entry in host.entries:
        yield f"  {entry.priority} {_entry(entry)}"


def _entry(entry: SpdEntry) -> str:
    selector = entry.selector
    protocol = _PROTOCOLS.get(selector.protocol, str(selector.protocol))
    action = "clear" if entry.template is None else f"require reqid {entry.template.reqid:#x}"
    icmp = protocol == "icmpv6"
    source = f"{selector.source}{'' if icmp else _port(selector.source_port)}"
    kind = f" type {selector.source_port.port}" if icmp else ""
    return (
        f"{Direction(entry.direction).name.lower():3} {source} -> {selector.destination}"
        f"{_port(selector.destination_port)} {protocol}{kind}: {action}"
    )


def _port(match: PortMatch) -> str:
    return f" port {match.port}" if match.mask else ""
