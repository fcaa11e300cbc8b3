from __future__ import annotations

import json
from pathlib import Path

from provisioner.events import Tally, TaskStep
from provisioner.timeline import TASKS, last_run, run_of, written
from provisioner.workspace import Workspace


def at(seconds: float, event: str, **values: object) -> dict[str, object]:
    return {"time": f"2026-01-02T03:00:{seconds:06.3f}+00:00", "event": event, **values}


RECORDS = [
    at(0, "run", command="apply", log="/nowhere"),
    at(0, "phase", phase="preflight", state="started"),
    at(1, "phase", phase="preflight", state="done"),
    at(1, "phase", phase="nodes", state="started"),
    at(2, "phase", phase="objects", state="started"),
    at(3, "phase", phase="objects", state="failed", error="no <API>"),
    at(9, "failed", command="apply", error="broken", exit=1),
]


def journal(path: Path, *runs: list[dict[str, object]], rest: str = "") -> Workspace:
    path.mkdir(exist_ok=True)
    (path / "journal.jsonl").write_text("".join(json.dumps(record) + "\n" for run in runs for record in run) + rest)
    return Workspace(path, path / "cluster.yaml")


def test_a_run_out_of_its_records() -> None:
    run = run_of(RECORDS, [{"host": "a", "play": "p", "role": "r", "task": "t", "status": "changed", "began": 1.5, "seconds": 2}])
    assert (run.command, run.state, run.error, run.seconds) == ("apply", "failed", "broken", 9)
    assert [(phase.name, phase.state, phase.seconds) for phase in run.phases] == [
        ("preflight", "done", 1),
        ("nodes", "cut short", None),
        ("objects", "failed", 1),
    ]
    assert run.phases[2].error == "no <API>"
    assert (run.tasks[0].host, run.tasks[0].seconds, run.tasks[0].failed) == ("a", 2, False)


def test_a_killed_run_has_no_end_on_record() -> None:
    run = run_of(RECORDS[:5], [])
    assert (run.state, run.seconds) == ("no end on record", 2)


def test_the_last_run_that_changed_something(tmp_path: Path) -> None:
    plan = [at(10, "run", command="plan"), at(11, "phase", phase="state", state="started"), at(12, "done", command="plan")]
    idle = [at(20, "run", command="apply"), at(21, "phase", phase="state", state="started"), at(22, "done", command="apply")]
    workspace = journal(tmp_path, RECORDS, plan, idle, rest='{"time": "2026-01-02T03:0')
    run = last_run(workspace)
    assert run is not None
    assert (run.state, run.later) == ("failed", 1), "plan is no run, apply with nothing to do is one"
    only_idle = last_run(journal(tmp_path, plan, idle))
    assert only_idle is not None
    assert (only_idle.command, [phase.name for phase in only_idle.phases]) == ("apply", ["state"])
    assert last_run(journal(tmp_path, plan)) is None
    assert last_run(Workspace(tmp_path / "none", tmp_path / "cluster.yaml")) is None


def looks(second: int, command: str, end: str = "done") -> list[dict[str, object]]:
    """A run that looks and ends."""
    return [at(second, "run", command=command), at(second, "phase", phase="state", state="started"), at(second + 1, end)]


def test_only_runs_that_found_nothing_to_change_are_counted(tmp_path: Path) -> None:
    snapshot = [at(30, "run", command="etcd snapshot"), at(31, "done")]
    asked, declined = looks(32, "upgrade --plan"), looks(34, "apply", "failed")
    run = last_run(journal(tmp_path, RECORDS, looks(10, "apply"), snapshot, asked, declined))
    assert run is not None
    assert (run.command, run.began, run.later, run.changed) == ("apply", run_of(RECORDS, []).began, 1, True)
    idle = last_run(journal(tmp_path, looks(10, "apply"), asked))
    assert idle is not None
    assert (idle.later, idle.changed) == (0, False)


def test_what_comes_after_a_killed_run_is_not_its_own(tmp_path: Path) -> None:
    run = last_run(journal(tmp_path, RECORDS[:5], [at(50, "verify", level="smoke", passed=True)]))
    assert run is not None
    assert (run.state, run.seconds) == ("no end on record", 2)


def test_tasks_are_on_record_while_the_run_goes_on_and_come_back(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "20260102-apply"
    seen: list[TaskStep] = []
    with written(log, seen.append) as told:
        tally = Tally(told)
        tally.take({"event": "playbook_on_task_start", "event_data": {"play": "p", "task": "t"}})
        data = {"host": "a", "play": "p", "role": "r", "task": "t", "duration": 1.5, "start": "2026-01-02T03:00:02.500000"}
        tally.take({"event": "runner_on_ok", "event_data": {**data, "res": {"changed": True}}})
        assert len((log / TASKS).read_text().splitlines()) == 1, "before the end of the run"
        tally.take({"event": "runner_on_failed", "event_data": {**data, "host": "b", "res": {"msg": "no"}}})
    assert [step.status for step in seen] == ["started", "changed", "failed"]
    assert (log / TASKS).stat().st_mode & 0o777 == 0o600
    # the workspace has moved since: the log is found beside the journal
    run = last_run(journal(tmp_path, [{**RECORDS[0], "log": f"/elsewhere/{log.name}"}, *RECORDS[1:]]))
    assert run is not None
    assert [(task.host, task.status, task.began - run.began, task.failed) for task in run.tasks] == [
        ("a", "changed", 2.5, False),
        ("b", "failed", 2.5, True),
    ]
    document = run.to_json()
    assert document["tasks"][0] == {
        "host": "a", "play": "p", "role": "r", "task": "t", "status": "changed", "at": 2.5, "seconds": 1.5,
    }  # fmt: skip
    assert document["phases"][1]["seconds"] is None
