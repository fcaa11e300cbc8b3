"""Pods that have read the old CA: which they are, what restarts them, and what an object of the API says of CAs."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from provisioner import pki as pkis
from provisioner.certs import published, workloads
from provisioner.certs.workloads import Survey, Workload
from provisioner.cluster_api import Object
from provisioner.config import Cluster
from provisioner.errors import WaitTimeout
from provisioner.pki import CaName, Pki, Rotation, Stage
from provisioner.pki import rotation as rotations

NOW = dt.datetime.now(dt.UTC)
ROTATION = Rotation("cafe", Stage.TRUST, (CaName.CLUSTER,), NOW)
TOKEN = {"projected": {"sources": [{"serviceAccountToken": {}}, {"configMap": {"name": "kube-root-ca.crt"}}]}}


def pod(name: str, *, owner: tuple[str, str] | None = None, volumes: list[Any] | None = None, **status: Any) -> Object:
    controllers = [{"kind": owner[0], "name": owner[1], "controller": True}] if owner else []
    metadata = {"name": name, "namespace": "x", "uid": name, "ownerReferences": controllers}
    metadata["creationTimestamp"] = status.pop("created", "2026-01-01T00:00:00Z")
    if "deleted" in status:
        metadata["deletionTimestamp"] = status.pop("deleted")
    return {
        "metadata": metadata,
        "spec": {"volumes": [TOKEN] if volumes is None else volumes},
        "status": {"phase": "Running", **status},
    }


def deployment(
    name: str = "web", *, replicas: int = 1, updated: int = 1, notes: Mapping[str, str] | None = None, **spec: Any
) -> Object:
    return {
        "metadata": {"name": name, "namespace": "x", "generation": 2},
        "spec": {"replicas": replicas, "template": {"metadata": {"annotations": notes or {}}}, **spec},
        "status": {"observedGeneration": 2, "replicas": replicas, "updatedReplicas": updated, "availableReplicas": replicas},
    }


@pytest.mark.parametrize(
    ("volumes", "expected"),
    [
        ([], False),
        ([TOKEN], True),
        ([{"configMap": {"name": "kube-root-ca.crt"}}], True),
        ([{"configMap": {"name": "other"}}, {"secret": {"secretName": "tls"}}, {"emptyDir": {}}], False),
        ([{"secret": {"secretName": "token"}}], True),
        ([{"projected": {"sources": [{"secret": {"name": "token"}}]}}], True),
    ],
)
def test_who_is_given_the_cas(volumes: list[Any], expected: bool) -> None:
    assert workloads.believes(pod("p", volumes=volumes), {("x", "token")}) is expected


@pytest.mark.parametrize(
    "container",
    [
        {"envFrom": [{"configMapRef": {"name": "kube-root-ca.crt"}}]},
        {"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "kube-root-ca.crt"}}}]},
    ],
)
def test_also_by_the_environment(container: Any) -> None:
    found = pod("p", volumes=[])
    assert not workloads.believes(found)
    assert workloads.believes({**found, "spec": {"initContainers": [container]}})
    assert workloads.believes({**found, "spec": {"containers": [{"env": [{"name": "B", "value": "c"}]}, container]}})


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (pod("before"), True),
        (pod("in the same second", created="2026-01-01T00:00:10Z"), True),
        (pod("after", created="2026-01-01T00:00:11Z"), False),
        (pod("finished", phase="Succeeded"), False),
        (pod("on its way out", deleted="2026-01-01T00:00:05Z"), False),
        (pod("without a token", volumes=[]), False),
    ],
)
def test_who_is_to_be_restarted(obj: Object, expected: bool) -> None:
    assert workloads._is_stale(obj, {"x": "2026-01-01T00:00:10Z"}, ()) is expected


def test_a_pod_of_a_marked_template_is_new_whatever_the_clock_says() -> None:
    """The CAs and the pod may be of the same second."""
    found = pod("p", created="2026-01-01T00:00:10Z")
    found["metadata"]["annotations"] = {"provisioner/ca-rotation": "cafe/1"}
    written = {"x": "2026-01-01T00:00:10Z"}
    assert not workloads._is_stale(found, written, (), "cafe/")
    assert workloads._is_stale(found, written, (), "beef/"), "of an earlier rotation"
    assert workloads._is_stale(found, written, ())


def test_before_anything_was_written_it_is_everyone() -> None:
    assert workloads._is_stale(pod("p", created="2036-01-01T00:00:00Z"), None, ())


def test_what_restarts_each_pod() -> None:
    sets = {("x", "web-1"): ("Deployment", "web"), ("x", "bare-1"): ("", ""), ("x", "rollout-1"): ("Rollout", "r")}
    known = {
        ("Deployment", "x", "web"): Workload.of("Deployment", deployment()),
        ("StatefulSet", "x", "db"): Workload("StatefulSet", "x", "db", held="its update strategy is OnDelete"),
    }
    found = workloads.sort_pods(
        [
            pod("web-1-a", owner=("ReplicaSet", "web-1")),
            pod("web-1-b", owner=("ReplicaSet", "web-1")),
            pod("bare-1-a", owner=("ReplicaSet", "bare-1")),
            pod("rollout-1-a", owner=("ReplicaSet", "rollout-1")),
            pod("db-0", owner=("StatefulSet", "db")),
            pod("job-a", owner=("Job", "job")),
            pod("alone"),
        ],
        sets,
        known,
    )
    assert {str(one): pods for one, pods in found.workloads.items()} == {"Deployment x/web": ("x/web-1-a", "x/web-1-b")}
    assert found.left == {
        "x/bare-1-a": "ReplicaSet bare-1 makes it, which nothing here restarts",
        "x/rollout-1-a": "Rollout r makes it, which nothing here restarts",
        "x/db-0": "StatefulSet x/db: its update strategy is OnDelete",
        "x/job-a": "Job job makes it, which nothing here restarts",
        "x/alone": "no controller makes it anew",
    }


@pytest.mark.parametrize(
    ("kind", "spec", "held"),
    [
        ("Deployment", {}, ""),
        ("Deployment", {"paused": True}, "it is paused"),
        ("DaemonSet", {"updateStrategy": {"type": "OnDelete"}}, "its update strategy is OnDelete"),
        ("StatefulSet", {"updateStrategy": {"rollingUpdate": {"partition": 2}}}, "its update strategy has a partition"),
        ("StatefulSet", {"updateStrategy": {"rollingUpdate": {"partition": 0}}}, ""),
    ],
)
def test_what_holds_a_workload(kind: str, spec: Any, held: str) -> None:
    assert Workload.of(kind, deployment(**spec)).held == held


def test_what_a_rollout_waits_for() -> None:
    assert Workload.of("Deployment", deployment(replicas=3, updated=3)).pending == ""
    assert Workload.of("Deployment", deployment(replicas=3, updated=1)).pending == "1 of 3 pods are new, 3 are available"
    unseen = deployment()
    unseen["metadata"]["generation"] = 3
    assert Workload.of("Deployment", unseen).pending == "its controller has not seen the change yet"
    old = deployment()
    old["status"]["replicas"] = 2
    assert Workload.of("Deployment", old).pending == "1 old pods are not gone yet"
    everywhere = deployment()
    everywhere["status"] |= {"desiredNumberScheduled": 2, "updatedNumberScheduled": 2, "numberAvailable": 1}
    assert Workload.of("DaemonSet", everywhere).pending == "2 of 2 pods are new, 1 are available"


class Api:
    """Stands in for the cluster's API: one Deployment, whose rollout never ends where ``stuck``."""

    def __init__(self, *, stuck: bool = False) -> None:
        self.live = deployment()
        self.patches: list[Any] = []
        self.stuck = stuck

    def merge(self, _obj: Object, change: Any) -> None:
        self.patches.append(change)
        self.live = deployment(notes=change["spec"]["template"]["metadata"]["annotations"], updated=0 if self.stuck else 1)

    def get(self, _obj: Object) -> Object:
        return self.live

    def survey(self) -> Survey:
        found = Workload.of("Deployment", self.live)
        return Survey({found: ("x/web-1-a",)} if not found.rolled or self.stuck else {}, {})


