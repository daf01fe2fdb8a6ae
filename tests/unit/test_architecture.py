"""The house's directions: who may import whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "kinkd"

# A module of the left may import from those on the right, by prefix; deeper prefixes win.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "model": set(),
    "document": {"errors", "model"},
    "wire": {"errors", "model", "wire"},
    "kerberos": {"errors", "model", "kerberos"},
    "kernel": {"errors", "model", "kernel"},
    "keying": {"errors", "model", "keying", "wire.numbers"},
    "policy": {"errors", "model", "policy", "document", "keying.algorithms"},
    "exchange": {
        "errors",
        "model",
        "exchange",
        "wire",
        "keying",
        "policy.match",
        "kerberos.port",
        "kerberos.messages",
        "kerberos.names",  # pure: AP-REP and KRB-ERROR to and from octets
        "kernel.port",
    },
    "decode": {"errors", "model", "decode", "wire", "keying", "kerberos"},
    "app": {
        "errors",
        "model",
        "document",
        "app",
        "exchange",
        "wire.numbers",
        "policy",
        "keying",
        "kerberos",
        "kernel",
    },
    "cli": {"__version__", "errors", "cli", "app", "decode", "kerberos.keytab", "policy.directory"},
}

MODULES = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".")
    for path in PACKAGE.rglob("*.py")
)


def imports_of(module: str) -> set[str]:
    tree = ast.parse((PACKAGE / (module.replace(".", "/") + ".py")).read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.removeprefix("kinkd.") for name in names if name.startswith("kinkd.")}
    return found


def is_within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


@pytest.mark.parametrize("module", [m for m in MODULES if m != "__init__"])
def test_imports_point_one_way(module: str) -> None:
    allowed = ALLOWED[module.split(".", maxsplit=1)[0]]
    strangers = {
        name for name in imports_of(module) if not any(is_within(name, a) for a in allowed)
    }
    assert not strangers


def test_asyncio_lives_in_the_application_alone() -> None:
    for module in MODULES:
        text = (PACKAGE / (module.replace(".", "/") + ".py")).read_text()
        assert "asyncio" not in text or module.startswith("app."), module


def test_the_core_reads_no_clock() -> None:
    for module in MODULES:
        if module.startswith(("exchange", "keying", "wire", "policy.match")):
            text = (PACKAGE / (module.replace(".", "/") + ".py")).read_text()
            assert "import time" not in text, module
            assert "datetime" not in text, module
