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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface, ip_network
from typing import Any

from provisioner import inventory, objects, plays, preflight, registry, runner, steps, topology
from provisioner.backup.archive import SNAPSHOT, Opened
from provisioner.backup.scheduled import secrets_fingerprint
from provisioner.certs import published
from provisioner.cluster_api import ClusterApi, ClusterApiError
from provisioner.config import Node, Role
from provisioner.errors import BadInput, PreflightUnfit, ProvisionerError, VerifyFailed, WaitTimeout
from provisioner.etcd_api import EtcdApi, EtcdError
from provisioner.facts import ETCD_DATA, gather
from provisioner.inventory import is_vital
from provisioner.pki import rotation
from provisioner.render.layout import binary_path
from provisioner.session import Session
from provisioner.ssh import parallel
from provisioner.wait import NotYet, wait_until
from provisioner.workspace import Workspace, write_atomic

# Seconds until every member has the same leader, and until every API server is ready and every Node's kubelet has reported.
MEMBERS_SECONDS = 120.0
READY_SECONDS = 300.0
COMMAND_SECONDS = 90.0
SETTLE_SECONDS = 120.0
# The new data, the snapshot it is made of, and room for etcd to work in.
_ROOM = 3
_MIB = 1 << 20
_PER_SECOND = 1000
_LEAST = 1_000_000_000
_ETCD = ("etcd",)
_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
_AGAIN = "run the restore again: it goes on from here, and until it is through `provisioner apply` is refused"
# What earlier restores have put aside, once the new data serves.
_FORGET = "find /var/lib/etcd -maxdepth 1 -name 'before-restore-*' ! -name 'before-restore-{stamp}' -exec rm -rf {{}} +"
_SUBNET_FILE = "/run/flannel/subnet.env"


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. ``api_seconds``: without any API server; ``seconds``: until every Node was Ready.

    ``nodes_deleted`` were in the backup and are no machines of cluster.yaml; ``nodes_registered`` are, and were not in it;
    ``nodes_silent`` did not answer.
    """

    api_seconds: float
    seconds: float
    nodes_deleted: tuple[str, ...]
    nodes_registered: tuple[str, ...]
    nodes_silent: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """For --json."""
        return {
            "apiSeconds": round(self.api_seconds, 1),
            "seconds": round(self.seconds, 1),
            "nodesDeleted": list(self.nodes_deleted),
            "nodesRegistered": list(self.nodes_registered),
            "nodesSilent": list(self.nodes_silent),
        }


def require_fit(session: Session, opened: Opened) -> dict[str, str]:
    """Refuse before anything is touched; returns the Python of each machine.

    Raises:
        BadInput: the backup is of another version of Kubernetes, or has no data in it.
        PreflightUnfit: a control plane or a member does not answer, is another cluster's, has no etcd, or no room; or one that was
            taken out of cluster.yaml still serves.
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
    if manifest.is_data and manifest.secrets_key != secrets_fingerprint(session.the_pki()):
        raise BadInput(
            "the Secrets in it are encrypted with another key than this workspace has; nothing was changed",
            hint="take a workspace of the time of the backup: `provisioner workspace export`, or any backup that is not scheduled",
        )
    left = [node for node in registry.left_out(cluster, registry.read(session.workspace)) if is_vital(node)]
    nodes = [node for node in cluster.nodes if is_vital(node)]
    facts, unreachable = gather(cluster, session.connections, nodes=[*nodes, *left])
    problems = [unreachable[node.name].message for node in nodes if node.name in unreachable]
    problems += [
        # one that is silent is another etcd cluster's after this, and is not let in
        f"{node.name}: not in cluster.yaml any more, but it answers and may serve the data of before"
        for node in left
        if node.name in facts
    ]
    needed = opened.files[SNAPSHOT].stat().st_size * _ROOM // _MIB + 1
    identity = preflight.cluster_id_of(session.workspace)
    for node in nodes:
        if node.name not in facts:
            continue
        if (facts[node.name].marker or {}).get("id") != identity:
            problems.append(f"{node.name}: not a machine of this cluster, by its marker")
        elif node.has(Role.ETCD) and facts[node.name].disk_free_mib.get(ETCD_DATA, 0) < needed:
            problems.append(f"{node.name}: {ETCD_DATA} has no room for {needed} MiB")
        else:
            problems += _not_installed(session, node)
    if problems:
        raise PreflightUnfit(
            f"{len(problems)} reason{'s' if len(problems) > 1 else ''} not to restore; nothing was changed",
            details=tuple(problems),
            hint="every member of etcd and every control plane of cluster.yaml takes part: bring them back, or take one that is"
            " gone for good out of cluster.yaml; on new machines, `provisioner apply` comes first",
        )
    return {node.name: facts[node.name].python for node in nodes}


