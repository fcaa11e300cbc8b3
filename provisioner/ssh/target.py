"""Where one machine answers SSH, and as whom: cluster.yaml's `ssh` with a node's own overrides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from provisioner.config import Cluster, Node
from provisioner.ssh.auth import expand
from provisioner.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Target:
    """One SSH server. ``key`` is absolute; None means the agent and ~/.ssh/id_*."""

    name: str
    host: str
    port: int
    user: str
    key: Path | None

    @property
    def who(self) -> str:
        """How messages name it."""
        where = self.host if self.port == 22 else f"{self.host} port {self.port}"
        return f"{self.name} ({where})"


def target_of(cluster: Cluster, workspace: Workspace, node: Node) -> Target:
    """The SSH server of a node."""
    key = node.ssh_key or cluster.ssh.key
    return Target(
        name=node.name,
        host=node.address,
        port=node.ssh_port or cluster.ssh.port,
        user=node.ssh_user or cluster.ssh.user,
        key=expand(key, workspace.cluster_file.parent) if key else None,
    )


def bastion_of(cluster: Cluster, workspace: Workspace) -> Target | None:
    """The machine through which the others are reached, where there is one."""
    bastion = cluster.ssh.bastion
    if bastion is None:
        return None
    key = bastion.key or cluster.ssh.key
    return Target(
        name="bastion",
        host=bastion.host,
        port=bastion.port,
        user=bastion.user,
        key=expand(key, workspace.cluster_file.parent) if key else None,
    )
