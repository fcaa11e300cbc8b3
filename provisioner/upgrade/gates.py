"""The gates between the parts of an upgrade: what must hold before anything else moves. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from provisioner import steps
from provisioner.cluster_api import ClusterApi, ClusterApiError
from provisioner.config import Node
from provisioner.errors import WaitTimeout
from provisioner.session import Session
from provisioner.upgrade import workloads
from provisioner.upgrade.course import Course, served
from provisioner.upgrade.skew import Version
from provisioner.upgrade.workloads import Agent, Workload
from provisioner.wait import NotYet, wait_until


def all_served(planes: Iterable[Node], api: ClusterApi, version: Version) -> None:
    """Look once at API servers.

    Raises:
        NotYet: one is not ready, or serves another version.
    """
    for node in planes:
        steps.ready_server(api, node)
        try:
            found = served(api, node)
        except ClusterApiError as error:
            raise NotYet(error.message) from None
        if found != version:
            raise NotYet(f"{node.name} serves {found}")


def not_yet(api: ClusterApi, name: str, version: Version, excused: frozenset[Agent]) -> str:
    """Why a Node does not count as Ready with a version; empty where it does, its agents included."""
    node = api.get({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
    if why := steps.not_ready(node):
        return why
    assert node is not None  # noqa: S101 - by not_ready
    running = node["status"]["nodeInfo"]["kubeletVersion"]
    if Version.of(running) != version:
        return f"its kubelet runs {running}"
    waiting = sorted(f"{owner} of {namespace}" for namespace, owner in workloads.unready_agents(api, name) - excused)
    return f"not Ready on it: {', '.join(waiting)}" if waiting else ""


def await_whole(api: ClusterApi, before: Mapping[str, Workload], after: str, *, seconds: float, hint: str) -> None:
    """Wait until whatever was whole at the beginning is whole again.

    Args:
        before: the workloads at the beginning.
        after: what has just been done.
        seconds: the deadline.
        hint: the remedy.

    Raises:
        WaitTimeout: names those that are not.
    """
    waiting: list[Workload] = []

    def whole() -> None:
        # those that were waited for alone: a large cluster has thousands of others, which are looked at once more in the end
        waiting[:] = _still(api, waiting) or workloads.fallen(before, workloads.look(api))
        if waiting:
            raise NotYet(", ".join(str(one) for one in waiting))

    wait_until(
        f"after {after}: every workload Ready that was so before",
        whole,
        seconds=seconds,
        every=0.5,
        hint=hint,
        retry_on=(ClusterApiError,),
    )


def _still(api: ClusterApi, waiting: Iterable[Workload]) -> list[Workload]:
    """Those that are not whole yet."""
    return [now for one in waiting if (now := workloads.again(api, one)) is not None and not now.whole]


def settled(session: Session, course: Course, *, seconds: float) -> Course:
    """A run that was cut short may have left workloads on their way: they get the time that a wave would give them."""
    with session.api() as api:
        waiting = list(workloads.broken(course.workloads))

        def whole() -> None:
            waiting[:] = _still(api, waiting)
            if waiting:
                raise NotYet(", ".join(str(one) for one in waiting))

        try:
            wait_until("every workload Ready", whole, seconds=seconds, every=1, retry_on=(ClusterApiError,))
        except WaitTimeout as error:
            session.display.say(f"warning: {error.message}; these are not waited for any more")
        return replace(course, workloads=workloads.look(api))
