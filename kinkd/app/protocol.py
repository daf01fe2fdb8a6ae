"""The control protocol: one JSON object a line, request then answer, over a unix socket.

Request: ``{"version": 1, "command": NAME, "arguments": {...}}``. Answer: ``{"version": 1,
"ok": true, "result": {...}}`` or ``{"version": 1, "ok": false, "error": TEXT}``.

``version`` changes where an older reader would misunderstand; what is merely added are commands,
arguments and fields that an older one does not know, and passes over. Each side speaks its own
version and the one before, so that a kinkctl that was upgraded can steer a daemon that was not, and
the other way round. A server answers in the version it was asked in; one that it does not speak is
answered by an error with ``"speaks": [OLDEST, LATEST]``, and the asker tries the best of these.
"""

from __future__ import annotations

import json
import socket
from typing import IO

from kinkd.errors import LocalError

VERSION = 1
SPOKEN = range(1, VERSION + 1)
LONGEST_REQUEST = 1 << 16  # octets
DEFAULT_SOCKET = "/run/kinkd/control.sock"


class UnspokenError(LocalError):
    """A message of a version that is not spoken here."""

    def __init__(self) -> None:
        super().__init__(f"control protocol version {VERSION} is spoken here")


def encode(message: dict[str, object], version: int = VERSION) -> bytes:
    """One line."""
    return json.dumps({"version": version, **message}, default=str).encode() + b"\n"


def decode(line: bytes) -> dict[str, object]:
    """Read one line.

    Raises:
        UnspokenError: its version is not spoken here.
        LocalError: it is no message.
    """
    message = _parse(line)
    if message.get("version") not in SPOKEN:
        raise UnspokenError
    return message


def _parse(line: bytes) -> dict[str, object]:
    try:
        message = json.loads(line)
    except ValueError:
        raise LocalError("the control protocol speaks JSON, one object a line") from None
    if not isinstance(message, dict):
        raise LocalError("the control protocol speaks JSON objects")
    return message


def _best(message: dict[str, object]) -> int:
    """The latest version that both speak, where the other end says what it speaks; else 0."""
    match message.get("speaks"):
        case [int() as oldest, int() as latest]:
            common = range(max(oldest, SPOKEN[0]), min(latest, SPOKEN[-1]) + 1)
            return common[-1] if common else 0
        case _:
            return 0


def ask(path: str, command: str, timeout: float, **arguments: object) -> dict[str, object]:
    """Ask the daemon behind the socket at ``path``. ``timeout`` in seconds.

    Raises:
        LocalError: in one line, why there is no answer, or the daemon's own error.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(timeout)
            s.connect(path)
            request: dict[str, object] = {"command": command, "arguments": arguments}
            with s.makefile("rb") as stream:
                answer = _exchange(s, stream, request, VERSION)
                if (best := _best(answer)) and not answer.get("ok"):
                    answer = _exchange(s, stream, request, best)
    except (FileNotFoundError, ConnectionRefusedError):
        raise LocalError(f"no kinkd answers at {path}; is it running?") from None
    except PermissionError:
        raise LocalError(f"{path} may not be used by this user; try as root") from None
    except TimeoutError:
        raise LocalError(f"kinkd did not answer within {timeout:g} s") from None
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}") from error
    result = answer.get("result")
    if not answer.get("ok"):
        raise LocalError(str(answer.get("error", "kinkd gave an error without words")))
    return result if isinstance(result, dict) else {}


def _exchange(
    s: socket.socket, stream: IO[bytes], request: dict[str, object], version: int
) -> dict[str, object]:
    s.sendall(encode(request, version))
    line = stream.readline()
    if not line:
        raise LocalError("kinkd closed the connection without an answer")
    answer = _parse(line)
    if answer.get("version") not in SPOKEN and not _best(answer):
        raise UnspokenError
    return answer
