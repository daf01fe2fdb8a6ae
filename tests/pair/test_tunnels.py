"""Tunnel mode between hosts, gateways and the networks behind them, from document to packets."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from kinkd.exchange import identities, quickmode
from kinkd.exchange.effects import Path, Send
from kinkd.exchange.verified import seal
from kinkd.model import Direction, Mode, Selector
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import IdType, MessageType
from tests.support.pair import World, mirrored, offer

DOCUMENT = """
schema = 1
version = 1
realm = "EXAMPLE.TEST"

[hosts.gate]
fqdn = "gate.example.test"
addresses = ["192.0.2.1"]
networks = ["10.1.0.0/16", "2001:db8:1::/48"]

[hosts.door]
fqdn = "door.example.test"
addresses = ["192.0.2.2"]
networks = ["10.2.0.0/16", "10.3.0.0/16", "2001:db8:2::/48"]

[hosts.rover]
fqdn = "rover.example.test"
addresses = ["192.0.2.3"]

[profiles.fast]
suites = {suites}
group = "none"

[[rules]]
name = "the two sites, and who is on the way"
from = "all"
to = "all"
action = "require"
profile = "fast"
mode = "tunnel"
udp_encapsulation = {udp}
"""
SITE_A, SITE_B, THIRD = (IPv4Address(text) for text in ("10.1.7.7", "10.2.7.7", "10.3.7.7"))
SIX_A, SIX_B = IPv6Address("2001:db8:1::7"), IPv6Address("2001:db8:2::7")


def sites(suites: str = '["aes256gcm16"]', udp: str = "false") -> World:
    text = DOCUMENT.format(suites=suites, udp=udp)
    if "+" in suites:  # the kernel has no AH around a tunnel of another family
        text = text.replace(', "2001:db8:1::/48"', "").replace(', "2001:db8:2::/48"', "")
    return World(document=text)


def wanted(world: World, source: str, destination: str, one: object, other: object):
    """The protection whose tunnel takes packets from ``one`` to ``other``."""
    flow = Selector(ip_network(str(one)), ip_network(str(other)))
    between = world[source].endpoint.policy.with_host(destination)
    return next(protection for protection in between if protection.selector.covers(flow))


def key(world: World, source: str, destination: str, one: object, other: object) -> None:
    """Traffic of a host behind ``source`` makes its gateway key the tunnel."""
    kernel = world[source].kernel
    assert kernel.traffic(one, other, world.now) == "held"
    for event in kernel.events():
        world[source].endpoint.kernel_event(event, world.now)
    world.settle()
    world.run(0.5)


def goes(world: World, source: str, destination: str, one: object, other: object) -> str:
    ours, theirs = world[source], world[destination]
    forward = other not in theirs.host.addresses
    return ours.kernel.send(theirs.kernel, one, other, forward=forward)


@pytest.mark.parametrize(
    ("source", "destination", "one", "other"),
    [
        ("gate", "door", SITE_A, SITE_B),
        ("gate", "door", SIX_A, SIX_B),  # IPv6 through IPv4
        ("rover", "gate", IPv4Address("192.0.2.3"), SITE_A),
        ("rover", "gate", IPv4Address("192.0.2.3"), IPv4Address("192.0.2.1")),
        ("gate", "door", IPv4Address("192.0.2.1"), SITE_B),
    ],
    ids=["site to site", "six in four", "host to site", "host to gateway", "gateway to site"],
)
@pytest.mark.parametrize(
    "suites", ['["aes256gcm16"]', '["ah-sha256+aes128-sha256"]', '["ah-sha1"]']
)
def test_a_tunnel_carries_both_ways_and_nothing_passes_in_clear(
    suites: str, source: str, destination: str, one: object, other: object
) -> None:
    if "+" in suites and isinstance(one, IPv6Address):
        return
    world = sites(suites)
    assert goes(world, source, destination, one, other) == "held"
    world[source].kernel.events()
    world[source].kernel._larvals.clear()
    key(world, source, destination, one, other)
    kind = "ah+esp" if "+" in suites else "ah" if "ah" in suites else "esp"
    assert goes(world, source, destination, one, other) == kind
    assert goes(world, destination, source, other, one) == kind
    (ours,), (theirs,) = world[source].endpoint.pairs, world[destination].endpoint.pairs
    assert mirrored(ours, theirs)
    assert ours.mode is theirs.mode is Mode.TUNNEL
    assert ours.selector == wanted(world, source, destination, one, other).selector


def test_four_in_six() -> None:
    world = World(
        document=DOCUMENT.format(suites='["aes256gcm16"]', udp="false").replace(
            '"192.0.2.', '"2001:db8::'
        )
    )
    key(world, "gate", "door", SITE_A, SITE_B)
    (pair,) = world["gate"].endpoint.pairs
    assert (pair.local.version, pair.selector.source.version) == (6, 4)
    assert goes(world, "gate", "door", SITE_A, SITE_B) == "esp"
    assert goes(world, "door", "gate", SITE_B, SITE_A) == "esp"


def test_two_networks_behind_one_gateway_have_a_pair_each() -> None:
    world = sites()
    key(world, "gate", "door", SITE_A, SITE_B)
    key(world, "gate", "door", SITE_A, THIRD)
    pairs = list(world["gate"].endpoint.pairs)
    assert len({pair.reqid for pair in pairs}) == len({pair.slot for pair in pairs}) == 2
    assert goes(world, "gate", "door", SITE_A, THIRD) == "esp"


def test_a_gateway_cannot_speak_for_a_network_that_is_not_its_own() -> None:
    world = sites()
    key(world, "gate", "door", SITE_A, SITE_B)
    key(world, "rover", "door", IPv4Address("192.0.2.3"), SITE_B)
    forged = world["rover"].kernel.transmit
    # rover takes its own SA, whatever its policy says, and claims to be of site A.
    _, packet = forged(world_flow(IPv4Address("192.0.2.3"), SITE_B))
    assert packet is not None
    lie = replace(packet, flow=world_flow(SITE_A, SITE_B))
    assert world["door"].kernel.receive(packet, forward=True)
    assert not world["door"].kernel.receive(lie, forward=True)


def world_flow(source: object, destination: object):
    from kinkd.kernel.memory import Flow

    return Flow(source, destination)


def quick_modes(world: World, kind: MessageType) -> list[tuple[isakmp.QuickModePayload, ...]]:
    """Those of all messages of a kind between gate and door, opened with door's key."""
    found = []
    key = None
    for send in world.sent:
        message = kink.decode(send.datagram).message
        proof = message.payloads[0]
        if isinstance(proof, kink.ApReq):
            key = world["door"].acceptor.open(proof.ap_req).key
        if message.type is kind and key is not None and len(message.payloads) > 1:
            sealed = message.payloads[1]
            assert isinstance(sealed, kink.Encrypt)
            inner = kink.decode_inner(key.decrypt(39, sealed.cipher))
            found += [isakmp.decode(part) for part in inner if isinstance(part, kink.Isakmp)]
    return found


