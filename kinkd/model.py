"""The values every part of kinkd speaks in: frozen, comparable, without behaviour of their own."""

from __future__ import annotations

import enum
import functools
import hmac
import re
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Self

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


@functools.lru_cache(maxsize=1 << 16)  # making a network costs more than all of an SA's keys
def lone(address: IPAddress) -> IPNetwork:
    """The network of one address."""
    return ip_network(address)


class Secret:
    """Key material: absent from every repr, compared in constant time, overwritten by ``wipe``.

    ``value`` is the one mutable copy; whoever makes another owns its end.
    """

    __slots__ = ("value",)

    def __init__(self, value: bytes | bytearray) -> None:
        self.value = bytearray(value)

    def __len__(self) -> int:
        return len(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self.value, other.value)

    __hash__ = None  # type: ignore[assignment]  # a secret is no dictionary key

    def __repr__(self) -> str:
        return f"<secret of {len(self.value)} octets>"

    def wipe(self) -> None:
        """Overwrite the octets with zeros."""
        self.value[:] = bytes(len(self.value))


@dataclass(frozen=True, slots=True)
class Principal:
    """A Kerberos principal name with its realm (RFC 4120 §6.2), case sensitive."""

    components: tuple[str, ...]
    realm: str

    @classmethod
    def parse(cls, text: str) -> Self:
        r"""Read ``component/component@REALM``; ``\`` quotes ``/``, ``@`` and itself.

        Raises:
            ValueError: no realm, an empty component, or a stray ``\``.
        """
        parts: list[str] = [""]
        separators: list[str] = []
        position = 0
        while position < len(text):
            char = text[position]
            if char == "\\":
                position += 1
                if position == len(text):
                    raise ValueError(f"principal {text!r} ends in a lone backslash")
                parts[-1] += text[position]
            elif char == "@" or (char == "/" and "@" not in separators):
                separators.append(char)
                parts.append("")
            else:
                parts[-1] += char
            position += 1
        if separators.count("@") != 1 or not all(parts):
            raise ValueError(f"{text!r} is not a principal of the form name/host@REALM")
        return cls(tuple(parts[:-1]), parts[-1])

    def __str__(self) -> str:
        plain = "/".join(self.components)
        if not ("\\" in plain or "@" in plain or plain.count("/") >= len(self.components)):
            return f"{plain}@{self.realm}"
        quoted = (re.sub(r"([\\/@])", r"\\\1", part) for part in self.components)
        return "/".join(quoted) + "@" + self.realm


class IpsecProtocol(enum.IntEnum):
    """IP protocol numbers of the IPsec protocols."""

    ESP = 50
    AH = 51


class Mode(enum.IntEnum):
    """Encapsulation, by the numbers of the kernel (XFRM_MODE_*)."""

    TRANSPORT = 0
    TUNNEL = 1


class Direction(enum.IntEnum):
    """The directions of an SPD entry, by the numbers of the kernel (XFRM_POLICY_*)."""

    IN = 0
    OUT = 1
    FWD = 2


class Action(enum.Enum):
    """What a rule of the realm's policy does with traffic."""

    REQUIRE = "require"
    REQUEST = "request"
    CLEAR = "clear"
    BLOCK = "block"


class UserToUser(enum.Enum):
    """Whether a host is keyed by a session key of its own TGT (RFC 4430 §3.1)."""

    NEVER = "never"  # it gives no TGT out
    ALLOWED = "allowed"  # where a service ticket does not do
    ALWAYS = "always"  # it has no long-term key: a person, a machine without a keytab


Principals = tuple[Principal, Principal, UserToUser]
"""What a host is asked for as, what it speaks as, and what a ticket for it is made of."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long an SA may serve; ``kilobytes`` None: no limit by volume (RFC 2407 §4.5)."""

    seconds: int
    kilobytes: int | None = None


