"""A host whose clock is wrong, before a real acceptor: told so provably, it corrects itself."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kinkd.errors import TicketRefused
from kinkd.exchange.core import Start
from kinkd.exchange.effects import FetchTicket, Report, Send
from kinkd.exchange.effects import Path as Route
from kinkd.exchange.endpoint import Endpoint
from kinkd.kerberos import messages
from kinkd.kerberos.accepting import GssAcceptor
from kinkd.kerberos.gss import GssTicket
from kinkd.kerberos.port import Authenticator
from kinkd.kernel.memory import MemoryKernel
from kinkd.keying.algorithms import SUITES
from kinkd.model import Host
from kinkd.wire import kink
from kinkd.wire.numbers import MessageType
from tests.support import pair as memory
from tests.support.realm_pair import Pair

EVERY_SUITE = {4: frozenset(SUITES), 6: frozenset(SUITES)}


@dataclass
class WrongClock:
    """A ticket on a host whose clock is ``ahead`` of the time, in seconds."""

    ticket: GssTicket
    ahead: float

    def __getattr__(self, name: str) -> object:
        return getattr(self.ticket, name)

    def authenticate(self, offset: float = 0.0) -> Authenticator:
        made = self.ticket.authenticate(offset + self.ahead)
        return replace(made, offset=made.offset - self.ahead)


class Hosts:
    """Alice and bob with real Kerberos and kernels in memory; they hear each other at once."""

    def __init__(self, pair: Pair, state: Path, ahead: float) -> None:
        self.pair, self.ahead = pair, ahead
        self.sent: list[MessageType] = []
        self.reports: list[Report] = []
        alice = Host("alice", pair.alice, pair.alice, memory.ALICE.addresses)
        bob = Host("bob", pair.bob, pair.bob, memory.BOB.addresses)
        acceptor = GssAcceptor(str(pair.alice_keytab), f"{state}/alice.rcache", 0)
        self.alice = self._endpoint(alice, bob, acceptor, ahead)
        self.bob = self._endpoint(bob, alice, pair.acceptor(state), 0)

    def _endpoint(self, me: Host, peer: Host, acceptor: GssAcceptor, ahead: float) -> Endpoint:
        start = Start(1000, 0, int, EVERY_SUITE, memory.OWNERSHIP, bytes)
        kernel = MemoryKernel()
        endpoint = Endpoint(memory.policy_of(me, (peer,)), kernel, acceptor, start)
        endpoint.set_posix(time.time() + ahead)
        return endpoint

    def run(self) -> None:
        ends = {memory.ALICE.addresses[0]: self.alice, memory.BOB.addresses[0]: self.bob}
        busy = True
        while busy:
            commands = [*self.alice.commands(), *self.bob.commands()]
            busy = bool(commands)
            for command in commands:
                match command:
                    case Send(datagram, path):
                        self.sent.append(kink.header(datagram).type)
                        ends[path.remote].receive(datagram, Route(path.remote, path.local), 0.0)
                    case FetchTicket(server):
                        ticket = WrongClock(self.pair.source().fetch(server), self.ahead)
                        self.alice.ticket_ready(server, ticket, 0.0)
                    case Report():
                        self.reports.append(command)


@pytest.mark.rfc("4430-3.5-2", "4430-3.5-3", "4430-3.5-4", "4430-3.5-5", "4430-4.2.3-2")
@pytest.mark.parametrize("ahead", [-1200, 1200])
def test_a_clock_twenty_minutes_off_costs_one_more_round_trip(
    pair: Pair, tmp_path: Path, ahead: float
) -> None:
    hosts = Hosts(pair, tmp_path, ahead)
    (protection,) = hosts.alice.policy.protections
    hosts.alice.initiate(protection, 0.0, lambda *_: None)
    hosts.run()
    create, reply = MessageType.CREATE, MessageType.REPLY
    assert hosts.sent == [create, reply, create, reply]
    assert (len(hosts.alice.pairs), len(hosts.bob.pairs)) == (1, 1)
    (learnt,) = [each for each in hosts.reports if each.event == "clock-offset-learnt"]
    assert abs(float(str(learnt.fields["seconds"])) + ahead) < 60
    hosts.alice.initiate(protection, 0.0, lambda *_: None)
    hosts.run()
    assert hosts.sent[4:] == [create, reply]


@pytest.mark.parametrize("offset", [-240.0, 0.001, 240.0])
def test_an_authenticator_by_a_learnt_clock_is_a_genuine_one(
    pair: Pair, tmp_path: Path, offset: float
) -> None:
    ticket, acceptor = pair.source().fetch(pair.bob), pair.acceptor(tmp_path)
    before = time.time()
    made = [ticket.authenticate(offset) for _ in range(20)]
    assert len({(each.ctime, each.cusec) for each in made}) == 20
    for each in made:
        assert each.offset == offset
        assert before <= each.ctime + each.cusec / 1e6 - offset + 1e-5
        accepted = acceptor.accept(acceptor.open(each.ap_req))
        assert (accepted.ctime, accepted.cusec) == (each.ctime, each.cusec)
    assert messages.read_ap_req(made[0].ap_req).ap_options & messages.AP_OPTION_MUTUAL_REQUIRED
    with pytest.raises(TicketRefused, match="replay"):
        acceptor.accept(acceptor.open(made[0].ap_req))


def test_all_authenticators_are_under_the_pinned_ticket(pair: Pair) -> None:
    ticket = pair.source().fetch(pair.bob)
    made = [ticket.authenticate(offset) for offset in (0.0, 1200.0, -1200.0, 0.0)]
    assert len({messages.read_ap_req(each.ap_req).ticket.raw for each in made}) == 1
    times = [messages.authenticator_time(ticket.key, messages.read_ap_req(e.ap_req)) for e in made]
    assert times == [(each.ctime, each.cusec) for each in made]
    assert abs(times[1][0] - times[2][0] - 2400) <= 2
