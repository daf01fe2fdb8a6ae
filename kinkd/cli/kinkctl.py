"""kinkctl: ask a running kinkd, and read captures. Tables for people, ``--json`` for machines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kinkd import __version__
from kinkd.app import protocol
from kinkd.cli import enforcement, explain, policy
from kinkd.cli.tables import duration, octets, table
from kinkd.errors import KinkdError

_CONFIG = "/etc/kinkd/kinkd.toml"
_PATIENCE = 10.0  # seconds for an answer from a daemon that has it at hand
_EXCHANGE_PATIENCE = 40.0  # seconds for one that waits for a peer: a full retransmission cycle

Result = dict[str, object]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 done, 1 failed, 2 bad usage.

    ``policy diff`` has that of diff(1): 1, where something changes; 2 is of a document that is not
    good, of ``policy check``, too.
    """
    arguments = _parser().parse_args(argv)
    try:
        return _RUN.get(arguments.command, _ask)(arguments)
    except KinkdError as error:
        print(f"kinkctl: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kinkctl", description="Ask and steer the kinkd of this host."
    )
    parser.add_argument(
        "--socket",
        default=protocol.DEFAULT_SOCKET,
        help="control socket, as in kinkd.toml; before the command (default: %(default)s)",
    )
    parser.add_argument("--version", action="version", version=f"kinkctl {__version__}")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="machine-readable output")
    parser.add_argument("--json", action="store_true", dest="json_first", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[shared])

    command("status", "the daemon at a glance: host, peers, SAs, counters, last negotiations")
    command("sas", "every live SA pair")
    command("peers", "every host that the policy protects traffic with")
    command("initiate", "create SAs with a peer now").add_argument(
        "peer", help="name in the policy"
    )
    command("terminate", "delete all SAs with a peer").add_argument(
        "peer", help="name in the policy"
    )
    command(
        "reload", "read configuration and policy again; SAs that they still want stay"
    ).add_argument(
        "--accept-older",
        action="store_true",
        help="a policy of an earlier version than the one in force, too",
    )
    enforcement.add_forget(
        command("forget", "have traffic with a host be merely requested to be protected again")
    )
    enforcement.add_break_glass(
        command("break-glass", "enforce nothing on this host for a while; it is logged")
    )
    explain.add_arguments(command("explain", "why two hosts do, or do not, talk"), _CONFIG)
    policy.add_commands(command("policy", "policy documents, and the one in force"), shared)
    command("shutdown", "stop the daemon; SAs and policies stay in the kernel").add_argument(
        "--delete", action="store_true", help="first delete all SAs with every peer, and policies"
    )
    decode = command("decode", "read KINK out of a capture file, decrypted with a keytab")
    decode.add_argument("capture", type=Path, metavar="PCAP")
    decode.add_argument("--keytab", type=Path, help="keys of the hosts in the capture")
    decode.add_argument("--show-keys", action="store_true", help="print key material too")
    return parser


def _decode(arguments: argparse.Namespace) -> int:
    from kinkd.cli import decode

    return decode.run(
        arguments.capture,
        arguments.keytab,
        show_keys=arguments.show_keys,
        as_json=_is_json(arguments),
        out=sys.stdout,
    )


def _is_json(arguments: argparse.Namespace) -> bool:
    return bool(arguments.json or arguments.json_first)


def _explain(arguments: argparse.Namespace) -> int:
    return explain.run(arguments, _asking(arguments), as_json=_is_json(arguments))


def _forget(arguments: argparse.Namespace) -> int:
    return enforcement.forget(arguments, _asking(arguments), as_json=_is_json(arguments))


def _break_glass(arguments: argparse.Namespace) -> int:
    return enforcement.break_glass(arguments, _asking(arguments), as_json=_is_json(arguments))


def _policy(arguments: argparse.Namespace) -> int:
    return policy.run(arguments, _asking(arguments), as_json=_is_json(arguments))


def _asking(arguments: argparse.Namespace) -> Callable[[str, Result], Result]:
    """What asks the daemon a command with arguments; it raises LocalError."""

    def ask(command: str, details: Result) -> Result:
        return protocol.ask(arguments.socket, command, _PATIENCE, **details)

    return ask


def _ask(arguments: argparse.Namespace) -> int:
    command = arguments.command
    details: Result = {}
    if command in ("initiate", "terminate"):
        details["peer"] = arguments.peer
    if command == "shutdown":
        details["delete"] = arguments.delete
    if command == "reload" and arguments.accept_older:
        details["accept_older"] = True
    patience = _EXCHANGE_PATIENCE if details or command == "reload" else _PATIENCE
    result = protocol.ask(arguments.socket, command, patience, **details)
    if _is_json(arguments):
        print(json.dumps({"version": protocol.VERSION, **result}, indent=2))
    else:
        print(_SHOW[command](result))
    return 0 if _succeeded(command, result) else 1


