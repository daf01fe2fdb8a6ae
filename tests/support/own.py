"""Messages of our own, made by endpoints in memory, as captures: whatever KINK can carry."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

from kinkd.decode import pcap
from kinkd.exchange import quickmode
from kinkd.exchange.effects import Path, Send
from kinkd.exchange.verified import seal
from kinkd.kerberos.keytab import KeytabEntry
from kinkd.keying.algorithms import SUITES
from kinkd.keying.dh import GROUPS, generate
from kinkd.model import IpsecProtocol, Lifetime, Profile
from kinkd.wire import isakmp, kink
from kinkd.wire.numbers import MessageType, NotifyType, ProtocolId
from tests.support import packets
from tests.support.pair import ALICE, BOB, World, offer

BUNDLE = Profile(
    "bundle", (SUITES["ah-sha256+aes256gcm16"], SUITES["ah-sha1+null-sha256"]), Lifetime(3600)
)
TUNNELS = """
schema = 1
version = 1
realm = "EXAMPLE.TEST"

[hosts.alice]
fqdn = "alice.example.test"
addresses = ["10.0.0.1"]
networks = ["10.20.0.0/16"]

[hosts.bob]
fqdn = "bob.example.test"
addresses = ["10.0.0.2"]

[profiles.site]
suites = ["ah-sha512+aes256-sha512", "ah-sha512+aes128gcm16"]
group = "none"
esn = "try"

[[rules]]
name = "site to site"
from = "all"
to = "all"
action = "require"
profile = "site"
mode = "tunnel"
"""
IN_UDP = (
    TUNNELS.replace("ah-sha512+", "")
    .replace("10.20.0.0/16", "2001:db8:20::/48")
    .replace('"10.0.0.1"', '"fd00::1"')
    .replace('"10.0.0.2"', '"fd00::2"')
) + "udp_encapsulation = true\n"


def run(world: World) -> World:
    """Alice keys each protection that she has with bob."""
    for wanted in world["alice"].endpoint.policy.with_host("bob"):
        world["alice"].endpoint.initiate(wanted, world.now, lambda *_: None)
        world.settle()
        world.run()
    return world


def tell(world: World, kind: MessageType, *inner: kink.Payload) -> None:
    """A command of alice, made by hand, and what bob answers."""
    ticket = world["alice"].tickets.fetch(BOB.service)
    proof = kink.ApReq(1000, ticket.authenticate().ap_req)
    xid = 9000 + len(world.sent)
    path = Path(ALICE.addresses[0], BOB.addresses[0])
    send = Send(seal(kind, xid, proof, inner, ticket.key), path)
    world.sent.append(send)
    world.deliver(send)
    world.wire.clear()


def creation(spi: int, suite: str = "aes256gcm16") -> kink.Isakmp:
    """A Quick Mode as alice would offer it, with a nonce of its own."""
    proposals = offer(SUITES[suite], spi, lifetime=Lifetime(600))
    return quickmode.creation(proposals, spi.to_bytes(4) * 8)


def with_ke() -> kink.Isakmp:
    """What a responder without Diffie-Hellman refuses by the type of the payload."""
    proposals = offer(SUITES["aes256gcm16"], 0x3000, group=19)
    return quickmode.creation(proposals, bytes(32), generate(GROUPS[19]).public)


def refusals() -> World:
    """Each kind of command that is refused, and DELETE and STATUS that are not."""
    world = run(World())
    create = MessageType.CREATE
    tell(world, create, creation(0x2000, "aes128-sha1"))
    tell(world, create, creation(0x10))
    tell(world, create, with_ke())
    tell(world, create, kink.Isakmp(1, b"", 2, 0))
    tell(world, create, kink.Isakmp(13, bytes.fromhex("00000008") + b"vend"))
    tell(world, create, isakmp.encode((isakmp.Nonce(bytes(32)),)))
    unknown = quickmode.deletion([(IpsecProtocol.AH, 0x9999), (IpsecProtocol.ESP, 0x9998)])
    tell(world, MessageType.DELETE, unknown)
    contact = isakmp.Notification(ProtocolId.ESP, b"", NotifyType.INITIAL_CONTACT)
    tell(world, MessageType.STATUS, isakmp.encode((contact,)))
    gettgt = kink.Message(MessageType.GETTGT, 8000, (kink.TgtReq(b"kink/bob@EXAMPLE.TEST"),))
    send = Send(kink.encode(gettgt, protected=False), Path(ALICE.addresses[0], BOB.addresses[0]))
    world.sent.append(send)
    world.deliver(send)
    world.wire.clear()
    world["alice"].endpoint.terminate(BOB, world.now, lambda _: None)
    world.settle()
    world.run()
    return world


def several() -> World:
    """A CREATE of two Quick Modes, one of them a bundle's."""
    world = World()
    tell(world, MessageType.CREATE, creation(0x2001), creation(0x2002, "aes128gcm16"))
    return world


def datagrams(world: World) -> list[pcap.Datagram]:
    """All that was sent, a millisecond apart."""
    return [
        pcap.Datagram(
            index * 1_000_000,
            ip_address(str(send.path.local)),
            910,
            ip_address(str(send.path.remote)),
            910,
            send.datagram,
        )
        for index, send in enumerate(world.sent)
    ]


def keytab(world: World) -> list[KeytabEntry]:
    """The keys of all its hosts."""
    return [
        KeytabEntry(service, kvno, key.etype, key.secret)
        for service, (kvno, key) in world.keys.items()
    ]


def capture(world: World) -> bytes:
    """A capture file of all that was sent."""
    frames = [
        packets.ip(each.source, each.destination, 17, packets.udp(each.octets))
        for each in datagrams(world)
    ]
    return packets.capture(*frames)


WORLDS = {
    "fast": lambda: run(World()),
    "forward secrecy": lambda: run(
        World(profile=replace(BUNDLE, suites=(SUITES["aes256gcm16"],), groups=(19,)))
    ),
    "bundle": lambda: run(World(profile=BUNDLE)),
    "second bundle": lambda: run(World(profile=BUNDLE, lacking={"bob": {"ah-sha256+aes256gcm16"}})),
    "tunnels": lambda: run(World(document=TUNNELS)),
    "in UDP": lambda: run(World(document=IN_UDP)),
    "wrong clock": lambda: run(World(ahead={"bob": 600})),
    "several": several,
    "refusals": refusals,
}
