"""Samba as a real, throw-away Active Directory domain controller: its KDC, and nothing else of it.

It is used as ``Realm`` is. Hosts have a machine account, HOST$, and are asked for by a service
principal name of it, kink/host.example.test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.realm import Realm, RealmError

PASSWORD = "Throw-away-1"  # of the administrator and of every account
AES, RC4 = 24, 4  # msDS-SupportedEncryptionTypes ([MS-KILE] §2.2.7)
# As samba-tool does it, on file systems without ACLs, too: nobody asks this server for files.
_PROVISION = """
import runpy, shutil
from samba import provision
provision.setsysvolacl = lambda *args, **named: None
runpy.run_path(shutil.which("samba-tool"), run_name="__main__")
"""
ETYPES = (18, 17, 23)  # what a host must permit, for tickets that are encrypted in RC4


class SambaRealm(Realm):
    """A domain of its own; see ``Realm``. The etypes are those of Active Directory."""

    def __init__(self, directory: Path, *, port: int = 88, **options: Any) -> None:
        # Its databases are mapped into memory, which is slow on the files of another kernel.
        directory = Path(tempfile.mkdtemp(prefix="kinkd-ad-", dir="/dev/shm"))
        super().__init__(directory, port=port, **{**options, "etypes": ETYPES})
        # A ticket with a PAC seldom fits a datagram, and takes its time.
        text = self.config.read_text()
        self.config.write_text(
            text.replace("[libdefaults]", "[libdefaults]\n    udp_preference_limit = 1")
        )

    @property
    def _sam(self) -> str:
        return f"ldb://{self.directory}/private/sam.ldb"

    @property
    def _smb_conf(self) -> Path:
        return self.directory / "etc" / "smb.conf"

    def create(self) -> None:
        """Provision the domain."""
        options = {
            "interfaces": self.address,
            "bind interfaces only": "yes",
            "server services": "kdc",
            "log file": f"{self.directory}/samba.log",
            "pid directory": f"{self.directory}",
            "ncalrpc dir": f"{self.directory}/ncalrpc",
            "winbindd socket directory": f"{self.directory}/winbindd",
        }
        self._tool(
            *("/usr/bin/python3", "-c", _PROVISION),
            *("domain", "provision", "--server-role=dc", "--dns-backend=NONE"),
            *(f"--realm={self.name}", f"--domain={self.name.split('.')[0][:15]}"),
            *(f"--adminpass={PASSWORD}", f"--targetdir={self.directory}"),
            *(f"--host-ip={self.address}", "--host-name=dc"),
            *(f"--option={name}={value}" for name, value in options.items()),
        )

    def start(self) -> None:
        """Start the KDC and return once it answers. Raises RealmError."""
        command = [
            *(*self.prefix, _find("samba"), "-F", "-M", "single", "--no-process-group"),
            *("-s", str(self._smb_conf)),
        ]
        with (self.directory / "samba.out").open("ab") as out:
            self._kdc = subprocess.Popen(command, stdout=out, stderr=out)
        self.await_port(self._kdc, self.directory / "samba.out")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        shutil.rmtree(self.directory, ignore_errors=True)

    def add_host(self, name: str, keytab: Path) -> tuple[str, str]:
        """A machine account with a service principal name, and a keytab as samba-tool writes it."""
        account, service = f"{name.upper()}$", f"kink/{name}.example.test"
        self._local("computer", "create", name.upper())
        self._local("user", "setpassword", account, f"--newpassword={PASSWORD}")
        self._local("spn", "add", service, account)
        self.export(keytab, service, account)
        return f"{service}@{self.name}", f"{account}@{self.name}"

    def export(self, keytab: Path, *principals: str) -> None:
        """Append the keys of these to a keytab."""
        for principal in principals:
            self._tool(
                *("samba-tool", "domain", "exportkeytab", str(keytab)),
                *(f"--principal={principal}@{self.name}", "-s", str(self._smb_conf)),
            )

    def set_encryption(self, account: str, types: int) -> None:
        """Write msDS-SupportedEncryptionTypes of an account."""
        self._modify(
            f"dn: {self._dn(account)}\nchangetype: modify\n"
            f"replace: msDS-SupportedEncryptionTypes\nmsDS-SupportedEncryptionTypes: {types}\n"
        )

    def set_no_pac(self, account: str) -> None:
        """NO_AUTH_DATA_REQUIRED ([MS-ADA3] §2.342): service tickets for it carry no PAC."""
        self._modify(
            f"dn: {self._dn(account)}\nchangetype: modify\n"
            f"replace: userAccountControl\nuserAccountControl: {0x1000 | 0x2000000}\n"
        )

    def join_groups(self, account: str, count: int) -> None:
        """Make an account a member of so many new groups: its PAC grows by them."""
        base, member = self._base, self._dn(account)
        entries = (
            f"dn: CN=group{n:05},CN=Users,{base}\nobjectClass: group\n"
            f"sAMAccountName: group{n:05}\nmember: {member}\n"
            for n in range(count)
        )
        self._ldb("ldbadd", "\n".join(entries))

    @property
    def _base(self) -> str:
        return ",".join(f"DC={part.lower()}" for part in self.name.split("."))

    def _dn(self, account: str) -> str:
        return f"CN={account.removesuffix('$')},CN=Computers,{self._base}"

    def _modify(self, ldif: str) -> None:
        self._ldb("ldbmodify", ldif)

    def _ldb(self, tool: str, ldif: str) -> None:
        done = subprocess.run(
            [_find(tool), "-H", self._sam],
            input=ldif,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RealmError(f"{tool}: {done.stderr.strip()}")

    def _local(self, *words: str) -> None:
        self._tool("samba-tool", *words, "-H", self._sam, "-s", str(self._smb_conf))


def _find(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise RealmError(f"{name} is missing: install samba-ad-dc, samba-ad-provision, ldb-tools")
    return found
