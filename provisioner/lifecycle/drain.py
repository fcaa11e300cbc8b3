"""Taking the pods off a node: cordon, eviction within the budgets, and what is left of a machine that is gone.

Evictions go through the Eviction API, so that PodDisruptionBudgets are respected:
https://kubernetes.io/docs/concepts/scheduling-eviction/api-eviction/
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from provisioner.cluster_api import ClusterApi, ClusterApiError, Object, Response, message_of
from provisioner.errors import STOPPED, Interrupted, ProvisionerError, WaitTimeout
from provisioner.lifecycle.pods import Budget, Drain, Pod, is_true, plan_drain, state_of
from provisioner.wait import NotYet, wait_until

__all__ = [
    "LEAVING",
    "UPGRADED",
    "Drain",
    "Drained",
    "Purpose",
    "abandon",
    "await_silence",
    "cordon",
    "drain",
    "forget_node",
    "plan_drain",
    "uncordon",
]

Say = Callable[[str], None]

# Seconds for one request, where the deadline leaves so much.
REQUEST = 10.0
# Seconds between two looks at the node, and so between two attempts at a pod that a budget holds.
EVERY = 1.0
# Seconds for the API to forget what was deleted by force.
FORGETTING = 30.0
AT_A_TIME = 16
# 429 is the answer of a budget here, and no state of the API server's that `request` should wait for.
_PASSING = frozenset({503, 504})
_PODS = "/api/v1/pods"
_BUDGETS = "/apis/policy/v1/poddisruptionbudgets"
_ATTACHMENTS = "/apis/storage.k8s.io/v1/volumeattachments"


@dataclass(frozen=True, slots=True)
class Purpose:
    """What a node is drained for, in the words of errors.

    Attributes:
        after: what becomes of it when it cannot be drained.
        again: how it goes on once the cause is gone.
        patience: how it goes on with a longer deadline.
        otherwise: what else can be done, a change of mind; may be empty.
    """

    after: str
    again: str
    patience: str
    otherwise: str = ""

    def ways(self, *ways: str) -> str:
        """A remedy: one way, or the other."""
        return "; or ".join(filter(None, (*ways, self.otherwise)))


LEAVING = Purpose(
    after="the node stays cordoned",
    again="`provisioner apply` goes on",
    patience="then remove it again, with a longer `--drain-timeout` where pods only need time",
    otherwise="put it back into cluster.yaml, and `provisioner apply` uncordons it",
)
UPGRADED = Purpose(
    after="nothing on it was changed, and it takes pods again",
    again="`provisioner upgrade` goes on",
    patience="then `provisioner upgrade` again, with a longer `--drain-timeout` where pods only need time",
)


@dataclass(frozen=True, slots=True)
class Drained:
    """What became of a node's pods.

    Attributes:
        known: the cluster had a Node of that name; without one there was nothing to do.
        was_cordoned: it was unschedulable before already.
        evicted: namespace/name of the pods that are gone from it.
        stayed: of those that a drain leaves alone, and with ``unreachable`` of all.
    """

    node: str
    known: bool
    was_cordoned: bool = False
    evicted: tuple[str, ...] = ()
    stayed: tuple[str, ...] = ()
    seconds: float = 0.0


def cordon(api: ClusterApi, name: str, *, timeout: float = REQUEST) -> bool:
    """Let no further pod be placed on a node; False where the cluster has no such Node."""
    return api.merge(_node(name), {"spec": {"unschedulable": True}}, timeout=timeout) is not None


def uncordon(api: ClusterApi, name: str, *, timeout: float = REQUEST) -> bool:
    """Let pods be placed on a node again; False where the cluster has no such Node."""
    return api.merge(_node(name), {"spec": {"unschedulable": None}}, timeout=timeout) is not None


def drain(
    api: ClusterApi,
    name: str,
    *,
    seconds: float,
    force: bool = False,
    unreachable: bool = False,
    say: Say = lambda _: None,
    purpose: Purpose = LEAVING,
    stop: threading.Event | None = None,
) -> Drained:
    """Cordon a node and move its pods away, within their budgets; return when they are gone.

    Args:
        seconds: the deadline for all of it. With 0 each pod is asked once.
        force: evict also pods that nobody replaces.
        unreachable: the machine does not answer: it is cordoned and no more, for nothing there can end. See :func:`abandon`.
        say: takes lines of progress.
        purpose: for the words of errors.
        stop: set by another thread, which ends it.

    Raises:
        Interrupted: ``stop`` was set.
        ProvisionerError: there are pods that nobody would replace, and no ``force``: nothing was changed.
        WaitTimeout: the deadline passed; ``details`` has each pod that is left with what holds it. The node stays cordoned.
    """
    began = time.monotonic()
    node = api.get(_node(name))
    if node is None:
        return Drained(name, known=False)
    was_cordoned = bool(node["spec"].get("unschedulable"))
    plan = _plan(api, name, force=force or unreachable)
    if not cordon(api, name):
        return Drained(name, known=False)
    if unreachable:
        everyone = (*plan.evict, *plan.stay, *plan.block)
        say(f"{name}: cordoned; {_count(len(everyone), 'pod')} on it cannot be asked to end")
        return Drained(name, True, was_cordoned, stayed=_names(everyone), seconds=time.monotonic() - began)
    eviction = _Eviction(api, name, began + seconds, force=force, say=say, purpose=purpose, stop=stop)
    try:
        wait_until(
            f"{name} drained", eviction.step, seconds=began + seconds - time.monotonic(), every=EVERY, retry_on=(ClusterApiError,)
        )
    except WaitTimeout as error:
        raise eviction.timeout(error, seconds) from None
    moved = eviction.moved
    say(f"{name}: drained, {_count(len(moved), 'pod')} moved")
    return Drained(name, True, was_cordoned, moved, _names(plan.stay), time.monotonic() - began)


def abandon(api: ClusterApi, name: str, *, seconds: float = 0, say: Say = lambda _: None) -> tuple[str, ...]:
    """Delete what the cluster still believes to run on a machine that is gone, and its Node; return the pods that were deleted.

    Deleting a pod by force tells the API that it has ended without anybody having seen it end. A StatefulSet then starts a pod of
    the same name at once; were the first one still running, two would write to one volume under one identity. So this is only for
    machines that are known gone (powered off, wiped), never for those that merely do not answer:
    https://kubernetes.io/docs/tasks/run-application/force-delete-stateful-set-pod/

    Pods that a finalizer holds are left to whoever has put it there.

    Args:
        seconds: how long to wait for the cluster to see that the machine is gone: it counts as Ready for a minute after its end.

    Raises:
        WaitTimeout: it is still Ready: somebody's kubelet reports under this name. Nothing was changed.
    """

    await_silence(api, name, seconds=seconds)
    cordon(api, name)
    deleted: dict[str, str] = {}

    def gone() -> None:
        left = [pod for pod in _pods_of(api, name) if not (pod.ending and not pod.grace and pod.finalizers)]
        for pod in left:
            _delete_now(api, pod)
            deleted[pod.uid] = str(pod)
        if left:
            raise NotYet(", ".join(_names(left)))

    # the Node between the two: as long as it is there, DaemonSets put new pods on it; as long as pods are there, volumes are in use
    for pod in _pods_of(api, name):
        _delete_now(api, pod)
        deleted[pod.uid] = str(pod)
    forget_node(api, name)
    wait_until(f"the pods of {name} deleted", gone, seconds=FORGETTING, every=EVERY, retry_on=(ClusterApiError,))
    say(f"{name}: forgotten, with {_count(len(deleted), 'pod')}")
    return tuple(sorted(deleted.values()))


def await_silence(api: ClusterApi, name: str, *, seconds: float) -> None:
    """Wait until the cluster has seen that a machine is gone.

    Raises:
        WaitTimeout: it is still Ready: somebody's kubelet reports under this name.
    """

    def silent() -> None:
        node = api.get(_node(name))
        if node is not None and is_true(node.get("status") or {}, "Ready"):
            raise NotYet("it is Ready")

    hint = f"switch the machine off first; one that lives is removed without `--unreachable` (`provisioner node remove {name}`)"
    wait_until(f"{name} is no longer Ready", silent, seconds=seconds, every=EVERY, hint=hint)


def forget_node(api: ClusterApi, name: str) -> bool:
    """Delete a Node with its lease and let go of the volumes attached to it; False where there was none.

    For a machine whose kubelet is stopped: a running one registers again at its next start.
    """
    for attachment in api.items(_ATTACHMENTS):
        if attachment["spec"].get("nodeName") == name:
            # the driver's attacher detaches the volume and then lets go of the object
            attached = str(attachment["metadata"]["name"])
            api.delete({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": attached}})
    known = api.delete(_node(name))
    # the garbage collector would do so too, by and by
    lease = {"name": name, "namespace": "kube-node-lease"}
    api.delete({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": lease})
    return known


class _Eviction:
    """The eviction of one node's pods under way."""

    def __init__(
        self, api: ClusterApi, node: str, deadline: float, *, force: bool, say: Say, purpose: Purpose, stop: threading.Event | None
    ) -> None:
        self._api, self._node, self._deadline, self._force, self._say = api, node, deadline, force, say
        self._purpose, self._stop = purpose, stop
        self._seen: dict[str, Pod] = {}
        self._left: tuple[Pod, ...] = ()
        # uid -> what the API said to the eviction
        self._refused: dict[str, str] = {}
        self._told: set[str] = set()

    @property
    def moved(self) -> tuple[str, ...]:
        """The pods that were on the node and are gone."""
        left = {pod.uid for pod in self._left}
        return _names(pod for uid, pod in self._seen.items() if uid not in left)

    @property
    def _timeout(self) -> float:
        return min(REQUEST, max(1.0, self._deadline - time.monotonic()))

    def step(self) -> None:
        """One look at the node, and one attempt at each pod on it that was not asked to end yet.

        Raises:
            NotYet: pods are left.
            ProvisionerError: the API refuses an eviction for good.
        """
        if self._stop is not None and self._stop.is_set():
            raise Interrupted(STOPPED)
        stays = "; " + self._purpose.ways(self._purpose.after)
        plan = _plan(self._api, self._node, force=self._force, timeout=self._timeout, hint=stays)
        first, before = not self._seen, len(self._left)
        self._left = (*plan.evict, *plan.block)
        self._seen.update({pod.uid: pod for pod in self._left})
        if self._left and (first or len(self._left) != before):
            self._say(f"{self._node}: {_count(len(self._left), 'pod')} to move" + ("" if first else " yet"))
        asked = [pod for pod in self._left if not pod.ending]
        if asked:
            with ThreadPoolExecutor(max_workers=min(AT_A_TIME, len(asked)), thread_name_prefix="evict") as pool:
                answers = dict(zip((pod.uid for pod in asked), pool.map(self._evict, asked), strict=True))
            self._refused = {uid: answer for uid, answer in answers.items() if answer}
        else:
            self._refused = {}
        if not self._left:
            return
        if self._refused:
            self._tell()
        raise NotYet(f"{_count(len(self._left), 'pod')} left: {', '.join(_names(self._left))}")

    def _evict(self, pod: Pod) -> str:
        """Ask one pod to end; empty where it will, else what holds it."""
        body: Object = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            # a pod of the same name that has been made since then is another one, and elsewhere
            "deleteOptions": {"preconditions": {"uid": pod.uid}},
        }
        path = f"{self._api.path_of(_pod(pod))}/eviction"
        response = self._api.request("POST", path, body=body, timeout=self._timeout, passing=_PASSING)
        if response.status < 300 or response.status in {404, 409}:
            return ""
        # more than one budget over a pod is a 500 that no waiting cures; other ones may pass
        broken = response.status >= 500 and "PodDisruptionBudget" not in response.text
        if response.status == 429 or broken or _is_passing(response):
            return _reason(response)
        raise ProvisionerError(
            f"{self._node}: {pod} cannot be evicted: {response.node} answered {response.status}: {message_of(response)}",
            hint=f"{self._purpose.after}; " + self._purpose.ways(f"once the cause is gone, {self._purpose.again}"),
        )

    def _tell(self) -> None:
        for budget, pods in self._holding(self._left).items():
            line = f"{self._node}: waiting for budget {budget}: {state_of(budget, pods)}"
            if line not in self._told:
                self._told.add(line)
                self._say(line)

    def _holding(self, left: Iterable[Pod]) -> dict[Budget, list[Pod]]:
        """The budgets that refuse one of these pods, each with all pods that it covers."""
        refused = [pod for pod in left if pod.uid in self._refused]
        found = [Budget.of(obj) for obj in self._api.items(_BUDGETS, timeout=self._timeout)]
        holding = [budget for budget in found if any(budget.covers(pod) for pod in refused)]
        pods: list[Pod] = []
        for namespace in {budget.namespace for budget in holding}:
            items = self._api.items(f"/api/v1/namespaces/{namespace}/pods", timeout=self._timeout)
            pods += [Pod.of(obj) for obj in items]
        return {budget: [pod for pod in pods if budget.covers(pod)] for budget in holding}

    def timeout(self, error: WaitTimeout, seconds: float) -> WaitTimeout:
        """The deadline's error: every pod that is left, with what holds it and what can be done."""
        ready, budgets = True, dict[Budget, list[Pod]]()
        try:
            node = self._api.get(_node(self._node))
            ready = node is None or is_true(node.get("status") or {}, "Ready")
            budgets = self._holding(self._left)
        except ClusterApiError:
            pass  # what was seen last has to do
        left = f"{_count(len(self._left), 'pod')} left" if self._left else "the API was not there to ask"
        details = tuple(f"{pod}: {self._why(pod, budgets, ready=ready)}" for pod in self._left) or (error.message,)
        remedies = []
        if budgets:
            remedies.append("make the budget's pods Ready, scale their workload up or relax the budget")
        if any(pod.finalizers for pod in self._left):
            remedies.append("look after whoever set the finalizers")
        if not ready:
            remedies.append("a kubelet that does not answer ends no pod: start it, or give up the machine")
        remedies.append(self._purpose.ways(self._purpose.patience))
        return WaitTimeout(
            f"{self._node}: not drained within {seconds:g} s: {left}; {self._purpose.after}",
            hint="; ".join(remedies),
            details=details,
        )

    def _why(self, pod: Pod, budgets: dict[Budget, list[Pod]], *, ready: bool) -> str:
        if pod.ending:
            held = f", held by the finalizer {', '.join(pod.finalizers)}" if pod.finalizers else ""
            silent = "" if ready else "; the node's kubelet does not answer"
            return f"asked to end, within {pod.grace} s, by {pod.ending}{held}{silent}"
        answer = self._refused.get(pod.uid)
        if answer is None:
            return "was asked to end just now"
        own = [f"budget {budget}: {state_of(budget, pods)}" for budget, pods in budgets.items() if budget.covers(pod)]
        return "; ".join(own) or answer


