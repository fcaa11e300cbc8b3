"""Addons and private registries on a real cluster: applied, proved, broken, mended, and taken away again without losing data."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from typing import Any

import pytest

from provisioner import pki
from provisioner.cluster_api import ClusterApi
from provisioner.wait import NotYet, wait_until
from tests.e2e import registry as registries
from tests.e2e.registry import Registry

pytestmark = pytest.mark.e2e

Real = Any  # tests/e2e/conftest.py; pytest imports no test module by name
Lab = Callable[..., contextlib.AbstractContextManager[Real]]

PASSWORD = "p4ss: word, that is nobody's"  # noqa: S105 - of a registry that lives as long as this test
# A definition, an object of it right behind, and a list: in the order of the files.
MANIFESTS = {
    "10-kind.yaml": """\
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: cakes.test.example}
spec:
  group: test.example
  scope: Namespaced
  names: {kind: Cake, plural: cakes, singular: cake}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
""",
    "20-object.yaml": "apiVersion: test.example/v1\nkind: Cake\nmetadata: {name: plum}\n",
    "30-list.json": json.dumps(
        {
            "apiVersion": "v1",
            "kind": "List",
            "items": [{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "of-a-list"}}],
        }
    ),
}
ON = """
addons:
  metricsServer: true
  localPath: true
manifests: [manifests/]
containerd:
  registries:
    - registry: "{host}"
      ca: registry-ca.crt
      credentials: registry.login
      verifyImage: "{host}/team/pause:1"
    - registry: mirrored.example
      credentials: registry.login
      verifyImage: mirrored.example/team/pause:1
  registryMirrors:
    - registry: mirrored.example
      endpoints: ["https://{host}"]
"""
# Everything off; the registry is known still, but nobody has its password any more.
OFF = """
containerd:
  registries:
    - registry: "{host}"
      ca: registry-ca.crt
"""


@pytest.fixture(scope="module")
def site(bare_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Real, Registry, str]]:
    """One control plane and one worker with every addon that can be had here, a registry beside them, cluster.yaml's head."""
    with bare_lab("--control-planes", "1", "--workers", "1") as real:
        # the first address of a lab's network is this machine's own
        address = IPv4Network(f"{real.cluster.nodes[0].ip}/24", strict=False)[1]
        with registries.serve(address, tmp_path_factory.mktemp("registry"), PASSWORD) as registry:
            place = real.workspace.cluster_file.parent
            (place / "registry-ca.crt").write_bytes(registry.ca.read_bytes())
            (place / "registry.login").write_text(json.dumps({"username": registries.USER, "password": PASSWORD}))
            (place / "registry.login").chmod(0o600)
            (place / "manifests").mkdir()
            for name, text in MANIFESTS.items():
                (place / "manifests" / name).write_text(text)
            head = real.workspace.cluster_file.read_text()
            real.workspace.cluster_file.write_text(head + ON.format(host=registry.host))
            done = real.cli("apply", "--yes")
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
            assert PASSWORD not in done.stdout + done.stderr
            yield real, registry, head


@pytest.fixture
def api(site: tuple[Real, Registry, str]) -> Iterator[ClusterApi]:
    import datetime as dt  # noqa: PLC0415

    real, _, _ = site
    keys = pki.read(real.workspace.pki, now=dt.datetime.now(dt.UTC))
    with ClusterApi(real.cluster, real.workspace, real.connections, keys) as opened:
        yield opened


def test_apply_has_proved_them_and_a_second_one_changes_nothing(site: tuple[Real, Registry, str], api: ClusterApi) -> None:
    real, registry, _ = site
    report = json.loads(real.cli("verify", "--json", "--only", "metrics,storage,registries,autoscaling", "--level", "full").stdout)
    evidence = {check["id"]: check for check in report["checks"]}
    for name in ("metrics", "storage", "registries", "autoscaling"):
        assert evidence[name]["outcome"] == "passed", evidence[name]
        print(f"{name}: {evidence[name]['evidence']}")
    assert real.plan() == []
    # both machines have fetched the image's own bytes, with the password, under its own name and the mirrored one
    fetched = {client for path, client in registry.given if path.startswith(registries.BLOB)}
    assert fetched == {str(node.ip) for node in real.cluster.nodes}
    for kind, name in (("ConfigMap", "of-a-list"),):
        assert api.get({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}) is not None
    assert api.get({"apiVersion": "test.example/v1", "kind": "Cake", "metadata": {"name": "plum"}}) is not None


