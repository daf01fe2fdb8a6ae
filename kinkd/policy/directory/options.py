"""The ``[directory]`` table of the daemon's configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from kinkd.document import Item, show
from kinkd.errors import DocumentError
from kinkd.model import Principal
from kinkd.policy.directory import names

DEFAULT_PORT: Final = 389
_ATTRIBUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_KEYS: Final = (
    *("uri", "base", "server", "client"),
    *("hosts", "host_class", "host_filter", "groups", "group_class", "attributes"),
)
_ATTRIBUTE_KEYS: Final = ("fqdn", "principal", "address", "member")


@dataclass(frozen=True, slots=True)
class Server:
    """One server: where it listens. IPv6 addresses without brackets."""

    host: str
    port: int = DEFAULT_PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"ldap://{host}" + ("" if self.port == DEFAULT_PORT else f":{self.port}")


@dataclass(frozen=True, slots=True)
class DirectoryOptions:
    """Where the policy is, and what the directory calls things. Times are seconds.

    Args:
        servers: tried in turn.
        base: the DN of the policy's own entry; all entries of kinkd's classes are below it.
        expected: the principal that a server must prove to be; None: ``ldap/HOST`` of its URI.
        client: whom we bind as; None: whoever made the credentials decides.
        hosts: below which DN hosts of ``host_class`` and ``host_filter`` are; None: nowhere.
        groups: the same for groups of ``group_class``.
        timeout: for a connection, a bind, and between two messages of a refresh.
        retry: before the second attempt; it doubles up to ``retry_limit``.
    """

    servers: tuple[Server, ...]
    base: str
    expected: Principal | None = None
    client: str | None = None
    hosts: str | None = None
    host_class: str = "ipaHost"
    host_filter: str = ""
    groups: str | None = None
    group_class: str = "ipaHostGroup"
    fqdn: str = "fqdn"
    principal: str = "krbPrincipalName"
    address: str = "ipHostNumber"
    member: str = "member"
    timeout: float = field(default=15.0, repr=False)
    retry: float = field(default=5.0, repr=False)
    retry_limit: float = field(default=120.0, repr=False)

    @property
    def bases(self) -> list[str]:
        """The DNs that something of the policy is below."""
        return [each for each in (self.base, self.hosts, self.groups) if each is not None]


def options(item: Item) -> DirectoryOptions:
    """Read the table.

    Raises:
        DocumentError: something in it cannot be meant.
    """
    table = item.table(*_KEYS)
    attributes = table.item("attributes", {}).table(*_ATTRIBUTE_KEYS)
    server, client = table.optional("server"), table.optional("client")
    filters = table.optional("host_filter")
    found = DirectoryOptions(
        servers=tuple(
            _server(each)
            for each in table.item("uri", hint='"ldap://ds.example.test"').one_or_more()
        ),
        base=_dn(table.item("base", hint='"cn=kinkd,dc=example,dc=test"')),
        expected=None if server is None else _principal(server),
        client=None if client is None else client.string(),
        hosts=None if (hosts := table.optional("hosts")) is None else _dn(hosts),
        host_class=_attribute(table.item("host_class", "ipaHost")),
        host_filter="" if filters is None else _filter(filters),
        groups=None if (groups := table.optional("groups")) is None else _dn(groups),
        group_class=_attribute(table.item("group_class", "ipaHostGroup")),
        fqdn=_attribute(attributes.item("fqdn", "fqdn")),
        principal=_attribute(attributes.item("principal", "krbPrincipalName")),
        address=_attribute(attributes.item("address", "ipHostNumber")),
        member=_attribute(attributes.item("member", "member")),
    )
    if not names.common_base(found.bases):
        raise item.error("base, hosts and groups have no suffix in common; one search covers them")
    return found


def _server(item: Item) -> Server:
    text = item.string()
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:  # brackets or a port that are none
        raise _no_server(item) from None
    if parts.scheme == "ldaps" and host:
        raise item.error(
            "GSSAPI itself encrypts what it authenticates, TLS beside it is not used:"
            f' write "ldap://{host}"'
        )
    more = parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None
    if parts.scheme != "ldap" or not host or more:
        raise _no_server(item)
    return Server(host, DEFAULT_PORT if port is None else port)


def _no_server(item: Item) -> DocumentError:
    return item.error(f'{show(item.value)} is not a server; write "ldap://ds.example.test"')


def _dn(item: Item) -> str:
    text = item.string()
    try:
        names.parse(text)
    except ValueError:
        raise item.error(
            f'{show(text)} is not a distinguished name; write it like "cn=kinkd,dc=example,dc=test"'
        ) from None
    return text


def _principal(item: Item) -> Principal:
    try:
        found = Principal.parse(item.string())
    except ValueError:
        found = None
    if found is None or len(found.components) != 2 or found.components[0] != "ldap":
        raise item.error(
            f"{show(item.value)} is not the principal of a directory server; write"
            ' "ldap/ds.example.test@EXAMPLE.TEST"'
        )
    return found


def _attribute(item: Item) -> str:
    text = item.string()
    if not _ATTRIBUTE.fullmatch(text):
        raise item.error(f"{show(text)} is not the name of an attribute or an object class")
    return text


def _filter(item: Item) -> str:
    text = item.string()
    if not (text.startswith("(") and text.endswith(")")):
        raise item.error(f'{show(text)} is not a filter; write it like "(memberOf=cn=kink,...)"')
    return text
