"""Which version of each component runs on a machine: the running process's own program is asked, never a record."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from provisioner import node_answer
from provisioner.artifacts.lock import Lock
from provisioner.components import components_of
from provisioner.config import Cluster, Node
from provisioner.pages import versions_script
from provisioner.pages.model import MachineVersions
from provisioner.ssh import Connections

# Seconds for a machine; it starts each program once.
SECONDS = 30.0
# Component -> (flag that makes it tell, component of versions.yml; "" where the distribution has it).
ASKED = {
    "kube-apiserver": ("--version", "kubernetes"),
    "kube-controller-manager": ("--version", "kubernetes"),
    "kube-scheduler": ("--version", "kubernetes"),
    "kubelet": ("--version", "kubernetes"),
    "kube-proxy": ("--version", "kubernetes"),
    "etcd": ("--version", "etcd"),
    "containerd": ("--version", "containerd"),
    "flanneld": ("--version", "flannel"),
    "api-proxy": ("-v", ""),
    "vip": ("--version", ""),
}


def expected(lock: Lock, cluster: Cluster) -> dict[str, str]:
    """The versions that go with cluster.yaml's Kubernetes; none of what the distribution has.

    Raises:
        BadInput: the lock does not know that Kubernetes.
    """
    return {name: lock.version_of(component, cluster.kubernetes.version) for name, (_, component) in ASKED.items() if component}


def ask(cluster: Cluster, node: Node, connections: Connections) -> MachineVersions:
    """Ask one machine.

    Raises:
        ProvisionerError: it cannot be reached, or cannot run the script.
    """
    units = {component.name: component.unit for component in components_of(cluster, node) if component.name in ASKED}
    flags = {unit: ASKED[name][0] for name, unit in units.items()}
    text = f"{_script()}\nreport(json.loads({json.dumps({'units': flags})!r}))\n".encode()
    answer = node_answer.ask(connections, node, text, key="versions", seconds=SECONDS)
    told = {name: answer["versions"][unit] for name, unit in units.items()}
    return MachineVersions(
        node.name,
        {name: str(one.get("version", "")) for name, one in told.items()},
        {name: str(one["error"]) for name, one in told.items() if "error" in one},
        str(answer["os"]),
        str(answer["kernel"]),
        str(answer["arch"]),
    )


@cache
def _script() -> str:
    return Path(versions_script.__file__).read_text(encoding="utf-8")
