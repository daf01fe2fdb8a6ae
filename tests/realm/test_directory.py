"""The policy in a real OpenLDAP directory, over SASL GSSAPI, followed by RFC 4533."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from kinkd.document import Document
from kinkd.errors import DocumentError, LocalError
from kinkd.policy import reader
from kinkd.policy.directory.options import Server
from kinkd.policy.directory.source import DirectorySource
from tests.support.directory import (
    POLICY,
    credentials,
    entries,
    following,
    host,
    host_entry,
    hosts_text,
    options,
)
from tests.support.realm import free_port
from tests.support.realm_pair import Pair
from tests.support.slapd import BASE, SUFFIX, Directory, Proxy

EXAMPLE = Path(__file__).resolve().parents[2] / "conf" / "ldap" / "example.ldif"

Make = Callable[..., Directory]


@pytest.fixture(scope="session")
def slapd_keytab(shared_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Path:
    keytab = tmp_path_factory.mktemp("slapd") / "keytab"
    shared_pair.realm.add("ldap/localhost", keytab=keytab)
    return keytab


@pytest.fixture
def make(pair: Pair, slapd_keytab: Path, tmp_path: Path) -> Iterator[Make]:
    """Makes the directory of a test, with a policy in it."""
    made: list[Directory] = []

    def directory(text: str = POLICY, **more: object) -> Directory:
        found = Directory(pair.realm, tmp_path / "slapd", keytab=slapd_keytab, **more)
        made.append(found.__enter__())
        found.add(entries(text))
        return found

    yield directory
    for each in made:
        each.__exit__(None, None, None)


@pytest.fixture
def proxy(make: Make) -> Iterator[Proxy]:
    """Between the directory of a test and who follows it; ``start`` says to which."""
    found = Proxy()
    yield found
    found.close()


def source(pair: Pair, port: int, **more: object) -> DirectorySource:
    return DirectorySource(options(port, **more), credentials(pair.alice_keytab, pair.alice))


def test_what_was_exported_and_added_is_the_same_policy(pair: Pair, make: Make) -> None:
    found = source(pair, make().port).load()
    document = Document.parse("policy.toml", POLICY.encode())
    assert found.policy == reader.read(document)
    again = reader.read(Document.parse("cached", found.text.encode()))
    assert again == found.policy


def test_the_example_can_be_added(pair: Pair, make: Make) -> None:
    slapd = make()
    slapd.delete_tree(BASE)
    slapd.add(EXAMPLE.read_text())
    assert set(source(pair, slapd.port).load().policy.hosts) == {"alice", "bob"}


def test_every_change_is_followed(pair: Pair, make: Make) -> None:
    slapd = make()
    with following(source(pair, slapd.port)) as follower:
        follower.policy(lambda policy: set(policy.hosts) == {"alice", "bob", "carol"})
        slapd.set(host("alice"), kinkdFqdn="a.example.test")
        follower.policy(lambda policy: policy.fqdns["alice"] == "a.example.test")
        slapd.add(host_entry("dave", "192.0.2.9"))
        follower.policy(lambda policy: "dave" in policy.hosts)
        slapd.modify(
            f"dn: {host('dave')}\nchangetype: modrdn\nnewrdn: cn=daniel\ndeleteoldrdn: 1\n"
        )
        renamed = follower.policy(lambda policy: "daniel" in policy.hosts)
        assert "dave" not in renamed.hosts
        slapd.delete(host("daniel"))
        follower.policy(lambda policy: set(policy.hosts) == {"alice", "bob", "carol"})
        slapd.set(BASE, kinkdVersion="2")
        follower.policy(lambda policy: policy.version == 2)


def test_a_rule_comes_into_force_with_the_count_of_rules(pair: Pair, make: Make) -> None:
    slapd = make()
    with following(source(pair, slapd.port)) as follower:
        follower.policy(lambda policy: len(policy.rules) == 2)
        slapd.add(
            f"dn: cn=first,ou=rules,{BASE}\nobjectClass: kinkdRule\ncn: first\nkinkdOrder: 5\n"
            "kinkdFrom: all\nkinkdTo: bob\nkinkdAction: require\n"
        )
        follower.error("kinkdRuleCount is 2, but there are 3 rules")
        slapd.set(BASE, kinkdVersion="2", kinkdRuleCount="3")
        found = follower.policy(lambda policy: policy.version == 2)
        assert found.rules[0].name == "first"


def test_an_entry_that_makes_no_sense_is_told_until_it_is_mended(pair: Pair, make: Make) -> None:
    slapd = make()
    rule = f"cn=the web\\, all of it,ou=rules,{BASE}"
    with following(source(pair, slapd.port)) as follower:
        follower.policy(lambda policy: True)
        slapd.set(rule, kinkdAction="requires")
        error = follower.error("requires")
        assert isinstance(error, DocumentError)
        assert str(error).startswith(
            f'{rule}: kinkdAction: "requires" is unknown; did you mean "require"?'
        )
        slapd.set(rule, kinkdAction="require")
        follower.policy(lambda policy: True)


def test_hosts_and_groups_that_are_there_anyway(pair: Pair, make: Make) -> None:
    slapd = make()
    computers, groups = f"ou=computers,{SUFFIX}", f"ou=hostgroups,{SUFFIX}"
    web = f"fqdn=web.example.test,{computers}"
    slapd.add(
        f"dn: {computers}\nobjectClass: organizationalUnit\nou: computers\n\n"
        f"dn: {groups}\nobjectClass: organizationalUnit\nou: hostgroups\n\n"
        f"dn: {web}\nobjectClass: ipaHost\nobjectClass: kinkdHost\nfqdn: web.example.test\n"
        "krbPrincipalName: host/web.example.test@EXAMPLE.TEST\nkinkdAddress: 192.0.2.20\n\n"
        f"dn: fqdn=printer.example.test,{computers}\nobjectClass: ipaHost\n"
        "fqdn: printer.example.test\n\n"
        f"dn: cn=inner,{groups}\nobjectClass: ipaHostGroup\ncn: inner\nmember: {web}\n"
        f"member: fqdn=printer.example.test,{computers}\n\n"
        f"dn: cn=outer,{groups}\nobjectClass: ipaHostGroup\ncn: outer\n"
        f"member: cn=inner,{groups}\nmember: {host('bob')}\n"
    )
    slapd.set(f"cn=the web\\, all of it,ou=rules,{BASE}", kinkdFrom="outer")
    found = source(pair, slapd.port, hosts=computers, groups=groups).load().policy
    assert set(found.hosts) == {"alice", "bob", "carol", "web.example.test"}
    assert found.rules[0].source == {"bob", "web.example.test"}
    assert any("1 of its members are no hosts" in warning for warning in found.warnings)


# --- restarts and cuts --------------------------------------------------------------------------


def test_a_server_that_is_killed_is_found_again(pair: Pair, make: Make) -> None:
    slapd = make()
    with following(source(pair, slapd.port)) as follower:
        follower.policy(lambda policy: True)
        slapd.kill()
        follower.state(reachable=False)
        assert set(follower.source.load().policy.hosts) == {"alice", "bob", "carol"}
        follower.state(
            fault=f"ldap://localhost:{slapd.port}: cannot be reached: Connection refused"
        )
        slapd.start()
        follower.state(reachable=True, fault=None)
        slapd.set(host("alice"), kinkdFqdn="a.example.test")
        follower.policy(lambda policy: policy.fqdns["alice"] == "a.example.test")


@pytest.mark.parametrize("session_log", [0, 1000])
def test_what_changed_during_a_cut_is_made_up_for(
    pair: Pair, make: Make, proxy: Proxy, session_log: int
) -> None:
    """With a session log OpenLDAP names what was deleted; without one it sends all again."""
    slapd = make(hosts_text(400), session_log=session_log)
    proxy.start(slapd.port)
    with following(source(pair, proxy.port)) as follower:
        follower.policy(lambda policy: len(policy.hosts) == 400)
        whole = proxy.passed
        proxy.stop()
        follower.state(reachable=False)
        slapd.delete(host("h7"))
        slapd.add(host_entry("new", "192.0.2.1"))
        assert len(follower.source.load().policy.hosts) == 400
        proxy.start(slapd.port)
        found = follower.policy(lambda policy: "new" in policy.hosts)
        assert "h7" not in found.hosts
        assert len(found.hosts) == 400
        if session_log > 1:
            assert proxy.passed < whole / 3  # by the cookie, not anew


@pytest.mark.parametrize("cut", [True, False])
def test_nothing_is_deleted_by_half_a_refresh(
    pair: Pair, make: Make, proxy: Proxy, cut: bool
) -> None:
    slapd = make(hosts_text(200))
    proxy.start(slapd.port)
    with following(source(pair, proxy.port, timeout=1.0)) as follower:
        follower.policy(lambda policy: len(policy.hosts) == 200)
        proxy.stop()
        follower.state(reachable=False)
        slapd.delete(*(host(f"h{n}") for n in range(100)))
        slapd.add("".join(host_entry(f"new{n}", f"192.0.2.{n}") for n in range(1, 200)))
        proxy.limit, proxy.cut = 20_000, cut
        proxy.start(slapd.port)
        assert proxy.reached.wait(60)
        proxy.reached.clear()
        assert proxy.reached.wait(60)  # it was given up, and tried again
        assert {f"h{n}" for n in range(200)} == set(follower.source.load().policy.hosts)
        proxy.limit = None
        found = follower.policy(lambda policy: "new1" in policy.hosts)
        assert len(found.hosts) == 299


def test_half_an_entry_is_not_waited_for(pair: Pair, make: Make, proxy: Proxy) -> None:
    slapd = make()
    members = "".join(f"member: cn=machine{n:05},ou=elsewhere,{SUFFIX}\n" for n in range(3000))
    slapd.add(f"dn: cn=many,{BASE}\nobjectClass: kinkdGroup\ncn: many\n{members}")
    proxy.limit, proxy.cut = 100_000, False  # in its second frame
    proxy.start(slapd.port)
    with following(source(pair, proxy.port, timeout=1.0)) as follower:
        assert proxy.reached.wait(60)
        follower.error("the server does not go on with a refresh")
        proxy.limit = None
        follower.policy(lambda policy: True)


def test_half_of_a_first_refresh_is_no_policy(pair: Pair, make: Make, proxy: Proxy) -> None:
    slapd = make(hosts_text(200))
    proxy.limit = 20_000
    proxy.start(slapd.port)
    alone = source(pair, proxy.port)
    with pytest.raises(LocalError, match="the connection is lost"):
        alone.load()
    assert proxy.reached.is_set()
    proxy.limit = None
    assert len(alone.load().policy.hosts) == 200


def test_what_is_changed_on_the_way_is_no_policy(pair: Pair, make: Make, proxy: Proxy) -> None:
    slapd = make(hosts_text(200))
    proxy.spoilt = 20_000
    proxy.start(slapd.port)
    alone = source(pair, proxy.port)
    with pytest.raises(LocalError, match=r"the connection is lost \(.*(?i:integrity|token|defect)"):
        alone.load()
    assert proxy.reached.is_set()
    proxy.spoilt = None
    assert len(alone.load().policy.hosts) == 200


def test_a_cookie_that_the_server_refuses_is_forgotten(
    pair: Pair, make: Make, proxy: Proxy
) -> None:
    """As after a server's content was put back to what it was before."""
    slapd = make()
    proxy.start(slapd.port)
    with following(source(pair, proxy.port)) as follower:
        follower.policy(lambda policy: True)
        proxy.stop()
        follower.state(reachable=False)
        future = "rid=000,csn=20991231235959.000000Z#000000#000#000000"
        follower.source._content.cookie = future
        slapd.set(host("alice"), kinkdFqdn="a.example.test")
        proxy.start(slapd.port)
        follower.policy(lambda policy: policy.fqdns["alice"] == "a.example.test")
        assert follower.source.state()["cookie"] != future


