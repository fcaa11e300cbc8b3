"""A machine that is in cluster.yaml no more, as a value: how far it can still be asked, and what is to become of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from provisioner.config import Node
    from provisioner.facts import HostFacts

# Seconds for the pods of one machine to move: grace periods of half a minute, and budgets that let one go at a time.
DRAIN_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Removal:
    """What the user has said about machines that leave.

    Args:
        given_up: names of those that are gone for good: they are taken out of the cluster without their pods being moved.
        drain_seconds: deadline for the pods of one machine to move.
        force: evict also pods that no controller makes anew.
        unrecorded: machines that leave, and that the registry does not know: of a cluster that an earlier version has built.
        insist: names of those without which the run is pointless: it is refused where one of them does not answer.
    """

    given_up: frozenset[str] = frozenset()
    drain_seconds: float = DRAIN_SECONDS
    force: bool = False
    unrecorded: tuple[Node, ...] = ()
    insist: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Leaver:
    """One machine that leaves.

    Args:
        node: as it was described when it was last changed.
        answers: SSH answers there.
        ours: it still carries this cluster's marker; one that does not was wiped, reinstalled or given away, and is let be.
        member: whether an etcd of this cluster runs there.
        apiserver: whether an API server does.
        python: its interpreter.
        registered: the API has a Node of its name; None where it could not be asked.
        member_id: its entry on etcd's member list; 0 for none.
    """

    node: Node
    answers: bool = False
    ours: bool = False
    member: bool = False
    apiserver: bool = False
    python: str = ""
    registered: bool | None = None
    member_id: int = 0

    @property
    def name(self) -> str:
        """Its name."""
        return self.node.name

    @classmethod
    def of(cls, node: Node, facts: HostFacts | None, cluster_id: str | None) -> Self:
        """What its facts say; without facts, it does not answer."""
        if facts is None:
            return cls(node)
        marker = facts.marker or {}
        # a machine that is another node of the cluster by now is that node's
        ours = cluster_id is not None and marker.get("id") == cluster_id and marker.get("node") in (None, node.name)
        running = {name for name, state in facts.units.items() if state in ("active", "activating", "reloading")} if ours else set()
        return cls(
            node,
            answers=True,
            ours=ours,
            member="etcd.service" in running,
            apiserver="kube-apiserver.service" in running,
            python=facts.python,
        )
