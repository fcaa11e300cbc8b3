"""Puts a backup's data in the place of a cluster's, on the machines of cluster.yaml.

INPUTS: a backup that was opened and is this cluster's; machines on which etcd and the control plane are installed. OUTPUTS: etcd
with the keys of the backup as a new cluster of all members, API servers that serve it, Nodes that are those of cluster.yaml.

Every member's data is made ready beside the old one first, where nothing is changed yet. Then, with no API server running
(https://etcd.io/docs/v3.6/op-guide/recovery/), all members change over together; the old data stays beside the new one until the
next restore. Revisions go on from far above any that a client has seen, and all before are compacted: whoever watches lists anew.
"""

from __future__ import annotations

import datetime as dt
import json
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from typing import Any

from provisioner import inventory, plays, preflight, registry, runner, topology
from provisioner.backup.archive import SNAPSHOT, Opened
from provisioner.cluster_api import ClusterApi, ClusterApiError
from provisioner.config import Node, Role
from provisioner.errors import BadInput, PreflightUnfit, ProvisionerError
from provisioner.etcd_api import EtcdApi, EtcdError
from provisioner.facts import ETCD_DATA, gather
from provisioner.session import Session
from provisioner.ssh import parallel
from provisioner.wait import NotYet, wait_until
from provisioner.workspace import Workspace, write_atomic