@pytest.mark.rfc("4430-5-1")
def test_the_identities_say_what_the_tunnel_carries_and_come_back() -> None:
    world = sites()
    key(world, "gate", "door", SITE_A, SITE_B)
    sent, answered = quick_modes(world, MessageType.CREATE), quick_modes(world, MessageType.REPLY)
    clients = tuple(part for part in sent[0] if isinstance(part, isakmp.Identification))
    assert identities.read(*clients) == Selector(
        ip_network("10.1.0.0/16"), ip_network("10.2.0.0/16")
    )
    assert [each.id_type for each in clients] == [IdType.IPV4_ADDR_SUBNET] * 2
    assert tuple(p for p in answered[0] if isinstance(p, isakmp.Identification)) == clients


def ask(world: World, *clients: isakmp.Identification, mode: Mode = Mode.TUNNEL) -> int | None:
    """A CREATE of gate's, made by hand, with these identities; the code of door's refusal."""
    gate, door = world["gate"], world["door"]
    ticket = gate.tickets.fetch(door.host.service)
    suite = wanted(world, "gate", "door", SITE_A, SITE_B).profile.suites[0]
    payload = quickmode.creation(offer(suite, 0x4000, mode=mode), b"n" * 32, None, clients)
    proof = kink.ApReq(1000, ticket.authenticate().ap_req)
    datagram = seal(MessageType.CREATE, 9, proof, (payload,), ticket.key)
    world.sent.clear()
    send = Send(datagram, Path(gate.address, door.address))
    world.sent.append(send)
    world.deliver(send)
    (answer,) = quick_modes(world, MessageType.REPLY)
    refused = [part.type for part in answer if isinstance(part, isakmp.Notification)]
    return refused[0] if refused else None


def subnet(text: str) -> isakmp.Identification:
    network = ip_network(text)
    packed = network.network_address.packed + network.netmask.packed
    return isakmp.Identification(IdType.IPV4_ADDR_SUBNET, 0, 0, packed)


def address(text: str) -> isakmp.Identification:
    return isakmp.Identification(IdType.IPV4_ADDR, 0, 0, IPv4Address(text).packed)


