"""The order of an upgrade, as data: which part of the plan comes when, and which machines go together. Pure.

The desired state is the new version's from the beginning, and the plan is the whole difference. A stage is a part of that plan, so
one that is done has nothing left to do: a run that was cut short goes on by itself, and what is not in its turn is not touched.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from provisioner.config import Cluster, Node, Role
from provisioner.plan import Change, Plan
from provisioner.render import ROLES
from provisioner.render.layout import binary_path
from provisioner.render.machine import IMAGE_DIR

# Which role runs a binary that the role `artifacts` places.
_OWNERS = {binary_path(name): role.name for role in ROLES for name in role.binaries}


@dataclass(frozen=True, slots=True)
class Stage:
    """Some roles on all machines that carry them, one machine at a time."""

    name: str
    title: str
    roles: frozenset[str]
    playbooks: tuple[str, ...]

    def part(self, plan: Plan, hosts: Collection[str] | None = None) -> Plan:
        """Its part of a plan.

        Args:
            hosts: of these machines alone; default: of all.
        """
        return Plan(
            tuple(change for change in plan.changes if role_of(change) in self.roles and (hosts is None or change.host in hosts))
        )


MACHINES = Stage("machines", "what is below Kubernetes", frozenset({"base", "certificates", "api_proxy"}), ("machines",))
ETCD = Stage("etcd", "etcd, one member at a time", frozenset({"etcd", "etcd_backup"}), ("machines", "etcd"))
API_SERVERS = Stage("apiservers", "API servers, one at a time", frozenset({"kube_apiserver", "vip"}), ("machines", "control_plane"))
CONTROLLERS = Stage(
    "controllers",
    "controller managers and schedulers",
    frozenset({"kube_controller_manager", "kube_scheduler"}),
    ("machines", "control_plane"),
)
# Not on all machines at once, but in waves, each while it is drained.
NODES = Stage(
    "nodes",
    "kubelets and what is beside them",
    frozenset({"containerd", "kubelet", "kube_proxy", "network"}),
    ("machines", "nodes"),
)
# In the order of an upgrade; back to an older patch it is the other way round, so that no kubelet is ever newer than an API server.
BEFORE_NODES = (MACHINES, ETCD, API_SERVERS, CONTROLLERS)


def role_of(change: Change) -> str:
    """The role whose stage a change belongs to: a binary comes with the role that runs it."""
    if change.kind != "artifact":
        return change.role
    return "containerd" if change.what.startswith(f"{IMAGE_DIR}/") else _OWNERS.get(change.what, "base")


def waves(cluster: Cluster, at_once: int) -> tuple[tuple[Node, ...], ...]:
    """Which machines are drained together: control planes one by one, then workers, ``at_once`` at a time.

    Machines that register no Node are in none.
    """
    planes = [(node,) for node in cluster.kubernetes_nodes if node.has(Role.CONTROL_PLANE)]
    workers = [node for node in cluster.kubernetes_nodes if not node.has(Role.CONTROL_PLANE)]
    return (*planes, *(tuple(workers[start : start + at_once]) for start in range(0, len(workers), at_once)))


def default_wave(workers: Sequence[Node]) -> int:
    """A tenth of the workers, and one at least."""
    return max(1, len(workers) // 10)