def _plan(api: ClusterApi, name: str, *, force: bool, timeout: float = REQUEST, hint: str = "") -> Drain:
    """The plan of now.

    Raises:
        ProvisionerError: pods are on the node that nobody would replace, and no ``force``.
    """
    plan = plan_drain(api.items(_PODS, timeout=timeout, fieldSelector=f"spec.nodeName={name}"), name)
    if plan.block and not force:
        raise ProvisionerError(
            f"{name}: {_count(len(plan.block), 'pod')} without a controller: evicted, nobody would start them again elsewhere",
            hint="delete or move them yourself, or evict them for good with `--force`" + hint,
            details=_names(plan.block),
        )
    return plan


def _is_passing(response: Response) -> bool:
    # a namespace that is being deleted takes its pods along
    return response.status == 403 and "NamespaceTerminating" in response.text


def _reason(response: Response) -> str:
    try:
        causes = (response.json().get("details") or {}).get("causes") or ()
    except ClusterApiError:
        causes = ()
    return "; ".join([message_of(response), *(str(cause.get("message")) for cause in causes if cause.get("message"))])


def _pods_of(api: ClusterApi, name: str) -> list[Pod]:
    return [Pod.of(obj) for obj in api.items(_PODS, fieldSelector=f"spec.nodeName={name}")]


def _delete_now(api: ClusterApi, pod: Pod) -> None:
    """Delete a pod's object without waiting for its end; only this very pod, never its successor of the same name."""
    options: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}}
    response = api.request("DELETE", api.path_of(_pod(pod)), body=options)
    if response.status >= 300 and response.status not in {404, 409}:
        raise ClusterApiError(
            f"cannot delete the pod {pod}: {response.node} answered {response.status}: {message_of(response)}",
            status=response.status,
        )


def _node(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def _pod(pod: Pod) -> Object:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod.name, "namespace": pod.namespace}}


def _names(pods: Iterable[Pod]) -> tuple[str, ...]:
    return tuple(sorted(str(pod) for pod in pods))


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number or 'no'} {what}s"