def _not_installed(session: Session, node: Node) -> list[str]:
    """What a restore needs of a machine and does not find there."""
    units = [*(_ETCD if node.has(Role.ETCD) else ()), *(_PLANE if node.has(Role.CONTROL_PLANE) else ())]
    files = [f"/etc/systemd/system/{unit}.service" for unit in units]
    files += [binary_path("etcdutl")] if node.has(Role.ETCD) else []
    missing = session.connections.run(node, f"for f in {' '.join(files)}; do [ -e $f ] || echo $f; done").text.split()
    return [f"{node.name}: {', '.join(missing)}: not there"] if missing else []


def restore(session: Session, opened: Opened, interpreters: Mapping[str, str]) -> Restored:
    """Do it. Destroys what etcd holds; whoever calls it has asked.

    Raises:
        ProvisionerError: with machine and reason; run again, it goes on.
    """
    began = time.monotonic()
    session.display.start("data")
    _play(session, "restore_prepare", opened, interpreters)
    session.display.finish("data")
    session.display.start("change")
    session.workspace.record("phase", phase="change", state="started")
    gone = time.monotonic()
    stamp = _begin(session.workspace)
    silent = _at_nodes(session, lambda node: _must(session, node, "systemctl stop kubelet"))
    _play(session, "restore", opened, interpreters, stamp)
    # not by Ansible, which would wait for a unit that waits for its peers
    _at(session, session.cluster.etcd_members, f"systemctl start --no-block {' '.join(_ETCD)}")
    wait_until(
        "every member of etcd follows one leader",
        lambda: _whole(session),
        seconds=MEMBERS_SECONDS,
        retry_on=(EtcdError,),
        hint=f"look at `journalctl -u etcd` on the members. {_AGAIN}",
    )
    _at(session, session.cluster.control_planes, f"systemctl start --no-block {' '.join(_PLANE)}")
    with session.api() as api:
        wait_until("every API server ready", lambda: _serving(session, api), seconds=READY_SECONDS, hint=_AGAIN)
        away = time.monotonic() - gone
        # from here on the data is of one time, and `apply` does what is left
        session.workspace.restoring.unlink(missing_ok=True)
        session.display.finish("change")
        session.workspace.record("phase", phase="change", state="done")
        session.display.start("nodes")
        _tell_cas(session, api, manifest_ca=opened.manifest.ca_fingerprint)
        _at(session, session.cluster.etcd_members, _FORGET.format(stamp=stamp))
        deleted, registered, late = _nodes(session, api, silent)
        session.display.finish("nodes")
    return Restored(away, time.monotonic() - began, deleted, registered, late)


def _tell_cas(session: Session, api: ClusterApi, *, manifest_ca: str) -> None:
    """A backup from before a CA was replaced tells the old one, which pods that start now would read, and extension API servers
    believe."""
    if manifest_ca in rotation.former(session.workspace.pki):
        published.tidy(api, session.the_pki())
        published.bring_about(api, session.the_pki())


