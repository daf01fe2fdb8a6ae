"""The few calls of libkrb5 that GSSAPI lacks, by cffi's ABI mode (MIT krb5 1.20 and later).

Five things only: credentials caches in memory, how a host's own credentials get there, and what is
in them; a keytab in memory; the decryption of a ticket with it; user-to-user tickets; where
krb5.conf says that KDCs are. Everything
is a value once it leaves this module; handles stay inside. MIT's MEMORY caches and keytabs are the
process's own and locked: names and handles may cross threads, contexts may not, so each thread has
one.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from cffi import FFI

from kinkd.errors import KinkdError, LocalError
from kinkd.model import Principal, Secret

KRB5_BASE = -1765328384  # com_err's table "krb5": the base plus a code of RFC 4120 §7.5.9
KRB5_CC_END = KRB5_BASE + 142
KRB5_KT_END = KRB5_BASE + 182
_GC_USER_USER, _GC_NO_STORE = 1, 8

CData = Any  # what cffi hands out: it has no static type

_ffi = FFI()
_ffi.cdef(
    """
    typedef int32_t krb5_error_code;
    typedef struct _krb5_context *krb5_context;
    typedef struct _krb5_ccache *krb5_ccache;
    typedef struct _krb5_kt *krb5_keytab;
    typedef void *krb5_cc_cursor;
    typedef void *krb5_kt_cursor;
    typedef struct { int32_t magic; unsigned int length; char *data; } krb5_data;
    typedef struct {
        int32_t magic; krb5_data realm; krb5_data *data; int32_t length; int32_t type;
    } *krb5_principal;
    typedef struct {
        int32_t magic; int32_t enctype; unsigned int length; unsigned char *contents;
    } krb5_keyblock;
    typedef struct {
        int32_t authtime; int32_t starttime; int32_t endtime; int32_t renew_till;
    } krb5_ticket_times;
    typedef struct {
        int32_t magic; int32_t flags; krb5_keyblock *session; krb5_principal client;
        struct { int32_t magic; unsigned char tr_type; krb5_data tr_contents; } transited;
        krb5_ticket_times times; void **caddrs; void **authorization_data;
    } krb5_enc_tkt_part;
    typedef struct {
        int32_t magic; krb5_principal server;
        struct {
            int32_t magic; int32_t enctype; unsigned int kvno; krb5_data ciphertext;
        } enc_part;
        krb5_enc_tkt_part *enc_part2;
    } krb5_ticket;
    typedef struct {
        int32_t magic; krb5_principal client; krb5_principal server; krb5_keyblock keyblock;
        krb5_ticket_times times; unsigned int is_skey; int32_t ticket_flags; void **addresses;
        krb5_data ticket; krb5_data second_ticket; void **authdata;
    } krb5_creds;
    typedef struct {
        int32_t magic; krb5_principal principal; int32_t timestamp; unsigned int vno;
        krb5_keyblock key;
    } krb5_keytab_entry;

    krb5_error_code krb5_init_context(krb5_context *);
    void krb5_free_context(krb5_context);
    const char *krb5_get_error_message(krb5_context, krb5_error_code);
    void krb5_free_error_message(krb5_context, const char *);
    krb5_error_code krb5_parse_name(krb5_context, const char *, krb5_principal *);
    void krb5_free_principal(krb5_context, krb5_principal);
    unsigned int krb5_is_config_principal(krb5_context, krb5_principal);

    krb5_error_code krb5_cc_default(krb5_context, krb5_ccache *);
    krb5_error_code krb5_cc_resolve(krb5_context, const char *, krb5_ccache *);
    krb5_error_code krb5_cc_new_unique(krb5_context, const char *, const char *, krb5_ccache *);
    krb5_error_code krb5_cc_initialize(krb5_context, krb5_ccache, krb5_principal);
    krb5_error_code krb5_cc_get_principal(krb5_context, krb5_ccache, krb5_principal *);
    const char *krb5_cc_get_name(krb5_context, krb5_ccache);
    krb5_error_code krb5_cc_start_seq_get(krb5_context, krb5_ccache, krb5_cc_cursor *);
    krb5_error_code krb5_cc_next_cred(
        krb5_context, krb5_ccache, krb5_cc_cursor *, krb5_creds *);
    krb5_error_code krb5_cc_end_seq_get(krb5_context, krb5_ccache, krb5_cc_cursor *);
    krb5_error_code krb5_cc_store_cred(krb5_context, krb5_ccache, krb5_creds *);
    krb5_error_code krb5_cc_close(krb5_context, krb5_ccache);
    krb5_error_code krb5_cc_destroy(krb5_context, krb5_ccache);
    void krb5_free_cred_contents(krb5_context, krb5_creds *);
    void krb5_free_creds(krb5_context, krb5_creds *);
    krb5_error_code krb5_get_credentials(
        krb5_context, int32_t, krb5_ccache, krb5_creds *, krb5_creds **);
    krb5_error_code krb5_get_init_creds_keytab(
        krb5_context, krb5_creds *, krb5_principal, krb5_keytab, int32_t, const char *, void *);

    krb5_error_code krb5_kt_resolve(krb5_context, const char *, krb5_keytab *);
    krb5_error_code krb5_kt_start_seq_get(krb5_context, krb5_keytab, krb5_kt_cursor *);
    krb5_error_code krb5_kt_next_entry(
        krb5_context, krb5_keytab, krb5_keytab_entry *, krb5_kt_cursor *);
    krb5_error_code krb5_kt_end_seq_get(krb5_context, krb5_keytab, krb5_kt_cursor *);
    krb5_error_code krb5_kt_add_entry(krb5_context, krb5_keytab, krb5_keytab_entry *);
    krb5_error_code krb5_kt_close(krb5_context, krb5_keytab);
    krb5_error_code krb5_free_keytab_entry_contents(krb5_context, krb5_keytab_entry *);

    krb5_error_code krb5_decode_ticket(const krb5_data *, krb5_ticket **);
    krb5_error_code krb5_server_decrypt_ticket_keytab(krb5_context, krb5_keytab, krb5_ticket *);
    void krb5_free_ticket(krb5_context, krb5_ticket *);

    typedef struct _profile_t *profile_t;
    krb5_error_code krb5_get_profile(krb5_context, profile_t *);
    long profile_get_values(profile_t, const char *const *, char ***);
    void profile_free_list(char **);
    void profile_release(profile_t);
    """
)


class Krb5Error(KinkdError):
    """libkrb5 refuses: ``code`` is its com_err code or an errno, the text is its own."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def protocol_code(code: int) -> int | None:
    """The KRB-ERROR code (RFC 4120 §7.5.9) in a com_err code, None where it is a local one."""
    return code - KRB5_BASE if 0 < code - KRB5_BASE < 128 else None