def span(first: str, last: str) -> isakmp.Identification:
    packed = IPv4Address(first).packed + IPv4Address(last).packed
    return isakmp.Identification(IdType.IPV4_ADDR_RANGE, 0, 0, packed)


@pytest.mark.rfc("4430-5-1")
@pytest.mark.parametrize(
    ("clients", "refusal"),
    [
        ((subnet("10.1.0.0/16"), subnet("10.2.0.0/16")), None),
        ((subnet("10.1.5.0/24"), address("10.2.9.9")), None),  # less than the policy: may be
        ((span("10.1.0.0", "10.1.255.255"), subnet("10.2.0.0/16")), None),
        ((span("10.1.0.1", "10.1.0.6"), subnet("10.2.0.0/16")), 14),  # no prefix
        ((subnet("10.0.0.0/8"), subnet("10.2.0.0/16")), 14),  # more than the policy
        ((subnet("10.2.0.0/16"), subnet("10.1.0.0/16")), 14),  # the wrong way round
        ((subnet("10.9.0.0/16"), subnet("10.2.0.0/16")), 14),  # nobody's
        ((), None),  # none: the two addresses, which the rule covers as well
    ],
)
def test_identities_are_bounded_by_the_policy(
    clients: tuple[isakmp.Identification, ...], refusal: int | None
) -> None:
    world = sites()
    assert ask(world, *clients) == refusal
    pairs = list(world["door"].endpoint.pairs)
    assert len(pairs) == (refusal is None)
    if clients and refusal is None:
        assert pairs[0].selector.reversed() == identities.read(*clients)
        sas = {state.id: state.selector for state in world["door"].kernel.states()}
        assert sas[pairs[0].inbound[0]] == pairs[0].selector.reversed()
    elif refusal is None:
        assert pairs[0].selector == Selector.between(world["door"].address, world["gate"].address)


def test_transport_mode_is_not_given_where_the_policy_wants_a_tunnel() -> None:
    world = sites()
    both = (subnet("10.1.0.0/16"), subnet("10.2.0.0/16"))
    assert ask(world, *both, mode=Mode.TRANSPORT) == 14


def test_udp_encapsulation_is_offered_agreed_on_and_installed() -> None:
    world = sites(udp="true")
    key(world, "gate", "door", SITE_A, SITE_B)
    assert goes(world, "gate", "door", SITE_A, SITE_B) == "esp"
    for quick in (
        quick_modes(world, MessageType.CREATE)[0],
        quick_modes(world, MessageType.REPLY)[0],
    ):
        association = quick[0]
        assert isinstance(association, isakmp.SecurityAssociation)
        values = {a.type: a.value for a in association.proposals[0].transforms[0].attributes}
        assert values[4] == 3  # UDP-Encapsulated-Tunnel, RFC 3947 §5.1
    for name in ("gate", "door"):
        assert all(state.udp for state in world[name].kernel.states())


def test_who_must_encapsulate_and_who_must_not_do_not_key() -> None:
    world = sites(udp="true")
    world.nodes["door"] = sites(udp="false")["door"]
    assert world["gate"].kernel.traffic(SITE_A, SITE_B, world.now) == "held"
    for event in world["gate"].kernel.events():
        world["gate"].endpoint.kernel_event(event, world.now)
    world.settle()
    world.run(1.0)
    (failed,) = world["gate"].events("create-failed")
    assert failed["reason"] == "refused-by-peer: NO-PROPOSAL-CHOSEN"


def test_a_tunnel_is_rekeyed_and_survives_a_restart() -> None:
    world = sites()
    key(world, "gate", "door", SITE_A, SITE_B)
    world.restart("door")
    (before,) = world["door"].endpoint.pairs
    world["gate"].endpoint.initiate(
        wanted(world, "gate", "door", SITE_A, SITE_B), world.now, lambda *_: None
    )
    world.settle()
    world.run(20.0)
    (ours,), (theirs,) = world["gate"].endpoint.pairs, world["door"].endpoint.pairs
    assert mirrored(ours, theirs)
    assert theirs.sas != before.sas
    assert goes(world, "gate", "door", SITE_A, SITE_B) == "esp"
    assert goes(world, "door", "gate", SITE_B, SITE_A) == "esp"


def test_forwarded_clear_text_is_refused_at_the_other_gateway() -> None:
    world = sites()
    key(world, "gate", "door", SITE_A, SITE_B)
    from kinkd.kernel.memory import Packet

    assert not world["door"].kernel.receive(Packet(world_flow(SITE_A, SITE_B)), forward=True)
    entries = world["door"].endpoint.policy.entries
    assert {e.direction for e in entries if e.templates} == set(Direction)
