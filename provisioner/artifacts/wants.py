"""What a cluster's machines need, as names; where the bytes come from is the sources' matter."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from provisioner.addons import table
from provisioner.artifacts.lock import Arch, Lock
from provisioner.config import Cluster, Role


@dataclass(frozen=True, slots=True, order=True)
class Want:
    """One file of one architecture; ``name`` is its key in what ``ensure`` returns ("kubelet", "images/pause.tar")."""

    component: str
    version: str
    name: str
    arch: Arch

    def __str__(self) -> str:
        return f"{self.name} ({self.component} {self.version}, {self.arch})"


ETCD = ("etcd", "etcdctl", "etcdutl")
# Encrypts the backups that members take by themselves.
BACKUP = ("age",)
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
NODE = ("kubelet", "kube-proxy", "kubectl")
CONTAINERD = ("containerd", "containerd-shim-runc-v2", "ctr")
CNI = tuple(f"cni/{name}" for name in ("bandwidth", "bridge", "firewall", "host-local", "loopback", "portmap", "ptp", "tuning"))

# component -> its files, for machines that register a Node
_ON_NODES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("kubernetes", NODE),
    ("containerd", CONTAINERD),
    ("runc", ("runc",)),
    ("cni-plugins", CNI),
    ("crictl", ("crictl",)),
    ("pause", ("images/pause.tar",)),
    ("coredns", ("images/coredns.tar",)),
    ("agnhost", ("images/agnhost.tar",)),
)


def wanted_for(cluster: Cluster, lock: Lock, *, arch: Arch, roles: Iterable[Role]) -> tuple[Want, ...]:
    """What machines of one architecture with (any of) these roles need.

    Raises:
        BadInput: the lock does not know the cluster's Kubernetes version.
    """
    carried = frozenset(roles)
    files: list[tuple[str, tuple[str, ...]]] = []
    if Role.ETCD in carried:
        files.append(("etcd", ETCD))
        if cluster.backups.schedule:
            files.append(("age", BACKUP))
    if Role.CONTROL_PLANE in carried:
        files.append(("kubernetes", CONTROL_PLANE))
    if carried & {Role.CONTROL_PLANE, Role.WORKER}:
        files.extend(_ON_NODES)
        if cluster.network.plugin == "flannel":
            files.append(("flannel", ("flanneld",)))
        files.extend(_of_addons(cluster))
    return wants_of(lock, cluster.kubernetes.version, arch, files)


def everything(lock: Lock, kubernetes: str, arch: Arch, cluster: Cluster | None = None) -> tuple[Want, ...]:
    """All files that go with a Kubernetes version; addons' as far as a cluster has them on.

    Raises:
        BadInput: the lock does not know that version.
    """
    files = (("etcd", ETCD), ("kubernetes", CONTROL_PLANE), *_ON_NODES, ("flannel", ("flanneld",)), ("age", BACKUP))
    files = (*files, *(_of_addons(cluster) if cluster else ()))
    return wants_of(lock, kubernetes, arch, files)


def _of_addons(cluster: Cluster) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((addon.component, (addon.archive,)) for addon in table.wanted_by(cluster))


def wants_of(lock: Lock, kubernetes: str, arch: Arch, files: Iterable[tuple[str, tuple[str, ...]]]) -> tuple[Want, ...]:
    """Wants for (component, names) pairs, with the versions that go with a Kubernetes version."""
    return tuple(
        Want(component=component, version=lock.version_of(component, kubernetes), name=name, arch=arch)
        for component, names in files
        for name in names
    )
