"""A real, throw-away Kerberos realm: MIT's krb5kdc on one address and port, files in one directory.

with Realm(directory) as realm:
    realm.add("kink/alice.example.test", keytab=directory / "alice.keytab")
    ... os.environ.update(realm.environment) ...
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ETYPES = {
    17: "aes128-cts-hmac-sha1-96",
    18: "aes256-cts-hmac-sha1-96",
    19: "aes128-cts-hmac-sha256-128",
    20: "aes256-cts-hmac-sha384-192",
    23: "arcfour-hmac",
    26: "camellia256-cts-cmac",
}

_KRB5_CONF = """\
[libdefaults]
    default_realm = {name}
    dns_lookup_kdc = false
    dns_lookup_realm = false
    dns_canonicalize_hostname = false
    rdns = false
    clockskew = {clockskew}
    permitted_enctypes = {etypes}
    allow_weak_crypto = false
[realms]
    {name} = {{
        kdc = {server}
    }}
"""

_KDC_CONF = """\
[kdcdefaults]
    kdc_listen = {server}
    kdc_tcp_listen = {server}
[realms]
    {name} = {{
        database_name = {directory}/principal
        key_stash_file = {directory}/stash
        acl_file = {directory}/kadm5.acl
        max_life = {lifetime}s
        max_renewable_life = 0
        master_key_type = {master}
        supported_enctypes = {salted}
    }}
[logging]
    kdc = FILE:{directory}/kdc.log
    admin_server = FILE:{directory}/kadmin.log