def test_kubectl_top(site: tuple[Real, Registry, str]) -> None:
    real, _, _ = site
    command = 'umask 077; f=$(mktemp); cat >"$f"; kubectl --kubeconfig "$f" top nodes --no-headers; rm "$f"'
    shown = real.run("cp-1", command, stdin=real.workspace.kubeconfig.read_bytes())
    assert {line.split()[0] for line in shown.splitlines()} == {"cp-1", "worker-1"}, shown


def test_metrics_are_taken_over_verified_connections_alone(api: ClusterApi) -> None:
    live = api.get(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "metrics-server", "namespace": "kube-system"}}
    )
    assert live is not None
    arguments = live["spec"]["template"]["spec"]["containers"][0]["args"]
    assert not [one for one in arguments if "insecure" in one]
    assert any(one.startswith("--kubelet-certificate-authority=") for one in arguments)
    service = api.get(
        {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1beta1.metrics.k8s.io"}}
    )
    assert service is not None
    assert service["spec"]["caBundle"]
    assert not service["spec"].get("insecureSkipTLSVerify")


def test_the_password_is_in_one_file_of_root_alone(site: tuple[Real, Registry, str]) -> None:
    real, _, _ = site
    for node in real.cluster.nodes:
        found = real.run(node, f"grep -rlF {PASSWORD!r} /etc /var/log /run/provisioner /usr/local/lib 2>/dev/null || true").split()
        assert found == ["/etc/kubernetes/kubelet/registry-logins.json"], node.name
        assert real.run(node, f"stat -c '%a %U' {found[0]}").strip() == "600 root"
        assert not real.run(node, f"journalctl --no-pager | grep -F {PASSWORD!r} || true", check=False).strip()
    said = [
        path for path in real.workspace.root.rglob("*") if path.is_file() and path.suffix in {".jsonl", ".log", ".txt", ".html"}
    ]
    said += [path for path in (real.workspace.root / "logs").rglob("*") if path.is_file()]
    assert said
    assert [path for path in said if PASSWORD.encode() in path.read_bytes()] == []


def test_a_new_password_goes_to_the_machines_and_restarts_nothing(site: tuple[Real, Registry, str]) -> None:
    real, _, _ = site
    login = real.workspace.cluster_file.parent / "registry.login"
    before = login.read_text()
    try:
        login.write_text(json.dumps({"username": registries.USER, "password": "another one, " + PASSWORD}))
        # the registry has the old one still, and takes no other
        done = real.cli("verify", "--only", "registries", "--timeout", "20")
        assert done.returncode == 5, done.stdout
        assert "refuses its credentials" in done.stdout + done.stderr
        changes = real.plan()
        assert {change["what"] for change in changes} == {"/etc/kubernetes/kubelet/registry-logins.json"}
        assert len(changes) == len(real.cluster.nodes)
        assert not any(change["diff"] for change in changes)
    finally:
        login.write_text(before)


def test_verify_fails_without_metrics_and_apply_mends_it(site: tuple[Real, Registry, str], api: ClusterApi) -> None:
    real, _, _ = site
    deployment = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "metrics-server", "namespace": "kube-system"}}
    assert api.merge(deployment, {"spec": {"replicas": 0}}) is not None
    annotation = {"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "false"}}}
    storage = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "local-path"}}
    assert api.merge(storage, annotation) is not None

    def nobody() -> None:
        if api.items("/api/v1/namespaces/kube-system/pods", labelSelector="k8s-app=metrics-server"):
            raise NotYet("there are pods of metrics-server")

    wait_until("no metrics-server", nobody, seconds=60)
    done = real.cli("verify", "--only", "metrics,storage", "--timeout", "12")
    assert done.returncode == 5, done.stdout
    said = done.stdout + done.stderr
    assert "the metrics API answers 503" in said, said
    assert "pod writer is not done" in said, said
    changes = applied(real)
    assert {change["what"] for change in changes} == {"Deployment kube-system/metrics-server", "StorageClass local-path"}, changes
    assert any("replicas: 2" in change["diff"] for change in changes)
    assert (api.get(deployment) or {})["spec"]["replicas"] == 2
    assert (api.get(storage) or {})["metadata"]["annotations"]["storageclass.kubernetes.io/is-default-class"] == "true"


def test_the_cas_are_replaced_under_them(site: tuple[Real, Registry, str]) -> None:
    """metrics-server is believed by its certificate, and believes the kubelets' and the API servers'."""
    real, _, _ = site
    done = real.cli("certs", "rotate-ca", "--yes")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert real.plan() == []
    shown = real.cli("kubectl", "top", "nodes", "--no-headers")
    assert {line.split()[0] for line in shown.stdout.splitlines()} == {"cp-1", "worker-1"}, shown.stderr


