# Apache-2.0 (see LICENSE)
"""What the modules of this project share on a node: hashing, atomic replacement, and what systemd says.

Runs on the node's own Python (3.9 and newer) with the standard library only.
"""

from __future__ import annotations

import glob
import grp
import hashlib
import json
import os
import pwd
import stat
import subprocess
import tempfile
import time

STATE_DIR = "/var/lib/provisioner"
HASH_CACHE = os.path.join(STATE_DIR, "hashes.json")
RUNTIME_DIR = "/run/provisioner"
# Every unit of ours is wanted by this target. The link itself is asked: what `systemctl show` says of enablement is from
# before the last `enable` until systemd is reloaded.
WANTS = "/etc/systemd/system/multi-user.target.wants"
# Files below this size are hashed each time: it is cheaper than remembering them.
CACHED_FROM_BYTES = 1 << 20


def sha256_of(path):
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


class HashCache:
    """Digests of large files, remembered by (size, mtime, ctime, inode).

    The ctime cannot be set from user space, so a changed file is always hashed anew.
    """

    def __init__(self, path=HASH_CACHE):
        self.path = path
        self.changed = False
        try:
            with open(path, encoding="utf-8") as file:
                self.entries = json.load(file)
        except (OSError, ValueError):
            self.entries = {}

    def digest(self, path, status):
        """Hex digest of a regular file whose ``os.stat_result`` is at hand."""
        if status.st_size < CACHED_FROM_BYTES:
            return sha256_of(path)
        key = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        known = self.entries.get(path)
        if known and known[:-1] == key:
            return known[-1]
        value = sha256_of(path)
        self.entries[path] = [*key, value]
        self.changed = True
        return value

    def save(self):
        """Write the cache back where it changed; losing it costs only time."""
        if self.changed:
            os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
            write_atomic(self.path, json.dumps(self.entries).encode(), 0o600, "root", "root")


def owner_name(uid):
    """User name of a uid, or the number as text."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid):
    """Group name of a gid, or the number as text."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def user_exists(name):
    """Whether the system knows the user."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def describe(path, cache):
    """What is at a path: None where nothing is, else type, sha256, mode, owner and group."""
    try:
        status = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    kind = "file" if stat.S_ISREG(status.st_mode) else "other"
    return {
        "type": kind,
        "sha256": cache.digest(path, status) if kind == "file" else "",
        "mode": stat.S_IMODE(status.st_mode),
        "owner": owner_name(status.st_uid),
        "group": group_name(status.st_gid),
    }


def same(actual, wanted):
    """Whether ``describe`` found just what is wanted (a dict with sha256, mode, owner, group)."""
    return (
        actual is not None
        and actual["type"] == "file"
        and all(actual[key] == wanted[key] for key in ("sha256", "mode", "owner", "group"))
    )


def make_parents(path):
    """Make the directories above a file where they are missing: root's, 0755, whoever owns the file."""
    directory = os.path.dirname(path)
    missing = []
    while not os.path.isdir(directory):
        missing.append(directory)
        directory = os.path.dirname(directory)
    for directory in reversed(missing):
        os.mkdir(directory)
        os.chmod(directory, 0o755)


def set_owner(path, mode, owner, group):
    """Give a file its owner and mode, content untouched."""
    os.chown(path, pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)
    os.chmod(path, mode)


def write_atomic(path, content, mode, owner, group):
    """Replace a file in one step; the temporary file carries the final mode and owner before its first byte.

    The new content is on the disk before it replaces an old one. A file that was not there before has nothing to lose, and
    the next apply would mend it: waiting for a disk that is busy with a gigabyte of binaries would cost minutes in all.
    """
    handle, name = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".provisioner-")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchown(file.fileno(), pwd.getpwnam(owner).pw_uid, grp.getgrnam(group).gr_gid)
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            if os.path.exists(path):
                os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        if os.path.exists(name):
            os.unlink(name)
        raise


# How a text begins that was placed here, and how others of ours are called that cannot say so.
PLACED = b"# Placed by provisioner"
OUR_PREFIX = "provisioner-"


