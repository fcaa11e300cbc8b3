"""What the host must offer, and the few kernel limits that all machines share with it."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path

from provisioner.errors import LabError
from provisioner.workspace import write_atomic

TOOLS = {
    "systemd-nspawn": "systemd-container",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "sysctl": "procps",
}
ELSEWHERE = "or use virtual machines (docs/lab.md, Vagrantfile) or real machines (`provisioner init`)"

# Counted per user over all machines, as they share the host's: a systemd, a kubelet and a containerd take some twenty instances.
LIMITS = {"fs/inotify/max_user_instances": 8192, "fs/inotify/max_user_watches": 1 << 20}
PROC_SYS = Path("/proc/sys")


def check() -> None:
    """Refuse a host that cannot run lab machines.

    Raises:
        LabError: with everything it lacks and what to do instead.
    """
    if platform.system() != "Linux":
        raise LabError(f"lab machines need Linux, this is {platform.system()}", hint=f"run it on a Linux host, {ELSEWHERE}")
    problems: list[str] = []
    remedies: list[str] = []
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        packages = sorted({TOOLS[tool] for tool in missing})
        problems.append(f"{', '.join(missing)} not found")
        remedies.append(f"install {' '.join(packages)} (Debian and Ubuntu: `apt-get install {' '.join(packages)}`)")
    if os.geteuid() != 0:
        problems.append("not root")
        remedies.append("run the command as root (`sudo`)")
    if problems:
        raise LabError(f"lab machines cannot run here: {'; '.join(problems)}", hint=f"{' and '.join(remedies)}, {ELSEWHERE}")


def check_root() -> None:
    """Refuse users who cannot see or end lab machines.

    Raises:
        LabError: not root.
    """
    if platform.system() != "Linux" or os.geteuid() != 0:
        raise LabError("lab machines belong to root on Linux", hint="run the command as root (`sudo`)")


def raise_limits(record: Path, proc_sys: Path = PROC_SYS) -> None:
    """Raise the shared kernel limits where they are lower, and write down what they were, before the first change."""
    before = {
        name: (proc_sys / name).read_text().strip() for name, least in LIMITS.items() if int((proc_sys / name).read_text()) < least
    }
    if not before:
        return
    known = json.loads(record.read_text()) if record.exists() else {}
    write_atomic(record, json.dumps({**before, **known}))
    for name in before:
        (proc_sys / name).write_text(str(LIMITS[name]))


def restore_limits(record: Path, proc_sys: Path = PROC_SYS) -> None:
    """Give back what :func:`raise_limits` took; values that someone else has changed since stay."""
    if not record.exists():
        return
    for name, value in json.loads(record.read_text()).items():
        if name in LIMITS and (proc_sys / name).read_text().strip() == str(LIMITS[name]):
            (proc_sys / name).write_text(value)
    record.unlink()
