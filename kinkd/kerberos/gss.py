"""The initiator's side on the host's own Kerberos: GSSAPI, and libkrb5 where GSSAPI has no word.

GSS tokens frame raw Kerberos messages (RFC 4121 §4.1); KINK carries them raw (RFC 4430 §4.2.1).
The key of KINK is the ticket's session key, which GSSAPI does not give: it is read from our
credentials.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gssapi import MechType, NameType, RequirementFlag
from gssapi import raw as gss
from gssapi.raw import GSSError

from kinkd.errors import LocalError, PeerError, TicketUnavailable
from kinkd.kerberos import etypes, libkrb5, messages
from kinkd.kerberos.libkrb5 import Krb5Error, MemoryCcache
from kinkd.kerberos.local import code_of, keytab_entries, protocol_of, stamp, text_of
from kinkd.kerberos.port import Authenticator, SessionKey, Tgt
from kinkd.model import Principal

# RFC 4120 §7.5.9
_ETYPE_NOSUPP, _INTEGRITY, _BADKEYVER, _NOKEY = 14, 31, 44, 45
_SERVER_NOMATCH, _MUST_USE_USER_TO_USER = 26, 27
# A KDC that no longer takes our TGT: revoked, bad integrity, expired, not yet valid, wrong kvno;
# MIT's, with a new key of its own, only knows the generic error.
_STALE_TGT = frozenset({20, _INTEGRITY, 32, 33, _BADKEYVER, _NOKEY, 60})

_FORGET_PAUSE = 3600.0  # seconds
_GREATEST_MESSAGE = 65507  # octets of a UDP datagram
_UNREACHABLE = frozenset({libkrb5.KRB5_BASE + 156, libkrb5.KRB5_BASE + 220})
_REALM_UNKNOWN = libkrb5.KRB5_BASE + 154
_KDCREP_SKEW = libkrb5.KRB5_BASE + 148
_KT_NOTFOUND = libkrb5.KRB5_BASE + 181
_CONFIG_ETYPE_NOSUPP = libkrb5.KRB5_BASE + 237


class PinnedTicket:
    """A ticket that never changes (RFC 4430 §9), and AP-REQs that are made of it here.

    GSSAPI makes none for user-to-user, and makes authenticators by a clock that nobody can set.
    """

    def __init__(self, credential: libkrb5.Credential, *, user_to_user: bool) -> None:
        self._ticket = credential.ticket
        self._user_to_user = user_to_user
        self.client = credential.client
        self.server = credential.server
        self.key: SessionKey = etypes.key(credential.etype, credential.key)
        self.end = credential.end
        self.octets = len(credential.ticket)
        self._last = 0

    def __repr__(self) -> str:
        return f"<ticket of {self.client} for {self.server}, ends {self.end}>"

    def authenticate(self, offset: float = 0.0) -> Authenticator:
        """A new AP-REQ, mutual authentication requested (RFC 4430 §4.2.1). No network.

        Raises:
            TicketUnavailable: the ticket has expired.
        """
        now = time.time()
        if self.end <= now:
            raise TicketUnavailable(f"the ticket for {self.server} cannot be used: it has expired")
        self._last = messages.unused_time(now + offset, self._last)
        ctime, cusec = divmod(self._last, 1_000_000)
        ap_req = messages.build_ap_req(
            self._ticket, self.key, self.client, ctime, cusec, user_to_user=self._user_to_user
        )
        return Authenticator(ap_req, ctime, cusec, offset)


class GssTicket(PinnedTicket):
    """A service ticket pinned in a credentials cache of its own, for GSSAPI."""

    def __init__(self, ccache: MemoryCcache, credential: libkrb5.Credential) -> None:
        super().__init__(credential, user_to_user=False)
        self._ccache = ccache  # keeps the cache behind the GSS credential alive
        self._creds = _initiator(ccache)
        self._target = _name(credential.server)

    def authenticate(self, offset: float = 0.0) -> Authenticator:
        """A new AP-REQ (see ``PinnedTicket``); by GSSAPI, unless the peer has another clock."""
        if offset:
            return super().authenticate(offset)
        try:
            ap_req = _ap_req(self._creds, self._target)
        except GSSError as error:
            # The cache holds no TGT: libkrb5 can only say that it finds nothing usable.
            why = "it has expired" if self.end <= time.time() else text_of(error)
            raise TicketUnavailable(f"the ticket for {self.server} cannot be used: {why}") from None
        ctime, cusec = messages.authenticator_time(self.key, messages.read_ap_req(ap_req))
        # libkrb5 may have set itself by the KDC's clock (kdc_timesync): measured, not assumed.
        return Authenticator(ap_req, ctime, cusec, ctime + cusec / 1_000_000 - time.time())


@dataclass(frozen=True, slots=True)
class _Generation:
    """A TGT of ours, alone in its cache. Beyond ``renew`` (POSIX s) a new one stands beside it."""

    ccache: MemoryCcache
    renew: float
    end: float


class GssTicketSource:
    """Tickets from the KDC for the principal of a keytab, or of a credentials cache.

    With a keytab nothing else is needed: no kinit, no cron, no credentials cache on disk. A new
    TGT is fetched after half the life of the old one, which serves on where the KDC is away. A
    credentials cache is somebody's else to keep: it is read anew for each ticket.

    Args:
        keytab: a file; None: tickets come from ``ccache``.
        client: whom the tickets are to name.
        clock: POSIX seconds.
        ccache: like ``FILE:/run/user/1000/krb5cc`` or ``KCM:``; None: the user's default one.
    """

    def __init__(
        self,
        keytab: str | None,
        client: Principal,
        clock: Callable[[], float] = time.time,
        *,
        ccache: str | None = None,
    ) -> None:
        self._keytab = keytab
        self._client = client
        self._clock = clock
        self._ccache = ccache
        self._lock = threading.Lock()
        self._current: _Generation | None = None
        self._forgotten = float("-inf")

    def fetch(self, server: Principal, tgt: bytes | None = None) -> PinnedTicket:
        """A new ticket for ``server``, by its exact name; with its ``tgt``, a user-to-user one.

        Blocks for seconds at worst.

        Raises:
            TicketUnavailable: why not, and what to do about it.
        """
        held = self._current
        generation = self._generation()
        try:
            try:
                return self._ticket(generation, server, tgt)
            except (GSSError, Krb5Error) as error:
                stale = generation is held and protocol_of(error) in _STALE_TGT
                if not stale or (tgt is not None and not self._may_forget()):
                    raise
            self._forget(generation)  # the KDC's own key or our account changed: begin anew
            return self._ticket(self._generation(), server, tgt)
        except (GSSError, Krb5Error) as error:
            raise self._no_ticket(server, error) from None
        except PeerError as error:
            raise TicketUnavailable(f"no use for the KDC's ticket: {error.detail}") from None

    def tgt(self) -> Tgt:
        """Our TGT, never an inter-realm one (RFC 4430 §4.2.4); blocks as ``fetch`` does.

        Raises:
            TicketUnavailable: why there is none.
        """
        found = self._local_tgt(self._generation().ccache)
        if found is None:
            raise TicketUnavailable(f"no TGT of {self._client} is at hand: run kinit")
        if found.etype not in etypes.SUPPORTED:
            raise self._weak(found)
        return Tgt(found.client, found.ticket, found.etype, found.key, found.end)

    def _local_tgt(self, ccache: MemoryCcache) -> libkrb5.Credential | None:
        """The one of our own realm that lives longest."""
        realm = self._client.realm
        server = Principal(("krbtgt", realm), realm)
        found = [each for each in ccache.credentials() if each.server == server]
        return max(found, key=lambda each: each.end, default=None)

    def _generation(self) -> _Generation:
        if self._keytab is None:
            return self._of_ccache()
        with self._lock:
            held, now = self._current, self._clock()
            if held is not None and now < held.renew:
                return held
            try:
                self._current = self._initial(self._keytab)
            except TicketUnavailable:
                if held is None or now >= held.end:
                    raise
                return held
            return self._current

    def _initial(self, keytab: str) -> _Generation:
        try:
            stamp(keytab)
            entries = keytab_entries(keytab)
        except LocalError as error:
            raise TicketUnavailable(str(error)) from None
        if all(entry.principal != self._client for entry in entries):
            raise TicketUnavailable(
                f"keytab {keytab} holds no key of {self._client}: add it with ktadd"
            )
        try:
            ccache = libkrb5.initial_credentials(keytab, self._client)
        except Krb5Error as error:
            raise self._no_credentials(error) from None
        tgt = ccache.credentials()[0]
        return _Generation(ccache, tgt.start + (tgt.end - tgt.start) / 2, tgt.end)

    def _of_ccache(self) -> _Generation:
        name = self._ccache or "the default one"
        try:
            client, ccache = libkrb5.copy_ccache(self._ccache, _is_tgt)
        except Krb5Error as error:
            raise TicketUnavailable(
                f"the credentials cache ({name}) cannot be used: {error}; run kinit {self._client},"
                " and see that this daemon may read the cache"
            ) from None
        if client != self._client:
            raise TicketUnavailable(
                f"the credentials cache ({name}) is that of {client}: run kinit {self._client}"
            )
        found = self._local_tgt(ccache)
        end = found.end if found is not None else 0
        if end <= self._clock():
            what = "has ended" if end else "is not there"
            raise TicketUnavailable(
                f"the TGT of {client} in the credentials cache ({name}) {what}: run kinit {client}"
            )
        return _Generation(ccache, 0, end)

    def _may_forget(self) -> bool:
        """Whether it may be our TGT though the peer's may as well be wrong: now and then."""
        now = self._clock()
        if now - self._forgotten < _FORGET_PAUSE:
            return False
        self._forgotten = now
        return True

    def _forget(self, generation: _Generation) -> None:
        with self._lock:
            if self._current is generation:
                self._current = None

    def _ticket(
        self, generation: _Generation, server: Principal, tgt: bytes | None
    ) -> PinnedTicket:
        # A scratch cache: the ticket is new from the KDC, and no other fetch sees half of it.
        scratch = generation.ccache.copy(_is_tgt)
        if tgt is not None:
            credential = libkrb5.user_to_user(scratch, self._client, server, tgt)
            # Who answers is whoever this ticket is for: not all KDCs compare it with the TGT.
            if (credential.server, messages.read_ticket(credential.ticket).sname) != (
                server,
                server,
            ):
                raise TicketUnavailable(
                    f"the TGT that came is not that of {server}", _SERVER_NOMATCH
                )
        else:
            ap_req = _ap_req(_initiator(scratch), _name(server))
            ticket = messages.read_ap_req(ap_req).ticket.raw
            scratch = scratch.copy(lambda credential: credential.ticket == ticket)
            credential = scratch.credentials()[0]
        if credential.etype not in etypes.SUPPORTED:
            raise self._weak(credential)
        if tgt is not None:
            return PinnedTicket(credential, user_to_user=True)
        return GssTicket(scratch, credential)

    def _weak(self, credential: libkrb5.Credential) -> TicketUnavailable:
        return TicketUnavailable(
            f"the KDC gave a session key of etype {credential.etype} for {credential.server},"
            " which KINK does not use: permit AES in krb5.conf (permitted_enctypes) and for the"
            " service (MIT: kadmin setstr PRINCIPAL session_enctypes aes256-cts; Active Directory:"
            " msDS-SupportedEncryptionTypes)"
        )

    def _no_ticket(self, server: Principal, error: GSSError | Krb5Error) -> TicketUnavailable:
        code, protocol = code_of(error), protocol_of(error)
        if protocol == 7:  # KDC_ERR_S_PRINCIPAL_UNKNOWN
            return TicketUnavailable(
                f"the KDC does not know the service {server}: create the principal,"
                " or correct its name in the policy",
                protocol,
            )
        if protocol == _MUST_USE_USER_TO_USER:
            return TicketUnavailable(
                f"the KDC gives tickets for {server} user-to-user alone: write user_to_user ="
                ' "allowed" for the host in the policy, or allow service tickets at the KDC',
                protocol,
            )
        if protocol == _SERVER_NOMATCH:
            return TicketUnavailable(f"the TGT that came is not that of {server}", protocol)
        if protocol == _ETYPE_NOSUPP or code == _CONFIG_ETYPE_NOSUPP:
            return TicketUnavailable(
                f"the KDC and krb5.conf have no etype in common for {server}: permit AES", protocol
            )
        general = self._general(code, server.realm)
        return general or TicketUnavailable(
            f"no ticket for {server}: {text_of(error)}",
            protocol,
        )

    def _no_credentials(self, error: Krb5Error) -> TicketUnavailable:
        protocol = protocol_of(error)
        if protocol == 6:  # KDC_ERR_C_PRINCIPAL_UNKNOWN
            return TicketUnavailable(
                f"the KDC does not know {self._client}: create the principal,"
                " or correct the client principal in the configuration"
            )
        if protocol in (24, _INTEGRITY):  # KDC_ERR_PREAUTH_FAILED
            return TicketUnavailable(
                f"the key of {self._client} in {self._keytab} is not the KDC's: write the keytab"
                " again (ktadd)"
            )
        if protocol == _ETYPE_NOSUPP or error.code in (_KT_NOTFOUND, _CONFIG_ETYPE_NOSUPP):
            return TicketUnavailable(
                f"the keys of {self._client} in {self._keytab} are of no etype that the KDC and"
                " krb5.conf permit: write the keytab again with AES keys"
            )
        general = self._general(error.code, self._client.realm)
        return general or TicketUnavailable(f"no credentials for {self._client}: {error}", protocol)

    def _general(self, code: int, realm: str) -> TicketUnavailable | None:
        """What can go wrong with either exchange; the ``realm`` of whom a ticket is wanted for."""
        realms = " or ".join(dict.fromkeys((self._client.realm, realm)))
        if code in _UNREACHABLE:
            return TicketUnavailable(
                f"no KDC of {realms} can be reached: is it up, and does krb5.conf or DNS name it?"
            )
        if code == _REALM_UNKNOWN:
            return TicketUnavailable(
                f"no KDC is known for realm {realms}: name it in krb5.conf or DNS"
            )
        if code == _KDCREP_SKEW or libkrb5.protocol_code(code) == 37:
            return TicketUnavailable(
                "the clocks of this host and the KDC differ: run NTP on both",
                libkrb5.protocol_code(code),
            )
        return None


def _is_tgt(credential: libkrb5.Credential) -> bool:
    return credential.server.components[:1] == ("krbtgt",)


def _name(principal: Principal) -> gss.Name:
    # The exact principal: a host-based name would be canonicalised by DNS.
    return gss.import_name(str(principal).encode(), NameType.kerberos_principal)


def _initiator(ccache: MemoryCcache) -> gss.Creds:
    # As octets: gssapi passes pointers into a str's encoding that it has already let go.
    store = {b"ccache": ccache.name.encode()}
    return gss.acquire_cred_from(store, mechs=[MechType.kerberos], usage="initiate").creds


def _ap_req(creds: gss.Creds, target: gss.Name) -> bytes:
    """The raw AP-REQ of a new security context; the context itself is of no use to KINK."""
    token = gss.init_sec_context(
        target, creds, mech=MechType.kerberos, flags=RequirementFlag.mutual_authentication
    ).token
    if len(token) > _GREATEST_MESSAGE:
        server = gss.display_name(target, name_type=False).name.decode()
        raise TicketUnavailable(
            f"the ticket for {server} makes an AP-REQ of {len(token)} octets, more than UDP can"
            " carry: have the KDC leave the PAC out of it"
        )
    return messages.gss_unframe(token)[1]
