"""The laboratory: a network, a real realm, and real kinkd daemons on its hosts.

with Lab() as lab:
    lab.start("alice", "bob")
    assert lab["alice"].ping(lab["bob"]).lost == 0
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from string import Template
from types import TracebackType
from typing import Any, Self

from kinkd.cli import kinkctl
from tests.support import observe
from tests.support.realm import Realm, connect
from tests.support.topology import HOSTS, Node, Topology

PASSWORD = "secret"  # of every person
READY_PATIENCE = 60.0  # seconds; the first SA of an algorithm loads modules


@dataclass(frozen=True)
class Rule:
    """A rule of the lab's policy; ``profile`` is required between the hosts it names."""

    profile: str = "fast"
    hosts: tuple[str, str] = ("all", "all")
    mode: str = "transport"
    udp: bool = False

    def text(self, number: int) -> str:
        """As the policy has it."""
        return (
            f'[[rules]]\nname = "{number}"\nfrom = "{self.hosts[0]}"\nto = "{self.hosts[1]}"\n'
            f'action = "require"\nprofile = "{self.profile}"\nmode = "{self.mode}"\n'
            f"udp_encapsulation = {str(self.udp).lower()}\n"
        )


class DaemonError(Exception):
    """A kinkd did not do what it was told; the text ends with its log."""


