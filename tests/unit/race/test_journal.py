"""What a command of the toolkit has done, out of a workspace's journal."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

from bench.compare.toolkit import journal

BEGAN = dt.datetime(2030, 1, 1, 12, tzinfo=dt.UTC)


def record(second: int, event: str, **values: object) -> str:
    return json.dumps({"time": (BEGAN + dt.timedelta(seconds=second)).isoformat(), "event": event, **values})


def test_what_runs_before_it_have_done_is_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = [
        record(-9, "playbooks", seconds={"a": 3.0}, counts={"cp-1": {"executed": 27, "changed": 13}}),
        record(-8, "phase", phase="machines", state="done"),
        record(1, "phase", phase="state", state="done"),
        record(2, "playbooks", seconds={"a": 1.0}, counts={"cp-1": {"executed": 1}}),
    ]
    path.write_text("\n".join(lines) + "\n")
    found = journal(path, BEGAN)
    assert found["tasks"] == {"cp-1": {"executed": 1}}
    assert found["task_seconds"] == {"a": 1.0}
    assert found["phase_done_s"] == {"state": 1.0}