def _at(session: Session, nodes: Sequence[Node], command: str) -> None:
    """A command on machines at once.

    Raises:
        ProvisionerError: it failed on one; names it.
    """
    for result in parallel(nodes, lambda node: _must(session, node, command)).values():
        if isinstance(result, ProvisionerError):
            raise ProvisionerError(result.message, hint=_AGAIN)


def _must(session: Session, node: Node, command: str) -> None:
    done = session.connections.run(node, command, timeout=COMMAND_SECONDS)
    if done.code:
        raise ProvisionerError(
            f"{node.name}: `{command}` failed: {done.complaint[-300:]}", hint="run the restore again: it goes on"
        )


def prove(session: Session) -> None:
    """The proof of `apply`, tried for a while: what watches the API in pods, CoreDNS first, tries to come back at longer and longer
    intervals while there is no API server, of half a minute in the end.

    Raises:
        VerifyFailed: it fails still.
    """
    try:
        wait_until("the proof", lambda: steps.prove(session), seconds=SETTLE_SECONDS, every=3, retry_on=(VerifyFailed,))
    except WaitTimeout:
        steps.prove(session)


def _begin(workspace: Workspace) -> str:
    """Put the restore on record; returns the time by which the old data is called, of a restore that was cut short the same."""
    try:
        stamp = str(json.loads(workspace.restoring.read_text())["stamp"])
    except (OSError, ValueError, KeyError, TypeError):
        stamp = f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}"
    write_atomic(workspace.restoring, json.dumps({"command": f"provisioner {shlex.join(sys.argv[1:])}", "stamp": stamp}))
    return stamp


def _play(session: Session, playbook: str, opened: Opened, interpreters: Mapping[str, str], stamp: str = "") -> None:
    cluster, manifest = session.cluster, opened.manifest
    members, now = cluster.etcd_members, int(time.time())
    known = manifest.etcd.revision if manifest.etcd else 0
    reach = {
        node.name: inventory.reach(cluster, session.workspace, node, interpreters[node.name])
        for node in cluster.nodes
        if is_vital(node)
    }
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
                "restore_bump": bump(known, now),
            },
        },
        "restore_planes": {"hosts": {node.name: {} for node in cluster.control_planes}},
    }
    path = inventory.save(session.workspace, "to_restore.json", {"all": {"hosts": reach, "children": groups}})
    tally = runner.play(
        (playbook,),
        inventory=path,
        variables={},
        log=session.log,
        sockets=session.sockets,
        hosts=len(reach),
        on_step=session.display.step,
    )
    nothing = "nothing that runs was touched; where the snapshot itself is refused, use another backup"
    plays.refuse_failures(tally, session, hint=_AGAIN if stamp else nothing)


def bump(revision: int, now: int) -> int:
    """How far revisions are moved on: to a thousand for each second since 1970, which no store has written, and no earlier restore
    has come to. So none comes twice, however often and in whatever order backups are restored. Pure.

    Args:
        revision: of the snapshot, at least.
        now: seconds since 1970.
    """
    return max(now * _PER_SECOND - revision, _LEAST)


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
        steps.ready_server(api, node)


