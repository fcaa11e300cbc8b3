"""Rules about the network: addresses, ports, resolver, firewalls."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

from provisioner import topology
from provisioner.config import Role
from provisioner.preflight.model import Finding, Machine, error, info, warning

# Interfaces that the cluster itself makes.
OWN_INTERFACES = ("cni0", "flannel.1", "kube-ipvs0", "nodelocaldns")
KUBELET_HEALTH_PORT = 10248


def cluster_address(machine: Machine) -> Iterator[Finding]:
    """The machine has the address that the others shall reach it by, and nobody else has."""
    facts, address = machine.facts, str(machine.node.ip)
    if "interfaces" in facts.incomplete:
        return
    if not facts.cluster_interface:
        has = ", ".join(f"{found} on {name}" for name, found in _addresses(machine)) or "none but loopback"
        yield error(
            f"the cluster address {address} is on none of its interfaces; it has {has}",
            "set `clusterAddress` of the node to an address that the other machines reach it by",
        )
    others = [
        name
        for name, other in machine.everyone.items()
        if name != machine.node.name and address in sum(other.interfaces.values(), ())
    ]
    if others:
        yield error(
            f"its cluster address {address} is also an address of {', '.join(others)}",
            "set `clusterAddress` to one that only this machine has (VirtualBox's NAT gives every machine 10.0.2.15)",
        )


def virtual_address(machine: Machine) -> Iterator[Finding]:
    """The API's virtual address is nobody's own, and the interface that shall carry it is there."""
    endpoint, facts = machine.cluster.control_plane_endpoint, machine.facts
    if endpoint is None or endpoint.vip is None or "interfaces" in facts.incomplete:
        return
    plane, name = machine.has(Role.CONTROL_PLANE), endpoint.vip.interface
    if plane and name is not None and name not in facts.interfaces:
        yield error(
            f"it has no interface {name}, which `controlPlaneEndpoint.vip` names; it has {', '.join(sorted(facts.interfaces))}",
            "name one that every control plane has, or none: then each takes the one with its cluster address",
        )
    if plane and machine.is_ours:  # the holder of the moment
        return
    holding = [interface for interface, addresses in sorted(facts.interfaces.items()) if endpoint.host in addresses]
    if holding:
        yield error(
            f"it has the cluster's virtual address {endpoint.host}, on {holding[0]}",
            f"take it off (`ip address delete {endpoint.host} dev {holding[0]}`, and from the machine's own network settings), "
            "or choose an address that nobody has",
        )


def mac_address(machine: Machine) -> Iterator[Finding]:
    """No other machine has its MAC."""
    twins = machine.sharing(lambda other: other.macs.get(other.cluster_interface, "") if other.cluster_interface != "lo" else "")
    if twins:
        yield error(
            f"its interface {machine.facts.cluster_interface} has the same MAC address as {', '.join(twins)}",
            "give cloned virtual machines a MAC of their own",
        )


def mtu(machine: Machine) -> Iterator[Finding]:
    """All machines send packets of the same size."""
    own = machine.facts.mtu
    others = {other.mtu for other in machine.everyone.values() if other.mtu}
    if own and own != max(others, default=own):
        yield warning(
            f"its interface {machine.facts.cluster_interface} has an MTU of {own}, other machines have {max(others)}",
            "set the same MTU everywhere, or larger packets between pods may get lost",
        )


def address_ranges(machine: Machine) -> Iterator[Finding]:
    """No address of the machine's own lies in the ranges of pods or Services."""
    network = machine.cluster.network
    for name, found in _addresses(machine):
        if machine.is_ours and (name in OWN_INTERFACES or name.startswith("veth")):
            continue
        for key, cidr in (("podCidr", network.pod_cidr), ("serviceCidr", network.service_cidr)):
            if IPv4Address(found) in cidr:
                yield error(
                    f"its own address {found} on {name} lies in `network.{key}` {cidr}",
                    f"choose another `network.{key}`, or `ip link delete {name}` if the interface is left from another cluster",
                )


def default_route(machine: Machine) -> Iterator[Finding]:
    """Packets to Service addresses find a way into the kernel's rules."""
    if machine.kubernetes and not machine.facts.default_route and "routes" not in machine.facts.incomplete:
        cidr = machine.cluster.network.service_cidr
        yield warning(
            "it has no default route: processes on the machine itself cannot reach Services",
            f"add one, or `ip route add {cidr} dev {machine.facts.cluster_interface or 'INTERFACE'}`, and make it permanent",
        )


def resolver(machine: Machine) -> Iterator[Finding]:
    """Pods can be given nameservers."""
    facts = machine.facts
    if not machine.kubernetes or "resolver" in facts.incomplete:
        return
    if not facts.resolv_nameservers:
        yield error("/etc/resolv.conf names no nameserver; pods get theirs from it", "add `nameserver ADDRESS` to /etc/resolv.conf")
    elif all(server.startswith("127.") or server == "::1" for server in facts.resolv_nameservers):
        yield warning(
            f"its only nameserver is {facts.resolv_nameservers[0]}, which inside a pod is the pod itself: CoreDNS would ask itself",
            "name a server that pods can reach in a file, and set `kubelet.config.resolvConf` to it",
        )


