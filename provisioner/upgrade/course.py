"""The look at what runs, and what an upgrade would make of it. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from provisioner import leave, members
from provisioner.cluster_api import ClusterApi, ClusterApiError
from provisioner.config import Cluster, Node
from provisioner.errors import ApplyError, BadInput, ProvisionerError
from provisioner.inventory import is_vital
from provisioner.session import Session
from provisioner.ssh import parallel
from provisioner.steps import not_ready
from provisioner.upgrade import deprecated, stages, workloads
from provisioner.upgrade.skew import Hop, Running, Version, hops
from provisioner.upgrade.workloads import Workload

_MEND = "`provisioner status` says what is wrong; bring it back first"


@dataclass(frozen=True, slots=True)
class Course:
    """An upgrade to be.

    Attributes:
        running: what runs now.
        hops: the versions to go through.
        waves: machines that are drained together, in order.
        deprecated: APIs that were asked for and are gone in the new version.
        workloads: every workload as it is; those that are whole must be so again after each wave.
        aside: workers that are not Ready and stay as they are, with the reason.
    """

    running: Running
    hops: tuple[Hop, ...]
    waves: tuple[tuple[Node, ...], ...]
    deprecated: tuple[str, ...] = ()
    workloads: Mapping[str, Workload] = field(default_factory=dict)
    aside: Mapping[str, ProvisionerError] = field(default_factory=dict)

    @property
    def target(self) -> str:
        """The version at the end."""
        return str(self.hops[-1].target)

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "running": {
                "apiservers": {name: str(version) for name, version in self.running.apiservers.items()},
                "kubelets": {name: str(version) for name, version in self.running.kubelets.items()},
                "etcd": {name: str(version) for name, version in self.running.etcd.items()},
            },
            "hops": [str(hop.target) for hop in self.hops],
            "waves": [[node.name for node in wave] for wave in self.waves],
            "deprecatedApis": list(self.deprecated),
            "notReady": [str(one) for one in workloads.broken(self.workloads)],
            "setAside": list(self.aside),
        }


def chart(session: Session, *, at_once: int | None) -> Course:
    """What it takes to bring a cluster to the version of its cluster.yaml.

    Args:
        session: with the PKI.
        at_once: workers that are drained together; default: a tenth of them.

    Raises:
        BadInput: the skew policy forbids it, or a version cannot be had.
        ApplyError: a control plane or a member of etcd is not well; no upgrade begins like that.
        ClusterApiError: no control plane answers.
    """
    cluster, target = session.cluster, Version.of(session.cluster.kubernetes.version)
    releases = {version: session.lock.version_of("etcd", version) for version in session.lock.kubernetes_versions}
    # as for `apply`: a run that was cut short may have left API servers without the binding that makes `admin` one
    with session.api(leaf="break-glass") as api:
        nodes = {node["metadata"]["name"]: node for node in api.items("/api/v1/nodes", timeout=30)}
        unready = _unready(cluster, nodes)
        servers, silent = _answers(parallel(cluster.control_planes, lambda node: served(api, node)))
        etcd, dumb = _answers(parallel(cluster.etcd_members, lambda node: _member(session, node)))
        kubelets = {node.name: _kubelet(nodes[node.name]) for node in cluster.kubernetes_nodes if node.name not in unready}
        running = Running(servers, kubelets, etcd)
        _refuse_broken(session, running, unready, (*silent, *dumb))
        way = hops(running, target, releases)
        if not way and any(leave.is_upgraded(nodes[node.name]) for node in cluster.kubernetes_nodes if node.name in nodes):
            # killed on the last machine, or one that could not be put back
            way = (Hop(target),)
        if not way:
            return Course(running, (), ())
        workers = [node for node in cluster.kubernetes_nodes if not is_vital(node)]
        waves = tuple(
            tuple(node for node in wave if node.name not in unready)
            for wave in stages.waves(cluster, at_once or stages.default_wave(workers))
        )
        return Course(
            running,
            way,
            tuple(wave for wave in waves if wave),
            deprecated.asked_for(api, cluster.control_planes, target),
            workloads.look(api),
            unready,
        )


def _unready(cluster: Cluster, nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, ProvisionerError]:
    """Machines whose Node is not Ready, with the reason."""
    why = {node.name: not_ready(nodes.get(node.name)) for node in cluster.kubernetes_nodes}
    return {name: ApplyError(f"{name}: its Node is not Ready: {reason}", hint=_MEND) for name, reason in why.items() if reason}


def _answers(asked: Mapping[str, Version | ProvisionerError]) -> tuple[dict[str, Version], tuple[ProvisionerError, ...]]:
    """Those that said their version, and the errors of the others."""
    said = {name: value for name, value in asked.items() if not isinstance(value, ProvisionerError)}
    return said, tuple(value for value in asked.values() if isinstance(value, ProvisionerError))


def _refuse_broken(
    session: Session, running: Running, unready: Mapping[str, ProvisionerError], silent: Iterable[ProvisionerError]
) -> None:
    """No upgrade begins with a control plane or a member that is not well; one that has begun goes on without it, for nothing else
    leads out of mixed versions.

    Raises:
        ApplyError: names what is not well.
    """
    cluster = session.cluster
    vital = [*(error for name, error in unready.items() if is_vital(cluster.node(name))), *silent]
    workers = [node.name for node in cluster.kubernetes_nodes if not is_vital(node)]
    if workers and set(workers) <= unready.keys() and len(workers) > 1:
        vital += [unready[name] for name in workers]
    if not vital:
        return
    if running.mixed:
        for error in vital:
            session.display.say(f"warning: {error.message}")
        return
    raise ApplyError(f"{vital[0].message}; nothing was changed", hint=_MEND, details=tuple(error.message for error in vital[1:]))


def served(api: ClusterApi, node: Node) -> Version:
    """The version that one API server says it is.

    Raises:
        ClusterApiError: it does not answer.
    """
    answer = api.request_to(node, "/version")
    text = str(answer.json().get("gitVersion") or "")
    try:
        return Version.of(text)
    except ValueError:
        raise ClusterApiError(f"{node.name}: its API server calls its version {text!r}", status=answer.status) from None


def _kubelet(node: Mapping[str, Any]) -> Version:
    text = str(node["status"]["nodeInfo"]["kubeletVersion"])
    try:
        return Version.of(text)
    except ValueError:
        raise BadInput(
            f"{node['metadata']['name']}: its kubelet calls its version {text!r}", hint="`provisioner node replace` makes it anew"
        ) from None


def _member(session: Session, node: Node) -> Version:
    with members.api_of(session, node) as etcd:
        return Version.of(etcd.status().version)
