"""``kinkctl policy``: documents checked and compared, and the one in force here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from kinkd.app import protocol
from kinkd.cli.tables import duration, table
from kinkd.errors import KinkdError

DIFFERENT: Final = 1  # as diff(1) has it
TROUBLE: Final = 2
_TELLING: Final = ("client", "addresses", "networks", "prefixes", "suites")
_BASE: Final = "cn=kinkd,dc=example,dc=test"
_ROWS: Final = 12  # of one kind of change; --all shows all of them

Result = dict[str, object]
Ask = Callable[[str, Result], Result]


def add_commands(parser: argparse.ArgumentParser, shared: argparse.ArgumentParser) -> None:
    """The subcommands and their arguments."""
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[shared])

    command(
        "check", "read a policy document and run its own tests; exit status 2: it is not good"
    ).add_argument("file", metavar="FILE")
    diff = command(
        "diff", "what changes from one document to another; exit status 1: something does"
    )
    diff.add_argument("old", metavar="OLD")
    diff.add_argument("new", metavar="NEW")
    diff.add_argument("--all", action="store_true", help="every row, and not the widest ones")
    command("show", "the policy that is in force on this host")
    command("audit", "what enforcement would have dropped: of rules and hosts in audit")
    export = command("export", "a policy document as LDIF, for the realm's directory")
    export.add_argument("file", metavar="FILE")
    export.add_argument(
        "--base", default=_BASE, metavar="DN", help="of the policy's own entry (%(default)s)"
    )
    command("import", "LDIF as a policy document").add_argument("file", metavar="LDIF")


def run(arguments: argparse.Namespace, ask: Ask, *, as_json: bool) -> int:
    """Carry a subcommand out and print what it found; the exit status."""
    return _RUN[arguments.subcommand](arguments, ask, as_json)


def _say(result: Result, show: Callable[[Result], str], as_json: bool) -> None:
    if as_json:
        print(json.dumps({"version": protocol.VERSION, **result}, indent=2))
    else:
        print(show(result))


def _trouble(error: KinkdError) -> int:
    import sys

    print(f"kinkctl: {error}", file=sys.stderr)
    return TROUBLE


def _check(arguments: argparse.Namespace, _: Ask, as_json: bool) -> int:
    from kinkd.app import documents

    try:
        found = documents.check(arguments.file)
    except KinkdError as error:
        return _trouble(error)
    _say({"policy": found}, lambda _: _checked(found), as_json)
    return 0


def _checked(found: Mapping[str, object]) -> str:
    counts = ("hosts", "networks", "groups", "profiles", "rules")
    lines = [
        f"{found['file']}: good, version {found['version']}, realm {found['realm']}",
        ", ".join(f"{found[name]} {name}" for name in counts),
        f"{found['tests']} tests passed" if found["tests"] else "no tests; write some: [[tests]]",
    ]
    warnings = found["warnings"] if isinstance(found["warnings"], list) else []
    return "\n".join([*lines, *(f"warning: {each}" for each in warnings)])


def _diff(arguments: argparse.Namespace, _: Ask, as_json: bool) -> int:
    from kinkd.app import documents

    try:
        most = None if as_json or arguments.all else _ROWS
        found = documents.diff(arguments.old, arguments.new, most)
    except KinkdError as error:
        return _trouble(error)
    _say(found, lambda found: "\n".join(_differences(found)), as_json)
    return DIFFERENT if found["differs"] else 0


def _differences(found: Result) -> Iterator[str]:
    old, new = mapping(found, "old"), mapping(found, "new")
    yield f"policy version {old['version']} -> {new['version']}"
    if isinstance(realm := found["realm"], list):
        yield f"realm {realm[0]} -> {realm[1]}"
    for kind in ("hosts", "networks", "profiles"):
        yield from _things(kind.removesuffix("s"), mapping(found, kind))
    servers = mapping(found, "servers")
    for how in ("added", "removed"):
        for each in rows_of(servers, how):
            yield f"server {how}: {each['service']} at {each['address']}, reached in clear"
    for change in rows_of(found, "traffic"):
        yield ""
        yield from _change(change)
    if not found["differs"]:
        yield "nothing changes"


def _things(kind: str, found: Mapping[str, object]) -> Iterator[str]:
    for how in ("added", "removed"):
        rows = rows_of(found, how)
        for row in rows[:_ROWS]:
            told = [str(row[key]) for key in _TELLING if row.get(key)]
            yield f"{kind} {how}: {', '.join([str(row['name']), *told])}"
        if rows[_ROWS:]:
            yield f"{kind} {how}: {len(rows) - _ROWS:,} more (--json has all)"
    rows = rows_of(found, "changed")
    for row in rows[:_ROWS]:
        yield (
            f"{kind} {row['name']}: {row['what']} {row['before'] or 'none'} ->"
            f" {row['after'] or 'none'}"
        )
    if rows[_ROWS:]:
        yield f"{kind}s changed otherwise: {len(rows) - _ROWS:,} more (--json has all)"


def _change(change: Result) -> Iterator[str]:
    within = {"before": ", of one party before", "after": ", of one party now"}
    before, after = mapping(change, "before"), mapping(change, "after")
    short = [_verdict(side, full=_verdict(before) == _verdict(after)) for side in (before, after)]
    yield f"{short[0]} -> {short[1]}{within.get(str(change['within']), '')}"
    for name, side in (("was", before), ("is", after)):
        rule = side.get("rule")
        why = "no rule" if rule is None else f'rule "{rule}" ({side["place"]})'
        yield f"  {name:3} by {why}"
    rows = [
        {
            "from": mapping(each, "from")["words"],
            "": "<->" if each["both_ways"] else "->",
            "to": mapping(each, "to")["words"],
            "traffic": _traffic(each),
        }
        for each in rows_of(change, "between")
    ]
    for line in table(rows).splitlines():
        yield f"    {line}"
    if change["left_out"]:
        yield f"    and {change['left_out']:,} rows more (--all)"


def _verdict(side: Mapping[str, object], *, full: bool = True) -> str:
    said = str(side["action"]) + (" (audit)" if side["audit"] else "")
    if full and "profile" in side:
        udp = ", in UDP" if side["udp"] else ""
        said += f" (profile {side['profile']}, {side['mode']}{udp})"
    return said


def _traffic(row: Mapping[str, object]) -> str:
    but = row["but"]
    others = f" but {', '.join(map(str, but))}" if isinstance(but, list) and but else ""
    return f"{row['traffic']}{others}"


def _show(_: argparse.Namespace, ask: Ask, as_json: bool) -> int:
    _say(ask("policy", {}), _shown, as_json)
    return 0


def _shown(result: Result) -> str:
    lines = [f"version      {result['version']}"]
    if "source" in result:
        lines.append(f"source       {result['source']}")
    if "age_seconds" in result:
        lines.append(f"in force     {duration(result['age_seconds'])}")
    if result.get("fault"):
        lines.append(f"fault        {result['fault']}; what was in force before still is")
    if result.get("suspended_seconds"):
        lines.append(f"SUSPENDED    enforced again in {duration(result['suspended_seconds'])}")
    for key, text in (("in_clear", "in clear"), ("secured", "secured")):
        if isinstance(names := result.get(key), list) and names:
            lines.append(f"{text:12} {', '.join(map(str, names))}")
    return "\n".join(lines)


def _audit(_: argparse.Namespace, ask: Ask, as_json: bool) -> int:
    _say(ask("audit", {}), lambda found: "\n".join(_audited(found)), as_json)
    return 0


def _audited(found: Result) -> Iterator[str]:
    if found.get("fault"):
        yield f"what passes in clear cannot be seen: {found['fault']}; see conf/kinkd-audit.conf"
        return
    if not found["active"]:
        yield "nothing is in audit: write audit = true in a rule or a host of the policy"
        return
    rows = [
        {
            "would drop": f"{row['packets']}{_if_requested(row)}",
            "way": row["direction"],
            "with": row["party"],
            "traffic": row["traffic"],
            "rule": f"{row['rule']} ({row['place']})",
            "for example": row["sample"],
        }
        for row in rows_of(found, "rows")
    ]
    yield table(rows) if rows else "enforcement would have dropped nothing that was seen"
    yield f"a sample: {found['looked_at']} packets looked at, {found['missed']} missed"
    if found["others"]:
        yield f"and {found['others']} packets that have no row of their own"


def _if_requested(row: Result) -> str:
    return " once keyed" if row["action"] == "request" else ""


def _convert(arguments: argparse.Namespace, _: Ask, as_json: bool) -> int:
    import sys

    from kinkd.cli import policy_ldif

    base = getattr(arguments, "base", "")
    return policy_ldif.run(arguments.subcommand, arguments.file, base, sys.stdout)


def rows_of(result: Mapping[str, object], name: str) -> list[Result]:
    """The rows of an answer under a name; none where it has no such."""
    rows = result.get(name, [])
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def mapping(result: Mapping[str, object], name: str) -> Result:
    """What an answer has under a name; empty where it has no such."""
    found = result.get(name)
    return found if isinstance(found, dict) else {}


_RUN: Final[Mapping[str, Callable[[argparse.Namespace, Ask, bool], int]]] = {
    "check": _check,
    "diff": _diff,
    "show": _show,
    "audit": _audit,
    "export": _convert,
    "import": _convert,
}
