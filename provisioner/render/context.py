"""What rendering one host needs to know; all of it values, nothing is read or asked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from provisioner.config import Cluster, Node
from provisioner.desired import File


@dataclass(frozen=True, slots=True)
class MachineTraits:
    """What the driver has detected on a machine and configures for; nobody is asked."""

    cgroup: int = 2
    can_lower_oom: bool = True
    container: bool = False
    swap: bool = False
    zstd: bool = True
    memory_mib: int = 0
    resolv_conf: str = "/etc/resolv.conf"
    # the one with the node's cluster address
    interface: str = ""
    packages_missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CachedArtifact:
    """A file of the controller's cache that goes to a machine."""

    path: Path
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Image:
    """A container image that is there before any pod: the artifact's name and the reference pods use."""

    artifact: str
    reference: str


@dataclass(frozen=True, slots=True)
class RegistryFiles:
    """Of the registries by their names: CAs (PEM), and (user name, password)."""

    cas: Mapping[str, bytes] = field(default_factory=dict)
    logins: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class HostContext:
    """One host's input.

    Args:
        cluster: cluster.yaml.
        node: the machine.
        traits: what was detected on it.
        cluster_id: identity of the cluster, for the marker file.
        certificates: the node's bundle from ``pki.bundle_for``, plus what else is secret.
        artifacts: the cache's files for this machine's architecture, by artifact name.
        images: images by their short name (pause, coredns, agnhost).
        bootstrap_kubeconfig: a kubeconfig with a short-lived token, only for a node without a valid certificate.
        joins_etcd: (name, peer URL) of every member, this one included, of the running etcd cluster that the machine's member
            joins; empty where it is one of the founders.
        registries: the files that cluster.yaml names for registries, as they were read.
        leaving_planes: control planes that are in cluster.yaml no more, and serve still: proxies lead to them, too.
    """

    cluster: Cluster
    node: Node
    traits: MachineTraits
    cluster_id: str
    certificates: tuple[File, ...]
    artifacts: Mapping[str, CachedArtifact]
    images: Mapping[str, Image]
    bootstrap_kubeconfig: bytes | None = field(default=None, repr=False)
    joins_etcd: tuple[tuple[str, str], ...] = ()
    leaving_planes: tuple[Node, ...] = ()
    registries: RegistryFiles = field(default_factory=RegistryFiles, repr=False)
