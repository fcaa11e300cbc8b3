"""A machine's control groups: made before it boots, and the handle by which every process of it is found and ended.

Two kinds of host:

* cgroup v1 or hybrid: one child in **every** hierarchy, ``name=systemd`` and the controller-less v2 one included. Leave those two
  out and the machines' systemds share one tree and kill each other's units (exit 219/CGROUP).
* cgroup v2 only (every current distribution): a scope of the host's systemd with ``Delegate=yes``, or a plain child of the root
  where the host runs no systemd.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from provisioner.errors import LabError
from provisioner.lab.commands import run
from provisioner.wait import NotYet, wait_until

KILL_SECONDS = 60
V2_MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Cgroups:
    """Where this host keeps control groups.

    Attributes:
        version: 1 (hybrid included) or 2.
        hierarchies: mount points in which each machine gets a child.
        scopes: cgroup v2 under a running systemd: the child is a scope that systemd makes.
    """

    version: int
    hierarchies: tuple[Path, ...]
    scopes: bool = False

    def directories(self, name: str) -> tuple[Path, ...]:
        """The child of that name in each hierarchy, whether it exists or not."""
        if self.scopes:
            return tuple(root / "system.slice" / f"{name}.scope" for root in self.hierarchies)
        return tuple(root / name for root in self.hierarchies)

    def create(self, name: str) -> tuple[Path, ...]:
        """Make the children, ready to take processes.

        Raises:
            LabError: the kernel refuses.
        """
        if self.scopes:
            return self.directories(name)
        try:
            for directory in self.directories(name):
                directory.mkdir(exist_ok=True)
                # a v1 cpuset takes no process before it has CPUs and memory nodes
                for value in ("cpuset.cpus", "cpuset.mems"):
                    if self.version == 1 and (directory / value).exists():
                        (directory / value).write_text((directory.parent / value).read_text())
            if self.version == 2:
                root = self.hierarchies[0]
                enable = " ".join(f"+{controller}" for controller in (root / "cgroup.controllers").read_text().split())
                (root / "cgroup.subtree_control").write_text(enable)
        except OSError as error:
            raise LabError(
                f"cannot make a control group for the machine {name}: {error}",
                hint="in a container the cgroup tree may be read-only: run the lab on the host, or use Vagrant or real machines",
            ) from error
        return self.directories(name)

    def wrap(self, name: str, argv: Sequence[str]) -> list[str]:
        """The command that starts ``argv`` inside the group where the host's systemd makes it."""
        if not self.scopes:
            return list(argv)
        scope = [
            "systemd-run",
            "--scope",
            "--quiet",
            "--collect",
            f"--unit={name}",
            f"--description=Lab machine {name}",
            "--slice=system.slice",
        ]
        return [*scope, "--property=Delegate=yes", "--property=TasksMax=infinity", "--", *argv]

    def processes(self, name: str) -> frozenset[int]:
        """Process ids in any of the children, at any depth."""
        found: set[int] = set()
        for directory in self.directories(name):
            for path in (directory, *_below(directory)):
                # the tree changes while it is read: ENOENT and ENODEV are groups that went away meanwhile
                with contextlib.suppress(OSError):
                    found.update(int(line) for line in (path / "cgroup.procs").read_text().split())
        return frozenset(found - {0})

    def memory(self, name: str) -> int | None:
        """Bytes of memory the machine uses (page cache without the part that is easily given back), if the kernel counts it."""
        for directory in self.directories(name):
            for usage, cache in (("memory.current", "inactive_file"), ("memory.usage_in_bytes", "total_inactive_file")):
                with contextlib.suppress(OSError):
                    used = int((directory / usage).read_text())
                    stat = dict(line.split(maxsplit=1) for line in (directory / "memory.stat").read_text().splitlines())
                    return max(used - int(stat.get(cache, 0)), 0)
        return None

    def remove(self, name: str) -> None:
        """Kill every process of the machine and delete its groups; harmless when there are none.

        Raises:
            WaitTimeout: a process does not die (stuck in the kernel).
        """

        def gone() -> None:
            left = self.processes(name)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if left:
                raise NotYet(f"processes {', '.join(map(str, sorted(left)[:10]))}")
            for directory in self.directories(name):
                for path in (*_below(directory), directory):
                    try:
                        path.rmdir()
                    except FileNotFoundError:
                        continue
                    except OSError as error:
                        raise NotYet(str(error)) from None

        wait_until(f"the end of every process of {name}", gone, seconds=KILL_SECONDS, every=0.02)
        if self.scopes:
            run(["systemctl", "reset-failed", f"{name}.scope"], check=False)


def _below(directory: Path) -> tuple[Path, ...]:
    """Every group below, the deepest first."""
    return tuple(Path(path) for path, _, _ in os.walk(directory, topdown=False) if Path(path) != directory)


def parse_hierarchies(mountinfo: str) -> tuple[Path, ...]:
    """Mount points of cgroup file systems, one per hierarchy, out of ``/proc/self/mountinfo``."""
    found: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) > 4 and kind and kind[0] in ("cgroup", "cgroup2"):
            # the same hierarchy mounted twice has the same device number
            found.setdefault(fields[2], Path(fields[4]))
    return tuple(found.values())


def detect(mountinfo: Path = Path("/proc/self/mountinfo")) -> Cgroups:
    """How this host keeps control groups.

    Raises:
        LabError: it mounts none.
    """
    text = mountinfo.read_text()
    hierarchies = parse_hierarchies(text)
    if not hierarchies:
        raise LabError("no cgroup file system is mounted", hint="mount cgroup2 on /sys/fs/cgroup, or use Vagrant or real machines")
    if hierarchies == (V2_MOUNT,):
        return Cgroups(version=2, hierarchies=hierarchies, scopes=Path("/run/systemd/system").is_dir())
    return Cgroups(version=1, hierarchies=hierarchies)
