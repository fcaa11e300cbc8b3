"""What `reset` refuses and what it tells: values in, values out. What it does is proved on machines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from provisioner import facts
from provisioner.cli import common
from provisioner.cli import reset as command
from provisioner.cli.run import open_session
from provisioner.config import Cluster, Node
from provisioner.errors import BadInput, ExitCode, PreflightUnfit, ProvisionerError
from provisioner.events import Tally
from provisioner.facts import HostFacts
from provisioner.lifecycle import reset
from provisioner.lifecycle.reset import ResetError, ResetResult, Survey
from provisioner.timeline import last_run
from provisioner.workspace import Workspace

NODE = Node.model_validate({"name": "worker-1", "address": "10.77.0.21", "roles": ["worker"]})
CLUSTER = Cluster.model_validate(
    {
        "apiVersion": "provisioner/v1",
        "name": "test",
        "nodes": [{"name": "cp-1", "address": "10.77.0.11", "roles": ["control-plane", "etcd"]}, NODE],
    }
)


def looked(**fields: Any) -> Survey:
    values = {**facts._UNKNOWN, "name": NODE.name, "arch": "amd64", "kernel": "6.1", "python": "python3", "python_version": "3.11"}
    values |= {"cluster_interface": "eth0", "packages_missing": [], "uid": 0, "clock_skew_s": 0.0}
    return Survey(NODE, HostFacts.from_json({**values, "disk_sync": None, "probe_cpu_s": 0.0, "incomplete": {}}), **fields)


def outcome(status: str, state: Mapping[str, Any] | None, message: str = "") -> ResetResult | ProvisionerError:
    """What `wipe` makes of Ansible's events."""
    tally = Tally(lambda _step: None)
    result = {"msg": message, **({} if state is None else {"state": state})}
    data = {"host": "worker-1", "task": "Take", "play": "p", "role": "reset", "res": result, "task_action": "reset_machine"}
    tally.take({"event": f"runner_on_{status}", "event_data": data})
    return reset._result(NODE, tally)


STATE = {"clean": False, "foreign": "", "found": {"units": ["kubelet.service"]}, "left": [], "notes": ["n"], "seconds": 2.5}


def test_a_machine_that_was_reset() -> None:
    result = outcome("ok", STATE)
    assert result == ResetResult("worker-1", True, {"units": ("kubelet.service",)}, ("n",), 2.5)
    assert isinstance(result, ResetResult)
    assert json.loads(json.dumps(result.to_json()))["removed"] == {"units": ["kubelet.service"]}


def test_a_machine_that_was_clean() -> None:
    result = outcome("ok", {**STATE, "clean": True, "found": {}})
    assert isinstance(result, ResetResult)
    assert not result.changed


def test_what_is_still_there_is_told_with_a_remedy() -> None:
    result = outcome("failed", {**STATE, "left": ["mounts: /a: busy"]}, "still there: mounts: /a: busy")
    assert isinstance(result, ResetError)
    assert result.message == "worker-1: still there: mounts: /a: busy"
    assert result.details == ("mounts: /a: busy", "n")
    assert "reboot" in result.hint


def test_another_clusters_machine_is_unfit() -> None:
    result = outcome("failed", {**STATE, "foreign": "belongs to another"}, "belongs to another; nothing was changed")
    assert isinstance(result, PreflightUnfit)
    assert result.exit_code == ExitCode.PREFLIGHT_UNFIT


def test_a_machine_that_went_away_meanwhile() -> None:
    result = outcome("unreachable", None, "no route")
    assert isinstance(result, ResetError)
    assert "does not answer: no route" in result.message
    assert "again" in result.hint


def test_a_machine_without_any_event_is_no_success() -> None:
    assert isinstance(reset._result(NODE, Tally(lambda _step: None)), ResetError)


def test_one_machine_of_another_cluster_stops_all() -> None:
    with pytest.raises(PreflightUnfit, match="worker-1: of another cluster; nothing was changed") as refused:
        reset.refuse_foreign({"cp-1": looked(cluster="test"), "worker-1": looked(cluster="other", foreign=True)})
    assert refused.value.hint
    reset.refuse_foreign({"cp-1": looked(cluster="test"), "worker-1": ResetError("worker-1: down")})


def test_names_that_are_no_machines() -> None:
    assert [node.name for node in command._chosen(CLUSTER, [])] == ["cp-1", "worker-1"]
    assert [node.name for node in command._chosen(CLUSTER, ["worker-1"])] == ["worker-1"]
    with pytest.raises(BadInput, match="no machine worker-2") as refused:
        command._chosen(CLUSTER, ["worker-1", "worker-2"])
    assert "cp-1, worker-1" in refused.value.hint


def test_the_question_names_what_is_destroyed() -> None:
    assert "the whole cluster test" in command._question(CLUSTER, CLUSTER.nodes)
    assert "cp-1, worker-1" in command._question(CLUSTER, CLUSTER.nodes)
    assert "whole" not in command._question(CLUSTER, [NODE])


def test_without_a_terminal_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO("y\n"))
    with pytest.raises(BadInput, match="nobody to ask") as refused:
        common.confirm("Destroy?")
    assert "--yes" in refused.value.hint
    assert refused.value.exit_code == ExitCode.BAD_INPUT


def test_the_end_names_every_machine_that_is_not_clean() -> None:
    command._refuse_incomplete({})
    with pytest.raises(ResetError, match="a: down"):
        command._refuse_incomplete({"a": ResetError("a: down")})
    with pytest.raises(ResetError, match="a, b: not reset") as failed:
        command._refuse_incomplete({"a": ResetError("a: down"), "b": ResetError("b: left", details=("x",))})
    assert failed.value.details == ("a: down", "b: left", "x")
    assert failed.value.exit_code == ExitCode.FAILURE


def test_a_reset_is_a_run_that_changes(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, tmp_path / "cluster.yaml")
    silent = {node.name: ProvisionerError("no answer", hint="x") for node in CLUSTER.nodes}
    with open_session(CLUSTER, workspace, "reset") as session:
        session.display.plan(command.PHASES)
        command._wipe(session, CLUSTER.nodes, silent, 1)
    run = last_run(workspace)
    assert run is not None
    assert (run.command, run.changed, [(phase.name, phase.state) for phase in run.phases]) == ("reset", True, [("reset", "failed")])
