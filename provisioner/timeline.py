"""When what was done: a run's tasks on each host as they end, written beside its log; and the last run, read back.

The journal has the phases (``phases.py``), ``tasks.jsonl`` in the run's directory the tasks. Tells, never decides.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from provisioner.events import TaskStep
from provisioner.workspace import Workspace

TASKS = "tasks.jsonl"
# Phases that look; a run with no other one has changed nothing.
LOOKING = frozenset({"preflight", "artifacts", "pki", "state"})
# Commands that only ask.
ASKING = frozenset({"plan", "upgrade --plan"})


@dataclass(frozen=True, slots=True)
class Task:
    """A task on one host. ``began``: as time.time() counts; ``status``: ok, changed, skipped, failed, unreachable, set aside."""

    host: str
    play: str
    role: str
    task: str
    status: str
    began: float
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether it did not do what it should."""
        return self.status in ("failed", "unreachable", "set aside")


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """A phase of the run. ``seconds`` is None where its end is not on record; ``state``: done, failed, cut short."""

    name: str
    began: float
    seconds: float | None
    state: str
    error: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a command that changes a cluster.

    Attributes:
        command: ``apply``, ``node add``, ...
        began: as time.time() counts.
        seconds: to its end, or to the last thing on record.
        state: done, failed, or ``no end on record``: it runs, or was killed.
        error: why it failed.
        phases: in the order of their beginnings.
        tasks: on the hosts, in the order of their ends; empty where none was run, or its log is gone.
        later: runs since then that have looked at every machine and found nothing to change.
    """

    command: str
    began: float
    seconds: float
    state: str
    error: str
    phases: tuple[PhaseTime, ...]
    tasks: tuple[Task, ...]
    later: int = 0

    @property
    def changed(self) -> bool:
        """Whether it came as far as changing something."""
        return any(phase.name not in LOOKING for phase in self.phases)

    def to_json(self) -> dict[str, Any]:
        """For --json; times in seconds since the run began."""

        def since(began: float) -> float:
            return round(began - self.began, 3)

        return {
            "command": self.command,
            "began": dt.datetime.fromtimestamp(self.began, dt.UTC).isoformat(timespec="milliseconds"),
            "seconds": round(self.seconds, 3),
            "state": self.state,
            "error": self.error,
            "laterRunsWithoutChange": self.later,
            "phases": [
                {
                    "name": phase.name,
                    "at": since(phase.began),
                    "seconds": None if phase.seconds is None else round(phase.seconds, 3),
                    "state": phase.state,
                    "error": phase.error,
                }
                for phase in self.phases
            ],
            "tasks": [
                {
                    "host": task.host,
                    "play": task.play,
                    "role": task.role,
                    "task": task.task,
                    "status": task.status,
                    "at": since(task.began),
                    "seconds": round(task.seconds, 3),
                }
                for task in self.tasks
            ],
        }


@contextmanager
def written(log: Path, then: Callable[[TaskStep], None]) -> Iterator[Callable[[TaskStep], None]]:
    """What hands each step on to ``then``, and writes down those that ended: what a killed run did is on record, too.

    Args:
        log: the run's directory.
        then: whoever shows the run.
    """
    log.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (log / TASKS).open("a", encoding="utf-8", buffering=1) as file:
        (log / TASKS).chmod(0o600)

        def take(step: TaskStep) -> None:
            if step.host:
                line = {
                    "host": step.host,
                    "play": step.play,
                    "role": step.role,
                    "task": step.task,
                    "status": step.status,
                    "began": round(step.began, 3),
                    "seconds": round(step.seconds, 3),
                }
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
            then(step)

        yield take


def last_run(workspace: Workspace) -> Run | None:
    """The last run that has changed something; where none has, the last one; None where there was none."""
    try:
        text = workspace.journal.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    runs = _runs(_records(text.splitlines()))
    if not runs:
        return None
    changed = [index for index, records in enumerate(runs) if _changes(records)]
    index = changed[-1] if changed else len(runs) - 1
    log = Path(str(runs[index][0].get("log", "")))
    # a workspace may have been moved with its logs
    places = (log, workspace.logs / log.name)
    lines = next((path.read_text(encoding="utf-8", errors="replace") for at in places if (path := at / TASKS).is_file()), "")
    return run_of(runs[index], _records(lines.splitlines()), later=sum(map(_found_nothing, runs[index + 1 :])))


def run_of(records: Sequence[Mapping[str, Any]], tasks: Iterable[Mapping[str, Any]], *, later: int = 0) -> Run:
    """A run out of its records. Pure.

    Args:
        records: of the journal, from the one called ``run`` on.
        tasks: lines of ``tasks.jsonl``.
        later: see :class:`Run`.
    """
    began = _time(records[0])
    phases: list[PhaseTime] = []
    state, error = "no end on record", ""
    for record in records[1:]:
        at, kind = _time(record), record.get("event")
        if kind == "phase" and record.get("state") == "started":
            phases.append(PhaseTime(str(record.get("phase")), at, None, "cut short"))
        elif kind == "phase":
            open_ones = [index for index, phase in enumerate(phases) if phase.name == record.get("phase") and phase.seconds is None]
            if open_ones:
                begun = phases[open_ones[-1]]
                phases[open_ones[-1]] = PhaseTime(
                    begun.name, begun.began, at - begun.began, str(record.get("state")), str(record.get("error") or "")
                )
        elif kind in ("done", "failed"):
            state, error = str(kind), str(record.get("error") or "")
    done = tuple(
        Task(
            str(task.get("host")),
            str(task.get("play")),
            str(task.get("role")),
            str(task.get("task")),
            str(task.get("status")),
            float(task.get("began") or began),
            float(task.get("seconds") or 0),
        )
        for task in tasks
    )
    end = max([_time(record) for record in records] + [task.began + task.seconds for task in done])
    return Run(str(records[0].get("command")), began, end - began, state, error, tuple(phases), done, later)


def _records(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            # the last line of a run that was killed may be half of one
            continue
        if isinstance(record, dict):
            yield record


def _runs(records: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    runs: list[list[Mapping[str, Any]]] = []
    open_one = False
    for record in records:
        if record.get("event") == "run":
            open_one = record.get("command") not in ASKING
            if open_one:
                runs.append([record])
        # `verify` is no run, also where the one before it was killed
        elif open_one and record.get("event") != "verify":
            runs[-1].append(record)
            open_one = record.get("event") not in ("done", "failed")
    return runs


def _changes(records: Iterable[Mapping[str, Any]]) -> bool:
    return any(record.get("event") == "phase" and record.get("phase") not in LOOKING for record in records)


def _found_nothing(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run came to its end after it had looked; `etcd snapshot`, say, does not look."""
    return records[-1].get("event") == "done" and any(record.get("event") == "phase" for record in records)


def _time(record: Mapping[str, Any]) -> float:
    try:
        return dt.datetime.fromisoformat(str(record.get("time"))).timestamp()
    except ValueError:
        return 0.0
