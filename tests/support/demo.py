"""The demonstration behind ``tests/demo``: run it in a kernel with ESP, as root."""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from tests.support import forge, observe
from tests.support.lab import DaemonError, Host, Lab, wait_for
from tests.support.realm import RealmError

_FORGERY_PORT = 7777
_sequence = itertools.count(1000)  # above what the kernel has used: no replay


class Screen:
    """What is said, and whether all of it was as it should be."""

    def __init__(self, *, colour: bool) -> None:
        self._colour = colour
        self._begun = time.monotonic()
        self._number = itertools.count(1)
        self.failures = 0

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._colour else text

    def title(self, text: str) -> None:
        """A step, said before it is done: that is the progress."""
        clock = self._paint("2", f"{time.monotonic() - self._begun:5.1f} s")
        head = self._paint("1;36", f"{next(self._number)}. {text}")
        print(f"\n{clock}  {head}", flush=True)

    def check(self, good: bool, text: str) -> None:
        """A claim and whether it holds."""
        self.failures += not good
        mark = self._paint("32", "ok  ") if good else self._paint("1;31", "FAIL")
        print(f"   {mark}  {text}", flush=True)

    def show(self, lines: Iterable[str], indent: str = "         ") -> None:
        """What somebody else said."""
        for line in lines:
            print(indent + line, flush=True)

    def end(self) -> int:
        """The last line; the exit status."""
        seconds = time.monotonic() - self._begun
        if self.failures:
            text = f"{self.failures} of the above did not hold ({seconds:.0f} s)"
            print("\n" + self._paint("1;31", text))
            return 1
        print("\n" + self._paint("1;32", f"All of it held ({seconds:.0f} s)."))
        return 0


