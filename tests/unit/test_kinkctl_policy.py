"""``kinkctl policy`` and ``kinkctl explain``: what people and scripts are told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kinkd.app import protocol
from kinkd.cli import kinkctl
from kinkd.errors import LocalError

HEAD = 'schema = 1\nversion = 1\nrealm = "R.TEST"\n'
HOSTS = "".join(
    f'[hosts.{name}]\nfqdn = "{name}.r.test"\naddresses = ["10.0.0.{number}"]\n'
    for number, name in enumerate(("web1", "web2", "db", "old"), 1)
)
GROUPS = '[groups]\nweb = ["web*"]\n'
TO_DB = (
    '[[rules]]\nname = "to db"\nfrom = "web"\nto = "db"\ntraffic = "tcp/5432"\naction = "require"\n'
)
REST = '[[rules]]\nname = "rest"\nfrom = "all"\nto = "all"\naction = "request"\n'
TEST = '[[tests]]\nfrom = "web1"\nto = "db"\ntraffic = "tcp/5432"\nexpect = "{}"\n'
DOCUMENT = HEAD + HOSTS + GROUPS + TO_DB + REST

Run = tuple[int, str, str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    def kinkctl_of(*arguments: object) -> Run:
        status = kinkctl.main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return kinkctl_of


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def written(text: str, name: str = "policy.toml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o664)  # as in a checkout: nobody goes by it yet
        return path

    return written


def test_a_good_document_is_summed_up(run: Any, write: Any) -> None:
    path = write(DOCUMENT + TEST.format("require"))
    status, out, err = run("policy", "check", path)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        f"{path}: good, version 1, realm R.TEST",
        "4 hosts, 0 networks, 1 groups, 2 profiles, 2 rules",
        "1 tests passed",
    ]
    status, out, _ = run("policy", "check", path, "--json")
    assert (status, json.loads(out)["policy"]["tests"]) == (0, 1)


def test_warnings_are_told_and_no_fault(run: Any, write: Any) -> None:
    never = REST.replace('"rest"', '"never"')
    status, out, _ = run("policy", "check", write(DOCUMENT + never))
    assert status == 0
    assert 'rule "never" never decides' in out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DOCUMENT + TEST.format("block"), 'block is expected, but it is require, by rule "to db"'),
        (DOCUMENT.replace('"web"', '"wbe"'), 'did you mean "web"'),
        ("version", "not TOML"),
    ],
)
def test_a_document_that_is_not_good_is_one_line_and_status_2(
    run: Any, write: Any, text: str, words: str
) -> None:
    path = write(text)
    for arguments in (("check", path), ("diff", path, path)):
        status, out, err = run("policy", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert words in err
        assert str(path) in err


def test_a_file_that_is_not_there_is_status_2(run: Any, tmp_path: Path) -> None:
    status, _, err = run("policy", "check", tmp_path / "none")
    assert (status, err) == (
        2,
        f"kinkctl: {tmp_path / 'none'}: cannot be read: No such file or directory\n",
    )


def test_nothing_changes_where_only_words_do(run: Any, write: Any) -> None:
    new = DOCUMENT.replace('"rest"', '"others"').replace("version = 1", "version = 2")
    status, out, _ = run("policy", "diff", write(DOCUMENT), write("# new\n" + new, "new.toml"))
    assert (status, out) == (0, "policy version 1 -> 2\nnothing changes\n")


def test_a_change_is_told_by_group_traffic_action_and_rule(run: Any, write: Any) -> None:
    old, new = write(DOCUMENT), write(DOCUMENT.replace("5432", "5433"), "new.toml")
    status, out, _ = run("policy", "diff", old, new)
    assert status == 1
    line = DOCUMENT.splitlines().index('name = "rest"')
    blocks = [
        " ".join(line.split()) for block in out.split("\n\n")[1:] for line in block.splitlines()
    ]
    assert blocks == [
        "require -> request",
        f'was by rule "to db" ({old}:{line - 6})',
        f'is by rule "rest" ({new}:{line})',
        "FROM TO TRAFFIC",
        "web <-> db tcp/5432",
        "request -> require",
        f'was by rule "rest" ({old}:{line})',
        f'is by rule "to db" ({new}:{line - 6})',
        "FROM TO TRAFFIC",
        "web <-> db tcp/5433",
    ]


def test_all_but_a_few_is_said_so(run: Any, write: Any) -> None:
    first = '[[rules]]\nname = "old"\nfrom = "old"\nto = "all"\naction = "block"\n'
    new = DOCUMENT.replace(TO_DB, first + TO_DB)
    _, out, _ = run("policy", "diff", write(DOCUMENT), write(new, "new.toml"))
    assert "all but old  <->  old  any" in out


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (("10.0.0.4", "10.0.0.9"), "host old: addresses 10.0.0.4 -> 10.0.0.9"),
        (
            ('fqdn = "old.r.test"', 'user = "jane"'),
            "host old: client kink/old.r.test@R.TEST -> jane@R.TEST",
        ),
        (
            ('fqdn = "old.r.test"', 'fqdn = "old.r.test"\ndisabled = true'),
            "host old: disabled false -> true",
        ),
        (
            ('fqdn = "old.r.test"', 'fqdn = "old.r.test"\naudit = true'),
            "host old: audit false -> true",
        ),
        (
            ("[groups]", '[servers]\ndns = ["10.0.0.53"]\n[groups]'),
            "server added: dns at 10.0.0.53",
        ),
        (
            ("[groups]", '[profiles.fast]\nsuites = "aes256gcm16"\n[groups]'),
            "profile fast: suites aes256gcm16, aes128gcm16 -> aes256gcm16",
        ),
        (
            ("[groups]", '[networks.lan]\nprefixes = "10.1.0.0/16"\n[groups]'),
            "network added: lan, 10.1.0.0/16",
        ),
        (
            ("[groups]", '[hosts.new]\nfqdn = "new.r.test"\naddresses = ["10.0.0.8"]\n[groups]'),
            "host added: new, kink/new.r.test@R.TEST, 10.0.0.8",
        ),
    ],
)
def test_what_is_not_of_pairs_is_a_line_each(
    run: Any, write: Any, edit: tuple[str, str], said: str
) -> None:
    old, new = write(DOCUMENT), write(DOCUMENT.replace(*edit), "new.toml")
    status, out, _ = run("policy", "diff", old, new)
    assert status == 1
    assert said in out
    status, out, _ = run("policy", "diff", old, new, "--json")
    assert (status, json.loads(out)["differs"]) == (1, True)


def test_a_host_that_comes_is_named_as_new_and_one_that_goes_as_removed(
    run: Any, write: Any
) -> None:
    more = DOCUMENT.replace(
        "[groups]", '[hosts.new]\nfqdn = "new.r.test"\naddresses = ["10.0.0.8"]\n[groups]'
    )
    old, new = write(DOCUMENT), write(more, "new.toml")
    assert "new (new)" in run("policy", "diff", old, new)[1]
    assert "new (removed)" in run("policy", "diff", new, old)[1]


def test_many_rows_are_cut_for_people_and_whole_for_machines(run: Any, write: Any) -> None:
    hosts = "".join(
        f'[hosts.h{n}]\nfqdn = "h{n}.r.test"\naddresses = ["10.1.0.{n}"]\n' for n in range(1, 41)
    )
    rules = "".join(
        f'[[rules]]\nname = "{n}"\nfrom = "h{n}"\nto = "h{n + 1}"\naction = "clear"\n'
        for n in range(1, 40)
    )
    old, new = (
        write(HEAD + hosts + rules + REST),
        write(HEAD + hosts + rules + REST.replace("request", "block"), "new.toml"),
    )
    shown = run("policy", "diff", old, new)[1]
    whole = json.loads(run("policy", "diff", old, new, "--json")[1])
    (change,) = whole["traffic"]
    assert f"and {len(change['between']) - 12:,} rows more (--all)" in shown
    assert shown.count("->") < len(change["between"])
    assert run("policy", "diff", old, new, "--all")[1].count("->") >= len(change["between"])
    pairs = {
        (one, other)
        for row in change["between"]
        for one in row["from"]["parties"]
        for other in row["to"]["parties"]
        if one != other
    }
    pairs |= {(other, one) for one, other in pairs}
    assert len(pairs) == 40 * 39 - 2 * 39  # all but neighbors


def test_five_thousand_hosts_and_three_hundred_rules_are_told_in_a_few_lines(
    run: Any, write: Any
) -> None:
    hosts = "".join(
        f'[hosts.h{n:04}]\nfqdn = "h{n:04}.r.test"\naddresses = ["10.0.{n // 250}.{n % 250}"]\n'
        for n in range(5000)
    )
    groups = "[groups]\n" + "".join(f'g{n:03} = ["h??{n % 100:02}"]\n' for n in range(200))
    rules = "".join(
        f'[[rules]]\nname = "{n}"\nfrom = "g{n % 100:03}"\nto = "g{n * 7 % 100:03}"\n'
        f'traffic = ["any", "tcp/{n + 1}"]\naction = "clear"\n'
        for n in range(299)
    )
    text = HEAD + hosts + groups + rules + REST
    old, new = write(text), write(text.replace("request", "require"), "new.toml")
    status, out, _ = run("policy", "diff", old, new)
    assert status == 1
    assert len(out.splitlines()) < 30
    assert 'was by rule "rest"' in out


def test_the_policy_in_force_is_asked_of_the_daemon(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"version": 4, "source": "/p.toml", "fault": "/p.toml:3: x", "suspended_seconds": 90}
    monkeypatch.setattr(protocol, "ask", lambda *_: said)
    assert run("policy", "show")[1].splitlines() == [
        "version      4",
        "source       /p.toml",
        "fault        /p.toml:3: x; what was in force before still is",
        "SUSPENDED    enforced again in 1m30s",
    ]


def test_explain_begins_with_the_cause_and_names_rule_and_line(run: Any, write: Any) -> None:
    path = write(DOCUMENT)
    status, out, _ = run("explain", "web1", "db.r.test", "tcp/5432", "--policy", path)
    line = DOCUMENT.splitlines().index('name = "to db"')
    assert status == 0
    assert out.startswith(f'Rule "to db" ({path}:{line}) has them protected (profile standard)')
    assert "web1, 10.0.0.1, bound to kink/web1.r.test@R.TEST" in out
    assert out.count("\n") < 10
    status, out, _ = run("explain", "web1", "db", "tcp/22", "--policy", path, "--json")
    assert json.loads(out)["asked"][0]["rule"] == "rest"


def test_explain_says_who_nobody_is(run: Any, write: Any) -> None:
    status, out, err = run("explain", "web1", "web", "--policy", write(DOCUMENT))
    assert (status, out) == (1, "")
    assert 'did you mean "web2"' in err or 'did you mean "web1"' in err


@pytest.fixture
def config(write: Any, tmp_path: Path) -> Path:
    write(DOCUMENT).chmod(0o644)
    path: Path = write('[kerberos]\nkeytab = "none"\n[policy]\nfile = "policy.toml"\n', "k.toml")
    path.chmod(0o644)
    return path


def test_explain_without_a_daemon_says_so_and_tells_the_rest(
    run: Any, config: Path, tmp_path: Path
) -> None:
    status, out, _ = run("--socket", tmp_path / "none", "explain", "web1", "db", "--config", config)
    assert status == 0
    assert f"Only the document was asked: no kinkd answers at {tmp_path / 'none'}" in out


def test_explain_shows_what_the_daemon_has_seen(
    run: Any, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def answer(_: str, command: str, __: float, **question: object) -> dict[str, object]:
        if command == "policy":
            raise LocalError("unknown command")
        asked.update(question)
        return SEEN

    monkeypatch.setattr(protocol, "ask", answer)
    monkeypatch.setattr("kinkd.app.addresses.local_addresses", frozenset)
    _, out, _ = run("explain", "web1", "db", "tcp/5432", "--config", config)
    assert asked["destination"] == {"name": "db", "address": "10.0.0.3"}
    assert (asked["protocol"], asked["destination_port"]) == (6, 5432)
    assert out.startswith("An IPsec policy of other software decides on web1 for packets out: src")
    assert lines_of(out)["missing"] == "10.0.0.1: on no interface of this host"
    lines = lines_of(out)
    assert lines["ticket"] == "for kink/db.r.test@R.TEST, etype 18, kvno 3 there, 1h00m left"
    assert lines["keytab"] == f"{config.parent / 'none'}: cannot be read: No such file or directory"
    assert lines["peer"] == "round trip 1.5 ms, its clock 2.0 s behind, EPOCH 9"
    assert lines["last"] == "failed: no answer"
    assert lines["SAs"] == "none; packets wait for one"
    assert lines["kernel in"] == "no SPD entry decides: clear"
    assert lines["kernel out"] == "src a dst b dir out priority 5 block (NOT kinkd)"
    assert lines["dropped"] == "malformed 2 (all peers)"
    assert lines["xfrm_stat"] == "nothing"


def lines_of(out: str) -> dict[str, str]:
    return {line[:13].strip(): line[13:] for line in out.splitlines() if line}


SEEN: dict[str, object] = {
    "host": "web1",
    "peer": "db",
    "policy_version": 1,
    "ticket": {"server": "kink/db.r.test@R.TEST", "etype": 18, "kvno": 3, "seconds_left": 3600},
    "ticket_fault": "",
    "user_to_user": False,
    "clock_offset_seconds": -2.0,
    "epoch": 9,
    "round_trip_ms": 1.5,
    "last_negotiation": {"event": "create-failed", "reason": "no answer"},
    "sas": [],
    "kernel_waits_for_sa": True,
    "spd_out": {"entry": "src a dst b dir out priority 5 block", "ours": False},
    "spd_in": None,
    "spd_wanted": True,
    "drops": {"malformed": 2},
    "xfrm_errors": {},
}


def test_kinkctl_starts_without_what_it_does_not_need() -> None:
    script = (
        "import sys; from kinkd.cli import kinkctl\n"
        "kinkctl._parser()\n"
        "print([m for m in sys.modules if m.startswith('kinkd.')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    for part in (
        "kinkd.policy",
        "kinkd.kernel",
        "kinkd.exchange",
        "kinkd.kerberos",
        "kinkd.app.config",
    ):
        assert part not in done.stdout
