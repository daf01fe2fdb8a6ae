"""``kinkctl forget`` and ``kinkctl break-glass``: how strictly the policy is enforced here."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from kinkd.app import protocol
from kinkd.cli.tables import duration

Result = dict[str, object]
Ask = Callable[[str, Result], Result]


def add_forget(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    parser.add_argument("peer", help="name in the policy")


def add_break_glass(parser: argparse.ArgumentParser) -> None:
    """Its arguments."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("time", nargs="?", metavar="TIME", help='for how long: "30m", "2h"')
    which.add_argument("--end", action="store_true", help="enforce again at once")
    parser.add_argument("--reason", default="", help="why; it is logged")


def forget(arguments: argparse.Namespace, ask: Ask, *, as_json: bool) -> int:
    """Have a host be as if there had never been SAs with it; the exit status."""
    result = ask("forget", {"peer": arguments.peer})
    said = (
        f"{result['peer']} is forgotten: what the policy requests of it may be in clear again"
        if result["known"]
        else f"nothing was known of {result['peer']}: its SAs, if any, are deleted"
    )
    _print(result, said, as_json)
    return 0


def break_glass(arguments: argparse.Namespace, ask: Ask, *, as_json: bool) -> int:
    """Enforce nothing for a time, or enforce again; the exit status."""
    which: Result = {"seconds": 0} if arguments.end else {"time": arguments.time}
    result = ask("break-glass", {**which, "reason": arguments.reason})
    seconds = result["suspended_seconds"]
    said = (
        f"NOTHING is enforced on this host for {duration(seconds)}: SAs are used where there are"
        " some, all else passes in clear. kinkctl break-glass --end enforces again"
        if seconds
        else "the policy is enforced again"
    )
    _print(result, said, as_json)
    return 0


def _print(result: Result, said: str, as_json: bool) -> None:
    print(json.dumps({"version": protocol.VERSION, **result}, indent=2) if as_json else said)
