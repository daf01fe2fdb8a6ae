"""The responder's side on the host's own Kerberos: GSSAPI, and libkrb5 for the session key.

GSS tokens frame raw Kerberos messages (RFC 4121 §4.1); KINK carries them raw (RFC 4430 §4.2.1).
The key of KINK is the ticket's session key, which GSSAPI does not give: it is read from the ticket.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace

from gssapi import MechType
from gssapi import raw as gss
from gssapi.raw import GSSError

from kinkd.errors import LocalError, PeerError, TicketRefused, UserToUserRefused
from kinkd.kerberos import etypes, libkrb5, messages
from kinkd.kerberos.libkrb5 import KeytabEntry, Krb5Error, MemoryKeytab
from kinkd.kerberos.local import Stamp, code_of, keytab_unusable, protocol_of, stamp, text_of
from kinkd.kerberos.port import Accepted, OpenedTicket, Tgt

_REMEMBERED_TICKETS = 1024
_REMEMBERED_TGTS = 8  # each is tried on a ticket that nobody has proven to be one
_KEYTAB_LOOK = 1.0  # seconds from one look at the keytab file to the next

# RFC 4120 §7.5.9
_ETYPE_NOSUPP, _INTEGRITY, _REPEAT, _BADKEYVER, _MSG_TYPE, _NOKEY = 14, 31, 34, 44, 40, 45
_USER_TO_USER_REQUIRED = 69
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
    _USER_TO_USER_REQUIRED: "user-to-user-required",
}
_HINTS = {
    32: "the client's ticket has ended, or the clock of this host is ahead of the KDC's",
    33: "the clock of this host is behind the KDC's",
    37: "the clock of this host, or of the client, is off",
}
_NOPERM_ETYPE = libkrb5.KRB5_BASE + 236
_REPLAY_CACHE = range(libkrb5.KRB5_BASE + 159, libkrb5.KRB5_BASE + 173)  # KRB5_RC_*
_ASN1 = range(1859794432, 1859794446)
_ERRNO = range(1, 256)


@dataclass(frozen=True, slots=True)
class _Keys:
    """Keys in memory, and the GSS credential that accepts with them."""

    keytab: MemoryKeytab
    creds: gss.Creds = field(repr=False)


class GssAcceptor:
    """Accepts AP-REQs with the keys of a keytab; replays are found out across restarts.

    A user-to-user ticket is encrypted in the session key of a TGT of ours. To GSSAPI that is a
    key like another, in a keytab of its own: no key of either kind opens a ticket of the other.

    Args:
        keytab: a file; its keys are read into memory here and by ``reload``. None: user-to-user is
            the only way.
        replay_cache: a file in the state directory (``file2:`` before it is allowed).
        birth: POSIX seconds at which the replay cache began. What was authenticated before may
            be a replay that no cache remembers, and is refused.

    Raises:
        LocalError: keytab or replay cache cannot be used; one line that says what to do.
    """

    def __init__(self, keytab: str | None, replay_cache: str, birth: float) -> None:
        self._path = keytab
        self._replay_cache = replay_cache.removeprefix("file2:")
        self._birth = birth
        self._parsed: tuple[bytes, messages.ApReq] | None = None
        self._opened: OrderedDict[bytes, OpenedTicket] = OrderedDict()
        self._tgts: list[Tgt] = []
        self._tgt_keys: _Keys | None = None
        self._stamp: Stamp | None = None
        self._useless: Stamp | None = None
        self._looked = 0.0
        _check_replay_cache(self._replay_cache)
        self._keys = self._read(keytab) if keytab is not None else None

    @property
    def entries(self) -> tuple[KeytabEntry, ...]:
        """What the keytab in use holds."""
        return self._keys.keytab.entries if self._keys is not None else ()

    def reload(self) -> bool:
        """Read the keytab again where the file changed; True where it did.

        Raises:
            LocalError: it cannot be used; the keys of before stay in use.
        """
        if self._path is None or stamp(self._path) == self._stamp:
            return False
        self._keys = self._read(self._path)
        self._opened.clear()  # what a removed key opened opens no more
        return True

    def add_tgt(self, tgt: Tgt) -> None:
        """Open what is encrypted in its session key, until it ends (``port.Acceptor``)."""
        if all(each.ticket != tgt.ticket for each in self._tgts):
            try:
                self._set_tgts([*self._tgts, tgt])
            except Krb5Error as error:
                raise LocalError(f"the TGT of {tgt.client} cannot be used: {error}") from None

    def open(self, ap_req: bytes) -> OpenedTicket:
        """Decrypt the ticket; changes nothing (see ``port.Acceptor``).

        The keytab file is looked at once a second; where a key is missing, at once.
        """
        try:
            parsed = messages.read_ap_req(ap_req)
        except PeerError as error:
            raise TicketRefused(error.reason, error.detail, _MSG_TYPE) from None
        self._parsed = (ap_req, parsed)
        self._look()
        ticket, user_to_user = parsed.ticket, parsed.user_to_user
        digest = hashlib.sha256(bytes((user_to_user,)) + ticket.raw).digest()
        known = self._opened.get(digest)
        if known is None:
            known = self._decrypt_user_to_user(ticket) if user_to_user else self._decrypt(ticket)
            self._opened[digest] = known
            if len(self._opened) > _REMEMBERED_TICKETS:
                self._opened.popitem(last=False)
        else:
            self._opened.move_to_end(digest)
        return replace(known, ap_req=ap_req)

    def accept(self, opened: OpenedTicket) -> Accepted:
        """Check the authenticator, enter it in the replay cache, and answer (``port.Acceptor``)."""
        request = self._read_again(opened.ap_req)
        keys = self._tgt_keys if opened.user_to_user else self._keys
        if keys is None:
            raise TicketRefused("ticket-refused", "the keys that opened it are gone", None)
        if request.authenticator_etype != opened.key.etype:
            raise _refused(_INTEGRITY, "the authenticator is not of the ticket's session key")
        token = messages.gss_frame(opened.ap_req, messages.TOKEN_AP_REQ)
        try:
            accepted = gss.accept_sec_context(token, keys.creds)
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

    def _look(self) -> None:
        """Whether the keytab or a TGT is another by now: now and then."""
        now = time.time()
        if 0 <= now - self._looked < _KEYTAB_LOOK:
            return
        self._looked = now
        self._reloaded()
        if any(tgt.end <= now for tgt in self._tgts):
            with contextlib.suppress(LocalError, Krb5Error):  # tried again in a second
                self._set_tgts(self._tgts)

    def _read(self, path: str) -> _Keys:
        self._useless = found = stamp(path)
        try:
            keytab = MemoryKeytab.read(path)
        except Krb5Error as error:
            raise keytab_unusable(path, error) from None
        if not keytab.entries:
            raise LocalError(f"keytab {path} holds no key: write one with ktadd")
        keys = self._accepting(keytab, f"keytab {path}")
        self._stamp, self._useless = found, None
        return keys

    def _accepting(self, keytab: MemoryKeytab, what: str) -> _Keys:
        replay_cache = b"file2:" + os.fsencode(self._replay_cache)
        store = {b"keytab": keytab.name.encode(), b"rcache": replay_cache}
        try:
            creds = gss.acquire_cred_from(store, mechs=[MechType.kerberos], usage="accept").creds
        except GSSError as error:
            raise LocalError(f"{what} cannot be used: {text_of(error)}") from None
        return _Keys(keytab, creds)

    def _set_tgts(self, tgts: list[Tgt]) -> None:
        """Those that have not ended, the latest few; the keys of the others are overwritten."""
        now = time.time()
        kept = [tgt for tgt in tgts if tgt.end > now][-_REMEMBERED_TGTS:]
        keytab = MemoryKeytab()
        for tgt in kept:
            keytab.add(tgt.client, tgt.etype, tgt.key)
        self._tgt_keys = self._accepting(keytab, "the TGT") if kept else None
        for tgt in tgts:
            if tgt not in kept:
                tgt.key.wipe()
        self._tgts = kept
        self._opened.clear()

    def _decrypt(self, ticket: messages.TicketHeader) -> OpenedTicket:
        if self._keys is None:
            raise _refused(_USER_TO_USER_REQUIRED, "this host has no keytab")
        try:
            part = self._keys.keytab.decrypt(ticket.raw)
        except Krb5Error as error:
            if self._reloaded():
                return self._decrypt(ticket)
            raise self._unopened(ticket, error) from None
        return _opened(ticket, part)

    def _decrypt_user_to_user(self, ticket: messages.TicketHeader) -> OpenedTicket:
        detail = f"no TGT of ours opens the ticket for {ticket.sname}"
        refused = UserToUserRefused("user-to-user-unknown-tgt", detail, _INTEGRITY)
        if self._tgt_keys is None:
            raise refused
        try:
            part = self._tgt_keys.keytab.decrypt(ticket.raw)
        except Krb5Error:
            raise refused from None
        return replace(_opened(ticket, part), user_to_user=True)

    def _reloaded(self) -> bool:
        """The same where the file changed since it was last found useless."""
        try:
            if self._path is None or stamp(self._path) == self._useless:
                return False
            return self.reload()
        except LocalError:
            return False  # whoever calls reload() hears of it; here the old keys have spoken

    def _unopened(self, ticket: messages.TicketHeader, error: Krb5Error) -> TicketRefused:
        """Which of RFC 4120 §3.2.3's codes it is; libkrb5, having tried every key, cannot say."""
        if error.code in _ASN1 or protocol_of(error) == _MSG_TYPE:
            return TicketRefused("malformed-kerberos", "a ticket that cannot be read", _MSG_TYPE)
        if error.code == _NOPERM_ETYPE:
            return TicketRefused(
                "ticket-etype-not-permitted",
                f"krb5.conf permits no etype {ticket.etype}, in which the ticket for"
                f" {ticket.sname} is encrypted: give the account AES keys (Active Directory:"
                " msDS-SupportedEncryptionTypes = 24), or add it to permitted_enctypes",
                _ETYPE_NOSUPP,
            )
        ours = [entry for entry in self.entries if entry.principal == ticket.sname]
        if all(entry.etype != ticket.etype for entry in ours):
            return _refused(_NOKEY, f"for {ticket.sname}, etype {ticket.etype}")
        versions = {entry.kvno for entry in ours if entry.etype == ticket.etype}
        if ticket.kvno is not None and ticket.kvno not in versions:
            return _refused(_BADKEYVER, f"kvno {ticket.kvno} of {ticket.sname}")
        return _refused(_INTEGRITY, f"for {ticket.sname}")


