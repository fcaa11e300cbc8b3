"""Rules about the machines: names, addresses, roles."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

from provisioner.config import Cluster, Node, Role
from provisioner.problems import Problem, error, quoted, warning
from provisioner.rules import syntax
from provisioner.rules.rule import Context
from provisioner.topology import APISERVER_PORT, taints_of

# https://kubernetes.io/docs/setup/best-practices/cluster-large/
_MAX_NODES = 5000
# https://etcd.io/docs/v3.6/faq/#what-is-maximum-cluster-size
_MAX_MEMBERS = 7


def ip_of(node: Node) -> IPv4Address | None:
    """The cluster address, or None where neither field holds one (`node_has_ipv4` reports that)."""
    if node.cluster_address:
        return node.cluster_address
    address = syntax.ip(node.address)
    return address if isinstance(address, IPv4Address) else None


def ip_path(cluster: Cluster, index: int) -> tuple[str | int, ...]:
    """Path of the field that a node's cluster address comes from."""
    return "nodes", index, "clusterAddress" if cluster.nodes[index].cluster_address else "address"


def names_unique(context: Context) -> Iterator[Problem]:
    """Every node has a name of its own: two of one name would be one Node and one etcd member."""
    first: dict[str, int] = {}
    for index, node in enumerate(context.cluster.nodes):
        if node.name in first:
            yield error(("nodes", index, "name"), f"{quoted(node.name)} is the name of nodes[{first[node.name]}] already")
        first.setdefault(node.name, index)


def names_usable(context: Context) -> Iterator[Problem]:
    """No node is called localhost, which is every machine's own name for itself."""
    for index, node in enumerate(context.cluster.nodes):
        if node.name == "localhost":
            yield error(("nodes", index, "name"), '"localhost" is another machine on every node; choose another name')


def addresses_wellformed(context: Context) -> Iterator[Problem]:
    """An address is an IP address or a DNS name: no port, no user, no URL."""
    for index, node in enumerate(context.cluster.nodes):
        fault = syntax.host_fault(node.address)
        if fault:
            hint = ""
            if "port" in fault:
                hint = " (sshPort)"
            elif "user" in fault:
                hint = " (sshUser)"
            yield error(("nodes", index, "address"), f"{quoted(node.address)} {fault}{hint}")


def addresses_unique(context: Context) -> Iterator[Problem]:
    """Every node has an SSH server of its own. One address with several ports is fine: that is how NAT shows virtual machines."""
    first: dict[tuple[str, int], int] = {}
    for index, node in enumerate(context.cluster.nodes):
        where = node.address.lower(), node.ssh_port or context.cluster.ssh.port
        if where in first:
            other = context.cluster.nodes[first[where]].name
            yield error(
                ("nodes", index, "address"),
                f"{quoted(node.address)} with SSH port {where[1]} is the machine of nodes[{first[where]}] ({other}) already",
            )
        first.setdefault(where, index)


def node_has_ipv4(context: Context) -> Iterator[Problem]:
    """Every node has an IPv4 address, as address or clusterAddress: etcd, kubelet and VXLAN are given addresses, not names."""
    for index, node in enumerate(context.cluster.nodes):
        if ip_of(node) is None and not syntax.host_fault(node.address):
            kind = "an IPv6 address" if syntax.ip(node.address) else "a DNS name"
            yield error(
                ("nodes", index, "address"),
                f"{quoted(node.address)} is {kind}, and the cluster needs an IPv4 address of every node: add clusterAddress",
            )


