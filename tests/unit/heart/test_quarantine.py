"""Workers that fail are set aside: what the action plugins make of a failure, and what the driver makes of that."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleConnectionFailure

from provisioner import inventory, plays, quarantine
from provisioner.config import Cluster, Role
from provisioner.desired import HostState
from provisioner.errors import ApplyError
from provisioner.events import Failure, Tally, TaskStep
from provisioner.session import Session
from provisioner.workspace import Workspace

FAILED = {
    "failed": True,
    "changed": True,
    "msg": "kubelet.service: not healthy",
    "unit": "kubelet.service",
    "journal": ["line 1", "line 2"],
    "invocation": {"module_args": {"payload": "secret"}},
}


class Host:
    """One host's tasks in a run whose rendered states are in a directory."""

    def __init__(self, directory: Path, name: str = "worker-1", **variables: object) -> None:
        self.variables = {"rendered_dir": str(directory), "inventory_hostname": name, **variables}
        self.done: list[object] = []

    def does(self, outcome: dict[str, Any] | Exception) -> dict[str, Any]:
        """Do a task that ends so."""

        def work() -> dict[str, Any]:
            self.done.append(outcome)
            if isinstance(outcome, Exception):
                raise outcome
            return dict(outcome)

        return quarantine.guarded(self.variables, work)


def marks(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_succeeds_is_handed_on_as_it_is(tmp_path: Path) -> None:
    for vital in (True, False):
        assert Host(tmp_path, vital=vital).does({"changed": True, "state": {}}) == {"changed": True, "state": {}}
    assert marks(tmp_path) == []


@pytest.mark.parametrize("variables", [{"vital": True}, {}, {"vital": True, "in_service": True, "aside_limit": 9}])
@pytest.mark.parametrize("failure", [FAILED, {"unreachable": True, "msg": "timed out"}])
def test_a_vital_hosts_failure_comes_back_as_it_is(tmp_path: Path, variables: dict[str, Any], failure: dict[str, Any]) -> None:
    """A host of which nothing is said is vital: an inventory by hand has no such words."""
    host = Host(tmp_path, "cp-1", **variables)
    assert host.does(failure) == failure
    assert marks(tmp_path) == []
    # the next task is tried, for Ansible itself decides about this host
    assert host.does({"changed": False}) == {"changed": False}
    assert len(host.done) == 2


def test_a_workers_failure_is_a_result_with_what_the_driver_must_know_of_it(tmp_path: Path) -> None:
    result = Host(tmp_path, vital=False).does(FAILED)
    assert result == {
        "changed": True,
        "set_aside": {"msg": "kubelet.service: not healthy", "unit": "kubelet.service", "journal": ["line 1", "line 2"]},
    }
    assert marks(tmp_path) == ["worker-1.aside"]


def test_every_later_task_of_a_host_that_is_set_aside_is_skipped(tmp_path: Path) -> None:
    host, other = Host(tmp_path, vital=False), Host(tmp_path, "worker-11", vital=False)
    host.does(FAILED)
    for _ in range(2):
        result = host.does({"changed": True})
        assert (result["skipped"], result["changed"]) == (True, False)
        assert quarantine.KEY not in result, "it is set aside once"
    assert len(host.done) == 1
    assert other.does({"changed": True}) == {"changed": True}


def test_a_workers_lost_connection_is_a_failure_like_another(tmp_path: Path) -> None:
    host = Host(tmp_path, vital=False)
    result = host.does(AnsibleConnectionFailure("Connection closed by 10.77.0.21"))
    assert result["set_aside"]["unreachable"] is True
    assert "Connection closed by 10.77.0.21" in result["set_aside"]["msg"]
    assert marks(tmp_path) == ["worker-1.aside"]


def test_a_vital_hosts_lost_connection_and_errors_of_ansible_itself_are_raised(tmp_path: Path) -> None:
    with pytest.raises(AnsibleConnectionFailure, match="closed"):
        Host(tmp_path, vital=True).does(AnsibleConnectionFailure("closed"))
    # a bug is no machine's fault
    with pytest.raises(TypeError):
        Host(tmp_path, vital=False).does(TypeError("a bug"))
    assert marks(tmp_path) == []


def test_only_so_many_hosts_that_ran_before_are_set_aside(tmp_path: Path) -> None:
    """With the next one it is the change that breaks them, and that is stopped."""
    ran = [Host(tmp_path, f"ran-{number}", vital=False, in_service=True, aside_limit=2) for number in range(4)]
    new = [Host(tmp_path, f"new-{number}", vital=False, in_service=False, aside_limit=2) for number in range(3)]
    assert all(quarantine.KEY in host.does(FAILED) for host in (*new[:2], *ran[:2]))
    assert ran[2].does(FAILED) == FAILED
    with pytest.raises(AnsibleConnectionFailure):
        ran[3].does(AnsibleConnectionFailure("closed"))
    assert quarantine.KEY in new[2].does(FAILED), "a new one breaks nothing that ran, however many have"
    assert marks(tmp_path) == ["new-0.aside", "new-1.aside", "new-2.aside", "ran-0.aside", "ran-1.aside"]


def test_without_a_limit_one_host_that_ran_is_set_aside(tmp_path: Path) -> None:
    assert quarantine.KEY in Host(tmp_path, "ran-0", vital=False, in_service=True).does(FAILED)
    assert Host(tmp_path, "ran-1", vital=False, in_service=True).does(FAILED) == FAILED


def test_the_limit_holds_for_hosts_that_fail_at_the_same_moment(tmp_path: Path) -> None:
    """Ansible runs each host's task in a process of its own."""
    for attempt in range(20):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        together = threading.Barrier(8)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(partial(fail_together, directory, together), range(8)))
        assert sum(quarantine.KEY in result for result in results) == 2
        assert len(marks(directory)) == 2


