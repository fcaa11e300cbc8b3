"""Pods that have read the cluster's CAs when they were started, and will not look again: what restarts them.

A process in a pod reads /var/run/secrets/kubernetes.io/serviceaccount/ca.crt once. It believes an API server of a new CA only when
its pod was made after that file has had the new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from provisioner.certs.published import ROOT
from provisioner.cluster_api import ClusterApi, ClusterApiError, Object
from provisioner.pki import Rotation
from provisioner.wait import NotYet, wait_until

# On a template, as `kubectl rollout restart` does it with one of its own.
ANNOTATION = "provisioner/ca-rotation"
# So many workloads are restarted side by side, and may take so many seconds together.
AT_A_TIME = 8
SECONDS = 600.0
# How a restart that did not end goes on.
AGAIN = "mend the workload, or delete the pods, then run the rotation again: it goes on; `--leave-pods` goes on without them"

_KINDS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"}


@dataclass(frozen=True, slots=True)
class Workload:
    """What makes pods anew when its template changes.

    Attributes:
        held: why it does not (paused, say); empty where it does.
        rolled: the rotation for which it was restarted, with the time; empty for none.
        pending: what a rollout waits for; empty where none is under way.
    """

    kind: str
    namespace: str
    name: str
    held: str = ""
    rolled: str = ""
    pending: str = ""

    @classmethod
    def of(cls, kind: str, obj: Object) -> Workload:
        """From the API's object."""
        metadata, spec = obj["metadata"], obj["spec"]
        notes = (spec["template"].get("metadata") or {}).get("annotations") or {}
        return cls(kind, metadata["namespace"], metadata["name"], _held(kind, spec), notes.get(ANNOTATION, ""), _pending(kind, obj))

    @property
    def object(self) -> Object:
        """Its reference."""
        return {"apiVersion": "apps/v1", "kind": self.kind, "metadata": {"namespace": self.namespace, "name": self.name}}

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


def _held(kind: str, spec: Mapping[str, Any]) -> str:
    strategy = spec.get("updateStrategy") or {}
    if spec.get("paused"):
        return "it is paused"
    if strategy.get("type") == "OnDelete":
        return "its update strategy is OnDelete"
    if kind == "StatefulSet" and (strategy.get("rollingUpdate") or {}).get("partition"):
        return "its update strategy has a partition"
    return ""


def _pending(kind: str, obj: Object) -> str:
    """What `kubectl rollout status` would wait for; "" where nothing."""
    status, spec = obj.get("status") or {}, obj["spec"]
    if int(status.get("observedGeneration") or 0) < int(obj["metadata"].get("generation") or 0):
        return "its controller has not seen the change yet"
    names = {
        "Deployment": ("updatedReplicas", "availableReplicas"),
        "StatefulSet": ("updatedReplicas", "readyReplicas"),
        "DaemonSet": ("updatedNumberScheduled", "numberAvailable"),
    }[kind]
    wanted = int(status.get("desiredNumberScheduled") or 0) if kind == "DaemonSet" else int(spec.get("replicas", 1))
    updated, able = (int(status.get(name) or 0) for name in names)
    if updated < wanted or able < wanted:
        return f"{updated} of {wanted} pods are new, {able} are available"
    if kind == "Deployment" and int(status.get("replicas") or 0) > updated:
        return f"{int(status['replicas']) - updated} old pods are not gone yet"
    return ""


@dataclass(frozen=True, slots=True)
class Survey:
    """Pods that believe the CAs as they were.

    Attributes:
        workloads: pods (NAMESPACE/NAME) by what makes them anew.
        left: the others, each with the reason why nothing here restarts it.
    """

    workloads: Mapping[Workload, tuple[str, ...]]
    left: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.workloads or self.left)


def survey(api: ClusterApi, written: Mapping[str, str] | None = None, rotation: Rotation | None = None) -> Survey:
    """Look at every pod.

    Args:
        written: when each namespace's CAs were last written (``published.since``); None to count every pod that believes them.
        rotation: pods that were made anew for it are not counted.
    """
    pods = api.items("/api/v1/pods", timeout=60)
    tokens = api.items("/api/v1/secrets", fieldSelector="type=kubernetes.io/service-account-token")
    secrets = {(one["metadata"]["namespace"], one["metadata"]["name"]) for one in tokens}
    sets = {
        (one["metadata"]["namespace"], one["metadata"]["name"]): _controller(one)
        for one in api.items("/apis/apps/v1/replicasets", timeout=60)
    }
    known = {
        (kind, workload.namespace, workload.name): workload
        for kind, plural in _KINDS.items()
        for workload in (Workload.of(kind, one) for one in api.items(f"/apis/apps/v1/{plural}", timeout=60))
    }
    mark = f"{rotation.id}/" if rotation else ""
    return sort_pods((pod for pod in pods if _is_stale(pod, written, secrets, mark)), sets, known)


