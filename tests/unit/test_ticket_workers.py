"""The threads that fetch tickets: whatever happens in one, an answer comes and it lives on."""

from __future__ import annotations

import asyncio
import threading

import pytest

from kinkd.app.tickets import Fetch, TicketWorkers
from kinkd.errors import LocalError, TicketUnavailable
from kinkd.exchange.effects import FetchTgt, FetchTicket
from kinkd.kerberos.libkrb5 import Krb5Error
from kinkd.kerberos.port import Tgt, Ticket
from kinkd.model import Principal, Secret

BOB = Principal(("kink", "bob.example.test"), "EXAMPLE.TEST")
TGT = Tgt(BOB, b"ticket", 18, Secret(bytes(32)), 0)


class Source:
    """Fails in one way, for ever; its TGTs are good."""

    def __init__(self, fault: Exception) -> None:
        self.fault = fault

    def fetch(self, server: Principal, tgt: bytes | None = None) -> Ticket:
        raise self.fault

    def tgt(self) -> Tgt:
        return TGT


def test_a_realm_whose_kdc_hangs_leaves_the_others_their_tickets() -> None:
    hung, answers = threading.Event(), list[Fetch]()

    class Hanging(Source):
        def fetch(self, server: Principal, tgt: bytes | None = None) -> Ticket:
            if server.realm == "DEAD.TEST":
                hung.wait()
            raise TicketUnavailable("none")

    async def main() -> None:
        done = asyncio.Event()

        def fetched(wanted: Fetch, _: Ticket | Tgt | TicketUnavailable) -> None:
            answers.append(wanted)
            if len(answers) == 11:
                done.set()

        workers = TicketWorkers(Hanging(LocalError("")), fetched)
        for _ in range(50):
            workers.fetch(FetchTicket(Principal(("kink", "x"), "DEAD.TEST")))
        for _ in range(10):
            workers.fetch(FetchTicket(BOB))
        workers.fetch(FetchTgt())
        try:
            async with asyncio.timeout(10):
                await done.wait()
        finally:
            hung.set()

    asyncio.run(main())
    assert answers.count(FetchTicket(BOB)) == 10
    assert answers.count(FetchTgt()) == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (TicketUnavailable("no KDC", 27), "no KDC"),
        (LocalError("krb5.conf is gone"), "krb5.conf is gone"),
        (Krb5Error(5, "Input/output error"), "Input/output error"),
        (IndexError("secret"), "internal error: IndexError"),
        (MemoryError(), "internal error: MemoryError"),
    ],
)
def test_every_request_is_answered_whatever_the_source_does(fault: Exception, words: str) -> None:
    answers: list[tuple[Fetch, Ticket | Tgt | TicketUnavailable]] = []
    requests = 20  # more than there are threads

    async def main() -> None:
        done = asyncio.Event()

        def fetched(wanted: Fetch, result: Ticket | Tgt | TicketUnavailable) -> None:
            answers.append((wanted, result))
            if len(answers) == requests + 1:
                done.set()

        workers = TicketWorkers(Source(fault), fetched)
        for _ in range(requests):
            workers.fetch(FetchTicket(BOB))
        workers.fetch(FetchTgt())
        async with asyncio.timeout(10):
            await done.wait()

    asyncio.run(main())
    assert [result for _, result in answers if isinstance(result, Tgt)] == [TGT]
    faults = [result for _, result in answers if isinstance(result, TicketUnavailable)]
    assert [str(each) for each in faults] == [words] * requests
    code = fault.code if isinstance(fault, TicketUnavailable) else None
    assert {each.code for each in faults} == {code}
