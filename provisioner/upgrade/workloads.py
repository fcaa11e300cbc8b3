"""Whether what runs in the cluster runs whole: the gate between one machine and the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from provisioner.cluster_api import ClusterApi, Object
from provisioner.lifecycle.pods import Pod

_KINDS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"}


@dataclass(frozen=True, slots=True)
class Workload:
    """One controller's pods: how many there shall be, and how many are Ready of its newest template."""

    kind: str
    namespace: str
    name: str
    uid: str
    wanted: int
    ready: int
    seen: bool

    @classmethod
    def of(cls, kind: str, obj: Object) -> Workload:
        """From the API's object."""
        metadata, spec, status = obj["metadata"], obj["spec"], obj.get("status") or {}
        if kind == "DaemonSet":
            wanted, ready = status.get("desiredNumberScheduled") or 0, status.get("numberReady") or 0
        else:
            wanted, ready = spec.get("replicas", 1), status.get("readyReplicas") or 0
        seen = (status.get("observedGeneration") or 0) >= (metadata.get("generation") or 0)
        return cls(kind, metadata["namespace"], metadata["name"], metadata["uid"], wanted, ready, seen)

    @property
    def whole(self) -> bool:
        """Whether every pod that there shall be is Ready."""
        return self.seen and self.ready >= self.wanted

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name} ({self.ready} of {self.wanted} Ready)"


def look(api: ClusterApi) -> dict[str, Workload]:
    """Every Deployment, StatefulSet and DaemonSet, by uid."""
    found = [Workload.of(kind, obj) for kind, plural in _KINDS.items() for obj in api.items(f"/apis/apps/v1/{plural}", timeout=30)]
    return {one.uid: one for one in found}


def broken(now: Mapping[str, Workload]) -> tuple[Workload, ...]:
    """Those that are not whole."""
    return tuple(one for one in now.values() if not one.whole)


def fallen(before: Mapping[str, Workload], now: Mapping[str, Workload]) -> tuple[Workload, ...]:
    """Those that were whole and are not any more; one that was deleted meanwhile is nobody's matter."""
    return tuple(now[uid] for uid, one in before.items() if one.whole and uid in now and not now[uid].whole)


def again(api: ClusterApi, one: Workload) -> Workload | None:
    """The same workload as it is now; None where it was deleted."""
    named = {"apiVersion": "apps/v1", "kind": one.kind, "metadata": {"namespace": one.namespace, "name": one.name}}
    found = api.get(named)
    now = Workload.of(one.kind, found) if found is not None else None
    return now if now is not None and now.uid == one.uid else None


# A DaemonSet by its namespace and ``Pod.owner``.
Agent = tuple[str, str]


def unready_agents(api: ClusterApi, node: str) -> frozenset[Agent]:
    """The DaemonSets (namespace, ``DaemonSet NAME``) whose pod on one node is not Ready: they alone are on a drained one."""
    pods = (Pod.of(obj) for obj in api.items("/api/v1/pods", timeout=30, fieldSelector=f"spec.nodeName={node}"))
    return frozenset(
        (pod.namespace, pod.owner) for pod in pods if pod.owner.startswith("DaemonSet ") and not pod.ready and not pod.finished
    )