def _is_stale(pod: Object, written: Mapping[str, str] | None, secrets: Collection[tuple[str, str]], mark: str = "") -> bool:
    metadata = pod["metadata"]
    if (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"} or metadata.get("deletionTimestamp"):
        return False
    # of a template that was marked when the CAs had been written
    if mark and ((metadata.get("annotations") or {}).get(ANNOTATION) or "").startswith(mark):
        return False
    # both by the API's clock, in the same form and in UTC; in the same second it may have been before
    if written is not None and metadata["creationTimestamp"] > written.get(metadata["namespace"], ""):
        return False
    return believes(pod, secrets)


def believes(pod: Object, secrets: Collection[tuple[str, str]] = ()) -> bool:
    """Whether a pod is given the cluster's CAs: by a volume or in its environment. Pure.

    Args:
        secrets: (namespace, name) of Secrets that hold a service account's token, and the CAs beside it.
    """
    spec, namespace = pod["spec"], pod["metadata"].get("namespace", "")
    for volume in spec.get("volumes") or ():
        sources = [volume, *((volume.get("projected") or {}).get("sources") or ())]
        if any((source.get("configMap") or {}).get("name") == ROOT for source in sources):
            return True
        names = [(source.get("secret") or {}).get(key) or "" for source in sources for key in ("secretName", "name")]
        if any((namespace, name) in secrets for name in names):
            return True
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        references = [(one.get("valueFrom") or {}).get("configMapKeyRef") for one in container.get("env") or ()]
        references += [one.get("configMapRef") for one in container.get("envFrom") or ()]
        if any(one and one.get("name") == ROOT for one in references):
            return True
    return False


def _controller(obj: Object) -> tuple[str, str]:
    """(kind, name) of what controls an object; empty where nothing does."""
    owners = ((one["kind"], one["name"]) for one in obj["metadata"].get("ownerReferences") or () if one.get("controller"))
    return next(owners, ("", ""))


def sort_pods(
    pods: Iterable[Object],
    sets: Mapping[tuple[str, str], tuple[str, str]],
    known: Mapping[tuple[str, str, str], Workload],
) -> Survey:
    """Pods by what restarts them. Pure.

    Args:
        sets: what controls each ReplicaSet, by (namespace, name).
        known: workloads by (kind, namespace, name).
    """
    workloads: dict[Workload, list[str]] = {}
    left: dict[str, str] = {}
    for obj in pods:
        namespace, owner = obj["metadata"]["namespace"], _controller(obj)
        pod = f"{namespace}/{obj['metadata']['name']}"
        above = sets.get((namespace, owner[1]), ("", "")) if owner[0] == "ReplicaSet" else ("", "")
        kind, name = above if above[0] else owner
        workload = known.get((kind, namespace, name))
        if workload is None:
            left[pod] = f"{kind} {name} makes it, which nothing here restarts" if kind else "no controller makes it anew"
        elif workload.held:
            left[pod] = f"{workload}: {workload.held}"
        else:
            workloads.setdefault(workload, []).append(pod)
    return Survey({workload: tuple(found) for workload, found in workloads.items()}, left)


def restart(
    api: ClusterApi,
    rotation: Rotation,
    look: Callable[[], Survey],
    say: Callable[[str], None],
    *,
    seconds: float = SECONDS,
) -> tuple[Workload, ...]:
    """Have every workload make its pods anew, a few at a time, and wait for each; returns those that were.

    Run again, it goes on: a rollout that is under way for this rotation is waited for.

    Args:
        look: the present survey.
        seconds: for those that are restarted side by side.

    Raises:
        WaitTimeout: names the workload, and what it waits for.
    """
    todo = sorted(look().workloads, key=str)
    for start in range(0, len(todo), AT_A_TIME):
        batch = todo[start : start + AT_A_TIME]
        for workload in batch:
            if not (workload.rolled.startswith(f"{rotation.id}/") and workload.pending):
                note = {ANNOTATION: f"{rotation.id}/{int(time.time())}"}
                api.merge(workload.object, {"spec": {"template": {"metadata": {"annotations": note}}}})
        say(f"restarted: {', '.join(map(str, batch))}")
        _wait(api, batch, look, seconds)
    return tuple(todo)


def _wait(api: ClusterApi, batch: Sequence[Workload], look: Callable[[], Survey], seconds: float) -> None:
    names = {str(workload) for workload in batch}

    def done() -> None:
        late = []
        for workload in batch:
            live = api.get(workload.object)
            # one that was deleted meanwhile has no pods to wait for
            if live is not None and (pending := Workload.of(workload.kind, live).pending):
                late.append(f"{workload}: {pending}")
        if late:
            raise NotYet("; ".join(late))
        if old := [pod for workload, pods in look().workloads.items() if str(workload) in names for pod in pods]:
            raise NotYet(f"old pods are not gone yet: {', '.join(old)}")

    wait_until("restarted workloads", done, seconds=seconds, every=1, retry_on=(ClusterApiError,), hint=AGAIN)