@dataclass(frozen=True, slots=True)
class Credential:
    """A ticket of a credentials cache. Times are POSIX seconds."""

    client: Principal
    server: Principal
    ticket: bytes = field(repr=False)
    etype: int  # of the session key
    key: Secret
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class KeytabEntry:
    """A key of a keytab, without the key."""

    principal: Principal
    kvno: int
    etype: int


@dataclass(frozen=True, slots=True)
class EncryptedPart:
    """What a ticket holds for its server (RFC 4120 §5.3 EncTicketPart). Times: POSIX seconds."""

    client: Principal
    etype: int  # of the session key
    key: Secret
    start: int
    end: int


class _Thread(threading.local):
    context: CData = None


_thread = _Thread()
_library: CData = None
_numbers = itertools.count(1)


def _lib() -> CData:
    global _library  # noqa: PLW0603  # loaded with the first call, not by whoever imports
    if _library is None:
        try:
            _library = _ffi.dlopen("libkrb5.so.3")
        except OSError as missing:
            raise LocalError(f"install MIT Kerberos (package libkrb5-3): {missing}") from None
    return _library


def _context() -> CData:
    if _thread.context is None:
        lib = _lib()
        handle = _ffi.new("krb5_context *")
        code = lib.krb5_init_context(handle)
        if code:
            raise LocalError(f"libkrb5 cannot start (error {code}): look at krb5.conf")
        _thread.context = _ffi.gc(handle[0], lib.krb5_free_context)
    return _thread.context


