"""Asks for everything on the page, side by side. Changes nothing; what does not answer is said in its place."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from provisioner import certs, timeline
from provisioner.artifacts.lock import load_lock
from provisioner.cluster_api import ClusterApi, message_of
from provisioner.config import Cluster
from provisioner.errors import ProvisionerError
from provisioner.pages import versions
from provisioner.pages.model import MachineVersions, Page, Pod
from provisioner.report import Report
from provisioner.runner import plays_of
from provisioner.share import PLAYBOOKS
from provisioner.ssh import Connections, parallel
from provisioner.status import look
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from provisioner.pki import Pki

# Seconds for the list of all pods.
PODS_SECONDS = 20.0


def gather(cluster: Cluster, workspace: Workspace, connections: Connections, keys: Pki, *, report: Report | None = None) -> Page:
    """Ask for all of it.

    Args:
        connections: made with ``seconds=status.CONNECT_SECONDS``, lest a dead machine make it slow.
        keys: the driver's certificates.
        report: of a `verify` just run; default: the last one on record.
    """
    now = dt.datetime.now(dt.UTC)
    # first of all, and alone: it measures clocks, and how long machines take to answer
    status = look(cluster, workspace, connections, keys)
    reached = {machine.name for machine in status.machines if machine.reachable}
    with ThreadPoolExecutor(max_workers=3, thread_name_prefix="page") as pool:
        asked_certificates = pool.submit(certs.look, cluster, workspace, connections, keys, now=now)
        asked_pods = pool.submit(
            _pods, cluster, workspace, connections, keys, ready=[one.node for one in status.apiservers if one.ready]
        )
        here = tuple(node for node in cluster.nodes if node.name in reached)
        told = parallel(here, lambda node: versions.ask(cluster, node, connections)) if here else {}
        certificates, certificates_error = None, ""
        try:
            certificates = asked_certificates.result()
        except ProvisionerError as error:
            certificates_error = error.message
        pods, pods_error = asked_pods.result()
    return Page(
        cluster=cluster,
        made=now,
        status=status,
        certificates=certificates,
        report=report or Report.last(workspace.proof),
        run=timeline.last_run(workspace),
        versions=tuple(_versions(node.name, told.get(node.name)) for node in cluster.nodes),
        expected=versions.expected(load_lock(), cluster),
        pods=pods,
        certificates_error=certificates_error,
        pods_error=pods_error,
        stages=_stages(),
    )


def _versions(name: str, answer: MachineVersions | ProvisionerError | None) -> MachineVersions:
    if isinstance(answer, MachineVersions):
        return answer
    return MachineVersions(name, {}, error=answer.message if answer else "its machine cannot be reached")


def _pods(
    cluster: Cluster, workspace: Workspace, connections: Connections, keys: Pki, *, ready: list[str]
) -> tuple[tuple[Pod, ...] | None, str]:
    if not ready:
        return None, "no API server is ready"
    try:
        with ClusterApi(cluster, workspace, connections, keys) as api:
            answer = api.request_to(cluster.node(ready[0]), "/api/v1/pods", query={"resourceVersion": "0"}, timeout=PODS_SECONDS)
            if answer.status != 200:
                return None, f"{answer.node} answered {answer.status}: {message_of(answer)}"
            return tuple(pod_of(item) for item in answer.json().get("items") or ()), ""
    except ProvisionerError as error:
        return None, error.message


def pod_of(item: Mapping[str, Any]) -> Pod:
    """A pod out of the API's object. Pure."""
    status, metadata = item.get("status") or {}, item["metadata"]
    conditions = {one["type"]: one for one in status.get("conditions") or ()}
    containers = status.get("containerStatuses") or ()
    ready = conditions.get("Ready", {}).get("status") == "True" and "deletionTimestamp" not in metadata
    reason = ""
    if not ready and status.get("phase") != "Succeeded":
        waits = (((one.get("state") or {}).get("waiting") or {}).get("reason") for one in containers)
        reasons = (one.get("reason") for one in conditions.values() if one.get("status") == "False")
        leaving = "being deleted" if "deletionTimestamp" in metadata else ""
        reason = next((str(word) for word in (leaving, *waits, status.get("reason"), *reasons) if word), "not ready")
    return Pod(
        namespace=str(metadata.get("namespace", "")),
        name=str(metadata["name"]),
        node=str((item.get("spec") or {}).get("nodeName") or ""),
        phase=str(status.get("phase", "Unknown")),
        ready=ready,
        restarts=sum(int(one.get("restartCount") or 0) for one in containers),
        ip=str(status.get("podIP") or ""),
        reason=reason,
    )


def _stages() -> dict[str, str]:
    """Every play to the playbook that has it."""
    stems = sorted(path.stem for path in PLAYBOOKS.glob("*.yml") if path.stem != "site")
    return {play: stem for stem in stems for play in plays_of(stem)}
