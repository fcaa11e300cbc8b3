"""What must hold of the cluster itself after the last `apply`: etcd's members, Nodes, objects."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from provisioner import objects, topology
from provisioner.artifacts.lock import load_lock
from provisioner.cluster_api import ClusterApi
from provisioner.config import Cluster
from provisioner.errors import ProvisionerError, WaitTimeout
from provisioner.etcd_api import EtcdApi
from provisioner.verify.etcd import hash_differences
from provisioner.wait import NotYet, wait_until
from tests.e2e.kills.site import Site

# For what the cluster's own controllers do in their time: a Node's conditions, garbage collection, an API server's lease.
SETTLED_WITHIN = 75.0
SETS = {
    "Namespace": "/api/v1/namespaces",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "ValidatingAdmissionPolicy": "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "Service": "/api/v1/services",
    "Deployment": "/apis/apps/v1/deployments",
    "DaemonSet": "/apis/apps/v1/daemonsets",
    "ConfigMap": "/api/v1/configmaps",
    "Secret": "/api/v1/secrets",
    "ServiceAccount": "/api/v1/serviceaccounts",
    "Role": "/apis/rbac.authorization.k8s.io/v1/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/rolebindings",
}


def violations(site: Site, *, seconds: float = SETTLED_WITHIN) -> list[str]:
    """Everything that is not as it should be, once the cluster's controllers have had their time."""
    seen: list[str] = []
    with site.api() as (cluster, connections, issued, api):

        def look() -> None:
            seen.clear()
            try:
                with contextlib.ExitStack() as stack:
                    members = {
                        node.name: stack.enter_context(EtcdApi(node, site.real.workspace, connections, issued))
                        for node in cluster.etcd_members
                    }
                    seen.extend(_of_etcd(cluster, members))
                seen.extend(_of_nodes(cluster, api))
                seen.extend(_of_objects(site, cluster, api))
            except ProvisionerError as error:
                seen.append(f"no answer: {error.message}")
            if seen:
                raise NotYet("; ".join(seen))

        with contextlib.suppress(WaitTimeout):
            wait_until("the cluster is as it should be", look, seconds=seconds, every=2)
    return list(seen)


def remember(site: Site) -> None:
    """The objects of the first quiet state."""
    with site.api() as (cluster, _, _, api):
        site.first = _objects(cluster, api)


def _of_etcd(cluster: Cluster, members: Mapping[str, EtcdApi]) -> list[str]:
    statuses = {name: api.status() for name, api in members.items()}
    found = []
    for name, api in members.items():
        listed = {(member.name, member.peer_urls, member.learner) for member in api.members(linearizable=True)}
        wanted = {(node.name, (topology.etcd_peer_url(node),), False) for node in cluster.etcd_members}
        if listed != wanted:
            found.append(f"etcd: {name} has the members {sorted(listed)}, cluster.yaml says {sorted(wanted)}")
    found += [f"etcd: {name} is a learner" for name, status in statuses.items() if status.learner]
    found += [f"etcd: {name} says {error}" for name, status in statuses.items() for error in status.errors]
    if len({status.leader for status in statuses.values()}) != 1 or not all(status.leader for status in statuses.values()):
        found.append(f"etcd: not one leader: {statuses}")
    revision = min(status.revision for status in statuses.values())
    if difference := hash_differences({name: api.hash_kv(revision) for name, api in members.items()}, revision):
        found.append(f"etcd: {difference}")
    return found


def _of_nodes(cluster: Cluster, api: ClusterApi) -> list[str]:
    nodes = {node["metadata"]["name"]: node for node in api.items("/api/v1/nodes")}
    wanted = {node.name: node for node in cluster.kubernetes_nodes}
    found = []
    if nodes.keys() != wanted.keys():
        found.append(f"Nodes are {sorted(nodes)}, cluster.yaml says {sorted(wanted)}")
    for name in nodes.keys() & wanted.keys():
        node = nodes[name]
        ready = next((item for item in node["status"]["conditions"] if item["type"] == "Ready"), {"status": "missing"})
        if ready["status"] != "True":
            found.append(f"Node {name} is not Ready: {ready}")
        if node["spec"].get("unschedulable"):
            found.append(f"Node {name} is cordoned")
        if stray := {taint["key"] for taint in node["spec"].get("taints", ())} - {t.key for t in topology.taints_of(wanted[name])}:
            found.append(f"Node {name} has the taints {sorted(stray)}")
        roles = {key: value for key, value in node["metadata"]["labels"].items() if key.startswith("node-role.kubernetes.io/")}
        if roles != {
            key: value for key, value in topology.role_labels_of(wanted[name]).items() if key in roles or "node-role" in key
        }:
            found.append(f"Node {name} has the labels {roles}, not {topology.role_labels_of(wanted[name])}")
    leases = {item["metadata"]["name"] for item in api.items("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases")}
    if leases != wanted.keys():
        found.append(f"leases of Nodes are {sorted(leases)}")
    lost = sorted(
        pod["metadata"]["name"]
        for pod in api.items("/api/v1/pods")
        if pod["spec"].get("nodeName", "") not in {"", *wanted} or pod["metadata"].get("deletionTimestamp")
    )
    if lost:
        found.append(f"pods on machines that left, or that do not end: {lost}")
    slices = api.items(
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", labelSelector="kubernetes.io/service-name=kubernetes"
    )
    addresses = {address for item in slices for endpoint in item.get("endpoints") or () for address in endpoint["addresses"]}
    if addresses != {str(node.ip) for node in cluster.control_planes}:
        found.append(f"the Service kubernetes leads to {sorted(addresses)}")
    return found


def _of_objects(site: Site, cluster: Cluster, api: ClusterApi) -> list[str]:
    now = _objects(cluster, api)
    found = [f"{name} is gone" for name in sorted(site.first.keys() - now.keys())]
    found += [f"{name} is new" for name in sorted(now.keys() - site.first.keys())]
    found += [
        f"{name} was {site.first[name]}, is {now[name]}" for name in site.first.keys() & now.keys() if site.first[name] != now[name]
    ]
    found += [f"a bootstrap token is left: {objects.describe(obj)}" for obj in objects.bootstrap_secrets(api)]
    return found


def _objects(cluster: Cluster, api: ClusterApi) -> dict[str, Any]:
    """Every object that makes the cluster what it is, by name; with its content where it is one of ours."""
    found: dict[str, Any] = {}
    for kind, path in SETS.items():
        for item in api.items(path):
            found[objects.describe({**item, "kind": kind})] = None
    coredns = load_lock().image("coredns", cluster.kubernetes.version)
    for obj in objects.cluster_objects(cluster, coredns_image=coredns):
        live = api.get(obj)
        found[objects.describe(obj)] = "gone" if live is None else _bare(live)
    return found


PASSING: Sequence[str] = ("managedFields", "resourceVersion", "generation", "uid", "creationTimestamp")


def _bare(live: Mapping[str, Any]) -> Any:
    metadata = {key: value for key, value in live["metadata"].items() if key not in PASSING}
    # how often a Deployment has been rolled
    notes = {key: value for key, value in (metadata.pop("annotations", None) or {}).items() if "revision" not in key}
    return {**{key: value for key, value in live.items() if key != "status"}, "metadata": {**metadata, "annotations": notes}}
