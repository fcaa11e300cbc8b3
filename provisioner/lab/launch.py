"""Keeps one machine running: joins its cgroups, leaves the terminal, mounts its disk where only it sees it, starts systemd-nspawn.

Run as a script of its own (``python -I -S launch.py SPEC``), with the standard library only: between fork and exec there is no
place for threads. SPEC is a JSON object:

* ``groups``: the machine's control groups, ``unified``: whether that is one cgroup v2 group;
* ``overlay``: mount options of the disk, ``root``: where it is mounted;
* ``log``: file of the console's output, ``environment`` and ``argv`` of systemd-nspawn.

The overlay lives in a mount namespace of the machine's own, so it goes with the machine's last process, however that ended.
"""

import contextlib
import ctypes
import json
import os
import sys
from typing import TypedDict

CLONE_NEWNS = 0x00020000
MS_REC = 0x4000
MS_SLAVE = 0x80000
# systemd-nspawn's exit code when the machine rebooted and, for --keep-unit, its caller is to start it again
REBOOTED = 133


class Spec(TypedDict):
    """The argument, see above."""

    groups: list[str]
    unified: bool
    overlay: str
    root: str
    log: str
    environment: dict[str, str]
    argv: list[str]


def _call(function: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:  # noqa: PTH123 - without pathlib: its import takes longer than all the rest
        file.write(text)


def _join(group: str) -> None:
    os.makedirs(group, exist_ok=True)  # noqa: PTH103
    _write(f"{group}/cgroup.procs", "0")


def _clear(group: str) -> None:
    """Delete the groups below one that has no processes any more."""
    for path, _, _ in os.walk(group, topdown=False):
        if path != group:
            with contextlib.suppress(OSError):
                os.rmdir(path)  # noqa: PTH106


def enter(spec: Spec) -> None:
    """Join the machine's groups. With cgroup v2 only leaves hold processes, so this script and the machine get a leaf each.

    Raises:
        OSError: the groups are gone (the machine was stopped meanwhile) or not writable.
    """
    if not spec["unified"]:
        for group in spec["groups"]:
            _write(f"{group}/cgroup.procs", "0")
        return
    (group,) = spec["groups"]
    _join(f"{group}/launcher")
    with open(f"{group}/cgroup.controllers", encoding="ascii") as file:  # noqa: PTH123
        _write(f"{group}/cgroup.subtree_control", " ".join(f"+{controller}" for controller in file.read().split()))


def mount(spec: Spec) -> None:
    """Mount the disk in a mount namespace of this process' own.

    Raises:
        OSError: the kernel refused.
    """
    _call("unshare", CLONE_NEWNS)
    # slave, not private: what the host unmounts later is unmounted here too and is not kept busy by a machine
    _call("mount", None, b"/", None, ctypes.c_ulong(MS_REC | MS_SLAVE), None)
    _call("mount", b"overlay", os.fsencode(spec["root"]), b"overlay", ctypes.c_ulong(0), os.fsencode(spec["overlay"]))


def boot(spec: Spec) -> int:
    """Run systemd-nspawn until the machine stops or reboots; its exit code."""
    child = os.fork()
    if not child:
        try:
            if spec["unified"]:
                _join(f"{spec['groups'][0]}/machine")
            os.execvpe(spec["argv"][0], spec["argv"], spec["environment"])  # noqa: S606
        except OSError as error:
            sys.stderr.write(f"{spec['argv'][0]}: {error}\n")
        os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def main() -> None:
    """Enter, detach, and boot until the machine stops."""
    spec: Spec = json.loads(sys.argv[1])
    enter(spec)
    log = os.open(spec["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    if os.fork():
        os._exit(0)
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    mount(spec)
    while boot(spec) == REBOOTED:
        for group in spec["groups"]:
            _clear(f"{group}/machine" if spec["unified"] else group)


if __name__ == "__main__":
    main()
