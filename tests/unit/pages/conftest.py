"""Pages of clusters that are not there: values of any size and in any state, for the model, the pictures and the browser."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import replace

import pytest

from provisioner.certs.model import Found, Row, State
from provisioner.config import Cluster, Role
from provisioner.pages.model import MachineVersions, Page, Pod
from provisioner.report import CheckResult, Outcome, Pairs, Report
from provisioner.status import problems
from provisioner.status.model import Apiserver, Backend, Etcd, EtcdMember, Lease, Machine, NodeState, Proxy, Status
from provisioner.timeline import PhaseTime, Run, Task

NOW = dt.datetime(2026, 11, 27, 7, 0, tzinfo=dt.UTC)
REFUSED = "connection refused: no SSH server listens there"
PLAYS = {"Prepare the machines": "machines", "Run etcd": "etcd", "Run the kubelets": "nodes"}
VERSIONS = {"kube-apiserver": "1.36.3", "etcd": "3.6.14", "kubelet": "1.36.3", "containerd": "2.3.4"}


def cluster_of(planes: int, workers: int) -> Cluster:
    nodes = [
        {"name": f"cp-{number}", "address": f"10.0.0.{number}", "roles": ["control-plane", "etcd"]}
        for number in range(1, planes + 1)
    ]
    nodes += [{"name": f"worker-{number}", "address": f"10.0.1.{number}", "roles": ["worker"]} for number in range(1, workers + 1)]
    return Cluster.model_validate({"name": "sample", "nodes": nodes})


def status_of(cluster: Cluster, dead: frozenset[str]) -> Status:
    planes = [node.name for node in cluster.control_planes]
    leader = next((name for name in planes if name not in dead), "")

    def member(name: str) -> EtcdMember:
        if name in dead:
            return EtcdMember(name, "a", listed=True, error="its machine cannot be reached")
        return EtcdMember(
            name, "b", True, True, name == leader, False, "3.6.14", 4, 1000, 0, db_mib=24.0, in_use_mib=9.0, quota_mib=2048.0
        )

    found = Status(
        cluster=cluster.name,
        kubernetes_version=cluster.kubernetes.version,
        machines=tuple(
            Machine(
                node.name, node.address, tuple(map(str, node.roles)), node.name not in dead, REFUSED if node.name in dead else ""
            )
            for node in cluster.nodes
        ),
        etcd=Etcd(tuple(member(node.name) for node in cluster.etcd_members), quorum=True),
        apiservers=tuple(
            Apiserver(name, name not in dead, "its machine cannot be reached" if name in dead else "") for name in planes
        ),
        leases=(
            Lease("kube-controller-manager", leader, 1.2),
            Lease("kube-scheduler", planes[-1] if planes[-1] not in dead else leader, 0.4),
        ),
        nodes=tuple(
            NodeState(
                node.name,
                node.name not in dead,
                "NodeStatusUnknown: Kubelet stopped posting node status." if node.name in dead else "",
                "v1.36.3",
            )
            for node in cluster.kubernetes_nodes
        ),
        proxies=tuple(
            Proxy(node.name, tuple(Backend(name, name not in dead, "DOWN" if name in dead else "UP", 2) for name in planes))
            for node in cluster.kubernetes_nodes
            if node.name not in dead
        ),
        seconds=0.9,
    )
    return replace(found, problems=problems(found))


def run_of(cluster: Cluster) -> Run:
    began = NOW.timestamp() - 600
    spans = (
        ("preflight", 0.0, 0.4),
        ("state", 0.4, 2.5),
        ("machines", 3.0, 22.0),
        ("etcd", 25.0, 2.0),
        ("nodes", 27.0, 8.0),
        ("objects", 27.0, 1.0),
    )
    tasks = [
        Task(node.name, play, stage, f"Place {stage}", "changed", began + at + index * 0.05 % 1, seconds)
        for index, node in enumerate(cluster.nodes)
        for play, stage, at, seconds in (
            ("Prepare the machines", "base", 3.0, 18.0),
            ("Run etcd", "etcd", 25.0, 1.8),
            ("Run the kubelets", "kubelet", 27.0, 6.0),
        )
        if stage != "etcd" or node.has(Role.ETCD)
    ]
    return Run(
        "apply", began, 36.0, "done", "", tuple(PhaseTime(name, began + at, took, "done") for name, at, took in spans), tuple(tasks)
    )


def report_of(cluster: Cluster, failed: tuple[tuple[str, str, str], ...], *, blocked: bool) -> Report:
    names = tuple(node.name for node in cluster.kubernetes_nodes)
    pairs = Pairs(names, failed)
    lines = tuple(f"{one} -> {two}: {why}" for one, two, why in failed)
    if blocked:
        way = CheckResult(
            "pod-to-pod", "pods reach each other", "smoke", Outcome.BLOCKED, 0, failures=("not tried: probe-pods did not pass",)
        )
        pods = CheckResult(
            "probe-pods", "a pod on every node", "smoke", Outcome.FAILED, 60.0, failures=("cp-1: no pod within 60 s",)
        )
    else:
        outcome = Outcome.FAILED if failed else Outcome.PASSED
        way = CheckResult("pod-to-pod", "pods reach each other", "smoke", outcome, 1.5, "" if failed else "all pairs", lines, pairs)
        pods = CheckResult("probe-pods", "a pod on every node", "smoke", Outcome.PASSED, 3.0, "Ready on all")
    units = CheckResult("units", "systemd units are active", "smoke", Outcome.PASSED, 0.2, "42 units active")
    return Report(cluster.name, "1.36.3", "smoke", NOW - dt.timedelta(minutes=5), 8.0, (units, pods, way))


@pytest.fixture
def make_page() -> Callable[..., Page]:
    """``make_page(planes=3, workers=2, dead={...}, failed=((from, to, why), ...))``."""
    return page_of


def page_of(
    planes: int = 3, workers: int = 2, *, dead: tuple[str, ...] = (), failed: tuple[tuple[str, str, str], ...] = ()
) -> Page:
    """A page."""
    cluster, gone = cluster_of(planes, workers), frozenset(dead)
    rows = [
        Row(node.name, name, f"/etc/kubernetes/pki/{name}.crt", State.OK, not_after=NOW + dt.timedelta(days=364.5))
        for node in cluster.nodes
        if node.name not in gone
        for name in ("kubelet-server", "kubelet-client", "kube-proxy")
    ]
    rows.append(Row("controller", "cluster-ca", "pki/cluster-ca.pem", State.OK, not_after=NOW + dt.timedelta(days=3649)))
    return Page(
        cluster=cluster,
        made=NOW,
        status=status_of(cluster, gone),
        certificates=Found(tuple(rows), tuple((name, REFUSED) for name in dead), NOW),
        report=report_of(cluster, failed, blocked=bool(dead)),
        run=run_of(cluster),
        versions=tuple(
            MachineVersions(node.name, {}, error="its machine cannot be reached")
            if node.name in gone
            else MachineVersions(
                node.name,
                {
                    name: version
                    for name, version in VERSIONS.items()
                    if node.has(Role.CONTROL_PLANE) or name in ("kubelet", "containerd")
                },
                {},
                "Debian GNU/Linux 12 (bookworm)",
                "6.1.0",
                "x86_64",
            )
            for node in cluster.nodes
        ),
        expected=VERSIONS,
        pods=tuple(
            Pod(
                "default",
                f"web-{node.name}-{number}",
                node.name,
                "Running",
                node.name not in gone,
                ip="10.244.1.2",
                reason="NodeLost" if node.name in gone else "",
            )
            for node in cluster.kubernetes_nodes
            for number in range(3)
        ),
        stages=PLAYS,
    )


def attacked(word: str) -> Page:
    """A page in which everything that a machine, the API or a log says of itself is ``word``."""
    page = page_of(dead=("worker-2",))
    status, run, report = page.status, page.run, page.report
    assert run is not None
    assert report is not None
    assert page.certificates is not None
    assert page.pods is not None
    status = replace(
        status,
        machines=tuple(replace(one, error=word, remedy=word) for one in status.machines),
        etcd=Etcd(tuple(replace(one, name=word, healthy=False, error=word, alarms=(word,)) for one in status.etcd.members), True),
        apiservers=tuple(replace(one, error=word) for one in status.apiservers),
        leases=(Lease(word, word, 1.0, error=word),),
        nodes=(
            *(replace(one, ready=False, reason=word, kubelet=word) for one in status.nodes),
            NodeState(word, True, expected=False),
        ),
        proxies=(Proxy(word, error=word), Proxy("cp-1", (Backend(word, False, word, 0, word),)), Proxy("cp-2", error=word)),
    )
    return replace(
        page,
        status=replace(status, problems=problems(status)),
        certificates=Found(
            tuple(replace(row, machine=word, name=word, where=word, problem=word) for row in page.certificates.rows),
            ((word, word),),
            NOW,
        ),
        report=replace(
            report,
            results=tuple(
                replace(
                    one,
                    outcome=Outcome.FAILED,
                    id="pod-to-pod",
                    title=word,
                    failures=(word,),
                    pairs=Pairs((word, "b"), ((word, "b", word),)),
                )
                for one in report.results
            ),
        ),
        run=replace(
            run,
            command=word,
            state="failed",
            error=word,
            phases=tuple(replace(one, name=word, state=word, error=word) for one in run.phases),
            tasks=tuple(replace(one, host=word, play=word, role=word, task=word, status="failed") for one in run.tasks),
        ),
        versions=tuple(
            replace(one, components={word: word, "etcd": ""}, errors={"etcd": word}, os=word, kernel=word, arch=word, error="")
            for one in page.versions
        ),
        pods=tuple(
            replace(one, namespace=word, name=word, node=word, phase=word, reason=word, ready=False, ip=word) for one in page.pods
        ),
    )
