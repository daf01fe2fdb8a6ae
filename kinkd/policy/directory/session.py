"""A search on a directory server, and what comes of it: RFC 4533 by python-ldap.

The connection is ``SecureStream``'s. No referral is followed, nothing is waited for without end.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

import ldap
from ldap.ldapobject import SimpleLDAPObject
from ldap.syncrepl import SyncreplConsumer, SyncStateControl
from pyasn1.error import PyAsn1Error

from kinkd.errors import LocalError
from kinkd.model import Principal
from kinkd.policy.directory import bind, mapping, names
from kinkd.policy.directory.content import Content, Entry
from kinkd.policy.directory.options import DirectoryOptions, Server
from kinkd.policy.directory.sasl import Ccache, SecureStream


@dataclass(frozen=True, slots=True)
class Client:
    """Whom we are: a ticket-granting ticket, and the realm that it is of."""

    ccache: Ccache
    realm: str


class Stale(LocalError):
    """The server has no use for our cookie."""


class _Connection(SimpleLDAPObject, SyncreplConsumer):  # type: ignore[misc]  # both are untyped
    """python-ldap's reading of RFC 4533, into a ``Content``."""

    def __init__(self, uri: str, descriptor: int, content: Content) -> None:
        super().__init__(uri, fileno=descriptor)
        self.content = content

    def result4(self, *args: object, **named: object) -> tuple[object, ...]:
        """As in python-ldap, which would pass over an entry whose state it cannot read."""
        found: tuple[object, ...] = super().result4(*args, **named)
        kind, entries = found[:2]
        if kind == ldap.RES_SEARCH_ENTRY and isinstance(entries, list):
            for dn, _, controls in entries:
                if not any(isinstance(each, SyncStateControl) for each in controls):
                    raise ValueError(f"{dn} comes without its state")
        return found

    def syncrepl_get_cookie(self) -> str | None:
        return self.content.cookie

    def syncrepl_set_cookie(self, cookie: str) -> None:
        self.content.set_cookie(cookie)

    def syncrepl_entry(self, dn: str, attributes: dict[str, list[bytes]], uuid: str) -> None:
        found = {name.lower(): tuple(values) for name, values in attributes.items()}
        self.content.put(Entry(uuid, dn, found))

    def syncrepl_delete(self, uuids: list[str]) -> None:
        self.content.delete(uuids)

    def syncrepl_present(
        self,
        uuids: list[str] | None,
        refreshDeletes: bool = False,  # noqa: N803  # python-ldap's name
    ) -> None:
        if uuids is not None:
            self.content.present(uuids)
        elif not refreshDeletes:
            self.content.end_present()

    def syncrepl_refreshdone(self) -> None:
        self.content.refresh_done()


