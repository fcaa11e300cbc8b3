"""The cluster by this toolkit, through its command line.

The harsh case, and the headline: the machines are bare, the controller's cache of artifacts is warm; everything is sent with the
clock running. With ``placed`` binaries and image archives lie on the machines' disks beforehand, as kubeadm has them (kubeadm's are
imported and unpacked besides, and its containerd runs).
"""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.compare import machines
from bench.compare.materials import Materials
from bench.compare.watch import Watcher
from provisioner.artifacts import load_lock, wanted_for
from provisioner.artifacts.toolchain import machine as architecture
from provisioner.lab import Lab, Machine
from provisioner.load import load
from provisioner.render import binary_path
from provisioner.render.machine import IMAGE_DIR
from provisioner.workspace import Workspace

PROVISIONER = Path(sys.executable).parent / "provisioner"
SECONDS = 600.0


def place(where: Lab, cluster_file: Path, materials: Materials) -> None:
    """Put binaries and image archives where `apply` would put them."""
    lock, cluster = load_lock(), load(cluster_file)

    def one(machine: Machine) -> None:
        wants = wanted_for(cluster, lock, arch=architecture(), roles=machine.roles)
        lines = ["umask 022"]
        for number, want in enumerate(wants):
            image = want.name.startswith("images/")
            target = f"{IMAGE_DIR}/{Path(want.name).name}" if image else binary_path(want.name)
            lines.append(f"install -D -o root -g root -m {'644' if image else '755'} {machines.SHELF}/{number} {target}")
        lines.append(f"rm -rf {machines.SHELF}")
        machines.shelve(where, machine, {str(number): materials.files[want.name].path for number, want in enumerate(wants)})
        machines.ssh(where.name, machine.name, "\n".join(lines) + "\n")

    machines.everywhere(where.machines, one)


class Race:
    """One run of `provisioner apply --yes`, its own verification included, as users get it.

    Args:
        where: the lab.
        cluster_file: its cluster.yaml.
        directory: for the log.
    """

    def __init__(self, where: Lab, cluster_file: Path, directory: Path) -> None:
        self._lab, self._file, self._log = where, cluster_file, directory / "apply.log"
        self.kubeconfig = Workspace.of(cluster_file, where.name).kubeconfig
        self.milestones: dict[str, Any] = {}

    def run(self) -> None:
        """Until the command has ended well and all nodes were Ready.

        Raises:
            RuntimeError, TimeoutError: something failed; the message has the command's last lines.
        """
        watcher = Watcher(lambda: self.kubeconfig if self.kubeconfig.exists() else None, len(self._lab.machines))
        command = [str(PROVISIONER), "apply", "--yes", "--cluster", str(self._file)]
        began_at, began = dt.datetime.now(dt.UTC), time.monotonic()
        watcher.start(began)
        try:
            with self._log.open("w") as log:
                done = subprocess.run(command, stdout=log, stderr=log, check=False, timeout=SECONDS)
            self.milestones["commands_done_s"] = round(time.monotonic() - began, 2)
            if done.returncode:
                raise RuntimeError(f"apply: exit code {done.returncode}: {self._log.read_text()[-3000:]}")
            watcher.wait(10)
        finally:
            watcher.stop()
            self.milestones |= watcher.milestones
            self.milestones |= journal(self._file.parent / "journal.jsonl", began_at)


def journal(path: Path, began: dt.datetime) -> dict[str, Any]:
    """What the toolkit itself has written down since ``began``: seconds and end of each phase, tasks per host, seconds per task."""
    if not path.exists():
        return {}
    lines: list[Mapping[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    # runs before this one have left theirs
    events = [event for event in lines if dt.datetime.fromisoformat(event["time"]) >= began]
    tasks: dict[str, Counter[str]] = defaultdict(Counter)
    task_seconds: Counter[str] = Counter()
    found: dict[str, Any] = {"phase_done_s": {}, "tasks": tasks, "task_seconds": task_seconds}
    for event in events:
        if event["event"] == "phase" and event["state"] == "done":
            at = dt.datetime.fromisoformat(event["time"]) - began
            found["phase_done_s"][event["phase"]] = round(at.total_seconds(), 2)
        elif event["event"] == "seconds":
            found["phases_s"] = {name: value for name, value in event.items() if isinstance(value, float)}
        elif event["event"] == "playbooks":
            task_seconds.update(event["seconds"])
            for host, count in event["counts"].items():
                tasks[host].update(count)
    return found