@dataclass(frozen=True, slots=True)
class Transform:
    """One mechanism of one IPsec protocol (RFC 2408 §2.1), and what the kernel calls it.

    Of ESP either ``aead`` is set, or ``encryption`` and ``authentication`` are; of AH
    ``authentication`` alone. Key lengths are in octets of KEYMAT, truncation and ICV in bits.
    """

    protocol: IpsecProtocol
    transform_id: int  # RFC 2407 §4.4.3, §4.4.4 and their registries
    key_bits: int | None  # the Key Length attribute (6); None: the transform has none
    authentication_id: int | None  # the Authentication Algorithm attribute (5)
    encryption_octets: int  # of KEYMAT, with the salt; 0: no encryption
    authentication_octets: int
    icv_bits: int
    aead: str | None = None
    encryption: str | None = None
    authentication: str | None = None

    @property
    def keymat_octets(self) -> int:
        """Octets of KEYMAT one SA takes: encryption key first, then authentication key."""
        return self.encryption_octets + self.authentication_octets


@dataclass(frozen=True, slots=True)
class Suite:
    """A protection suite (RFC 2408 §2.1): what one proposal offers, one transform a protocol.

    ``transforms`` stand in the order in which a packet meets them on its way out, ESP before AH;
    more than one make a bundle.
    """

    name: str
    transforms: tuple[Transform, ...]

    @property
    def protocols(self) -> tuple[IpsecProtocol, ...]:
        """Of its transforms, in their order."""
        return tuple(transform.protocol for transform in self.transforms)


@dataclass(frozen=True, slots=True)
class Profile:
    """A crypto profile of the policy: suites in order of preference, lifetime of an SA, groups.

    ``groups`` of the KE payload, the preferred one first (RFC 2409 §6 and its registry); None
    among them: without KE. ``esn``: which sequence numbers may be, the preferred ones first;
    True are those of 64 bits (RFC 4303 §2.2.1, RFC 4304). All suites have the same protocols.
    ``ticket_grace``: seconds by which an SA may outlive the ticket that it was made with.
    """

    name: str
    suites: tuple[Suite, ...]
    lifetime: Lifetime
    groups: tuple[int | None, ...] = (None,)
    esn: tuple[bool, ...] = (False,)
    ticket_grace: int = 600

    @property
    def protocols(self) -> tuple[IpsecProtocol, ...]:
        """Of its suites, in the order in which a packet meets them on its way out."""
        return self.suites[0].protocols


@dataclass(frozen=True, slots=True)
class Host:
    """A host of the realm: what it is asked for as, what it authenticates as, where it lives.

    ``networks`` lie behind it: as a security gateway it speaks for them in tunnel mode. Of one that
    is ``user_to_user`` always, service and client are the same. One that is ``disabled`` is never
    keyed; with one in ``audit`` everything is negotiated, and nothing dropped.
    """

    name: str
    service: Principal
    client: Principal
    addresses: tuple[IPAddress, ...]
    networks: tuple[IPNetwork, ...] = ()
    user_to_user: UserToUser = UserToUser.NEVER
    disabled: bool = False
    audit: bool = False

    @property
    def prefixes(self) -> tuple[IPNetwork, ...]:
        """All that is its own, or behind it."""
        return (*map(lone, self.addresses), *self.networks)

    @property
    def principals(self) -> Principals:
        """Who it is, wherever it is and whatever it is called."""
        return self.service, self.client, self.user_to_user


@dataclass(frozen=True, slots=True)
class PortMatch:
    """A port and the bits of it that count; the default matches every port."""

    port: int = 0
    mask: int = 0

    def covers(self, other: PortMatch) -> bool:
        """Whether every port that ``other`` matches is matched by this."""
        return self.mask & ~other.mask == 0 and (self.port ^ other.port) & self.mask == 0


@dataclass(frozen=True, slots=True)
class Selector:
    """Traffic (RFC 4301 §4.4.1.1). ``protocol`` 0: any. For ICMP the ports hold type and code."""

    source: IPNetwork
    destination: IPNetwork
    protocol: int = 0
    source_port: PortMatch = PortMatch()
    destination_port: PortMatch = PortMatch()

    @staticmethod
    @functools.lru_cache(maxsize=4096)
    def between(source: IPAddress, destination: IPAddress) -> Selector:
        """All traffic from one address to one other."""
        return Selector(lone(source), lone(destination))

    def reversed(self) -> Self:
        """The same traffic the other way."""
        return type(self)(
            self.destination,
            self.source,
            self.protocol,
            self.destination_port,
            self.source_port,
        )

    def covers(self, other: Selector) -> bool:
        """Whether all of the other's traffic is this one's, too."""
        return (
            contains(self.source, other.source)
            and contains(self.destination, other.destination)
            and self.protocol in (0, other.protocol)
            and self.source_port.covers(other.source_port)
            and self.destination_port.covers(other.destination_port)
        )


