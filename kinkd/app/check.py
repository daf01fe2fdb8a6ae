"""``kinkd check``: is the configuration good, and what would it do on this host?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from kinkd.app import addresses, loading
from kinkd.app import config as configuration
from kinkd.app.config import Config
from kinkd.errors import KinkdError, LocalError
from kinkd.kerberos import etypes, keytab
from kinkd.kerberos.keytab import KeytabEntry
from kinkd.keying import dh
from kinkd.model import (
    Action,
    Direction,
    Host,
    IPNetwork,
    Lifetime,
    Mode,
    PortMatch,
    Profile,
    SpdEntry,
    UserToUser,
)
from kinkd.policy.match import HostPolicy
from kinkd.policy.profiles import protocol_words
from kinkd.policy.realm import WORLD, RealmPolicy, Term
from kinkd.policy.traffic import ANY
from kinkd.wire.numbers import ESP_IN_UDP_PORT

SYSCTLS = Path("/proc/sys")
GOOD = 0
BAD = 2

_ETYPES = {
    17: "aes128-cts-hmac-sha1-96",
    18: "aes256-cts-hmac-sha1-96",
    19: "aes128-cts-hmac-sha256-128",
    20: "aes256-cts-hmac-sha384-192",
    23: "RC4, of the keytab alone: no session key",
}
_FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}
_PROTOCOLS = {0: "any", 1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
_DONE = {Action.REQUIRE: "required", Action.REQUEST: "requested"}


def check(path: Path | str) -> tuple[int, str]:
    """Validate the configuration, its policy and the keytab.

    Returns:
        the exit status, 0 or 2, and the text: what would apply, or the one line of what is wrong.
    """
    try:
        config = configuration.load(path)
        source = loading.source_of(config)
        policy = source.load().policy
        host = configuration.resolve_for_host(config, policy)
        keys = _keys(config, host.me)
    except KinkdError as error:
        return BAD, f"kinkd: {error}"
    lines = [
        *_identity(config, source.name, policy, host),
        *keys,
        "",
        *_peers(policy, host),
        "",
        *_entries(host),
    ]
    warnings = [
        *policy.warnings,
        *addresses.missing(host.me.addresses, addresses.local_addresses()),
        *not_forwarded(host.me.networks),
    ]
    lines += [f"warning: {warning}" for warning in warnings]
    return GOOD, "\n".join(lines)


def _identity(config: Config, source: str, policy: RealmPolicy, host: HostPolicy) -> Iterator[str]:
    yield f"configuration  {config.path}"
    yield f"policy         {source}, version {policy.version}, realm {policy.realm}"
    yield f"this host      {host.me.name}"
    yield f"  asked for as {host.me.service}{_how_keyed(host.me)}"
    if host.me.client != host.me.service:
        yield f"  speaks as    {host.me.client}"
    yield f"  addresses    {', '.join(map(str, host.me.addresses))}"
    if host.me.networks:
        yield f"  networks     {', '.join(map(str, host.me.networks))}"


def _keys(config: Config, me: Host) -> list[str]:
    """The keys of the keytab that this host needs, or the credentials cache instead.

    Raises:
        LocalError: it cannot be read, or has no key for a principal of this host.
    """
    path, lines = config.keytab, list[str]()
    if config.ccache is not None:
        lines.append(f"tickets        of the credentials cache {config.ccache}, {me.client}'s")
    if path is None:
        return lines
    try:
        entries = keytab.read_keytab(path.read_bytes())
    except OSError as error:
        raise LocalError(f"keytab {path}: cannot be read: {error.strerror}") from None
    except KinkdError as error:
        raise LocalError(f"keytab {path}: {error}") from None
    held = {entry.principal for entry in entries}
    # Who has a credentials cache needs a key only to be asked for as a service.
    needed = {me.service} if config.ccache is not None else {me.service, me.client}
    if config.ccache is not None and me.user_to_user is UserToUser.ALWAYS:
        needed = set()
    for principal in sorted(needed, key=str):
        if principal not in held:
            others = ", ".join(sorted(map(str, held))) or "nothing"
            raise LocalError(
                f"keytab {path}: no key for {principal}; add one (ktadd, net ads): "
                f"it holds {others}"
            )
    ours = [entry for entry in entries if entry.principal in (me.service, me.client)]
    keys = {(str(each.principal), each.kvno, each.etype) for each in ours}
    return [
        *lines,
        f"keytab         {path}",
        *(f"  {name}, kvno {kvno}, {_etype(etype)}" for name, kvno, etype in sorted(keys)),
        *_keytab_warnings(path, ours),
    ]


def _etype(number: int) -> str:
    name = _ETYPES.get(number)
    return f"etype {number}" if name is None else f"etype {number} ({name})"


def _keytab_warnings(path: Path, ours: list[KeytabEntry]) -> Iterator[str]:
    if path.stat().st_mode & 0o007:
        yield f"warning: everyone on this machine may read {path}, and be this host; chmod 640"
    if ours and not any(entry.etype in etypes.SUPPORTED for entry in ours):
        yield (
            "warning: the keytab holds no AES key; that will do only where the KDC gives session"
            " keys of AES all the same, as Active Directory does"
        )


def not_forwarded(networks: tuple[IPNetwork, ...], sysctls: Path = SYSCTLS) -> Iterator[str]:
    """A warning in words for each family of ``networks`` that this machine does not forward."""
    for version, name in _FORWARDING.items():
        covered = ", ".join(str(each) for each in networks if each.version == version)
        try:
            forwards = int((sysctls / name.replace(".", "/")).read_text()) > 0
        except OSError:  # no IPv6 at all
            forwards = False
        if covered and not forwards:
            yield f"{covered} behind this host is not reached, it does not forward; {name} = 1"


def _peers(policy: RealmPolicy, host: HostPolicy) -> Iterator[str]:
    if not host.peers:
        yield "no rule protects traffic of this host: all of it is clear"
    for peer in host.peers:
        yield from _peer(policy, host, peer)
    for name in (*(other.name for other in host.others), *policy.places, WORLD):
        if (said := _terms(policy.terms(host.me.name, name))) != "clear, no rule" or name != WORLD:
            yield f"{name}: {said}"


def _terms(terms: Iterable[Term]) -> str:
    """What is done with packets to a party, the first that matches decides."""
    said = []
    for term in terms:
        traffic = "" if term.traffic == ANY else f"{term.traffic} "
        answers = " (answers)" if term.traffic.has_ports and not term.asks else ""
        why = "no rule" if term.rule is None else f"by rule {term.rule.name!r}"
        trial = " in audit" if term.audit else ""
        said.append(f"{traffic}{term.action.value}{answers}{trial}, {why}")
    return "; ".join(said)


def _peer(policy: RealmPolicy, host: HostPolicy, peer: Host) -> Iterator[str]:
    """All protections with one host are of one profile and mode: the first tells of the others."""
    protections = host.with_host(peer.name)
    first = protections[0]
    profile = first.profile
    terms = policy.terms(host.me.name, peer.name)
    whole = len(terms) == 1 and terms[0].protects
    done = (
        f"{_DONE[terms[0].action]}{' in audit' * terms[0].audit}" if whole else "for some traffic"
    )
    yield f"{peer.name}: {protocol_words(profile.protocols)} {done}, by rule {first.rule!r}"
    if not whole:
        yield f"  traffic      {_terms(terms)}"
    yield f"  principal    {peer.client}{_how_keyed(peer)}"
    yield (
        f"  profile      {profile.name}: {', '.join(suite.name for suite in profile.suites)};"
        f" {_sequence_numbers(profile)}{_lifetime(profile.lifetime)},"
        f" gone {profile.ticket_grace} s after its ticket's end"
    )
    yield f"  secrecy      {_secrecy(profile.groups)}"
    encapsulation = f", in UDP of port {ESP_IN_UDP_PORT} at both ends" if first.udp else ""
    if first.mode is Mode.TUNNEL:
        yield f"  mode         tunnel from {first.local} to {first.remote}{encapsulation}"
    else:
        yield f"  mode         transport{encapsulation}"
    for each in protections:
        if each.mode is Mode.TUNNEL:
            ends = f"{each.selector.source} and {each.selector.destination}"
        else:
            ends = f"{each.local} and {each.remote}"
        yield f"  between      {ends}, reqid {each.reqid:#x}"


def _how_keyed(host: Host) -> str:
    match host.user_to_user:
        case UserToUser.ALWAYS:
            return ", user-to-user: it has a ticket-granting ticket and no key"
        case UserToUser.ALLOWED:
            return ", user-to-user where a service ticket will not do"
        case UserToUser.NEVER:
            return ""


def _sequence_numbers(profile: Profile) -> str:
    if profile.esn == (False,):
        return ""
    return "ESN where the peer has it; " if False in profile.esn else "ESN; "


def _secrecy(groups: tuple[int | None, ...]) -> str:
    by = "by " + " or ".join(dh.GROUPS[group].name for group in groups if group is not None)
    if groups == (None,):
        return "NOT forward: a stolen Kerberos key opens recorded traffic (group = none)"
    if groups[0] is None:
        return f"NOT forward, but {by} where a peer insists"
    return f"forward, {by}{', without where a peer cannot' if None in groups else ''}"


def _lifetime(lifetime: Lifetime) -> str:
    volume = "" if lifetime.kilobytes is None else f" or {lifetime.kilobytes} KiB"
    return f"a new SA after {lifetime.seconds} s{volume}"


def _entries(host: HostPolicy) -> Iterator[str]:
    yield "SPD entries, the first that matches decides:"
    for entry in host.entries:
        yield f"  {entry.priority} {_entry(entry)}"


def _entry(entry: SpdEntry) -> str:
    selector = entry.selector
    protocol = _PROTOCOLS.get(selector.protocol, str(selector.protocol))
    source, destination = str(selector.source), str(selector.destination)
    kind = ""
    if protocol in ("icmp", "icmpv6"):
        kind = f" type {selector.source_port.port}" if selector.source_port.mask else ""
        kind += f" code {selector.destination_port.port}" if selector.destination_port.mask else ""
    else:
        source += _port(selector.source_port)
        destination += _port(selector.destination_port)
    direction = Direction(entry.direction).name.lower()
    return f"{direction:3} {source} -> {destination} {protocol}{kind}: {_action(entry)}"


def _action(entry: SpdEntry) -> str:
    if not entry.templates:
        return "block" if entry.block else "clear"
    first = entry.templates[0]  # they share one reqid
    ends = f", tunnel from {first.source} to {first.destination}" if first.source else ""
    return f"{'optional' if first.optional else 'require'} reqid {first.reqid:#x}{ends}"


def _port(match: PortMatch) -> str:
    if not match.mask:
        return ""
    free = match.mask ^ 0xFFFF
    return f" port {match.port}" + (f"-{match.port + free}" if free else "")