def _nodes(session: Session, api: ClusterApi, silent: Collection[str]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Nodes as cluster.yaml has them: those of the backup that are no machines any more go, missing ones are registered anew.

    Returns:
        the deleted, the registered, and those whose kubelet did not answer, for which nobody waits.
    """
    expected = [node.name for node in session.cluster.kubernetes_nodes]
    answer = wait_until(
        "the Nodes",
        lambda: api.items("/api/v1/nodes"),
        seconds=READY_SECONDS,
        retry_on=(ClusterApiError,),
        hint="`provisioner apply`",
    )
    found = {node["metadata"]["name"]: node for node in answer}
    deleted, missing = tuple(sorted(found.keys() - set(expected))), tuple(sorted(set(expected) - found.keys()))
    wait_until(
        "what is nobody's any more is gone",
        lambda: _clear(api, deleted),
        seconds=READY_SECONDS,
        retry_on=(ClusterApiError,),
        hint="`provisioner apply`",
    )
    before = {name: _heartbeat(node) for name, node in found.items()}
    ranges = {name: str((node.get("spec") or {}).get("podCIDR", "")) for name, node in found.items()}
    late = tuple(sorted({*silent, *_at_nodes(session, lambda node: _start(session, node, ranges.get(node.name, "")))}))

    def ready() -> None:
        nodes = {node["metadata"]["name"]: node for node in api.items("/api/v1/nodes")}
        waiting = {name: _why_not_ready(nodes.get(name), before.get(name, "")) for name in expected if name not in late}
        if why := [f"{name}: {reason}" for name, reason in waiting.items() if reason]:
            raise NotYet("; ".join(why))

    wait_until(
        "every Node Ready", ready, seconds=READY_SECONDS, every=0.5, retry_on=(ClusterApiError,), hint="`provisioner status`"
    )
    registered = tuple(name for name in missing if name not in late)
    for obj in objects.node_labels(session.cluster):
        # a kubelet may not give its Node the label of its role
        if obj["metadata"]["name"] in registered:
            api.apply(obj)
    return deleted, registered, late


def _clear(api: ClusterApi, nodes: Sequence[str]) -> None:
    """Nodes that are no machines any more, and leases of controllers that do not run any more: others would wait for them."""
    for name in nodes:
        api.delete({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    for name in ("kube-controller-manager", "kube-scheduler"):
        api.delete(
            {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name, "namespace": "kube-system"}}
        )


def _start(session: Session, node: Node, pod_range: str) -> None:
    """Start a kubelet, which starts pods, and registers its Node where it is missing; and what else looks at the API on a node
    afresh, for the Node of the backup may have another range of addresses, and other words of flannel's, than the machine has."""
    agents = ["kube-proxy"]
    if session.cluster.network.plugin == "flannel":
        agents.append("flanneld")
        text = session.connections.run(node, f"cat {_SUBNET_FILE} 2>/dev/null").text
        own = re.search(r"^FLANNEL_SUBNET=(\S+)$", text, re.MULTILINE)
        if own and (not pod_range or ip_interface(own[1]).network != ip_network(pod_range)):
            session.display.say(f"{node.name}: pods get addresses of {pod_range or 'a new range'}, no more of {own[1]}")
            # flannel writes both anew, and no pod starts before; a bridge keeps its address for ever
            session.connections.run(node, f"rm -f {_SUBNET_FILE} /etc/cni/net.d/10-flannel.conflist; ip link delete cni0")
    _must(session, node, f"systemctl start --no-block kubelet && systemctl restart {' '.join(agents)}")


def _at_nodes(session: Session, work: Callable[[Node], object]) -> tuple[str, ...]:
    """Something on every node at once; returns those on which it failed, which are left as they are."""
    done = parallel(session.cluster.kubernetes_nodes, work)
    errors = {name: error for name, error in done.items() if isinstance(error, ProvisionerError)}
    for error in errors.values():
        session.display.say(f"warning: {error.message}")
    return tuple(errors)


def _why_not_ready(node: Mapping[str, Any] | None, before: str) -> str:
    """Why a Node is not Ready by its kubelet's new word; "" where it is. In the backup it may have been, at ``before``. Pure."""
    # not by the clock: the machine's may differ from this one's
    if node is not None and _heartbeat(node) == before:
        return "its kubelet has not reported yet"
    return steps.not_ready(node)


def _heartbeat(node: Mapping[str, Any]) -> str:
    """When the kubelet told last whether its Node is Ready; "" where it never has."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    return next((str(one.get("lastHeartbeatTime", "")) for one in conditions if one["type"] == "Ready"), "")
