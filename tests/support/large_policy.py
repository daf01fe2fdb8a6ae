"""A realm's policy document of the size that a company has: text, and always the same.

Sites with a subnet of each family, where hosts stand close together; gateways with the networks
behind them; groups of hosts by role, in a row, far apart, and of groups; rules between groups, the
broad ones last.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from random import Random

HOSTS_A_SITE = 500
HOSTS_A_GATEWAY = 100
ROLES = ("web", "db", "mail", "build", "desk", "print", "node", "log")
PORT_TRAFFIC = (
    *("tcp/443", "tcp/22", "tcp/5432", "udp/53 from 1024-65535", "tcp/8000-8080", "udp/514"),
    *("icmp", "tcp/30000-32767", "sctp/36412", "gre"),
)

_IPV4 = int(IPv4Address("10.0.0.0"))
_IPV6 = int(IPv6Address("2001:db8::"))
_MOVED = 0x8000  # far from the others of the site


@dataclass(frozen=True)
class Size:
    """How much of what the document has: of hosts 100 at least, of groups 20."""

    hosts: int = 5000
    groups: int = 200
    rules: int = 300


def large_policy(size: Size, *, seed: int = 1, ports: bool = False, moved: str = "") -> str:
    """A document in TOML.

    ``ports``: rules about single services. ``moved``: the host of this name has other addresses,
    and all else is as without.
    """
    random = Random(seed)
    names = host_names(size)
    parts = ['schema = 1\nversion = 1\nrealm = "EXAMPLE.TEST"\n']
    parts += (_host(number, name, name == moved) for number, name in enumerate(names))
    groups = dict(_groups(names, size.groups, random))
    parts.append("\n[groups]")
    parts += (f"{name} = {_list(members)}" for name, members in groups.items())
    parts += _rules(list(groups), size.rules, random, ports)
    return "\n".join(parts) + "\n"


def host_names(size: Size) -> list[str]:
    """Of the hosts, in the order of the document; those of gateways begin with "gw"."""
    return [
        f"gw{number:05}"
        if number % HOSTS_A_GATEWAY == 0
        else f"{ROLES[number // 8 % len(ROLES)]}{number:05}"
        for number in range(size.hosts)
    ]


def _host(number: int, name: str, moved: bool) -> str:
    site, place = divmod(number, HOSTS_A_SITE)
    here = place + 10 + moved * _MOVED
    lines = [
        f"\n[hosts.{name}]",
        f'fqdn = "{name}.site{site}.example.test"',
        f'addresses = ["{IPv4Address(_IPV4 + (site << 16) + here)}",'
        f' "{IPv6Address(_IPV6 + (site << 64) + here)}"]',
    ]
    if name.startswith("gw"):
        behind = number // HOSTS_A_GATEWAY
        lines.append(
            f'networks = ["{IPv4Address((172 << 24) + (16 << 16) + (behind << 8))}/24",'
            f' "{IPv6Address(_IPV6 + (0x100 + behind << 64))}/64"]'
        )
    return "\n".join(lines)


def _groups(names: Sequence[str], count: int, random: Random) -> Iterator[tuple[str, list[str]]]:
    """The gateways; by role; then by turns hosts in a row, hosts far apart, groups before it."""
    others = [name for name in names if not name.startswith("gw")]
    yield "gateways", [name for name in names if name.startswith("gw")]
    for role in ROLES:
        yield f"all-{role}", [host for host in others if host.startswith(role)]
    made: list[str] = []
    for number in range(count - 1 - len(ROLES)):
        if number % 3 == 0:
            first = random.randrange(len(others))
            members = others[first : first + random.randint(5, 60)]
        elif number % 3 == 1:
            members = sorted(random.sample(others, random.randint(2, 40)))
        else:
            members = sorted(random.sample(made, min(len(made), random.randint(2, 4))))
        made.append(f"group{number:03}")
        yield made[-1], members


def _rules(groups: Sequence[str], count: int, random: Random, ports: bool) -> Iterator[str]:
    """Between small groups; a tenth between roles; a tunnel of gateways; all with all."""
    roles = [name for name in groups if name.startswith("all-")]
    small = [name for name in groups if name.startswith("group")]
    for number in range(count - 2):
        clients = roles if number > count * 9 // 10 else small
        one, other = (sorted(random.sample(clients, random.choice((1, 1, 2)))) for _ in range(2))
        clear = number % 10 == 9
        what = 'action = "clear"' if clear else f'action = "require"\n{_profile(random)}'
        word = random.choice(PORT_TRAFFIC)
        yield _rule(f"rule {number}", one, other, what + f'\ntraffic = "{word}"' * ports)
    tunnel = 'action = "require"\nprofile = "fast"\nmode = "tunnel"'
    yield _rule("between sites", ["gateways"], ["gateways"], tunnel)
    yield _rule("all others", ["all"], ["all"], 'action = "require"')


def _profile(random: Random) -> str:
    return f'profile = "{random.choice(("standard", "standard", "fast"))}"'


def _rule(name: str, source: list[str], destination: list[str], what: str) -> str:
    return (
        f'\n[[rules]]\nname = "{name}"\nfrom = {_list(source)}\nto = {_list(destination)}\n{what}'
    )


def _list(words: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"