def expected_listeners(machine: Machine) -> dict[int, str]:
    """TCP ports of the machine's roles, and the program of ours that listens there."""
    ports: dict[int, str] = {}
    if machine.has(Role.ETCD):
        ports |= dict.fromkeys((topology.ETCD_CLIENT_PORT, topology.ETCD_PEER_PORT, topology.ETCD_METRICS_PORT), "etcd")
    if machine.has(Role.CONTROL_PLANE):
        ports |= {
            topology.APISERVER_PORT: "kube-apiserver",
            topology.CONTROLLER_MANAGER_PORT: "kube-controller-manager",
            topology.SCHEDULER_PORT: "kube-scheduler",
            topology.API_HEALTH_PORT: "haproxy",
        }
    if machine.kubernetes:
        ports |= {
            topology.API_PROXY_PORT: "haproxy",
            topology.KUBELET_PORT: "kubelet",
            KUBELET_HEALTH_PORT: "kubelet",
            topology.KUBE_PROXY_HEALTH_PORT: "kube-proxy",
            topology.KUBE_PROXY_METRICS_PORT: "kube-proxy",
        }
    return ports


def ports(machine: Machine) -> Iterator[Finding]:
    """Nobody else listens where our services will."""
    if machine.is_foreign:  # said once, by the rule about markers: a reset of that cluster frees them all
        return
    for port, ours in sorted(expected_listeners(machine).items()):
        user = machine.facts.listening.get(port)
        if user is None or (machine.is_ours and user in {ours, ""}):
            continue
        yield error(
            f"port {port}, which {ours} needs, is taken by {user or 'an unknown process'}",
            f"stop what listens there (`ss -ltnp 'sport = :{port}'` shows it)",
        )
    vxlan = machine.cluster.network.vxlan_port
    if machine.uses_flannel and machine.cluster.network.backend == "vxlan" and (user := machine.facts.listening_udp.get(vxlan)):
        yield error(f"UDP port {vxlan}, which VXLAN needs, is taken by {user}", "stop it, or choose another `network.vxlanPort`")


def firewall(machine: Machine) -> Iterator[Finding]:
    """A firewall lets the cluster through."""
    active = [name for name, on in (("firewalld", machine.facts.firewalld), ("ufw", machine.facts.ufw)) if on]
    if not active:
        return
    network = machine.cluster.network
    tcp = sorted(port for port in expected_listeners(machine) if port in _REMOTE_PORTS)
    udp = [network.vxlan_port] if machine.uses_flannel and network.backend == "vxlan" else []
    listed = " ".join([*(f"{port}/tcp" for port in tcp), *(f"{port}/udp" for port in udp)])
    endpoint = machine.cluster.control_plane_endpoint
    if machine.has(Role.CONTROL_PLANE) and endpoint and endpoint.vip:
        listed += " vrrp (IP protocol 112)"
    ranges = f"{network.pod_cidr} and {network.service_cidr}" if machine.kubernetes else ""
    yield warning(
        f"{' and '.join(active)} filters on this machine",
        f"let the other machines reach {listed}"
        + (f", NodePorts {network.node_port_range}, and traffic of {ranges}" if ranges else ""),
    )


def selinux(machine: Machine) -> Iterator[Finding]:
    """SELinux does not surprise."""
    if machine.facts.selinux == "enforcing":
        yield warning(
            "SELinux is enforcing, and the roles set no contexts",
            "`setenforce 0` and SELINUX=permissive in /etc/selinux/config, or write a policy for /usr/local/bin and containerd",
        )


def programs(machine: Machine) -> Iterator[Finding]:
    """The distribution's programs that the services call are there."""
    facts = machine.facts
    if "commands" in facts.incomplete:
        return
    if facts.packages_missing:
        # without a way out no repository can answer, unless it is local
        tell = info if facts.default_route else warning
        yield tell(
            f"`apply` will install {', '.join(facts.packages_missing)}",
            f"where no package repository answers, install beforehand: {' '.join(facts.packages_missing)}",
        )
    essential = [name for name in ("systemd-sysusers", "sysctl") if not facts.commands.get(name)]
    if essential:
        yield error(f"the machine has no {', '.join(essential)}", "install the distribution's complete systemd and procps packages")


# Ports that other machines connect to; the rest is for the machine itself.
_REMOTE_PORTS = frozenset(
    {
        topology.ETCD_CLIENT_PORT,
        topology.ETCD_PEER_PORT,
        topology.APISERVER_PORT,
        topology.KUBELET_PORT,
        topology.KUBE_PROXY_HEALTH_PORT,
    }
)


def _addresses(machine: Machine) -> Iterator[tuple[str, str]]:
    """(interface, address) of everything but loopback."""
    for name, addresses in sorted(machine.facts.interfaces.items()):
        for address in addresses:
            if not address.startswith("127."):
                yield name, address
