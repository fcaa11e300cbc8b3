"""What the controller spends on 5, 50 and 200 machines: the real `provisioner plan`, and machines that are bare.

    python -m bench.compare.scale [--machines 5 50 200] [--runs 3] [--out FILE]

The machines are the lab's: each a Debian 12 in systemd-nspawn with its own systemd, sshd, Python, machine id, addresses and disk,
all booted at once on this one host. What is simulated: they are bare (nothing of Kubernetes runs on them, so the plan is all there
is to do), and they share two cores with the controller. `plan` connects to every machine, takes its facts, judges it, issues
certificates into a scratch copy, renders every file of every machine, asks each for its state through Ansible, and compares.

CPU and memory are those of a control group in which the command runs with everything that it starts (forks of Ansible, ssh), and
nothing of the machines. Wall time has the machines' share in it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from bench.compare import machines
from bench.compare.race import ROOT, describe_code, describe_machine
from provisioner.lab import cgroups
from provisioner.workspace import Workspace, write_atomic

LAB = "scale"
GROUP = "race.driver"
CONTROL_PLANES = 5
SECONDS = 900
PROVISIONER = Path(sys.executable).parent / "provisioner"


class Meter:
    """A control group for one command: CPU seconds, and the most anonymous memory at once (looked at twenty times a second)."""

    def __init__(self) -> None:
        self._groups = cgroups.detect()
        self._directories = self._groups.create(GROUP) if not self._groups.scopes else ()
        self._most = 0
        self._done = threading.Event()

    def run(self, command: list[str], log: Path) -> dict[str, Any]:
        """Run a command in it.

        Raises:
            RuntimeError: it ended with another code than 0 or 2 (a plan with changes).
        """
        script = "".join(f"echo $$ > {directory}/cgroup.procs\n" for directory in self._directories) + 'exec "$@"\n'
        watcher = threading.Thread(target=self._watch)
        cpu = self._cpu()
        began = time.monotonic()
        watcher.start()
        try:
            with log.open("w") as file:
                done = subprocess.run(["sh", "-c", script, "sh", *command], stdout=file, stderr=file, check=False, timeout=SECONDS)
        finally:
            self._done.set()
            watcher.join()
        if done.returncode not in (0, 2):
            raise RuntimeError(f"{' '.join(command)}: exit code {done.returncode}: {log.read_text()[-3000:]}")
        return {
            "exit": done.returncode,
            "wall_s": round(time.monotonic() - began, 2),
            "cpu_s": round(self._cpu() - cpu, 2),
            "memory_mib": round(self._most / (1 << 20), 1),
        }

    def close(self) -> None:
        """End what is left in the group (there is nothing), and delete it."""
        self._groups.remove(GROUP)

    def _read(self, name: str) -> str | None:
        for directory in self._directories:
            with contextlib.suppress(OSError):
                return (directory / name).read_text()
        return None

    def _cpu(self) -> float:
        if (nanoseconds := self._read("cpuacct.usage")) is not None:
            return int(nanoseconds) / 1e9
        fields = dict(line.split() for line in (self._read("cpu.stat") or "usage_usec 0").splitlines())
        return int(fields["usage_usec"]) / 1e6

    def _watch(self) -> None:
        while not self._done.wait(0.05):
            fields = dict(line.split() for line in (self._read("memory.stat") or "").splitlines())
            self._most = max(self._most, int(fields.get("total_rss", fields.get("anon", 0))))


def part_of(cluster_file: Path, machines: int) -> Path:
    """A cluster.yaml of some of the lab's machines, in a workspace of its own."""
    document = yaml.safe_load(cluster_file.read_text())
    name = f"{LAB}-{machines}"
    directory = cluster_file.parent.parent / name
    directory.mkdir(mode=0o700)
    nodes = document["nodes"]
    planes = [node for node in nodes if "control-plane" in node["roles"]]
    workers = [node for node in nodes if node not in planes]
    # etcd on three of five machines, on five from fifty on
    count = 3 if machines < 50 else CONTROL_PLANES
    document |= {"name": name, "nodes": [*planes[:count], *workers][:machines]}
    path = directory / cluster_file.name
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    for key in (document["ssh"]["key"],):
        shutil.copy2(cluster_file.parent / key, directory / key)
    known = Workspace.of(cluster_file, LAB).known_hosts
    target = Workspace.of(path, name).known_hosts
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    shutil.copy2(known, target)
    return path


def measure(counts: list[int], runs: int, out: Path) -> dict[str, Any]:
    """Boot as many machines as the largest count needs, and plan for each count.

    Raises:
        LabError: they do not boot.
        RuntimeError: a plan fails.
    """
    document: dict[str, Any] = {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "code": describe_code(),
        "command": "provisioner plan --no-diff",
        "runs_each": runs,
        "runs": [],
    }
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="scale-") as directory,
        machines.fresh(LAB, Path(directory), control_planes=CONTROL_PLANES, workers=max(counts) - CONTROL_PLANES) as (_, path),
    ):
        document["boot_s"] = round(time.monotonic() - began, 1)
        print(f"scale: {max(counts)} machines are up after {document['boot_s']} s")
        log = Path(directory) / "plan.log"
        for count in counts:
            part = part_of(path, count)
            for number in range(runs):
                meter, load = Meter(), round(os.getloadavg()[0], 2)
                try:
                    found = meter.run([str(PROVISIONER), "plan", "--no-diff", "--cluster", str(part)], log)
                finally:
                    meter.close()
                last = log.read_text().strip().splitlines()[-1]
                document["runs"].append({"machines": count, "run": number + 1, "load_before": load, **found, "says": last})
                write_atomic(out, json.dumps(document, indent=1) + "\n", mode=0o644)
                print(f"scale: {count} machines, run {number + 1}: {found}; {last}")
    return document


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--machines", type=int, nargs="+", default=[5, 50, 200])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / f"bench/results/scale-{dt.datetime.now(dt.UTC):%Y-%m-%d}.json")
    options = parser.parse_args()
    measure(sorted(options.machines), options.runs, options.out)
    print(f"scale: raw figures in {options.out}")


if __name__ == "__main__":
    main()
