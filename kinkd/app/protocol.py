"""The control protocol: one JSON object a line, request then answer, over a unix socket.

Request: ``{"version": 1, "command": NAME, "arguments": {...}}``. Answer: ``{"version": 1,
"ok": true, "result": {...}}`` or ``{"version": 1, "ok": false, "error": TEXT}``. A server
answers a version it does not know with an error that names its own.
"""

from __future__ import annotations

import json
import socket

from kinkd.errors import LocalError

VERSION = 1
LONGEST_REQUEST = 1 << 16  # octets
DEFAULT_SOCKET = "/run/kinkd/control.sock"


def encode(message: dict[str, object]) -> bytes:
    """One line."""
    return json.dumps({"version": VERSION, **message}, default=str).encode() + b"\n"


def decode(line: bytes) -> dict[str, object]:
    """Read one line. Raises LocalError."""
    try:
        message = json.loads(line)
    except ValueError:
        raise LocalError("the control protocol speaks JSON, one object a line") from None
    if not isinstance(message, dict):
        raise LocalError("the control protocol speaks JSON objects")
    if message.get("version") != VERSION:
        raise LocalError(f"control protocol version {VERSION} is spoken here")
    return message


def ask(path: str, command: str, timeout: float, **arguments: object) -> dict[str, object]:
    """Ask the daemon behind the socket at ``path``. ``timeout`` in seconds.

    Raises:
        LocalError: in one line, why there is no answer, or the daemon's own error.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(timeout)
            s.connect(path)
            s.sendall(encode({"command": command, "arguments": arguments}))
            with s.makefile("rb") as stream:
                line = stream.readline()
    except (FileNotFoundError, ConnectionRefusedError):
        raise LocalError(f"no kinkd answers at {path}; is it running?") from None
    except PermissionError:
        raise LocalError(f"{path} may not be used by this user; try as root") from None
    except TimeoutError:
        raise LocalError(f"kinkd did not answer within {timeout:g} s") from None
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}") from error
    if not line:
        raise LocalError("kinkd closed the connection without an answer")
    answer = decode(line)
    result = answer.get("result")
    if not answer.get("ok"):
        raise LocalError(str(answer.get("error", "kinkd gave an error without words")))
    return result if isinstance(result, dict) else {}
