"""The look at what runs, and what an upgrade would make of it. Changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from provisioner import members
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
        aside = _unready(cluster, nodes)
        running = Running(
            {node.name: _served(api, node) for node in cluster.control_planes},
            {name: _kubelet(nodes[name]) for name in (node.name for node in cluster.kubernetes_nodes) if name not in aside},
            _members(session),
        )
        way = hops(running, target, releases)
        if not way:
            return Course(running, (), ())
        workers = [node for node in cluster.kubernetes_nodes if not is_vital(node)]
        waves = tuple(
            tuple(node for node in wave if node.name not in aside)
            for wave in stages.waves(cluster, at_once or stages.default_wave(workers))
        )
        return Course(
            running,
            way,
            tuple(wave for wave in waves if wave),
            deprecated.asked_for(api, cluster.control_planes, target),
            workloads.look(api),
            aside,
        )


def _unready(cluster: Cluster, nodes: Mapping[str, Mapping[str, Any]]) -> dict[str, ProvisionerError]:
    """Workers that cannot be upgraded now.

    Raises:
        ApplyError: one that is not well is more than a worker.
    """
    aside = {}
    for node in cluster.kubernetes_nodes:
        if why := not_ready(nodes.get(node.name)):
            error = ApplyError(f"{node.name}: its Node is not Ready: {why}", hint=_MEND)
            if is_vital(node):
                raise ApplyError(f"{error.message}; nothing was changed", hint=_MEND)
            aside[node.name] = error
    if len(aside) == len([node for node in cluster.kubernetes_nodes if not is_vital(node)]) > 1:
        raise ApplyError(
            "no worker is Ready; nothing was changed", hint=_MEND, details=tuple(error.message for error in aside.values())
        )
    return dict(aside)


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


def _served(api: ClusterApi, node: Node) -> Version:
    try:
        return served(api, node)
    except ClusterApiError as error:
        raise ApplyError(f"{error.message}; nothing was changed", hint=_MEND) from None


def _kubelet(node: Mapping[str, Any]) -> Version:
    text = str(node["status"]["nodeInfo"]["kubeletVersion"])
    try:
        return Version.of(text)
    except ValueError:
        raise BadInput(
            f"{node['metadata']['name']}: its kubelet calls its version {text!r}", hint="`provisioner node replace` makes it anew"
        ) from None


def _members(session: Session) -> dict[str, Version]:
    def version(node: Node) -> Version:
        with members.api_of(session, node) as etcd:
            return Version.of(etcd.status().version)

    found = parallel(session.cluster.etcd_members, version)
    for name, value in found.items():
        if isinstance(value, ProvisionerError):
            raise ApplyError(f"{name}: its member of etcd is not well: {value.message}; nothing was changed", hint=_MEND)
    return {name: value for name, value in found.items() if isinstance(value, Version)}
