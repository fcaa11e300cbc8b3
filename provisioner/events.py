"""ansible-runner's events, read once: who did what, what failed and why, and the counts that `make bench` prints."""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from provisioner import quarantine


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that failed on a host, or a host that did not answer."""

    host: str
    task: str
    role: str
    reason: str
    unit: str = ""
    journal: tuple[str, ...] = ()
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class TaskStep:
    """A task has started on some hosts, or ended on one; there it ``began`` at a time as time.time() counts."""

    play: str
    role: str
    task: str
    host: str = ""
    status: str = "started"
    seconds: float = 0.0
    began: float = 0.0


@dataclass(slots=True)
class Tally:
    """What a run of playbooks did, gathered from its events.

    ``results`` holds what ``host_state`` or ``reset_machine`` returned, by host; ``aside`` why hosts were set aside; ``counts`` per
    host the numbers of executed, changed and skipped tasks; ``seconds`` per (play, task) the longest time on any host.
    """

    on_step: Callable[[TaskStep], None]
    failures: list[Failure] = field(default_factory=list)
    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    aside: dict[str, Failure] = field(default_factory=dict)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> bool:
        """Event handler of ansible-runner. Returns False: the event files are of no use, the run's log has the text."""
        kind, data = str(event.get("event", "")), event.get("event_data") or {}
        if kind == "playbook_on_task_start":
            self.on_step(TaskStep(data.get("play", ""), data.get("role", ""), data.get("task", "")))
        elif kind in ("runner_on_ok", "runner_on_failed", "runner_on_unreachable", "runner_on_skipped"):
            self._result(kind.removeprefix("runner_on_"), data)
        return False

    def _result(self, status: str, data: Mapping[str, Any]) -> None:
        host, task, play, role = (str(data.get(name) or "") for name in ("host", "task", "play", "role"))
        result = data.get("res") or {}
        if status == "failed" and data.get("ignore_errors"):
            status = "ok"
        if status == "ok" and quarantine.KEY in result:
            why = result[quarantine.KEY]
            self.aside[host] = _failure(host, task, role, why, unreachable=bool(why.get("unreachable")))
            status = "set aside"
        changed = status == "ok" and bool(result.get("changed"))
        duration = float(data.get("duration") or 0)
        count = self.counts.setdefault(host, Counter())
        count["skipped" if status == "skipped" else "executed"] += 1
        count["changed"] += changed
        key = (play, f"{role} : {task}" if role else task)
        self.seconds[key] = max(self.seconds.get(key, 0.0), duration)
        # a reset that failed tells what is still there
        if "state" in result and data.get("task_action") in ("host_state", "reset_machine"):
            self.results[host] = result["state"]
        if status in ("failed", "unreachable"):
            self.failures.append(_failure(host, task, role, result, unreachable=status == "unreachable"))
        began = _began(data.get("start"), duration)
        self.on_step(TaskStep(play, role, task, host, "changed" if changed else status, duration, began))


def _began(start: object, seconds: float) -> float:
    """When a task began on its host, by the event's own word; else so long before now as it took."""
    try:
        found = dt.datetime.fromisoformat(str(start))
    except ValueError:
        return time.time() - seconds
    return (found if found.tzinfo else found.replace(tzinfo=dt.UTC)).timestamp()


def _failure(host: str, task: str, role: str, result: Mapping[str, Any], *, unreachable: bool) -> Failure:
    reason = str(result.get("msg") or result.get("stderr") or "the task gave no reason").strip()
    if detail := str(result.get("module_stderr") or "").strip():
        reason += f": {detail.splitlines()[-1]}"
    return Failure(
        host,
        task,
        role,
        reason,
        str(result.get("unit") or ""),
        tuple(str(line) for line in result.get("journal") or ()),
        unreachable,
    )
