"""Words that the command line offers to choose from, apart from the models and checks that use them, which take long to import."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

Preset = Literal["single", "ha"]


class Role(StrEnum):
    """What a machine does. One machine may hold all three."""

    CONTROL_PLANE = "control-plane"
    ETCD = "etcd"
    WORKER = "worker"


class Level(StrEnum):
    """How much is tried. ``full`` includes ``smoke``."""

    SMOKE = "smoke"
    FULL = "full"

    def includes(self, other: Level) -> bool:
        """Whether a run of this level runs a check of the other."""
        return self is Level.FULL or other is Level.SMOKE


class Format(StrEnum):
    """How a graph is written."""

    MERMAID = "mermaid"
    DOT = "dot"


# What <TAB> offers; tests/unit/floor compares it with what there is.
PHASES = (
    *("packages", "bundles", "machines", "members", "etcd", "control_plane", "objects", "nodes", "settle", "drain", "leave"),
    "verify",
)
COMPONENTS = (
    *("api-proxy", "containerd", "etcd", "etcd-backup", "flanneld", "images", "kube-apiserver", "kube-controller-manager"),
    *("kube-proxy", "kube-scheduler", "kubelet", "network", "vip"),
)
CHECKS = (
    *("units", "nodes", "apiservers", "etcd", "controllers", "kubelets", "api-paths", "virtual-address", "system-pods"),
    *("probe-pods", "peer-pods", "pod-to-pod", "cluster-ip", "node-port", "hairpin", "own-node", "dns", "logs", "exec"),
    *("metrics", "storage", "web-ui", "registries", "pod-comes-back", "container-restarts", "scheduling", "autoscaling"),
    *("encryption", "anonymous", "node-authorization", "pod-security", "host-services", "host-ports", "host-files", "host-keys"),
)