class Demo:
    """The steps, in order."""

    def __init__(self, lab: Lab, screen: Screen, family: int) -> None:
        self._screen = screen
        self._lab = lab
        self._family = family
        self._alice, self._bob = lab["alice"], lab["bob"]

    def run(self, *, keep: bool) -> None:
        """All of it."""
        with self._lab.capture("alice") as self._pcap:
            self.first_ping()
        self.sas()
        self.wire()
        self.restart()
        self.forgery()
        if keep:
            self.shell()
        self.shutdown()

    def first_ping(self) -> None:
        """The first packet makes the keys it needs."""
        self._screen.title("The first ping from alice to bob")
        result = self._alice.ping(self._bob, family=self._family, count=5)
        others = [ms for number, ms in result.rtts.items() if number > 1]
        rest = f", the others {sum(others) / len(others):.1f} ms" if others else ""
        first = f"{result.rtts[1]:.1f} ms" if 1 in result.rtts else "lost"
        self._screen.check(
            result.lost == 0, f"{result.received} of {result.sent} answered; first {first}{rest}"
        )
        rows: list[dict[str, Any]] = self._alice.ask("status")["last_negotiations"]
        made = [row for row in rows if row["event"] == "sa-established"]
        total = made[0].get("ms_total") if made else None
        ticket = made[0].get("ms_ticket") if made else None
        self._screen.check(
            len(made) == 1 and made[0]["role"] == "initiator",
            f"one negotiation; {total} ms from the kernel's acquire to the SA"
            f" ({ticket} ms of them to fetch the ticket)",
        )

    def sas(self) -> None:
        """What kinkd and the kernel say of the SAs."""
        self._screen.title("The SAs of both hosts")
        for host in (self._alice, self._bob):
            self._screen.show([f"{host.name}$ kinkctl sas"])
            self._screen.show(host.kinkctl("sas").stdout.splitlines())
        agree = all(_agrees(host) for host in (self._alice, self._bob))
        names = {name for sa in self._alice.states() for name in sa.algorithms.values()}
        self._screen.check(
            agree and _keys(self._alice) == _keys(self._bob),
            f"ip xfrm state agrees: the same SPIs, the same keys on both, {' '.join(names)},"
            " pinned to the address pair",
        )

    def wire(self) -> None:
        """What an onlooker with bob's keytab can read."""
        self._screen.title("On the wire (kinkctl decode PCAP --keytab bob.keytab)")
        text = self._lab.decode(self._pcap, self._bob.keytab)
        exchange, protected = _blocks(text)
        self._screen.show([*exchange, *protected], indent="   ")
        self._screen.check(
            sum("verified" in line for line in exchange) == 2,
            "CREATE and REPLY decrypted, both checksums verified",
        )
        alice, bob = (str(host.node.address(self._family)) for host in (self._alice, self._bob))
        between = f"host {alice} and host {bob}"
        esp = observe.read_capture(self._pcap, f"{between} and ip{_six(self._family)} proto 50")
        clear = observe.read_capture(
            self._pcap,
            f"{between} and not ip{_six(self._family)} proto 50 and not udp port 910"
            " and not arp and not (icmp6 and ip6[40] >= 133 and ip6[40] <= 137)",
        )
        self._screen.check(
            len(esp) >= 10 and not clear,
            f"then {len(esp)} ESP packets between the two, and {len(clear)} in clear",
        )

    def restart(self) -> None:
        """SIGTERM leaves SAs and policies; a new start finds them."""
        self._screen.title("kinkd on alice is restarted while a ping runs")
        before = self._alice.states()
        policies = sorted(self._alice.policies())
        target = str(self._bob.node.address(self._family))
        pinging = self._alice.node.popen("ping", "-n", "-i", "0.05", "-W", "2", target)
        self._alice.stop()
        between = self._alice.states()
        self._screen.check(
            _spis(between) == _spis(before) and sorted(self._alice.policies()) == policies,
            f"after SIGTERM the kernel still has {len(between)} SAs and {len(policies)} policies",
        )
        self._alice.start()
        time.sleep(0.2)
        pinging.send_signal(2)
        result = observe.read_ping(pinging.communicate(timeout=20)[0])
        known = {int(row[end], 16) for row in self._alice.sas() for end in ("spi_in", "spi_out")}
        self._screen.check(
            known == _spis(before) == _spis(self._alice.states())
            and sorted(self._alice.policies()) == policies,
            "the new kinkd goes on with the same SAs and policies",
        )
        self._screen.check(
            result.lost == 0, f"{result.received} of {result.sent} pings answered meanwhile"
        )

    def forgery(self) -> None:
        """A host of the realm with keys of its own claims to be another."""
        self._screen.title("carol, keyed with bob, sends him ESP in alice's name")
        carol = self._lab["carol"]
        carol.start()
        carol.ping(self._bob, family=self._family)
        own = carol.node.address(self._family)
        honest = _send_as(carol, self._bob, own, b"as carol")
        self._screen.check(
            honest == (b"as carol", 0),
            "with her own source address it is accepted (so it is well made)",
        )
        alice = self._alice.node.address(self._family)
        forged, mismatches = _send_as(carol, self._bob, alice, b"as alice")
        self._screen.check(
            forged is None and mismatches == 1,
            "with alice's it is not: nothing received,"
            f" bob's kernel counts {mismatches} XfrmInStateMismatch",
        )
        carol.kinkctl("shutdown", "--delete")
        carol.wait()

    def shell(self) -> None:
        """A shell whose commands ``alice``, ``bob`` and ``carol`` run something on that host."""
        self._screen.title("A shell in the lab; leave it to go on")
        tools = self._lab.directory / "bin"
        tools.mkdir()
        for host in self._lab.hosts.values():
            _write_wrapper(tools / host.name, host)
        addresses = {
            name: str(host.node.address(self._family)) for name, host in self._lab.hosts.items()
        }
        self._screen.show(
            [
                "alice ping -c 3 $bob        alice kinkctl sas     bob ip xfrm state",
                "bob kinkctl terminate alice  wire tcpdump -n -i alice",
                f"logs and configuration: {self._lab.directory}",
            ]
        )
        wire = tools / "wire"
        wire.write_text(f'#!/bin/sh\nexec {" ".join(self._lab.topology.wire.prefix)} "$@"\n')
        wire.chmod(0o755)
        environment = {
            **os.environ,
            **self._lab.realm.environment,
            **addresses,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PS1": "lab$ ",
        }
        subprocess.run(["bash", "--norc"], env=environment, cwd=self._lab.directory, check=False)

    def shutdown(self) -> None:
        """The end of both, as a person would want it."""
        self._screen.title("kinkctl shutdown --delete, on alice and then on bob")
        self._alice.kinkctl("shutdown", "--delete")
        self._alice.wait()
        try:
            wait_for(lambda: not self._bob.states(), "bob's SAs are gone")
        except TimeoutError:
            self._screen.check(good=False, text="alice sent DELETE, but bob still has SAs")
        else:
            self._screen.check(good=True, text="alice sent DELETE: bob's kernel lost the pair")
        self._bob.kinkctl("shutdown", "--delete")
        self._bob.wait()
        hosts = self._lab.hosts.values()
        left = [what for host in hosts for what in (*host.states(), *host.policies())]
        self._screen.check(not left, f"both kernels are empty: {len(left)} SAs and policies left")


