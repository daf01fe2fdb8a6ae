"""What this host's own Kerberos says: its codes, and the state of the files it lives on."""

from __future__ import annotations

import os

from gssapi.raw import GSSError

from kinkd.errors import LocalError
from kinkd.kerberos import libkrb5
from kinkd.kerberos.libkrb5 import KeytabEntry, Krb5Error
from kinkd.model import Principal


def keytab_entries(keytab: str) -> tuple[KeytabEntry, ...]:
    """Principal, kvno and etype of every key in a keytab file.

    Raises:
        LocalError: one line that says what to do about the file.
    """
    try:
        return libkrb5.keytab_entries(keytab)
    except Krb5Error as error:
        raise keytab_unusable(keytab, error) from None


def principals(keytab: str) -> tuple[Principal, ...]:
    """The principals in a keytab file, each once, in the file's order. Raises LocalError."""
    return tuple(dict.fromkeys(entry.principal for entry in keytab_entries(keytab)))


Stamp = tuple[int, int, int]


def stamp(path: str) -> Stamp:
    """What changes with a keytab file. Raises LocalError: it is not there."""
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


def keytab_unusable(path: str, error: Krb5Error) -> LocalError:
    """Why not, and what to do about it."""
    if not os.access(path, os.R_OK, effective_ids=True):
        return LocalError(f"keytab {path} is not readable: change its owner or its mode")
    return LocalError(f"keytab {path} cannot be used: {error}")


def minor(error: GSSError) -> int:
    """The com_err code, signed again: GSSAPI's OM_uint32 took its sign."""
    code: int = error.min_code
    return code - (1 << 32) if code & 0x80000000 else code


def code_of(error: GSSError | Krb5Error) -> int:
    """The com_err code of either."""
    return error.code if isinstance(error, Krb5Error) else minor(error)


def protocol_of(error: GSSError | Krb5Error) -> int | None:
    """The KRB-ERROR code (RFC 4120 §7.5.9) in it, None where it is a local one."""
    return libkrb5.protocol_code(code_of(error))


def text_of(error: GSSError | Krb5Error) -> str:
    """What it says, in libkrb5's words."""
    if isinstance(error, Krb5Error):
        return str(error)
    return "; ".join(error.get_all_statuses(error.min_code, False))
