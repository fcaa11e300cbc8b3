"""Everything that may ever lie on a machine because of us: what `reset` takes away, and what is asked before the first change.

What the roles place comes from ``layout`` and the table of certificates. What the components make while they run is told here,
and found out by comparing a machine before and after (tests/e2e/test_reset.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import PurePosixPath

from provisioner.backup import on_machine
from provisioner.config import Cluster
from provisioner.pki.bundle import SHARED
from provisioner.pki.specs import CERTIFICATES, Holder, Pair
from provisioner.render.layout import ROLES, UNITS, binary_path
from provisioner.render.machine import LOGINS, PROVIDER, PROVIDER_CONFIG
from provisioner.render.templates import role_defaults

# The name of our network in its CNI configuration, and where plugins and runtimes remember whom they have plugged in.
CNI_NETWORK = "flannel"
CNI_CACHE = "/var/lib/cni"
BOOTSTRAP_KUBECONFIG = "/etc/kubernetes/kubelet/bootstrap.kubeconfig"
MARKER = "/etc/provisioner/cluster.json"

# The role whose daemon reads a holder's certificates.
_READER: Mapping[Holder, str] = {
    Holder.ETCD_MEMBER: "etcd",
    Holder.CONTROL_PLANE: "kube_apiserver",
    Holder.KUBERNETES_NODE: "kubelet",
    Holder.FLANNEL_NODE: "network",
}
# Files that stand in no table: made only at times, or by the components themselves.
_FILES: Mapping[str, tuple[str, ...]] = {
    # the second is systemd's own, for a timer that is persistent: when it fired last
    "etcd_backup": (on_machine.KEY, "/var/lib/systemd/timers/stamp-provisioner-etcd-backup.timer"),
    "kube_apiserver": ("/etc/kubernetes/kube-apiserver/encryption.yaml",),
    # the kubelet's own, for its shutdownGracePeriod: systemd-logind shall let it delay a shutdown
    "kubelet": (BOOTSTRAP_KUBECONFIG, "/etc/systemd/logind.conf.d/99-kubelet.conf", LOGINS, PROVIDER, PROVIDER_CONFIG),
    "network": ("/etc/cni/net.d/10-flannel.conflist", "/etc/cni/net.d/.10-flannel.conflist"),
}
# Directories that are filled while the role's daemon runs, and are of no use to anybody afterwards.
_DATA: Mapping[str, tuple[str, ...]] = {
    "base": ("/var/lib/provisioner", "/run/provisioner"),
    # the third is named for machines where somebody else's containerd has made the directories above it
    "containerd": (
        *("/var/lib/containerd", "/run/containerd", "/run/containerd/io.containerd.runtime.v2.task/k8s.io"),
        *("/run/nri", "/etc/containerd/certs.d"),
    ),
    "api_proxy": ("/run/provisioner-api-proxy",),
    "etcd": ("/var/lib/etcd",),
    "etcd_backup": ("/run/provisioner-etcd-backup",),
    "kube_apiserver": ("/var/log/kube-apiserver",),
    "vip": ("/run/provisioner-vip",),
    "kubelet": ("/var/lib/kubelet", "/var/log/pods", "/var/log/containers"),
    "network": ("/run/flannel", f"{CNI_CACHE}/networks/{CNI_NETWORK}"),
}
# Directories that components make and others may put something into: they go where nothing is in them.
_SHARED_DIRECTORIES = (
    *("/opt/containerd/bin", "/opt/containerd/lib"),
    "/usr/libexec/kubernetes/kubelet-plugins/volume/exec",
    f"{CNI_CACHE}/results",
    "/run/netns",
)
# Directories below which a mount may be one of ours.
_MOUNTS = ("/var/lib/kubelet", "/var/lib/containerd", "/run/containerd")
# Which of them are, by the daemon that makes them: volumes of pods; root filesystems of containers. What is mounted at another
# place below these directories is somebody's own.
_MADE: Mapping[str, tuple[str, ...]] = {
    "kubelet": (r"/var/lib/kubelet/(pods|plugins)/[^/]+/.+",),
    "containerd": (
        r"/run/containerd/io\.containerd\.[^/]+/.+",
        r"/var/lib/containerd/io\.containerd\.[^/]+/.+",
        r"/var/lib/containerd/tmpmounts/containerd-mount[^/]+",
    ),
}

# What components set besides the role base, with the value where it is always the same. kubelet:
# https://kubernetes.io/docs/reference/command-line-tools-reference/kubelet/ (--protect-kernel-defaults); kube-proxy: conntrack
# in https://kubernetes.io/docs/reference/config-api/kube-proxy-config.v1alpha1/. Forwarding changes the last one in the kernel.
_SYSCTLS: Mapping[str, str] = {
    "vm.overcommit_memory": "1",
    "vm.panic_on_oom": "0",
    "kernel.panic": "10",
    "kernel.panic_on_oops": "1",
    "kernel.keys.root_maxkeys": "1000000",
    "kernel.keys.root_maxbytes": "25000000",
    "net.netfilter.nf_conntrack_max": "",
    "net.netfilter.nf_conntrack_tcp_timeout_established": "86400",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait": "3600",
    "net.netfilter.nf_conntrack_tcp_be_liberal": "1",
    "net.ipv4.conf.all.route_localnet": "1",
    "net.ipv4.conf.all.accept_redirects": "",
}


@dataclass(frozen=True, slots=True)
class Part:
    """One role's: its units, the files it may ever have (binaries and keys among them), its data directories, and its mounts.

    Mounts are regular expressions of mount points.
    """

    role: str
    units: tuple[str, ...]
    files: tuple[str, ...]
    data: tuple[str, ...]
    mounts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Everything of ours, on any machine of any role.

    Attributes:
        parts: what belongs to one role each; where a unit of that name is somebody else's, all of it is.
        directories: every directory above one of our files, and those that components make: each goes where it is empty and
            was not there before us.
        mounts: directories below which a mount may be ours; the parts tell which of them are.
        pods: the parts without which there are no pods of ours. Where one of them is somebody else's, so is what pods leave in
            the kernel: interfaces, namespaces, rules, control groups.
        users: system users, by name.
        sysctls: kernel parameters and the value that they get from us; "" where that depends.
        modules: kernel modules.
        interfaces: network interfaces; those below the first of them go with it.
        pod_cidr: routes to parts of it, through other machines, are flannel's.
        addresses: virtual addresses that the machine may hold.
        nft_tables: (family, name) of tables.
        chains: beginnings of names of chains of iptables. Of those that the CNI plugins make, for whoever calls them, only the
            ones of our pods.
        cni_network: the name of our network.
        cni_cache: where it is written down which container is in which network.
        cni_tables: (family, name) of tables that the CNI plugins make, for whoever calls them.
        cgroups: names of groups at the root of each hierarchy.
        shim: the program that a container's parent runs, and the socket of the containerd it belongs to.
    """

    parts: tuple[Part, ...]
    directories: tuple[str, ...]
    mounts: tuple[str, ...]
    users: tuple[str, ...]
    sysctls: Mapping[str, str]
    modules: tuple[str, ...]
    pods: tuple[str, ...] = ("containerd", "kubelet")
    marker: str = MARKER
    interfaces: tuple[str, ...] = ("cni0", "flannel.1")
    pod_cidr: str = ""
    addresses: tuple[str, ...] = ()
    nft_tables: tuple[tuple[str, str], ...] = (
        *(("ip", "kube-proxy"), ("ip6", "kube-proxy")),
        *(("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6")),
    )
    cni_tables: tuple[tuple[str, str], ...] = (("ip", "cni_hostport"), ("ip6", "cni_hostport"))
    chains: tuple[str, ...] = ("KUBE-", "FLANNEL-", "CNI-")
    cni_network: str = CNI_NETWORK
    cni_cache: str = CNI_CACHE
    cgroups: tuple[str, ...] = ("kubepods", "kubepods.slice")
    shim: tuple[str, str] = (binary_path("containerd-shim-runc-v2"), "/run/containerd/containerd.sock")

    def to_json(self) -> dict[str, object]:
        """For the module that takes it away."""
        return asdict(self)


