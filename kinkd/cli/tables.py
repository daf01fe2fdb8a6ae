"""Plain tables and short quantities, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Columns by the keys of the rows, as wide as they need be."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[name.upper() for name in names]]
    cells += [[str(row.get(name, "")) for name in names] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def duration(seconds: object) -> str:
    """Seconds in the two units that matter: ``59s``, ``12m30s``, ``3h05m``, ``2d04h``."""
    left = int(str(seconds))
    if left < 60:
        return f"{left}s"
    if left < 3600:
        return f"{left // 60}m{left % 60:02}s"
    if left < 86400:
        return f"{left // 3600}h{left % 3600 // 60:02}m"
    return f"{left // 86400}d{left % 86400 // 3600:02}h"


def octets(count: object) -> str:
    """Octets with a binary prefix: ``840 B``, ``1.5 KiB``."""
    value = float(str(count))
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
