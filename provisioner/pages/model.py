"""Everything that the page shows, as one value. Nothing in it is left out for being unknown: it says why it is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from provisioner import __version__
from provisioner.certs.model import Found, by_days
from provisioner.config import Cluster
from provisioner.report import Report
from provisioner.status import Status
from provisioner.timeline import Run

# Raised when a key of the JSON document changes its meaning or goes away.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class MachineVersions:
    """What runs on a machine: component to version, or to why there is none ("" in ``components`` then)."""

    machine: str
    components: Mapping[str, str]
    errors: Mapping[str, str] = field(default_factory=dict)
    os: str = ""
    kernel: str = ""
    arch: str = ""
    # why nothing at all is known
    error: str = ""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as the API has it; ``reason`` says why it is not ready."""

    namespace: str
    name: str
    node: str
    phase: str
    ready: bool
    restarts: int = 0
    ip: str = ""
    reason: str = ""

    @property
    def done(self) -> bool:
        """It ran to its end, as it should."""
        return self.phase == "Succeeded"


@dataclass(frozen=True, slots=True)
class Page:
    """The whole report.

    Attributes:
        cluster: what shall be.
        made: when it was asked for (UTC).
        status: how it is.
        certificates: wherever they are; None with ``certificates_error``.
        report: the last `verify` of the whole cluster; None where there was none.
        run: the last run that changed something; None where there was none.
        versions: of each machine, in cluster.yaml's order.
        expected: versions that go with cluster.yaml, by component.
        pods: None where the API did not tell, with ``pods_error``.
        stages: play of a playbook to the playbook, for the run's tasks.
    """

    cluster: Cluster
    made: dt.datetime
    status: Status
    certificates: Found | None
    report: Report | None
    run: Run | None
    versions: tuple[MachineVersions, ...]
    expected: Mapping[str, str]
    pods: tuple[Pod, ...] | None
    certificates_error: str = ""
    pods_error: str = ""
    stages: Mapping[str, str] = field(default_factory=dict)

    def pods_on(self, node: str) -> tuple[Pod, ...] | None:
        """The pods of a node that have not ended; None where they are unknown."""
        return None if self.pods is None else tuple(pod for pod in self.pods if pod.node == node and not pod.done)

    def to_json(self) -> dict[str, Any]:
        """For --json: status, certificates and verify as their own commands' --json, and what the page has besides."""
        found = self.certificates
        return {
            "format": FORMAT,
            "provisioner": __version__,
            "cluster": self.cluster.name,
            "made": self.made.isoformat(timespec="seconds"),
            "status": self.status.to_json(),
            "certificates": None
            if found is None
            else {
                "certificates": [row.to_json(found.now) for row in by_days(found.rows, found.now)],
                "silent": [{"machine": machine, "reason": reason} for machine, reason in found.silent],
            },
            "certificatesError": self.certificates_error,
            "verify": self.report.to_json() if self.report else None,
            "run": self.run.to_json() if self.run else None,
            "versions": {
                "expected": dict(self.expected),
                "machines": [
                    {
                        "machine": one.machine,
                        "error": one.error,
                        "os": one.os,
                        "kernel": one.kernel,
                        "arch": one.arch,
                        "components": {name: version or None for name, version in one.components.items()},
                        "errors": dict(one.errors),
                    }
                    for one in self.versions
                ],
            },
            "pods": None
            if self.pods is None
            else [
                {
                    "namespace": pod.namespace,
                    "name": pod.name,
                    "node": pod.node,
                    "phase": pod.phase,
                    "ready": pod.ready,
                    "restarts": pod.restarts,
                    "ip": pod.ip,
                    "reason": pod.reason,
                }
                for pod in self.pods
            ],
            "podsError": self.pods_error,
        }