def _opened(ticket: messages.TicketHeader, part: libkrb5.EncryptedPart) -> OpenedTicket:
    if part.etype not in etypes.SUPPORTED:
        raise TicketRefused(
            "weak-session-key",
            f"session key of etype {part.etype} for {part.client}: permit AES at the KDC and in"
            " the krb5.conf of both hosts",
            _ETYPE_NOSUPP,
        )
    key = etypes.key(part.etype, part.key)
    return OpenedTicket(part.client, ticket.sname, key, part.start, part.end, len(ticket.raw), b"")


def _refused(code: int, detail: str) -> TicketRefused:
    return TicketRefused(_REASONS.get(code, "ticket-refused"), detail, code)


def _refusal(error: GSSError) -> TicketRefused:
    code, protocol = code_of(error), protocol_of(error)
    if protocol == _REPEAT:
        return TicketRefused("replay", "", None)
    if protocol is not None:
        name = messages.krb_error_name(protocol)
        hint = _HINTS.get(protocol)
        return _refused(protocol, name if hint is None else f"{name}: {hint}")
    if code in _ASN1:
        return _refused(_MSG_TYPE, "an AP-REQ that cannot be read")
    if code in _REPLAY_CACHE or code in _ERRNO:
        # Fail closed: without a replay cache nothing is accepted.
        return TicketRefused("replay-cache-unusable", text_of(error), None)
    return TicketRefused("ticket-refused", text_of(error), None)


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
