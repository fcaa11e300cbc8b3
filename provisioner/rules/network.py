"""Rules about address ranges, ports and names of the API."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network

from provisioner import topology
from provisioner.config import Role
from provisioner.problems import Path, Problem, error, quoted, warning
from provisioner.rules import syntax
from provisioner.rules.nodes import ip_of, ip_path
from provisioner.rules.rule import Context

_POD = ("network", "podCidr")
_SERVICE = ("network", "serviceCidr")
_RANGES = (_POD, _SERVICE)
# The apiserver asks for 8 addresses (`ServiceIPRange` upstream), the tenth one is the DNS Service's: 16 are the least.
_LONGEST_SERVICE_PREFIX = 28
# Below 1.34 the apiserver refuses more than 20 bits of Service addresses (`validateClusterIPFlags` upstream).
_SHORTEST_SERVICE_PREFIX, _ANY_SERVICE_PREFIX_SINCE = 12, (1, 34)
# KubeletConfiguration.maxPods' default.
_MAX_PODS = 110
# https://en.wikipedia.org/wiki/Reserved_IP_addresses: ranges no packet can be routed to.
_UNROUTABLE = {
    IPv4Network("0.0.0.0/8"): '"this network"',
    IPv4Network("127.0.0.0/8"): "the loopback range",
    IPv4Network("169.254.0.0/16"): "the link-local range",
    IPv4Network("224.0.0.0/4"): "the multicast range",
    IPv4Network("240.0.0.0/4"): "the reserved range",
}
_KUBELET_HEALTHZ_PORT = 10248
_PORTS_OF_NODES = {
    _KUBELET_HEALTHZ_PORT: "kubelet's health check",
    topology.KUBE_PROXY_METRICS_PORT: "kube-proxy's metrics",
    topology.KUBELET_PORT: "kubelet",
    topology.KUBE_PROXY_HEALTH_PORT: "kube-proxy's health check",
    topology.API_PROXY_PORT: "the nodes' proxy to the API",
}
_PORTS_OF_CONTROL_PLANES = {
    topology.APISERVER_PORT: "kube-apiserver",
    topology.CONTROLLER_MANAGER_PORT: "kube-controller-manager",
    topology.SCHEDULER_PORT: "kube-scheduler",
    topology.API_HEALTH_PORT: "the proxy's word on the apiserver",
}
_PORTS_OF_ETCD = {
    topology.ETCD_CLIENT_PORT: "etcd's clients",
    topology.ETCD_PEER_PORT: "etcd's peers",
    topology.ETCD_METRICS_PORT: "etcd's metrics",
}
_PORTS = {**_PORTS_OF_NODES, **_PORTS_OF_CONTROL_PLANES, **_PORTS_OF_ETCD}
# net.ipv4.ip_local_port_range of Linux: outgoing connections take these.
_EPHEMERAL_FROM = 32768


def _range_of(context: Context, path: Path) -> IPv4Network:
    network = context.cluster.network
    return network.pod_cidr if path == _POD else network.service_cidr


def cidrs_disjoint(context: Context) -> Iterator[Problem]:
    """podCidr and serviceCidr do not overlap."""
    pods, services = context.cluster.network.pod_cidr, context.cluster.network.service_cidr
    if pods.overlaps(services):
        yield error(_SERVICE, f"{services} overlaps podCidr {pods}")


def cidrs_routable(context: Context) -> Iterator[Problem]:
    """podCidr and serviceCidr hold no loopback, link-local, multicast or reserved addresses."""
    for path in _RANGES:
        ours = _range_of(context, path)
        for other, what in _UNROUTABLE.items():
            if ours.overlaps(other):
                yield error(path, f"{ours} overlaps {other}, {what}")


def cidrs_spare_hosts(context: Context) -> Iterator[Problem]:
    """No node's address lies in podCidr or serviceCidr."""
    for index, node in enumerate(context.cluster.nodes):
        address = ip_of(node)
        for path in _RANGES:
            if address and address in _range_of(context, path):
                yield error(ip_path(context.cluster, index), f"{address} lies in {path[1]} {_range_of(context, path)}")


