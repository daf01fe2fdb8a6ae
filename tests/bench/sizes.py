"""The octets of kinkd's CREATE and REPLY, beside racoon2's of the same names and suite.

Two messages, AES-CBC-128 with HMAC-SHA1, etype 18. Figures, no verdict.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path

from kinkd.exchange.core import Start
from kinkd.exchange.effects import FetchTicket, Send
from kinkd.exchange.effects import Path as Wire
from kinkd.exchange.endpoint import Endpoint
from kinkd.kerberos.accepting import GssAcceptor
from kinkd.kerberos.gss import GssTicketSource
from kinkd.kernel.memory import MemoryKernel
from kinkd.keying.algorithms import SUITES
from kinkd.model import Host, Lifetime, Principal, Profile
from kinkd.wire import kink
from tests.support import recordings
from tests.support.pair import OWNERSHIP, policy_of
from tests.support.realm import Realm

RECORDING = "esp2way"
REALM = "KINK.TEST"  # the recording's, and its hosts': as long, so that tickets compare
PROFILE = Profile("racoon2", (SUITES["aes128-sha1"],), Lifetime(3600))
NAMES = ("CREATE", "REPLY")


def parts(datagram: bytes) -> dict[str, int]:
    """Octets of the parts of a message; together they are all of it (RFC 4430 §4)."""
    received = kink.decode(datagram)
    sizes = {"whole": len(datagram)}
    for payload in received.message.payloads:
        match payload:
            case kink.ApReq():
                sizes["AP-REQ"] = len(payload.ap_req)
            case kink.ApRep():
                sizes["AP-REP"] = len(payload.ap_rep)
            case kink.Encrypt():
                sizes["KINK_ENCRYPT"] = len(payload.cipher)
    sizes["Cksum"] = len(received.checksum)
    sizes["headers, padding"] = len(datagram) - sum(sizes.values()) + sizes["whole"]
    return sizes


def theirs() -> list[bytes]:
    """The first CREATE of racoon2's and its REPLY."""
    return [datagram.octets for datagram in recordings.datagrams(RECORDING)[:2]]


def ours() -> list[bytes]:
    """The same of kinkd's, with tickets of a real KDC."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with Realm(directory / "realm", name=REALM) as realm:
            os.environ.update(realm.environment)
            hosts = []
            for host, address in (("alice", "10.99.0.1"), ("bob", "10.99.0.2")):
                keytab = directory / host
                principal = Principal.parse(realm.add(f"kink/{host}.kink.test", keytab=keytab))
                hosts.append(Host(host, principal, principal, (IPv4Address(address),)))
            return _exchange(directory, *hosts)


def _exchange(directory: Path, alice: Host, bob: Host) -> list[bytes]:
    suites = frozenset(SUITES)
    start = Start(1, 0, int, {4: suites, 6: suites}, OWNERSHIP, secrets.token_bytes)
    policies = policy_of(alice, (bob,), PROFILE), policy_of(bob, (alice,), PROFILE)
    endpoints = [
        Endpoint(
            policy,
            MemoryKernel(),
            GssAcceptor(str(directory / policy.me.name), str(directory / "rcache"), 0.0),
            start,
        )
        for policy in policies
    ]
    now = time.monotonic()
    for endpoint in endpoints:
        endpoint.set_posix(time.time() - now)
    initiator, responder = endpoints
    initiator.initiate(policies[0].protections[0], now, lambda *_: None)
    source = GssTicketSource(str(directory / "alice"), alice.client)
    fetched = [each.server for each in initiator.commands() if isinstance(each, FetchTicket)]
    for server in fetched:
        initiator.ticket_ready(server, source.fetch(server), now)
    (create,) = _sent(initiator.commands())
    responder.receive(create, Wire(bob.addresses[0], alice.addresses[0], 910), now)
    (reply,) = _sent(responder.commands())
    return [create, reply]


def _sent(commands: Iterable[object]) -> list[bytes]:
    return [command.datagram for command in commands if isinstance(command, Send)]


def main() -> int:
    print(f"octets of UDP payload; {PROFILE.suites[0].name}, etype 18, 2 messages\n")
    print(f"{'':<20}{'kinkd':>8}{'racoon2':>10}")
    for name, mine, other in zip(NAMES, ours(), theirs(), strict=True):
        sizes, others = parts(mine), parts(other)
        for part, octets in sizes.items():
            label = name if part == "whole" else f"  {part}"
            print(f"{label:<20}{octets:>8}{others.get(part, 0):>10}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
