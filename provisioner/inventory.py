"""The Ansible inventory: who is there, how to reach it, and on which machines each role has work to do."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from provisioner.config import Cluster, Role
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
) -> Path:
    """Write ``inventory/hosts.json`` (0600) and return its path.

    Args:
        cluster: cluster.yaml.
        workspace: where the file goes, and whose known_hosts and keys SSH uses.
        states: desired state of the hosts in this run; others are left out.
        interpreters: Python on each host, from the facts.
        plan: fills the ``differs_ROLE`` groups; without one they are empty, and only state.yml has something to do.
        etcd: members that must join; default: none.
    """
    groups = _groups(cluster, states, plan or Plan(), etcd or Etcd())
    document = {"all": {"hosts": _hosts(cluster, workspace, states, interpreters), "children": groups}}
    path = workspace.root / "inventory" / "hosts.json"
    write_atomic(path, json.dumps(document, indent=1))
    return path


def _hosts(
    cluster: Cluster, workspace: Workspace, states: Mapping[str, HostState], interpreters: Mapping[str, str]
) -> dict[str, dict[str, object]]:
    hosts: dict[str, dict[str, object]] = {}
    for node in cluster.nodes:
        if node.name not in states:
            continue
        user = node.ssh_user or cluster.ssh.user
        hosts[node.name] = {
            "ansible_host": node.address,
            "ansible_user": user,
            "ansible_become": user != "root",
            "ansible_python_interpreter": interpreters[node.name],
            "ansible_ssh_common_args": shlex.join(openssh_args(cluster, workspace, node)),
            "rendered_dir": str(workspace.rendered),
            **states[node.name].variables,
        }
    return hosts


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