def fail_together(directory: Path, together: threading.Barrier, number: int) -> dict[str, Any]:
    def work() -> dict[str, Any]:
        together.wait(60)
        return dict(FAILED)

    return quarantine.guarded(Host(directory, f"ran-{number}", vital=False, in_service=True, aside_limit=2).variables, work)


def test_a_new_run_sets_nobody_aside_for_what_happened_in_the_last_one(tmp_path: Path) -> None:
    (tmp_path / "worker-1.json").write_text("{}")
    host = Host(tmp_path, vital=False)
    host.does(FAILED)
    quarantine.begin(tmp_path)
    quarantine.begin(tmp_path)
    assert marks(tmp_path) == ["worker-1.json"]
    assert host.does({"changed": True}) == {"changed": True}


# -- the driver's side -------------------------------------------------------------------------------------------------------------


def taken(*results: dict[str, Any]) -> tuple[Tally, list[TaskStep]]:
    """What the driver makes of results of one task on worker-1."""
    steps: list[TaskStep] = []
    tally = Tally(steps.append)
    for result in results:
        data = {"play": "Run the kubelets", "task": "Run the kubelet", "role": "kubelet", "task_action": "role_state"}
        kind = "runner_on_skipped" if result.get("skipped") else "runner_on_ok"
        tally.take({"event": kind, "event_data": {**data, "host": "worker-1", "res": result, "duration": 2}})
    return tally, steps


def test_the_tally_knows_who_was_set_aside_and_why(tmp_path: Path) -> None:
    host = Host(tmp_path, vital=False)
    tally, steps = taken(host.does(FAILED), host.does({"changed": True}))
    assert tally.aside == {
        "worker-1": Failure(
            "worker-1",
            "Run the kubelet",
            "kubelet",
            "kubelet.service: not healthy",
            "kubelet.service",
            ("line 1", "line 2"),
        )
    }
    assert tally.failures == [], "the run goes on"
    assert tally.counts["worker-1"] == {"executed": 1, "skipped": 1, "changed": 0}
    assert [step.status for step in steps] == ["set aside", "skipped"]


def test_the_tally_knows_a_lost_connection(tmp_path: Path) -> None:
    tally, _ = taken(Host(tmp_path, vital=False).does(AnsibleConnectionFailure("Connection closed")))
    assert tally.aside["worker-1"].unreachable
    assert "Connection closed" in tally.aside["worker-1"].reason


def test_a_session_goes_on_without_who_was_set_aside_and_says_so(session: Session, printed: io.StringIO) -> None:
    session = plays.set_aside(session, [Failure("cp-2", "", "", "no route")])
    assert session.set_aside["cp-2"].message == "cp-2: connect: no route"
    failure = Failure("worker-1", "Run the kubelet", "kubelet", "not healthy\nmore", "kubelet.service", ("line 1",))
    result = plays.set_aside(session, [failure])
    assert set(result.set_aside) == {"cp-2", "worker-1"}
    error = result.set_aside["worker-1"]
    assert isinstance(error, ApplyError)
    assert error.message == "worker-1: Run the kubelet: not healthy"
    assert error.details == (
        "worker-1: kubelet : Run the kubelet: not healthy\nmore",
        "  last lines of kubelet.service on worker-1:",
        "    line 1",
    )
    assert "warning: set aside: worker-1: Run the kubelet: not healthy\n" in printed.getvalue()
    assert "worker-1" not in session.set_aside, "a session is a value"
    assert [node.name for node in result.nodes] == ["cp-1", "etcd-1"]


def test_nobody_set_aside_changes_nothing(session: Session, printed: io.StringIO) -> None:
    assert plays.set_aside(session, []) == session
    assert printed.getvalue() == ""


# -- what the plugins are told -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("roles", "vital"),
    [(["worker"], False), (["worker", "etcd"], True), (["control-plane", "worker"], True), (["etcd"], True)],
)
def test_whoever_is_more_than_a_worker_is_vital(cluster: Cluster, roles: list[str], vital: bool) -> None:
    node = cluster.node("worker-1").model_copy(update={"roles": tuple(Role(role) for role in roles)})
    assert inventory.is_vital(node) is vital


def test_the_inventory_says_of_each_host_whether_it_is_vital_and_ran_before(cluster: Cluster, workspace: Workspace) -> None:
    states = {name: HostState(name, variables={"base_packages": []}) for name in ("cp-1", "etcd-1", "worker-1")}
    interpreters = dict.fromkeys(states, "/usr/bin/python3")
    path = inventory.write(cluster, workspace, states, interpreters, in_service={"cp-1", "worker-1"})
    hosts = json.loads(path.read_text())["all"]["hosts"]
    assert {name: (host["vital"], host["in_service"]) for name, host in hosts.items()} == {
        "cp-1": (True, True),
        "etcd-1": (True, False),
        "worker-1": (False, True),
    }
    assert {host["rendered_dir"] for host in hosts.values()} == {str(workspace.rendered)}


@pytest.mark.parametrize(("workers", "limit"), [(1, 1), (19, 1), (20, 2), (300, 30)])
def test_a_tenth_of_the_workers_and_one_at_least_may_fail(
    session: Session, make_cluster: Callable[..., Cluster], workers: int, limit: int
) -> None:
    cluster = make_cluster()
    planes = tuple(node for node in cluster.nodes if not node.has(Role.WORKER))
    many = tuple(cluster.node("worker-1").model_copy(update={"name": f"w-{number}"}) for number in range(workers))
    crowd = replace(session, cluster=cluster.model_copy(update={"nodes": (*planes, *many)}))
    assert plays.pace(crowd)["aside_limit"] == limit
