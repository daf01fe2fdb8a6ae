"""The ticket layer on the host's own Kerberos: GSSAPI, and libkrb5 where GSSAPI has no word for it.

GSS tokens frame raw Kerberos messages (RFC 4121 §4.1); KINK carries them raw (RFC 4430 §4.2.1).
The key of KINK is the ticket's session key, which GSSAPI does not give: the initiator reads it
from its credentials, the acceptor from the ticket.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from gssapi import MechType, NameType, RequirementFlag
from gssapi import raw as gss
from gssapi.raw import GSSError

from kinkd.errors import LocalError, PeerError, TicketRefused, TicketUnavailable
from kinkd.kerberos import etypes, libkrb5, messages
from kinkd.kerberos.libkrb5 import KeytabEntry, Krb5Error, MemoryCcache, MemoryKeytab
from kinkd.kerberos.port import Accepted, Authenticator, OpenedTicket, SessionKey
from kinkd.model import Principal

_REMEMBERED_TICKETS = 1024

# RFC 4120 §7.5.9
_ETYPE_NOSUPP, _INTEGRITY, _REPEAT, _BADKEYVER, _MSG_TYPE, _NOKEY = 14, 31, 34, 44, 40, 45
_REASONS = {
    _ETYPE_NOSUPP: "weak-session-key",
    _INTEGRITY: "ticket-bad-integrity",
    32: "ticket-expired",
    33: "ticket-not-yet-valid",
    36: "client-mismatch",
    37: "clock-skew",
    _MSG_TYPE: "malformed-kerberos",
    _BADKEYVER: "ticket-wrong-kvno",
    _NOKEY: "ticket-no-key",
}
# A KDC that no longer takes our TGT: revoked, bad integrity, expired, not yet valid, wrong kvno;
# MIT's, with a new key of its own, only knows the generic error.
_STALE_TGT = frozenset({20, _INTEGRITY, 32, 33, _BADKEYVER, _NOKEY, 60})

_UNREACHABLE = frozenset({libkrb5.KRB5_BASE + 156, libkrb5.KRB5_BASE + 220})
_REALM_UNKNOWN = libkrb5.KRB5_BASE + 154
_KDCREP_SKEW = libkrb5.KRB5_BASE + 148
_KT_NOTFOUND = libkrb5.KRB5_BASE + 181
_CONFIG_ETYPE_NOSUPP = libkrb5.KRB5_BASE + 237
_REPLAY_CACHE = range(libkrb5.KRB5_BASE + 159, libkrb5.KRB5_BASE + 173)  # KRB5_RC_*
_ASN1 = range(1859794432, 1859794446)
_ERRNO = range(1, 256)


def keytab_entries(keytab: str) -> tuple[KeytabEntry, ...]:
    """Principal, kvno and etype of every key in a keytab file.

    Raises:
        LocalError: one line that says what to do about the file.
    """
    try:
        return libkrb5.keytab_entries(keytab)
    except Krb5Error as error:
        raise _keytab_unusable(keytab, error) from None


def principals(keytab: str) -> tuple[Principal, ...]:
    """The principals in a keytab file, each once, in the file's order. Raises LocalError."""
    return tuple(dict.fromkeys(entry.principal for entry in keytab_entries(keytab)))