def _error(code: int) -> Krb5Error:
    context, lib = _context(), _lib()
    message = lib.krb5_get_error_message(context, code)
    text = _ffi.string(message).decode("utf-8", "replace")
    lib.krb5_free_error_message(context, message)
    return Krb5Error(code, text)


def _check(code: int) -> None:
    if code:
        raise _error(code)


def _octets(data: CData) -> bytes:
    return bytes(_ffi.buffer(data.data, data.length)) if data.length else b""


def _principal(handle: CData) -> Principal:
    """The value of a ``krb5_principal``. Raises Krb5Error (EINVAL) where it is not UTF-8."""
    parts = [_octets(handle.data[index]) for index in range(handle.length)]
    try:
        return Principal(
            tuple(part.decode("utf-8") for part in parts), _octets(handle.realm).decode("utf-8")
        )
    except UnicodeDecodeError:
        raise Krb5Error(22, "a principal name that is not UTF-8") from None


def _secret(block: CData) -> Secret:
    return Secret(bytearray(_ffi.buffer(block.contents, block.length)))


def _times(times: CData) -> tuple[int, int]:
    # krb5_timestamp is unsigned where it counts: good until 2106. A missing starttime is authtime.
    return (times.starttime or times.authtime) & 0xFFFFFFFF, times.endtime & 0xFFFFFFFF


def configured_kdcs(realm: str) -> list[str]:
    """What krb5.conf calls the KDCs of a realm and their password servers: ``HOST``, ``HOST:PORT``.

    Raises:
        Krb5Error, LocalError: there is no krb5.conf that can be read.
    """
    lib, profile, found = _lib(), _ffi.new("profile_t *"), list[str]()
    _check(lib.krb5_get_profile(_context(), profile))
    try:
        for relation in ("kdc", "primary_kdc", "master_kdc", "admin_server", "kpasswd_server"):
            path = [_ffi.new("char[]", each.encode()) for each in ("realms", realm, relation)]
            names, values = _ffi.new("const char *[]", [*path, _ffi.NULL]), _ffi.new("char ***")
            if lib.profile_get_values(profile[0], names, values):
                continue  # it is not there
            index = 0
            while values[0][index] != _ffi.NULL:
                found.append(_ffi.string(values[0][index]).decode("utf-8", "replace"))
                index += 1
            lib.profile_free_list(values[0])
    finally:
        lib.profile_release(profile[0])
    return found


class MemoryCcache:
    """A credentials cache in this process's memory, gone with the object.

    ``name`` is what GSSAPI's credential store calls it.
    """

    def __init__(self) -> None:
        handle = _ffi.new("krb5_ccache *")
        _check(_lib().krb5_cc_new_unique(_context(), b"MEMORY", _ffi.NULL, handle))
        residual = _ffi.string(_lib().krb5_cc_get_name(_context(), handle[0]))
        self.name = "MEMORY:" + residual.decode("ascii")
        self._handle = handle[0]
        weakref.finalize(self, _destroy_ccache, handle[0])

    def credentials(self) -> list[Credential]:
        """Every ticket in the cache."""
        return [_credential(each) for each in _each_credential(self._handle)]

    def copy(self, wanted: Callable[[Credential], bool]) -> MemoryCcache:
        """A new cache of the same client with the tickets that are ``wanted``."""
        return _copy(self._handle, wanted)


def initial_credentials(keytab: str, client: Principal) -> MemoryCcache:
    """A cache with a new ticket-granting ticket (RFC 4120 §3.1) by a key of ``keytab``.

    Asks the KDC, and can take seconds where it does not answer.

    Raises:
        Krb5Error: what the KDC or libkrb5 has against it.
    """
    # A context holds krb5.conf as it was: a fresh one sees what the administrator changed since.
    _thread.context = None
    context, lib = _context(), _lib()
    ccache = MemoryCcache()
    creds = _ffi.new("krb5_creds *")
    with _parsed(client) as principal, _keytab_file(keytab) as keys:
        _check(
            lib.krb5_get_init_creds_keytab(context, creds, principal, keys, 0, _ffi.NULL, _ffi.NULL)
        )
        try:
            _check(lib.krb5_cc_initialize(context, ccache._handle, creds.client))
            _check(lib.krb5_cc_store_cred(context, ccache._handle, creds))
        finally:
            lib.krb5_free_cred_contents(context, creds)
    return ccache