def restart(api: Api, seconds: float = 5) -> tuple[str, ...]:
    said: list[str] = []
    return tuple(map(str, workloads.restart(api, ROTATION, api.survey, said.append, seconds=seconds)))  # type: ignore[arg-type]


def test_a_workload_is_restarted_as_kubectl_does_it() -> None:
    api = Api()
    assert restart(api) == ("Deployment x/web",)
    [change] = api.patches
    note = change["spec"]["template"]["metadata"]["annotations"]["provisioner/ca-rotation"]
    assert note.startswith("cafe/")
    assert restart(api) == (), "run again, nothing is restarted twice"


def test_a_rollout_that_does_not_end_is_named_and_not_begun_twice() -> None:
    api = Api(stuck=True)
    for _ in range(2):
        with pytest.raises(WaitTimeout, match="Deployment x/web: 0 of 1 pods are new") as error:
            restart(api, seconds=0.1)
    assert "--leave-pods" in error.value.hint
    assert len(api.patches) == 1


# -- what the API tells ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stages(tmp_path: Path) -> dict[Stage, Pki]:
    """One cluster's keys at each stage."""
    cluster = Cluster.model_validate(
        {"name": "c", "nodes": [{"name": "cp", "address": "192.0.2.1", "roles": ["control-plane", "etcd"]}]}
    )
    pkis.ensure(cluster, tmp_path, now=NOW)
    rotations.begin(cluster, tmp_path, tuple(CaName), now=NOW)
    found = {}
    for stage in Stage:
        found[stage] = pkis.ensure(cluster, tmp_path, now=NOW)
        if stage.following:
            rotations.advance(tmp_path)
    return found


