"""The daemon's configuration file, and the policy it leads to.

Everything is read and checked before anything is applied.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kinkd.app import discovery
from kinkd.document import Item, Table, show, suggestion
from kinkd.errors import DocumentError, LocalError
from kinkd.model import IPAddress
from kinkd.policy import resolve, sources
from kinkd.policy.directory import read_options
from kinkd.policy.exemptions import SERVICES
from kinkd.policy.hosts import unicast
from kinkd.policy.match import HostPolicy
from kinkd.policy.realm import RealmPolicy

if TYPE_CHECKING:
    from kinkd.policy.directory.options import DirectoryOptions, Server

LEVELS: Final = ("debug", "info", "warning", "error")
CREDENTIALS: Final = "${CREDENTIALS_DIRECTORY}"  # systemd.exec(5), LoadCredential=
DEFAULT_CCACHE: Final = "default"  # what KRB5CCNAME or krb5.conf names
CCACHES: Final = ("FILE", "DIR", "KCM", "KEYRING")
FORMATS: Final = ("text", "json")
SOCKET_PATH_OCTETS: Final = 107  # unix(7): sun_path with its final NUL is 108

_SECTIONS: Final = (
    *("host", "kerberos", "policy", "directory", "state", "control"),
    *("kernel", "exempt", "log"),
)


@dataclass(frozen=True, slots=True)
class Config:
    """What the configuration file says, defaults filled in."""

    path: Path
    host: str | None  # None: found by the names of this machine
    keytab: Path | None  # None: all there is are tickets in a credentials cache
    ccache: str | None  # of libkrb5's names, or "default"; None: tickets come from the keytab
    krb5_config: Path | None  # None: libkrb5's own choice
    policy_file: Path
    directory: DirectoryOptions | None  # where the policy is instead of the file
    state_directory: Path
    control_socket: Path
    reqids: range
    priorities: range
    servers: tuple[tuple[str, IPAddress], ...]  # (service of resolve.SERVICES, address)
    log_level: str
    log_format: str
    host_line: int | None = field(default=None, repr=False, compare=False)


def load(path: Path | str) -> Config:
    """Read a configuration file.

    Raises:
        DocumentError: it cannot be read, is not to be trusted, or cannot be meant.
    """
    root = sources.read_trusted(str(path)).root.table(*_SECTIONS)
    name = root.item("host", {}).table("name").optional("name")
    kerberos = root.item("kerberos", {}).table("keytab", "ccache", "krb5_config")
    ccache = _ccache(kerberos.optional("ccache"))
    krb5_config = _krb5_config(kerberos.optional("krb5_config"))
    policy = root.item("policy", {}).table("file")
    directory = _directory(root.optional("directory"), policy)
    state = root.item("state", {}).table("directory")
    control = root.item("control", {}).table("socket")
    log = root.item("log", {}).table("level", "format")
    reqids, priorities = _numbers(root.item("kernel", {}).table("reqid_base", "priority_base"))
    return Config(
        path=Path(path),
        host=None if name is None else name.string(),
        keytab=_keytab(kerberos, ccache),
        ccache=ccache,
        krb5_config=krb5_config,
        policy_file=Path(policy.item("file", "policy.toml").file()),
        directory=directory,
        state_directory=Path(state.item("directory", "/var/lib/kinkd").file()),
        control_socket=_socket(control.item("socket", "/run/kinkd/control.sock")),
        reqids=reqids,
        priorities=priorities,
        servers=tuple(_servers(root.item("exempt", {}).table(*SERVICES))),
        log_level=log.item("level", "warning").choice(LEVELS),
        log_format=log.item("format", "text").choice(FORMATS),
        host_line=None if name is None else name.line,
    )


def resolve_policy(config: Config) -> HostPolicy:
    """Read the policy file and work out what it means to this host.

    Raises:
        DocumentError: the file is not good, or this host is not in it.
        LocalError: what it demands does not fit into the configured numbers.
    """
    return resolve_for_host(config, sources.load_file(str(config.policy_file)))


def resolve_for_host(
    config: Config,
    policy: RealmPolicy,
    known: str | None = None,
    memory: resolve.Memory | None = None,
) -> HostPolicy:
    """The same for a policy that was read already; ``known``: what this host was before.

    ``memory`` of the policy before makes it fast.
    """
    name = known if config.host is None and known in policy.hosts else None
    name = name or _identify(config, policy)
    me = policy.hosts[name]
    servers = (
        *config.servers,
        *discovery.resolvers(),
        *discovery.kdcs(policy, (me.client.realm, me.service.realm)),
        *discovery.directories(policy, (each.host for each in _directory_servers(config))),
    )
    return resolve.resolve(policy, name, options(config, servers), memory)


def _directory_servers(config: Config) -> tuple[Server, ...]:
    return () if config.directory is None else config.directory.servers


def options(config: Config, servers: tuple[tuple[str, IPAddress], ...]) -> resolve.Options:
    """What this host adds to the policy; ``servers``: those that it has to reach in clear."""
    return resolve.Options(config.reqids, config.priorities, servers, discovery.client_ports())


def _identify(config: Config, policy: RealmPolicy) -> str:
    if config.host is not None:
        if config.host in policy.hosts:
            return config.host
        raise _not_there(
            config,
            config.host_line,
            f'host.name: "{config.host}" is no host of {_source(config)};'
            f" {suggestion(config.host, policy.hosts)}",
        )
    names: list[str] = []
    found = resolve.identify(policy, _machine_names(names))
    if found is None:
        raise _not_there(
            config,
            None,
            f"no one host of {_source(config)} goes by a name of this machine"
            f' ({", ".join(names)}); write name = "..." under [host]:'
            f" {suggestion(names[0], policy.hosts)}",
        )
    return found


def _source(config: Config) -> str:
    return str(config.policy_file if config.directory is None else config.directory.base)


def _not_there(config: Config, line: int | None, text: str) -> LocalError:
    """That this host is not in the policy. A directory may have it the next moment: no mistake."""
    if config.directory is not None:
        return LocalError(f"{config.path}: {text}")
    return DocumentError(str(config.path), line, text)


def _machine_names(seen: list[str]) -> Iterator[str]:
    """This machine's names, those that need a resolver last and only if they are asked for."""
    for question in (socket.gethostname, socket.getfqdn):
        seen.append(question())
        yield seen[-1]


