"""Rules about whose machine it is: another cluster's, or one with the leavings of another Kubernetes."""

from __future__ import annotations

from collections.abc import Iterator

from provisioner.config import Role
from provisioner.preflight.model import Finding, Machine, error, warning

# unit: (what it is, how to be rid of it)
OTHER_KUBERNETES = {
    "k3s.service": ("k3s", "/usr/local/bin/k3s-uninstall.sh"),
    "k3s-agent.service": ("k3s", "/usr/local/bin/k3s-agent-uninstall.sh"),
    "rke2-server.service": ("RKE2", "/usr/local/bin/rke2-uninstall.sh"),
    "rke2-agent.service": ("RKE2", "/usr/local/bin/rke2-uninstall.sh"),
    "k0scontroller.service": ("k0s", "k0s stop && k0s reset"),
    "k0sworker.service": ("k0s", "k0s stop && k0s reset"),
    "snap.microk8s.daemon-kubelite.service": ("MicroK8s", "snap remove --purge microk8s"),
}
KUBELET_FILES = ("/etc/kubernetes/manifests", "/etc/kubernetes/kubelet.conf", "/etc/kubernetes/admin.conf", "/var/lib/kubelet/pki")


def marker(machine: Machine) -> Iterator[Finding]:
    """It belongs to no other cluster."""
    if not machine.is_foreign:
        return
    found = machine.facts.marker or {}
    name, number = found.get("cluster") or "of unknown name", found.get("id") or "unknown"
    if machine.cluster_id is not None:
        why = f"this one's id is {machine.cluster_id}"
    elif found.get("cluster") == machine.cluster.name:
        why = "the name is this one's, but this workspace holds no CA: another one made it"
    else:
        why = "this one has not been made yet"
    yield error(
        f"belongs to another cluster: {name} (id {number}); {why}",
        "use the workspace that made it, or run `provisioner reset` there to give the machine away"
        " (where that workspace is lost: reinstall the machine)",
    )


def another_node(machine: Machine) -> Iterator[Finding]:
    """It is no other node of this cluster: one that was given up, say, and has come back with all that it was."""
    name = (machine.facts.marker or {}).get("node")
    if machine.is_ours and name not in (None, machine.node.name):
        yield error(
            f"it was {name} of this cluster, and holds what it was: identity, containers, data",
            f"write it into cluster.yaml as {machine.node.name}, and `provisioner reset {machine.node.name} --force` makes it"
            " a machine like any other",
        )


def moved(machine: Machine) -> Iterator[Finding]:
    """The name is not that of another machine, which would go on beside this one."""
    known = machine.known
    if known is not None and known.ip != machine.node.ip and not machine.is_ours:
        yield error(
            f"{machine.node.name} was the machine at {known.ip}, and the one at {machine.node.ip} is another",
            f"put the old address back, and let `provisioner node replace {machine.node.name} --address {machine.node.ip}` do it",
        )


def other_kubernetes(machine: Machine) -> Iterator[Finding]:
    """No other Kubernetes is installed."""
    if machine.is_foreign:
        return
    facts = machine.facts
    for unit, (name, remedy) in OTHER_KUBERNETES.items():
        if unit in facts.units:
            yield error(f"{name} is installed there ({unit} is {facts.units[unit]})", f"remove it: `{remedy}`")
    if machine.is_ours:
        return
    traces = [path for path in KUBELET_FILES if path in facts.leftovers]
    if "kubelet.service" in facts.units or traces:
        seen = [*(["kubelet.service"] if "kubelet.service" in facts.units else []), *traces]
        yield error(
            f"holds what another Kubernetes left: {', '.join(seen)}",
            "`kubeadm reset -f` where kubeadm made it, remove the package kubelet, `rm -rf /etc/kubernetes /var/lib/kubelet`",
        )


def old_etcd(machine: Machine) -> Iterator[Finding]:
    """No data of another etcd lies where ours would start."""
    if machine.is_ours or machine.is_foreign or not machine.has(Role.ETCD):
        return
    if "/var/lib/etcd/member" in machine.facts.leftovers:
        yield error(
            "/var/lib/etcd holds the data of another etcd",
            "move it away if it may be needed (`mv /var/lib/etcd /var/lib/etcd.old`), else `rm -rf /var/lib/etcd`",
        )


def container_engines(machine: Machine) -> Iterator[Finding]:
    """No other containerd is in the place of ours."""
    facts = machine.facts
    if not machine.kubernetes or machine.is_ours or machine.is_foreign:
        return
    if facts.units.get("docker.service") in {"active", "activating"}:
        yield error(
            "Docker runs there, and its containerd has the name and the socket of ours",
            "remove Docker (`apt-get purge docker-ce docker.io containerd.io containerd`), or take another machine",
        )
    elif "containerd.service" in facts.units:
        yield error(
            f"another containerd is installed (its unit is {facts.units['containerd.service']}); ours has its name",
            "remove it: `apt-get purge containerd containerd.io` (Rocky, Alma: `dnf remove containerd.io`)",
        )
    if facts.units.get("crio.service") == "active":
        yield warning("CRI-O runs there too", "stop it: `systemctl disable --now crio`")


def other_network(machine: Machine) -> Iterator[Finding]:
    """No other network's configuration is found before ours."""
    if machine.uses_flannel and not machine.is_ours and not machine.is_foreign and "/etc/cni/net.d" in machine.facts.leftovers:
        yield error(
            "/etc/cni/net.d holds the configuration of another container network, which containerd might take for ours",
            "`rm -rf /etc/cni/net.d/*`",
        )
