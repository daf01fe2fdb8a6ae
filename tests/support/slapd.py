"""A real, throw-away directory: OpenLDAP's slapd with syncprov, SASL GSSAPI by a ``Realm``.

with Directory(realm, directory) as slapd:
    slapd.add(text)        # LDIF
    ... options(slapd.uri, slapd.base) ...
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tests.support.realm import Realm, free_port
from tests.support.topology import Node

SUFFIX = "dc=example,dc=test"
BASE = f"cn=kinkd,{SUFFIX}"
_SCHEMA = Path(__file__).resolve().parents[2] / "conf" / "ldap" / "kinkd.ldif"

# What kinkd reads of FreeIPA's schema, with numbers of nobody's.
_IPA = """
dn: cn=ipa,cn=schema,cn=config
objectClass: olcSchemaConfig
cn: ipa
olcAttributeTypes: ( 2.25.1.1 NAME 'fqdn' EQUALITY caseIgnoreMatch
   SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 SINGLE-VALUE )
olcAttributeTypes: ( 2.25.1.2 NAME 'krbPrincipalName' EQUALITY caseExactIA5Match
   SYNTAX 1.3.6.1.4.1.1466.115.121.1.26 )
olcObjectClasses: ( 2.25.1.3 NAME 'ipaHost' SUP top STRUCTURAL MUST fqdn
   MAY ( krbPrincipalName $ cn $ ipHostNumber ) )
olcObjectClasses: ( 2.25.1.4 NAME 'ipaHostGroup' SUP top STRUCTURAL MUST cn MAY member )
"""

_CONFIG = """\
dn: cn=config
objectClass: olcGlobal
cn: config
olcPidFile: {run}/pid
olcSaslHost: {fqdn}
olcSaslSecProps: {secprops}

dn: cn=module,cn=config
objectClass: olcModuleList
cn: module
olcModulePath: /usr/lib/ldap
olcModuleLoad: back_mdb
olcModuleLoad: syncprov

dn: cn=schema,cn=config
objectClass: olcSchemaConfig
cn: schema

{schemas}

dn: olcDatabase={{0}}config,cn=config
objectClass: olcDatabaseConfig
olcDatabase: {{0}}config
olcAccess: {access}

dn: olcDatabase=mdb,cn=config
objectClass: olcDatabaseConfig
objectClass: olcMdbConfig
olcDatabase: mdb
olcSuffix: {suffix}
olcDbDirectory: {data}
olcDbMaxSize: 1073741824
olcDbNoSync: TRUE
olcDbIndex: objectClass eq
olcDbIndex: entryUUID eq
olcDbIndex: entryCSN eq
olcLimits: dn.regex="^uid=kink/" size=unlimited
olcAccess: {access}