# Seconds until every member has the same leader, and until every API server is ready and every Node's kubelet has reported.
MEMBERS_SECONDS = 120.0
READY_SECONDS = 300.0
# The new data, the snapshot it is made of, and room for etcd to work in.
_ROOM = 3
_MIB = 1 << 20
_SUBNET_FILE = "/run/flannel/subnet.env"


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. ``api_seconds``: without any API server; ``seconds``: until every Node was Ready.

    ``nodes_deleted`` were in the backup and are no machines of cluster.yaml; ``nodes_registered`` are, and were not in it.
    """

    api_seconds: float
    seconds: float
    nodes_deleted: tuple[str, ...]
    nodes_registered: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """For --json."""
        return {
            "apiSeconds": round(self.api_seconds, 1),
            "seconds": round(self.seconds, 1),
            "nodesDeleted": list(self.nodes_deleted),
            "nodesRegistered": list(self.nodes_registered),
        }


def require_fit(session: Session, opened: Opened) -> dict[str, str]:
    """Refuse before anything is touched; returns the Python of each machine.

    Raises:
        BadInput: the backup is of another version of Kubernetes, or machines wait to be taken out of the cluster.
        PreflightUnfit: a control plane or a member does not answer, is another cluster's, has no etcd, or no room.
    """
    cluster, manifest = session.cluster, opened.manifest
    if manifest.etcd is None:
        raise BadInput(
            "only a workspace is in it, and no data of etcd; nothing was changed",
            hint="`provisioner workspace import` reads it; a backup is made by `provisioner etcd snapshot`",
        )
    if manifest.kubernetes.rpartition(".")[0] != cluster.kubernetes.version.rpartition(".")[0]:
        raise BadInput(
            f"the backup is of Kubernetes {manifest.kubernetes}, cluster.yaml says {cluster.kubernetes.version}; "
            "nothing was changed",
            hint=f"set `kubernetes.version` to {manifest.kubernetes}'s minor version, `provisioner apply`, and restore then",
        )
    if left := registry.left_out(cluster, registry.read(session.workspace)):
        raise BadInput(
            f"{', '.join(node.name for node in left)}: not in cluster.yaml, but not let go yet; nothing was changed",
            hint="`provisioner apply` lets them go; where the cluster is dead, put them back into cluster.yaml",
        )
    nodes = _concerned(session)
    facts, unreachable = gather(cluster, session.connections, nodes=nodes)
    problems = [error.message for error in unreachable.values()]
    identity = preflight.cluster_id_of(session.workspace)
    needed = opened.files[SNAPSHOT].stat().st_size * _ROOM // _MIB + 1
    for node in nodes:
        if node.name not in facts:
            continue
        marker = facts[node.name].marker or {}
        if marker.get("id") != identity:
            problems.append(f"{node.name}: not a machine of this cluster, by its marker")
        elif node.has(Role.ETCD) and facts[node.name].disk_free_mib.get(ETCD_DATA, 0) < needed:
            problems.append(f"{node.name}: {ETCD_DATA} has no room for {needed} MiB")
    if problems:
        raise PreflightUnfit(
            f"{len(problems)} reason{'s' if len(problems) > 1 else ''} not to restore; nothing was changed",
            details=tuple(problems),
            hint="every member of etcd and every control plane takes part: bring them back, or take a machine that is gone for good"
            " out of cluster.yaml; on new machines, `provisioner apply` comes first",
        )
    return {name: one.python for name, one in facts.items()}


def _concerned(session: Session) -> tuple[Node, ...]:
    return tuple(node for node in session.cluster.nodes if node.has(Role.ETCD) or node.has(Role.CONTROL_PLANE))


def restore(session: Session, opened: Opened, interpreters: Mapping[str, str]) -> Restored:
    """Do it. Destroys what etcd holds; whoever calls it has asked.

    Raises:
        ProvisionerError: with machine and reason; run again, it goes on.
    """
    began = time.monotonic()
    stamp = _begin(session.workspace)
    session.display.start("data")
    _play(session, ("restore_prepare",), opened, interpreters, stamp)
    session.display.finish("data")
    session.display.start("change")
    gone = time.monotonic()
    _at_nodes(session, lambda node: session.connections.run(node, "systemctl stop kubelet", timeout=90))
    _play(session, ("restore",), opened, interpreters, stamp)
    wait_until("every member of etcd follows one leader", lambda: _whole(session), seconds=MEMBERS_SECONDS, retry_on=(EtcdError,))
    with session.api() as api:
        wait_until("every API server ready", lambda: _serving(session, api), seconds=READY_SECONDS)
        away = time.monotonic() - gone
        session.display.finish("change")
        session.display.start("nodes")
        deleted, registered = _nodes(session, api)
        session.display.finish("nodes")
    session.workspace.restoring.unlink(missing_ok=True)
    return Restored(away, time.monotonic() - began, deleted, registered)


def _begin(workspace: Workspace) -> str:
    """Put the restore on record; returns the time by which the old data is called, of a restore that was cut short the same."""
    try:
        stamp = str(json.loads(workspace.restoring.read_text())["stamp"])
    except (OSError, ValueError, KeyError, TypeError):
        stamp = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}"
    write_atomic(workspace.restoring, json.dumps({"command": f"provisioner {shlex.join(sys.argv[1:])}", "stamp": stamp}))
    return stamp


def _play(session: Session, playbooks: tuple[str, ...], opened: Opened, interpreters: Mapping[str, str], stamp: str) -> None:
    cluster, manifest = session.cluster, opened.manifest
    members = cluster.etcd_members
    reach = {node.name: inventory.reach(cluster, session.workspace, node, interpreters[node.name]) for node in _concerned(session)}
    for node in members:
        reach[node.name] |= {"restore_peer_url": topology.etcd_peer_url(node)}
    groups = {
        "restore_members": {
            "hosts": {node.name: {} for node in members},
            "vars": {
                "restore_snapshot": str(opened.files[SNAPSHOT]),
                "restore_aside": f"{ETCD_DATA}/before-restore-{stamp}",
                "restore_initial_cluster": ",".join(f"{node.name}={topology.etcd_peer_url(node)}" for node in members),
                # a token of its own: a member with the data of before is another cluster's, and is not let in
                "restore_token": f"{cluster.name}-{manifest.cluster_id}-{session.log.name}",
            },
        },
        "restore_planes": {"hosts": {node.name: {} for node in cluster.control_planes}},
    }
    path = inventory.save(session.workspace, "to_restore.json", {"all": {"hosts": reach, "children": groups}})
    tally = runner.play(
        playbooks,
        inventory=path,
        variables={},
        log=session.log,
        sockets=session.sockets,
        hosts=len(reach),
        on_step=session.display.step,
    )
    if tally.failures:
        first = tally.failures[0]
        raise ProvisionerError(
            f"{first.host}: {first.task or 'connect'}: {first.reason.splitlines()[0]}",
            details=(*(line for one in tally.failures for line in plays.lines_of(one)), f"the whole log: {session.log}"),
            hint="run the restore again: it goes on from here, and until it is through `provisioner apply` is refused",
        )


def _whole(session: Session) -> None:
    def look(node: Node) -> int:
        with EtcdApi(node, session.workspace, session.connections, session.the_pki()) as etcd:
            return etcd.status().leader

    found = parallel(session.cluster.etcd_members, look)
    if errors := [error.message for error in found.values() if isinstance(error, ProvisionerError)]:
        raise NotYet("; ".join(errors))
    if len(set(found.values())) != 1 or 0 in found.values():
        raise NotYet("no leader that all members follow")


def _serving(session: Session, api: ClusterApi) -> None:
    for node in session.cluster.control_planes:
        try:
            answer = api.request_to(node, "/readyz")
        except ClusterApiError as error:
            raise NotYet(error.message) from None
        if answer.status != 200:
            raise NotYet(f"{node.name}: /readyz gave {answer.status}")


def _nodes(session: Session, api: ClusterApi) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Nodes as cluster.yaml has them: those of the backup that are no machines any more go, missing ones are registered anew."""
    expected = [node.name for node in session.cluster.kubernetes_nodes]
    found = {node["metadata"]["name"]: node for node in api.items("/api/v1/nodes")}
    deleted, missing = tuple(sorted(found.keys() - set(expected))), tuple(sorted(set(expected) - found.keys()))
    for name in deleted:
        api.delete({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    _free_leases(api)
    since = dt.datetime.now(dt.UTC)
    ranges = {name: str((node.get("spec") or {}).get("podCIDR", "")) for name, node in found.items()}
    _at_nodes(session, lambda node: _start(session, node, ranges.get(node.name, "")))

    def ready() -> None:
        waiting = [_why_not_ready(api, name, since) for name in expected]
        if late := [line for line in waiting if line]:
            raise NotYet("; ".join(late))

    wait_until(
        "every Node Ready", ready, seconds=READY_SECONDS, every=0.5, retry_on=(ClusterApiError,), hint="`provisioner status`"
    )
    return deleted, missing


def _free_leases(api: ClusterApi) -> None:
    """Leases of the backup are nobody's: without this, controllers would wait for their holders to come back."""
    for name in ("kube-controller-manager", "kube-scheduler"):
        lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": "kube-system"}}
        api.delete(lease)


def _start(session: Session, node: Node, pod_range: str) -> None:
    """Start a kubelet, which starts pods, and registers its Node where it is missing; before it the network, where the Node has
    another range of addresses than its machine: flannel reads it once, and a bridge keeps its own."""
    text = session.connections.run(node, f"cat {_SUBNET_FILE} 2>/dev/null").text
    own = re.search(r"^FLANNEL_SUBNET=(\S+)$", text, re.MULTILINE)
    if own and (not pod_range or ip_interface(own[1]).network != ip_network(pod_range)):
        session.display.say(f"{node.name}: pods get addresses of {pod_range or 'a new range'}, no more of {own[1]}")
        # without the old configuration no pod starts before flannel has written the new one
        stale = f"{_SUBNET_FILE} /etc/cni/net.d/10-flannel.conflist"
        session.connections.run(node, f"rm -f {stale}; ip link delete cni0; systemctl restart --no-block flanneld")
    session.connections.run(node, "systemctl start kubelet", timeout=90)


def _at_nodes(session: Session, work: Callable[[Node], object]) -> None:
    """Something on every node at once; one that does not answer is named, and left as it is."""
    for name, error in parallel(session.cluster.kubernetes_nodes, work).items():
        if isinstance(error, ProvisionerError):
            session.display.say(f"warning: {name}: {error.message}")


def _why_not_ready(api: ClusterApi, name: str, since: dt.datetime) -> str:
    """Why a Node is not Ready by the word of its kubelet, spoken after the restore; "" where it is."""
    lease: dict[str, Any] = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name, "namespace": "kube-node-lease"},
    }
    node = api.get({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    if node is None:
        return f"{name}: not registered"
    renewed = ((api.get(lease) or {}).get("spec") or {}).get("renewTime", "")
    if not renewed or dt.datetime.fromisoformat(renewed) < since:
        return f"{name}: its kubelet has not reported yet"
    conditions = {one["type"]: one["status"] for one in (node.get("status") or {}).get("conditions") or ()}
    return "" if conditions.get("Ready") == "True" else f"{name}: not Ready"
