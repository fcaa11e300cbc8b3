"""What preflight finds, and what its rules are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from provisioner.config import Cluster, Node, Role
from provisioner.facts import HostFacts

# An error stops `apply`; a warning is shown; info tells what was detected and is taken care of.
Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong, or worth knowing, about one machine. ``rule`` names the rule for scripts and the documentation."""

    host: str
    severity: Severity
    message: str
    remedy: str
    rule: str

    def to_json(self) -> dict[str, str]:
        """For --json."""
        return {"host": self.host, "severity": self.severity, "message": self.message, "remedy": self.remedy, "rule": self.rule}


@dataclass(frozen=True, slots=True)
class Machine:
    """What a rule sees: one machine's facts, and those of all the others for comparison.

    Attributes:
        cluster_id: identity of this cluster; None as long as its CA has not been made.
        known: the machine of this name as it was when it was last changed; None for a new one.
    """

    cluster: Cluster
    node: Node
    facts: HostFacts
    everyone: Mapping[str, HostFacts]
    cluster_id: str | None
    known: Node | None = None

    @property
    def is_ours(self) -> bool:
        """Whether the machine carries the marker of this very cluster: what runs and lies there is then ours."""
        return belongs(self.facts, self.cluster_id)

    @property
    def is_foreign(self) -> bool:
        """Whether it carries the marker of another cluster, or of one whose CA this workspace does not hold."""
        return self.facts.marker is not None and not self.is_ours

    @property
    def kubernetes(self) -> bool:
        """Whether a kubelet is to run there."""
        return self.node.is_kubernetes_node

    def has(self, role: Role) -> bool:
        """Whether it is to carry the role."""
        return self.node.has(role)

    @property
    def uses_flannel(self) -> bool:
        """Whether our virtual network runs there."""
        return self.kubernetes and self.cluster.network.plugin == "flannel"

    def sharing(self, read: Callable[[HostFacts], str]) -> list[str]:
        """Names of the other machines where this fact has the same value; none where it is empty."""
        value = read(self.facts)
        return [name for name, other in self.everyone.items() if name != self.node.name and value and read(other) == value]


def belongs(facts: HostFacts, cluster_id: str | None) -> bool:
    """Whether a machine carries the marker of a cluster."""
    return facts.marker is not None and cluster_id is not None and facts.marker.get("id") == cluster_id


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule says about a machine; ``check`` adds the host and the rule's name."""

    severity: Severity
    message: str
    remedy: str


def error(message: str, remedy: str) -> Finding:
    """The machine cannot take its role as it is."""
    return Finding("error", message, remedy)


def warning(message: str, remedy: str) -> Finding:
    """It can, but somebody should look."""
    return Finding("warning", message, remedy)


def info(message: str, remedy: str) -> Finding:
    """Detected and taken care of."""
    return Finding("info", message, remedy)


Rule = Callable[[Machine], Iterator[Finding]]
