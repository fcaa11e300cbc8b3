"""Checks of addons and registries: figures that autoscaling lives by, volumes that keep what is written, images that are pulled."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import http.client
import secrets
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from provisioner import registries
from provisioner.cluster_api import Object
from provisioner.config import Cluster, Node, Registry
from provisioner.errors import ProvisionerError
from provisioner.render.context import RegistryFiles
from provisioner.render.trust import Source, ca_path, sources_of
from provisioner.verify.model import CheckFailed, Context, each, listed, patiently, plural
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


def has_registries(cluster: Cluster) -> bool:
    """Whether cluster.yaml tells something of a registry."""
    return bool(cluster.containerd.registries or cluster.containerd.registry_mirrors)


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


# --- registries ----------------------------------------------------------------------------------------------------


def registries_answer(context: Context) -> str:
    """Every node reaches each registry, by a mirror or itself, with CA and credentials of cluster.yaml; `verifyImage` is pulled."""
    files = registries.read_files(context.cluster, context.workspace.cluster_file.parent)
    ways = sources_of(context.cluster)
    nodes = context.cluster.kubernetes_nodes
    each([(node, name) for name in ways for node in nodes], lambda pair: _ask(context, *pair, files))
    wanted = [registry for registry in context.cluster.containerd.registries if registry.verify_image]
    if wanted:
        context.probe.make_namespace()
        each([(node, registry) for registry in wanted for node in nodes], lambda pair: _pull(context, *pair))
    pulled = f"pulled on every node: {listed(registry.verify_image or '' for registry in wanted)}" if wanted else "none pulled"
    return f"{listed(ways)} asked from every node; {pulled}"


def _ask(context: Context, node: Node, name: str, files: RegistryFiles) -> None:
    """The registry's greeting, by the first of its ways that gives it, asked over the node's own network.

    https://github.com/opencontainers/distribution-spec/blob/main/spec.md#determining-support
    """
    itself, mirrors = sources_of(context.cluster)[name]
    failures = []
    for source in (*mirrors, *((itself,) if itself.url else ())):
        try:
            status, challenge = _greeting(context, node, source, files, files.logins.get(name))
        except CheckFailed as failure:
            failures.append(f"{source.url}: {failure}")
            continue
        # one that gives out tokens is asked for one by containerd: the greeting alone says nothing of the credentials
        if status == http.client.OK or (status == http.client.UNAUTHORIZED and challenge.lower().startswith("bearer")):
            return
        if status == http.client.UNAUTHORIZED:
            given = "refuses its credentials" if name in files.logins else "wants credentials, and cluster.yaml has none for it"
            failures.append(f"{source.url} {given}")
        else:
            failures.append(f"{source.url} is no registry: it answers {status}")
    raise CheckFailed(*(f"{node.name}: {name}: {failure}" for failure in failures))


def _greeting(context: Context, node: Node, source: Source, files: RegistryFiles, login: tuple[str, str] | None) -> tuple[int, str]:
    """Status of the answer, and what it asks to be shown.

    Raises:
        CheckFailed: there is none.
    """
    url = urlsplit(source.url)
    host, port = str(url.hostname), url.port or (443 if url.scheme == "https" else 80)
    headers = {"Host": url.netloc}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(':'.join(login).encode()).decode()}"
    cas = {ca_path(name): ca for name, ca in files.cas.items()}
    with context.connections.forward(node, port, host=host) as forward:
        connection = http.client.HTTPConnection("127.0.0.1", forward.port, timeout=context.seconds / 4)
        try:
            connection.connect()
            if url.scheme == "https":
                tls = _tls(cas.get(source.ca), skip=source.skip_verify)
                connection.sock = tls.wrap_socket(connection.sock, server_hostname=host)
            connection.request("GET", f"{url.path.rstrip('/').removesuffix('/v2')}/v2/", headers=headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.getheader("WWW-Authenticate") or ""
        except (OSError, http.client.HTTPException) as error:
            raise CheckFailed(f"no answer: {shorten(forward.error or f'{type(error).__name__}: {error}')}") from None
        finally:
            connection.close()


def _tls(ca: bytes | None, *, skip: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if skip:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif ca is not None:
        context.load_verify_locations(cadata=ca.decode())
    return context


def _pull(context: Context, node: Node, registry: Registry) -> None:
    """A pod of the image on one node. What it does when it runs is its own matter: it was pulled."""
    terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node.name]}]}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    spec: Mapping[str, Any] = context.probe.pod_spec(affinity=affinity, restartPolicy="Never")
    container = {**spec["containers"][0], "image": registry.verify_image, "imagePullPolicy": "Always"}
    del container["args"]
    name = f"pull-{context.cluster.containerd.registries.index(registry)}-{node.name}"[:63].rstrip("-")
    pod = context.probe.object("v1", "Pod", name, spec={**spec, "containers": [container]})
    context.api.apply(pod)

    def look() -> str:
        live = context.api.get(pod) or {}
        status = ((live.get("status") or {}).get("containerStatuses") or [{}])[0]
        if not status.get("imageID"):
            raise NotYet(f"{node.name}: {registry.verify_image} is not pulled: {describe(live) if live else 'its pod is gone'}")
        return str(status["imageID"])

    patiently(look, context.seconds * 0.7)
    with contextlib.suppress(ProvisionerError):
        context.api.delete(pod, grace=0)
