"""The stages of one 2-message CREATE with real tickets, in microseconds, both sides.

The kernel is the in-memory one here; what its messages cost to make is measured, what the
kernel takes to carry them out is measured by ``kernel.py``.
"""

from __future__ import annotations

import os
import secrets
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from statistics import median
from typing import TypeVar

from gssapi.raw import MechType, accept_sec_context, acquire_cred_from

from kinkd.exchange import installing, quickmode
from kinkd.exchange.core import Start
from kinkd.exchange.effects import Path as Wire
from kinkd.exchange.endpoint import Endpoint
from kinkd.exchange.installing import Seeds
from kinkd.exchange.verified import seal
from kinkd.kerberos import messages
from kinkd.kerberos.accepting import GssAcceptor
from kinkd.kerberos.gss import GssTicket, GssTicketSource
from kinkd.kernel import xfrm
from kinkd.kernel.memory import MemoryKernel
from kinkd.kernel.port import Sa, SaId
from kinkd.keying.algorithms import SUITES
from kinkd.keying.negotiate import Demands, check_answer, choose
from kinkd.model import Host, Lifetime, Principal, Secret, Selector
from kinkd.wire import grammar, kink
from kinkd.wire.numbers import KeyUsage, MessageType
from tests.support.pair import FAST, OWNERSHIP, offer, policy_of
from tests.support.realm import Realm

ROUNDS = 400
STRONGSWAN_RESPONDER_US = (360, 430)  # 5.9: CPU per SA pair without the kernel
BARE_ACCEPT_US = 46  # gss_accept_sec_context alone, on the quiet machine of those figures
_RESPONDER = ("responder, whole (in-memory kernel)", "datagram in, commands out")
_YARDSTICK = ("yardstick", "gss_accept_sec_context alone, in a tight loop")
T = TypeVar("T")


class Stages:
    """Times by side and stage, in the order they were first seen."""

    def __init__(self) -> None:
        self.times: dict[tuple[str, str], list[float]] = defaultdict(list)

    def run(self, side: str, stage: str, work: Callable[[], T]) -> T:
        begun = time.perf_counter()
        result = work()
        self.times[side, stage].append((time.perf_counter() - begun) * 1e6)
        return result

    def print(self) -> None:
        for side in dict.fromkeys(side for side, _ in self.times):
            total = 0.0
            print(f"{side}")
            for (of, stage), times in self.times.items():
                if of == side:
                    total += median(times)
                    print(f"  {stage:<42}{median(times):8.1f} us")
            print(f"  {'sum':<42}{total:8.1f} us\n")


def one_create(
    stages: Stages, ticket: GssTicket, acceptor: GssAcceptor, alice: Host, bob: Host
) -> None:
    """Every stage once, by hand, each from what the one before gave."""
    a, b = "initiator", "responder"
    protection = policy_of(alice, (bob,)).protections[0]
    (transform,), lifetime = FAST.suites[0].transforms, FAST.lifetime
    nonce = secrets.token_bytes(32)
    ours, theirs = secrets.randbits(31) | 1 << 30, secrets.randbits(31) | 1 << 30
    inbound = SaId(bob.addresses[0], alice.addresses[0], ours)
    outbound = SaId(alice.addresses[0], bob.addresses[0], theirs)
    limits = installing.responder_limits(lifetime)

    def newsa(sa: SaId, material: Secret) -> bytearray:
        selector = Selector.between(sa.source, sa.destination)
        made = Sa(sa, protection.mode, protection.reqid, selector, transform, material, limits)
        return xfrm.install(made, 1)

    material = stages.run(
        a, "derive", lambda: installing.derive(ticket.key, ours, Seeds(nonce), transform)
    )
    stages.run(a, "kernel message: inbound", lambda: newsa(inbound, material))
    made = stages.run(a, "ticket: AP-REQ", ticket.authenticate)
    inner = stages.run(
        a,
        "encode ISAKMP",
        lambda: (quickmode.creation(offer(FAST.suites[0], ours), nonce),),
    )
    proof = kink.ApReq(1, made.ap_req)
    create = stages.run(
        a,
        "encode, encrypt, checksum: CREATE",
        lambda: seal(MessageType.CREATE, 1, proof, inner, ticket.key),
    )

    def decode(datagram: bytes) -> kink.Received:
        received = kink.decode(datagram)
        grammar.check(received.message)
        return received

    received = stages.run(b, "decode", lambda: decode(create))
    request = received.message.payloads[0]
    sealed = received.message.payloads[1]
    assert isinstance(request, kink.ApReq)
    assert isinstance(sealed, kink.Encrypt)
    opened = stages.run(b, "ticket: open", lambda: acceptor.open(request.ap_req))
    key = opened.key
    stages.run(
        b, "checksum", lambda: key.verify(KeyUsage.CHECKSUM, received.signed, received.checksum)
    )
    accepted = stages.run(b, "ticket: accept, AP-REP", lambda: acceptor.accept(opened))
    (isakmp,) = stages.run(
        b, "decrypt", lambda: kink.decode_inner(key.decrypt(KeyUsage.ENCRYPT, sealed.cipher))
    )
    assert isinstance(isakmp, kink.Isakmp)
    asked = stages.run(b, "decode ISAKMP", lambda: quickmode.read_creation(isakmp))
    choice = stages.run(
        b,
        "negotiate",
        lambda: choose(asked.offers, FAST.suites, Demands(protection.mode, lifetime)),
    )
    one = stages.run(
        b, "derive, both", lambda: installing.derive(key, theirs, Seeds(nonce), transform)
    )
    two = installing.derive(key, ours, Seeds(nonce), transform)
    stages.times[b, "derive, both"][-1] *= 2
    stages.run(
        b,
        "kernel messages: both, and the policy",
        lambda: (
            newsa(outbound, one),
            newsa(inbound, two),
            xfrm.update_policy(protection.outbound_entries[0], 1),
        ),
    )
    proof_b = kink.ApRep(1, accepted.ap_rep)
    answer = (
        quickmode.creation(
            quickmode.answer(choice.suite, choice.offer, choice.terms, [theirs]), None
        ),
    )
    reply = stages.run(
        b,
        "encode, encrypt, checksum: REPLY",
        lambda: seal(MessageType.REPLY, 1, proof_b, answer, key),
    )

    back = stages.run(a, "decode", lambda: decode(reply))
    proof_back, sealed_back = back.message.payloads
    assert isinstance(proof_back, kink.ApRep)
    assert isinstance(sealed_back, kink.Encrypt)
    stages.run(
        a, "checksum", lambda: ticket.key.verify(KeyUsage.CHECKSUM, back.signed, back.checksum)
    )
    stages.run(a, "AP-REP", lambda: messages.read_ap_rep(ticket.key, proof_back.ap_rep))
    (chosen,) = stages.run(
        a,
        "decrypt",
        lambda: kink.decode_inner(ticket.key.decrypt(KeyUsage.ENCRYPT, sealed_back.cipher)),
    )
    assert isinstance(chosen, kink.Isakmp)
    read = stages.run(a, "decode ISAKMP", lambda: quickmode.read_creation(chosen, reply=True))
    stages.run(a, "negotiate", lambda: check_answer(asked.offers, read.offers[0]))
    last = stages.run(
        a, "derive", lambda: installing.derive(ticket.key, theirs, Seeds(nonce), transform)
    )
    stages.run(a, "kernel message: outbound", lambda: newsa(outbound, last))