class Host:
    """One host of the lab and its kinkd; files are in ``directory``, the log outlives a start."""

    def __init__(
        self, node: Node, directory: Path, realm: Realm, policy: Path, user: str | None = None
    ) -> None:
        self.node = node
        self.name = node.name
        self.directory = directory
        self.keytab = directory / "keytab"
        self.user = user  # a person in front of it: a ticket-granting ticket, no keytab
        self.ccache = f"FILE:{directory}/ccache"
        self.more_environment: dict[str, str] = {}  # of its kinkd
        self.state = directory / "state"
        self.socket = directory / "control.sock"
        self.config = directory / "kinkd.toml"
        self.log_file = directory / "kinkd.log"
        self.realm = realm
        self.process: subprocess.Popen[str] | None = None
        self.kept: dict[str, int] = {}  # what a service manager keeps for its next start
        directory.mkdir()
        self.state.mkdir()
        if user is None:
            self.principal, self.client = realm.add_host(self.name, self.keytab)
        else:
            self.principal = self.client = realm.add_person(user, PASSWORD)
            self.kinit()
        self.configure(policy=policy)

    def kinit(self, *options: str) -> None:
        """The person types the password, again."""
        if self.user is not None:
            self.realm.kinit(self.user, PASSWORD, self.ccache, *options, prefix=self.node.prefix)

    def identity(self) -> str:
        """Who it is, as the policy has it."""
        if self.user is not None:
            return f'user = "{self.client}"\n'
        return f'service = "{self.principal}"\nclient = "{self.client}"\n'

    def configure(self, *, policy: Path, level: str = "info", keytab: Path | None = None) -> None:
        """Write the configuration file."""
        self.config.write_text(
            f'[host]\nname = "{self.name}"\n'
            f"[kerberos]\n{self._credentials(keytab)}\n"
            f'[policy]\nfile = "{policy}"\n'
            f'[state]\ndirectory = "{self.state}"\n'
            f'[control]\nsocket = "{self.socket}"\n'
            f'[log]\nlevel = "{level}"\n'
        )

    def _credentials(self, keytab: Path | None) -> str:
        if self.user is not None:
            return f'ccache = "{self.ccache}"'
        return f'keytab = "{keytab or self.keytab}"'

    @property
    def environment(self) -> dict[str, str]:
        """What its programs run with."""
        return {**os.environ, **self.realm.environment}

    def start(self) -> None:
        """Start kinkd and return when it says READY.

        Raises:
            DaemonError: it ended, or did not get ready in time.
        """
        self.launch()()

    def launch(self) -> Callable[[], None]:
        """Start kinkd; what is returned waits until it says READY (see ``start``)."""
        path = self.directory / "notify"
        path.unlink(missing_ok=True)
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(str(path))
        with self.log_file.open("a") as log:
            self.process = self.node.popen(
                *self._receiving_kept(),
                *(sys.executable, "-m", "kinkd.cli.kinkd", "run", "--config", self.config),
                stdout=log,
                stderr=log,
                env={
                    **self.environment,
                    **self.more_environment,
                    "NOTIFY_SOCKET": str(path),
                    "LISTEN_FDS": str(len(self.kept)),
                    "LISTEN_FDNAMES": ":".join(self.kept),
                },
                pass_fds=tuple(self.kept.values()),
            )
        return lambda: self._await_ready(notify)

    def _receiving_kept(self) -> tuple[str, ...]:
        """What starts a command with the kept sockets from descriptor 3 on: sd_listen_fds(3)."""
        if not self.kept:
            return ()
        moves = " ".join(f"{new}<&{old}" for new, old in enumerate(self.kept.values(), 3))
        return ("bash", "-c", f'LISTEN_PID=$$ exec "$@" {moves}', "bash")

    def _keep(self, said: list[str], descriptors: list[int]) -> None:
        """As a service manager does with FDSTORE=1: sd_pid_notify_with_fds(3)."""
        name = next((line[7:] for line in said if line.startswith("FDNAME=")), "")
        if "FDSTORE=1" in said and name not in self.kept:
            self.kept[name] = descriptors.pop()
        if "FDSTOREREMOVE=1" in said:
            os.close(self.kept.pop(name))
        for descriptor in descriptors:
            os.close(descriptor)

    def _await_ready(self, notify: socket.socket) -> None:
        deadline = time.monotonic() + READY_PATIENCE
        with notify:
            notify.settimeout(0.2)
            while time.monotonic() < deadline:
                try:
                    octets, descriptors, _, _ = socket.recv_fds(notify, 4096, 4)
                    said = octets.decode().split("\n")
                    self._keep(said, descriptors)
                    if "READY=1" in said:
                        return
                except TimeoutError:
                    if self.process is not None and self.process.poll() is not None:
                        break
        raise DaemonError(f"{self.name}: kinkd did not get ready\n{self.log()}")

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status. What ran in the kernel stays there."""
        if self.process is None:
            return 0
        self.process.send_signal(signum)
        return self.wait()

    def wait(self, timeout: float = 20) -> int:
        """Wait for kinkd's end; the exit status."""
        if self.process is None:
            return 0
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise DaemonError(f"{self.name}: kinkd did not end\n{self.log()}") from None
        finally:
            self.process = None

    @property
    def running(self) -> bool:
        """Whether its kinkd lives."""
        return self.process is not None and self.process.poll() is None

    def log(self) -> str:
        """All that its kinkd has logged so far."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def logged(self, event: str) -> list[str]:
        """The log lines that hold ``event`` as a word."""
        return [line for line in self.log().splitlines() if event in line.split()]

    def kinkctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kinkctl as a person would. It costs a start of Python; ``ask`` does not."""
        command = (sys.executable, "-m", "kinkd.cli.kinkctl", "--socket", self.socket)
        return self.node.run(*command, *arguments, check=check, env=self.environment)

    def ask(self, *arguments: str) -> dict[str, Any]:
        """What ``kinkctl --json`` answers.

        Raises:
            DaemonError: it failed; the text is what it said.
        """
        status, out, err = _kinkctl("--socket", str(self.socket), "--json", *arguments)
        if status:
            raise DaemonError(f"{self.name}: kinkctl {' '.join(arguments)}: {err or out}")
        answer: dict[str, Any] = json.loads(out)
        return answer

    def sas(self) -> list[dict[str, Any]]:
        """The SA pairs that its kinkd knows."""
        rows: list[dict[str, Any]] = self.ask("sas")["sas"]
        return rows

    def counters(self) -> dict[str, int]:
        """Its kinkd's counters."""
        counters: dict[str, int] = self.ask("status")["counters"]
        return counters

    def states(self) -> list[observe.KernelSa]:
        """The SAs in its kernel."""
        return observe.read_states(self.node)

    def policies(self) -> list[str]:
        """The policies in its kernel."""
        return observe.read_policies(self.node)

    def ping(self, peer: Host, *, family: int = 4, count: int = 1, **more: float) -> observe.Ping:
        """Ping a host of the lab; see ``observe.ping``."""
        target = peer.node.address(family)
        return observe.ping(
            self.node,
            target,
            count=count,
            interval=more.get("interval", 0.2),
            patience=more.get("patience", 10),
        )


