"""The table of certificates: one row each, for every kind of machine that holds one.

Kubernetes' own list of what a cluster needs: https://kubernetes.io/docs/setup/best-practices/certificates/.
Where this table differs from it, it gives less: no certificate here carries ``system:masters`` but the break-glass one,
and every node has identities of its own. kubelet client certificates are not in it: kubelets get them by TLS bootstrap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from provisioner import topology
from provisioner.config import Cluster, Node, Role
from provisioner.errors import BadInput

SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH

LOCAL_APISERVER = f"https://127.0.0.1:{topology.APISERVER_PORT}"


class CaName(StrEnum):
    """The three CAs. They are apart so that no client of one is ever a client of another."""

    CLUSTER = "cluster"
    ETCD = "etcd"
    FRONT_PROXY = "front-proxy"


class Holder(StrEnum):
    """Which machines hold a file."""

    CONTROLLER = "the controller"
    CONTROL_PLANE = "control planes"
    ETCD_MEMBER = "etcd members"
    KUBERNETES_NODE = "Kubernetes nodes"
    FLANNEL_NODE = "Kubernetes nodes, where flannel is the network"

    def includes(self, cluster: Cluster, node: Node) -> bool:
        """Whether this node is one of them."""
        match self:
            case Holder.CONTROL_PLANE:
                return node.has(Role.CONTROL_PLANE)
            case Holder.ETCD_MEMBER:
                return node.has(Role.ETCD)
            case Holder.KUBERNETES_NODE:
                return node.is_kubernetes_node
            case Holder.FLANNEL_NODE:
                return node.is_kubernetes_node and cluster.network.plugin == "flannel"
            case Holder.CONTROLLER:
                return False


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key as ``DIRECTORY/STEM.crt`` (0644) and ``DIRECTORY/STEM.key`` (0600)."""

    directory: str
    stem: str
    owner: str = "root"


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """A client certificate and its key inside a kubeconfig (0600) for one server."""

    path: str
    server: str
    owner: str = "root"


def _no_sans(_cluster: Cluster, _node: Node) -> tuple[str, ...]:
    return ()


def _etcd_sans(_cluster: Cluster, node: Node) -> tuple[str, ...]:
    return topology.etcd_sans(node)


def _component_sans(_cluster: Cluster, node: Node) -> tuple[str, ...]:
    return ("localhost", "127.0.0.1", node.name, str(node.ip))


def _always(_cluster: Cluster) -> bool:
    return True


def _with_metrics_server(cluster: Cluster) -> bool:
    return cluster.addons.metrics_server


def _node_sans(_cluster: Cluster, node: Node) -> tuple[str, ...]:
    return (node.name, str(node.ip))


@dataclass(frozen=True, slots=True)
class CertSpec:
    """One row of the table.

    Attributes:
        name: unique; the name under which the certificate is kept and asked for.
        ca: who signs it.
        common_name: the user name of a client; ``{node}`` stands for the node's name.
        usages: extended key usages, ``SERVER`` and ``CLIENT``.
        holder: the machines that hold it.
        place: where it lies there; None for those that stay on the controller.
        organisations: the groups of a client.
        sans: names and addresses of a server.
        names: of a server that runs in a pod, and has its certificate from a Secret.
        wanted: whether a cluster has that server.
    """

    name: str
    ca: CaName
    common_name: str
    usages: tuple[x509.ObjectIdentifier, ...]
    holder: Holder
    place: Pair | Kubeconfig | None
    organisations: tuple[str, ...] = ()
    sans: Callable[[Cluster, Node], tuple[str, ...]] = _no_sans
    names: tuple[str, ...] = ()
    wanted: Callable[[Cluster], bool] = _always


_ETCD = "/etc/etcd/pki"
_KUBERNETES = "/etc/kubernetes"
_APISERVER = f"{_KUBERNETES}/kube-apiserver"
_CONTROLLER_MANAGER = f"{_KUBERNETES}/kube-controller-manager"
_SCHEDULER = f"{_KUBERNETES}/kube-scheduler"

