"""What a drain must know of pods and of the budgets over them, out of the API's objects; nothing here asks anybody."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from provisioner.cluster_api import Object

# Set by the kubelet on the API's image of a static pod: https://kubernetes.io/docs/reference/labels-annotations-taints/
MIRROR = "kubernetes.io/config.mirror"


@dataclass(frozen=True, slots=True)
class Pod:
    """One pod.

    Attributes:
        owner: kind and name of its controller, as ``ReplicaSet web-5d4f``; empty where nobody would replace it.
        ending: until when it may take to end (RFC 3339); empty where it was not asked to end.
        grace: seconds it was given for that.
        finalizers: who must let go of it before it can vanish.
    """

    namespace: str
    name: str
    uid: str
    node: str
    labels: Mapping[str, str]
    owner: str
    mirror: bool
    finished: bool
    ready: bool
    ending: str
    grace: int
    finalizers: tuple[str, ...]

    @classmethod
    def of(cls, obj: Object) -> Pod:
        """From the API's object."""
        metadata, status = obj["metadata"], obj.get("status") or {}
        owners = (f"{owner['kind']} {owner['name']}" for owner in metadata.get("ownerReferences") or () if owner.get("controller"))
        return cls(
            namespace=metadata.get("namespace") or "default",
            name=metadata["name"],
            uid=metadata["uid"],
            node=obj["spec"].get("nodeName") or "",
            labels=metadata.get("labels") or {},
            owner=next(owners, ""),
            mirror=MIRROR in (metadata.get("annotations") or {}),
            finished=status.get("phase") in {"Succeeded", "Failed"},
            ready=is_true(status, "Ready"),
            ending=metadata.get("deletionTimestamp") or "",
            grace=metadata.get("deletionGracePeriodSeconds") or 0,
            finalizers=tuple(metadata.get("finalizers") or ()),
        )

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Drain:
    """What draining a node means for the pods on it.

    Attributes:
        evict: have a controller that replaces them elsewhere (or end already).
        stay: belong to a DaemonSet, are static, or are finished.
        block: nobody would replace them; evicted only by force.
    """

    node: str
    evict: tuple[Pod, ...]
    stay: tuple[Pod, ...]
    block: tuple[Pod, ...]


def plan_drain(pods: Iterable[Object], node: str) -> Drain:
    """Sort the pods of a node as `kubectl drain --ignore-daemonsets --delete-emptydir-data` does; those of others are passed over.

    Finished pods stay, unlike there: they hold nothing of the node, and their logs may still be wanted.
    """
    evict: list[Pod] = []
    stay: list[Pod] = []
    block: list[Pod] = []
    for pod in sorted((Pod.of(obj) for obj in pods), key=str):
        if pod.node != node:
            continue
        # a pod that ends is finished for a moment before it is gone, and its volumes with it
        if pod.mirror or pod.owner.startswith("DaemonSet ") or (pod.finished and not pod.ending):
            stay.append(pod)
        elif pod.owner or pod.ending:
            evict.append(pod)
        else:
            block.append(pod)
    return Drain(node, tuple(evict), tuple(stay), tuple(block))


@dataclass(frozen=True, slots=True)
class Budget:
    """A PodDisruptionBudget with what its controller last counted."""

    namespace: str
    name: str
    selector: Mapping[str, Any] | None = field(compare=False)
    allowed: int
    healthy: int
    desired: int
    expected: int

    @classmethod
    def of(cls, obj: Object) -> Budget:
        """From the API's object."""
        status = obj.get("status") or {}
        counts = (int(status.get(key) or 0) for key in ("disruptionsAllowed", "currentHealthy", "desiredHealthy", "expectedPods"))
        allowed, healthy, desired, expected = counts
        selector = (obj.get("spec") or {}).get("selector")
        metadata = obj["metadata"]
        return cls(metadata["namespace"], metadata["name"], selector, allowed, healthy, desired, expected)

    def covers(self, pod: Pod) -> bool:
        """Whether an eviction of this pod is asked of this budget."""
        return pod.namespace == self.namespace and self.selector is not None and selects(self.selector, pod.labels)

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def state_of(budget: Budget, pods: Sequence[Pod]) -> str:
    """A budget's state in words, with the pods that would have to become Ready; ``pods``: all of the cluster's that matter."""
    text = f"{budget.healthy} of {budget.expected} pods are Ready, {budget.desired} must be, so {budget.allowed} may go"
    # what ends or has ended does not count, and cannot become Ready
    waiting = [str(pod) for pod in pods if budget.covers(pod) and not (pod.ready or pod.ending or pod.finished)]
    if waiting:
        return f"{text}; not Ready: {', '.join(sorted(waiting))}"
    if budget.expected and budget.desired >= budget.expected:
        return f"{text}; it lets no pod go as long as there are no more of them"
    return text


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a LabelSelector (meta/v1) selects these labels; an empty one selects all."""
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_meets(rule, labels) for rule in selector.get("matchExpressions") or ())


def _meets(rule: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = rule["key"], rule.get("values") or ()
    match rule["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    return False


def is_true(status: Mapping[str, Any], condition: str) -> bool:
    """Whether a condition of an object's status is "True"."""
    return any(found["type"] == condition and found["status"] == "True" for found in status.get("conditions") or ())
