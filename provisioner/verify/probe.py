"""The probe: one small web server in a pod on every node, and a way to make each of them call others.

The image is agnhost's `netexec` (https://pkg.go.dev/k8s.io/kubernetes/test/images/agnhost). Each pod is spoken to from its
*own* node (an SSH forward to the pod's address), so that what a pod sees of the network is told apart from how we reach the pod.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import secrets
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from provisioner.cluster_api import ClusterApi, Object
from provisioner.config import Cluster, Node
from provisioner.errors import ProvisionerError, WaitTimeout
from provisioner.verify.model import CheckFailed
from provisioner.wait import NotYet, wait_until

if TYPE_CHECKING:
    from provisioner.ssh import Connections, Forward

PREFIX = "provisioner-verify-"
LABEL = {"app.kubernetes.io/managed-by": "provisioner-verify"}
HTTP_PORT = 8080
UDP_PORT = 8081
# Go's client repeats the URL in its errors, payload and all
_GO_URL = re.compile(r'Get "[^"]*": ')
# netexec gives a call of its own 5 seconds; the answer has to come back to us after that
CALL_SECONDS = 8.0


@dataclass(frozen=True, slots=True)
class Dialled:
    """What a pod got when it called something: its answers, or why there was none."""

    answers: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def why(self) -> str:
        """The errors in one line, each once."""
        return "; ".join(dict.fromkeys(shorten(_GO_URL.sub("", error)) for error in self.errors)) or "no answer"


@dataclass(frozen=True, slots=True)
class ProbePod:
    """A running pod of the probe."""

    name: str
    node: Node
    ip: str
    forward: Forward

    def get(self, path: str, *, timeout: float = CALL_SECONDS) -> tuple[int, str]:
        """Status and body of one request to this pod, sent from its own node.

        Raises:
            CheckFailed: the pod does not answer.
        """
        try:
            return self._request(path, timeout)
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None

    def dial(self, host: str, port: int, request: str, *, protocol: str = "http", tries: int = 1) -> Dialled:
        """Let this pod call ``host:port``.

        Args:
            host: address or DNS name, as the pod sees it.
            port: TCP or UDP port.
            request: path (HTTP) or message (UDP).
            protocol: ``http`` or ``udp``.
            tries: number of calls, one after the other, each on a connection of its own.

        Raises:
            CheckFailed: the pod itself cannot be spoken to.
        """
        query = urlencode({"host": host, "port": port, "request": request, "protocol": protocol, "tries": tries}, quote_via=quote)
        try:
            status, body = self._request(f"/dial?{query}", CALL_SECONDS)
        except TimeoutError:
            return Dialled((), (f"no answer within {CALL_SECONDS:g} s",))
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        if status != http.client.OK:
            return Dialled((), (body.strip() or f"status {status}",))
        try:
            answer: dict[str, list[str]] = json.loads(body)
        except ValueError:
            return Dialled((), (f"the probe answered with something else than JSON: {body[:80]!r}",))
        return Dialled(tuple(answer.get("responses") or ()), tuple(answer.get("errors") or ()))

    def _request(self, path: str, timeout: float) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.forward.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def _unreachable(self, error: Exception) -> CheckFailed:
        why = self.forward.error or f"{type(error).__name__}: {error}"
        return CheckFailed(f"{self.node.name}: the node cannot reach its own pod {self.name} ({self.ip}:{HTTP_PORT}): {why}")


class Probe:
    """The objects of one run, in a namespace of their own. Made by :meth:`deploy`, gone with :meth:`remove`.

    Args:
        cluster: its Kubernetes nodes each get a pod.
        api: where the objects go.
        connections: how the pods are reached.
        image: reference of agnhost; the machines have it already.
        confined: the cluster has further nodes, which get none.
    """

    def __init__(self, cluster: Cluster, api: ClusterApi, connections: Connections, image: str, *, confined: bool = False) -> None:
        self.namespace = PREFIX + secrets.token_hex(3)
        self.image = image
        self._cluster = cluster
        self.confined = confined
        self._affinity = _only_on([node.name for node in cluster.kubernetes_nodes]) if confined else {}
        self._api = api
        self._connections = connections
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._pods: dict[str, tuple[ProbePod, ...]] = {}
        self._namespace_made = False

    # --- objects -----------------------------------------------------------------------------------------------

    def object(self, api: str, kind: str, name: str, **fields: Any) -> Object:
        """An object in the probe's namespace."""
        metadata = {"name": name, "namespace": self.namespace, "labels": LABEL}
        return {"apiVersion": api, "kind": kind, "metadata": metadata, **fields}

    def pod_spec(self, *command: str, cpu: str | None = None, **fields: Any) -> dict[str, Any]:
        """A pod that Pod Security's `restricted` profile admits and that runs on any node.

        Args:
            command: agnhost's arguments.
            cpu: requested CPU, as a quantity; without it the pod requests nothing.
            fields: further fields of the pod's spec.
        """
        container: dict[str, Any] = {
            "name": "probe",
            "image": self.image,
            "imagePullPolicy": "IfNotPresent",
            "args": list(command),
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            },
        }
        if cpu is not None:
            container["resources"] = {"requests": {"cpu": cpu}}
        return {
            "serviceAccountName": "probe",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 0,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65534,
                "runAsGroup": 65534,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
            **fields,
        }

    def make_namespace(self) -> None:
        """Namespace and service account; harmless when they are there. The service account is made here, so that
        pods need not wait for the controller-manager to make the default one."""
        with self._lock:
            if self._namespace_made:
                return
            labels = {**LABEL, "pod-security.kubernetes.io/enforce": "restricted"}
            self._api.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace, "labels": labels}})
            self._api.apply(self.object("v1", "ServiceAccount", "probe", automountServiceAccountToken=False))
            self._namespace_made = True

    def deploy(self, app: str) -> None:
        """A DaemonSet of netexec on every node, and its Services: ``app`` (a NodePort over all of them) and ``app-local``
        (only the endpoint on the caller's own node)."""
        self.make_namespace()
        selector = {"app": app}
        ports = [
            {"name": "http", "port": 80, "targetPort": HTTP_PORT, "protocol": "TCP"},
            {"name": "udp", "port": 81, "targetPort": UDP_PORT, "protocol": "UDP"},
        ]
        template = {
            "metadata": {"labels": {**LABEL, **selector}},
            "spec": self.pod_spec("netexec", f"--http-port={HTTP_PORT}", f"--udp-port={UDP_PORT}", **self._affinity),
        }
        self._api.apply(
            self.object("apps/v1", "DaemonSet", app, spec={"selector": {"matchLabels": selector}, "template": template})
        )
        self._api.apply(self.object("v1", "Service", app, spec={"type": "NodePort", "selector": selector, "ports": ports}))
        local = {"selector": selector, "ports": ports, "internalTrafficPolicy": "Local"}
        self._api.apply(self.object("v1", "Service", f"{app}-local", spec=local))

    def remove(self) -> None:
        """Drop the forwards, and delete the namespace in the background; what cannot be deleted now is cleared by a later run."""
        self._stack.close()
        if self._namespace_made:
            with contextlib.suppress(ProvisionerError):
                self._api.delete({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}, timeout=3)

    # --- pods --------------------------------------------------------------------------------------------------

    def wait_ready(self, app: str, *, seconds: float) -> tuple[ProbePod, ...]:
        """Wait for a Ready pod of ``app`` on every node.

        Raises:
            CheckFailed: a node has none in time; says for each node why, with the kubelet's last warning.
        """
        wanted = {node.name: node for node in self._cluster.kubernetes_nodes}
        found: dict[str, ProbePod] = {}
        silent: dict[str, str] = {}

        def ready() -> None:
            for pod in self._list(app):
                name = pod["spec"].get("nodeName")
                if is_ready(pod) and name in wanted and name not in found:
                    found[name] = self._pod(pod, wanted[name])
            silent.clear()
            # a container counts as Ready when its process has been started, which is a moment before it listens
            for name, reached in found.items():
                try:
                    reached.get("/healthz", timeout=2)
                except CheckFailed as failure:
                    silent[name] = str(failure)
            if missing := (wanted.keys() - found.keys()) | silent.keys():
                raise NotYet(", ".join(sorted(missing)))

        try:
            wait_until(f"a pod of {app} on every node", ready, seconds=seconds)
        except WaitTimeout:
            why = self._why_missing(app, sorted(wanted.keys() - found.keys()), seconds)
            raise CheckFailed(*why, *silent.values()) from None
        pods = tuple(found[name] for name in wanted)
        with self._lock:
            self._pods[app] = pods
        return pods

    def pods(self, app: str = "probe") -> tuple[ProbePod, ...]:
        """The pods :meth:`wait_ready` found, one for each node.

        Raises:
            CheckFailed: they were never made.
        """
        with self._lock:
            pods = self._pods.get(app)
        if not pods:
            raise CheckFailed(f"there are no pods of {app}")
        return pods

    def service(self, name: str) -> Object:
        """A Service of the namespace."""
        found = self._api.get(self.object("v1", "Service", name))
        if found is None:
            raise CheckFailed(f"Service {self.namespace}/{name} is gone")
        return found

    def reach(self, pod: Object, node: Node) -> ProbePod:
        """A way to speak to another running pod of the namespace."""
        return self._pod(pod, node)

    def _pod(self, pod: Object, node: Node) -> ProbePod:
        ip = str(pod["status"]["podIP"])
        forward = self._connections.forward(node, HTTP_PORT, host=ip)
        with self._lock:
            self._stack.callback(forward.close)
        return ProbePod(str(pod["metadata"]["name"]), node, ip, forward)

    def _list(self, app: str) -> list[Object]:
        return self._api.items(f"/api/v1/namespaces/{self.namespace}/pods", labelSelector=f"app={app}")

    def _why_missing(self, app: str, nodes: list[str], seconds: float) -> list[str]:
        if not nodes:
            return []
        pods = {pod["spec"].get("nodeName") or _wanted_node(pod): pod for pod in self._list(app)}
        if not pods:
            status = (self._api.get(self.object("apps/v1", "DaemonSet", app)) or {}).get("status") or {}
            why = f"is the controller-manager at work? (its status: {json.dumps(status)})"
            return [f"the DaemonSet got no pod on any node within {seconds:g} s: {why}"]
        events = self._api.items(f"/api/v1/namespaces/{self.namespace}/events", fieldSelector="type=Warning")
        warnings = {event["involvedObject"].get("name"): event for event in events}
        lines = []
        for name in nodes:
            pod = pods.get(name)
            if pod is None:
                lines.append(f"{name}: the DaemonSet made no pod for it within {seconds:g} s")
                continue
            warning = warnings.get(pod["metadata"]["name"])
            last = f"; {warning.get('reason')}: {shorten(str(warning.get('message')))}" if warning else ""
            lines.append(f"{name}: pod {pod['metadata']['name']} is not Ready after {seconds:g} s: {describe(pod)}{last}")
        return lines


