"""Checks of addons: figures that autoscaling lives by, volumes that keep what is written, a web UI without rights of its own."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import secrets
from typing import Any

from provisioner.cluster_api import Object
from provisioner.config import Cluster
from provisioner.errors import ProvisionerError
from provisioner.verify.model import CheckFailed, Context, patiently, plural
from provisioner.verify.probe import describe, is_ready, shorten
from provisioner.wait import NotYet

_METRICS = "/apis/metrics.k8s.io/v1beta1"
# metrics-server looks every 15 s; what is older than a few rounds is of a kubelet that it does not reach.
_STALE = dt.timedelta(seconds=120)
_DATA = "/data"
# what agnhost's `mounttest` writes into a new file
_WRITTEN = "mount-tester new file"


def has_metrics(cluster: Cluster) -> bool:
    """Whether metrics-server is on."""
    return cluster.addons.metrics_server


def has_storage(cluster: Cluster) -> bool:
    """Whether local volumes are on."""
    return cluster.addons.local_path


def has_web(cluster: Cluster) -> bool:
    """Whether the web UI is on."""
    return cluster.addons.headlamp


# --- metrics -------------------------------------------------------------------------------------------------------


def metrics(context: Context) -> str:
    """The metrics API has figures of every node, and of pods those that a HorizontalPodAutoscaler asks for."""
    names = {node.name for node in context.cluster.kubernetes_nodes}

    def look() -> str:
        found = {item["metadata"]["name"]: item for item in _figures(context, f"{_METRICS}/nodes")}
        wrong = [f"{name}: the metrics API has no figures of this node" for name in sorted(names - found.keys())]
        now = dt.datetime.now(dt.UTC)
        for name in sorted(names & found.keys()):
            usage, at = found[name]["usage"], _time(found[name]["timestamp"])
            if not _amount(usage.get("cpu", "0")) or not _amount(usage.get("memory", "0")):
                wrong.append(f"{name}: its figures are {usage}")
            elif now - at > _STALE:
                wrong.append(f"{name}: its figures are of {found[name]['timestamp']}, {(now - at).total_seconds():.0f} s ago")
        pods = _figures(context, f"{_METRICS}/namespaces/kube-system/pods", labelSelector="k8s-app=kube-dns")
        if not any(_amount(container["usage"].get("memory", "0")) for pod in pods for container in pod["containers"]):
            wrong.append("the metrics API has no figures of the pods of k8s-app=kube-dns, as an autoscaler would ask for them")
        if wrong:
            raise NotYet("\n".join(wrong))
        shown = ", ".join(f"{name} {found[name]['usage']['cpu']} {found[name]['usage']['memory']}" for name in sorted(names))
        return f"{plural(len(names), 'node')}: {shown}; {plural(len(pods), 'pod')} of kube-dns"

    return patiently(look, context.seconds * 0.9)


def _figures(context: Context, path: str, **query: str) -> list[Object]:
    response = context.api.request("GET", path, query=query, timeout=context.seconds / 4, passing=())
    if response.status >= http.client.MULTIPLE_CHOICES:
        raise NotYet(f"the metrics API answers {response.status}: {shorten(response.text)}")
    return list(response.json().get("items") or [])


def _time(text: str) -> dt.datetime:
    return dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC)


def _amount(quantity: str) -> int:
    """The digits of a quantity: whether it is more than nothing is all that is asked."""
    digits = "".join(letter for letter in str(quantity) if letter.isdecimal())
    return int(digits or 0)


def autoscaling(context: Context) -> str:
    """A HorizontalPodAutoscaler reads the usage of its pods through the metrics API, and acts on it."""
    context.probe.make_namespace()
    labels = {"app": "scaled"}
    # any usage at all is more than the target, so that it wants the second replica
    pod = context.probe.pod_spec("netexec", cpu="1m")
    deployment = context.probe.object(
        "apps/v1",
        "Deployment",
        "scaled",
        spec={"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    )
    memory = {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Ki"}}
    scaler = context.probe.object(
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        "scaled",
        spec={
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "scaled"},
            "minReplicas": 1,
            "maxReplicas": 2,
            "metrics": [{"type": "Resource", "resource": memory}],
        },
    )
    context.api.apply(deployment)
    context.api.apply(scaler)

    def look() -> str:
        status = (context.api.get(scaler) or {}).get("status") or {}
        conditions = {item["type"]: item for item in status.get("conditions") or ()}
        active = conditions.get("ScalingActive", {})
        if active.get("status") != "True":
            raise NotYet(f"the autoscaler is not active: {active.get('reason')}: {shorten(str(active.get('message')))}")
        current = [item["resource"]["current"].get("averageValue") for item in status.get("currentMetrics") or () if item]
        if status.get("desiredReplicas") != 2 or not current:
            raise NotYet(f"the autoscaler saw {current} of memory, and wants {status.get('desiredReplicas')} pods, not 2")
        return f"saw {current[0]} of memory on average, more than 1Ki, and wants 2 pods"

    try:
        return patiently(look, context.seconds * 0.95)
    finally:
        with contextlib.suppress(ProvisionerError):
            context.api.delete(scaler)
            context.api.delete(deployment)


# --- storage -------------------------------------------------------------------------------------------------------


def storage(context: Context) -> str:
    """A claim without a class is bound by the default one; what one pod writes another reads, on the same node; and the volume goes
    when the claim does."""
    context.probe.make_namespace()
    name = f"file-{secrets.token_hex(4)}"
    claim = context.probe.object(
        "v1",
        "PersistentVolumeClaim",
        "claim",
        spec={"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    )
    context.api.apply(claim)
    writer = _with_claim(context, "writer", f"--new_file_0644={_DATA}/{name}")
    written_on = _completed(context, writer, context.seconds * 0.5)
    reader = _with_claim(context, "reader", f"--file_content={_DATA}/{name}")
    read_on = _completed(context, reader, context.seconds * 0.25)
    text = context.api.logs(context.probe.namespace, "reader", timeout=context.seconds / 4)
    if _WRITTEN not in text:
        raise CheckFailed(f"{read_on}: a pod read {shorten(text)!r} from {name}, which another had written {_WRITTEN!r} into")
    if written_on != read_on:
        raise CheckFailed(f"the volume is one of {written_on}, and the pod that reads it was put on {read_on}")
    bound = context.api.get(claim) or {}
    volume = str(bound["spec"]["volumeName"])
    for obj in (writer, reader):
        context.api.delete(obj, grace=0)
    context.api.delete(claim)

    def gone() -> str:
        live = context.api.get({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume}})
        if live is not None:
            raise NotYet(f"the claim was deleted, and its volume {volume} is there: {(live.get('status') or {}).get('phase')}")
        return ""

    patiently(gone, context.seconds * 0.4)
    return f"{volume} of class {bound['spec']['storageClassName']} on {read_on}: {name} written by one pod, read by another; gone"


def _with_claim(context: Context, name: str, *arguments: str) -> Object:
    container: dict[str, Any] = context.probe.pod_spec("mounttest", *arguments)
    container["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": _DATA}]
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "claim"}}]
    pod = context.probe.object("v1", "Pod", name, spec={**container, "restartPolicy": "Never", "volumes": volumes})
    context.api.apply(pod)
    return pod


def _completed(context: Context, pod: Object, seconds: float) -> str:
    """Wait for a pod's end; returns its node."""

    def look() -> str:
        live = context.api.get(pod) or {}
        phase = (live.get("status") or {}).get("phase")
        if phase == "Succeeded":
            return str(live["spec"]["nodeName"])
        if phase == "Failed":
            text = context.api.logs(context.probe.namespace, pod["metadata"]["name"], timeout=context.seconds / 4)
            raise CheckFailed(f"pod {pod['metadata']['name']} on {live['spec'].get('nodeName')} failed: {shorten(text)}")
        raise NotYet(
            f"pod {pod['metadata']['name']} is not done: {describe(live) if live else 'it is gone'}{_events(context, pod)}"
        )

    return patiently(look, seconds)


