"""``kinkctl explain``: the document's side put together with what this host's daemon has seen.

It runs in kinkctl: what takes time, reading the document, keeps no daemon from its work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from kinkd.app import addresses, documents
from kinkd.app import config as configuration
from kinkd.app.documents import Facts
from kinkd.document import Document
from kinkd.errors import KinkdError, LocalError
from kinkd.kerberos import keytab
from kinkd.policy import explain, reader
from kinkd.policy.explain import Situation, Way
from kinkd.policy.realm import RealmPolicy
from kinkd.policy.traffic import ALL_PORTS

Ask = Callable[[str, Facts], Facts]
"""Asks the daemon a command with arguments. Raises LocalError."""


@dataclass(frozen=True, slots=True)
class Words:
    """What was typed: two ends, and traffic that the first begins with the second."""

    source: str
    destination: str
    traffic: str = "any"


def by_document(path: str, asked: Words) -> Facts:
    """What the document in a file says. Raises DocumentError, LocalError."""
    policy = documents.read(path)
    return _put_together(policy, _situation(policy, asked), {}, ())


def by_host(config_path: str, asked: Words, ask: Ask) -> Facts:
    """What this host's document says, and what its daemon has seen.

    Raises:
        DocumentError: configuration or policy cannot be read, or are not good.
        LocalError: nobody is meant by an end, or nothing by the traffic.
    """
    config = configuration.load(config_path)
    if config.directory is None:
        policy = documents.read(str(config.policy_file))
    else:  # what is in force is in the daemon
        text = str(ask("policy", {"document": True})["document"])
        policy = reader.read(Document.parse("policy in force", text.encode()))
    found = _situation(policy, asked)
    try:
        seen = {**_suspension(ask), **ask("explain", _question(found))}
    except LocalError as error:
        return {**_put_together(policy, found, {}, ()), "daemon": str(error)}
    me = policy.hosts.get(str(seen["host"]))
    here = addresses.local_addresses()
    missing = tuple(str(each) for each in (me.addresses if me else ()) if each not in here)
    if me is not None and config.keytab is not None:
        seen["keytab"] = _keytab(config.keytab, {str(me.service), str(me.client)})
    return _put_together(policy, found, seen, missing)


def _situation(policy: RealmPolicy, asked: Words) -> Situation:
    source, destination = (explain.find(policy, w) for w in (asked.source, asked.destination))
    return explain.situation(policy, source, destination, explain.parse_traffic(asked.traffic))


def _question(found: Situation) -> Facts:
    """What the daemon is asked: one packet of those that are meant."""
    if found.addresses is None:
        return {}
    traffic, (source, destination) = found.traffic, found.addresses
    ends = ((found.source, source), (found.destination, destination))
    named = [{"name": end.name, "address": str(address)} for end, address in ends]
    return {
        "source": named[0],
        "destination": named[1],
        "protocol": traffic.protocol(source.version),
        "source_port": 0 if traffic.source_ports == ALL_PORTS else traffic.source_ports[-1],
        "destination_port": 0 if traffic.ports == ALL_PORTS else traffic.ports[0],
    }


def _suspension(ask: Ask) -> Facts:
    try:
        return {"suspended_seconds": ask("policy", {}).get("suspended_seconds", 0)}
    except LocalError:  # a daemon that cannot tell; whether there is one is asked again
        return {}


def _keytab(path: Path, principals: set[str]) -> Facts:
    try:
        entries = keytab.read_keytab(path.read_bytes())
    except OSError as error:
        return {"file": str(path), "fault": f"cannot be read: {error.strerror}"}
    except KinkdError as error:
        return {"file": str(path), "fault": str(error)}
    keys = sorted(
        {
            (str(entry.principal), entry.kvno, entry.etype)
            for entry in entries
            if str(entry.principal) in principals
        }
    )
    return {
        "file": str(path),
        "keys": [{"principal": name, "kvno": kvno, "etype": etype} for name, kvno, etype in keys],
    }


def _put_together(
    policy: RealmPolicy, found: Situation, said: Mapping[str, object], missing: tuple[str, ...]
) -> Facts:
    seen = explain.Seen.read(said, missing) if said else None
    cause = explain.cause(found, seen)
    answer: Facts = {
        "cause": cause.kind.value,
        "text": str(cause),
        "source": _end(policy, found, 0),
        "destination": _end(policy, found, 1),
        "traffic": str(found.traffic),
        "policy_version": policy.version,
        "asked": [_way(way) for way in found.asked],
        "answers": [_way(way) for way in found.answers],
    }
    if said:
        answer["seen"] = {**said, "missing_addresses": list(missing)}
    return answer


def _end(policy: RealmPolicy, found: Situation, number: int) -> Facts:
    end = (found.source, found.destination)[number]
    address = found.addresses[number] if found.addresses is not None else None
    said: Facts = {"name": end.name, "address": address and str(address), "behind": end.behind}
    if (host := policy.hosts.get(end.name)) is None:
        return said
    one, other = found.source.name, found.destination.name
    pair = (one, other) if number == 0 else (other, one)
    return {
        **said,
        "service": str(host.service),
        "client": str(host.client),
        "addresses": [str(each) for each in host.addresses],
        "networks": [str(each) for each in host.networks],
        "disabled": host.disabled,
        "audit": host.audit,
        "may_initiate": one != other and policy.may_initiate(*pair),
    }


def _way(way: Way) -> Facts:
    said: Facts = {"traffic": str(way.traffic), "action": way.action.value, "audit": way.audit}
    if way.rule:
        said |= {"rule": way.rule, "place": way.place}
    if way.wanted is not None:
        said["written"] = way.wanted.value
    if way.protects:
        said |= {"profile": way.profile, "mode": way.mode.name.lower()}
    return said
