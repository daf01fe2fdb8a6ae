"""One realm for the tests that leave it alone, and keytabs of its two hosts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.realm import Realm
from tests.support.realm_pair import Pair, make_pair, use


@pytest.fixture(scope="session")
def shared_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with Realm(tmp_path_factory.mktemp("realm")) as realm:
        yield make_pair(realm)


@pytest.fixture
def pair(shared_pair: Pair, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pair:
    """Alice and bob of a realm with AES keys (etype 18) that no test changes."""
    use(shared_pair.realm, monkeypatch, tmp_path)
    return shared_pair


@pytest.fixture
def own_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    """Alice and bob of a realm that this test may stop and change."""
    with Realm(tmp_path / "realm") as realm:
        use(realm, monkeypatch, tmp_path)
        yield make_pair(realm)
