"""What `node add`, `node remove` and `node replace` make of a cluster.yaml, and which machines such a run is about. Pure, but for
the looks at the end: at a machine that is to come, and at one that only the cluster knows."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from provisioner import edit, load, pki, preflight, registry
from provisioner.cluster_api import ClusterApi
from provisioner.config import Cluster, Node, Role
from provisioner.errors import BadInput
from provisioner.etcd_api import EtcdApi, Member, listed_by_any
from provisioner.facts import gather
from provisioner.inventory import is_vital
from provisioner.leaver import Removal
from provisioner.problems import did_you_mean
from provisioner.ssh import Connections
from provisioner.workspace import Workspace


@dataclass(frozen=True, slots=True)
class Edited:
    """A cluster.yaml as it will be: its text, and what it says."""

    text: str
    cluster: Cluster


def add(text: str, path: Path, fields: Mapping[str, object]) -> Edited:
    """With one node more.

    Args:
        text: the file's text.
        path: the file, for messages and relative names.
        fields: the node's keys as in the file; those without a value are left out.

    Raises:
        BadInput: the result would be wrong; with every problem.
    """
    return _checked(edit.add_node(text, {key: value for key, value in fields.items() if value not in (None, (), [], {}, "")}), path)


def remove(text: str, path: Path, names: Iterable[str]) -> Edited:
    """Without some nodes.

    Raises:
        BadInput: the result would be wrong (no control plane, no member of etcd); with every problem.
    """
    for name in names:
        text = edit.remove_node(text, name)
    return _checked(text, path)


def change(text: str, path: Path, name: str, changes: Mapping[str, object]) -> Edited:
    """With another name or address for one node.

    Raises:
        BadInput: the result would be wrong; with every problem.
    """
    return _checked(edit.replace_node(text, name, changes), path)


def _checked(text: str, path: Path) -> Edited:
    loaded = load.parse(text, path, exists=True)
    if loaded.cluster is None:
        raise load.refusal(loaded)
    return Edited(text, loaded.cluster)


def without(cluster: Cluster, name: str) -> Cluster:
    """The cluster for the time in which one of its machines is away, to come back as another.

    Raises:
        BadInput: nothing of it would be left.
    """
    rest = tuple(node for node in cluster.nodes if node.name != name)
    reduced = cluster.model_copy(update={"nodes": rest})
    for role, nodes in (("control plane", reduced.control_planes), ("member of etcd", reduced.etcd_members)):
        if not nodes:
            raise BadInput(
                f"{name} is the only {role}: without it there is no cluster",
                hint=f"give the new machine a name of its own (`provisioner node replace {name} --name NEW --address ADDRESS`): "
                "then it joins before the old one leaves",
            )
    return reduced


def scope_of(nodes: Iterable[Node]) -> frozenset[str] | None:
    """The machines that a change of these nodes is about: themselves, if they are workers alone.

    None for all machines: control planes stand in every machine's proxy, and members of etcd in the flags of API servers.
    """
    given = tuple(nodes)
    return None if any(is_vital(node) for node in given) else frozenset(node.name for node in given)


def unknown(name: str, cluster: Cluster, others: Collection[str] = ()) -> BadInput:
    """The error for a name that nobody knows."""
    names = [*(node.name for node in cluster.nodes), *others]
    return BadInput(f"there is no node {name!r}{did_you_mean(name, names)}", hint=f"the nodes are {', '.join(names)}")


def stranger(name: str, api: ClusterApi, listed: Iterable[Member] | None) -> Node | None:
    """A machine that only the cluster itself knows: as a Node, as a member of etcd, or both; None for none.

    Raises:
        BadInput: its name or address is none that a machine of cluster.yaml could have.
    """
    roles, address = [], ""
    node = api.get({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    if node is not None:
        roles.append(Role.WORKER)
        found = (node.get("status") or {}).get("addresses") or []
        address = next((str(item["address"]) for item in found if item["type"] == "InternalIP"), "")
    for member in listed or ():
        if member.name == name:
            roles.append(Role.ETCD)
            address = re.sub(r"^https?://|:\d+$", "", next(iter(member.peer_urls), ""))
    if not roles or not address:
        return None
    try:
        IPv4Address(address)
        return Node(name=name, address=address, roles=tuple(roles))
    except ValueError:
        raise BadInput(
            f"{name} ({address}): no machine of cluster.yaml can have such a name or address, so it cannot be taken out from here",
            hint=f"take it out by hand: `kubectl delete node {name}`, `etcdctl member remove`",
        ) from None


def removal(workspace: Workspace, gone: tuple[Node, ...], seconds: float, *, unreachable: bool, force: bool) -> Removal:
    """What the user has said about these nodes, without which the run would be pointless.

    Args:
        gone: the nodes that leave.
        seconds: deadline of a drain.
    """
    known = registry.read(workspace)
    names = frozenset(node.name for node in gone)
    unrecorded = tuple(node for node in gone if node.name not in known)
    return Removal(names if unreachable else frozenset(), seconds, force, unrecorded, insist=names)


def require_fit(cluster: Cluster, workspace: Workspace, node: Node) -> None:
    """Look at the machine that is to come, before anything happens to the one that is to go.

    Raises:
        PreflightUnfit: it cannot take the other's place.
    """
    with Connections(cluster, workspace) as connections:
        facts, unreachable = gather(cluster, connections, nodes=[node])
    preflight.require_fit(preflight.check(cluster, facts, unreachable, cluster_id=preflight.cluster_id_of(workspace)))


def from_the_cluster(name: str, loaded: Cluster, workspace: Workspace, known: Mapping[str, Node], *, given_up: bool) -> Node:
    """A machine that is in neither cluster.yaml nor on record, as the cluster itself knows it.

    Raises:
        BadInput: nobody knows it; or it could not be asked, and is not said to be gone.
    """
    if not workspace.was_used:
        raise unknown(name, loaded, known)
    keys = pki.read(workspace.pki, now=dt.datetime.now(dt.UTC))
    with Connections(loaded, workspace) as connections, ClusterApi(loaded, workspace, connections, keys) as api:
        listed = listed_by_any(loaded.etcd_members, lambda member: EtcdApi(member, workspace, connections, keys))
        node = stranger(name, api, listed)
    if node is None:
        raise unknown(name, loaded, known)
    if not given_up:
        raise BadInput(
            f"{name} ({node.address}) was not made from this workspace, so it cannot be asked and wiped from here",
            hint=f"stop it yourself, then take it out of the cluster: `provisioner node remove {name} --unreachable`",
        )
    return node
