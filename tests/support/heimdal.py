"""Heimdal's KDC as a real, throw-away realm; used as ``Realm`` is, by hosts with MIT's libkrb5.

Debian's package conflicts with MIT's KDC: ``need_heimdal`` of ``install.sh`` unpacks it into a
root of its own, below .cache/ of the checkout.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.realm import ETYPES, Realm, RealmError

KCM_SOCKET = "run/.heim_org.h5l.kcm-socket"  # below /, whatever its options say
ROOT = Path(__file__).resolve().parents[2] / ".cache" / "heimdal"

_CONF = """\
[libdefaults]
    default_realm = {name}
[realms]
    {name} = {{
        kdc = {server}
    }}
[kdc]
    database = {{
        dbname = {directory}/heimdal
        realm = {name}
        log_file = {directory}/heimdal.log
    }}
[kadmin]
    default_keys = {keys}
[logging]
    kdc = 0-/FILE:{directory}/kdc.log
    default = 0-/FILE:{directory}/kadmin.log
"""


@contextmanager
def kcm(directory: Path) -> Iterator[str]:
    """A KCM server of its own; gives the ``kcm_socket`` of krb5.conf(5). Needs root."""
    config = directory / "kcm.conf"
    config.write_text("[libdefaults]\n    default_realm = EXAMPLE.TEST\n")
    script = 'mount -t tmpfs tmpfs /run && exec "$@"'
    server = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script, "sh", str(ROOT / "usr/sbin/kcm"), "-c", str(config)],
        env=environment(),
    )
    socket = Path(f"/proc/{server.pid}/root/{KCM_SOCKET}")
    deadline = time.monotonic() + 20
    try:
        while not socket.exists():
            if server.poll() is not None or time.monotonic() > deadline:
                raise RealmError("kcm does not start")
            time.sleep(0.05)
        yield str(socket)
    finally:
        server.kill()
        server.wait()


def environment() -> dict[str, str]:
    """What Heimdal's programs run with."""
    libraries = map(str, (ROOT / "usr/lib").glob("*-linux-gnu"))
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(libraries), "LC_ALL": "C"}


class HeimdalRealm(Realm):
    """See ``Realm``; the etypes that Heimdal 7 has are 17 and 18."""

    @property
    def _conf(self) -> Path:
        return self.directory / "heimdal.conf"

    def create(self) -> None:
        """Make an empty database."""
        keys = " ".join(f"{ETYPES[etype]}:pw-salt" for etype in self.etypes)
        self._conf.write_text(
            _CONF.format(name=self.name, server=self.server, directory=self.directory, keys=keys)
        )
        self._local("init", "--realm-max-ticket-life=unlimited", "--bare", self.name)
        self._local("add", "-r", "--use-defaults", f"krbtgt/{self.name}@{self.name}")

    def start(self) -> None:
        """Start the KDC and return once it answers. Raises RealmError."""
        command = [
            *(*self.prefix, str(ROOT / "usr/lib/heimdal-servers/kdc")),
            *(f"--config-file={self._conf}", f"--addresses={self.address}", f"--ports={self.port}"),
        ]
        with (self.directory / "kdc.out").open("ab") as out:
            self._kdc = subprocess.Popen(command, env=environment(), stdout=out, stderr=out)
        self.await_port(self._kdc, self.directory / "kdc.out")

    def add_host(self, name: str, keytab: Path) -> tuple[str, str]:
        """A principal with random keys, and its keytab, by the lines of the README."""
        service = f"kink/{name}.example.test@{self.name}"
        self._local("add", "-r", "--use-defaults", service)
        self.write_keytab(keytab, service)
        return service, service

    def write_keytab(self, keytab: Path, *principals: str) -> None:
        """Append the present keys of ``principals`` to a keytab."""
        self._local("ext_keytab", "-k", str(keytab), *principals)

    def change_key(self, principal: str, *, etypes: Sequence[int] = ()) -> None:
        """New random keys with the next kvno; no keytab learns of them."""
        self._local("cpw", "-r", principal)

    def _local(self, *words: str) -> None:
        done = subprocess.run(
            [str(ROOT / "usr/bin/kadmin.heimdal"), "-l", "-c", str(self._conf), *words],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or "kadmin:" in done.stderr:
            raise RealmError(f"kadmin {words[0]}: {done.stderr.strip()}")
