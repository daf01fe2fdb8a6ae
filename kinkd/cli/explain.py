"""``kinkctl explain``: why two hosts do, or do not, talk."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping

from kinkd.app import protocol
from kinkd.cli.policy import mapping, rows_of
from kinkd.cli.tables import duration, octets, table

Result = dict[str, object]
Ask = Callable[[str, Result], Result]


def add_arguments(parser: argparse.ArgumentParser, config: str) -> None:
    """The arguments of the command; ``config``: the usual path of the configuration."""
    parser.add_argument("source", metavar="A", help="host, domain name or address; it asks")
    parser.add_argument("destination", metavar="B", help="host, domain name or address; it answers")
    parser.add_argument(
        "traffic", nargs="?", default="any", metavar="TRAFFIC", help="like tcp/5432 (default: any)"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--policy", metavar="FILE", help="go by this document alone, ask no daemon")
    where.add_argument(
        "--config", default=config, help="kinkd.toml, which names the policy (default: %(default)s)"
    )


def run(arguments: argparse.Namespace, ask: Ask, *, as_json: bool) -> int:
    """Print the most likely cause, then what it was concluded from."""
    from kinkd.app import question

    asked = question.Words(arguments.source, arguments.destination, arguments.traffic)
    if arguments.policy is not None:
        found = question.by_document(arguments.policy, asked)
    else:
        found = question.by_host(arguments.config, asked, ask)
    if as_json:
        print(json.dumps({"version": protocol.VERSION, **found}, indent=2))
    else:
        print("\n".join(_lines(found)))
    return 0


def _lines(found: Result) -> Iterator[str]:
    text = str(found["text"])
    yield text[:1].upper() + text[1:]
    if "daemon" in found:
        yield f"Only the document was asked: {found['daemon']}."
    yield ""
    yield from _document(found)
    seen = mapping(found, "seen")
    if seen.get("peer"):
        yield ""
        yield from _seen(seen)
    elif seen:
        yield ""
        yield f"seen         nothing: this host is {seen['host']}, ask on one of the two"


def _document(found: Result) -> Iterator[str]:
    yield f"policy       version {found['policy_version']}"
    ends = [mapping(found, key) for key in ("source", "destination")]
    for title, end in zip(("asks", "answers"), ends, strict=True):
        yield f"{title:12} {_end(end)}"
    for key, (one, other) in (("asked", ends), ("answers", ends[::-1])):
        for way in rows_of(found, key):
            yield f"{one['name']} -> {other['name']}, {way['traffic']}: {_way(way)}"
    makers = [str(end["name"]) for end in ends if end.get("may_initiate")]
    if makers:
        yield f"SAs          made when {' or '.join(makers)} sends first"


def _end(end: Mapping[str, object]) -> str:
    words = [str(end["name"])]
    if end["address"]:
        words.append(f"{'behind it ' * bool(end['behind'])}{end['address']}")
    if "client" not in end:
        return ", ".join([*words, "no kinkd"])
    words.append(f"bound to {end['client']}")
    if end["client"] != end["service"]:
        words.append(f"asked for as {end['service']}")
    words += [word for word in ("disabled", "audit") if end[word]]
    return ", ".join(words)


def _way(way: Mapping[str, object]) -> str:
    said = str(way["action"]) + (" (audit: nothing is dropped)" if way["audit"] else "")
    if "written" in way:
        said += f" in place of {way['written']}"
    if "profile" in way:
        said += f", profile {way['profile']}, {way['mode']} mode"
    if "rule" not in way:
        return f"{said}, no rule covers it"
    return f'{said}, by rule "{way["rule"]}" ({way["place"]})'


def _seen(seen: Result) -> Iterator[str]:
    yield f"seen by      {seen['host']}, policy version {seen['policy_version']} in force"
    yield f"ticket       {_ticket(seen)}"
    for line in _keytab(mapping(seen, "keytab")):
        yield f"keytab       {line}"
    yield f"peer         {_peer(seen)}"
    yield f"last         {_last(mapping(seen, 'last_negotiation'))}"
    waits = "; packets wait for one" if seen["kernel_waits_for_sa"] else ""
    rows = rows_of(seen, "sas")
    yield f"SAs          {len(rows) or 'none'}{waits}"
    if rows:
        yield from ("    " + line for line in table([_sa(row) for row in rows]).splitlines())
    for title, key in (("kernel out", "spd_out"), ("kernel in", "spd_in")):
        yield f"{title:12} {_entry(mapping(seen, key))}"
    missing = seen.get("missing_addresses")
    if isinstance(missing, list) and missing:
        yield f"missing      {', '.join(map(str, missing))}: on no interface of this host"
    for title, key in (("dropped", "drops"), ("xfrm_stat", "xfrm_errors")):
        words = ", ".join(f"{name} {count}" for name, count in mapping(seen, key).items())
        yield f"{title:12} {words or 'nothing'}{' (all peers)' * bool(words)}"


def _peer(seen: Result) -> str:
    round_trip = seen["round_trip_ms"]
    words = ["not heard yet" if round_trip is None else f"round trip {round_trip} ms"]
    if offset := float(str(seen["clock_offset_seconds"])):
        words.append(f"its clock {abs(offset)} s {'ahead' if offset > 0 else 'behind'}")
    if seen["epoch"] is not None:
        words.append(f"EPOCH {seen['epoch']}")
    return ", ".join(words)


def _ticket(seen: Result) -> str:
    ticket, fault = mapping(seen, "ticket"), seen["ticket_fault"]
    if not ticket:
        return f"none: {fault}" if fault else "none yet"
    kind = "user-to-user, " if seen["user_to_user"] else ""
    kvno = f", kvno {ticket['kvno']} there" if ticket.get("kvno") is not None else ""
    left = duration(ticket["seconds_left"])
    text = f"{kind}for {ticket['server']}, etype {ticket['etype']}{kvno}, {left} left"
    return f"{text}; no newer one: {fault}" if fault else text


def _keytab(found: Result) -> Iterator[str]:
    if "fault" in found:
        yield f"{found['file']}: {found['fault']}"
    for key in rows_of(found, "keys"):
        yield f"{key['principal']}, kvno {key['kvno']}, etype {key['etype']}"


def _last(last: Result) -> str:
    if not last:
        return "no negotiation that is remembered"
    if last.get("event") == "create-failed":
        return f"failed: {last.get('reason')}"
    return f"SAs made as {last.get('role')}, {last.get('suite')}"


def _sa(row: Result) -> Result:
    return {
        "spi in": row["spi_in"],
        "spi out": row["spi_out"],
        "suite": row["suite"],
        "age": duration(row["age_seconds"]),
        "in": f"{row['packets_in']} packets, {octets(row['octets_in'])}",
        "out": f"{row['packets_out']} packets, {octets(row['octets_out'])}",
        "kernel": "has it" if row["installed"] else "LOST",
    }


def _entry(entry: Result) -> str:
    if not entry:
        return "no SPD entry decides: clear"
    return f"{entry['entry']}{'' if entry['ours'] else ' (NOT kinkd)'}"