def _succeeded(command: str, result: Result) -> bool:
    return command != "initiate" or all(row["ok"] for row in _rows(result, "pairs"))


def _rows(result: Result, name: str) -> list[Result]:
    rows = result.get(name, [])
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _warned(result: Result) -> list[str]:
    """What is wrong, first of all."""
    lines = []
    if result.get("suspended_seconds"):
        left = duration(result["suspended_seconds"])
        lines.append(f"SUSPENDED    nothing is enforced for {left}; kinkctl break-glass --end")
    if result.get("policy_fault"):
        lines.append(f"POLICY       {result['policy_fault']}; what was in force before still is")
    return lines


def _show_status(result: Result) -> str:
    lines = [
        *_warned(result),
        f"host         {result['host']} ({result['principal']})",
        f"up           {duration(result['uptime_seconds'])}, EPOCH {result['epoch']}",
        f"policy       version {result['policy_version']} of {result.get('policy_source', '?')},"
        f" {result['peers']} protected peers",
        f"SA pairs     {result['sas']}, {result['negotiating']} commands under way",
    ]
    counters = result.get("counters")
    if isinstance(counters, dict) and counters:
        lines += ["", table([{"counter": k, "value": v} for k, v in sorted(counters.items())])]
    negotiations = [
        {
            "peer": row.get("peer"),
            "role": row.get("role", "initiator"),
            "outcome": row.get("reason", row.get("suite")),
            "ms": row.get("ms_total", ""),
        }
        for row in _rows(result, "last_negotiations")
    ]
    if negotiations:
        lines += ["", table(negotiations)]
    return "\n".join(lines)


def _show_sas(result: Result) -> str:
    rows = [
        {
            "peer": row["principal"],
            "local": row["local"],
            "remote": row["remote"],
            **_inside(row),
            "spi in": row["spi_in"],
            "spi out": row["spi_out"],
            "suite": row["suite"],
            "etype": row["etype"],
            "role": row["role"],
            "life": f"{duration(row['age_seconds'])} of {duration(row['lifetime_seconds'])}",
            "in": octets(row["octets_in"]),
            "out": octets(row["octets_out"]),
        }
        for row in _rows(result, "sas")
    ]
    return table(rows) if rows else "no SAs"


def _inside(row: Result) -> Result:
    """What a tunnel carries; in transport mode the addresses say it."""
    if row.get("mode", "transport") == "transport":
        return {}
    return {"traffic": f"{row['source']} - {row['destination']}"}


def _show_peers(result: Result) -> str:
    rows = [
        {
            "peer": row["peer"],
            "principal": row["principal"],
            "addresses": ", ".join(map(str, addresses))
            if isinstance(addresses := row["addresses"], list)
            else "",
            "rule": row["rule"],
            "profile": row["profile"],
            "SA pairs": row["sas"],
            "ticket": _ticket(row),
        }
        for row in _rows(result, "peers")
    ]
    return table(rows) if rows else "the policy protects traffic with nobody"


def _ticket(row: Result) -> str:
    """What a peer is asked with, or why with nothing."""
    ticket, fault = row.get("ticket"), row.get("ticket_fault")
    if not isinstance(ticket, dict):
        return str(fault or "none yet")
    kind = "user-to-user, " if row.get("user_to_user") else ""
    left = ticket["seconds_left"]
    ends = f"{duration(left)} left" if left > 0 else "ended"
    return f"{kind}etype {ticket['etype']}, {ends}{f'; {fault}' if fault else ''}"


def _show_initiate(result: Result) -> str:
    return "\n".join(
        f"{row['local']} - {row['remote']}{_through(row)}: "
        + ("established" if row["ok"] else f"failed: {row['reason']}")
        for row in _rows(result, "pairs")
    )


def _through(row: Result) -> str:
    inside = _inside(row)
    return f" ({inside['traffic']})" if inside else ""


def _show_terminate(result: Result) -> str:
    return f"{result['sas']} SA pairs with {result['peer']} deleted"


def _show_reload(result: Result) -> str:
    return (
        f"policy version {result['policy_version']} is in force; "
        f"{result['entries_changed']} SPD entries changed, {result['sas_deleted']} SA pairs deleted"
    )


def _show_shutdown(result: Result) -> str:
    return f"kinkd stops; {result['deleted']} SA pairs deleted"


_SHOW: dict[str, Callable[[Result], str]] = {
    "status": _show_status,
    "sas": _show_sas,
    "peers": _show_peers,
    "initiate": _show_initiate,
    "terminate": _show_terminate,
    "reload": _show_reload,
    "shutdown": _show_shutdown,
}

_RUN: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "decode": _decode,
    "explain": _explain,
    "policy": _policy,
    "forget": _forget,
    "break-glass": _break_glass,
}


if __name__ == "__main__":
    sys.exit(main())