def clear_leftovers(api: ClusterApi, *, older_than: str) -> None:
    """Delete namespaces of runs that were killed: those made before ``older_than`` (RFC 3339, UTC), as far as possible."""
    with contextlib.suppress(ProvisionerError):
        for namespace in api.items("/api/v1/namespaces", labelSelector=",".join(f"{key}={value}" for key, value in LABEL.items())):
            metadata = namespace["metadata"]
            if metadata["name"].startswith(PREFIX) and metadata["creationTimestamp"] < older_than:
                api.delete({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": metadata["name"]}})


def _only_on(names: list[str]) -> dict[str, Any]:
    """A pod's affinity to nodes by their names."""
    terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]} for name in names]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return {"affinity": {"nodeAffinity": required}}


def is_ready(obj: Object) -> bool:
    """Whether the object's condition Ready is True (pods and nodes), and it is not being deleted."""
    conditions = (obj.get("status") or {}).get("conditions") or []
    ready = any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
    return ready and "deletionTimestamp" not in obj["metadata"]


def describe(pod: Object) -> str:
    """A pod's state in a few words: its phase, and why its container waits or why it cannot be scheduled."""
    status = pod.get("status") or {}
    words = [str(status.get("phase", "Unknown"))]
    for container in status.get("containerStatuses") or []:
        for state, value in (container.get("state") or {}).items():
            if state != "running" and value:
                words.append(f"container {state}: {value.get('reason', '')} {shorten(value.get('message') or '')}".strip())
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] != "True":
            words.append(f"not scheduled: {shorten(condition.get('message') or '')}")
    if not status.get("containerStatuses") and pod["spec"].get("nodeName"):
        words.append("the kubelet has not reported on it")
    return ", ".join(words)


def shorten(text: str, most: int = 240) -> str:
    """One line of at most ``most`` characters: payloads that come back in an error message help nobody."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 2]} … {line[-most // 2 :]}"


def _wanted_node(pod: Object) -> str:
    """The node a DaemonSet's pod is bound for while it is not scheduled: its node affinity says so."""
    with contextlib.suppress(KeyError, IndexError, TypeError):
        terms = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        return str(terms[0]["matchFields"][0]["values"][0])
    return ""