def test_what_is_off_goes_and_data_stays(site: tuple[Real, Registry, str], api: ClusterApi) -> None:
    real, registry, head = site
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "kept", "namespace": "default"}}
    api.apply({**claim, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}})
    pod = pulling("with-data", registry.image, volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": "kept"}}])
    api.apply(pod)
    wait_until("a volume in use", lambda: running(api, pod), seconds=60)
    real.workspace.cluster_file.write_text(head + OFF.format(host=registry.host))
    done = real.cli("apply", "--yes")
    assert done.returncode == 3, f"{done.stdout}\n{done.stderr}"
    assert "addons.localPath is off, and 1 of its volumes" in done.stderr
    assert "default/kept" in done.stderr
    assert "nothing was changed" in done.stderr

    api.delete(pod, grace=0)
    api.delete(claim)
    wait_until("the volume gone", lambda: no_volume(api), seconds=60)
    changes = applied(real)
    gone = {change["what"]: change["action"] for change in changes if change["action"].startswith(("delete", "remove"))}
    assert gone["APIService v1beta1.metrics.k8s.io"] == "delete (addons.metricsServer is off)"
    assert gone["Namespace local-path-storage"] == "delete with all that is in it (addons.localPath is off)"
    assert gone["/etc/kubernetes/kubelet/registry-logins.json"] == "remove"
    assert gone["/etc/containerd/certs.d/mirrored.example/hosts.toml"] == "remove"
    assert gone["/var/lib/provisioner/images/metrics-server.tar"] == "remove"
    assert real.plan() == []
    for obj in (
        {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1beta1.metrics.k8s.io"}},
        {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "local-path"}},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "provisioner-addons", "namespace": "kube-system"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "metrics-server-serving", "namespace": "kube-system"}},
    ):
        assert api.get(obj) is None, obj
    # the user's own objects are not taken for an addon's
    assert api.get({"apiVersion": "test.example/v1", "kind": "Cake", "metadata": {"name": "plum"}}) is not None


def test_without_credentials_nothing_is_pulled(site: tuple[Real, Registry, str], api: ClusterApi) -> None:
    """After the test before, which has taken them away."""
    real, registry, _ = site
    before = len(registry.given)
    # the registry is there, and it may be that pods have credentials of their own; an image that nobody may have is a failure
    done = real.cli("verify", "--only", "registries", "--timeout", "20")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    kept = real.workspace.cluster_file.read_text()
    real.workspace.cluster_file.write_text(f'{kept}      verifyImage: "{registry.image}"\n')
    done = real.cli("verify", "--only", "registries", "--timeout", "20")
    assert done.returncode == 5, done.stdout
    assert f"{registry.image} is not pulled" in done.stdout + done.stderr
    real.workspace.cluster_file.write_text(kept)
    pod = pulling("without", registry.image)
    api.apply(pod)

    def refused() -> None:
        status = ((api.get(pod) or {}).get("status") or {}).get("containerStatuses") or [{}]
        waiting = (status[0].get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in {"ErrImagePull", "ImagePullBackOff"}:
            raise NotYet(f"the pod's container: {status[0].get('state')}")

    wait_until("the pull refused", refused, seconds=60)
    assert registry.given[before:] == []
    assert (f"{registries.MANIFEST}{registries.TAG}", str(real.cluster.node("worker-1").ip)) in registry.refused


def applied(real: Real) -> list[dict[str, Any]]:
    """What `apply` had to do, and did."""
    done = real.cli("apply", "--yes", "--skip-verify", "--json")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    changes: list[dict[str, Any]] = json.loads(done.stdout)["changes"]
    return changes


def pulling(name: str, image: str, **spec: Any) -> dict[str, Any]:
    """A pod of an image that is asked for anew, on the worker."""
    container: dict[str, Any] = {"name": "one", "image": image, "imagePullPolicy": "Always"}
    if spec:
        container["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container], **spec},
    }


def running(api: ClusterApi, pod: dict[str, Any]) -> None:
    live = api.get(pod) or {}
    if (live.get("status") or {}).get("phase") != "Running":
        raise NotYet(f"pod {pod['metadata']['name']}: {live.get('status')}")


def no_volume(api: ClusterApi) -> None:
    if left := api.items("/api/v1/persistentvolumes"):
        raise NotYet(f"{len(left)} volumes, the first {left[0].get('status')}")
