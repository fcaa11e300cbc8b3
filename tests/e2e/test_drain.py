"""Draining real nodes: what moves and what stays, budgets that are kept and budgets that hold, and a machine that is gone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from provisioner.artifacts.lock import load_lock
from provisioner.cluster_api import Object
from provisioner.errors import ProvisionerError, WaitTimeout
from provisioner.lifecycle.drain import abandon, drain, uncordon
from provisioner.lifecycle.pods import Pod, is_true
from provisioner.wait import NotYet, wait_until
from tests.e2e.drills.kit import Kit

pytestmark = pytest.mark.e2e

Real = Any  # the value of the fixture `ha` (tests/e2e/conftest.py); pytest imports no test module by name

PATIENCE = 300.0
PORT = 8080


class Site(Kit):
    """A kit with workloads to be drained."""

    def template(self, name: str, **spec: Any) -> Object:
        """A pod template: a web server that ends within a second."""
        container = {
            "name": "web",
            "image": load_lock().image("agnhost", self.cluster.kubernetes.version),
            "args": ["netexec", f"--http-port={PORT}"],
            "readinessProbe": {"httpGet": {"path": "/hostname", "port": PORT}, "periodSeconds": 1},
        }
        full = {"terminationGracePeriodSeconds": 1, "automountServiceAccountToken": False, "containers": [container], **spec}
        return {"metadata": {"labels": {"app": name}}, "spec": full}

    def workload(self, kind: str, name: str, replicas: int | None = None, **spec: Any) -> None:
        """A Deployment, StatefulSet or DaemonSet spread over the workers; wait until all of it is Ready."""
        selector = {"matchLabels": {"app": name}}
        spread = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        if replicas is not None:
            spec = {"topologySpreadConstraints": [{**spread, "labelSelector": selector}], **spec}
        body: Object = {"selector": selector, "template": self.template(name, **spec)}
        body |= {"serviceName": name} if kind == "StatefulSet" else {}
        body |= {} if replicas is None else {"replicas": replicas}
        self.api.apply(self.object("apps/v1", kind, name, spec=body))
        self.wait_for_ready(name, replicas or len(self.cluster.kubernetes_nodes) - len(self.cluster.control_planes))

    def budget(self, name: str, called: str = "", **spec: Any) -> None:
        """A budget over the pods of a workload; wait until its controller has counted them."""
        body = self.object(
            "policy/v1", "PodDisruptionBudget", called or name, spec={"selector": {"matchLabels": {"app": name}}, **spec}
        )
        self.api.apply(body)

        def counted() -> None:
            status = (self.api.get(body) or {}).get("status") or {}
            if not status.get("expectedPods") or status.get("currentHealthy") != status["expectedPods"]:
                raise NotYet(str(status))

        wait_until(f"budget {name}", counted, seconds=PATIENCE)

    def pods(self, name: str) -> list[Pod]:
        """The pods of a workload."""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        return [Pod.of(obj) for obj in self.api.items(path, labelSelector=f"app={name}")]

    def on(self, node: str, name: str) -> list[Pod]:
        """Those of them that are on a node."""
        return [pod for pod in self.pods(name) if pod.node == node]

    def wait_for_ready(self, name: str, count: int) -> None:
        """Wait until at least so many pods of a workload are Ready, and none is ending."""

        def ready() -> None:
            pods = self.pods(name)
            if sum(pod.ready for pod in pods) < count or not all(pod.ready and not pod.ending for pod in pods):
                raise NotYet(f"{[(str(pod), pod.node, pod.ready) for pod in pods]}")

        wait_until(f"{count} pods of {name}", ready, seconds=PATIENCE)

    def cordoned(self, node: str) -> bool:
        """Whether a node takes no pods."""
        return bool(self.api.request("GET", f"/api/v1/nodes/{node}").json()["spec"].get("unschedulable"))

    def silent(self, node: str) -> None:
        """Say NotYet as long as a node counts as Ready."""
        if is_true(self.api.request("GET", f"/api/v1/nodes/{node}").json()["status"], "Ready"):
            raise NotYet("it is Ready")

    @contextlib.contextmanager
    def fewest_ready(self, name: str) -> Iterator[Callable[[], int]]:
        """Watch a workload in the background: the fewest Ready pods of it that were seen at a time."""
        seen: list[int] = []
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.1):
                with contextlib.suppress(ProvisionerError):
                    seen.append(sum(pod.ready and not pod.ending for pod in self.pods(name)))

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield lambda: min(seen)
        finally:
            over.set()
            thread.join()


def attachment(node: str) -> Object:
    """A volume of a driver that is not there, attached to a node."""
    spec = {"attacher": "example.com", "nodeName": node, "source": {"persistentVolumeName": "none"}}
    return {"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": f"test-{node}"}, "spec": spec}


@pytest.fixture
def site(ha: Real) -> Iterator[Site]:
    with Site.of(ha) as site:
        assert isinstance(site, Site)
        yield site


@pytest.fixture
def worker(site: Site) -> Iterator[str]:
    """The node that is drained; it takes pods again at the end."""
    name = site.cluster.nodes[-1].name
    try:
        yield name
    finally:
        uncordon(site.api, name)


def test_a_drain_keeps_to_the_budget(site: Site, worker: str) -> None:
    site.workload("DaemonSet", "agent")
    site.workload("Deployment", "web", 4)
    site.budget("web", minAvailable=3)
    agents, before = {pod.uid for pod in site.on(worker, "agent")}, site.on(worker, "web")
    assert agents
    assert len(before) > 1, "a budget of one at a time has nothing to hold"
    said: list[str] = []
    with site.fewest_ready("web") as fewest:
        done = drain(site.api, worker, seconds=PATIENCE, say=said.append)
        assert fewest() >= 3
    assert site.cordoned(worker)
    assert site.on(worker, "web") == []
    assert {str(pod) for pod in before} <= set(done.evicted)
    assert {pod.uid for pod in site.on(worker, "agent")} == agents
    assert [name for name in done.stayed if name.startswith(f"{site.namespace}/agent")]
    assert said[0] == f"{worker}: {len(done.evicted)} pods to move"
    assert [line for line in said if f"waiting for budget {site.namespace}/web: " in line], said
    assert said[-1] == f"{worker}: drained, {len(done.evicted)} pods moved"
    # nothing is left to do; it was cordoned before this time
    again = drain(site.api, worker, seconds=0)
    assert (again.evicted, again.was_cordoned) == ((), True)


def test_a_budget_without_room_ends_in_a_timeout_that_names_it(site: Site, worker: str) -> None:
    site.workload("Deployment", "web", 2)
    site.budget("web", maxUnavailable=0)
    before = {pod.uid for pod in site.pods("web")}
    (held,) = site.on(worker, "web")
    with pytest.raises(WaitTimeout) as caught:
        drain(site.api, worker, seconds=6)
    line = next(line for line in caught.value.details if line.startswith(f"{held}: "))
    assert f"budget {site.namespace}/web: 2 of 2 pods are Ready, 2 must be, so 0 may go" in line
    assert "stays cordoned" in caught.value.message
    assert "put it back into cluster.yaml" in caught.value.hint
    assert "--drain-timeout" in caught.value.hint
    assert site.cordoned(worker)
    assert {pod.uid for pod in site.pods("web")} == before, "a pod was evicted against its budget"
    assert uncordon(site.api, worker)
    assert not site.cordoned(worker)


def test_two_budgets_over_one_pod_are_told_at_once(site: Site, worker: str) -> None:
    site.workload("Deployment", "web", 2)
    site.budget("web", maxUnavailable=1)
    site.budget("web", "more", maxUnavailable=1)
    # the Eviction API knows no answer to it: no waiting would help
    with pytest.raises(ProvisionerError, match=r"web-\S+ cannot be evicted: .*more than one PodDisruptionBudget") as caught:
        drain(site.api, worker, seconds=PATIENCE)
    assert "put it back into cluster.yaml" in caught.value.hint


def test_a_pod_without_a_controller_is_moved_by_force_only(site: Site, worker: str) -> None:
    lone = site.template("lone", nodeName=worker)
    site.api.create({**site.object("v1", "Pod", "lone"), "spec": lone["spec"]})
    with pytest.raises(ProvisionerError) as caught:
        drain(site.api, worker, seconds=60)
    assert caught.value.details == (f"{site.namespace}/lone",)
    assert "--force" in caught.value.hint
    assert not site.cordoned(worker), "a refusal must change nothing"
    assert f"{site.namespace}/lone" in drain(site.api, worker, seconds=PATIENCE, force=True).evicted
    assert site.api.get(site.object("v1", "Pod", "lone")) is None


def test_a_pod_that_does_not_end_is_waited_for_and_named(site: Site, worker: str) -> None:
    site.workload("Deployment", "web", 2)
    (held,) = site.on(worker, "web")
    site.api.merge(site.object("v1", "Pod", held.name), {"metadata": {"finalizers": ["example.com/hold"]}})
    try:
        with pytest.raises(WaitTimeout) as caught:
            drain(site.api, worker, seconds=8)
        line = next(line for line in caught.value.details if line.startswith(f"{held}: "))
        assert "held by the finalizer example.com/hold" in line
        assert [pod.uid for pod in site.on(worker, "web")] == [held.uid]
    finally:
        site.api.merge(site.object("v1", "Pod", held.name), {"metadata": {"finalizers": None}})
    assert f"{held}" not in drain(site.api, worker, seconds=PATIENCE).stayed
    assert site.on(worker, "web") == []


def test_no_such_node(site: Site) -> None:
    assert not drain(site.api, "nobody", seconds=0).known
    assert not uncordon(site.api, "nobody")


def test_a_machine_that_is_gone_is_abandoned(ha: Real, site: Site, worker: str) -> None:
    site.workload("StatefulSet", "db", 2)
    (lost,) = site.on(worker, "db")
    with pytest.raises(WaitTimeout, match="it is Ready"):
        abandon(site.api, worker)
    assert not site.cordoned(worker)
    assert [pod.uid for pod in site.on(worker, "db")] == [lost.uid]
    site.api.create(attachment(worker))
    machine = ha.machine(worker)
    machine.power_off()
    try:
        done = drain(site.api, worker, seconds=0, unreachable=True)
        assert str(lost) in done.stayed
        assert site.cordoned(worker)
        wait_until("the cluster misses it", lambda: site.silent(worker), seconds=PATIENCE, every=1)
        # whoever drains it all the same is told why nothing moves
        with pytest.raises(WaitTimeout) as caught:
            drain(site.api, worker, seconds=3)
        assert [line for line in caught.value.details if line.startswith(f"{lost}: ") and "kubelet does not answer" in line]
        assert str(lost) in abandon(site.api, worker)
        lease = {"name": worker, "namespace": "kube-node-lease"}
        for left in (
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": worker}},
            {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": lease},
            attachment(worker),
        ):
            assert site.api.get(left) is None
        assert site.api.items("/api/v1/pods", fieldSelector=f"spec.nodeName={worker}") == []
        # the same name, another pod, on the other worker
        site.wait_for_ready("db", 2)
        heir = next(pod for pod in site.pods("db") if pod.name == lost.name)
        assert heir.uid != lost.uid
        assert heir.node != worker
    finally:
        site.api.delete(attachment(worker))
        machine.start()
        applied = ha.cli("apply", "--yes")
        assert applied.returncode == 0, applied.stderr
    assert ha.plan() == []