def footprint_of(cluster: Cluster) -> Footprint:
    """The footprint with what depends on cluster.yaml: the pods' addresses, the virtual address."""
    endpoint = cluster.control_plane_endpoint
    return replace(
        everything(),
        pod_cidr=str(cluster.network.pod_cidr),
        addresses=(str(endpoint.host),) if endpoint is not None and endpoint.vip is not None else (),
    )


@cache
def everything() -> Footprint:
    """The footprint of any cluster at all."""
    parts = tuple(_part(role.name) for role in ROLES)
    base = role_defaults("base")
    users = dict.fromkeys(file.owner for role in ROLES for file in role.files)
    users.update(dict.fromkeys(shared.owner for shared in SHARED))
    users.update(dict.fromkeys(spec.place.owner for spec in CERTIFICATES if spec.place))
    return Footprint(
        parts=parts,
        directories=_directories(parts),
        mounts=_MOUNTS,
        users=tuple(user for user in users if user != "root"),
        sysctls={**base["base_kubernetes_sysctls"], **_SYSCTLS},
        modules=tuple(base["base_kubernetes_modules"]),
    )


def _part(name: str) -> Part:
    role = next(role for role in ROLES if role.name == name)
    files = [file.path for file in role.files]
    files += [binary_path(binary) for binary in role.binaries]
    files += [path for path, _ in role.scripts]
    files += [shared.path for shared in SHARED if _READER[shared.holder] == name]
    for spec in CERTIFICATES:
        if spec.place is not None and _READER[spec.holder] == name:
            place = spec.place
            stem = f"{place.directory}/{place.stem}" if isinstance(place, Pair) else ""
            files += [f"{stem}.crt", f"{stem}.key"] if isinstance(place, Pair) else [place.path]
    files += _FILES.get(name, ())
    return Part(
        name,
        tuple(dict.fromkeys(name for unit in role.units for name in (unit.name, unit.service))),
        tuple(dict.fromkeys(files)),
        _DATA.get(name, ()),
        _MADE.get(name, ()),
    )