def test_another_server_is_asked_where_one_is_away(pair: Pair, make: Make) -> None:
    slapd = make()
    servers = (Server("localhost", free_port("127.0.0.1")), Server("localhost", slapd.port))
    found = source(pair, slapd.port, servers=servers)
    assert set(found.load().policy.hosts) == {"alice", "bob", "carol"}
    assert found.state()["server"] == f"ldap://localhost:{slapd.port}"
    with following(source(pair, slapd.port, servers=servers)) as follower:
        assert set(follower.source.load().policy.hosts) == {"alice", "bob", "carol"}


def test_a_limit_of_the_server_is_a_fault(pair: Pair, make: Make) -> None:
    slapd = make(hosts_text(20))
    slapd.modify(
        "dn: olcDatabase={1}mdb,cn=config\nchangetype: modify\nreplace: olcLimits\n"
        'olcLimits: dn.regex="^uid=kink/" size=10\n'
    )
    with pytest.raises(LocalError, match="lift it for hosts"):
        source(pair, slapd.port).load()


# --- what is hidden or gone ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hosts", "said"),
    [
        (None, "there is no base entry, or this host may not read it"),
        (f"ou=computers,{SUFFIX}", "no entry of class kinkdPolicy: it was deleted, or this host"),
    ],
)
def test_a_policy_that_is_hidden_is_a_fault_and_comes_back(
    pair: Pair, make: Make, proxy: Proxy, hosts: str | None, said: str
) -> None:
    slapd = make()
    proxy.start(slapd.port)
    with following(source(pair, proxy.port, hosts=hosts)) as follower:
        follower.policy(lambda policy: True)
        proxy.stop()
        follower.state(reachable=False)
        slapd.set_access(f'to dn.subtree="{BASE}" by dn.regex="cn=external" manage by * none')
        slapd.set(host("alice"), kinkdFqdn="a.example.test")
        proxy.start(slapd.port)
        follower.error(said)
        assert follower.source.state()["cookie"] is None
        # Nobody touches an entry: all must be read anew.
        slapd.set_access()
        found = follower.policy(lambda policy: policy.fqdns["alice"] == "a.example.test")
        assert set(found.hosts) == {"alice", "bob", "carol"}


def test_a_rule_that_is_hidden_is_a_fault(pair: Pair, make: Make) -> None:
    slapd = make()
    slapd.set_access(
        f'to dn.base="cn=the web\\2C all of it,ou=rules,{BASE}" by dn.regex="cn=external" manage'
        " by * none"
    )
    with pytest.raises(DocumentError, match="kinkdRuleCount is 2, but there are 1 rules"):
        source(pair, slapd.port).load()


def test_a_policy_that_is_deleted_is_a_fault(pair: Pair, make: Make) -> None:
    slapd = make()
    with following(source(pair, slapd.port)) as follower:
        follower.policy(lambda policy: True)
        slapd.delete_tree(BASE)
        follower.error("no entry of class kinkdPolicy")
        slapd.add(entries(POLICY.replace("version = 1", "version = 2")))
        follower.policy(lambda policy: policy.version == 2 and len(policy.rules) == 2)


def test_a_base_that_is_not_there_is_a_fault(pair: Pair, make: Make) -> None:
    wrong = replace(options(make().port), base=f"cn=other,{SUFFIX}")
    with pytest.raises(LocalError, match="there is no base entry, or this host may not read it"):
        DirectorySource(wrong, credentials(pair.alice_keytab, pair.alice)).load()
