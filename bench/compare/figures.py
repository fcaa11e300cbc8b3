"""What a cluster's day costs, by the real command line: tasks, a second `apply`, a worker more and less, a backup, a restore.

    python -m bench.compare.figures [--runs 3] [--out FILE]

Three control planes and two workers, and a spare machine that is added. The upgrade is not made again here: its figures are
those of `make drill-upgrade`, which makes it under load.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.compare import machines
from bench.compare.race import CONTROL_PLANES, ROOT, WORKERS, describe_code, describe_machine
from bench.compare.toolkit import PROVISIONER, journal
from provisioner.workspace import write_atomic

LAB = "figures"
SECONDS = 600
RESULTS = ROOT / "bench/results"


def one_run(directory: Path) -> dict[str, Any]:
    """One cluster from its birth to its restore; seconds of every command.

    Raises:
        RuntimeError: a command fails.
    """
    backup = directory / "backup"
    backup.unlink(missing_ok=True)
    with machines.fresh(LAB, directory, control_planes=CONTROL_PLANES, workers=WORKERS, spares=1) as (place, path):
        log = path.parent / "journal.jsonl"
        found: dict[str, Any] = {"load_before": round(os.getloadavg()[0], 2)}
        spare = str(place.machine("spare-1").address)
        commands: dict[str, list[str]] = {
            "apply": ["apply", "--yes"],
            "second_apply": ["apply", "--yes"],
            "add_worker": ["node", "add", "added", "--address", spare, "--yes"],
            "remove_worker": ["node", "remove", "added", "--yes"],
            "snapshot": ["etcd", "snapshot", "--plain", "--output", str(backup)],
            "restore": ["etcd", "restore", str(backup), "--yes"],
        }
        for name, words in commands.items():
            began_at, began = dt.datetime.now(dt.UTC), time.monotonic()
            done = subprocess.run(
                [str(PROVISIONER), *words, "--cluster", str(path)], capture_output=True, text=True, check=False, timeout=SECONDS
            )
            found[f"{name}_s"] = round(time.monotonic() - began, 2)
            if done.returncode:
                raise RuntimeError(f"{' '.join(words)}: exit code {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
            told = journal(log, began_at)
            found[f"{name}_tasks"] = {host: dict(counts) for host, counts in told["tasks"].items()}
        return found


def upgrade() -> dict[str, Any] | None:
    """The newest figures of the upgrade drill: its name, seconds, and the file."""
    files = sorted(RESULTS.glob("upgrade-*.json"))
    if not files:
        return None
    drill = json.loads(files[-1].read_text())["drills"][0]
    return {"file": files[-1].name, "drill": drill["drill"], "seconds": drill["seconds"]}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / f"figures-{dt.datetime.now(dt.UTC):%Y-%m-%d}.json")
    options = parser.parse_args()
    document: dict[str, Any] = {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "code": describe_code(),
        "shape": {"control_planes": CONTROL_PLANES, "workers": WORKERS},
        "upgrade": upgrade(),
        "runs": [],
    }
    with tempfile.TemporaryDirectory(prefix="figures-") as directory:
        for number in range(options.runs):
            document["runs"].append(one_run(Path(directory)))
            write_atomic(options.out, json.dumps(document, indent=1) + "\n", mode=0o644)
            seconds = {name: value for name, value in document["runs"][-1].items() if name.endswith("_s")}
            print(f"figures: run {number + 1} of {options.runs}: {seconds}")
    print(f"figures: raw figures in {options.out}")


if __name__ == "__main__":
    main()