# fmt: off
CERTIFICATES: tuple[CertSpec, ...] = (
    # etcd's own JSON gateway dials its member with the *server* certificate, so that one must be a client's as well
    # (https://github.com/etcd-io/etcd/issues/9785); peers are both by nature.
    CertSpec("etcd-server", CaName.ETCD, "{node}", (SERVER, CLIENT), Holder.ETCD_MEMBER,
             Pair(_ETCD, "server", "etcd"), sans=_etcd_sans),
    CertSpec("etcd-peer", CaName.ETCD, "{node}", (SERVER, CLIENT), Holder.ETCD_MEMBER,
             Pair(_ETCD, "peer", "etcd"), sans=_etcd_sans),

    CertSpec("kube-apiserver", CaName.CLUSTER, "kube-apiserver", (SERVER,), Holder.CONTROL_PLANE,
             Pair(_APISERVER, "serving", "kube-apiserver"), sans=topology.apiserver_sans),
    CertSpec("kube-apiserver-etcd-client", CaName.ETCD, "kube-apiserver-etcd-client", (CLIENT,), Holder.CONTROL_PLANE,
             Pair(_APISERVER, "etcd-client", "kube-apiserver")),
    CertSpec("kube-apiserver-kubelet-client", CaName.CLUSTER, "kube-apiserver-kubelet-client", (CLIENT,),
             Holder.CONTROL_PLANE, Pair(_APISERVER, "kubelet-client", "kube-apiserver"),
             organisations=("provisioner:kubelet-api-clients",)),
    CertSpec("front-proxy-client", CaName.FRONT_PROXY, "front-proxy-client", (CLIENT,), Holder.CONTROL_PLANE,
             Pair(_APISERVER, "front-proxy-client", "kube-apiserver")),

    CertSpec("kube-controller-manager", CaName.CLUSTER, "system:kube-controller-manager", (CLIENT,), Holder.CONTROL_PLANE,
             Kubeconfig(f"{_CONTROLLER_MANAGER}/kubeconfig", LOCAL_APISERVER, "kube-controller-manager")),
    CertSpec("kube-controller-manager-serving", CaName.CLUSTER, "kube-controller-manager", (SERVER,), Holder.CONTROL_PLANE,
             Pair(_CONTROLLER_MANAGER, "serving", "kube-controller-manager"), sans=_component_sans),
    CertSpec("kube-scheduler", CaName.CLUSTER, "system:kube-scheduler", (CLIENT,), Holder.CONTROL_PLANE,
             Kubeconfig(f"{_SCHEDULER}/kubeconfig", LOCAL_APISERVER, "kube-scheduler")),
    CertSpec("kube-scheduler-serving", CaName.CLUSTER, "kube-scheduler", (SERVER,), Holder.CONTROL_PLANE,
             Pair(_SCHEDULER, "serving", "kube-scheduler"), sans=_component_sans),

    CertSpec("kubelet-serving", CaName.CLUSTER, "system:node:{node}", (SERVER,), Holder.KUBERNETES_NODE,
             Pair(f"{_KUBERNETES}/kubelet", "serving"), organisations=("system:nodes",), sans=_node_sans),
    CertSpec("kube-proxy", CaName.CLUSTER, "system:kube-proxy:{node}", (CLIENT,), Holder.KUBERNETES_NODE,
             Kubeconfig(f"{_KUBERNETES}/kube-proxy/kubeconfig", topology.API_PROXY_URL),
             organisations=("provisioner:kube-proxies",)),
    CertSpec("flannel", CaName.CLUSTER, "flannel:{node}", (CLIENT,), Holder.FLANNEL_NODE,
             Kubeconfig(f"{_KUBERNETES}/flannel/kubeconfig", topology.API_PROXY_URL),
             organisations=("provisioner:flannel",)),

    CertSpec("admin", CaName.CLUSTER, "provisioner-admin", (CLIENT,), Holder.CONTROLLER, None,
             organisations=("provisioner:cluster-admins",)),
    CertSpec("break-glass", CaName.CLUSTER, "provisioner-break-glass", (CLIENT,), Holder.CONTROLLER, None,
             organisations=("system:masters",)),
    # called NAME.NAMESPACE.svc by the aggregator: https://kubernetes.io/docs/tasks/extend-kubernetes/setup-extension-api-server/
    CertSpec("metrics-server-serving", CaName.CLUSTER, "metrics-server", (SERVER,), Holder.CONTROLLER, None,
             names=("metrics-server.kube-system.svc",), wanted=_with_metrics_server),
    CertSpec("driver-etcd-client", CaName.ETCD, "provisioner-driver", (CLIENT,), Holder.CONTROLLER, None),
)
# fmt: on