dn: olcOverlay=syncprov,olcDatabase={{1}}mdb,cn=config
objectClass: olcOverlayConfig
objectClass: olcSyncProvConfig
olcOverlay: syncprov
{log}
"""

ACCESS = """to *
   by dn.exact="gidNumber={gid}+uidNumber={uid},cn=peercred,cn=external,cn=auth" manage
   by dn.regex="^uid=kink/[^,]+,(cn=[^,]+,)?cn=gssapi,cn=auth$" read"""


class DirectoryError(Exception):
    """A tool of the directory failed; the text is what it said."""


class Directory:
    """One slapd on 127.0.0.1, or on a host of the laboratory.

    Args:
        directory: where everything goes that may have a long path.
        session_log: how many changes it remembers: a session that resumes within them is told what
            was deleted, one that comes later what is present (RFC 4533 §3.3).
        secprops: what it asks of SASL.
        keytab: with the key of ldap/localhost; None: it is a new principal of the realm.
        node: where it runs, on port 389 of the address for IPv4; None: here.
        fqdn: the name in its principal.
    """

    def __init__(
        self,
        realm: Realm,
        directory: Path,
        *,
        session_log: int = 0,
        secprops: str = "noanonymous,noplain,minssf=56",
        keytab: Path | None = None,
        node: Node | None = None,
        fqdn: str = "localhost",
    ) -> None:
        self._realm = realm
        self._directory = directory
        self._secprops = secprops
        self._log = f"olcSpSessionlog: {session_log}" if session_log else ""
        self._keytab = keytab
        self._run = Path(tempfile.mkdtemp(prefix="kinkd-slapd-"))  # a socket's path is short
        self._slapd: subprocess.Popen[bytes] | None = None
        self._prefix = () if node is None else node.prefix
        self._address = "127.0.0.1" if node is None else str(node.ipv4)
        self._fqdn = fqdn
        self.port = free_port("127.0.0.1") if node is None else 389
        self.base = BASE

    @property
    def uri(self) -> str:
        """Where it listens."""
        host = "localhost" if self._address == "127.0.0.1" else self._address
        return f"ldap://{host}:{self.port}"

    @property
    def principal(self) -> str:
        """Whom it proves to be."""
        return f"ldap/{self._fqdn}@{self._realm.name}"

    @property
    def _admin(self) -> str:
        return "ldapi://" + quote(f"{self._run}/ldapi", safe="")

    def create(self) -> None:
        """Make the configuration, an empty database with a suffix, and the service's key."""
        config, data = self._directory / "config", self._directory / "data"
        for each in (config, data):
            each.mkdir(parents=True)
        includes = [f"/etc/ldap/schema/{name}.ldif" for name in ("core", "cosine", "nis")]
        schemas = "\n".join(f"include: file://{path}\n" for path in (*includes, _SCHEMA))
        text = _CONFIG.format(
            run=self._run,
            fqdn=self._fqdn,
            data=data,
            schemas=schemas + _IPA,
            suffix=SUFFIX,
            secprops=self._secprops,
            access=self.access(),
            log=self._log,
        )
        source = self._directory / "config.ldif"
        source.write_text(text.rstrip() + "\n")
        self._tool("slapadd", "-n", "0", "-F", str(config), "-l", str(source))
        if self._keytab is None:
            self._keytab = self._directory / "slapd.keytab"
            self._realm.add(f"ldap/{self._fqdn}", keytab=self._keytab)

    def access(self) -> str:
        """The access control of the database."""
        return ACCESS.format(uid=os.geteuid(), gid=os.getegid())

    def start(self) -> None:
        """Start it and return once it answers. Raises DirectoryError."""
        command = [
            *(*self._prefix, _find("slapd"), "-d", "none"),
            *("-F", str(self._directory / "config")),
            *("-h", f"ldap://{self._address}:{self.port} {self._admin}"),
        ]
        out = self._directory / "slapd.out"
        environment = self._environment() | {"KRB5_KTNAME": f"FILE:{self._keytab}"}
        with out.open("ab") as file:
            self._slapd = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
        deadline = time.monotonic() + 30
        while not self._answers():
            if self._slapd.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise DirectoryError(f"slapd does not start: {out.read_text()}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        """By its socket, which is in every network; it listens there last."""
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(f"{self._run}/ldapi")
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """Stop it; its database stays."""
        self._end(lambda slapd: slapd.terminate())

    def kill(self) -> None:
        """The same without a word to anybody."""
        self._end(lambda slapd: slapd.kill())

    def _end(self, how: Callable[[subprocess.Popen[bytes]], None]) -> None:
        slapd, self._slapd = self._slapd, None
        if slapd is not None:
            how(slapd)
            try:
                slapd.wait(10)
            except subprocess.TimeoutExpired:
                slapd.kill()
                slapd.wait()

    def add(self, ldif: str) -> None:
        """Add the entries of an LDIF."""
        self._client("ldapadd", ldif)

    def names(self, dn: str) -> list[str]:
        """The names (cn) of the entries right below one."""
        said = self._tool(
            *("ldapsearch", "-Q", "-Y", "EXTERNAL", "-H", self._admin),
            *("-LLL", "-s", "one", "-b", dn, "cn"),
        )
        return [line.removeprefix("cn: ") for line in said.splitlines() if line.startswith("cn: ")]

    def modify(self, ldif: str) -> None:
        """Make the changes of an LDIF."""
        self._client("ldapmodify", ldif)

    def set(self, dn: str, **values: str) -> None:
        """Replace attributes of an entry by one value each."""
        lines = "".join(f"replace: {name}\n{name}: {value}\n-\n" for name, value in values.items())
        self.modify(f"dn: {dn}\nchangetype: modify\n{lines}")

    def delete(self, *dns: str) -> None:
        """Delete entries."""
        self.modify("\n".join(f"dn: {dn}\nchangetype: delete\n" for dn in dns))

    def delete_tree(self, dn: str) -> None:
        """Delete an entry and all below it, one by one."""
        self._tool("ldapdelete", "-r", "-Q", "-Y", "EXTERNAL", "-H", self._admin, dn)

    def set_access(self, *rules: str) -> None:
        """Put rules of access control before that of the database."""
        lines = "\n".join(f"olcAccess: {rule}" for rule in (*rules, self.access()))
        self.modify(
            f"dn: olcDatabase={{1}}mdb,cn=config\nchangetype: modify\nreplace: olcAccess\n{lines}\n"
        )

    def _client(self, tool: str, ldif: str) -> None:
        self._tool(tool, "-Q", "-Y", "EXTERNAL", "-H", self._admin, text=ldif)

    def _tool(self, name: str, *arguments: str, text: str = "") -> str:
        done = subprocess.run(
            [_find(name), *arguments],
            env=self._environment(),
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise DirectoryError(f"{name}: {done.stderr.strip()}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._realm.environment, "LDAPNOINIT": "1", "LC_ALL": "C"}

    def __enter__(self) -> Self:
        self.create()
        self.start()
        self.add(f"dn: {SUFFIX}\nobjectClass: dcObject\nobjectClass: organization\no: Example\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self._run, ignore_errors=True)


class Proxy:
    """A TCP relay, on one port for good, that can fail.

    ``spoilt``: the octet at this place of what the server says over one connection is another one.
    ``limit``: after so many octets of the server's over one connection, that connection ends
    (``cut``), or falls silent. None: it does not fail.
    """

    def __init__(self) -> None:
        self.limit: int | None = None
        self.spoilt: int | None = None
        self.cut = True
        self.passed = 0  # octets from the server, over the last connection
        self.reached = threading.Event()  # the limit
        self.port = free_port("127.0.0.1")
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []

    def start(self, target: int) -> None:
        """Relay new connections to a port of this machine."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener, target), daemon=True).start()

    def stop(self) -> None:
        """End all connections, and refuse new ones."""
        opened, self._open = self._open, []
        for each in (self._listener, *opened):
            if each is not None:
                _shut(each)
        self._listener = None

    def close(self) -> None:
        """End everything."""
        self.stop()

    def _accept(self, listener: socket.socket, target: int) -> None:
        with listener:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                self._open.append(client)
                threading.Thread(target=self._relay, args=(client, target), daemon=True).start()

    def _relay(self, client: socket.socket, target: int) -> None:
        self.passed = 0
        with (
            client,
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", target)) as server,
        ):
            sources = [client, server]
            while True:
                for each in select.select(sources, [], [])[0]:
                    if not (octets := each.recv(4096)):
                        return
                    if each is client:
                        server.sendall(octets)
                    elif self.limit is None or self.passed + len(octets) <= self.limit:
                        octets = self._spoil(octets)
                        self.passed += len(octets)
                        client.sendall(octets)
                    else:
                        client.sendall(octets[: max(0, self.limit - self.passed)])
                        self.reached.set()
                        if self.cut:
                            return
                        sources = [client]

    def _spoil(self, octets: bytes) -> bytes:
        place = -1 if self.spoilt is None else self.spoilt - self.passed
        if not 0 <= place < len(octets):
            return octets
        self.reached.set()
        return octets[:place] + bytes((octets[place] ^ 1,)) + octets[place + 1 :]


def _shut(each: socket.socket) -> None:
    with contextlib.suppress(OSError):
        each.shutdown(socket.SHUT_RDWR)


def _find(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        raise DirectoryError(f"{name} is missing: tests/run installs it")
    return found
