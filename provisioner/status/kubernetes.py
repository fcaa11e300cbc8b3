"""Apiservers, leases and Nodes, through whichever apiserver answers."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from provisioner.cluster_api import ClusterApi, Object, Response, message_of
from provisioner.config import Cluster, Node
from provisioner.errors import ProvisionerError
from provisioner.status.model import Apiserver, Lease, NodeState

COMPONENTS = ("kube-controller-manager", "kube-scheduler")
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/"


@dataclass(frozen=True, slots=True)
class Plane:
    """What a control plane's machine said of itself: the name by which it holds leases, and its clock minus ours in seconds."""

    hostname: str
    skew: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API told. ``error`` says why it did not; ``stale``: from an apiserver's memory, without etcd."""

    nodes: tuple[NodeState, ...] = ()
    leases: tuple[Lease, ...] = ()
    error: str = ""
    stale: bool = False


def readiness(api: ClusterApi, node: Node, *, seconds: float) -> Apiserver:
    """`/readyz` of one apiserver."""
    try:
        answer = api.request_to(node, "/readyz", query={"verbose": ""}, timeout=seconds)
    except ProvisionerError as error:
        return Apiserver(node.name, ready=False, error=error.message.removeprefix(f"{node.name}: "))
    if answer.status == 200:
        return Apiserver(node.name, ready=True)
    failed = [line.removeprefix("[-]") for line in answer.text.splitlines() if line.startswith("[-]")]
    return Apiserver(node.name, ready=False, error=f"/readyz gave {answer.status}: {'; '.join(failed) or message_of(answer)}")


def ask(cluster: Cluster, api: ClusterApi, servers: Sequence[Apiserver], planes: Mapping[str, Plane], *, seconds: float) -> Answer:
    """Nodes and leases from the first apiserver that tells.

    Args:
        cluster: the Nodes that should be there.
        api: the API.
        servers: those to ask, by their state: a ready one tells what is so, another one what it remembers.
        planes: the control planes' machines, by Node name; a lease is stamped by its holder's clock.
        seconds: for each request.
    """
    failures = []
    # an apiserver that is not ready answers lists from its cache with resourceVersion=0, without asking etcd
    for server in sorted(servers, key=lambda one: not one.ready):
        node, query = cluster.node(server.node), {} if server.ready else {"resourceVersion": "0"}
        try:
            nodes = api.request_to(node, "/api/v1/nodes", query=query, timeout=seconds)
            found = tuple(_nodes(cluster, _checked(nodes)))
            answers = [(name, api.request_to(node, _LEASES + name, query=query, timeout=seconds)) for name in COMPONENTS]
            now = time.time()
            leases = tuple(lease_of(name, answer, planes, now=now) for name, answer in answers)
        except ProvisionerError as error:
            failures.append(error.message)
            continue
        return Answer(found, leases, stale=not server.ready)
    return Answer(error="; ".join(failures) or "no apiserver answers")


def _checked(response: Response) -> Object:
    if response.status != 200:
        raise ProvisionerError(f"{response.node} answered {response.status}: {message_of(response)}")
    return response.json()


def _nodes(cluster: Cluster, document: Object) -> list[NodeState]:
    live = {str(item["metadata"]["name"]): item for item in document.get("items") or ()}
    names = [node.name for node in cluster.kubernetes_nodes]
    states = [_node(name, live.get(name)) for name in names]
    return states + [_node(name, item, expected=False) for name, item in sorted(live.items()) if name not in names]


def _node(name: str, item: Object | None, *, expected: bool = True) -> NodeState:
    if item is None:
        return NodeState(name, ready=False, reason="the API has no such Node")
    status = item.get("status") or {}
    ready = next((condition for condition in status.get("conditions") or () if condition["type"] == "Ready"), None)
    reason = "its kubelet has not reported yet"
    if ready is not None:
        said = " ".join(str(ready.get("message", "")).split())
        reason = "" if ready["status"] == "True" else f"{ready.get('reason', '')}: {said}"
    return NodeState(
        name,
        ready=not reason,
        reason=reason,
        kubelet=str((status.get("nodeInfo") or {}).get("kubeletVersion", "")),
        cordoned=bool((item.get("spec") or {}).get("unschedulable")),
        expected=expected,
    )


def lease_of(component: str, answer: Response, planes: Mapping[str, Plane], *, now: float) -> Lease:
    """A component's lease out of the API's answer; ``now`` as time.time() counts.

    Raises:
        ProvisionerError: the API refused.
    """
    if answer.status == 404:
        return Lease(component, error="there is no lease: it has never run")
    spec = _checked(answer).get("spec") or {}
    identity = str(spec.get("holderIdentity") or "")
    # identity: host name, underscore, UUID
    host = identity.rpartition("_")[0] or identity
    holder = next((name for name, plane in planes.items() if plane.hostname == host), host)
    duration = float(spec.get("leaseDurationSeconds") or 15)
    if not holder or not spec.get("renewTime"):
        return Lease(component, duration=duration, error="nobody holds the lease")
    renewed = dt.datetime.fromisoformat(str(spec["renewTime"])).timestamp()
    skew = planes[holder].skew if holder in planes else 0.0
    return Lease(component, holder, max(0.0, now + skew - renewed), duration)
