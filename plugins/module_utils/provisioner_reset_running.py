# Apache-2.0 (see LICENSE)
"""What of ours runs on a node: units, processes of containers, mounts, control groups.

A process is ours by the control group it is in, or as a container's parent by its program *and* the socket it was given; never
by its name.
"""

from __future__ import annotations

import contextlib
import glob
import os
import re
import shutil
import signal
import time

from ansible.module_utils.provisioner_before import below, mount_points, read_lines

UNIT_DIR = "/etc/systemd/system"
PACKAGES = ("/usr/lib/systemd/system", "/lib/systemd/system", "/run/systemd/system")
PODS = "kubepods.slice"
SIGN = "Placed by provisioner"
HASH = b"PROVISIONER_HASH="
# Between SIGTERM and SIGKILL: an apiserver lets its connections go for 6 s.
GRACE_SECONDS = 10
CONTAINER_GRACE_SECONDS = 5
KILL_SECONDS = 10
CONTAINERD_ROOT = "/var/lib/containerd"


# -- units ------------------------------------------------------------------------------------------------------------------------


def is_placed(unit):
    """Whether the unit's file is there, and ours."""
    return SIGN in _head(os.path.join(UNIT_DIR, unit))


def is_foreign(unit):
    """Whether somebody else's unit has the name of one of ours: the administrator's, or a package's where ours is not there.

    An empty file, or a link that masks it, is nobody's.
    """
    path = os.path.join(UNIT_DIR, unit)
    if not os.path.lexists(path):
        return any(os.path.isfile(os.path.join(root, unit)) for root in PACKAGES)
    text = _head(path)
    return os.path.isfile(path) and not os.path.islink(path) and bool(text.strip()) and SIGN not in text


def _head(path):
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(4096)
    except OSError:
        return ""


def _units(machine):
    return [unit for part in machine.parts for unit in part["units"]]


def _states(machine, names):
    """What systemd knows of units, by name."""
    if not names:
        return {}
    properties = "--property=Id,LoadState,ActiveState,FragmentPath,MainPID"
    _, text, _ = machine.run("systemctl", "show", properties, "--", *names)
    blocks = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return {name: block for name, block in zip(names, blocks) if block}


def _is_ours(unit, state):
    """A unit that systemd knows: by its file; where that is gone, by what its process was started with."""
    path = os.path.join(UNIT_DIR, unit)
    if unit == PODS:
        return True
    if state.get("FragmentPath") == path or os.path.lexists(path):
        return not is_foreign(unit)
    return _carries_hash(int(state.get("MainPID") or 0)) or not state.get("FragmentPath")


def _carries_hash(pid):
    try:
        with open("/proc/%d/environ" % pid, "rb") as file:
            return any(item.startswith(HASH) for item in file.read().split(b"\0"))
    except OSError:
        return False


def find_units(machine):
    """Units of ours that run, or are about to. And the slice of the pods, where systemd keeps their groups."""
    names = [*_units(machine), *([PODS] if machine.has_pods else [])]
    states = _states(machine, names)
    resting = ("inactive", "failed", None)
    return [
        name for name in names if name in states and states[name].get("ActiveState") not in resting and _is_ours(name, states[name])
    ]


def remove_units(machine, items):
    """Stop them: the kubelet first, which would start pods again, and containerd; the others take their time side by side."""
    first = [unit for unit in ("kubelet.service", "containerd.service") if unit in items]
    others = [unit for unit in items if unit not in first and unit != PODS]
    for unit in first:
        code, _, complaint = machine.run("systemctl", "stop", "--", unit, seconds=20)
        if code:
            machine.failed(unit, complaint)
    if others:
        machine.run("systemctl", "stop", "--no-block", "--", *others)
    _end_containers(machine)
    _wait(machine, GRACE_SECONDS, lambda: not set(find_units(machine)) - {PODS})
    for unit in find_units(machine):
        machine.run("systemctl", "kill", "--kill-who=all", "--signal=KILL", "--", unit)
        # what is killed while it was not being stopped would be started again
        code, _, complaint = machine.run("systemctl", "stop", "--", unit, seconds=20)
        if code:
            machine.failed(unit, complaint)


def _wait(machine, seconds, reached):
    """Poll until it is so, or the time is up."""
    end = time.monotonic() + min(seconds, machine.left())
    while not reached() and time.monotonic() < end:
        time.sleep(0.1)