def contains(network: IPNetwork, other: IPNetwork) -> bool:
    """Whether a network has all of another in it, or is it."""
    # A match and not ``subnet_of``: of two families neither contains the other.
    match network, other:
        case (IPv4Network(), IPv4Network()) | (IPv6Network(), IPv6Network()):
            return network.prefixlen <= other.prefixlen and int(other.network_address) >> (
                network.max_prefixlen - network.prefixlen
            ) == int(network.network_address) >> (network.max_prefixlen - network.prefixlen)
        case _:
            return False


@dataclass(frozen=True, slots=True)
class Template:
    """What an SPD entry demands of a packet: an SA of this protocol, mode and reqid.

    The endpoints are None in transport mode: they are the packet's own.
    """

    protocol: IpsecProtocol
    mode: Mode
    reqid: int
    source: IPAddress | None = None
    destination: IPAddress | None = None
    optional: bool = False


SpdKey = tuple[Direction, Selector]


@dataclass(frozen=True, slots=True)
class SpdEntry:
    """One entry of the kernel's security policy database.

    ``templates`` stand in the order in which a packet meets them on its way out; none: bypass,
    or with ``block`` discard. A smaller ``priority`` wins.
    """

    direction: Direction
    selector: Selector
    priority: int
    templates: tuple[Template, ...] = ()
    block: bool = False

    @property
    def key(self) -> SpdKey:
        """What is unique of it: the kernel has no two of one direction and selector."""
        return self.direction, self.selector

    def relaxed(self) -> SpdEntry:
        """The same without force: SAs are made and used, and nothing is dropped for want of one.

        The kernel has no optional tunnel for packets out: they pass in clear, and ask for nothing.
        """
        optional = tuple(replace(each, optional=True) for each in self.templates)
        if self.direction is Direction.OUT and any(t.mode is Mode.TUNNEL for t in optional):
            optional = ()
        return replace(self, templates=optional, block=False)


@dataclass(frozen=True, slots=True)
class Ownership:
    """Which reqids and priorities of the kernel's databases are ours: SAs and SPD entries."""

    reqids: range
    priorities: range


Slot = tuple[IPAddress, IPAddress, int]
"""Our address, the peer's, and a reqid: what one pair of SAs is enough for."""


@dataclass(frozen=True, slots=True)
class Protection:
    """What the policy demands of some traffic of this host, or of networks behind it.

    ``local`` and ``remote`` are where the SAs and KINK itself have their ends. ``selector`` is the
    traffic on its way out: in transport mode all between the two, in tunnel mode what goes
    through it. ``udp``: ESP in UDP, port 4500 at both ends (RFC 3948).
    """

    peer: Host
    profile: Profile
    mode: Mode
    reqid: int
    rule: str  # the rule's name, for people
    local: IPAddress
    remote: IPAddress
    selector: Selector
    udp: bool = False
    entries: tuple[SpdEntry, ...] = field(repr=False, default=())  # the SPD entries it stands for
    requested: tuple[SpdEntry, ...] = field(repr=False, default=())
    """Those of them that are asked for, and not insisted on until SAs were once had."""
    when_keyed: tuple[SpdEntry, ...] = field(repr=False, default=())
    """What stands in place of entries in clear as long as there are SAs: of tunnels in audit."""
    initiates: bool = True  # whether traffic from here asks for SAs, or only the peer's does

    @property
    def slot(self) -> Slot:
        """What one pair of SAs is enough for."""
        return (self.local, self.remote, self.reqid)

    def makes_the_same(self, other: Protection) -> bool:
        """Whether the same SAs serve both: rules may have been renamed, moved or put between."""
        plain = replace(self, rule="", entries=(), requested=(), when_keyed=(), peer=other.peer)
        mine, others = (each.peer.principals for each in (self, other))
        return (self.peer.name, mine) == (other.peer.name, others) and plain == replace(
            other, rule="", entries=(), requested=(), when_keyed=()
        )

    @property
    def outbound_entries(self) -> tuple[SpdEntry, ...]:
        """Those that hold back outbound traffic until there is an SA."""
        return tuple(entry for entry in self.entries if entry.direction is Direction.OUT)