def whole(
    stages: Stages,
    ticket: GssTicket,
    acceptor: GssAcceptor,
    alice: Host,
    bob: Host,
    keytab: str,
) -> None:
    """The responder's core from datagram to datagram, as it runs in the daemon."""
    names = frozenset(SUITES)
    start = Start(1, 0, int, {4: names, 6: names}, OWNERSHIP, secrets.token_bytes)
    creds = acquire_cred_from(
        {b"keytab": keytab.encode(), b"rcache": f"file2:{keytab}.rcache".encode()},
        mechs=[MechType.kerberos],
        usage="accept",
    ).creds
    path = Wire(bob.addresses[0], alice.addresses[0])
    for number in range(ROUNDS):
        if number % 50 == 0:
            endpoint = Endpoint(policy_of(bob, (alice,)), MemoryKernel(), acceptor, start)
            endpoint.set_posix(time.time() - time.monotonic())
            made = [ticket.authenticate().ap_req for _ in range(50)]
            for token in [messages.gss_frame(each, messages.TOKEN_AP_REQ) for each in made]:
                stages.run(*_YARDSTICK, lambda t=token: accept_sec_context(t, creds))
        spi = 0x10000 + number
        proposals = offer(FAST.suites[0], spi, lifetime=Lifetime(3600))
        inner = (quickmode.creation(proposals, secrets.token_bytes(32)),)
        proof = kink.ApReq(1, ticket.authenticate().ap_req)
        create = seal(MessageType.CREATE, number, proof, inner, ticket.key)
        now = time.monotonic()
        stages.run(
            *_RESPONDER,
            lambda e=endpoint, c=create, n=now: (e.receive(c, path, n), e.commands()),
        )
        assert len(endpoint.pairs) == number % 50 + 1, endpoint.counters


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with Realm(directory / "realm") as realm:
            os.environ.update(realm.environment)
            hosts = []
            for host, address in (("alice", "10.0.0.1"), ("bob", "10.0.0.2")):
                keytab = directory / host
                principal = Principal.parse(realm.add(f"kink/{host}.example.test", keytab=keytab))
                hosts.append(Host(host, principal, principal, (IPv4Address(address),)))
            alice, bob = hosts
            source = GssTicketSource(str(directory / "alice"), alice.client)
            ticket = source.fetch(bob.service)
            acceptor = GssAcceptor(str(directory / "bob"), str(directory / "rcache"), 0.0)
            stages = Stages()
            for _ in range(ROUNDS):
                one_create(stages, ticket, acceptor, alice, bob)
            whole(stages, ticket, acceptor, alice, bob, str(directory / "bob"))
    print(f"one CREATE, 2 messages, AES-256-GCM, etype 18; medians of {ROUNDS}\n")
    stages.print()
    whole_us, bare_us = (median(stages.times[key]) for key in (_RESPONDER, _YARDSTICK))
    low, high = STRONGSWAN_RESPONDER_US
    quiet_us = whole_us * BARE_ACCEPT_US / bare_us
    print(f"this machine now: {bare_us / BARE_ACCEPT_US:.2f} times as slow as the reference")
    print(
        f"responder at the reference's speed: {quiet_us:.0f} us; "
        f"strongSwan 5.9: {low} to {high} us; ratio {quiet_us / low:.2f} to {quiet_us / high:.2f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