def cidrs_spare_endpoint(context: Context) -> Iterator[Problem]:
    """controlPlaneEndpoint does not lie in podCidr or serviceCidr."""
    endpoint = context.cluster.control_plane_endpoint
    address = syntax.ip(endpoint.host) if endpoint else None
    for path in _RANGES:
        if isinstance(address, IPv4Address) and address in _range_of(context, path):
            yield error(("controlPlaneEndpoint", "host"), f"{address} lies in {path[1]} {_range_of(context, path)}")


def node_prefix_fits(context: Context) -> Iterator[Problem]:
    """podCidr holds a part of nodePrefix' size for every node: kube-controller-manager cuts it so, and stops where it cannot."""
    network = context.cluster.network
    nodes = len(context.cluster.kubernetes_nodes)
    spare = network.node_prefix - network.pod_cidr.prefixlen
    if spare < 0:
        yield error(
            ("network", "nodePrefix"),
            f"a /{network.node_prefix} for each node does not fit into podCidr {network.pod_cidr}; take a longer nodePrefix",
        )
    elif nodes > 1 << spare:
        needed = network.node_prefix - (nodes - 1).bit_length()
        yield error(
            _POD,
            f"{network.pod_cidr} holds {1 << spare} node{'s' if spare else ''} with a /{network.node_prefix} each, "
            f"and there are {nodes}: "
            f"take a range of /{needed} or larger, or a longer nodePrefix",
        )


def node_prefix_holds_pods(context: Context) -> Iterator[Problem]:
    """Warning where a node's part of podCidr has fewer addresses than maxPods: pods would hang in ContainerCreating."""
    cluster = context.cluster
    # network address, broadcast address, and the bridge's own
    usable = (1 << (32 - cluster.network.node_prefix)) - 3
    common = cluster.kubelet.config.get("maxPods", _MAX_PODS)
    if cluster.network.plugin == "none":
        return
    short = [
        node.name
        for node in cluster.kubernetes_nodes
        if isinstance(wanted := node.kubelet.get("maxPods", common), int) and wanted > usable
    ]
    if short:
        yield warning(
            ("network", "nodePrefix"),
            f"a /{cluster.network.node_prefix} has {usable} pod addresses, fewer than maxPods of {', '.join(short[:3])}"
            f"{' and others' if len(short) > 3 else ''}: set maxPods in kubelet.config to {usable}, or take a shorter prefix",
        )


def service_cidr_size(context: Context) -> Iterator[Problem]:
    """serviceCidr has at least 16 addresses (DNS takes the tenth), and before Kubernetes 1.34 is a /12 at most."""
    cluster = context.cluster
    services = cluster.network.service_cidr
    if services.prefixlen > _LONGEST_SERVICE_PREFIX:
        yield error(
            _SERVICE,
            f"{services} has {services.num_addresses} address{'es' if services.num_addresses > 1 else ''}: "
            f"the DNS Service takes the tenth one, so /{_LONGEST_SERVICE_PREFIX} is the smallest range",
        )
    minor = tuple(int(part) for part in cluster.kubernetes.version.split(".")[:2])
    if services.prefixlen < _SHORTEST_SERVICE_PREFIX and minor < _ANY_SERVICE_PREFIX_SINCE:
        yield error(
            _SERVICE,
            f"{services} is larger than the /{_SHORTEST_SERVICE_PREFIX} that kube-apiserver {cluster.kubernetes.version} takes",
        )


def node_ports_valid(context: Context) -> Iterator[Problem]:
    """nodePortRange runs forwards and holds no port of a component or of SSH; warning where it reaches Linux' outgoing ports."""
    path = ("network", "nodePortRange")
    cluster = context.cluster
    low, high = (int(part) for part in cluster.network.node_port_range.split("-"))
    if not 1 <= low <= 65535 or not 1 <= high <= 65535:
        yield error(path, f"{low}-{high}: ports go from 1 to 65535")
        return
    if low > high:
        yield error(path, f"{low}-{high} runs backwards; did you mean {high}-{low}?")
        return
    for port, owner in sorted(_PORTS.items()):
        if low <= port <= high:
            yield error(path, f"{low}-{high} holds {port}, the port of {owner}")
    if low <= cluster.network.vxlan_port <= high and cluster.network.plugin == "flannel":
        yield error(path, f"{low}-{high} holds {cluster.network.vxlan_port}, the port of VXLAN (vxlanPort)")
    ssh_ports = {
        node.ssh_port or cluster.ssh.port
        for node in cluster.kubernetes_nodes
        if node.cluster_address is None or str(node.cluster_address) == node.address
    }
    for port in sorted(ssh_ports):
        if low <= port <= high:
            yield error(path, f"{low}-{high} holds {port}, the port of SSH: a Service could shut you out")
    if high >= _EPHEMERAL_FROM:
        yield warning(
            path,
            f"{low}-{high} reaches into Linux' range for outgoing connections, which may hold a port first; "
            f"end below {_EPHEMERAL_FROM}",
        )


