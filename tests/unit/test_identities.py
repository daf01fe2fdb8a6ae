"""Client identities: every selector of ours comes back as it went, everything else has a name."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinkd.errors import LocalError, MalformedIsakmp, PeerError
from kinkd.exchange import identities, quickmode
from kinkd.model import PortMatch, Selector
from kinkd.policy.realm import RealmPolicy
from kinkd.wire import isakmp
from kinkd.wire.isakmp import Identification
from kinkd.wire.numbers import IdType, NotifyType
from tests.support import own
from tests.support.pair import World

ONE_PORT = 0xFFFF
WITH_PORTS = (6, 17, 33, 132, 136)

NETWORKS = {
    4: st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
        lambda drawn: IPv4Network((drawn[0], drawn[1]), strict=False)
    ),
    6: st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
        lambda drawn: IPv6Network((drawn[0], drawn[1]), strict=False)
    ),
}
PORTS = st.one_of(
    st.just(PortMatch()), st.integers(1, 0xFFFF).map(lambda port: PortMatch(port, ONE_PORT))
)


@st.composite
def selectors(draw):
    version = draw(st.sampled_from((4, 6)))
    source, destination = draw(NETWORKS[version]), draw(NETWORKS[version])
    protocol = draw(st.one_of(st.integers(0, 255), st.sampled_from(WITH_PORTS)))
    ports = (draw(PORTS), draw(PORTS)) if protocol in WITH_PORTS else ()
    return Selector(source, destination, protocol, *ports)


@given(selectors())
def test_every_selector_comes_back_as_it_went(traffic):
    initiator, responder = identities.write(traffic)
    assert identities.read(initiator, responder) == traffic
    assert identities.read(responder, initiator) == traffic.reversed()
    assert isakmp.decode(isakmp.encode((initiator, responder))) == (initiator, responder)


@given(selectors())
def test_an_address_is_written_as_one_and_a_network_as_a_subnet(traffic):
    for identity, network in zip(
        identities.write(traffic), (traffic.source, traffic.destination), strict=True
    ):
        single = network.num_addresses == 1
        kinds = {
            (4, True): (IdType.IPV4_ADDR, 4),
            (4, False): (IdType.IPV4_ADDR_SUBNET, 8),
            (6, True): (IdType.IPV6_ADDR, 16),
            (6, False): (IdType.IPV6_ADDR_SUBNET, 32),
        }
        assert (identity.id_type, len(identity.data)) == kinds[network.version, single]


def test_what_is_on_the_wire_is_what_rfc_2407_has():
    traffic = Selector(
        ip_network("10.20.0.0/16"),
        ip_network("10.0.0.2"),
        17,
        PortMatch(500, ONE_PORT),
        PortMatch(53, ONE_PORT),
    )
    payload = isakmp.encode(identities.write(traffic))
    assert payload.body.hex() == (
        "05000010" "041101f4" "0a140000" "ffff0000"  # ID follows: subnet, UDP, 500
        "0000000c" "01110035" "0a000002"  # the last: address, UDP, 53
    )  # fmt: skip


@pytest.mark.parametrize("name", ["tunnels", "in UDP"])
def test_every_protection_of_a_policy_can_be_said(name):
    world: World = own.WORLDS[name]()
    assert isinstance(world.realm, RealmPolicy)
    said = [
        each.selector for node in world.nodes.values() for each in node.endpoint.policy.protections
    ]
    assert len(said) == 4
    for selector in said:
        assert identities.read(*identities.write(selector)) == selector


@pytest.mark.parametrize(
    "traffic",
    [
        Selector(*[ip_network("10.0.0.1")] * 2, 6, PortMatch(0x1000, 0xF000)),
        Selector(*[ip_network("10.0.0.1")] * 2, 6, PortMatch(), PortMatch(0, ONE_PORT)),
        Selector(*[ip_network("10.0.0.1")] * 2, 1, PortMatch(8, ONE_PORT)),
        Selector(*[ip_network("fd00::1")] * 2, 0, PortMatch(8, ONE_PORT)),
    ],
)
def test_what_identities_cannot_say_is_not_widened(traffic):
    with pytest.raises(LocalError, match="no client identity"):
        identities.write(traffic)


# --- what is read -----------------------------------------------------------------------------

ADDRESS = Identification(IdType.IPV4_ADDR, 0, 0, bytes((10, 0, 0, 2)))


def refusal(read: Callable[[], object]) -> PeerError | None:
    """Why it was refused; None: it was read. Any other error is a failure."""
    try:
        read()
    except PeerError as error:
        return error
    return None


def alone(kind: int, data: bytes, protocol: int = 0, port: int = 0):
    """The source that an IDci means."""
    four = len(data) in (4, 8)
    other = ADDRESS if four else Identification(IdType.IPV6_ADDR, 0, 0, bytes(15) + b"\2")
    return identities.read(Identification(kind, protocol, port, data), other).source


@pytest.mark.parametrize(
    ("kind", "first", "last", "network"),
    [
        (IdType.IPV4_ADDR, "10.0.0.1", None, "10.0.0.1/32"),
        (IdType.IPV4_ADDR_SUBNET, "10.20.0.0", "255.255.0.0", "10.20.0.0/16"),
        (IdType.IPV4_ADDR_SUBNET, "10.20.1.2", "255.255.0.0", "10.20.0.0/16"),
        (IdType.IPV4_ADDR_SUBNET, "10.0.0.1", "255.255.255.255", "10.0.0.1/32"),
        (IdType.IPV4_ADDR_SUBNET, "0.0.0.0", "0.0.0.0", "0.0.0.0/0"),
        (IdType.IPV4_ADDR_RANGE, "10.20.0.0", "10.20.255.255", "10.20.0.0/16"),
        (IdType.IPV4_ADDR_RANGE, "10.0.0.1", "10.0.0.1", "10.0.0.1/32"),
        (IdType.IPV4_ADDR_RANGE, "0.0.0.0", "255.255.255.255", "0.0.0.0/0"),
        (IdType.IPV6_ADDR, "fd00::1", None, "fd00::1/128"),
        (IdType.IPV6_ADDR_SUBNET, "2001:db8::", "ffff:ffff::", "2001:db8::/32"),
        (IdType.IPV6_ADDR_SUBNET, "::", "::", "::/0"),
        (IdType.IPV6_ADDR_RANGE, "fd00::", "fd00::ff", "fd00::/120"),
        (IdType.IPV6_ADDR_RANGE, "::", "f" * 4 + ":ffff" * 7, "::/0"),
    ],
)
def test_all_six_types_are_read(kind, first, last, network):
    data = ip_address(first).packed + (ip_address(last).packed if last else b"")
    assert alone(kind, data) == ip_network(network)


@given(st.sampled_from((4, 6)).flatmap(NETWORKS.__getitem__))
def test_a_range_that_is_a_prefix_is_the_subnet(network):
    kinds = {
        4: (IdType.IPV4_ADDR_RANGE, IdType.IPV4_ADDR_SUBNET),
        6: (IdType.IPV6_ADDR_RANGE, IdType.IPV6_ADDR_SUBNET),
    }
    ranged, subnet = kinds[network.version]
    bounds = network.network_address.packed + network.broadcast_address.packed
    masked = network.network_address.packed + network.netmask.packed
    assert alone(ranged, bounds) == alone(subnet, masked) == network


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_any_range_is_that_prefix_or_refused_by_name(first, last):
    """An SA for more, or for less, than was agreed on is none."""
    data = first.to_bytes(4) + last.to_bytes(4)
    error = refusal(lambda: alone(IdType.IPV4_ADDR_RANGE, data))
    size = last - first + 1
    if error is None:
        found = alone(IdType.IPV4_ADDR_RANGE, data)
        assert (int(found.network_address), int(found.broadcast_address)) == (first, last)
    elif first > last:
        assert error.notify == NotifyType.PAYLOAD_MALFORMED
    else:
        assert (error.reason, error.notify) == (
            "range-is-no-prefix",
            NotifyType.NO_PROPOSAL_CHOSEN,
        )
        assert size.bit_count() != 1 or first % size


@pytest.mark.parametrize(
    ("first", "last"),
    [
        ("10.0.0.2", "10.0.0.5"),  # four addresses that are no prefix
        ("10.0.0.1", "10.0.0.2"),
        ("10.0.128.0", "10.1.127.255"),
        ("10.0.0.0", "10.0.0.2"),  # a beginning that would do, and three addresses
        ("10.0.0.4", "10.0.0.9"),
    ],
)
def test_a_range_must_begin_where_a_prefix_of_its_size_does(first, last):
    data = ip_address(first).packed + ip_address(last).packed
    with pytest.raises(PeerError, match="range-is-no-prefix") as raised:
        alone(IdType.IPV4_ADDR_RANGE, data)
    assert raised.value.notify == NotifyType.NO_PROPOSAL_CHOSEN


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_any_mask_is_a_prefix_or_malformed(address, mask):
    holes = "01" in f"{mask:032b}"
    data = address.to_bytes(4) + mask.to_bytes(4)
    if holes:
        with pytest.raises(MalformedIsakmp, match="holes"):
            alone(IdType.IPV4_ADDR_SUBNET, data)
    else:
        assert int(alone(IdType.IPV4_ADDR_SUBNET, data).netmask) == mask


@pytest.mark.parametrize(
    ("initiator", "responder", "words"),
    [
        ((1, 0, 0, 4), (5, 0, 0, 16), "two address families"),
        ((1, 6, 0, 4), (1, 17, 0, 4), "two protocols"),
        ((1, 0, 80, 4), (1, 0, 0, 4), "a port of protocol 0"),
        ((1, 0, 0, 4), (1, 0, 80, 4), "a port of protocol 0"),
        ((1, 1, 8, 4), (1, 1, 0, 4), "a port of protocol 1"),
        ((1, 0, 0, 3), (1, 0, 0, 4), "identity type 1 of 3 octets"),
        ((1, 0, 0, 16), (1, 0, 0, 4), "identity type 1 of 16 octets"),
        ((4, 0, 0, 4), (1, 0, 0, 4), "identity type 4 of 4 octets"),
        ((2, 0, 0, 4), (1, 0, 0, 4), "identity type 2 of 4 octets"),
        ((11, 0, 0, 0), (1, 0, 0, 4), "identity type 11 of 0 octets"),
        ((1, 0, 0, 4), (9, 0, 0, 4), "identity type 9 of 4 octets"),
    ],
)
def test_what_cannot_be_is_malformed(initiator, responder, words):
    sides = [Identification(*head, bytes(octets)) for *head, octets in (initiator, responder)]
    with pytest.raises(MalformedIsakmp, match=words) as raised:
        identities.read(*sides)
    assert raised.value.notify == NotifyType.PAYLOAD_MALFORMED


@pytest.mark.parametrize("protocol", WITH_PORTS)
def test_ports_go_with_the_protocol_that_either_side_names(protocol):
    data = bytes((10, 0, 0, 1))
    named = Identification(1, protocol, 0, data)
    unnamed = Identification(1, 0, 443, data)
    for sides, ports in (
        ((named, unnamed), (PortMatch(), PortMatch(443, ONE_PORT))),
        ((unnamed, named), (PortMatch(443, ONE_PORT), PortMatch())),
    ):
        found = identities.read(*sides)
        assert (found.protocol, found.source_port, found.destination_port) == (protocol, *ports)


OCTETS = st.one_of(
    st.binary(max_size=40), *(st.binary(min_size=n, max_size=n) for n in (4, 8, 16, 32))
)
ANY = st.builds(
    Identification,
    st.one_of(st.sampled_from([*IdType]).map(int), st.integers(0, 255)),
    st.one_of(st.sampled_from((0, 6, 17)), st.integers(0, 255)),
    st.one_of(st.just(0), st.integers(0, 0xFFFF)),
    OCTETS,
)


@given(ANY, ANY)
def test_whatever_octets_stand_there_are_read_or_refused(initiator, responder):
    """What is read can be written, and is read the same again."""
    error = refusal(lambda: identities.read(initiator, responder))
    if error is None:
        found = identities.read(initiator, responder)
        assert identities.read(*identities.write(found)) == found
    else:
        assert error.notify in (NotifyType.PAYLOAD_MALFORMED, NotifyType.NO_PROPOSAL_CHOSEN)
        assert error.detail


@given(st.integers(1, 12), st.binary(max_size=80))
def test_a_quick_mode_of_any_octets_is_read_or_refused(kind, body):
    payload = isakmp.encode(
        (
            isakmp.SecurityAssociation(own.offer(own.SUITES["aes256gcm16"], 0x2000)),
            isakmp.Nonce(bytes(16)),
            Identification(kind, 0, 0, body[:40]),
            Identification(kind, 0, 0, body[40:]),
        )
    )
    error = refusal(lambda: quickmode.read_creation(payload))
    if error is None:
        assert quickmode.read_creation(payload).traffic is not None
    else:
        assert error.notify is not None