"""


class RealmError(Exception):
    """A tool of the realm failed; the text is what it said."""


class Realm:
    """One realm and its KDC.

    Args:
        directory: where configuration, database and log go; made where it is missing.
        name: the realm's name.
        address: where the KDC listens.
        port: on UDP and TCP; 0 takes one that is free here and now.
        etypes: of all keys, session keys too; the first is preferred.
        lifetime: seconds that no ticket outlives.
        clockskew: seconds of difference that libkrb5 forgives, on KDC and hosts.
        prefix: a command that runs the KDC elsewhere, like ``("ip", "netns", "exec", "kdc")``.
    """

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "EXAMPLE.TEST",
        address: str = "127.0.0.1",
        port: int = 0,
        etypes: Sequence[int] = (18,),
        lifetime: int = 36000,
        clockskew: int = 300,
        prefix: Sequence[str] = (),
    ) -> None:
        self.directory = directory.absolute()
        self.name = name
        self.address = address
        self.port = port or free_port(address)
        self.etypes = tuple(etypes)
        self.prefix = tuple(prefix)
        self._kdc: subprocess.Popen[bytes] | None = None
        self.directory.mkdir(parents=True, exist_ok=True)
        names = [ETYPES[etype] for etype in self.etypes]
        host = f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
        self.server = f"{host}:{self.port}"
        values = {
            "name": name,
            "server": self.server,
            "directory": self.directory,
            "etypes": " ".join(names),
            "salted": " ".join(f"{each}:normal" for each in names),
            "master": names[0],
            "lifetime": lifetime,
            "clockskew": clockskew,
        }
        self.config.write_text(_KRB5_CONF.format(**values))
        self._kdc_conf.write_text(_KDC_CONF.format(**values))
        self._log.write_text("")

    @property
    def config(self) -> Path:
        """The krb5.conf of the realm's hosts."""
        return self.directory / "krb5.conf"

    @property
    def _kdc_conf(self) -> Path:
        return self.directory / "kdc.conf"

    @property
    def _log(self) -> Path:
        return self.directory / "kdc.log"

    @property
    def environment(self) -> dict[str, str]:
        """What a program of the realm needs in its environment."""
        return {"KRB5_CONFIG": str(self.config)}

    def create(self) -> None:
        """Make an empty database (done by ``with``)."""
        self._tool("kdb5_util", "create", "-s", "-r", self.name, "-P", "throw-away")

    def add(
        self,
        principal: str,
        *,
        keytab: Path | None = None,
        etypes: Sequence[int] = (),
        attributes: Sequence[str] = (),
    ) -> str:
        """Add a principal with random keys, and append them to ``keytab``; gives its full name.

        Args:
            principal: with or without the realm.
            keytab: a file to append the keys to.
            etypes: of its keys, where not those of the realm.
            attributes: words for kadmin's ``addprinc``, like ``-maxlife``, ``"5 seconds"``.
        """
        full = principal if "@" in principal else f"{principal}@{self.name}"
        self._kadmin("addprinc", "-randkey", *_enctypes(etypes), *attributes, full)
        if keytab is not None:
            self.write_keytab(keytab, full)
        return full

    def add_person(self, name: str, password: str, *, attributes: Sequence[str] = ()) -> str:
        """Add a principal with a password and no keytab; gives its full name."""
        full = f"{name}@{self.name}"
        self._kadmin("addprinc", "-pw", password, *attributes, full)
        return full

    def kinit(
        self, name: str, password: str, ccache: str, *options: str, prefix: Sequence[str] = ()
    ) -> None:
        """A person types the password; the TGT goes into ``ccache``, a new one each time.

        ``prefix``: a command that runs kinit where the person is.
        """
        done = subprocess.run(
            [*prefix, _find("kinit"), "-c", ccache, *options, f"{name}@{self.name}"],
            env=self._environment(),
            input=password + "\n",
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RealmError(f"kinit: {done.stderr.strip()}")

    def add_host(self, name: str, keytab: Path) -> tuple[str, str]:
        """Add a host of example.test; gives the names of its service and of its client."""
        service = self.add(f"kink/{name}.example.test", keytab=keytab)
        return service, service

    def trust(self, other: Realm) -> None:
        """Clients of either get tickets in the other (RFC 4120 §1.2)."""
        for issuer, target in ((self, other), (other, self)):
            for realm in (issuer, target):
                realm._kadmin("addprinc", "-pw", "trust", f"krbtgt/{target.name}@{issuer.name}")

    def write_keytab(self, keytab: Path, *principals: str) -> None:
        """Append the present keys of ``principals`` to a keytab."""
        self._kadmin("ktadd", "-k", str(keytab.absolute()), "-norandkey", *principals)

    def change_key(self, principal: str, *, etypes: Sequence[int] = ()) -> None:
        """New random keys with the next kvno; no keytab learns of them."""
        self._kadmin("cpw", "-randkey", *_enctypes(etypes), principal)

    def disable(self, principal: str) -> None:
        """No more tickets of it or for it."""
        self._kadmin("modprinc", "-allow_tix", principal)

    def requests(self) -> list[str]:
        """The lines that the KDC has logged, one for each request."""
        return [line for line in self._log.read_text().splitlines() if "_REQ (" in line]

    def delete(self, principal: str) -> None:
        """Take a principal out of the database."""
        self._kadmin("delprinc", "-force", principal)

    def set_session_etypes(self, principal: str, etypes: Sequence[int]) -> None:
        """The etypes that a service takes for its session keys, the first is preferred."""
        self._kadmin("setstr", principal, "session_enctypes", " ".join(ETYPES[e] for e in etypes))

    def start(self) -> None:
        """Start the KDC and return once it answers.

        Raises:
            RealmError: it does not start.
        """
        begin = self._log.stat().st_size
        command = [*self.prefix, _find("krb5kdc"), "-n", "-r", self.name]
        self._kdc = subprocess.Popen(
            command, env=self._environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 20
        while b"commencing operation" not in self._log.read_bytes()[begin:]:
            if self._kdc.poll() is not None or time.monotonic() > deadline:
                said = self._end()
                raise RealmError(f"krb5kdc does not start: {said or self._log.read_text()}")
            time.sleep(0.01)

    def await_port(self, process: subprocess.Popen[bytes], out: Path) -> None:
        """Return once a KDC that writes to ``out`` takes connections. Raises RealmError."""
        probe = f"exec 3<>/dev/tcp/{self.address}/{self.port}"
        command = [*self.prefix, "bash", "-c", probe]
        deadline = time.monotonic() + 60
        while subprocess.run(command, capture_output=True, check=False).returncode:
            if process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RealmError(f"the KDC does not start: {out.read_text()}")
            time.sleep(0.1)

    def stop(self) -> None:
        """Stop the KDC; its database stays, ``start`` goes on with it."""
        if self._kdc is not None:
            self._end()

    def _end(self) -> str:
        kdc, self._kdc = self._kdc, None
        if kdc is None:
            return ""
        kdc.terminate()
        try:
            _, said = kdc.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            kdc.kill()
            _, said = kdc.communicate()
        return (said or b"").decode(errors="replace").strip()

    def __enter__(self) -> Self:
        self.create()
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "KRB5_CONFIG": str(self.config),
            "KRB5_KDC_PROFILE": str(self._kdc_conf),
            "LC_ALL": "C",
        }

    def _kadmin(self, *words: str) -> None:
        query = " ".join(f'"{word}"' if " " in word else word for word in words)
        said = self._tool("kadmin.local", "-r", self.name, "-q", query)
        # kadmin.local ends with 0 whatever happened.
        faults = [line for line in said.splitlines() if line.startswith(f"{words[0]}:")]
        faults += [line for line in said.splitlines() if "while " in line]
        if faults:
            raise RealmError("; ".join(faults))

    def _tool(self, name: str, *arguments: str) -> str:
        done = subprocess.run(
            [_find(name), *arguments],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RealmError(f"{name}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout + done.stderr


def connect(realms: Sequence[Realm], paths: Sequence[tuple[str, str, str]] = ()) -> None:
    """Let the hosts of each know the KDCs of all.

    ``paths``: (client realm, server realm, over which one): [capaths] of krb5.conf(5).
    """
    kdcs = "".join(
        f"    {each.name} = {{\n        kdc = {each.server}\n    }}\n" for each in realms
    )
    capaths = "[capaths]\n" if paths else ""
    for client, server, between in paths:
        capaths += f"    {client} = {{\n        {server} = {between}\n    }}\n"
    for each in realms:
        text = each.config.read_text()
        head = text[: text.index("[realms]")]
        each.config.write_text(f"{head}[realms]\n{kdcs}{capaths}")


def free_port(address: str) -> int:
    """A port of ``address`` that is free on UDP and TCP at this moment."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for _ in range(50):
        with (
            socket.socket(family, socket.SOCK_DGRAM) as datagrams,
            socket.socket(family, socket.SOCK_STREAM) as stream,
        ):
            datagrams.bind((address, 0))
            port: int = datagrams.getsockname()[1]
            try:
                stream.bind((address, port))
            except OSError:
                continue
            return port
    raise RealmError(f"no free port on {address}")


def _enctypes(etypes: Sequence[int]) -> list[str]:
    return ["-e", ",".join(f"{ETYPES[each]}:normal" for each in etypes)] if etypes else []


def _find(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise RealmError(f"{name} is missing: tests/run installs it")
    return found