def _keytab(kerberos: Table, ccache: str | None) -> Path | None:
    if ccache is not None and kerberos.optional("keytab") is None:
        return None
    item = kerberos.item("keytab", "/etc/kinkd/kinkd.keytab")
    text = item.string()
    if ":" in text.partition("/")[0]:
        raise item.error("write the path of the keytab alone, without a type")
    if not text.startswith(CREDENTIALS):
        return Path(item.file())
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory is None:
        raise item.error(
            "$CREDENTIALS_DIRECTORY is not set: only a service has it whose unit says"
            " LoadCredential=, or a shell that was given it"
        )
    return Path(directory, text.removeprefix(CREDENTIALS).lstrip("/"))


def _ccache(item: Item | None) -> str | None:
    if item is None:
        return None
    name = item.string()
    kind, colon, rest = name.partition(":")
    if name != DEFAULT_CCACHE and (not colon or kind not in CCACHES):
        raise item.error(
            f"{show(name)} is no credentials cache; write a name as klist shows it:"
            f' "FILE:/run/user/1000/krb5cc", "KCM:", ..., or "{DEFAULT_CCACHE}"'
        )
    if kind in ("FILE", "DIR") and not rest.startswith("/"):
        raise item.error(f"{show(name)}: write the whole path, from / on")
    return name


def _krb5_config(item: Item | None) -> Path | None:
    if item is None:
        return None
    path = Path(item.file())
    if not os.access(path, os.R_OK):
        raise item.error(f"{path} cannot be read; libkrb5 would go on without a realm")
    return path


def _directory(item: Item | None, policy: Table) -> DirectoryOptions | None:
    if item is None:
        return None
    if (file := policy.optional("file")) is not None:
        raise file.error("the policy is in a file, or in the directory; leave one of them out")
    return read_options(item)


def _socket(item: Item) -> Path:
    path = item.file()
    if len(os.fsencode(path)) > SOCKET_PATH_OCTETS:
        raise item.error(f"a unix socket's path has {SOCKET_PATH_OCTETS} octets at most")
    return Path(path)


def _numbers(kernel: Table) -> tuple[range, range]:
    """The reqids and the priorities that are ours; both are numbers of 32 bits."""
    reqid = kernel.item("reqid_base", resolve.REQID_BASE).integer(
        1,  # reqid 0 matches any SA inbound
        (1 << 32) - resolve.REQID_COUNT,
    )
    priority = kernel.item("priority_base", resolve.PRIORITY_BASE).integer(
        1,  # 0 is what a policy gets whose writer gave none
        (1 << 32) - resolve.PRIORITY_COUNT,
    )
    return (
        range(reqid, reqid + resolve.REQID_COUNT),
        range(priority, priority + resolve.PRIORITY_COUNT),
    )


def _servers(exempt: Table) -> Iterator[tuple[str, IPAddress]]:
    for service in SERVICES:
        for item in exempt.item(service, []).items():
            yield service, unicast(item)
