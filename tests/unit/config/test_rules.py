"""Every cross-field rule shown to fire, with the path and words a user sees, and to keep silent on the nearest valid file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from provisioner import load
from provisioner.fields import field_at
from provisioner.problems import Problem
from provisioner.validate import RULES

from .sample import GONE, VALID, changed, check, node

# What the cryptography of the tests would take as long to make: any CA will do.
CA = (Path(__file__).parent / "ca.crt").read_text()
CP = ("control-plane", "etcd")


@dataclass(frozen=True)
class Case:
    """A change of the valid file that breaks one rule; ``near`` is the nearest change that does not."""

    rule: str
    change: dict[str, object]
    where: str
    says: str
    near: dict[str, object]
    severity: str = "error"

    def __str__(self) -> str:
        return f"{self.rule}:{'+'.join(self.change)}"


def generated() -> list[Case]:
    """Cases with more nodes than one likes to read."""
    ranges: dict[str, object] = {"network.podCidr": "10.0.0.0/8", "network.serviceCidr": "172.16.0.0/16"}
    first = node("a", "192.168.0.1", *CP, "worker")
    workers = [node(f"n-{i}", f"100.64.{i >> 8}.{i & 255}", "worker") for i in range(1, 5001)]
    members = [node(f"n-{i}", f"10.0.0.{i}", *CP, "worker") for i in range(1, 10)]
    return [
        Case("node_count_supported", {**ranges, "nodes": [first, *workers]}, "nodes", "5001 nodes", {}, "warning"),
        Case("etcd_count_sensible", {"nodes": members}, "nodes", "at most 7", {"nodes": members[:7]}, "warning"),
    ]


def written() -> list[Case]:
    """The cases of rules.yml."""
    rows = yaml.safe_load((Path(__file__).parent / "rules.yml").read_text())
    return [Case(**{"near": {}, **row}) for row in rows]


CASES = [*written(), *generated()]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that the cases name."""
    root = tmp_path_factory.mktemp("files")
    for directory in ("keys", "manifests"):
        (root / directory).mkdir()
    for name, content, mode in (
        ("keys/private", "-----BEGIN OPENSSH PRIVATE KEY-----\n", 0o600),
        ("keys/open", "-----BEGIN OPENSSH PRIVATE KEY-----\n", 0o644),
        ("keys/public", "ssh-ed25519 AAAA me\n", 0o600),
        ("manifests/good.yaml", "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n---\n", 0o600),
        ("login", "username: robot\npassword: secret\n", 0o600),
        ("login-open", "username: robot\npassword: secret\n", 0o640),
        ("login-odd", "robot:secret\n", 0o600),
        ("ca.crt", CA, 0o644),
        ("bad.yaml", "a: b\nc: [\n", 0o600),
        ("no-object.yaml", "apiVersion: v1\nkind: List\n---\na: b\n", 0o600),
    ):
        (root / name).write_text(content)
        (root / name).chmod(mode)
    return root


def run(rule: str, change: dict[str, object], base: Path) -> tuple[Problem, ...]:
    """The findings of one rule about the valid file with a change."""
    # the other rules may have their say about the same change; this test is about one
    only = tuple(row for row in RULES if row.name == rule)
    assert only, rule
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("provisioner.validate.RULES", only)
        return check(change, base).problems


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule_fires_and_says_where(case: Case, base: Path) -> None:
    problems = run(case.rule, case.change, base)
    assert [problem.where for problem in problems].count(case.where) >= 1, problems
    found = next(problem for problem in problems if problem.where == case.where and case.says in problem.message)
    assert found.severity == case.severity
    assert found.line == 1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule_keeps_silent_on_the_nearest_valid_file(case: Case, base: Path) -> None:
    assert run(case.rule, case.near, base) == ()


def test_every_rule_has_a_case() -> None:
    assert {case.rule for case in CASES} == {rule.name for rule in RULES}


def test_the_valid_file_has_no_problem(base: Path) -> None:
    assert check({}, base).problems == ()
    assert check({}, base).cluster is not None


def test_each_rule_reads_keys_that_exist() -> None:

    for rule in RULES:
        for read in rule.reads:
            path = tuple(read.split("."))
            found = field_at(path)
            assert found is not None, (rule.name, read)
            assert found[0] == path, (rule.name, read)