def _events(context: Context, pod: Object) -> str:
    """The last word of its events, where something is wrong."""
    path = f"/api/v1/namespaces/{context.probe.namespace}/events"
    found = context.api.items(path, fieldSelector=f"type=Warning,involvedObject.name={pod['metadata']['name']}")
    return f"; {found[-1].get('reason')}: {shorten(str(found[-1].get('message')))}" if found else ""


# --- the web UI ----------------------------------------------------------------------------------------------------


def web(context: Context) -> str:
    """Headlamp's pod is Ready and its page comes, and its own identity may read no Secret."""
    path = "/api/v1/namespaces/headlamp/services/http:headlamp:http/proxy/"

    def look() -> str:
        pods = context.api.items("/api/v1/namespaces/headlamp/pods", labelSelector="app=headlamp")
        if not any(is_ready(pod) for pod in pods):
            raise NotYet(f"no pod of headlamp is Ready: {'; '.join(describe(pod) for pod in pods) or 'there is none'}")
        answer = context.api.request("GET", path, timeout=context.seconds / 4)
        if answer.status != http.client.OK or "<html" not in answer.text.lower():
            raise NotYet(f"headlamp's page gave {answer.status}: {shorten(answer.text)}")
        return f"{plural(len(answer.body), 'byte')} of page"

    evidence = patiently(look, context.seconds * 0.9)
    spec = {"resourceAttributes": {"verb": "list", "resource": "secrets"}, "user": "system:serviceaccount:headlamp:headlamp"}
    review = context.api.create(
        {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "metadata": {"name": ""}, "spec": spec}
    )
    if review["status"].get("allowed"):
        raise CheckFailed(
            "the identity of headlamp's pod may read every Secret of the cluster: somebody has given it more than nothing"
        )
    return f"{evidence}; its own identity may not read Secrets"
