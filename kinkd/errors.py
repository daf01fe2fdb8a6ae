"""What can go wrong, and whose fault it is.

Every error kinkd raises on purpose is one of three: a peer sent what cannot be
accepted (``PeerError``), something on this host is not as it must be
(``LocalError``), or the kernel refused a request (``KernelError``).
"""

from __future__ import annotations

import os


class KinkdError(Exception):
    """The root of every error kinkd raises on purpose."""


class PeerError(KinkdError):
    """Something a peer sent cannot be accepted.

    ``reason`` is the stable, kebab-case name under which the packet is counted
    and logged. At most one of the three codes says how RFC 4430 wants it
    answered; none of them: it is met with silence.

    Args:
        reason: name of the drop counter, e.g. ``"bad-checksum"``.
        detail: words for the log; never octets of key material.
        kink_error: KINK_ERROR code (RFC 4430 §4.2.8).
        notify: ISAKMP notify message type (RFC 4430 §5.5).
        notify_data: Notification Data that goes with ``notify``.
        krb_error: KRB-ERROR code (RFC 4120 §7.5.9).
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        kink_error: int | None = None,
        notify: int | None = None,
        notify_data: bytes = b"",
        krb_error: int | None = None,
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.kink_error = kink_error
        self.notify = notify
        self.notify_data = notify_data
        self.krb_error = krb_error


class Malformed(PeerError):
    """The message breaks the grammar of RFC 4430 §4: KINK_PROTOERR (1)."""

    def __init__(self, detail: str) -> None:
        super().__init__("malformed", detail, kink_error=1)


class UnsupportedDoi(PeerError):
    """A domain of interpretation other than IPsec (1): KINK_INVDOI (2)."""

    def __init__(self, doi: int) -> None:
        super().__init__("unsupported-doi", f"DOI {doi}", kink_error=2)


class UnsupportedVersion(PeerError):
    """A major version other than 1 in the header: KINK_INVMAJ (3)."""

    def __init__(self, version: int) -> None:
        super().__init__("unsupported-version", f"major version {version}", kink_error=3)


class UnsupportedQuickMode(PeerError):
    """A Quick Mode version above 1.0: KINK_BADQMVERS (6)."""

    def __init__(self, major: int, minor: int) -> None:
        super().__init__("unsupported-quick-mode", f"version {major}.{minor}", kink_error=6)


class MalformedIsakmp(PeerError):
    """A KINK_ISAKMP payload that cannot be read: PAYLOAD-MALFORMED (16), RFC 4430 §5.5."""

    def __init__(self, detail: str) -> None:
        super().__init__("malformed-isakmp", detail, notify=16)


class TicketRefused(PeerError):
    """Kerberos refuses the peer's AP-REQ; ``krb_error`` is the code to relay (RFC 4120 §7.5.9).

    ``code`` None: refused in silence (a replay).
    """

    def __init__(self, reason: str, detail: str, code: int | None) -> None:
        super().__init__(reason, detail, krb_error=code)


class UserToUserRefused(TicketRefused):
    """A user-to-user ticket that no TGT of ours opens: its client needs the present one (§3.7.1).

    ``code`` is for where that one is not given out.
    """


class LocalError(KinkdError):
    """Something on this host is not as it must be; the text says what to do about it."""


class TicketUnavailable(LocalError):
    """The KDC gives no ticket for a peer, or cannot be reached.

    ``code``: the KRB-ERROR code that the KDC answered (RFC 4120 §7.5.9), None where it did not.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class DocumentError(LocalError):
    """A configuration or policy file that cannot be used: the place, the fault, the cure."""

    def __init__(self, path: str, line: int | None, text: str) -> None:
        super().__init__(f"{path}:{line}: {text}" if line else f"{path}: {text}")
        self.path = path
        self.line = line
        self.text = text


class KernelError(KinkdError):
    """The kernel refused a request.

    Args:
        errno: the positive errno of the answer.
        request: the request in words: message, SA or policy, attribute.
        explanation: the kernel's extended ACK, empty where it gave none.
    """

    def __init__(self, errno: int, request: str, explanation: str = "") -> None:
        text = f"{request}: {os.strerror(errno)}"
        super().__init__(f"{text} ({explanation})" if explanation else text)
        self.errno = errno
        self.request = request
        self.explanation = explanation