def cluster_addresses_unique(context: Context) -> Iterator[Problem]:
    """Every node has a cluster address of its own (VirtualBox' NAT gives every machine 10.0.2.15)."""
    first: dict[IPv4Address, int] = {}
    cluster = context.cluster
    for index, node in enumerate(cluster.nodes):
        address = ip_of(node)
        if address is None:
            continue
        if address in first:
            other = cluster.nodes[first[address]]
            both_by_address = node.cluster_address is None and other.cluster_address is None
            same_ssh = (node.ssh_port or cluster.ssh.port) == (other.ssh_port or cluster.ssh.port)
            if not (both_by_address and same_ssh):  # addresses_unique has said it
                advice = "; give each node its clusterAddress" if node.cluster_address is None else ""
                yield error(
                    ip_path(cluster, index),
                    f"{address} is the cluster address of nodes[{first[address]}] ({other.name}) already{advice}",
                )
        first.setdefault(address, index)


def cluster_addresses_usable(context: Context) -> Iterator[Problem]:
    """A cluster address is an ordinary host's: not loopback, link-local, multicast, reserved or broadcast."""
    # kubelet refuses most of these as --node-ip (validateNodeIP in upstream's kubelet_node_status.go)
    for index, node in enumerate(context.cluster.nodes):
        address = ip_of(node)
        if address is None:
            continue
        if fault := unusable(address):
            advice = "; add clusterAddress" if node.cluster_address is None else ""
            yield error(ip_path(context.cluster, index), f"{address} is {fault}, which no other node can reach{advice}")
        elif int(address) & 0xFF in {0, 255}:
            ending = int(address) & 0xFF
            yield warning(
                ip_path(context.cluster, index),
                f"{address} ends in .{ending}: in a /24 that is the {'network' if ending == 0 else 'broadcast'} address",
            )


def unusable(address: IPv4Address) -> str:
    """What makes an address no host's; "" for an ordinary one."""
    kinds = (
        (address.is_unspecified, "the unspecified address"),
        (address.is_loopback, "a loopback address"),
        (address == IPv4Address("255.255.255.255"), "the broadcast address"),
        (address.is_multicast, "a multicast address"),
        (address.is_link_local, "a link-local address"),
        (int(address) >> 28 == 15, "a reserved address"),
        (int(address) >> 24 == 0, 'an address of "this network"'),
    )
    return next((kind for holds, kind in kinds if holds), "")


def ssh_address_of_another(context: Context) -> Iterator[Problem]:
    """Warning where a node's address is another node's clusterAddress: mostly a line copied and half edited."""
    owners = {ip_of(node): index for index, node in enumerate(context.cluster.nodes) if node.cluster_address}
    for index, node in enumerate(context.cluster.nodes):
        address = syntax.ip(node.address)
        owner = owners.get(address) if isinstance(address, IPv4Address) else None
        if owner is not None and owner != index and ip_of(node) != address:
            other = context.cluster.nodes[owner].name
            yield warning(
                ("nodes", index, "address"), f"{address} is the clusterAddress of nodes[{owner}] ({other}); is this line right?"
            )


def roles_once(context: Context) -> Iterator[Problem]:
    """A node lists each role once."""
    for index, node in enumerate(context.cluster.nodes):
        for position, role in enumerate(node.roles):
            if role in node.roles[:position]:
                yield error(("nodes", index, "roles", position), f"{quoted(role)} stands here twice")


def has_control_plane(context: Context) -> Iterator[Problem]:
    """At least one node has the role control-plane."""
    if not context.cluster.control_planes:
        yield error(("nodes",), "no node has the role control-plane: nothing would serve the API")


def has_etcd(context: Context) -> Iterator[Problem]:
    """At least one node has the role etcd."""
    if not context.cluster.etcd_members:
        yield error(("nodes",), "no node has the role etcd: add it to one or three nodes, e.g. to the control planes")


def etcd_count_odd(context: Context) -> Iterator[Problem]:
    """The number of etcd members is odd: an even one survives no more failures than one fewer. (Warning for a running cluster.)"""
    count = len(context.cluster.etcd_members)
    if count and count % 2 == 0:
        survives = (count - 1) // 2
        one_fewer = f"{count - 1} member{'s' if count > 2 else ''}"
        yield Problem(
            ("nodes",),
            f"{count} etcd members: a quorum is {count // 2 + 1}, so they survive the loss of {survives}, as {one_fewer} would, "
            f"with one more machine that can fail; make it {count - 1} or {count + 1}",
            "warning" if context.exists else "error",
        )


