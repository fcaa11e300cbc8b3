"""Checks of what a cluster does with pods: logs and exec, replacing, restarting, scheduling."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from provisioner import topology
from provisioner.cluster_api import Object
from provisioner.errors import ProvisionerError
from provisioner.verify.model import CheckFailed, Context, each, patiently, plural
from provisioner.verify.probe import ProbePod, describe, is_ready, shorten
from provisioner.wait import NotYet

# agnhost prints the name servers of the pod's resolv.conf
_EXEC = ["/agnhost", "dns-server-list"]
# what netexec logs when it starts
_LOGGED = "Started HTTP server on port"


def logs(context: Context) -> str:
    """`logs` from every node's kubelet, by name of the pod."""

    def read(pod: ProbePod) -> None:
        text = context.api.logs(context.probe.namespace, pod.name, tail=2000, timeout=context.seconds / 2)
        if _LOGGED not in text:
            raise CheckFailed(
                f"{pod.node.name}: the log of {pod.name} lacks {_LOGGED!r}; it has {len(text)} bytes: {shorten(text, 80)!r}"
            )

    pods = context.probe.pods()
    each(pods, read)
    return f"read from {plural(len(pods), 'kubelet')}"


def execute(context: Context) -> str:
    """`exec` on every node: a command runs in the pod, and the cluster's DNS server is the pod's own."""
    server = str(topology.dns_service_ip(context.cluster))

    def run(pod: ProbePod) -> None:
        done = context.api.exec(context.probe.namespace, pod.name, _EXEC, timeout=context.seconds / 2)
        if done.code != 0 or server not in done.stdout:
            raise CheckFailed(
                f"{pod.node.name}: {' '.join(_EXEC)} in {pod.name} gave code {done.code} "
                f"and {shorten(done.stdout + done.stderr)!r}, not the name server {server}"
            )

    pods = context.probe.pods()
    each(pods, run)
    return f"{' '.join(_EXEC)} in {plural(len(pods), 'pod')} gave {server}"


