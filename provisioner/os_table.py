"""What differs between distributions, in one place: the releases known to work, and which package brings which program."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from provisioner.config import Cluster, Node, Role

ARCHITECTURES = ("amd64", "arm64")


class Family(StrEnum):
    """Distributions that share package names and a package manager."""

    DEBIAN = "debian"
    REDHAT = "redhat"


@dataclass(frozen=True, slots=True)
class Release:
    """One release of a distribution, as os-release(5) spells it. A version without a dot stands for all its minor ones."""

    os_id: str
    version: str


# The README says which of these are tested, by what really ran.
RELEASES = (
    Release("debian", "12"),
    Release("debian", "13"),
    Release("ubuntu", "22.04"),
    Release("ubuntu", "24.04"),
    Release("rocky", "9"),
    Release("almalinux", "9"),
)

_FAMILY = {
    "debian": Family.DEBIAN,
    "ubuntu": Family.DEBIAN,
    "rocky": Family.REDHAT,
    "almalinux": Family.REDHAT,
    "rhel": Family.REDHAT,
    "centos": Family.REDHAT,
    "fedora": Family.REDHAT,
}


@dataclass(frozen=True, slots=True)
class Program:
    """A program of the distribution that the cluster's services call, and the package that brings it."""

    name: str
    debian: str
    redhat: str
    purpose: str

    def package(self, family: Family) -> str:
        """The package's name."""
        return self.debian if family is Family.DEBIAN else self.redhat


IP = Program("ip", "iproute2", "iproute", "shows and removes the virtual network's interfaces")
MODPROBE = Program("modprobe", "kmod", "kmod", "loads kernel modules")
MOUNT = Program("mount", "mount", "util-linux", "kubelet mounts volumes with it")
HAPROXY = Program("haproxy", "haproxy", "haproxy", "the node's own proxy to the API servers")
IPTABLES = Program("iptables", "iptables", "iptables-nft", "the CNI plugins and flannel write their rules with it")
NFT = Program("nft", "nftables", "nftables", "kube-proxy writes its rules with it")
KEEPALIVED = Program("keepalived", "keepalived", "keepalived", "holds the virtual address of the API on a control plane")
CONNTRACK = Program("conntrack", "conntrack", "conntrack-tools", "shows and clears connections when something is to be found out")

PROGRAMS = (IP, MODPROBE, MOUNT, HAPROXY, IPTABLES, NFT, CONNTRACK, KEEPALIVED)


def family_of(os_id: str, os_like: tuple[str, ...] = ()) -> Family | None:
    """The family of a distribution, from os-release's ID and ID_LIKE; None for one that is of neither."""
    return next((_FAMILY[name] for name in (os_id, *os_like) if name in _FAMILY), None)


def is_supported(os_id: str, os_version: str) -> bool:
    """Whether a release is in the table."""
    major = os_version.partition(".")[0]
    return Release(os_id, os_version) in RELEASES or Release(os_id, major) in RELEASES


def packages_for(os_id: str, os_version: str, os_like: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Every package a machine of any role may need, sorted; empty for a distribution of no known family.

    The version is taken because names may come to differ between releases; those in the table agree so far.
    """
    _ = os_version
    family = family_of(os_id, os_like)
    return tuple(sorted({program.package(family) for program in PROGRAMS})) if family else ()


def programs_for(cluster: Cluster, node: Node) -> tuple[Program, ...]:
    """The programs that one machine's services call."""
    if not node.is_kubernetes_node:
        return ()
    nftables = cluster.network.proxy_mode == "nftables"
    rules = (NFT,) if nftables and cluster.network.plugin == "none" else (NFT, IPTABLES) if nftables else (IPTABLES,)
    endpoint = cluster.control_plane_endpoint
    vip = (KEEPALIVED,) if node.has(Role.CONTROL_PLANE) and endpoint and endpoint.vip else ()
    return (IP, MODPROBE, MOUNT, HAPROXY, CONNTRACK, *rules, *vip)