def _places(machine):
    """Everywhere that systemd looks for something of a unit's."""
    for unit in _units(machine):
        yield os.path.join(UNIT_DIR, unit)
        for kind in ("wants", "requires"):
            yield from sorted(glob.glob(os.path.join(UNIT_DIR, "*." + kind, unit)))
        for root in (
            UNIT_DIR,
            "/run/systemd/system",
            "/run/systemd/transient",
            "/etc/systemd/system.control",
            "/run/systemd/system.control",
        ):
            yield os.path.join(root, unit + ".d")


def find_unit_files(machine):
    """Their files, the links that enable them, drop-ins; and units that systemd still remembers as failed."""
    found = []
    for path in (path for path in _places(machine) if os.path.lexists(path)):
        if path in machine.was("files"):
            machine.note("%s was there before us, and stays%s" % (path, ", with our content" if SIGN in _head(path) else ""))
        else:
            found.append(path)
    names = _units(machine)
    failed = [name for name, state in _states(machine, names).items() if state.get("ActiveState") == "failed"]
    return found + ["%s (failed)" % name for name in failed if _is_ours(name, {"FragmentPath": ""})]


def remove_unit_files(machine, items):
    """Then systemd reads anew what there is."""
    for path in (item for item in items if item.startswith("/")):
        try:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        except OSError as error:
            machine.failed(path, error.strerror)
    machine.run("systemctl", "daemon-reload", seconds=60)
    for unit, state in _states(machine, _units(machine)).items():
        if state.get("ActiveState") == "failed":
            machine.run("systemctl", "reset-failed", "--", unit)


# -- processes --------------------------------------------------------------------------------------------------------------------


def _prefix():
    """The group that this machine's own tree begins with: "" but in a container without a namespace of control groups."""
    for line in read_lines("/proc/1/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers in ("name=systemd", "") and path.endswith("/init.scope"):
            return path[: -len("/init.scope")]
    return ""


def _processes(machine):
    """(pid, kind) of every process of ours: "container", "shim", or "unit"."""
    prefix, groups = _prefix(), machine.footprint["cgroups"] if machine.has_pods else ()
    shims = machine.is_ours("containerd")
    units = {"/system.slice/" + unit for unit in _units(machine)}
    found = []
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid in (1, os.getpid(), os.getppid()):
            continue
        paths = [line.split(":", 2)[2] for line in read_lines("/proc/%d/cgroup" % pid)]
        paths = [path[len(prefix) :] for path in paths if path.startswith(prefix)]
        if shims and _is_shim(machine, pid):
            found.append((pid, "shim"))
        elif any(path.startswith("/%s/" % group) for path in paths for group in groups):
            found.append((pid, "container"))
        elif any(path == unit or path.startswith(unit + "/") for path in paths for unit in units):
            found.append((pid, "unit"))
    return found


def _is_shim(machine, pid):
    program, socket = machine.footprint["shim"]
    try:
        if os.readlink("/proc/%d/exe" % pid).replace(" (deleted)", "") != program:
            return False
        with open("/proc/%d/cmdline" % pid, "rb") as file:
            words = file.read().decode(errors="replace").split("\0")
    except OSError:
        return False
    return socket in words or ("unix://" + socket) in words


def _program(pid):
    try:
        return os.readlink("/proc/%d/exe" % pid)
    except OSError:
        return "?"


def find_processes(machine):
    """Processes of containers and of our units, by number and program."""
    return ["%d %s" % (pid, _program(pid)) for pid, _ in _processes(machine)]


def remove_processes(machine, _items):
    """What units have left behind: containers of a dead containerd, what has lost its unit."""
    _end_containers(machine)
    _end(machine, ("unit",), GRACE_SECONDS)


def _end_containers(machine):
    _thaw(machine)
    _end(machine, ("container",), CONTAINER_GRACE_SECONDS)
    # a container's parent has nothing to do without it, but waits for a containerd that is gone
    _end(machine, ("shim",), 0)


def _end(machine, kinds, grace):
    """SIGTERM, time, SIGKILL, until none is left."""
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, KILL_SECONDS)):
        if number == signal.SIGTERM and not grace:
            continue
        pids = [pid for pid, kind in _processes(machine) if kind in kinds]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        if not pids:
            return
        _wait(machine, seconds, lambda: not any(kind in kinds for _, kind in _processes(machine)))
    for pid, kind in _processes(machine):
        if kind in kinds:
            machine.failed("%d %s" % (pid, _program(pid)), "does not die: waits for the kernel, a disk or a network file system")


