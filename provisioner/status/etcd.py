"""etcd's members out of what each of them says; works with one member that answers, and without a quorum."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from provisioner.config import Cluster, Node
from provisioner.errors import ProvisionerError
from provisioner.etcd_api import EtcdApi, Member, Status
from provisioner.status.model import Etcd, EtcdMember
from provisioner.topology import ETCD_PEER_PORT
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from provisioner.pki import Pki
    from provisioner.ssh import Connections

MIB = 1 << 20
GONE = "its alarm outlived it: no longer in etcd's member list"


@dataclass(frozen=True, slots=True)
class View:
    """What one member says: of itself, and the member list as it knows it (a learner may not tell)."""

    status: Status
    members: tuple[Member, ...]


def ask(node: Node, workspace: Workspace, connections: Connections, pki: Pki, *, seconds: float) -> View:
    """Ask one member.

    Raises:
        EtcdError: it does not answer.
    """
    with EtcdApi(node, workspace, connections, pki, timeout=seconds) as api:
        status = api.status()
        members: tuple[Member, ...] = ()
        with contextlib.suppress(ProvisionerError):
            members = api.members(linearizable=False)
        return View(status, members)


def assemble(cluster: Cluster, views: Mapping[str, View | str]) -> Etcd:
    """All members: those of cluster.yaml in its order, then strangers in etcd's list.

    Args:
        cluster: what shall be.
        views: by machine; a text says why there is none.
    """
    known = {name: view for name, view in views.items() if isinstance(view, View)}
    statuses = {name: view.status for name, view in known.items()}
    # one that sees a leader knows the list as it is now; one cut off, as it was
    lists = sorted(known.values(), key=lambda view: (view.status.leader != 0, view.status.raft_index), reverse=True)
    listed = next((view.members for view in lists if view.members), ())
    by_node = {node.name: found for node in cluster.etcd_members if (found := _entry(node, listed))}
    alarms: dict[int, set[str]] = {}
    for status in statuses.values():
        for alarm in status.alarms:
            alarms.setdefault(alarm.member_id, set()).add(alarm.alarm)
    leader = next((status for status in statuses.values() if status.leader == status.member_id != 0), None)
    furthest = leader.raft_index if leader else max((status.raft_index for status in statuses.values()), default=0)
    members = [
        _member(node.name, by_node.get(node.name), views.get(node.name, "not asked"), alarms, furthest, listed=bool(listed))
        for node in cluster.etcd_members
    ]
    ours = {entry.id for entry in by_node.values()}
    members += [
        EtcdMember(
            name=entry.name or ", ".join(entry.peer_urls),
            id=f"{entry.id:x}",
            listed=True,
            learner=entry.learner,
            alarms=tuple(sorted(alarms.get(entry.id, ()))),
            error="in etcd's member list, but not in cluster.yaml",
        )
        for entry in listed
        if entry.id not in ours
    ]
    accounted = {status.member_id for status in statuses.values()} | {entry.id for entry in listed}
    members += [
        EtcdMember(name=f"{number:x}", id=f"{number:x}", listed=False, alarms=tuple(sorted(names)), error=GONE)
        for number, names in sorted(alarms.items())
        if listed and number not in accounted
    ]
    quorum = any(status.leader for status in statuses.values()) if statuses else None
    return Etcd(tuple(members), quorum)


def _entry(node: Node, listed: tuple[Member, ...]) -> Member | None:
    """The node's entry in the list; one that has not started has no name yet, but an address."""
    peer = f"https://{node.ip}:{ETCD_PEER_PORT}"
    return next((entry for entry in listed if entry.name == node.name or (not entry.name and peer in entry.peer_urls)), None)


def _member(
    name: str, entry: Member | None, view: View | str, alarms: Mapping[int, set[str]], furthest: int, *, listed: bool
) -> EtcdMember:
    in_list = entry is not None if listed else None
    if isinstance(view, str):
        identity = entry.id if entry else 0
        return EtcdMember(
            name=name,
            id=f"{identity:x}" if identity else "",
            listed=in_list,
            learner=entry.learner if entry else False,
            alarms=tuple(sorted(alarms.get(identity, ()))),
            error=view,
        )
    status = view.status
    return EtcdMember(
        name=name,
        id=f"{status.member_id:x}",
        listed=in_list,
        healthy=status.leader != 0,
        leader=status.leader == status.member_id != 0,
        learner=status.learner,
        version=status.version,
        raft_term=status.raft_term,
        raft_index=status.raft_index,
        behind=max(0, furthest - status.raft_index),
        db_mib=status.db_size / MIB,
        in_use_mib=status.db_size_in_use / MIB,
        quota_mib=status.db_size_quota / MIB if status.db_size_quota else None,
        alarms=tuple(sorted(alarms.get(status.member_id, ()))),
        error="" if status.leader else "sees no leader",
    )