class GssTicket:
    """A service ticket pinned in a credentials cache of its own: it never changes (RFC 4430 §9)."""

    def __init__(self, ccache: MemoryCcache, credential: libkrb5.Credential) -> None:
        self._ccache = ccache  # keeps the cache behind the GSS credential alive
        self._creds = _initiator(ccache)
        self._target = _name(credential.server)
        self._ticket = credential.ticket
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
        if offset:
            return self._by_another_clock(offset)
        try:
            ap_req = _ap_req(self._creds, self._target)
        except GSSError as error:
            # The cache holds no TGT: libkrb5 can only say that it finds nothing usable.
            why = "it has expired" if self.end <= time.time() else _text(error)
            raise TicketUnavailable(f"the ticket for {self.server} cannot be used: {why}") from None
        ctime, cusec = messages.authenticator_time(self.key, messages.read_ap_req(ap_req))
        # libkrb5 may have set itself by the KDC's clock (kdc_timesync): measured, not assumed.
        return Authenticator(ap_req, ctime, cusec, ctime + cusec / 1_000_000 - time.time())

    def _by_another_clock(self, offset: float) -> Authenticator:
        # GSSAPI makes authenticators by a context of its own, whose clock nobody can set.
        now = time.time()
        if self.end <= now:
            raise TicketUnavailable(f"the ticket for {self.server} cannot be used: it has expired")
        self._last = messages.unused_time(now + offset, self._last)
        ctime, cusec = divmod(self._last, 1_000_000)
        ap_req = messages.build_ap_req(self._ticket, self.key, self.client, ctime, cusec)
        return Authenticator(ap_req, ctime, cusec, offset)


@dataclass(frozen=True, slots=True)
class _Generation:
    """A TGT of ours, alone in its cache. Beyond ``renew`` (POSIX s) a new one stands beside it."""

    ccache: MemoryCcache
    renew: float
    end: float


class GssTicketSource:
    """Tickets from the KDC for the principal of a keytab, or of the user's credentials cache.

    With a keytab nothing else is needed: no kinit, no cron, no credentials cache on disk. A new
    TGT is fetched after half the life of the old one, which serves on where the KDC is away.
    """

    def __init__(
        self, keytab: str | None, client: Principal, clock: Callable[[], float] = time.time
    ) -> None:
        self._keytab = keytab
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._current: _Generation | None = None

    def fetch(self, server: Principal) -> GssTicket:
        """A new ticket for ``server``, by its exact name. Blocks for seconds at worst.

        Raises:
            TicketUnavailable: why not, and what to do about it.
        """
        held = self._current
        try:
            generation = self._generation()
            try:
                return self._service_ticket(generation, server)
            except GSSError as error:
                if generation is not held or _protocol(_minor(error)) not in _STALE_TGT:
                    raise
            self._forget(generation)  # the KDC's own key or our account changed: begin anew
            return self._service_ticket(self._generation(), server)
        except GSSError as error:
            raise self._no_service_ticket(server, error) from None
        except Krb5Error as error:
            raise self._no_credentials(error) from None
        except PeerError as error:
            raise TicketUnavailable(f"no use for the KDC's ticket: {error.detail}") from None

    def _generation(self) -> _Generation:
        if self._keytab is None:
            return self._users_own()
        with self._lock:
            held, now = self._current, self._clock()
            if held is not None and now < held.renew:
                return held
            try:
                self._current = self._initial(self._keytab)
            except (Krb5Error, TicketUnavailable):
                if held is None or now >= held.end:
                    raise
                return held
            return self._current

    def _initial(self, keytab: str) -> _Generation:
        try:
            _stamp(keytab)
            entries = keytab_entries(keytab)
        except LocalError as error:
            raise TicketUnavailable(str(error)) from None
        if all(entry.principal != self._client for entry in entries):
            raise TicketUnavailable(
                f"keytab {keytab} holds no key of {self._client}: add it with ktadd"
            )
        ccache = libkrb5.initial_credentials(keytab, self._client)
        tgt = ccache.credentials()[0]
        return _Generation(ccache, tgt.start + (tgt.end - tgt.start) / 2, tgt.end)

    def _users_own(self) -> _Generation:
        client, ccache = libkrb5.copy_default_ccache(_is_tgt)
        if client != self._client:
            raise TicketUnavailable(
                f"the credentials cache is that of {client}: run kinit {self._client}"
            )
        return _Generation(ccache, 0, 0)

    def _forget(self, generation: _Generation) -> None:
        with self._lock:
            if self._current is generation:
                self._current = None

    def _service_ticket(self, generation: _Generation, server: Principal) -> GssTicket:
        # A scratch cache: the ticket is new from the KDC, and no other fetch sees half of it.
        scratch = generation.ccache.copy(_is_tgt)
        ap_req = _ap_req(_initiator(scratch), _name(server))
        ticket = messages.read_ap_req(ap_req).ticket.raw
        pinned = scratch.copy(lambda credential: credential.ticket == ticket)
        credential = pinned.credentials()[0]
        if credential.etype not in etypes.SUPPORTED:
            raise TicketUnavailable(
                f"the KDC gave a session key of etype {credential.etype} for {server}, which KINK"
                " does not use: permit AES in krb5.conf (permitted_enctypes) and for the service"
                " (MIT: kadmin setstr PRINCIPAL session_enctypes aes256-cts; Active Directory:"
                " msDS-SupportedEncryptionTypes)"
            )
        return GssTicket(pinned, credential)

    def _no_service_ticket(self, server: Principal, error: GSSError) -> TicketUnavailable:
        code = _minor(error)
        protocol = _protocol(code)
        if protocol == 7:  # KDC_ERR_S_PRINCIPAL_UNKNOWN
            return TicketUnavailable(
                f"the KDC does not know the service {server}: create the principal,"
                " or correct its name in the policy"
            )
        if protocol == _ETYPE_NOSUPP or code == _CONFIG_ETYPE_NOSUPP:
            return TicketUnavailable(
                f"the KDC and krb5.conf have no etype in common for {server}: permit AES"
            )
        general = self._general(code)
        return general or TicketUnavailable(f"no ticket for {server}: {_text(error)}")

    def _no_credentials(self, error: Krb5Error) -> TicketUnavailable:
        protocol = libkrb5.protocol_code(error.code)
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
        general = self._general(error.code)
        return general or TicketUnavailable(f"no credentials for {self._client}: {error}")

    def _general(self, code: int) -> TicketUnavailable | None:
        """What can go wrong with either exchange."""
        if code in _UNREACHABLE:
            return TicketUnavailable(
                f"no KDC of {self._client.realm} can be reached: is it up, and does krb5.conf"
                " or DNS name it?"
            )
        if code == _REALM_UNKNOWN:
            return TicketUnavailable(
                f"no KDC is known for realm {self._client.realm}: name it in krb5.conf or DNS"
            )
        if code == _KDCREP_SKEW or libkrb5.protocol_code(code) == 37:
            return TicketUnavailable("the clocks of this host and the KDC differ: run NTP on both")
        return None