def _six(family: int) -> str:
    return "6" if family == 6 else ""


def _spis(states: Iterable[observe.KernelSa]) -> set[int]:
    return {state.spi for state in states}


def _keys(host: Host) -> dict[int, bytes]:
    return {state.spi: state.keymat for state in host.states()}


def _agrees(host: Host) -> bool:
    """Whether kernel and kinkd name the same SPIs, each pinned to its address pair."""
    states = host.states()
    told = {int(row[end], 16) for row in host.sas() for end in ("spi_in", "spi_out")}
    pinned = all(
        re.fullmatch(rf"src {state.source}/\d+ dst {state.destination}/\d+", state.selector)
        for state in states
    )
    return bool(states) and told == _spis(states) and pinned


def _blocks(text: str) -> tuple[list[str], list[str]]:
    """Of a decoded capture the lines of the first two KINK messages and of two ESP packets."""
    blocks = re.split(r"^(?=\+\d)", text, flags=re.MULTILINE)
    kink = [block for block in blocks if re.match(r"\+\S+ s \S+ port 910 > \S+ port 910 ", block)]
    esp = [block.rstrip() for block in blocks if " ESP spi " in block.split("\n")[0]]
    return "".join(kink[:2]).splitlines(), esp[:2]


def _send_as(
    sender: Host, receiver: Host, source: forge.Address, payload: bytes
) -> tuple[bytes | None, int]:
    """Send under the sender's keys; what arrived, and by how much XfrmInStateMismatch rose."""
    target = receiver.node.address(source.version)
    sa = next(
        sa
        for sa in sender.states()
        if (sa.source, sa.destination) == (sender.node.address(source.version), target)
    )
    before = receiver.node.xfrm_counters()["XfrmInStateMismatch"]
    receive = forge.receive_udp(receiver.node, target, _FORGERY_PORT)
    datagram = forge.udp_datagram(source, target, _FORGERY_PORT, payload)
    forge.send_esp(
        *(sender.node, receiver.node, sa),
        source=source,
        sequence=next(_sequence),
        datagram=datagram,
    )
    arrived = receive(1)
    return arrived, receiver.node.xfrm_counters()["XfrmInStateMismatch"] - before


def _write_wrapper(path: Any, host: Host) -> None:
    enter = " ".join(host.node.prefix)
    path.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = kinkctl ]; then shift; '
        f'set -- {sys.executable} -m kinkd.cli.kinkctl --socket {host.socket} "$@"; fi\n'
        f'exec {enter} "$@"\n'
    )
    path.chmod(0o755)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demonstration; the exit status: 0 when all of it held."""
    parser = argparse.ArgumentParser(prog="tests/demo")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--ipv6", action="store_true")
    parser.add_argument("--etype", type=int, default=18, choices=(17, 18, 19, 20))
    options = parser.parse_args(arguments)
    screen = Screen(colour="KINKD_DEMO_COLOUR" in os.environ)
    family = 6 if options.ipv6 else 4
    kernel = platform.release() + (" (User-Mode Linux)" if _is_uml() else "")
    screen.title(f"A realm, two hosts; etype {options.etype}, IPv{family}, kernel {kernel}")
    try:
        with Lab(("alice", "bob", "carol"), etype=options.etype) as lab:
            lab.start("alice", "bob")
            screen.check(
                good=True,
                text=f"krb5kdc serves {lab.realm.name}; kinkd is ready on"
                f" alice ({lab['alice'].node.address(family)})"
                f" and bob ({lab['bob'].node.address(family)})",
            )
            Demo(lab, screen, family).run(keep=options.keep)
    except (DaemonError, RealmError, RuntimeError) as error:
        screen.check(good=False, text=str(error))
    return screen.end()


def _is_uml() -> bool:
    with open("/proc/cpuinfo", encoding="ascii") as handle:
        return "User Mode Linux" in handle.read()


if __name__ == "__main__":
    sys.exit(main())
