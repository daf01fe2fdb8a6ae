"""``kinkctl policy export|import``: the policy between a file and a directory."""

from __future__ import annotations

from typing import TextIO

from kinkd.errors import LocalError


def run(action: str, path: str, base: str, out: TextIO) -> int:
    """Write the other form of the document in ``path`` to ``out``; the exit status.

    Args:
        action: ``"export"``: TOML is read, LDIF written; ``"import"``: the other way.
        path: the file to read.
        base: the DN that the policy's entry is to have, for ``"export"``.
        out: where the text goes.

    Raises:
        LocalError: it cannot be read, or cannot be meant; nothing is written.
    """
    try:
        from kinkd.policy.directory import ldif
    except ModuleNotFoundError as missing:
        raise LocalError(f"module {missing.name} is missing: install kinkd[ldap]") from None
    out.write(ldif.export_file(path, base) if action == "export" else ldif.import_file(path))
    return 0
