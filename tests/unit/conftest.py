"""What this machine happens to be configured for decides no unit test."""

from __future__ import annotations

import pytest

from kinkd.app import discovery
from kinkd.policy import resolve


@pytest.fixture(autouse=True)
def nothing_is_discovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """No servers in resolv.conf and krb5.conf, and the kernel's default range of ports."""
    ports = resolve.Options().client_ports
    monkeypatch.setattr(discovery, "resolvers", list)
    monkeypatch.setattr(discovery, "kdcs", lambda *_: iter(()))
    monkeypatch.setattr(discovery, "client_ports", lambda: ports)