def user_to_user(
    ccache: MemoryCcache, client: Principal, server: Principal, tgt: bytes
) -> Credential:
    """A ticket for ``server`` in the session key of its ``tgt`` (RFC 4120 §3.3.3), from the KDC.

    ``ccache`` holds the client's own TGT. Can take seconds where the KDC does not answer.

    Raises:
        Krb5Error: what the KDC or libkrb5 has against it.
    """
    context, lib = _context(), _lib()
    wanted, found = _ffi.new("krb5_creds *"), _ffi.new("krb5_creds **")
    octets = _ffi.from_buffer("char[]", tgt)
    with _parsed(client) as ours, _parsed(server) as theirs:
        wanted.client, wanted.server = ours, theirs
        wanted.second_ticket.length, wanted.second_ticket.data = len(tgt), octets
        options = _GC_USER_USER | _GC_NO_STORE
        _check(lib.krb5_get_credentials(context, options, ccache._handle, wanted, found))
    try:
        return _credential(found[0])
    finally:
        lib.krb5_free_creds(context, found[0])


def copy_ccache(
    name: str | None, wanted: Callable[[Credential], bool]
) -> tuple[Principal, MemoryCcache]:
    """The client of a credentials cache, and a copy of its tickets that are ``wanted``.

    ``name``: like ``FILE:/run/user/1000/krb5cc``; None: the user's default one.

    Raises:
        Krb5Error: there is none.
    """
    lib = _lib()
    # A context remembers the default cache's name: a fresh one looks at KRB5CCNAME again.
    _thread.context = None
    handle = _ffi.new("krb5_ccache *")
    if name is None:
        _check(lib.krb5_cc_default(_context(), handle))
    else:
        _check(lib.krb5_cc_resolve(_context(), name.encode(), handle))
    try:
        with _ccache_client(handle[0]) as client:
            return _principal(client), _copy(handle[0], wanted)
    finally:
        lib.krb5_cc_close(_context(), handle[0])


def _destroy_ccache(handle: CData) -> None:
    _lib().krb5_cc_destroy(_context(), handle)


@contextmanager
def _parsed(name: Principal) -> Iterator[CData]:
    context, lib = _context(), _lib()
    handle = _ffi.new("krb5_principal *")
    _check(lib.krb5_parse_name(context, str(name).encode(), handle))
    try:
        yield handle[0]
    finally:
        lib.krb5_free_principal(context, handle[0])


@contextmanager
def _ccache_client(handle: CData) -> Iterator[CData]:
    client = _ffi.new("krb5_principal *")
    _check(_lib().krb5_cc_get_principal(_context(), handle, client))
    try:
        yield client[0]
    finally:
        _lib().krb5_free_principal(_context(), client[0])


def _each_credential(handle: CData) -> Iterator[CData]:
    context, lib = _context(), _lib()
    cursor, creds = _ffi.new("krb5_cc_cursor *"), _ffi.new("krb5_creds *")
    _check(lib.krb5_cc_start_seq_get(context, handle, cursor))
    try:
        while True:
            code = lib.krb5_cc_next_cred(context, handle, cursor, creds)
            if code == KRB5_CC_END:
                return
            _check(code)
            try:
                if not lib.krb5_is_config_principal(context, creds.server):
                    yield creds
            finally:
                lib.krb5_free_cred_contents(context, creds)
    finally:
        lib.krb5_cc_end_seq_get(context, handle, cursor)


def _credential(creds: CData) -> Credential:
    start, end = _times(creds.times)
    return Credential(
        _principal(creds.client),
        _principal(creds.server),
        _octets(creds.ticket),
        creds.keyblock.enctype,
        _secret(creds.keyblock),
        start,
        end,
    )


def _copy(handle: CData, wanted: Callable[[Credential], bool]) -> MemoryCcache:
    context, lib = _context(), _lib()
    target = MemoryCcache()
    with _ccache_client(handle) as client:
        _check(lib.krb5_cc_initialize(context, target._handle, client))
    for creds in _each_credential(handle):
        if wanted(_credential(creds)):
            _check(lib.krb5_cc_store_cred(context, target._handle, creds))
    return target


