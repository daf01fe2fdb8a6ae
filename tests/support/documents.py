"""Policy documents at random, small enough that everything in them meets, and packets for them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from hypothesis import strategies as st

from kinkd.model import IPAddress
from tests.support.oracle import Packet

HOSTS = ("a", "b", "c", "d")
PLACES = ("p", "q")
HEAD = """schema = 1
version = 3
realm = "R.TEST"
[profiles.cbc]
suites = "aes256-sha256"
[profiles.both]
suites = ["ah-sha256+aes256gcm16"]
"""
NETWORKS = (
    *("0.0.0.0/0", "128.0.0.0/1", "10.0.0.0/8", "10.0.0.0/16", "10.0.1.0/24", "10.0.1.1/32"),
    *("192.0.2.0/24", "192.0.2.4/30", "192.0.2.6/32", "::/0", "2001:db8::/32", "2001:db8:1::/48"),
)
ADDRESSES = (
    ("192.0.2.{}",),
    ("2001:db8::{}",),
    ("192.0.2.{}", "2001:db8::{}"),
    ("2001:db8:1::{}", "10.0.1.1{}", "192.0.2.{}"),
)
TRAFFIC = (
    *("any", "tcp", "icmp", "gre", "ip/89", "udp/53", "tcp/443", "tcp/440-445"),
    *("tcp/20-23 from 1024-65535", "udp from 500", "udp/1-15", "tcp/8000-8080 from 7000-7010"),
)
SHAPES = (
    *(
        (6, 40000, 443),
        (6, 443, 40000),
        (6, 443, 443),
        (6, 441, 446),
        (6, 1024, 22),
        (6, 1023, 22),
        (6, 23, 4000),
    ),
    *(
        (6, 7005, 8080),
        (6, 8001, 7010),
        (6, 22, 8081),
        (17, 53, 53),
        (17, 53, 40000),
        (6, 40000, 88),
        (17, 500, 500),
        (17, 9, 53),
    ),
    *((17, 53, 1), (1, 8, 0), (1, 0, 0), (58, 128, 0), (47, 0, 0), (89, 0, 0), (132, 1, 2)),
)
KINDS = ("fast tunnel", "fast transport", "cbc transport", "cbc tunnel", "both transport")
ACTIONS = ("require", "request", "clear", "block")

PARTIES = ("all", *HOSTS, "g", "all", "world", *PLACES, "h", "[ab]", "*.x.test", "c*", "nobody*")
sides = st.lists(st.sampled_from(PARTIES), min_size=1, max_size=4)
words = st.lists(st.sampled_from(TRAFFIC), min_size=1, max_size=3, unique=True)


@st.composite
def _rule(draw: st.DrawFn, number: int, kinds: list[str]) -> str:
    text = f'[[rules]]\nname = "{number}"\nfrom = {draw(sides)}\nto = {draw(sides)}\n'
    text += f"traffic = {draw(words)}\n"
    action = draw(st.sampled_from(ACTIONS))
    back = draw(st.sampled_from((*ACTIONS, "", "", "", "")))
    text += f'action = "{action}"\n' + f'back = "{back}"\n' * bool(back)
    if {action, back} & {"require", "request"}:
        profile, mode = draw(st.sampled_from(kinds)).split()
        text += f'profile = "{profile}"\nmode = "{mode}"\n'
    return text + "audit = true\n" * draw(st.sampled_from((False, False, False, True)))


@st.composite
def documents(draw: st.DrawFn) -> str:
    """The text of a document; one in some is refused, where two rules want two kinds of SA."""
    seldom = st.sampled_from((False,) * 5 + (True,))
    owned: dict[str, list[str]] = {}
    for network in NETWORKS:
        owner = draw(st.sampled_from([*HOSTS, *PLACES, *[""] * 6]))
        owned.setdefault(owner, []).append(network)
    text = HEAD
    for number, name in enumerate(HOSTS, 2):
        own = [each.format(number) for each in draw(st.sampled_from(ADDRESSES))]
        text += f'[hosts.{name}]\nfqdn = "{name}.{"x" if number % 2 else "r"}.test"\n'
        text += f"addresses = {own}\n"
        text += f"networks = {behind}\n" if (behind := owned.get(name)) else ""
        text += "disabled = true\n" * draw(seldom) + "audit = true\n" * draw(seldom)
    for place in PLACES:
        prefixes = [*owned.get(place, []), f"198.51.100.{ord(place)}"]
        text += f"[networks.{place}]\nprefixes = {prefixes}\n"
    inner = [each for each in draw(sides) if each not in ("g", "h")]
    outer = [each for each in draw(sides) if each != "g"]
    text += f"[groups]\ng = {[*outer, 'h']}\nh = {inner}\n"
    text += draw(st.sampled_from(("", '[servers]\ndns = ["b", "203.0.113.1"]\nkdc = ["d"]\n')))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=2))
    for number in range(draw(st.integers(1, 6))):
        text += draw(_rule(number, kinds))
    return text


def packets(owned: Iterable[str]) -> st.SearchStrategy[Packet]:
    """Packets that somebody may have sent: hosts and what lies behind them have most of them."""
    edges = [each[end] for each in map(ip_network, NETWORKS) for end in (0, -1)]
    hosts = list(map(ip_address, owned))
    others = [
        *map(ip_address, ("203.0.113.1", "2001:db8:f::1", "3fff::1", "198.51.100.113", "9.9.9.9")),
        *map(ip_address, ("224.0.0.1", "255.255.255.255", "ff02::1", "169.254.1.1")),
    ]
    pairs = [
        (one, other)
        for ones, twos in (
            *[(hosts, hosts)] * 8,
            *[(hosts, edges), (edges, hosts), (edges, edges)],
            *[(hosts, others), (others, hosts), (edges, others), (others, edges)],
        )
        for one, other in itertools.product(ones, twos)
        if one.version == other.version and one != other and is_source(one)
    ]
    return st.builds(
        lambda ends, shape: Packet(*ends, *shape), st.sampled_from(pairs), st.sampled_from(SHAPES)
    )


def is_source(address: IPAddress) -> bool:
    """Whether packets come from it."""
    return not address.is_multicast and address != ip_address("255.255.255.255")