def ours_in(patterns):
    """Files of ours among those that match shell patterns, in order; what others have put there is theirs."""
    found = []
    for path in sorted(path for pattern in patterns for path in glob.glob(pattern)):
        if os.path.basename(path).startswith(OUR_PREFIX):
            found.append(path)
            continue
        try:
            with open(path, "rb") as file:
                if file.read(len(PLACED)) == PLACED:
                    found.append(path)
        except OSError:
            continue
    return found


UNIT_PROPERTIES = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "MainPID",
    "NeedDaemonReload",
    "ActiveEnterTimestampMonotonic",
    "ExecMainStartTimestampMonotonic",
    "NRestarts",
    "Result",
)


def unit_states(names):
    """Properties of units as systemd has them, one call for all: {name: {property: text}}."""
    if not names:
        return {}
    # what a timer starts is its other half: systemd must have read both files
    halves = {name: name[: -len(".timer")] + ".service" for name in names if name.endswith(".timer")}
    asked = [*names, *halves.values()]
    command = ["systemctl", "show", "--property=" + ",".join(UNIT_PROPERTIES), "--", *asked]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    blocks = [dict(line.partition("=")[::2] for line in block.splitlines()) for block in answer.strip().split("\n\n")]
    states = dict(zip(asked, blocks))
    for name, half in halves.items():
        if states[half].get("NeedDaemonReload") == "yes":
            states[name]["NeedDaemonReload"] = "yes"
    return {name: states[name] for name in names}


def running_hash(name, state):
    """The configuration hash that the running unit was started with; empty where it does not run or carries none.

    A service carries it in its environment, a finished oneshot in a file that it wrote on success.
    """
    pid = int(state.get("MainPID") or 0)
    if pid:
        try:
            with open("/proc/%d/environ" % pid, "rb") as file:
                for item in file.read().split(b"\0"):
                    if item.startswith(b"PROVISIONER_HASH="):
                        return item.split(b"=", 1)[1].decode()
        except OSError:
            return ""
        return ""
    try:
        with open(os.path.join(RUNTIME_DIR, name + ".hash"), encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def loaded_at(name, state):
    """When the unit last took in its configuration, in seconds of the boot clock: its start, or a later reload."""
    started = int(state.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
    try:
        with open(os.path.join(RUNTIME_DIR, name + ".reloaded"), encoding="ascii") as file:
            return max(started, float(file.read()))
    except (OSError, ValueError):
        return started


def describe_unit(unit, state):
    """Actual state of a unit, in the words of the desired one.

    Args:
        unit: its ``name``; ``reload_on``, files that it takes in by a reload, of which a younger one makes it stale; and
            ``reads``, files that it takes in at its start, of which a younger one makes it outdated.
        state: its entry of ``unit_states``.
    """
    name = unit["name"]
    # a timer has no process; it takes in its file when it is started
    taken_in = "ActiveEnterTimestampMonotonic" if name.endswith(".timer") else "ExecMainStartTimestampMonotonic"
    started = int(state.get(taken_in) or 0) / 1e6
    return {
        "loaded": state.get("LoadState") == "loaded",
        "active": state.get("ActiveState") in ("active", "reloading"),
        "state": "%s/%s" % (state.get("ActiveState"), state.get("SubState")),
        "enabled": os.path.islink(os.path.join(WANTS, name)),
        "daemon_reload": state.get("NeedDaemonReload") == "yes",
        "hash": running_hash(name, state),
        "stale": _younger(unit["reload_on"], loaded_at(name, state)),
        "outdated": _younger(unit["reads"], started),
    }


def _younger(paths, moment):
    """Whether any of the files was written after a moment of the clock that systemd stamps unit starts with.

    Written, and not changed: putting a file's mode right is nothing to who has read it.
    """
    offset = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    return any(os.path.exists(path) and os.stat(path).st_mtime - offset > moment for path in paths)


# etcd's lines may carry whole stack traces.
JOURNAL_WIDTH = 500


def journal_tail(name, lines=20):
    """The last lines of a unit's journal, for an error message."""
    command = ["journalctl", "--unit", name, "--lines", str(lines), "--no-pager", "--output", "short-iso", "--quiet"]
    found = subprocess.run(command, check=False, capture_output=True, text=True).stdout.splitlines()
    return [line if len(line) <= JOURNAL_WIDTH else line[: JOURNAL_WIDTH - 1] + "…" for line in found]