class Session:
    """A bound connection and a refreshAndPersist search (RFC 4533 §3.4) that runs on it.

    Args:
        server: where to connect.
        ccache: whose ticket-granting ticket to use.
        content: where what comes is staged.

    Raises:
        LocalError: it cannot be made; the text says why.
    """

    def __init__(
        self, options: DirectoryOptions, server: Server, client: Client, content: Content
    ) -> None:
        self._server = server
        expected = options.expected or Principal(("ldap", server.host), client.realm)
        self._stream = SecureStream(server, expected, client.ccache, options.timeout)
        self._ldap: _Connection | None = None
        try:
            # libldap closes the descriptor that it is given.
            descriptor = self._stream.inner.dup().detach()
            self._ldap = _Connection(str(server), descriptor, content)
            _configure(self._ldap, options.timeout)
            content.begin()
            self._message = _search(self._ldap, options)
        except ldap.LDAPError as error:
            self.close()
            raise self._in_words(error) from None
        except BaseException:
            self.close()
            raise

    def poll(self, timeout: float) -> bool:
        """Stage one message; False: none came within ``timeout`` seconds.

        Raises:
            Stale: the server refuses the search; the cookie may be why.
            LocalError: the connection is lost, the search ended, or the content grew too large.
        """
        try:
            more = self._ldap and self._ldap.syncrepl_poll(self._message, timeout=timeout)
        except ldap.TIMEOUT:
            return False
        except (ldap.SERVER_DOWN, ldap.CONNECT_ERROR, ldap.UNAVAILABLE, ldap.BUSY) as error:
            raise self._in_words(error) from None
        except ldap.LDAPError as error:
            raise Stale(str(self._in_words(error))) from None
        except (PyAsn1Error, ValueError) as error:
            raise LocalError(f"{self._server}: no RFC 4533 in what it sends: {error}") from None
        if not more:
            raise LocalError(f"{self._server}: the server ended the search")
        return True

    def shut_down(self) -> None:
        """Have whoever waits on the connection find it ended. From any thread."""
        self._stream.shut_down()

    def close(self) -> None:
        """Give the connection up."""
        self.shut_down()  # not to wait for a server that does not read
        if self._ldap is not None:
            with contextlib.suppress(ldap.LDAPError):
                self._ldap.unbind_ext()
        self._stream.close()

    def _in_words(self, error: ldap.LDAPError) -> LocalError:
        said = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
        words = next((text for kind, text in _WORDS if isinstance(error, kind)), "")
        info = said.get("info") or said.get("desc") or type(error).__name__
        detail = self._stream.fault or bind.plain(str(info))
        return LocalError(f"{self._server}: " + (f"{words} ({detail})" if words else detail))


def search_filter(options: DirectoryOptions) -> str:
    """What of the directory is the policy (RFC 4515)."""
    terms = [f"(objectClass={kind.object_class})" for kind in (mapping.POLICY, *mapping.KINDS)]
    if options.hosts is not None:
        terms.append(f"(&(objectClass={options.host_class}){options.host_filter})")
    if options.groups is not None:
        terms.append(f"(objectClass={options.group_class})")
    return f"(|{''.join(terms)})"


def _search(connection: _Connection, options: DirectoryOptions) -> int:
    wanted = [
        *("objectClass", *mapping.attributes()),
        *(options.fqdn, options.principal, options.address, options.member),
    ]
    message: int = connection.syncrepl_search(
        names.common_base(options.bases),
        ldap.SCOPE_SUBTREE,
        mode="refreshAndPersist",
        filterstr=search_filter(options),
        attrlist=list(dict.fromkeys(wanted)),
    )
    return message


def _configure(connection: _Connection, timeout: float) -> None:
    for option, value in (
        (ldap.OPT_PROTOCOL_VERSION, 3),
        (ldap.OPT_REFERRALS, ldap.OPT_OFF),
        (ldap.OPT_TIMEOUT, timeout),
        # What ldap.conf(5) says of other programs' searches is not said of ours.
        (ldap.OPT_DEREF, ldap.DEREF_NEVER),
        (ldap.OPT_SIZELIMIT, ldap.NO_LIMIT),
        (ldap.OPT_TIMELIMIT, ldap.NO_LIMIT),
    ):
        connection.set_option(option, value)


_WORDS: Final = (
    (ldap.SERVER_DOWN, "the connection is lost"),
    (ldap.NO_SUCH_OBJECT, "there is no base entry, or this host may not read it"),
    (ldap.INSUFFICIENT_ACCESS, "this host may not read it"),
    (
        ldap.UNAVAILABLE_CRITICAL_EXTENSION,
        "the server does no content synchronisation (RFC 4533): load the overlay syncprov, or"
        " enable the Content Synchronization plug-in",
    ),
    (ldap.FILTER_ERROR, "host_filter is no filter"),
    (ldap.SIZELIMIT_EXCEEDED, "the server has a limit of entries: lift it for hosts (olcLimits)"),
    (ldap.ADMINLIMIT_EXCEEDED, "the server has a limit of entries: lift it for hosts"),
    (ldap.TIMELIMIT_EXCEEDED, "the server has a limit of time: lift it for hosts (olcLimits)"),
)