class Lab:
    """``hosts`` and a KDC on a network of their own, in a directory of their own.

    Args:
        hosts: which hosts there are.
        etype: of all keys of the realm, session keys too.
        profile: the crypto profile of the one rule of the policy, where ``rules`` has none.
        families: the address families of hosts in the policy, 4 and 6; tunnels end at the first.
        mtu: of every link, in octets.
        gateways: which hosts have a network behind them, with a host in it: ``lab.behind``.
        rules: of the policy.
        profiles: of the policy, as it has them, beside those that are always there.
        people: which hosts have a person in front of them, and no keytab.
        realms: which hosts are of another realm than EXAMPLE.TEST.
        paths: from one realm to the next, where they trust each other (``realm.connect``).
        kind: of KDC.
        lifetime: seconds that no ticket outlives.
        bystanders: hosts without kinkd.
        document: the whole policy, instead of one made of the above (see ``fill``).
    """

    def __init__(
        self,
        hosts: Sequence[str] = ("alice", "bob"),
        *,
        etype: int = 18,
        profile: str = "fast",
        families: Sequence[int] = (4, 6),
        mtu: int = 1500,
        gateways: Sequence[str] = (),
        rules: Sequence[Rule] = (),
        profiles: str = "",
        people: Mapping[str, str] | None = None,
        realms: Mapping[str, str] | None = None,
        paths: Sequence[tuple[str, str, str]] = (),
        kind: Callable[..., Realm] = Realm,
        lifetime: int = 36000,
        bystanders: Sequence[str] = (),
        document: str = "",
    ) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kinkd-lab-"))
        self.policy = self.directory / "policy.toml"
        names = dict.fromkeys((*HOSTS, *hosts, *bystanders))
        self.topology = Topology(tuple(names), mtu=mtu, gateways=gateways)
        self.behind = self.topology.behind
        self.hosts: dict[str, Host] = {}
        self._names = tuple(hosts)
        self._rules = tuple(rules)
        self._profile = profile
        self._profiles = profiles
        self._families = tuple(families)
        self._etype = etype
        self._people = dict(people or {})
        self._realm_of = dict(realms or {})
        self._paths = tuple(paths)
        self._kind = kind
        self._lifetime = lifetime
        self._document = document
        self._version = 1
        self._stack = ExitStack()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def __enter__(self) -> Self:
        with self._stack:
            self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self._stack.enter_context(self.topology)
            names = dict.fromkeys(self._realm_of.get(host, "EXAMPLE.TEST") for host in self._names)
            self.realms = {
                name: self._make_realm(name, 88 + 100 * number) for number, name in enumerate(names)
            }
            self.realm = next(iter(self.realms.values()))
            for one, other in pairwise(self.realms.values()):
                one.trust(other)
            if len(self.realms) > 1:
                connect(tuple(self.realms.values()), self._paths)
            for name in self._names:
                self.hosts[name] = Host(
                    self.topology[name],
                    self.directory / name,
                    self.realms[self._realm_of.get(name, self.realm.name)],
                    self.policy,
                    self._people.get(name),
                )
            self.policy.write_text(self.policy_text())
            self._stack.callback(self._stop_all)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if fault is not None:
            for host in self.hosts.values():
                print(f"--- log of {host.name}\n{host.log()}", file=sys.stderr)
        self._stack.close()

    def _make_realm(self, name: str, port: int) -> Realm:
        kdc = self.topology["kdc"]
        realm = self._kind(
            self.directory / f"realm-{name}",
            name=name,
            address=str(kdc.ipv4),
            port=port,
            etypes=(self._etype,),
            lifetime=self._lifetime,
            prefix=kdc.prefix,
        )
        return self._stack.enter_context(realm)

    def _stop_all(self) -> None:
        for host in self.hosts.values():
            if host.running:
                host.stop(signal.SIGKILL)
            for descriptor in host.kept.values():
                os.close(descriptor)

    def policy_text(self, *, profiles: str | None = None) -> str:
        """The realm's policy; ``profiles``: others than those of the lab."""
        if self._document:
            return self.fill(self._document)
        lines = ["schema = 1", "version = 1", f'realm = "{self.realm.name}"']
        for name in self._names:
            node = self.topology[name]
            lines += [
                f"[hosts.{name}]",
                self.hosts[name].identity(),
                f"addresses = {_strings(map(node.address, self._families))}",
            ]
            networks = [net for net in node.networks if net.version in self._families]
            if networks:
                lines.append(f"networks = {_strings(networks)}")
        rules = self._rules or (Rule(self._profile),)
        lines.append(self._profiles if profiles is None else profiles)
        lines += [rule.text(number) for number, rule in enumerate(rules, 1)]
        return "\n".join(lines) + "\n"

    def fill(self, document: str, version: int = 1) -> str:
        """A document with what the lab knows of it: ``$version``, and lists of addresses.

        Of every host there are ``$NAME``, both, and ``${NAME}4`` and ``${NAME}6``, one of them.
        """
        known = {"version": str(version)}
        for name, node in self.topology.nodes.items():
            known[name] = _strings((node.ipv4, node.ipv6))
            known |= {f"{name}{family}": _strings((node.address(family),)) for family in (4, 6)}
        return Template(document).substitute(known)

    def publish(self, document: str) -> int:
        """Replace the policy file, filled in, by the next version; the number of that."""
        self._version += 1
        self.replace_policy(self.fill(document, self._version))
        return self._version

    def replace_policy(self, text: str) -> None:
        """Replace the policy file at once."""
        fresh = self.policy.with_suffix(".new")
        fresh.write_text(text)
        fresh.rename(self.policy)

    def roll_out(self, document: str, *names: str) -> int:
        """Publish, and wait until it is in force on these hosts, or on all that run."""
        version = self.publish(document)
        running = [host for host in self.hosts.values() if host.running]
        for host in [self.hosts[name] for name in names] or running:
            wait_for(partial(_goes_by, host, version), f"{host.name} goes by version {version}")
        return version

    def start(self, *names: str) -> None:
        """Start the kinkd of these hosts, or of all, beside one another.

        Raises:
            DaemonError: one ended, or did not get ready in time.
        """
        waits = [self.hosts[name].launch() for name in names or self._names]
        faults = []
        for wait in waits:
            try:
                wait()
            except DaemonError as fault:
                faults.append(fault)
        if faults:
            raise faults[0]

    def states_between(self, name: str, peer: str) -> list[observe.KernelSa]:
        """The SAs in the kernel of ``name`` from and to an address of ``peer``."""
        ends = {self[host].node.address(family) for host in (name, peer) for family in (4, 6)}
        return [sa for sa in self[name].states() if {sa.source, sa.destination} <= ends]

    def unkey(self, name: str, peer: str) -> None:
        """Terminate the pairs of two hosts, and wait until neither kernel has an SA of them."""

        def gone() -> bool:
            return not (self.states_between(name, peer) or self.states_between(peer, name))

        self[name].ask("terminate", peer)
        wait_for(gone, f"{name} and {peer} lose their SAs")

    @contextmanager
    def capture(self, name: str, expression: str = "") -> Iterator[Path]:
        """Capture on a host's wire; the file is complete after the block."""
        path = self.directory / f"{name}-{time.monotonic_ns()}.pcap"
        with observe.Capture(self.topology.wire, name, path, expression):
            yield path

    @contextmanager
    def without_esp(self, name: str) -> Iterator[None]:
        """Meanwhile the network takes no IP protocol 50 from this host."""
        wire = self.topology.wire
        wire.run("tc", "qdisc", "add", "dev", name, "clsact")
        try:
            for protocol, match in (("ip", "ip"), ("ipv6", "ip6")):
                wire.run(
                    *("tc", "filter", "add", "dev", name, "ingress", "protocol", protocol),
                    *("u32", "match", match, "protocol", "50", "0xff", "action", "drop"),
                )
            yield
        finally:
            wire.run("tc", "qdisc", "del", "dev", name, "clsact")

    @contextmanager
    def delay(self, *names: str, milliseconds: int) -> Iterator[None]:
        """Meanwhile what these hosts are sent is so late."""
        with self.netem(*names, how=f"delay {milliseconds}ms"):
            yield

    @contextmanager
    def netem(self, *names: str, how: str) -> Iterator[None]:
        """Meanwhile the network does this to what these hosts are sent: see tc-netem(8)."""
        wire = self.topology.wire
        for name in names:
            wire.run("tc", "qdisc", "add", "dev", name, "root", "netem", *how.split())
        try:
            yield
        finally:
            for name in names:
                wire.run("tc", "qdisc", "del", "dev", name, "root")

    def decode(self, pcap: Path, keytab: Path, *options: str) -> str:
        """What ``kinkctl decode`` prints of a capture."""
        status, out, err = _kinkctl("decode", str(pcap), "--keytab", str(keytab), *options)
        if status:
            raise DaemonError(f"kinkctl decode: {err}")
        return out

    def derived_keymat(self, pcap: Path, keytab: Path) -> dict[int, bytes]:
        """The KEYMAT of every SA that ``kinkctl decode`` finds in a capture, by SPI."""
        document = json.loads(self.decode(pcap, keytab, "--json", "--show-keys"))
        return {
            int(keys["spi"], 16): bytes.fromhex(keys["encryption"] + keys["authentication"])
            for packet in document["packets"]
            for keys in packet.get("keymat", [])
        }


def _kinkctl(*arguments: str) -> tuple[int, str, str]:
    """Run kinkctl in this process: exit status, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = kinkctl.main(arguments)
    return status, out.getvalue(), err.getvalue()


def _goes_by(host: Host, version: int) -> bool:
    return bool(host.ask("status")["policy_version"] == version)


def _strings(things: Iterable[object]) -> str:
    """A list of strings in TOML."""
    return json.dumps([str(thing) for thing in things])


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 15) -> None:
    """Wait until ``condition`` holds.

    Raises:
        TimeoutError: it did not within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout:g} s")
        time.sleep(0.05)
