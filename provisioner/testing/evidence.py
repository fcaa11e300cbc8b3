"""What the cluster was like when a test failed: pods, warnings, the last lines of containers that are not well."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from provisioner.testing.cluster import Cluster

# A dead cluster must not make a failed test wait.
SECONDS = 10.0
REQUEST_SECONDS = 3.0
EVENTS = 20
LOG_LINES = 20
LOGS = 5


def collect(cluster: Cluster, namespace: str | None) -> str:
    """Text for a report; never raises, for the test's own failure is what matters.

    Args:
        namespace: the test's own; None looks at Nodes and at warnings from everywhere.
    """
    end = time.monotonic() + SECONDS
    parts = (_nodes, _pods, _events, _logs) if namespace else (_nodes, _events)
    lines = [f"KUBECONFIG={cluster.kubeconfig}" + (f", namespace {namespace}" if namespace else "")]
    for part in parts:
        title = (part.__doc__ or "").rstrip(".")
        if time.monotonic() > end:
            lines.append(f"{title}: not looked at, {SECONDS:g} s are over")
            continue
        found = []
        try:
            # one by one: what was found before an error stays
            for line in part(cluster, namespace or "", lambda: time.monotonic() < end):
                found.append(line)
        except Exception as error:
            found.append(_unread(error))
        lines += [f"{title}:", *(f"  {line}" for line in found or ["none"])]
    return "\n".join(lines)


def _nodes(cluster: Cluster, _: str, __: Callable[[], bool]) -> Iterator[str]:
    """Nodes."""
    for node in cluster.core.list_node(_request_timeout=REQUEST_SECONDS).items:
        ready = next((one for one in node.status.conditions or () if one.type == "Ready"), None)
        if ready is not None and ready.status == "True":
            yield f"{node.metadata.name}: Ready"
        else:
            yield f"{node.metadata.name}: not Ready: {_short(ready.message) if ready else 'no word of its kubelet'}"


def _pods(cluster: Cluster, namespace: str, _: Callable[[], bool]) -> Iterator[str]:
    """Pods."""
    for pod in cluster.core.list_namespaced_pod(namespace, _request_timeout=REQUEST_SECONDS).items:
        containers = _containers(pod)
        ready = sum(bool(one.ready) for one in containers)
        restarts = sum(one.restart_count or 0 for one in containers)
        words = [pod.status.phase or "Unknown", f"{ready}/{len(containers)} ready", f"{restarts} restarts"]
        words += [f"on {pod.spec.node_name}" if pod.spec.node_name else "on no node"]
        for one in containers:
            state = (one.state and (one.state.waiting or one.state.terminated)) or None
            if state is not None:
                words.append(f"{one.name}: {state.reason or ''} {_short(state.message)}".strip())
        for condition in pod.status.conditions or ():
            if condition.type == "PodScheduled" and condition.status != "True":
                words.append(f"not scheduled: {_short(condition.message)}")
        yield f"{pod.metadata.name}: {', '.join(words)}"


def _events(cluster: Cluster, namespace: str, _: Callable[[], bool]) -> Iterator[str]:
    """Warnings, the newest last."""
    query: dict[str, Any] = {"field_selector": "type=Warning", "_request_timeout": REQUEST_SECONDS}
    core = cluster.core
    found = core.list_namespaced_event(namespace, **query) if namespace else core.list_event_for_all_namespaces(**query)
    events = sorted(found.items, key=lambda event: event.last_timestamp or event.event_time or event.metadata.creation_timestamp)
    for event in events[-EVENTS:]:
        about = event.involved_object
        where = f"{about.namespace}/" if about.namespace and not namespace else ""
        times = f" ({event.count} times)" if (event.count or 1) > 1 else ""
        yield f"{(about.kind or '').lower()} {where}{about.name}: {event.reason}: {_short(event.message)}{times}"


def _logs(cluster: Cluster, namespace: str, go_on: Callable[[], bool]) -> Iterator[str]:
    """Logs of containers that are not ready or were restarted."""
    read = 0
    for pod in cluster.core.list_namespaced_pod(namespace, _request_timeout=REQUEST_SECONDS).items:
        for one in _containers(pod):
            before = bool(one.restart_count) and not (one.state and one.state.running)
            started = before or (one.state and (one.state.running or one.state.terminated))
            if not started or (one.ready and not one.restart_count) or read == LOGS or not go_on():
                continue
            read += 1
            yield f"{pod.metadata.name}, {one.name}{' (before its last restart)' if before else ''}:"
            try:
                text = cluster.core.read_namespaced_pod_log(
                    pod.metadata.name,
                    namespace,
                    container=one.name,
                    tail_lines=LOG_LINES,
                    previous=before,
                    _request_timeout=REQUEST_SECONDS,
                )
            except Exception as error:
                # the others may have more to say
                text = _unread(error)
            yield from (f"  {line}" for line in str(text).splitlines())


def _unread(error: Exception) -> str:
    return f"could not be read: {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _containers(pod: Any) -> list[Any]:
    return [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]


def _short(text: str | None) -> str:
    return " ".join((text or "").split())[:240]
