"""Pure derived facts: what follows from cluster.yaml alone. No input or output, no clock, no randomness."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address

from provisioner.config import Cluster, Node, Role, Taint

# https://kubernetes.io/docs/reference/networking/ports-and-protocols/
APISERVER_PORT = 6443
ETCD_CLIENT_PORT = 2379
ETCD_PEER_PORT = 2380
ETCD_METRICS_PORT = 2381
KUBELET_PORT = 10250
KUBELET_HEALTH_PORT = 10248
CONTROLLER_MANAGER_PORT = 10257
SCHEDULER_PORT = 10259
KUBE_PROXY_HEALTH_PORT = 10256
KUBE_PROXY_METRICS_PORT = 10249
# The nodes' own HAProxy: a port nothing else of Kubernetes uses.
API_PROXY_PORT = 16443
API_PROXY_URL = f"https://127.0.0.1:{API_PROXY_PORT}"
# Where a control plane's HAProxy tells whether the machine's own apiserver is ready, for keepalived.
API_HEALTH_PORT = 16444

CONTROL_PLANE_TAINT = Taint(key="node-role.kubernetes.io/control-plane", effect="NoSchedule")


def kubernetes_service_ip(cluster: Cluster) -> IPv4Address:
    """ClusterIP of the `kubernetes` Service: the first address of the range, as the apiserver takes it."""
    return cluster.network.service_cidr[1]


def dns_service_ip(cluster: Cluster) -> IPv4Address:
    """ClusterIP of the DNS Service: the tenth address, the field's convention."""
    return cluster.network.service_cidr[10]


def api_backends(planes: Iterable[Node]) -> tuple[tuple[str, str], ...]:
    """(name, host:port) of each control plane's apiserver, for the nodes' proxies."""
    return tuple((node.name, f"{node.ip}:{APISERVER_PORT}") for node in planes)


def api_urls(cluster: Cluster) -> dict[str, str]:
    """Where users reach the API, by name: the endpoint of cluster.yaml alone, else every control plane."""
    if endpoint := cluster.control_plane_endpoint:
        return {"endpoint": f"https://{endpoint.host}:{endpoint.port}"}
    return {node.name: f"https://{node.ip}:{APISERVER_PORT}" for node in cluster.control_planes}


def etcd_servers_of(cluster: Cluster, node: Node) -> tuple[str, ...]:
    """The etcd endpoints of one apiserver: its local member alone, so that a dead member takes only its own apiserver
    out of the proxies; every member where none is local."""
    if node.has(Role.ETCD):
        return (f"https://127.0.0.1:{ETCD_CLIENT_PORT}",)
    return tuple(f"https://{member.ip}:{ETCD_CLIENT_PORT}" for member in cluster.etcd_members)


def etcd_peer_url(node: Node) -> str:
    """Where a member's peers reach it; what it is known by on the member list."""
    return f"https://{node.ip}:{ETCD_PEER_PORT}"


def quorum(voters: int) -> int:
    """How many of so many voting members must be up: https://etcd.io/docs/v3.6/faq/#what-is-failure-tolerance"""
    return voters // 2 + 1


def apiserver_sans(cluster: Cluster, node: Node) -> tuple[str, ...]:
    """Every name and address by which this apiserver may be called."""
    domain = cluster.network.dns_domain
    names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{domain}",
        "localhost",
        node.name,
        "127.0.0.1",
        str(node.ip),
        str(kubernetes_service_ip(cluster)),
        node.address,
        *cluster.extra_sans,
    ]
    if cluster.control_plane_endpoint:
        names.append(cluster.control_plane_endpoint.host)
    return tuple(dict.fromkeys(names))


def etcd_sans(node: Node) -> tuple[str, ...]:
    """Every name and address by which this etcd member may be called."""
    return (node.name, "localhost", str(node.ip), "127.0.0.1")


def taints_of(node: Node) -> tuple[Taint, ...]:
    """The taints a node registers with."""
    if node.taints is not None:
        return node.taints
    if node.has(Role.CONTROL_PLANE) and not node.has(Role.WORKER):
        return (CONTROL_PLANE_TAINT,)
    return ()


def role_labels_of(node: Node) -> dict[str, str]:
    """Labels of the node's roles; set through the API, for NodeRestriction keeps kubelets from setting them."""
    labels = {f"node-role.kubernetes.io/{role}": "" for role in (Role.CONTROL_PLANE, Role.WORKER) if node.has(role)}
    return {**labels, **node.labels}


def service_account_issuer(cluster: Cluster) -> str:
    """A constant issuer, the same on every apiserver and through every change of endpoint."""
    return f"https://kubernetes.default.svc.{cluster.network.dns_domain}"