def pod_comes_back(context: Context) -> str:
    """A deleted pod of a Deployment is replaced by a new one (controller-manager, scheduler, kubelet)."""
    labels = {"app": "comes-back"}
    template = {"metadata": {"labels": labels}, "spec": context.probe.pod_spec("pause")}
    deployment = context.probe.object(
        "apps/v1", "Deployment", "comes-back", spec={"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    )
    context.probe.make_namespace()
    context.api.apply(deployment)
    first = _one_ready(context, "comes-back", seconds=context.seconds * 0.45)
    context.api.delete(first, grace=0)
    second = _one_ready(context, "comes-back", other_than=first["metadata"]["uid"], seconds=context.seconds * 0.45)
    with contextlib.suppress(ProvisionerError):
        context.api.delete(deployment)
    return (
        f"{first['metadata']['name']} on {first['spec']['nodeName']} was deleted, "
        f"{second['metadata']['name']} runs on {second['spec']['nodeName']}"
    )


def _one_ready(context: Context, app: str, *, seconds: float, other_than: str = "") -> Object:
    found: list[Object] = []

    def look() -> str:
        pods = context.api.items(f"/api/v1/namespaces/{context.probe.namespace}/pods", labelSelector=f"app={app}")
        pods = [pod for pod in pods if pod["metadata"]["uid"] != other_than and "deletionTimestamp" not in pod["metadata"]]
        ready = [pod for pod in pods if is_ready(pod)]
        if not ready:
            after = f" after {other_than} was deleted" if other_than else ""
            states = "; ".join(f"{pod['metadata']['name']}: {describe(pod)}" for pod in pods)
            raise NotYet(f"no pod of the Deployment {app} is Ready{after}: {states or 'none was made'}")
        found[:] = ready
        return ""

    patiently(look, seconds)
    # a list's items carry no type of their own
    return {"apiVersion": "v1", "kind": "Pod", **found[0]}


def container_restarts(context: Context) -> str:
    """A container that dies is started again in the same pod (kubelet)."""
    pod = context.probe.object("v1", "Pod", "restarts", spec=context.probe.pod_spec("netexec"))
    context.probe.make_namespace()
    context.api.apply(pod)
    live = _pod_ready(context, pod, context.seconds * 0.3)
    node = context.cluster.node(live["spec"]["nodeName"])
    reached = context.probe.reach(live, node)

    def listening() -> str:
        try:
            return reached.get("/healthz", timeout=2)[1]
        except CheckFailed as failure:
            raise NotYet(str(failure)) from None

    patiently(listening, context.seconds * 0.2)
    # it dies in the middle of its answer
    with contextlib.suppress(CheckFailed):
        reached.get("/exit?code=3")

    def look() -> str:
        now = context.api.get(pod) or {}
        statuses = (now.get("status") or {}).get("containerStatuses") or [{}]
        died = (statuses[0].get("lastState") or {}).get("terminated") or {}
        if not (statuses[0].get("restartCount") and died.get("exitCode") == 3 and is_ready(now)):
            raise NotYet(f"{node.name}: a container was told to exit with code 3; the pod now: {describe(now) if now else 'gone'}, "
                         f"restarts {statuses[0].get('restartCount')}, last exit {died.get('exitCode')}")  # fmt: skip
        return (
            f"{node.name}: the container exited with code {died['exitCode']} and runs again, restart {statuses[0]['restartCount']}"
        )

    evidence = patiently(look, context.seconds * 0.5)
    with contextlib.suppress(ProvisionerError):
        context.api.delete(pod)
    return evidence


def _pod_ready(context: Context, pod: Object, seconds: float) -> Object:
    found: list[Object] = []

    def look() -> str:
        live = context.api.get(pod)
        if live is None or not is_ready(live):
            raise NotYet(f"pod {pod['metadata']['name']} is not Ready: {describe(live) if live else 'it is gone'}")
        found[:] = [live]
        return ""

    patiently(look, seconds)
    return found[0]


# --- the scheduler -------------------------------------------------------------------------------------------------

# CPU that the chosen node has over all others, and by which the pod that must land there is too big for them
_MARGIN = Decimal("0.020")
_LEAST = 2 * _MARGIN


@dataclass(frozen=True, slots=True)
class Plan:
    """How to make one node the only one where a pod fits.

    ``fillers`` is CPU to take up on each other node first; ``request`` is the CPU of the pod that then fits on ``target`` alone.
    """

    target: str
    request: Decimal
    fillers: Mapping[str, Decimal]
    free: Mapping[str, Decimal]


def plan_scheduling(free: Mapping[str, Decimal]) -> Plan | None:
    """Choose the freest node (the last by name among equals, which no scheduler would pick by accident of order).

    Args:
        free: unrequested CPU of each node that takes pods.

    Returns:
        None where no node has enough room to tell it from the others.
    """
    if not free or max(free.values()) < _LEAST:
        return None
    target = max(free, key=lambda name: (free[name], name))
    most_elsewhere = free[target] - _MARGIN
    fillers = {name: cpu - most_elsewhere for name, cpu in free.items() if name != target and cpu > most_elsewhere}
    return Plan(target, free[target] - _MARGIN / 2, fillers, free)


def scheduling(context: Context) -> str:
    """A pod whose CPU request fits on one node alone lands there; one that fits nowhere stays Pending, with the reason."""
    context.probe.make_namespace()
    plan = plan_scheduling(free_cpu(context))
    if plan is None:
        raise CheckFailed(f"no node has {_LEAST} CPU unrequested: a new pod with requests would not fit anywhere")
    made: list[Object] = []
    try:
        for index, (name, cpu) in enumerate(plan.fillers.items()):
            terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}]
            affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
            made.append(_bare_pod(context, f"filler-{index}", cpu, affinity=affinity))
        for filler in made:
            context.api.apply(filler)
        for filler in made:
            _scheduled(context, filler, context.seconds * 0.3)
        pod = _bare_pod(context, "fits-one", plan.request)
        giant = _bare_pod(context, "fits-none", max(plan.free.values()) + 1)
        made += [pod, giant]
        context.api.apply(pod)
        context.api.apply(giant)
        landed = _scheduled(context, pod, context.seconds * 0.3)
        room = ", ".join(f"{name} {cpu.normalize():f}" for name, cpu in sorted(plan.free.items()))
        if landed != plan.target:
            raise CheckFailed(
                f"a pod with {plan.request.normalize():f} CPU fits on {plan.target} alone, but landed on {landed} (free: {room})"
            )
        _stays_pending(context, giant, context.seconds * 0.3)
        return (
            f"{plan.request.normalize():f} CPU landed on {plan.target}, where alone it fits (free: {room}); a giant stays Pending"
        )
    finally:
        for pod in made:
            with contextlib.suppress(ProvisionerError):
                context.api.delete(pod, grace=0)


