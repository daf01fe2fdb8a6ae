"""From the entries of a directory to a document: places, faults, and what FreeIPA has anyway."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import pytest

from kinkd.errors import DocumentError
from kinkd.policy import reader
from kinkd.policy.directory.assemble import Assembled, assemble
from kinkd.policy.directory.content import Entry
from kinkd.policy.directory.convert import Converter
from kinkd.policy.directory.options import DirectoryOptions, Server
from kinkd.policy.realm import RealmPolicy

BASE = "cn=kinkd,dc=example,dc=test"
OPTIONS = DirectoryOptions((Server("ds.example.test"),), BASE)
IPA = replace(
    OPTIONS, hosts="cn=computers,dc=example,dc=test", groups="cn=hostgroups,dc=example,dc=test"
)

Found = tuple[str, dict[str, str | list[str]]]


def entry(dn: str, classes: str, **attributes: str | list[str]) -> Entry:
    found = {"objectClass": classes.split(), **attributes}
    octets = {
        name.lower(): tuple(
            each.encode("latin-1") if name == "raw" else each.encode()
            for each in ([values] if isinstance(values, str) else values)
        )
        for name, values in found.items()
    }
    return Entry(dn, dn, octets)


def policy(rules: int = 0, **more: str) -> Entry:
    found = {"kinkdSchema": "1", "kinkdVersion": "3", "kinkdRealm": "EXAMPLE.TEST", **more}
    return entry(BASE, "top kinkdPolicy", kinkdRuleCount=str(rules), **found)


def host(name: str, address: str, **more: str | list[str]) -> Entry:
    dn = f"cn={name},ou=hosts,{BASE}"
    found: dict[str, str | list[str]] = {
        "kinkdFqdn": f"{name}.example.test",
        "kinkdAddress": address,
        **more,
    }
    return entry(dn, "device kinkdHost", **found)


def rule(name: str, order: int | str, **more: str | list[str]) -> Entry:
    found: dict[str, str | list[str]] = {
        "kinkdFrom": "all",
        "kinkdTo": "all",
        "kinkdAction": "require",
        "kinkdOrder": str(order),
        **more,
    }
    return entry(f"cn={name},ou=rules,{BASE}", "kinkdRule", **found)


ALICE, BOB = host("alice", "192.0.2.1"), host("bob", "192.0.2.2")


def assembled(entries: Iterable[Entry], options: DirectoryOptions = OPTIONS) -> Assembled:
    converter = Converter(options)
    parts = (converter.convert(each) for each in entries)
    return assemble("ldap://ds.example.test", [part for part in parts if part is not None])


def read(entries: Iterable[Entry], options: DirectoryOptions = OPTIONS) -> RealmPolicy:
    return reader.read(assembled(entries, options).document)


def test_entries_are_a_policy() -> None:
    found = read([policy(2), rule("second", 20), ALICE, rule("first", 5, kinkdTo="bob"), BOB])
    assert (found.version, found.realm) == (3, "EXAMPLE.TEST")
    assert set(found.hosts) == {"alice", "bob"}
    assert [each.name for each in found.rules] == ["first", "second"]


def test_the_document_does_not_depend_on_the_order_of_entries() -> None:
    entries = [policy(2), ALICE, rule("a", 2), BOB, rule("b", 1)]
    assert assembled(entries).text == assembled(reversed(entries)).text


def test_the_table_of_an_entry_stays_the_same_object() -> None:
    converter = Converter(OPTIONS)
    parts = [converter.convert(each) for each in (policy(), ALICE, BOB)]
    first, second = (
        assemble("x", [part for part in parts if part is not None]).document.root.value
        for _ in range(2)
    )
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["hosts"]["alice"] is second["hosts"]["alice"]


# --- faults have a place ------------------------------------------------------------------------

_WEB = f"cn=web,ou=rules,{BASE}"
_ALICE = f"cn=alice,ou=hosts,{BASE}"


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (
            [policy(1), ALICE, BOB, rule("web", 1, kinkdAction="requires")],
            f'{_WEB}: kinkdAction: "requires" is unknown; did you mean "require"?',
        ),
        (
            [policy(1), ALICE, BOB, rule("web", 1, kinkdAction=[])],
            f"{_WEB}: kinkdAction is missing; write kinkdAction: require",
        ),
        (
            [policy(1), ALICE, BOB, rule("web", 1, kinkdFrom=["alice", "bop"])],
            f'{_WEB}: kinkdFrom: no host, group or network "bop"; did you mean "bob"?',
        ),
        (
            [policy(), host("alice", "192.0.2.999")],
            f'{_ALICE}: kinkdAddress: "192.0.2.999" is not an IP address',
        ),
        (
            [policy(), entry(_ALICE, "device kinkdHost", kinkdFqdn="alice.example.test")],
            f"{_ALICE}: kinkdAddress is missing; write kinkdAddress: 192.0.2.1",
        ),
        ([policy(), host("al!ce", "192.0.2.1")], f"cn=al!ce,ou=hosts,{BASE}: a name is of"),
        (
            [policy(kinkdVersion="seven"), ALICE],
            f'{BASE}: kinkdVersion: "seven" is not an integer',
        ),
        ([policy()], f"{BASE}: hosts is missing"),
        (
            [policy(), ALICE, entry(f"cn=g,{BASE}", "kinkdGroup", kinkdMember="bop")],
            f'cn=g,{BASE}: kinkdMember: no host, group or network "bop"',
        ),
        ([policy(1), ALICE, rule("web", "first")], f'{_WEB}: kinkdOrder: "first" is not one'),
        ([policy(1), ALICE, rule("web", 1, kinkdOrder=[])], f"{_WEB}: kinkdOrder is missing"),
        (
            [policy(2), ALICE, rule("a", 1), rule("web", 1)],
            f"{_WEB}: kinkdOrder: 1 is that of cn=a,ou=rules,{BASE}, too; which comes first?",
        ),
        (
            [policy(), ALICE, entry(f"cn=alice,ou=others,{BASE}", "kinkdHost")],
            f'cn=alice,ou=others,{BASE}: "alice" is {_ALICE}, too',
        ),
        ([policy(), host("alice", "", raw="\xff")], f"{_ALICE}: raw: not UTF-8"),
        (
            [entry(BASE, "kinkdPolicy", kinkdVersion="1"), ALICE],
            f"{BASE}: kinkdRuleCount is missing",
        ),
        (
            [policy(), ALICE, entry(f"cn=other,{BASE}", "kinkdPolicy", kinkdRuleCount="0")],
            f"cn=other,{BASE}: a policy within the policy {BASE}",
        ),
        ([ALICE], "ldap://ds.example.test: no entry of class kinkdPolicy"),
    ],
)
def test_a_fault_is_told_with_its_entry_and_attribute(entries: list[Entry], said: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read(entries)
    assert said in str(caught.value)


def test_a_rule_that_is_not_to_be_seen_is_missed() -> None:
    with pytest.raises(DocumentError, match="kinkdRuleCount is 2, but there are 1 rules"):
        read([policy(2), ALICE, BOB, rule("web", 1)])


def test_who_may_write_elsewhere_has_no_say() -> None:
    elsewhere = entry("cn=open,ou=people,dc=example,dc=test", "kinkdRule", kinkdOrder="1")
    nowhere = entry("cn=mallory,dc=example,dc=test", "device kinkdHost", kinkdAddress="192.0.2.9")
    near = entry("cn=m,cn=xkinkd,dc=example,dc=test", "kinkdHost", kinkdAddress="192.0.2.9")
    other = entry("cn=kinkd,dc=other", "kinkdPolicy", kinkdRuleCount="0")
    found = read([policy(), ALICE, elsewhere, nowhere, near, other])
    assert set(found.hosts) == {"alice"}
    assert found.rules == ()


# --- what is there anyway -----------------------------------------------------------------------


def ipa(fqdn: str, **more: str | list[str]) -> Entry:
    dn = f"fqdn={fqdn},cn=computers,dc=example,dc=test"
    return entry(dn, "ipaHost", fqdn=fqdn, krbPrincipalName=f"host/{fqdn}@EXAMPLE.TEST", **more)


def group(name: str, *members: str, classes: str = "ipaHostGroup") -> Entry:
    return entry(f"cn={name},cn=hostgroups,dc=example,dc=test", classes, member=list(members))


def test_hosts_of_freeipa_are_hosts_by_their_names() -> None:
    web = ipa("web.example.test", ipHostNumber=["192.0.2.8", "192.0.2.7"])
    found = read([policy(), web, ipa("printer.example.test")], IPA)
    assert set(found.hosts) == {"web.example.test"}
    assert str(found.hosts["web.example.test"].service) == "kink/web.example.test@EXAMPLE.TEST"
    assert [str(each) for each in found.hosts["web.example.test"].addresses] == [
        "192.0.2.7",
        "192.0.2.8",
    ]


def test_an_entry_that_says_it_takes_part_needs_an_address() -> None:
    eager = entry(
        "fqdn=web,cn=computers,dc=example,dc=test", "ipaHost kinkdHost", fqdn="web.example.test"
    )
    with pytest.raises(DocumentError, match=r"^fqdn=web,.*: kinkdAddress is missing"):
        read([policy(), ALICE, eager], IPA)


def test_a_kink_principal_of_the_directory_is_the_service() -> None:
    found = read(
        [
            policy(),
            host(
                "alice",
                "192.0.2.1",
                krbPrincipalName=["host/a.example.test", "kink/a.example.test@EXAMPLE.TEST"],
            ),
        ]
    )
    assert str(found.hosts["alice"].service) == "kink/a.example.test@EXAMPLE.TEST"
    two = ["kink/a.example.test", "kink/b.example.test"]
    with pytest.raises(DocumentError, match="KINK services both; say which it is"):
        read([policy(), host("alice", "192.0.2.1", krbPrincipalName=two)])
    named = host("alice", "192.0.2.1", krbPrincipalName=two, kinkdService="kink/b.example.test")
    assert read([policy(), named]).hosts["alice"].service.components == ("kink", "b.example.test")


def test_groups_name_their_members_by_dn_and_nest() -> None:
    web = ipa("web.example.test", ipHostNumber="192.0.2.8")
    entries = [
        policy(1),
        web,
        ALICE,
        group("inner", "FQDN=Web.Example.Test, CN=Computers,dc=example,dc=test"),
        group("outer", "cn=inner,cn=hostgroups,dc=example,dc=test", ALICE.dn),
        rule("r", 1, kinkdFrom="outer"),
    ]
    found = read(entries, IPA)
    assert found.rules[0].source == {"web.example.test", "alice"}


def test_members_that_take_no_part_are_left_out_and_told() -> None:
    printer = ipa("printer.example.test")
    made = assembled([policy(), ALICE, printer, group("g", printer.dn, ALICE.dn, "!")], IPA)
    assert made.document.root.value["groups"] == {"g": ["alice"]}
    (warning,) = made.warnings
    assert warning.startswith("cn=g,cn=hostgroups,dc=example,dc=test: 2 of its members are no")


def test_classes_and_attributes_have_the_names_that_are_configured() -> None:
    options = replace(
        OPTIONS,
        hosts="ou=machines,dc=example,dc=test",
        host_class="machine",
        fqdn="dNSHostName",
        address="ip",
        groups="ou=sets,dc=example,dc=test",
        group_class="groupOfUniqueNames",
        member="uniqueMember",
    )
    machine = entry(
        "cn=m,ou=machines,dc=example,dc=test",
        "Machine",
        dNSHostName="M.example.test",
        ip="192.0.2.5",
    )
    made = entry("cn=s,ou=sets,dc=example,dc=test", "groupOfUniqueNames", uniqueMember=machine.dn)
    found = assembled([policy(), machine, made], options)
    assert found.document.root.value["groups"] == {"s": ["m"]}
    assert reader.read(found.document).hosts["m"].service.components == ("kink", "m.example.test")


def test_quoted_names_are_told_as_they_are() -> None:
    said = re.escape(r"cn=a\, b,ou=rules,") + ".*kinkdAction"
    with pytest.raises(DocumentError, match=said):
        read([policy(1), ALICE, rule(r"a\, b", 1, kinkdAction="x")])
