"""A laboratory for each module: hosts with running daemons. Every test leaves them running."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.lab import Lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """alice, bob and carol; kinkd runs on alice and bob."""
    with Lab(("alice", "bob", "carol")) as lab:
        lab.start("alice", "bob")
        yield lab


@pytest.fixture
def keyed(lab: Lab) -> Lab:
    """The laboratory with one SA pair between alice and bob, IPv4."""
    lab.unkey("alice", "bob")
    assert lab["alice"].ping(lab["bob"]).lost == 0
    return lab
