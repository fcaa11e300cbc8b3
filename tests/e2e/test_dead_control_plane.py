"""There is no first node: with the first control plane of cluster.yaml dead, every command works through the others."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from provisioner.errors import ProvisionerError
from provisioner.wait import NotYet, wait_until

pytestmark = pytest.mark.e2e

Real = Any  # the value of the fixture `ha` (tests/e2e/conftest.py); pytest imports no test module by name

DEAD = "cp-1"
PATIENCE = 300.0


@pytest.fixture(scope="module")
def bereft(ha: Real) -> Iterator[Real]:
    """The cluster without the first control plane of its file; whole again afterwards."""
    machine = ha.machine(DEAD)
    # gone from the network first, so that no connection is closed politely
    machine.cut_link()
    machine.power_off()
    try:
        yield ha
    finally:
        machine.start()
        # the connection that this process held to it went with it
        wait_until("SSH", lambda: ha.run(DEAD, "true"), seconds=PATIENCE, every=1, retry_on=(ProvisionerError, AssertionError))

        def whole() -> None:
            done = ha.cli("verify", "--json")
            if done.returncode:
                raise NotYet(done.stdout[-2000:] or done.stderr)

        wait_until("the cluster whole again, with no command typed", whole, seconds=PATIENCE, every=2)
        assert ha.plan() == []


def kubectl(ha: Real, *words: str) -> str:
    """kubectl on a living control plane, through its own proxy."""
    line = f"kubectl --kubeconfig /dev/stdin --server https://127.0.0.1:16443 {' '.join(words)}"
    text: str = ha.run("cp-3", line, stdin=ha.workspace.kubeconfig.read_bytes())
    return text


def test_the_kubeconfig_leads_to_one_that_answers(bereft: Real) -> None:
    began = time.monotonic()
    done = bereft.cli("kubeconfig")
    assert done.returncode == 0, done.stderr
    document = yaml.safe_load(done.stdout)
    servers = {cluster["name"]: cluster["cluster"]["server"] for cluster in document["clusters"]}
    dead = f"https://{bereft.cluster.node(DEAD).ip}:6443"
    assert servers[bereft.name] != dead
    assert servers[f"{bereft.name}-{DEAD}"] == dead, "every control plane has a context of its own"
    assert yaml.safe_load(bereft.workspace.kubeconfig.read_text()) == document, "the file follows"
    print(f"kubeconfig with a dead control plane: {time.monotonic() - began:.1f} s")


def test_verify_names_the_dead_machine(bereft: Real) -> None:
    done = bereft.cli("verify", "--json")
    assert done.returncode == 5, done.stderr
    report = json.loads(done.stdout)
    failures = {check["id"]: "\n".join(check["failures"]) for check in report["checks"] if check["outcome"] == "failed"}
    # others may fail for some seconds more, until its endpoints are taken out of the Services
    for check in ("units", "apiservers", "etcd"):
        assert DEAD in failures[check], failures
    passed = [check["id"] for check in report["checks"] if check["outcome"] == "passed"]
    print(f"verify with {DEAD} dead: passed {passed}, failed {sorted(failures)}")
    assert passed


def test_plan_and_apply_set_it_aside_and_do_the_rest(bereft: Real) -> None:
    plan = bereft.cli("plan", "--json")
    assert plan.returncode == 0, plan.stdout + plan.stderr
    assert json.loads(plan.stdout)["changes"] == []
    assert f"{DEAD} is set aside" in plan.stderr

    def labelled(text: str) -> str:
        document = yaml.safe_load(text)
        next(node for node in document["nodes"] if node["name"] == "worker-1")["labels"] = {"example.com/while": "dead"}
        return yaml.safe_dump(document)

    with bereft.edited(labelled):
        done = bereft.cli("apply", "--yes")
    assert done.returncode == 1, done.stderr
    assert f"{DEAD}: set aside; the other machines are as cluster.yaml says" in done.stderr
    assert "`provisioner apply`" in done.stderr.partition("remedy:")[2]
    assert "example.com/while=dead" in kubectl(bereft, "get", "node", "worker-1", "--show-labels")
    back = bereft.cli("apply", "--yes")
    assert back.returncode == 1, back.stderr


def test_a_change_that_would_take_the_quorum_is_refused_and_nothing_changes(bereft: Real) -> None:
    def changed(text: str) -> str:
        document = yaml.safe_load(text)
        document["etcd"] = {"flags": {"max-concurrent-streams": 1_000_000}}
        return yaml.safe_dump(document)

    before = [bereft.run(name, "systemctl show --property=ExecMainStartTimestampMonotonic etcd") for name in ("cp-2", "cp-3")]
    with bereft.edited(changed):
        done = bereft.cli("apply", "--yes")
    assert done.returncode == 1, done.stderr
    assert f"this change restarts etcd on cp-2, cp-3, while {DEAD} is already down" in done.stderr
    assert "2 of 3 members are up, 2 are needed" in done.stderr
    assert "nothing was changed" in done.stderr
    assert before == [
        bereft.run(name, "systemctl show --property=ExecMainStartTimestampMonotonic etcd") for name in ("cp-2", "cp-3")
    ]
    assert bereft.cli("plan").returncode == 0, "not a file of it was placed"


def test_other_commands_go_on(bereft: Real) -> None:
    assert bereft.cli("validate").returncode == 0
    assert bereft.cli("ssh", "worker-2", "--", "hostname").stdout.strip() == "worker-2"
    preflight = bereft.cli("preflight", "--json")
    assert preflight.returncode == 4
    assert DEAD in preflight.stdout


def test_kubectl_finds_a_control_plane_that_answers(bereft: Real) -> None:
    nodes = bereft.cli("kubectl", "get", "nodes", "--output=name")
    assert nodes.returncode == 0, nodes.stderr
    assert {f"node/{node.name}" for node in bereft.cluster.kubernetes_nodes} == set(nodes.stdout.split())
    refused = bereft.cli("kubectl", "get", "nothings")
    assert refused.returncode == 1, "kubectl's own exit code"
    assert "the server doesn't have a resource type" in refused.stderr