@dataclass(frozen=True, slots=True)
class _Keys:
    """The keytab as it was read, and the GSS credential that accepts with it."""

    keytab: MemoryKeytab
    creds: gss.Creds = field(repr=False)
    stamp: tuple[int, int, int]


class GssAcceptor:
    """Accepts AP-REQs with the keys of a keytab; replays are found out across restarts.

    Args:
        keytab: a file; its keys are read into memory here and by ``reload``.
        replay_cache: a file in the state directory (``file2:`` before it is allowed).
        birth: POSIX seconds at which the replay cache began. What was authenticated before may
            be a replay that no cache remembers, and is refused.

    Raises:
        LocalError: keytab or replay cache cannot be used; one line that says what to do.
    """

    def __init__(self, keytab: str, replay_cache: str, birth: float) -> None:
        self._path = keytab
        self._replay_cache = replay_cache.removeprefix("file2:")
        self._birth = birth
        self._parsed: tuple[bytes, messages.ApReq] | None = None
        self._opened: OrderedDict[bytes, OpenedTicket] = OrderedDict()
        _check_replay_cache(self._replay_cache)
        self._keys = self._read()

    @property
    def entries(self) -> tuple[KeytabEntry, ...]:
        """What the keytab in use holds."""
        return self._keys.keytab.entries

    def reload(self) -> bool:
        """Read the keytab again where the file changed; True where it did.

        Raises:
            LocalError: it cannot be used; the keys of before stay in use.
        """
        if _stamp(self._path) == self._keys.stamp:
            return False
        self._keys = self._read()
        self._opened.clear()  # what a removed key opened opens no more
        return True

    def open(self, ap_req: bytes) -> OpenedTicket:
        """Decrypt the ticket; changes nothing (see ``port.Acceptor``).

        A key that is missing is looked for in the file once more, where that changed.
        """
        try:
            parsed = messages.read_ap_req(ap_req)
        except PeerError as error:
            raise TicketRefused(error.reason, error.detail, _MSG_TYPE) from None
        self._parsed = (ap_req, parsed)
        ticket = parsed.ticket
        digest = hashlib.sha256(ticket.raw).digest()
        known = self._opened.get(digest)
        if known is None:
            known = self._decrypt(ticket)
            self._opened[digest] = known
            if len(self._opened) > _REMEMBERED_TICKETS:
                self._opened.popitem(last=False)
        else:
            self._opened.move_to_end(digest)
        return OpenedTicket(
            known.client, known.server, known.key, known.start, known.end, known.octets, ap_req
        )

    def accept(self, opened: OpenedTicket) -> Accepted:
        """Check the authenticator, enter it in the replay cache, and answer (``port.Acceptor``)."""
        request = self._read_again(opened.ap_req)
        if request.authenticator_etype != opened.key.etype:
            raise _refused(_INTEGRITY, "the authenticator is not of the ticket's session key")
        token = messages.gss_frame(opened.ap_req, messages.TOKEN_AP_REQ)
        try:
            accepted = gss.accept_sec_context(token, self._keys.creds)
        except GSSError as error:
            raise _refusal(error) from None
        name = accepted.initiator_name
        if name is None or gss.display_name(name, name_type=False).name != (
            str(opened.client).encode()
        ):
            raise TicketRefused("client-mismatch", f"not the ticket of {opened.client}", 36)
        try:
            ctime, cusec = messages.authenticator_time(opened.key, request)
        except PeerError as error:
            raise TicketRefused(error.reason, error.detail, _MSG_TYPE) from None
        if ctime + cusec / 1_000_000 < self._birth:
            raise TicketRefused(
                "before-replay-cache", f"authenticator of {opened.client} is older", None
            )
        # Not the one that GSSAPI may give: without a checksum in the authenticator it gives none.
        answer = messages.build_ap_rep(opened.key, ctime, cusec)
        return Accepted(answer, ctime, cusec)

    def _read_again(self, ap_req: bytes) -> messages.ApReq:
        # Almost always the one that was opened last: to read it costs more than to decrypt it.
        octets, parsed = self._parsed or (b"", None)
        return parsed if parsed is not None and octets is ap_req else messages.read_ap_req(ap_req)

    def _read(self) -> _Keys:
        stamp = _stamp(self._path)
        try:
            keytab = MemoryKeytab(self._path)
        except Krb5Error as error:
            raise _keytab_unusable(self._path, error) from None
        if not keytab.entries:
            raise LocalError(f"keytab {self._path} holds no key: write one with ktadd")
        replay_cache = b"file2:" + os.fsencode(self._replay_cache)
        store = {b"keytab": keytab.name.encode(), b"rcache": replay_cache}
        try:
            creds = gss.acquire_cred_from(store, mechs=[MechType.kerberos], usage="accept").creds
        except GSSError as error:
            raise LocalError(f"keytab {self._path} cannot be used: {_text(error)}") from None
        return _Keys(keytab, creds, stamp)

    def _decrypt(self, ticket: messages.TicketHeader) -> OpenedTicket:
        try:
            part = self._keys.keytab.decrypt(ticket.raw)
        except Krb5Error as error:
            if self._reloaded():
                return self._decrypt(ticket)
            raise self._unopened(ticket, error) from None
        if part.etype not in etypes.SUPPORTED:
            raise TicketRefused(
                "weak-session-key", f"session key of etype {part.etype}", _ETYPE_NOSUPP
            )
        key = etypes.key(part.etype, part.key)
        return OpenedTicket(
            part.client, ticket.sname, key, part.start, part.end, len(ticket.raw), b""
        )

    def _reloaded(self) -> bool:
        try:
            return self.reload()
        except LocalError:
            return False  # whoever calls reload() hears of it; here the old keys have spoken

    def _unopened(self, ticket: messages.TicketHeader, error: Krb5Error) -> TicketRefused:
        """Which of RFC 4120 §3.2.3's codes it is; libkrb5, having tried every key, cannot say."""
        if error.code in _ASN1 or libkrb5.protocol_code(error.code) == _MSG_TYPE:
            return TicketRefused("malformed-kerberos", "a ticket that cannot be read", _MSG_TYPE)
        ours = [entry for entry in self.entries if entry.principal == ticket.sname]
        if all(entry.etype != ticket.etype for entry in ours):
            return _refused(_NOKEY, f"for {ticket.sname}, etype {ticket.etype}")
        versions = {entry.kvno for entry in ours if entry.etype == ticket.etype}
        if ticket.kvno is not None and ticket.kvno not in versions:
            return _refused(_BADKEYVER, f"kvno {ticket.kvno} of {ticket.sname}")
        return _refused(_INTEGRITY, f"for {ticket.sname}")


