"""Readiness for the service manager, and sockets in its keeping: sd_notify(3), sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

_FIRST_KEPT = 3  # SD_LISTEN_FDS_START


def notify(state: str, descriptors: Sequence[int] = ()) -> None:
    """Send ``state`` (``READY=1``, ``STOPPING=1``) to whoever started us, if he asked for it."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        try:
            s.connect(address)
            socket.send_fds(s, [state.encode()], descriptors)
        except OSError:  # the service manager is gone: nothing depends on it
            return


def keep(name: str, kept: socket.socket) -> None:
    """Have the service manager hold a socket open while we are not there."""
    notify(f"FDSTORE=1\nFDNAME={name}", [kept.fileno()])


def let_go(name: str) -> None:
    """Have the service manager close what it held under this name."""
    notify(f"FDSTOREREMOVE=1\nFDNAME={name}")


def take_kept() -> dict[str, socket.socket]:
    """The sockets that were kept for us, by name; a second call finds none."""
    pid, count, names = (os.environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if pid != str(os.getpid()) or not count.isdecimal():
        return {}
    found: dict[str, socket.socket] = {}
    for number, name in enumerate(names.split(":")[: int(count)], _FIRST_KEPT):
        os.set_inheritable(number, False)
        if name in found:
            os.close(number)
        else:
            found[name] = socket.socket(fileno=number)
    return found
