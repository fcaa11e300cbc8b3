"""What the controller itself knows: cluster.yaml, the journal of runs, the last run's log. Nothing of the PKI."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from provisioner.errors import ProvisionerError
from provisioner.redact import redact_document
from provisioner.support.model import Files, Question
from provisioner.workspace import Workspace

# Records of the journal; bytes of each file of a log, its end.
RECORDS = 500
BYTES = 2 << 20
SECONDS = 15.0
# Of a run's log: copies of what is elsewhere, or of no use.
LEFT_OUT = frozenset({"fact_cache", "job_events", "tmp", "env", "inventory"})


def questions(workspace: Workspace) -> Iterator[Question]:
    """Everything that the workspace is asked."""
    yield Question("controller: journal of runs", SECONDS, partial(_journal, workspace.journal))
    yield Question("controller: log of the last run", SECONDS, partial(_last_run, workspace.logs))


def _journal(path: Path, _seconds: float) -> Files:
    if not path.exists():
        raise ProvisionerError("there is none: nothing was run from this workspace yet")
    lines = []
    for line in _end(path).splitlines()[-RECORDS:]:
        try:
            lines.append(json.dumps(redact_document(json.loads(line))))
        except ValueError:
            lines.append(line)
    return {"controller/journal.jsonl": "\n".join(lines)}


def _last_run(logs: Path, _seconds: float) -> Files:
    runs = sorted(path for path in logs.glob("*") if path.is_dir())
    if not runs:
        raise ProvisionerError("there is none: nothing was run from this workspace yet")
    files = {}
    for path in [*sorted(runs[-1].rglob("*")), logs / "ssh.log"]:
        inside = path.relative_to(logs)
        if LEFT_OUT.intersection(inside.parts) or not path.exists() or not stat.S_ISREG(path.lstat().st_mode):
            continue
        files[f"controller/logs/{inside}"] = _end(path)
    return files


def _end(path: Path) -> str:
    """The last part of a file, whole lines."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - BYTES))
        text = file.read(BYTES).decode(errors="replace")
    return text if size <= BYTES else "(cut off)\n" + text.partition("\n")[2]