def _refused(code: int, detail: str) -> TicketRefused:
    return TicketRefused(_REASONS.get(code, "ticket-refused"), detail, code)


def _refusal(error: GSSError) -> TicketRefused:
    code = _minor(error)
    protocol = _protocol(code)
    if protocol == _REPEAT:
        return TicketRefused("replay", "", None)
    if protocol is not None:
        return _refused(protocol, messages.krb_error_name(protocol))
    if code in _ASN1:
        return _refused(_MSG_TYPE, "an AP-REQ that cannot be read")
    if code in _REPLAY_CACHE or code in _ERRNO:
        # Fail closed: without a replay cache nothing is accepted.
        return TicketRefused("replay-cache-unusable", _text(error), None)
    return TicketRefused("ticket-refused", _text(error), None)


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
    return messages.gss_unframe(token)[1]


def _minor(error: GSSError) -> int:
    """The com_err code, signed again: GSSAPI's OM_uint32 took its sign."""
    code: int = error.min_code
    return code - (1 << 32) if code & 0x80000000 else code


def _protocol(code: int) -> int | None:
    return libkrb5.protocol_code(code)


def _text(error: GSSError) -> str:
    return "; ".join(error.get_all_statuses(error.min_code, False))


def _stamp(path: str) -> tuple[int, int, int]:
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        raise LocalError(
            f"keytab {path} does not exist: write it with ktadd, or correct its path in the"
            " configuration"
        ) from None
    except OSError as error:
        raise LocalError(f"keytab {path} cannot be read: {error.strerror}") from None
    return stat.st_mtime_ns, stat.st_ino, stat.st_size


def _keytab_unusable(path: str, error: Krb5Error) -> LocalError:
    if not os.access(path, os.R_OK, effective_ids=True):
        return LocalError(f"keytab {path} is not readable: change its owner or its mode")
    return LocalError(f"keytab {path} cannot be used: {error}")


def _check_replay_cache(path: str) -> None:
    directory = os.path.dirname(path) or "."
    if not os.path.isdir(directory):
        raise LocalError(f"replay cache {path}: make the directory {directory}")
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass  # a read-only file system, too, says so here and not at each accept
    except OSError as error:
        raise LocalError(
            f"replay cache {path}: the directory {directory} is not writable: {error.strerror}"
        ) from None
    if os.path.isdir(path):
        raise LocalError(f"replay cache {path} is a directory: name a file")
    if os.path.exists(path) and not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
        raise LocalError(f"replay cache {path} is not writable: change its owner or its mode")
