"""Proof that a cluster works: checks that can fail, each saying what it saw.

- ``model``: what a check is;                 ``checks``: the table of all of them;
- ``runner``: runs them side by side;         ``probe``: a pod on every node that calls the others;
- ``nodes``, ``etcd``, ``network``, ``workloads``, ``addons``, ``registries``, ``security``, ``hosts``: the checks, by family.

:func:`run` does all of it. The official client is imported with the first request, testinfra with the first check of hosts.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from provisioner.artifacts.lock import load_lock
from provisioner.config import Cluster, Node
from provisioner.errors import BadInput, ProvisionerError
from provisioner.report import Report
from provisioner.verify.checks import CHECKS
from provisioner.verify.model import Check, CheckFailed, Context, Level
from provisioner.verify.probe import Probe, clear_leftovers
from provisioner.verify.runner import Event, run_checks, select
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from provisioner.pki import Pki
    from provisioner.ssh import Connections

__all__ = ["CHECKS", "Check", "CheckFailed", "Context", "Event", "Level", "run", "select"]

# Namespaces of killed runs are cleared when they are older than any run can be.
_LEFTOVER_AGE = dt.timedelta(minutes=30)


def run(
    cluster: Cluster,
    workspace: Workspace,
    connections: Connections,
    pki: Pki,
    *,
    level: Level = Level.SMOKE,
    only: Sequence[str] = (),
    seconds: float | None = None,
    confined: bool = False,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Report:
    """Verify a cluster. What is made for it in the cluster is deleted again.

    Args:
        cluster: what the cluster shall be.
        workspace: its files on the controller.
        connections: SSH to its machines.
        pki: the driver's certificates.
        level: how much is tried.
        only: ids of checks; with what they need, and nothing else.
        seconds: deadline for each check instead of its own.
        confined: ``cluster`` names some machines of a larger one, and the others are left alone.
        on_event: told of each check's beginning and end.

    Raises:
        BadInput: a name in ``only`` is none of a check, or one of an addon that is off, or versions.yml does not know the
            cluster's version.
    """
    from provisioner.cluster_api import ClusterApi  # noqa: PLC0415 - with the PKI: not needed for a mistyped name

    checks = select(CHECKS, level, only)
    if off := [check.id for check in checks if not check.wanted(cluster) and check.id in only]:
        raise BadInput(f"the cluster has nothing that {', '.join(off)} would prove", hint="see `addons` in cluster.yaml")
    checks = tuple(check for check in checks if check.wanted(cluster))
    image = load_lock().image("agnhost", cluster.kubernetes.version)
    # the machines' SSH handshakes go on while the client library is imported
    for node in cluster.nodes:
        threading.Thread(target=_greet, args=(connections, node), daemon=True).start()
    with ClusterApi(cluster, workspace, connections, pki) as api:
        probe = Probe(cluster, api, connections, image, confined=confined)
        context = Context(cluster, workspace, connections, pki, api, probe)
        try:
            return replace(run_checks(context, checks, level=level, seconds=seconds, on_event=on_event), only=tuple(only))
        finally:
            probe.remove()
            before = dt.datetime.now(dt.UTC) - _LEFTOVER_AGE
            clear_leftovers(api, older_than=before.strftime("%Y-%m-%dT%H:%M:%SZ"))


def _greet(connections: Connections, node: Node) -> None:
    # a machine that does not answer is reported by the checks
    with contextlib.suppress(ProvisionerError, RuntimeError):
        connections.connect(node)
