"""What a rule is, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from provisioner.config import Cluster
from provisioner.problems import Problem


@dataclass(frozen=True, slots=True)
class Context:
    """What the rules look at.

    ``base`` is the directory of cluster.yaml, from which relative file names count. ``known_versions`` are the Kubernetes
    versions of the lock; None where the caller has no lock at hand. ``exists``: the cluster runs already, and may pass through
    states that a new one is refused (an even number of etcd members, between two steps of growing).
    """

    cluster: Cluster
    base: Path
    known_versions: Collection[str] | None = None
    exists: bool = False


Check = Callable[[Context], Iterator[Problem]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule as a row of a table.

    Args:
        check: yields a problem for everything that breaks the rule.
        reads: the keys it depends on ("network.podCidr", "nodes.roles"). Where one of them, or what it stands in, did not
            validate, its findings would be about a default nobody asked for: the rule is passed over, or
        per_node: only its findings about the nodes concerned are.
    """

    check: Check
    reads: tuple[str, ...]
    per_node: bool = False

    @property
    def name(self) -> str:
        """The function's name, for tests and the documentation."""
        return str(getattr(self.check, "__name__", self.check))