class MemoryKeytab:
    """Keys in this process's memory, gone with the object; at first none.

    ``name`` is what GSSAPI's credential store calls it.
    """

    def __init__(self) -> None:
        _thread.context = None  # krb5.conf's permitted_enctypes decide what decrypt may use
        context, lib = _context(), _lib()
        self.name = f"MEMORY:kinkd-{os.getpid()}-{next(_numbers)}"
        handle = _ffi.new("krb5_keytab *")
        _check(lib.krb5_kt_resolve(context, self.name.encode(), handle))
        self._handle = handle[0]
        weakref.finalize(self, _close_keytab, handle[0])
        self.entries: tuple[KeytabEntry, ...] = ()

    @classmethod
    def read(cls, path: str) -> Self:
        """The keys of a keytab file as they are now.

        Raises:
            Krb5Error: it cannot be read; ``code`` may be an errno.
        """
        keytab = cls()
        context, lib = _context(), _lib()
        entries = []
        for entry in _each_key(path):
            entries.append(KeytabEntry(_principal(entry.principal), entry.vno, entry.key.enctype))
            _check(lib.krb5_kt_add_entry(context, keytab._handle, entry))
        keytab.entries = tuple(entries)
        return keytab

    def add(self, principal: Principal, etype: int, key: Secret) -> None:
        """Add a key that is no file's: the session key of a TGT. Raises Krb5Error."""
        context, lib = _context(), _lib()
        entry = _ffi.new("krb5_keytab_entry *")
        contents = _ffi.from_buffer("unsigned char[]", key.value)
        with _parsed(principal) as name:
            entry.principal = name
            entry.key.enctype, entry.key.length, entry.key.contents = etype, len(key), contents
            _check(lib.krb5_kt_add_entry(context, self._handle, entry))  # copies it
        self.entries = (*self.entries, KeytabEntry(principal, 0, etype))

    def decrypt(self, ticket: bytes) -> EncryptedPart:
        """The encrypted part of a ``ticket`` (DER), by whichever key opens it.

        Raises:
            Krb5Error: not a ticket, or no key here opens it.
        """
        context, lib = _context(), _lib()
        octets = _ffi.from_buffer("char[]", ticket)
        data = _ffi.new("krb5_data *", {"magic": 0, "length": len(ticket), "data": octets})
        handle = _ffi.new("krb5_ticket **")
        _check(lib.krb5_decode_ticket(data, handle))
        try:
            _check(lib.krb5_server_decrypt_ticket_keytab(context, self._handle, handle[0]))
            part = handle[0].enc_part2
            client, key = _principal(part.client), _secret(part.session)
            return EncryptedPart(client, part.session.enctype, key, *_times(part.times))
        finally:
            lib.krb5_free_ticket(context, handle[0])


def keytab_entries(path: str) -> tuple[KeytabEntry, ...]:
    """What is in a keytab file. Raises Krb5Error as ``MemoryKeytab`` does."""
    return tuple(
        KeytabEntry(_principal(entry.principal), entry.vno, entry.key.enctype)
        for entry in _each_key(path)
    )


def _close_keytab(handle: CData) -> None:
    _lib().krb5_kt_close(_context(), handle)


@contextmanager
def _keytab_file(path: str) -> Iterator[CData]:
    context, lib = _context(), _lib()
    handle = _ffi.new("krb5_keytab *")
    _check(lib.krb5_kt_resolve(context, b"FILE:" + os.fsencode(path), handle))
    try:
        yield handle[0]
    finally:
        lib.krb5_kt_close(context, handle[0])


def _each_key(path: str) -> Iterator[CData]:
    context, lib = _context(), _lib()
    cursor, entry = _ffi.new("krb5_kt_cursor *"), _ffi.new("krb5_keytab_entry *")
    with _keytab_file(path) as keytab:
        _check(lib.krb5_kt_start_seq_get(context, keytab, cursor))
        try:
            while True:
                code = lib.krb5_kt_next_entry(context, keytab, entry, cursor)
                if code == KRB5_KT_END:
                    return
                _check(code)
                try:
                    yield entry
                finally:
                    lib.krb5_free_keytab_entry_contents(context, entry)
        finally:
            lib.krb5_kt_end_seq_get(context, keytab, cursor)
