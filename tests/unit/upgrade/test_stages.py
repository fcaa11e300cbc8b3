"""The order of an upgrade: which part of a plan comes when, which machines go together, and the small parts around it."""

from __future__ import annotations

from typing import Any

import pytest

from provisioner.config import Cluster
from provisioner.errors import BadInput
from provisioner.plan import CLUSTER, Change, Plan
from provisioner.render import ROLES
from provisioner.render.layout import binary_path
from provisioner.upgrade import deprecated, stages, workloads
from provisioner.upgrade.pin import pinned
from provisioner.upgrade.skew import Version
from provisioner.upgrade.workloads import Workload

ALL = (*stages.BEFORE_NODES, stages.NODES)


def change(role: str, what: str = "x", *, kind: str = "file", host: str = "cp-1") -> Change:
    return Change(host, role, kind, what, "change content")


def test_every_role_has_its_turn_and_only_one() -> None:
    """A role without a stage would stay on the old version for ever."""
    turns = [role for stage in ALL for role in stage.roles]
    assert sorted(turns) == sorted(role.name for role in ROLES if role.name != "artifacts")


def test_every_binary_comes_with_the_role_that_runs_it() -> None:
    for role in ROLES:
        for name in role.binaries:
            assert stages.role_of(change("artifacts", binary_path(name), kind="artifact")) == role.name


@pytest.mark.parametrize(
    ("what", "role"),
    [
        ("/usr/local/bin/kubelet", "kubelet"),
        ("/usr/local/bin/kube-apiserver", "kube_apiserver"),
        ("/opt/cni/bin/bridge", "network"),
        ("/var/lib/provisioner/images/coredns.tar", "containerd"),
    ],
)
def test_whose_an_artifact_is(what: str, role: str) -> None:
    assert stages.role_of(change("artifacts", what, kind="artifact")) == role


def test_a_stage_takes_its_part_of_the_plan_and_nothing_else() -> None:
    server = change("artifacts", "/usr/local/bin/kube-apiserver", kind="artifact")
    kubelet = change("artifacts", "/usr/local/bin/kubelet", kind="artifact", host="w")
    unit = change("kubelet", "kubelet.service", kind="unit", host="w")
    objects = change("objects", "Deployment", kind="object", host=CLUSTER)
    plan = Plan((server, kubelet, unit, objects))
    assert stages.API_SERVERS.part(plan).changes == (server,)
    assert stages.NODES.part(plan).changes == (kubelet, unit)
    assert stages.NODES.part(plan, {"w"}).changes == (kubelet, unit)
    assert not stages.NODES.part(plan, {"cp-1"})
    assert not stages.ETCD.part(plan)


def cluster(workers: int) -> Cluster:
    planes = [{"name": f"cp-{n}", "address": f"10.0.0.{n}", "roles": ["control-plane", "etcd"]} for n in (1, 2)]
    others = [{"name": f"w-{n}", "address": f"10.0.1.{n}", "roles": ["worker"]} for n in range(1, workers + 1)]
    etcd = [{"name": "e-1", "address": "10.0.0.9", "roles": ["etcd"]}]
    return Cluster.model_validate({"apiVersion": "provisioner/v1", "name": "t", "nodes": [*planes, *etcd, *others]})


def names(waves: Any) -> list[list[str]]:
    return [[node.name for node in wave] for wave in waves]


def test_control_planes_one_by_one_then_workers_some_at_a_time() -> None:
    assert names(stages.waves(cluster(3), 1)) == [["cp-1"], ["cp-2"], ["w-1"], ["w-2"], ["w-3"]]
    assert names(stages.waves(cluster(3), 2)) == [["cp-1"], ["cp-2"], ["w-1", "w-2"], ["w-3"]]
    assert stages.default_wave(cluster(9).kubernetes_nodes[2:]) == 1
    assert stages.default_wave(cluster(40).kubernetes_nodes[2:]) == 4


def deployment(wanted: int, ready: int, *, generation: int = 1, observed: int = 1) -> Workload:
    metadata = {"namespace": "n", "name": "web", "uid": "1", "generation": generation}
    status = {"readyReplicas": ready, "observedGeneration": observed}
    return Workload.of("Deployment", {"metadata": metadata, "spec": {"replicas": wanted}, "status": status})


def test_the_gate_holds_for_what_was_whole_and_fell() -> None:
    whole, fallen, stale = deployment(2, 2), deployment(2, 1), deployment(2, 2, generation=2)
    assert whole.whole
    assert not fallen.whole
    assert not stale.whole, "its controller has not seen the newest template yet"
    assert workloads.fallen({"1": whole}, {"1": fallen}) == (fallen,)
    assert not workloads.fallen({"1": whole}, {"1": whole})
    assert not workloads.fallen({"1": fallen}, {"1": fallen}), "it was so before"
    assert not workloads.fallen({"1": whole}, {}), "somebody has deleted it"
    assert str(fallen) == "Deployment n/web (1 of 2 Ready)"


def test_a_daemonset_is_whole_by_its_own_figures() -> None:
    metadata = {"namespace": "n", "name": "agent", "uid": "2", "generation": 1}
    status = {"desiredNumberScheduled": 3, "numberReady": 2, "observedGeneration": 1}
    assert not Workload.of("DaemonSet", {"metadata": metadata, "spec": {}, "status": status}).whole
    assert Workload.of("DaemonSet", {"metadata": metadata, "spec": {}, "status": {**status, "numberReady": 3}}).whole


METRICS = """\
# HELP apiserver_requested_deprecated_apis [STABLE] Gauge of deprecated APIs
apiserver_requested_deprecated_apis{group="flowcontrol",removed_release="1.36",resource="flows",subresource="",version="v1beta3"} 1
apiserver_requested_deprecated_apis{group="",removed_release="",resource="componentstatuses",subresource="",version="v1"} 1
apiserver_requested_deprecated_apis{group="later",removed_release="1.40",resource="things",subresource="",version="v1"} 1
"""


def test_apis_that_are_gone_and_were_asked_for() -> None:
    assert deprecated.removed(METRICS, Version.of("1.36.3")) == ("flows of flowcontrol/v1beta3 (removed in 1.36)",)
    assert deprecated.removed(METRICS, Version.of("1.35.4")) == ()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a: 1\nkubernetes:\n  version: 1.35.4 # ours\nb: 2\n", "a: 1\nkubernetes:\n  version: 1.36.3 # ours\nb: 2\n"),
        ('kubernetes: {version: "1.35.4"}\n', 'kubernetes: {version: "1.36.3"}\n'),
        ("a: 1\n# the end\n", "a: 1\n# the end\nkubernetes:\n  version: 1.36.3\n"),
        ("a: 1", "a: 1\nkubernetes:\n  version: 1.36.3\n"),
        ("a: 1\r\nkubernetes:\r\n  version: '1.35.4'\r\n", "a: 1\r\nkubernetes:\r\n  version: '1.36.3'\r\n"),
    ],
)
def test_the_version_is_written_and_nothing_else(before: str, after: str) -> None:
    assert pinned(before, "1.36.3") == after


@pytest.mark.parametrize("text", ["{a: 1}\n", "kubernetes:\na: 1\n", "v: &v 1.35.4\nkubernetes:\n  version: *v\n", "a: 1\n...\n"])
def test_what_cannot_be_written_safely_is_left_to_its_author(text: str) -> None:
    with pytest.raises(BadInput) as refused:
        pinned(text, "1.36.3")
    assert "by hand" in refused.value.hint
