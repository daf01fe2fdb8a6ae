"""The table of live pairs: found by every SA of a bundle, and by nothing once given up."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from kinkd.exchange.pairs import PairTable, Role, SaPair, Spis
from kinkd.kernel.port import SaId
from kinkd.model import IpsecProtocol, Lifetime, Mode, Selector

LOCAL = ip_address("10.0.0.1")
REMOTES = {"bob": ip_address("10.0.0.2"), "carol": ip_address("10.0.0.3")}
ESP, AH = IpsecProtocol.ESP, IpsecProtocol.AH


def pair(
    host: str, inbound: int, outbound: int, *protocols: IpsecProtocol, role=Role.RESPONDER, xid=1
) -> SaPair:
    remote = REMOTES[host]
    return SaPair(
        host=host,
        principal=f"kink/{host}.example.test@EXAMPLE.TEST",
        local=LOCAL,
        remote=remote,
        sas=tuple(Spis(each, inbound, outbound) for each in protocols or (ESP,)),
        mode=Mode.TRANSPORT,
        udp=False,
        selector=Selector.between(LOCAL, remote),
        reqid=7,
        suite="aes256gcm16",
        role=role,
        lifetime=Lifetime(3600),
        created=0,
        epoch=1000,
        xid=xid,
        fingerprint=5,
        etype=18,
    )


def table(*pairs: SaPair) -> PairTable:
    made = PairTable()
    for each in pairs:
        made.add(each)
    return made


def test_a_bundle_is_found_by_each_of_its_sas_in_both_directions():
    bundle = pair("bob", 0x1000, 0x2000, ESP, AH)
    found = table(bundle)
    assert len(found) == 1
    assert {sa.protocol for sa in bundle.inbound} == {ESP, AH}
    assert [found.by_sa(sa) for sa in (*bundle.inbound, *bundle.outbound)] == [bundle] * 4
    assert bundle.inbound_spis == ((ESP, 0x1000), (AH, 0x1000))
    for protocol in (ESP, AH):
        assert found.by_outbound(bundle.remote, protocol, 0x2000) is bundle
        assert found.by_outbound(bundle.remote, protocol, 0x1000) is None


def test_an_spi_is_one_with_its_destination_and_protocol_alone():
    """The same number elsewhere is another SA (RFC 4301 §4.1)."""
    bob, carol = pair("bob", 0x1000, 0x2000), pair("carol", 0x1001, 0x2000)
    ah = pair("bob", 0x1000, 0x2000, AH)
    found = table(bob, carol, ah)
    assert found.by_outbound(bob.remote, ESP, 0x2000) is bob
    assert found.by_outbound(carol.remote, ESP, 0x2000) is carol
    assert found.by_outbound(bob.remote, AH, 0x2000) is ah
    assert found.by_sa(SaId(bob.remote, LOCAL, 0x1000, AH)) is ah


def test_a_create_is_known_again_by_those_that_a_peer_sent():
    first, second = pair("bob", 0x1000, 0x2000), pair("bob", 0x1001, 0x2001)
    ours = pair("bob", 0x1002, 0x2002, role=Role.INITIATOR)
    found = table(first, second, ours)
    assert found.of_create("bob", first.command) == [first, second]
    assert found.of_create("carol", first.command) == []
    found.discard(first)
    assert found.of_create("bob", first.command) == [second]


def test_in_a_slot_and_of_a_host_the_oldest_stands_first():
    first, second = pair("bob", 0x1000, 0x2000), pair("bob", 0x1001, 0x2001, xid=2)
    found = table(first, second, pair("carol", 0x1002, 0x2002))
    assert found.in_slot(first.slot) == found.of_host("bob") == [first, second]
    found.of_host("bob").clear()  # a copy
    assert found.of_host("bob") == [first, second]


def test_what_is_iterated_may_be_given_up_meanwhile():
    found = table(pair("bob", 0x1000, 0x2000), pair("bob", 0x1001, 0x2001, ESP, AH))
    for each in found:
        assert found.discard(each)
    assert len(found) == 0


def test_an_equal_pair_is_not_the_same():
    first, twin = pair("bob", 0x1000, 0x2000), pair("bob", 0x1000, 0x2000)
    assert first == twin
    found = table(first)
    assert found.holds(first)
    assert not found.holds(twin)
    assert not found.discard(twin)
    assert len(found) == 1


DRAWN = st.lists(
    st.tuples(
        st.sampled_from(["bob", "carol"]),
        st.sampled_from([(ESP,), (AH,), (ESP, AH)]),
        st.sampled_from([*Role]),
        st.booleans(),
    ),
    max_size=20,
)


@given(DRAWN)
def test_what_is_given_up_leaves_nothing_behind(drawn):
    """As if only the others had ever been there."""
    found, left = PairTable(), PairTable()
    for number, (host, protocols, role, stays) in enumerate(drawn):
        made = pair(host, 0x1000 + number, 0x2000 + number, *protocols, role=role, xid=number % 3)
        found.add(made)
        if stays:
            left.add(made)
    for each in found:
        if not left.holds(each):
            assert found.discard(each)
            assert not found.discard(each)
    for name in PairTable().__dict__:
        assert getattr(found, name) == getattr(left, name)