# RFC 5280, appendix A.1: ub-common-name. Longer names are written by some libraries and refused by others.
_MAX_COMMON_NAME = 64
MAX_NODE_NAME = _MAX_COMMON_NAME - max(
    len(spec.common_name.replace("{node}", "")) for spec in CERTIFICATES if "{node}" in spec.common_name
)

# Names every apiserver answers to: a node so called would hold a certificate that passes for an apiserver's.
RESERVED_NODE_NAMES = frozenset({"localhost", "kubernetes"})

_DNS_NAME = re.compile(r"(\*\.)?([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


@dataclass(frozen=True, slots=True)
class Request:
    """A row of the table filled in for one holder: all that a certificate will say, but for key, serial number and dates."""

    name: str
    node: str | None
    ca: CaName
    common_name: str
    organisations: tuple[str, ...]
    usages: tuple[x509.ObjectIdentifier, ...]
    sans: tuple[x509.GeneralName, ...]

    @property
    def title(self) -> str:
        """For messages: ``kubelet-serving of w-1``."""
        return f"{self.name} of {self.node}" if self.node else self.name


def requests_for(cluster: Cluster, node: Node) -> tuple[Request, ...]:
    """The certificates one node shall have.

    Raises:
        BadInput: the node's name, or one of the names and addresses it is called by, cannot stand in a certificate.
    """
    _check_name(node)
    return tuple(_request(spec, cluster, node) for spec in CERTIFICATES if spec.holder.includes(cluster, node))


def requests_for_controller(cluster: Cluster | None = None) -> tuple[Request, ...]:
    """The certificates that no machine holds.

    Args:
        cluster: with those that its addons serve with, which go into Secrets; None for the controller's own alone.
    """
    return tuple(
        Request(spec.name, None, spec.ca, spec.common_name, spec.organisations, spec.usages, general_names(spec.names))
        for spec in CERTIFICATES
        if spec.holder is Holder.CONTROLLER and (not spec.names or (cluster is not None and spec.wanted(cluster)))
    )


def _request(spec: CertSpec, cluster: Cluster, node: Node) -> Request:
    try:
        sans = general_names(spec.sans(cluster, node))
    except ValueError as error:
        raise BadInput(
            f"node {node.name}: certificate {spec.name}: {error}",
            hint="correct `address`, `clusterAddress`, `extraSans` or `controlPlaneEndpoint` in cluster.yaml",
        ) from None
    common_name = spec.common_name.replace("{node}", node.name)
    return Request(spec.name, node.name, spec.ca, common_name, spec.organisations, spec.usages, sans)


def _check_name(node: Node) -> None:
    if len(node.name) > MAX_NODE_NAME:
        raise BadInput(
            f"node {node.name}: the name has {len(node.name)} characters; with more than {MAX_NODE_NAME} it does not fit into "
            f"the {_MAX_COMMON_NAME} of a certificate's common name (system:kube-proxy:NAME)",
            hint="give the node a shorter name",
        )
    if node.name in RESERVED_NODE_NAMES:
        raise BadInput(
            f"node {node.name}: every apiserver answers to this name, so this node's certificate would pass for an apiserver's",
            hint="give the node another name",
        )


def general_names(names: Iterable[str]) -> tuple[x509.GeneralName, ...]:
    """Names and addresses as subject alternative names: lower case, without duplicates, in an order that does not depend
    on the order in cluster.yaml, so that re-sorting a list there re-issues nothing.

    Raises:
        ValueError: a text is neither an IP address nor a DNS name.
    """
    addresses = set()
    hosts = set()
    for name in names:
        host = name.lower()
        if "%" in name:
            raise ValueError(f"{name!r}: an address with a zone means nothing to other machines")
        try:
            addresses.add(ip_address(name))
        except ValueError:
            # A last label of digits only is an address with a typing error in it (10.0.0.300).
            if len(host) > 253 or not _DNS_NAME.fullmatch(host) or host.rpartition(".")[2].isdecimal():
                raise ValueError(f"{name!r} is neither an IP address nor a DNS name") from None
            hosts.add(host)
    by_number = sorted(addresses, key=lambda address: (address.version, int(address)))
    return (*map(x509.DNSName, sorted(hosts)), *map(x509.IPAddress, by_number))