def _thaw(machine):
    """A paused container takes no signal."""
    for path in find_cgroups(machine):
        for directory, _, names in os.walk(path):
            for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
                if name in names:
                    with contextlib.suppress(OSError), open(os.path.join(directory, name), "w", encoding="ascii") as file:
                        file.write(value)


# -- mounts -----------------------------------------------------------------------------------------------------------------------


def find_mounts(machine):
    """Volumes of our pods and root filesystems of our containers, the youngest first."""
    found, _ = _mounts(machine)
    return list(reversed(found))


def others_mounts(machine):
    """What else is mounted below our data directories, and stays with all that is in it."""
    _, others = _mounts(machine)
    ours = [path for part in machine.parts for path in part["data"]]
    for point in (point for point in others if below(point, ours)):
        machine.note("the mount %s is not one of our containers', and stays" % point)
    return others


def _mounts(machine):
    """(ours, others'): by the part that makes mounts at such a place."""
    known = set(machine.was("mounts"))
    points = list(dict.fromkeys(point for point in mount_points() if below(point, machine.footprint["mounts"])))
    patterns = [pattern for part in machine.parts for pattern in part["mounts"]]
    strange = _of_another_containerd()
    ours = [
        point
        for point in points
        if point not in known and point not in strange and any(re.fullmatch(pattern, point) for pattern in patterns)
    ]
    return ours, [point for point in points if point not in ours]


def _of_another_containerd():
    """Root filesystems that are put together from layers of a containerd with another data directory than ours has."""
    found = set()
    for line in read_lines("/proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        root, point = left.split()[3:5]
        upper = re.search(r"[ ,]upperdir=(/[^,\s]+)", right)
        # a bind mount out of a machine's own root filesystem looks like that too, but for its root
        if root == "/" and point.endswith("/rootfs") and upper and not upper[1].startswith(CONTAINERD_ROOT + "/"):
            found.add(point)
    return found


def makes_mounts_for_others(machine, part):
    """Whether mounts are at the part's places, and nothing of the part is on this machine: somebody else's daemon has made them.

    A k3s has a kubelet with the data directory of ours, and no unit of its name.
    """
    if not any(re.fullmatch(pattern, point) for pattern in part["mounts"] for point in mount_points()):
        return False
    existed = machine.was("files")
    if any(os.path.lexists(path) and (path not in existed or SIGN in _head(path)) for path in part["files"]):
        return False
    return not any(_carries_hash(int(state.get("MainPID") or 0)) for state in _states(machine, part["units"]).values())


def remove_mounts(machine, items):
    """Unmount; what is busy is detached, so that it is out of the way and ends when its last user does."""
    for number in range(0, len(items), 50):
        machine.run("umount", "--no-canonicalize", "--", *items[number : number + 50], seconds=30)
    for point in find_mounts(machine):
        code, _, complaint = machine.run("umount", "--no-canonicalize", "--lazy", "--", point, seconds=10)
        if code:
            machine.failed(point, complaint)


# -- control groups ---------------------------------------------------------------------------------------------------------------


def find_cgroups(machine):
    """Groups of pods and of our units, in every hierarchy that is mounted here.

    systemd removes a unit's group with the unit, but where it is not told that the group has become empty: in a container on
    cgroup v1, when the last process outlived its unit.
    """
    groups = [*(machine.footprint["cgroups"] if machine.has_pods else ()), *("system.slice/" + unit for unit in _units(machine))]
    prefix, found = _prefix(), []
    for line in read_lines("/proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        if re.match(r"cgroup2?\b", right):
            point = left.split()[4]
            found += [os.path.join(point + prefix, name) for name in groups]
    return [path for path in dict.fromkeys(found) if os.path.isdir(path)]


def remove_cgroups(machine, items):
    """From the leaves up; a group is busy until the kernel is done with its last process."""
    if machine.has_pods:
        machine.run("systemctl", "stop", PODS)

    def gone():
        for path in items:
            for directory, _, _ in os.walk(path, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
        return not any(os.path.isdir(path) for path in items)

    _wait(machine, 5, gone)
    for path in items:
        if os.path.isdir(path):
            machine.failed(path, "a process is still in it, or the kernel is not done with one")