def test_a_file_with_errors_gives_no_cluster_and_one_with_warnings_does(base: Path) -> None:
    assert check({"etcd.heartbeatInterval": 201}, base).cluster is None
    warned = check({"network.vxlanPort": 6443}, base)
    assert warned.cluster is not None
    assert [problem.severity for problem in warned.problems] == ["warning"]


def test_home_directory_and_relative_names(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(base))
    assert check({"ssh.key": "~/keys/private"}, Path("/nonexistent")).problems == ()
    assert check({"ssh.key": "~no-such-user-here/key"}, base).cluster is None
    assert check({"ssh.key": str(base / "keys/private")}, Path("/nonexistent")).problems == ()


def test_a_key_that_cannot_be_read(base: Path, unreadable: Callable[[Path], AbstractContextManager[None]]) -> None:
    key = base / "keys" / "secret"
    key.write_text("-----BEGIN PRIVATE KEY-----")
    key.chmod(0o600)
    with unreadable(key):
        problems = check({"ssh.key": "keys/secret"}, base).problems
    assert "permission denied" in problems[0].message


def test_no_message_repeats_a_proxys_password(base: Path) -> None:
    for rest in ("http://{}@", "https//{}@proxy", "http://{}@host:99999", "{}@proxy", "http://{}@a b"):
        url = rest.format("me:hunter2")
        problems = check({"httpProxy": {"http": url, "https": url}}, base).problems
        assert problems, url
        assert "hunter2" not in repr(problems), url


def test_no_message_repeats_a_mirrors_password(base: Path) -> None:
    for rest in ("http://{}@m.example", "https://{}@m.example", "http://{}@host:99999", "{}@m.example"):
        mirror = {"registry": "r.example", "endpoints": [rest.format("me:hunter2")]}
        known = {"registry": "r.example", "credentials": "login"}
        loaded = check({"containerd": {"registryMirrors": [mirror], "registries": [known]}}, base)
        assert loaded.cluster is None
        assert "hunter2" not in repr(loaded.problems), rest


def test_rules_do_not_speak_about_stand_ins_for_what_did_not_validate(base: Path) -> None:
    # the address is misspelt, so its node has none; the second node still repeats the first one's
    loaded = check(
        {
            "nodes": [
                node("a", "10.0.0.1", *CP, "worker"),
                {"name": "b", "adress": "10.0.0.2", "roles": ["worker"]},
                node("c", "10.0.0.1", "worker"),
            ]
        },
        base,
    )
    assert [(problem.where, problem.message.split(";")[-1].strip()) for problem in loaded.problems] == [
        ("nodes[1].adress", 'did you mean "address"?'),
        ("nodes[2].address", '"10.0.0.1" with SSH port 22 is the machine of nodes[0] (a) already'),
    ]


def test_counts_are_not_guessed_where_a_role_did_not_validate(base: Path) -> None:
    loaded = check({"nodes.2.roles": ["control-plane", "etdc"]}, base)
    assert [problem.where for problem in loaded.problems] == ["nodes[2].roles[1]"]
    assert 'did you mean "etcd"?' in loaded.problems[0].message


def test_a_misplaced_key_does_not_make_the_default_speak(base: Path) -> None:
    # podCidr at the top is meant for network.podCidr; nothing is said about the default there
    rest = {key: value for key, value in VALID.items() if key != "network"}
    data = {**rest, "podCidr": "172.20.0.0/16", "network": {"serviceCidr": "10.244.0.0/16"}}
    loaded = load.parse(json.dumps(data), base / "cluster.yaml")
    assert [problem.where for problem in loaded.problems] == ["podCidr"]
    assert "belongs under `network`" in loaded.problems[0].message


def test_problems_are_values(base: Path) -> None:
    problem = check({"name": GONE}, base).problems[0]
    assert dataclasses.replace(problem) == problem
    assert problem.message == "required key is missing"


def test_a_running_cluster_may_have_an_even_number_of_members_for_a_while(base: Path) -> None:
    text = json.dumps(changed({"nodes.2.roles": ["control-plane"]}))
    assert load.parse(text, base / "cluster.yaml").cluster is None
    running = load.parse(text, base / "cluster.yaml", exists=True)
    assert running.cluster is not None
    assert [(problem.severity, problem.message[:14]) for problem in running.problems] == [("warning", "2 etcd members")]