def etcd_count_sensible(context: Context) -> Iterator[Problem]:
    """Warning above seven etcd members, and for a single one behind several control planes."""
    cluster = context.cluster
    members, control_planes = len(cluster.etcd_members), len(cluster.control_planes)
    if members > _MAX_MEMBERS:
        yield warning(
            ("nodes",), f"{members} etcd members: upstream advises at most {_MAX_MEMBERS}, for every write waits for a majority"
        )
    if members == 1 and control_planes > 1:
        yield warning(
            ("nodes",), f"one etcd member behind {control_planes} control planes: without it all of them stop; three survive a loss"
        )


def something_can_run(context: Context) -> Iterator[Problem]:
    """At least one node takes ordinary pods, CoreDNS among them: a worker, or a control plane without its taint."""
    nodes = context.cluster.kubernetes_nodes
    if nodes and all(any(taint.effect != "PreferNoSchedule" for taint in taints_of(node)) for node in nodes):
        why = "no node has the role worker and" if not context.cluster.nodes_with(Role.WORKER) else ""
        yield error(
            ("nodes",),
            f"{why} every node is tainted, so nothing could run, CoreDNS included: "
            "give a node the role worker, or set `taints: []` on a control plane".strip(),
        )


def node_count_supported(context: Context) -> Iterator[Problem]:
    """Warning above the 5,000 nodes that Kubernetes is tested with."""
    count = len(context.cluster.kubernetes_nodes)
    if count > _MAX_NODES:
        yield warning(("nodes",), f"{count} nodes: Kubernetes is tested with at most {_MAX_NODES}")


def etcd_only_settings(context: Context) -> Iterator[Problem]:
    """A machine with the role etcd alone has no labels, taints or kubelet settings, for it is no Node."""
    for index, node in enumerate(context.cluster.nodes):
        if node.is_kubernetes_node:
            continue
        for key, value in (("labels", node.labels), ("taints", node.taints), ("kubelet", node.kubelet)):
            if value:
                yield error(
                    ("nodes", index, key), "has no effect: a machine with the role etcd alone has no kubelet and is no Node"
                )


def endpoint_valid(context: Context) -> Iterator[Problem]:
    """controlPlaneEndpoint is a host that users can reach; warning where it is a node that serves no API at that port."""
    endpoint = context.cluster.control_plane_endpoint
    if endpoint is None:
        return
    path = ("controlPlaneEndpoint", "host")
    fault = syntax.host_fault(endpoint.host)
    address = syntax.ip(endpoint.host)
    if fault:
        yield error(path, f"{quoted(endpoint.host)} {fault}")
    elif isinstance(address, IPv4Address) and unusable(address):
        yield error(path, f"{address} is {unusable(address)}, which no user can reach the API by")
    elif endpoint.host == "localhost":
        yield error(path, '"localhost" is another machine for every user')
    if endpoint.vip:
        return  # the rules of a virtual address forbid what follows
    for node in context.cluster.nodes:
        if endpoint.host.lower() not in {node.address.lower(), node.name, str(ip_of(node))}:
            continue
        if not node.has(Role.CONTROL_PLANE):
            yield warning(path, f"{quoted(endpoint.host)} is {node.name}, no control plane: nothing of ours answers there")
        elif endpoint.port != APISERVER_PORT:
            yield warning(
                ("controlPlaneEndpoint", "port"),
                f"{node.name}'s apiserver listens on {APISERVER_PORT}, and nothing of ours on {endpoint.port}",
            )
        elif len(context.cluster.control_planes) > 1:
            yield warning(path, f"{quoted(endpoint.host)} is one control plane of several: without it, users lose the API")
