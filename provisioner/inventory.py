"""The Ansible inventory: who is there, how to reach it, and on which machines each role has work to do."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from provisioner.config import Cluster, Node, Role
from provisioner.desired import HostState
from provisioner.plan import Plan
from provisioner.render import ROLES
from provisioner.ssh import openssh_args
from provisioner.workspace import Workspace, write_atomic


@dataclass(frozen=True, slots=True)
class Etcd:
    """Members that are not simply started: those ``waiting`` to join, and the one that ``joins`` in this very run."""

    waiting: frozenset[str] = frozenset()
    joins: str = ""


def write(
    cluster: Cluster,
    workspace: Workspace,
    states: Mapping[str, HostState],
    interpreters: Mapping[str, str],
    plan: Plan | None = None,
    *,
    etcd: Etcd | None = None,
    in_service: Collection[str] = (),
) -> Path:
    """Write ``inventory/hosts.json`` (0600) and return its path.

    Args:
        cluster: cluster.yaml.
        workspace: where the file goes, and whose known_hosts and keys SSH uses.
        states: desired state of the hosts in this run; others are left out.
        interpreters: Python on each host, from the facts.
        plan: fills the ``differs_ROLE`` groups; without one they are empty, and only state.yml has something to do.
        etcd: members that must join; default: none.
        in_service: hosts whose kubelet ran before this run; see ``quarantine``.
    """
    groups = _groups(cluster, states, plan or Plan(), etcd or Etcd())
    hosts = {
        node.name: {
            **reach(cluster, workspace, node, interpreters[node.name]),
            "vital": is_vital(node),
            "in_service": node.name in in_service,
            **states[node.name].variables,
        }
        for node in cluster.nodes
        if node.name in states
    }
    document = {"all": {"hosts": hosts, "children": groups}}
    return save(workspace, "hosts.json", document)


def save(workspace: Workspace, name: str, document: Mapping[str, object]) -> Path:
    """Write an inventory (0600) and return its path."""
    path = workspace.inventory / name
    write_atomic(path, json.dumps(document, indent=1))
    return path


def is_vital(node: Node) -> bool:
    """Whether a run must stop where this machine fails: a control plane or a member of etcd. A worker is set aside."""
    return node.has(Role.CONTROL_PLANE) or node.has(Role.ETCD)


def reach(cluster: Cluster, workspace: Workspace, node: Node, interpreter: str) -> dict[str, object]:
    """A host's entry as far as every playbook needs it: how to get there, and where its desired state lies."""
    user = node.ssh_user or cluster.ssh.user
    return {
        "ansible_host": node.address,
        "ansible_user": user,
        "ansible_become": user != "root",
        "ansible_python_interpreter": interpreter,
        "ansible_ssh_common_args": shlex.join(openssh_args(cluster, workspace, node)),
        "rendered_dir": str(workspace.rendered),
    }


def write_apart(
    cluster: Cluster,
    workspace: Workspace,
    group: str,
    nodes: Iterable[Node],
    interpreters: Mapping[str, str],
    **variables: object,
) -> Path:
    """Write ``inventory/GROUP.json`` (0600): machines that need not be in cluster.yaml, with nothing of any desired state.

    Args:
        group: name of the group that holds them all, and of the file.
        nodes: the machines.
        interpreters: Python on each.
        variables: the group's.
    """
    hosts = {node.name: reach(cluster, workspace, node, interpreters[node.name]) for node in nodes}
    members = {"hosts": {name: {} for name in hosts}, "vars": variables}
    return save(workspace, f"{group}.json", {"all": {"hosts": hosts, "children": {group: members}}})


def _groups(cluster: Cluster, states: Mapping[str, HostState], plan: Plan, etcd: Etcd) -> dict[str, object]:
    def members(names: frozenset[str], *, first: frozenset[str] = frozenset()) -> dict[str, object]:
        return {"hosts": {name: {} for name in sorted(states, key=lambda name: name not in first) if name in names}}

    # a group may not have a machine's name, and "etcd" and "worker" are good names for machines; none has an underscore
    groups: dict[str, object] = {
        f"role_{role.value.replace('-', '_')}": members(frozenset(node.name for node in cluster.nodes_with(role))) for role in Role
    }
    for role in ROLES:
        # plays go through their hosts in this order: what is down comes up before what runs is restarted
        down = frozenset(
            change.host
            for change in plan.changes
            if change.role == role.name and change.kind == "unit" and change.action.startswith("start")
        )
        late = etcd.waiting if role.name == "etcd" else frozenset()
        groups[f"differs_{role.name}"] = members(plan.hosts_of(role.name) - late, first=down)
    groups["joins_etcd"] = members(frozenset([etcd.joins]))
    groups["lacks_packages"] = members(
        frozenset(name for name, state in states.items() if plan and state.variables["base_packages"])
    )
    return groups
