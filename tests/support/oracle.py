"""What a policy document demands of one packet, worked out a second time and as plainly as can be.

It shares no line with kinkd: the document is read by ``tomllib`` and taken at its word. The tests
ask it what the entries of the SPD have to do, the lab what a capture may hold.
"""

from __future__ import annotations

import re
import struct
import tomllib
from collections import Counter
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

Address = IPv4Address | IPv6Address
NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132, "dccp": 33, "udplite": 136, "igmp": 2, "gre": 47}
SERVICES = {
    "kdc": {(6, 88), (17, 88), (6, 464), (17, 464)},
    "dns": {(6, 53), (17, 53)},
    "ntp": {(17, 123)},
    "directory": {(6, 389), (6, 636)},
}
IPSEC = (50, 51)
LINK = ("169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "::1/128", "fe80::/10", "ff00::/8")


class Packet(NamedTuple):
    """One packet as it would be without IPsec; of ICMP the ports are type and code."""

    source: Address
    destination: Address
    protocol: int
    source_port: int = 0
    destination_port: int = 0


class Demand(NamedTuple):
    """``action`` in the document's words; in ``audit`` nothing is dropped for it."""

    action: str
    audit: bool = False
    rule: str = ""


CLEAR = Demand("clear")


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def admits(word: str, version: int, protocol: int, ports: tuple[int, int]) -> bool:
    """Whether a packet of who asks is traffic of this word; ``ports``: his, and the other's."""
    name, _, rest = word.partition("/")
    name, _, own = name.partition(" from ") if " from " in name else (name, "", "")
    far, _, own = rest.partition(" from ") if " from " in rest else (rest, "", own)
    if name == "any":
        return True
    if name == "ip":
        return protocol == int(far)
    if protocol != (NUMBERS | {"icmp": 1 if version == 4 else 58})[name]:
        return False
    for text, port in ((own, ports[0]), (far, ports[1])):
        ends = [int(each) for each in re.findall(r"\d+", text)]
        if ends and not ends[0] <= port <= ends[-1]:
            return False
    return True


class Oracle:
    """One document, asked by packet."""

    def __init__(self, text: str) -> None:
        self.document = tomllib.loads(text)
        self.hosts = self.document["hosts"]
        self.places = self.document.get("networks", {})
        self.rules = self.document.get("rules", [])
        self.owners = [(ip_network(net), "", False) for net in LINK]
        for name, host in self.hosts.items():
            self.owners += ((ip_network(a), name, False) for a in _list(host["addresses"]))
            self.owners += ((ip_network(n), name, True) for n in _list(host.get("networks", [])))
        for name, place in self.places.items():
            self.owners += ((ip_network(n), name, False) for n in _list(place["prefixes"]))

    def owner(self, address: Address) -> tuple[str, bool]:
        """Who has an address, and whether it lies behind him; "" is the link itself."""
        around = [each for each in self.owners if address in each[0]]
        longest = max(around, key=lambda each: each[0].prefixlen, default=(None, "world", False))
        return longest[1], longest[2]

    def _names(self, party: str, words: str | list[str]) -> bool:
        """Whether a list of a rule's or group's words names a party."""
        host = self.hosts.get(party)
        fqdn = "" if host is None else host.get("fqdn") or host.get("service", "/").split("/")[1]
        for word in _list(words):
            if word in self.document.get("groups", {}):
                named = self._names(party, self.document["groups"][word])
            elif set(word) & set("*?["):
                own = (party, fqdn.split("@")[0])
                named = host is not None and any(fnmatchcase(each, word) for each in own)
            else:
                named = word == party or (word == "all" and host is not None)
            if named:
                return True
        return False

    def demand(self, packet: Packet) -> Demand:
        """What is to be done with a packet, by the first rule that says something of it."""
        (one, behind_one), (other, behind_other) = map(self.owner, packet[:2])
        if one == other or not one or not other:
            return CLEAR
        version, ports = packet.source.version, (packet.source_port, packet.destination_port)
        for rule in self.rules:
            action = rule["action"]
            for asking, answering, at, does in (
                (one, other, ports, action),
                (other, one, ports[::-1], rule.get("back", action)),
            ):
                if self._names(asking, rule["from"]) and self._names(answering, rule["to"]):
                    for word in _list(rule.get("traffic", "any")):
                        if admits(word, version, packet.protocol, at):
                            return self._done(rule, does, (one, other), behind_one or behind_other)
        return CLEAR

    def _done(self, rule: dict, action: str, parties: tuple[str, str], behind: bool) -> Demand:
        hosts = [self.hosts[name] for name in parties if name in self.hosts]
        disabled = any(host.get("disabled", False) for host in hosts)
        trials = (rule,) if disabled else (rule, *hosts)
        audit = any(each.get("audit", False) for each in trials)
        if action in ("require", "request"):
            tunnel = rule.get("mode", "transport") == "tunnel"
            if behind and not tunnel:
                action = "clear"  # an SA of transport mode has nothing to do with it
            elif len(hosts) < 2:  # nobody there can be keyed
                action = "clear" if action == "request" else "block" if tunnel else action
            elif disabled:
                action = "block"
        return Demand(action, audit, rule["name"])

    def is_exempt(self, packet: Packet) -> bool:
        """Whether a packet passes in clear whatever the rules say."""
        protocol, ends = packet.protocol, (packet.source_port, packet.destination_port)
        if protocol == 58:
            return ends[0] in (2, 135, 136)
        if protocol == 1:
            return ends == (3, 4)
        if protocol == 17 and sorted(ends) in ([910, 910], [67, 68], [546, 547]):
            return True
        servers = self.document.get("servers", {}).items()
        for service, names in servers:
            for name in _list(names):
                own = self.hosts[name]["addresses"] if name in self.hosts else name
                for address in map(ip_address, _list(own)):
                    asks = packet.destination == address and (protocol, ends[1])
                    answers = packet.source == address and (protocol, ends[0])
                    if asks in SERVICES[service] or answers in SERVICES[service]:
                        return True
        return False

    def judge(self, capture: Path, senders: Collection[str]) -> Judged:
        """What hosts with these Ethernet addresses have sent, and what of it is forbidden.

        Whoever has no kinkd sends what he likes: it is for the others not to take it.
        """
        judged = Judged(Counter(), [])
        for sender, packet in read_capture(capture):
            if sender not in senders:
                judged.counts["of others"] += 1
            elif packet.protocol in IPSEC:
                judged.counts["IPsec"] += 1
            elif not all(self.owner(end)[0] for end in packet[:2]):
                judged.counts["of the link"] += 1
            elif self.is_exempt(packet):
                judged.counts[_exemption(packet)] += 1
            elif (demand := self.demand(packet)).action in ("clear", "request") or demand.audit:
                judged.counts[f"clear by {demand.rule or 'no rule'}"] += 1
            else:
                judged.forbidden.append(f"{packet} {demand}")
        return judged


class Judged(NamedTuple):
    """How many packets there were of each kind; those that ought not to be there in words."""

    counts: Counter[str]
    forbidden: list[str]


def _exemption(packet: Packet) -> str:
    if packet.protocol in (1, 58):
        return f"exempt: ICMP type {packet.source_port}"
    ports = sorted((packet.source_port, packet.destination_port))
    return "exempt: KINK" if ports == [910, 910] else f"exempt: port {ports[0]}"


def read_capture(path: Path) -> Iterator[tuple[str, Packet]]:
    """Who sent each IP packet of a capture from Ethernet, and what it is; ARP is left out.

    A fragment beyond the first is what the first of its packet was (RFC 791 §3.2).
    """
    octets = path.read_bytes()
    at, firsts = 24, dict[bytes, Packet]()
    while at < len(octets):
        (length,) = struct.unpack_from("<8xI", octets, at)
        frame = octets[at + 16 : at + 16 + length]
        at += 16 + length
        if frame[12:14] in (b"\x08\x00", b"\x86\xdd"):
            yield frame[6:12].hex(":"), _packet(frame[14:], firsts)


def _packet(octets: bytes, firsts: dict[bytes, Packet]) -> Packet:
    if octets[0] >> 4 == 4:
        ends = IPv4Address(octets[12:16]), IPv4Address(octets[16:20])
        protocol, start = octets[9], 4 * (octets[0] & 15)
        of_one, offset = octets[4:6] + octets[9:10] + octets[12:20], octets[6:8]
        if int.from_bytes(offset) & 0x1FFF:
            return firsts[of_one]
    else:
        ends = IPv6Address(octets[8:24]), IPv6Address(octets[24:40])
        protocol, start, of_one = octets[6], 40, b""
        while protocol in (0, 43, 44, 60):
            if protocol == 44:
                of_one = octets[start + 4 : start + 8] + octets[8:40]
                if int.from_bytes(octets[start + 2 : start + 4]) & 0xFFF8:
                    return firsts[of_one]
                protocol, start = octets[start], start + 8
            else:
                protocol, start = octets[start], start + 8 * (octets[start + 1] + 1)
    ports = (0, 0)
    if protocol in (1, 58):
        ports = octets[start], octets[start + 1]
    elif protocol in NUMBERS.values():
        ports = struct.unpack_from("!HH", octets, start)
    found = Packet(*ends, protocol, *ports)
    firsts[of_one] = found
    return found
