"""`provisioner node`: what needs no machine to be refused is refused at once, with a remedy, and nothing is written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner import cli, registry
from provisioner.cli import node as command
from provisioner.config import Node, Role
from provisioner.errors import ExitCode
from provisioner.leaver import DRAIN_SECONDS
from provisioner.lifecycle import nodes
from provisioner.workspace import Workspace

CLUSTER = """\
apiVersion: provisioner/v1
name: test
nodes:
  - name: cp-1   # the only one
    address: 10.77.0.11
    roles: [control-plane, etcd]
  - name: worker-1
    address: 10.77.0.21
    roles: [worker]
  - name: worker-2
    address: w2.example.org
    clusterAddress: 10.77.0.22
    roles: [worker]
"""

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("PROVISIONER_DEBUG", raising=False)
    return tmp_path


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The real command in a directory with a cluster.yaml: exit code, and what it says."""

    def main(*args: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["provisioner", "node", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        assert printed.out == ""
        return int(ended.value.code or 0), printed.err

    return main


@pytest.mark.parametrize(
    ("args", "said"),
    [
        # add
        ("add", "Missing argument 'NAME'"),
        ("add worker-9", "worker-9 is not in"),
        ("add worker-9 --role worker", "no address is given"),
        ("add worker-1 --address 10.77.0.29", "worker-1 is in"),
        ("add worker-1 --role worker", "worker-1 is in"),
        ("add worker-1 --label a=b", "worker-1 is in"),
        ("add worker-9 --address 10.77.0.29 --label rack", "--label 'rack' is not KEY=VALUE"),
        ("add worker-9 --address 10.77.0.29 --label =b", "--label '=b' is not KEY=VALUE"),
        ("add worker-9 --address 10.77.0.29 --label a=b/c", "nodes[3].labels"),
        ("add worker-9 --address 10.77.0.29 --label a=b=c", "nodes[3].labels"),
        ("add worker-9 --address 10.77.0.21", "10.77.0.21"),
        ("add worker-9 --address 10.77.0.29 --cluster-address 10.77.0.22", "10.77.0.22"),
        ("add worker-9 --address w9.example.org", "clusterAddress"),
        ("add worker-9 --address 10.77.0.29 --cluster-address here", "nodes[3].clusterAddress"),
        ("add Worker_9 --address 10.77.0.29", "nodes[3].name"),
        ("add worker-9 --address 10.77.0.29 --role wroker", "wroker"),
        ("add worker-9 --address 10.77.0.29 --ssh-port 0", "nodes[3].sshPort"),
        ("add worker-9 --address 10.77.0.29 --ssh-port many", "--ssh-port"),
        ("add worker-9 --address 10.77.0.29 --ssh-key no/such/key", "no/such/key"),
        ("add worker-9 --address 10.77.0.29 --deadline 0", "--deadline"),
        ("add worker-9 --address 10.77.0.29 --cluster no/such/file", "no/such/file"),
        ("add worker-9 worker-8 --address 10.77.0.29", "unexpected extra argument"),
        # remove
        ("remove", "Missing argument 'NAME...'"),
        ("remove worker-9", "there is no node 'worker-9'"),
        ("remove worker-9 --unreachable", "the nodes are cp-1, worker-1, worker-2"),
        ("remove wroker-1", 'did you mean "worker-1"?'),
        ("remove worker-1 worker-9", "there is no node 'worker-9'"),
        ("remove cp-1", "no node has the role control-plane"),
        ("remove cp-1 worker-1 worker-2 --unreachable", "is the only node"),
        ("remove worker-1 worker-2", "no node has the role worker"),
        ("remove worker-1 --drain-timeout 0", "--drain-timeout"),
        ("remove worker-1 --drain-timeout soon", "--drain-timeout"),
        # replace
        ("replace", "Missing argument 'NAME'"),
        ("replace worker-9", "there is no node 'worker-9'"),
        ("replace worker-1 --name worker-9", "an address of its own"),
        ("replace worker-1 --name worker-2 --address 10.77.0.29", "worker-2"),
        ("replace worker-1 --name Worker_9 --address 10.77.0.29", "nodes[1].name"),
        ("replace worker-1 --address 10.77.0.22", "10.77.0.22"),
        ("replace worker-1 --address w1.example.org", "clusterAddress"),
        ("replace worker-2 --address w3.example.org", "worker-2 has a cluster address of its own, 10.77.0.22"),
        ("replace worker-2 --name worker-9 --address 10.77.0.29", "--cluster-address"),
        ("replace cp-1", "cp-1 is the only control plane"),
        ("replace cp-1 --address 10.77.0.19", "provisioner node replace cp-1 --name NEW --address ADDRESS"),
        ("replace cp-1 --name cp-1 --address 10.77.0.19", "cp-1 is the only control plane"),
        ("replace worker-1 --drain-timeout -1", "--drain-timeout"),
        # none of them
        ("rename worker-1", "No such command 'rename'"),
        ("remove worker-1 --bogus", "No such option: --bogus"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(run: Run, home: Path, args: str, said: str) -> None:
    code, told = run(*args.split(), *(["--yes"] if " " in args else []))
    assert code == ExitCode.BAD_INPUT, told
    assert said.lower() in told.lower()
    assert "error: " in told
    assert "remedy: " in told
    assert "Traceback" not in told
    assert (home / "cluster.yaml").read_text() == CLUSTER
    assert [path.name for path in home.iterdir()] == ["cluster.yaml"]


@pytest.mark.parametrize("args", ["add worker-9 --address 10.77.0.29", "remove worker-1", "replace worker-1 --address 10.77.0.29"])
def test_a_file_that_cannot_be_cut_safely_is_left_to_its_author(run: Run, home: Path, args: str) -> None:
    nodes = (
        "{name: cp-1, address: 10.77.0.11, roles: [control-plane, etcd, worker]}, "
        "{name: worker-1, address: &a 10.77.0.21, roles: [worker], labels: {at: *a}}"
    )
    text = f"apiVersion: provisioner/v1\nname: test\nnodes: [{nodes}]\n"
    (home / "cluster.yaml").write_text(text)
    code, told = run(*args.split(), "--yes")
    assert code == ExitCode.BAD_INPUT, told
    assert "remedy: edit `nodes:` of the file by hand and run `provisioner apply`" in told
    assert (home / "cluster.yaml").read_text() == text
    assert [path.name for path in home.iterdir()] == ["cluster.yaml"]


def test_a_damaged_record_is_said_so(run: Run, home: Path) -> None:
    workspace = Workspace.of(home / "cluster.yaml", "test")
    workspace.create()
    (workspace.root / "machines.json").write_text("{")
    for args in ("remove worker-1", "replace worker-1"):
        code, told = run(*args.split(), "--yes")
        assert code == ExitCode.FAILURE
        assert "machines.json: this list of the cluster's machines cannot be read" in told
        assert "remedy: move it away" in told
    assert (home / "cluster.yaml").read_text() == CLUSTER


def test_without_any_command_there_is_help(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["provisioner", "node"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == ExitCode.BAD_INPUT
    printed = capsys.readouterr()
    assert all(name in printed.out + printed.err for name in ("add", "remove", "replace"))


# -- what a run is asked for -------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[command._Request]:
    """The runs that a command asks for; none of them takes place, and every machine is fit."""
    requests: list[command._Request] = []

    def ask(request: command._Request, *, skip_verify: bool) -> None:
        requests.append(request)

    monkeypatch.setattr(command, "_run", ask)
    monkeypatch.setattr(nodes, "require_fit", lambda *_: None)
    return requests


def test_adding_is_a_run_about_that_machine(run: Run, home: Path, asked: list[command._Request]) -> None:
    assert run("add", "worker-9", "--address", "10.77.0.29", "--label", "a=b", "--label", "c=")[0] == ExitCode.OK
    (request,) = asked
    assert request.scope == frozenset({"worker-9"})
    assert request.cluster.node("worker-9") == Node(
        name="worker-9", address="10.77.0.29", roles=(Role.WORKER,), labels={"a": "b", "c": ""}
    )
    assert (home / "cluster.yaml").read_text() == CLUSTER, "before the answer is yes"
    (home / "cluster.yaml").chmod(0o640)
    request.write()
    assert (home / "cluster.yaml").read_text().startswith(CLUSTER)
    assert "worker-9" in (home / "cluster.yaml").read_text()
    assert (home / "cluster.yaml").stat().st_mode & 0o777 == 0o640


def test_a_node_that_is_in_the_file_is_made_so(run: Run, home: Path, asked: list[command._Request]) -> None:
    run("add", "worker-1", "--yes", "--deadline", "60")
    run("add", "cp-1")
    assert [(request.scope, request.edited, request.yes, request.deadline) for request in asked] == [
        (frozenset({"worker-1"}), None, True, 60),
        (None, None, False, None),
    ]
    asked[0].write()
    assert (home / "cluster.yaml").read_text() == CLUSTER


def test_removing_names_those_that_go(run: Run, home: Path, asked: list[command._Request]) -> None:
    # one is in the file, one on record only, and one is named twice
    old = Node(name="old", address="10.77.0.39", roles=(Role.WORKER,))
    registry.remember(Workspace.of(home / "cluster.yaml", "test"), [old])
    run("remove", "worker-2", "old", "worker-2", "--force", "--drain-timeout", "900")
    (request,) = asked
    assert request.scope == frozenset({"worker-2", "old"})
    assert [node.name for node in request.cluster.nodes] == ["cp-1", "worker-1"]
    removal = request.removal
    assert (removal.given_up, removal.drain_seconds, removal.force) == (frozenset(), 900, True)
    assert removal.insist == frozenset({"worker-2", "old"})
    # of a cluster that an earlier version has built: the record does not know it
    assert [node.name for node in removal.unrecorded] == ["worker-2"]


def test_what_is_out_of_the_file_already_is_removed_without_an_edit(run: Run, home: Path, asked: list[command._Request]) -> None:
    old = Node(name="old", address="10.77.0.39", roles=(Role.ETCD,))
    registry.remember(Workspace.of(home / "cluster.yaml", "test"), [old])
    run("remove", "old", "--unreachable")
    (request,) = asked
    assert (request.scope, request.edited, request.removal.unrecorded) == (None, None, ())
    assert (request.removal.given_up, request.removal.drain_seconds) == (frozenset({"old"}), DRAIN_SECONDS)


def test_under_another_name_the_new_one_joins_and_the_old_one_leaves_in_one_run(
    run: Run, home: Path, asked: list[command._Request]
) -> None:
    run("replace", "worker-1", "--name", "worker-9", "--address", "10.77.0.29")
    run("replace", "cp-1", "--name", "cp-9", "--address", "10.77.0.19")
    workers, planes = asked
    assert workers.scope == frozenset({"worker-1", "worker-9"})
    assert [node.name for node in workers.cluster.nodes] == ["cp-1", "worker-9", "worker-2"]
    assert (workers.removal.insist, workers.quiet) == (frozenset({"worker-1"}), False)
    assert planes.scope is None
    assert planes.cluster.node("cp-9").roles == (Role.CONTROL_PLANE, Role.ETCD)
    assert "name: cp-9   # the only one" in (planes.edited.text if planes.edited else "")


@pytest.mark.parametrize("name", [(), ("--name", "worker-1")])
def test_under_the_same_name_the_old_one_leaves_before_the_new_one_joins(
    run: Run, home: Path, asked: list[command._Request], name: tuple[str, ...]
) -> None:
    code, told = run("replace", "worker-1", "--address", "10.77.0.29", *name)
    assert code == ExitCode.OK
    assert "first worker-1 at 10.77.0.21 leaves, then worker-1 at 10.77.0.29 joins" in told
    before, after = asked
    assert [node.name for node in before.cluster.nodes] == ["cp-1", "worker-2"]
    assert (before.edited, before.quiet, before.yes, before.scope) == (None, True, False, frozenset({"worker-1"}))
    assert [(node.name, node.address) for node in before.removal.unrecorded] == [("worker-1", "10.77.0.21")]
    assert after.cluster.node("worker-1").address == "10.77.0.29"
    # it has a plan of its own, which is asked about; and nobody leaves any more
    assert (after.quiet, after.yes, after.removal.insist) == (False, False, frozenset())
    assert (home / "cluster.yaml").read_text() == CLUSTER.replace("10.77.0.21", "10.77.0.29")