def vxlan_port_free(context: Context) -> Iterator[Problem]:
    """Warning where vxlanPort has the number of a component's TCP port."""
    network = context.cluster.network
    if network.plugin == "flannel" and network.backend == "vxlan" and network.vxlan_port in _PORTS:
        yield warning(
            ("network", "vxlanPort"), f"{network.vxlan_port} is the port of {_PORTS[network.vxlan_port]} (TCP); choose another"
        )


def extra_sans_valid(context: Context) -> Iterator[Problem]:
    """extraSans are DNS names, with a leading `*.` or without, or IP addresses."""
    for index, name in enumerate(context.cluster.extra_sans):
        path = ("extraSans", index)
        fault = syntax.host_fault(name.removeprefix("*."))
        if "*" in name.removeprefix("*.") or (name.startswith("*.") and syntax.ip(name[2:])):
            yield error(path, f"{quoted(name)}: a wildcard is a leading `*.` before a DNS name, and nothing else")
        elif fault:
            yield error(path, f"{quoted(name)} {fault}")
        elif name in context.cluster.extra_sans[:index]:
            yield warning(path, f"{quoted(name)} stands here twice")


def plugin_comes_from_somewhere(context: Context) -> Iterator[Problem]:
    """Warning where plugin is none and no manifests bring a network: nodes stay NotReady."""
    if context.cluster.network.plugin == "none" and not context.cluster.manifests:
        yield warning(
            ("network", "plugin"), "none, and no manifests that bring a network: nodes stay NotReady until you install one"
        )


def dns_domain_sane(context: Context) -> Iterator[Problem]:
    """dnsDomain's parts fit DNS, and no address of cluster.yaml lies in it: the cluster's own DNS answers there."""
    domain = context.cluster.network.dns_domain
    path = ("network", "dnsDomain")
    long = [part for part in domain.split(".") if len(part) > 63]
    if long:
        yield error(path, f"{quoted(long[0])} has more than the 63 characters that DNS allows between two dots")
    hosts: list[tuple[Path, str]] = [
        (("nodes", index, "address"), node.address) for index, node in enumerate(context.cluster.nodes)
    ]
    if context.cluster.control_plane_endpoint:
        hosts.append((("controlPlaneEndpoint", "host"), context.cluster.control_plane_endpoint.host))
    for where, host in hosts:
        if syntax.is_dns_name(host) and f".{host.lower()}".endswith(f".{domain}"):
            yield error(
                where, f"{quoted(host)} lies in dnsDomain {domain}: pods would not find it, for the cluster's own DNS answers there"
            )


def endpoint_not_repeated(context: Context) -> Iterator[Problem]:
    """Warning where extraSans repeats controlPlaneEndpoint, which is in the certificates anyway."""
    endpoint, names = context.cluster.control_plane_endpoint, context.cluster.extra_sans
    if endpoint and endpoint.host in names:
        path = ("extraSans", names.index(endpoint.host))
        yield warning(path, f"{quoted(endpoint.host)} is in the certificates already, as controlPlaneEndpoint")


def ssh_port_free(context: Context) -> Iterator[Problem]:
    """SSH does not listen on a port that a component of the same machine takes."""
    for index, node in enumerate(context.cluster.nodes):
        if node.cluster_address is not None and str(node.cluster_address) != node.address:
            continue  # the port may be another machine's that forwards to this one
        port = node.ssh_port or context.cluster.ssh.port
        taken = {
            **(_PORTS_OF_NODES if node.is_kubernetes_node else {}),
            **(_PORTS_OF_CONTROL_PLANES if node.has(Role.CONTROL_PLANE) else {}),
            **(_PORTS_OF_ETCD if node.has(Role.ETCD) else {}),
        }
        if port in taken:
            path: Path = ("nodes", index, "sshPort") if node.ssh_port else ("ssh", "port")
            yield error(path, f"port {port} on {node.name} is for {taken[port]}; SSH cannot listen there")