def free_cpu(context: Context) -> dict[str, Decimal]:
    """CPU that no pod has requested, of each node that takes any pod."""
    free = {}
    for node in context.api.items("/api/v1/nodes"):
        repelling = [taint for taint in node["spec"].get("taints") or [] if taint["effect"] != "PreferNoSchedule"]
        if is_ready(node) and not repelling and not node["spec"].get("unschedulable"):
            free[str(node["metadata"]["name"])] = quantity(node["status"]["allocatable"]["cpu"])
    if not free:
        raise CheckFailed("no Node is Ready, without taints and not cordoned: ordinary pods have nowhere to go")
    for pod in context.api.items("/api/v1/pods"):
        name = pod["spec"].get("nodeName")
        if name in free and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            free[name] -= requested_cpu(pod)
    return free


def requested_cpu(pod: Object) -> Decimal:
    """CPU the scheduler counts for a pod: its containers together, or its largest init container where that is more
    (https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers)."""

    def request(container: Object) -> Decimal:
        return quantity(((container.get("resources") or {}).get("requests") or {}).get("cpu", "0"))

    spec = pod["spec"]
    inits = spec.get("initContainers") or []
    sidecars = sum((request(item) for item in inits if item.get("restartPolicy") == "Always"), Decimal(0))
    running = sum((request(item) for item in spec["containers"]), sidecars)
    starting = max((request(item) for item in inits), default=Decimal(0))
    return max(running, starting) + quantity((spec.get("overhead") or {}).get("cpu", "0"))


def quantity(text: str) -> Decimal:
    """A CPU quantity of the Kubernetes API (``2``, ``0.5``, ``1900m``) in cores.

    Raises:
        CheckFailed: it is none.
    """
    try:
        return Decimal(text[:-1]) / 1000 if text.endswith("m") else Decimal(text)
    except InvalidOperation:
        raise CheckFailed(f"{text!r} is no CPU quantity") from None


def _bare_pod(context: Context, name: str, cpu: Decimal, **fields: object) -> Object:
    millicores = int((cpu * 1000).to_integral_value(rounding="ROUND_UP"))
    # no tolerations: only nodes that take any pod are counted
    return context.probe.object(
        "v1", "Pod", name, spec=context.probe.pod_spec("pause", cpu=f"{millicores}m", tolerations=[], **fields)
    )


def _scheduled(context: Context, pod: Object, seconds: float) -> str:
    def look() -> str:
        live = context.api.get(pod) or {}
        name = (live.get("spec") or {}).get("nodeName")
        if not name:
            raise NotYet(f"pod {pod['metadata']['name']} is not scheduled: {describe(live) if live else 'it is gone'}")
        return str(name)

    return patiently(look, seconds)


def _stays_pending(context: Context, pod: Object, seconds: float) -> None:
    def look() -> str:
        live = context.api.get(pod) or {}
        if (live.get("spec") or {}).get("nodeName"):
            raise CheckFailed(f"a pod larger than any node landed on {live['spec']['nodeName']}")
        conditions = (live.get("status") or {}).get("conditions") or []
        message = next((str(item.get("message")) for item in conditions if item["type"] == "PodScheduled"), "")
        if "Insufficient cpu" not in message:
            raise NotYet(f"a pod larger than any node has no reason for being Pending: {message or 'no word of the scheduler'}")
        return message

    patiently(look, seconds)