class Objects:
    """The API's objects about CAs, by name."""

    def __init__(self, root: bytes, extension: bytes, *, front: bytes, secret: bytes = b"", info: str = "") -> None:
        self.root, self.secret, self.info = root, secret, info
        self.extension = {"client-ca-file": extension.decode(), "requestheader-client-ca-file": front.decode()}
        self.namespaces = ["a", "b"]

    def items(self, path: str, **_query: str) -> list[Object]:
        if path.endswith("/configmaps"):
            return [{"metadata": {"namespace": name}, "data": {"ca.crt": self.root.decode()}} for name in ("a", "gone")]
        if path.endswith("/namespaces"):
            return [{"metadata": {"name": name}, "status": {"phase": "Active"}} for name in self.namespaces] + [
                {"metadata": {"name": "going"}, "status": {"phase": "Terminating"}}
            ]
        encoded = base64.b64encode(self.secret).decode()
        return [{"metadata": {"namespace": "a", "name": "t"}, "data": {"ca.crt": encoded}}] if self.secret else []

    def get(self, obj: Object) -> Object | None:
        if obj["metadata"]["name"] == "cluster-info":
            return {"data": {"kubeconfig": self.info}} if self.info else None
        return {"data": self.extension}

    def merge(self, obj: Object, change: Any) -> None:
        if obj["metadata"]["name"] == "cluster-info":
            self.info = change["data"]["kubeconfig"]
        else:
            self.extension |= change["data"]


def told(keys: Pki) -> Objects:
    found = Objects(keys.trust(CaName.CLUSTER), keys.trust(CaName.CLUSTER), front=keys.trust(CaName.FRONT_PROXY))
    found.namespaces = ["a"]
    return found


def test_every_namespace_must_have_both(stages: dict[Stage, Pki]) -> None:
    old, keys = stages[Stage.TRUST].cas[CaName.CLUSTER].certificate, stages[Stage.TRUST]
    assert published.differing(told(keys), keys) == []  # type: ignore[arg-type]
    front = keys.cas[CaName.FRONT_PROXY].certificate
    assert published.differing(Objects(old, old, front=front, secret=old), keys) == [  # type: ignore[arg-type]
        "a/kube-root-ca.crt has other CAs",
        "b/kube-root-ca.crt is not there",
        "Secret a/t has other CAs",
        "kube-system/extension-apiserver-authentication has other CAs in client-ca-file",
        "kube-system/extension-apiserver-authentication has other CAs in requestheader-client-ca-file",
    ]


def test_what_no_component_takes_out_is_taken_out(stages: dict[Stage, Pki]) -> None:
    before, keys = stages[Stage.REISSUE], stages[Stage.DROP]
    api = told(before)
    api.root = keys.trust(CaName.CLUSTER)
    assert published.differing(api, keys) == [  # type: ignore[arg-type]
        "kube-system/extension-apiserver-authentication has other CAs in client-ca-file",
        "kube-system/extension-apiserver-authentication has other CAs in requestheader-client-ca-file",
    ]
    published.bring_about(api, keys)  # type: ignore[arg-type]
    assert api.extension["client-ca-file"] == keys.trust(CaName.CLUSTER).decode()


def test_objects_that_stay_as_they_are_are_named(stages: dict[Stage, Pki], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "SECONDS", 0.2)
    keys = stages[Stage.TRUST]
    api = told(keys)
    api.root = b"nonsense"
    with pytest.raises(WaitTimeout, match=r"a/kube-root-ca\.crt has other CAs") as error:
        published.bring_about(api, keys)  # type: ignore[arg-type]
    assert "kube-controller-manager" in error.value.hint


def test_cluster_info_is_written_where_it_is_ours(stages: dict[Stage, Pki]) -> None:
    def info(ca: bytes) -> str:
        cluster = {"name": "", "cluster": {"server": "https://x", "certificate-authority-data": base64.b64encode(ca).decode()}}
        return yaml.safe_dump({"kind": "Config", "clusters": [cluster]})

    old, new = stages[Stage.TRUST].cas[CaName.CLUSTER].certificate, stages[Stage.DROP].cas[CaName.CLUSTER].certificate
    for stage, keys in stages.items():
        both = keys.trust(CaName.CLUSTER)
        changed = published.with_authority(info(old), keys)
        assert yaml.safe_load(changed) == yaml.safe_load(info(both)), stage
        assert published.with_authority(changed, keys) == changed
    assert published.with_authority(info(old + new), stages[Stage.DROP]) == published.with_authority(info(new), stages[Stage.DROP])
    other = info(stages[Stage.DROP].cas[CaName.ETCD].certificate)
    for text in (other, "", "- a", "clusters: [x]", "a: [", info(b"no certificate")):
        assert published.with_authority(text, stages[Stage.DROP]) == text, "nobody's business"
