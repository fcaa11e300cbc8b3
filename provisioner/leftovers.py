"""What a run that was killed has left on the controller. Whoever holds the workspace's lock next takes it away.

Nothing here is needed for the next run to come out right. But an Ansible whose driver is dead would go on beside the next one;
and keys, environments and gigabytes of binaries lie about where nobody expects them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from provisioner.errors import ProvisionerError, WaitTimeout
from provisioner.wait import NotYet, wait_until
from provisioner.workspace import Workspace

PROC = Path("/proc")
# What `workspace.write_atomic` and `workspace.private_directory` call their files, and directories.
_TEMPORARY = re.compile(r"\.(client-[a-z0-9_]{8}|look-[a-z0-9_]{8}|.+\.[a-z0-9_]{8})")
# Made a moment ago, its maker may not have locked it yet.
_YOUNG_SECONDS = 1.0


@contextlib.contextmanager
def swept(workspace: Workspace) -> Iterator[None]:
    """The time of one run, under the workspace's lock: nothing of an earlier run is there, and no process is left at its end."""
    sweep(workspace)
    try:
        yield
    finally:
        # SSH's masters would wait half a minute for somebody who comes back
        with contextlib.suppress(ProvisionerError):
            end_processes(workspace)


def sweep(workspace: Workspace) -> None:
    """Take away what an earlier run has left. Under the lock only.

    Raises:
        ProvisionerError: a process of that run does not die.
    """
    end_processes(workspace)
    root = workspace.root
    shutil.rmtree(root / "bundles", ignore_errors=True)
    for log in workspace.logs.glob("*"):
        shutil.rmtree(log / "tmp", ignore_errors=True)
        for record in log.glob("ansible/*/command"):
            record.unlink(missing_ok=True)
    keys = workspace.pki
    for directory in (root, keys, keys / "nodes", keys / "next", workspace.rendered, workspace.inventory, workspace.backups):
        for path in directory.glob(".*"):
            if _TEMPORARY.fullmatch(path.name) and _is_nobodys(path):
                _remove(path)
    remove_sockets(workspace.sockets)


def sweep_private(parent: Path, prefix: str) -> None:
    """Take away directories of ``private_directory`` whose makers are dead."""
    for path in parent.glob(f"{prefix}*"):
        if _TEMPORARY.fullmatch(path.name) and _is_nobodys(path):
            _remove(path)


def end_processes(workspace: Workspace) -> None:
    """End Ansible and SSH of a run that is over; where the system does not tell (it has no /proc), leave it.

    Raises:
        ProvisionerError: one does not die.
    """

    def none_left() -> None:
        found = _processes(workspace)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if found:
            raise NotYet(", ".join(map(str, found)))

    try:
        wait_until(f"{workspace.root}: the end of an earlier run's Ansible", none_left, seconds=10, every=0.02)
    except WaitTimeout as error:
        raise ProvisionerError(error.message, hint="end these processes; they may still change machines") from None


def _processes(workspace: Workspace) -> list[int]:
    """Whoever has this workspace's Ansible in the environment, which nobody has but what ``runner`` starts."""
    mark = f"ANSIBLE_HOME={workspace.ansible}".encode()
    found = []
    for path in PROC.glob("[0-9]*/environ"):
        # other users' processes, and those that end while we look
        with contextlib.suppress(OSError):
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return [pid for pid in found if pid != os.getpid()]


def remove_sockets(link: Path) -> None:
    """Remove the directory of SSH's control sockets that a run has put on record, and the record."""
    try:
        directory = link.readlink()
    except OSError:
        return
    with contextlib.suppress(OSError):
        if directory.name.startswith("pv-") and directory.lstat().st_uid == os.getuid():
            shutil.rmtree(directory, ignore_errors=True)
    link.unlink(missing_ok=True)


def _is_nobodys(path: Path) -> bool:
    """Whether no living process holds it. Commands that do not take the workspace's lock have temporary files too."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return time.time() - os.fstat(handle).st_mtime > _YOUNG_SECONDS
    except BlockingIOError:
        return False
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