def _directories(parts: Iterable[Part]) -> tuple[str, ...]:
    """The deepest first, so that each is looked at after what is in it."""
    places = [path for part in parts for path in (*part.files, *part.data)]
    found = {str(parent) for path in places for parent in PurePosixPath(path).parents}
    found |= {str(parent) for path in _SHARED_DIRECTORIES for parent in (PurePosixPath(path), *PurePosixPath(path).parents)}
    found -= {"/", *(path for part in parts for path in part.data)}
    return tuple(sorted(found, key=lambda path: (-path.count("/"), path)))


def questions(cluster_id: str) -> dict[str, object]:
    """What is asked of a machine before its first change; the answers stay on it (`/var/lib/provisioner/before.json`)."""
    whole = everything()
    return {
        "cluster": cluster_id,
        "marker": whole.marker,
        "files": [
            *(path for part in whole.parts for path in part.files),
            *(f"{UNITS}/{unit}.d" for part in whole.parts for unit in part.units),
        ],
        "directories": list(whole.directories),
        # directories whose content is told, for theirs goes but for what was in them before
        "listed": [*(path for part in whole.parts for path in part.data), f"{CNI_CACHE}/results", "/run/netns"],
        "mounts": list(whole.mounts),
        "users": list(whole.users),
        "sysctls": list(whole.sysctls),
        "modules": list(whole.modules),
        "interfaces": list(whole.interfaces),
        "chains": list(whole.chains),
    }
