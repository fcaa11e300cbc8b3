"""One look at a whole cluster: every machine at a time, each question with a deadline, whatever is dead."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from provisioner.cluster_api import ClusterApi
from provisioner.config import Cluster, Node, Role
from provisioner.errors import ProvisionerError
from provisioner.ssh import Connections, parallel
from provisioner.status import etcd, kubernetes
from provisioner.status import machine as on_node
from provisioner.status.model import Apiserver, Machine, Proxy, Status, Vip
from provisioner.status.problems import problems
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from provisioner.pki import Pki

# Seconds. For each step of connecting: a SYN is sent again after 1 s, so one lost packet is forgiven.
CONNECT_SECONDS = 2.8
# For each question to a machine that is there; an apiserver whose etcd has no quorum takes 2 s to say so.
ANSWER_SECONDS = 3.5
UNREACHED = "its machine cannot be reached"


@dataclass(frozen=True, slots=True)
class _Seen:
    """What came of one machine."""

    machine: Machine
    answer: on_node.Answer | str = UNREACHED
    etcd: etcd.View | str = UNREACHED
    apiserver: Apiserver | None = None


@dataclass(frozen=True, slots=True)
class _Means:
    """What looking takes. ``api`` is being made while the machines are connected to: its import takes a second."""

    cluster: Cluster
    workspace: Workspace
    connections: Connections
    pki: Pki
    api: Future[ClusterApi]
    pool: ThreadPoolExecutor


def look(cluster: Cluster, workspace: Workspace, connections: Connections, pki: Pki) -> Status:
    """Ask every machine, every etcd member, every apiserver, then the API. Changes nothing.

    Args:
        cluster: what shall be.
        workspace: the controller's files.
        connections: made with ``seconds=CONNECT_SECONDS``, lest a dead machine make the look slow.
        pki: the driver's certificates.
    """
    begin = time.monotonic()
    with ThreadPoolExecutor(max_workers=64, thread_name_prefix="look") as pool:
        api = pool.submit(ClusterApi, cluster, workspace, connections, pki)
        means = _Means(cluster, workspace, connections, pki, api, pool)
        try:
            results = parallel(cluster.nodes, lambda node: _ask(node, means))
            seen = {name: result for name, result in results.items() if isinstance(result, _Seen)}
            told = _ask_api(seen, means)
        finally:
            if api.exception() is None:
                api.result().close()
    status = _assemble(cluster, seen, told)
    return replace(status, problems=problems(status), seconds=round(time.monotonic() - begin, 2))


def _ask(node: Node, means: _Means) -> _Seen:
    """Everything that one machine can tell. Never raises: what it does not tell is said in its place."""
    base = Machine(node.name, node.address, tuple(str(role) for role in node.roles), reachable=False)
    try:
        means.connections.connect(node)
    except ProvisionerError as error:
        # whoever reads it sees machine and address beside it
        why = re.sub(rf"^{re.escape(node.name)}( \([^)]*\))?: ", "", error.message)
        return _Seen(replace(base, error=why, remedy=error.hint), apiserver=_unasked(node))
    # side by side: a service that hangs must not keep the others from being asked in time
    member: Future[etcd.View] | None = None
    server: Future[Apiserver] | None = None
    if node.has(Role.ETCD):
        member = means.pool.submit(etcd.ask, node, means.workspace, means.connections, means.pki, seconds=ANSWER_SECONDS)
    if node.has(Role.CONTROL_PLANE):
        server = means.pool.submit(lambda: kubernetes.readiness(means.api.result(), node, seconds=ANSWER_SECONDS))
    answer: on_node.Answer | str
    try:
        answer = on_node.ask(means.cluster, node, means.connections, seconds=ANSWER_SECONDS)
    except ProvisionerError as error:
        answer = error.message
    view: etcd.View | str = ""
    try:
        view = member.result() if member else ""
    except ProvisionerError as error:
        view = error.message.removeprefix(f"{node.name}: ")
    skew = answer.clock_skew if isinstance(answer, on_node.Answer) else 0.0
    return _Seen(replace(base, reachable=True, clock_skew=skew), answer, view, server.result() if server else None)


def _unasked(node: Node) -> Apiserver | None:
    return Apiserver(node.name, ready=False, error=UNREACHED) if node.has(Role.CONTROL_PLANE) else None


def _ask_api(seen: Mapping[str, _Seen], means: _Means) -> kubernetes.Answer:
    servers = [one.apiserver for one in seen.values() if one.apiserver is not None and one.machine.reachable]
    if not servers:
        return kubernetes.Answer(error="no control plane can be reached")
    planes = {
        node.name: kubernetes.Plane(
            answer.hostname if isinstance(answer := seen[node.name].answer, on_node.Answer) else node.name,
            seen[node.name].machine.clock_skew,
        )
        for node in means.cluster.control_planes
    }
    return kubernetes.ask(means.cluster, means.api.result(), servers, planes, seconds=ANSWER_SECONDS)


def _assemble(cluster: Cluster, seen: Mapping[str, _Seen], told: kubernetes.Answer) -> Status:
    proxies = []
    for node in cluster.kubernetes_nodes:
        answer = seen[node.name].answer
        if isinstance(answer, on_node.Answer) and answer.proxy is not None:
            proxies.append(answer.proxy)
        elif isinstance(answer, str) and seen[node.name].machine.reachable:
            proxies.append(Proxy(node.name, error=answer))
    return Status(
        cluster=cluster.name,
        kubernetes_version=cluster.kubernetes.version,
        machines=tuple(one.machine for one in seen.values()),
        etcd=etcd.assemble(cluster, {node.name: seen[node.name].etcd for node in cluster.etcd_members}),
        apiservers=tuple(one.apiserver for one in seen.values() if one.apiserver is not None),
        leases=told.leases,
        nodes=told.nodes,
        proxies=tuple(proxies),
        vip=_vip(cluster, {name: one.answer for name, one in seen.items()}),
        backups=tuple(one.answer.backups for one in seen.values() if isinstance(one.answer, on_node.Answer) and one.answer.backups),
        api_error=told.error,
        stale=told.stale,
    )


def _vip(cluster: Cluster, answers: Mapping[str, on_node.Answer | str]) -> Vip | None:
    address = on_node.vip_of(cluster)
    if address is None:
        return None
    told = {name: answer.vip if isinstance(answer, on_node.Answer) else None for name, answer in answers.items()}
    planes = [node.name for node in cluster.control_planes]
    return Vip(address, tuple(name for name, held in told.items() if held), tuple(name for name in planes if told[name] is None))
