"""The lab's machines in the race's hand: commands over SSH, and files put on their disks before the clock starts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from provisioner import lab
from provisioner.lab import Lab, Machine

# bound into every machine from the host's own file system: what is put there needs no network
SHELF = "/var/lib/provisioner/race"


@contextmanager
def fresh(name: str, directory: Path, *, control_planes: int, workers: int, spares: int = 0) -> Iterator[tuple[Lab, Path]]:
    """A lab of machines that nobody has used, and its cluster.yaml; gone afterwards, and also where an earlier run has left one.

    Raises:
        LabError: the machines do not come up.
    """
    # so that `kill` ends a run as Ctrl-C does: the machines are taken down
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    lab.down(name)
    try:
        file = lab.up(name, control_planes=control_planes, workers=workers, spares=spares, directory=directory / "workspace" / name)
        yield lab.get(name), file
    finally:
        lab.down(name)


def ssh(name: str, node: str, script: str, *, timeout: float = 300) -> str:
    """Run a shell script as root and return what it printed.

    Raises:
        RuntimeError: it failed; the last lines of its output are in the message.
    """
    command = lab.ssh_command(name, node, ["sh", "-eu", "-s"])
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(f"{node}: exit code {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def everywhere(machines: Sequence[Machine], function: Callable[[Machine], object]) -> None:
    """Call a function for every machine, all at once; the first error is raised when all are done."""
    with ThreadPoolExecutor(max_workers=max(1, len(machines))) as pool:
        for future in [pool.submit(function, machine) for machine in machines]:
            future.result()


def shelve(place: Lab, machine: Machine, files: Mapping[str, Path | str]) -> None:
    """Put files on a machine's shelf, by their name there: a path is linked (or copied), text is written."""
    shelf = place.disk(machine) / "var/provisioner" / Path(SHELF).name
    for name, content in files.items():
        target = shelf / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            target.write_text(content)
            continue
        try:
            os.link(content, target)
        except OSError:
            shutil.copyfile(content, target)


def cpu_seconds(place: Lab) -> float | None:
    """CPU seconds of all machines since their boot, where cgroup v1 accounts for it."""
    usages = [Path("/sys/fs/cgroup/cpuacct") / place.resource(machine) / "cpuacct.usage" for machine in place.machines]
    if not all(path.exists() for path in usages):
        return None
    return round(sum(int(path.read_text()) for path in usages) / 1e9, 1)
