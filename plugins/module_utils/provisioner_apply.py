# Apache-2.0 (see LICENSE)
"""How a node is brought to its desired state: files, users, kernel settings, units, and the gate behind them.

Runs on the node's own Python (3.9 and newer) with the standard library only. Each function returns what it changed, and
changes nothing when told to look only (``dry``).
"""

from __future__ import annotations

import contextlib
import difflib
import os
import shutil
import subprocess
import time

from ansible.module_utils.provisioner_host import (
    RUNTIME_DIR,
    HashCache,
    describe,
    describe_unit,
    journal_tail,
    make_parents,
    running_hash,
    same,
    set_owner,
    unit_states,
    user_exists,
    write_atomic,
)

UNIT_DIR = "/etc/systemd/system"
# A service that has ended so many times while its gate waited will not recover by itself: a flag it does not know, mostly.
HOPELESS = 15


class NotAppliedError(Exception):
    """The state could not be reached; ``unit`` names the unit whose journal tells why, where there is one."""

    def __init__(self, message, unit=""):
        super().__init__(message)
        self.message = message
        self.unit = unit
        self.journal = journal_tail(unit) if unit else []


def text_diff(wanted, actual):
    """A unified diff for ``--diff``; secrets, first writes and what a link leads to show no content."""
    path = wanted["path"]
    if wanted["secret"] or actual is None or actual["type"] != "file":
        return {"before_header": path, "after_header": path, "before": "", "after": "(content not shown)\n"}
    with open(path, encoding="utf-8", errors="replace") as file:
        before = file.read()
    lines = difflib.unified_diff(before.splitlines(True), wanted["content"].splitlines(True), path, path)
    return {"prepared": "".join(lines)}


def place_files(files, dry):
    """Write the files that differ. Returns the paths written and their diffs."""
    cache = HashCache()
    placed, diffs = [], []
    for item in files:
        path = item["path"]
        actual = describe(path, cache)
        if same(actual, item) or (item["once"] and actual is not None):
            continue
        placed.append(path)
        diffs.append(text_diff(item, actual))
        if dry:
            continue
        try:
            if actual and actual["type"] == "file" and actual["sha256"] == item["sha256"]:
                # right content: not written anew, or the units that read it would have to be restarted
                set_owner(path, item["mode"], item["owner"], item["group"])
                continue
            make_parents(path)
            write_atomic(path, item["content"].encode(), item["mode"], item["owner"], item["group"])
        except (OSError, KeyError) as error:
            raise NotAppliedError("%s: cannot be written: %s" % (path, error)) from error
    return placed, diffs


def remove(paths, dry):
    """Remove files, links and trees that should not be there; a unit is stopped and disabled first. Returns those that were."""
    found = [path for path in paths if os.path.lexists(path)]
    if dry or not found:
        return found
    units = [os.path.basename(path) for path in found if os.path.dirname(path) == UNIT_DIR]
    if units:
        _run(["systemctl", "disable", "--now", "--quiet", *units])
    for path in found:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    if units:
        _run(["systemctl", "daemon-reload"])
        # systemd remembers a unit that has failed also when its file is gone
        subprocess.run(["systemctl", "reset-failed", *units], check=False, capture_output=True)
    return found


def sweep(paths, dry):
    """Remove files, and the directories that were there for them alone: to containerd, an empty one hides ``_default``."""
    found = remove(paths, dry)
    for directory in () if dry else sorted({os.path.dirname(path) for path in found}):
        # one that holds anything else stays
        with contextlib.suppress(OSError):
            os.rmdir(directory)
    return found


def discard(unit, path, dry):
    """Stop a unit, where there is one, and remove what it has worked on. Returns what was there."""
    if not dry and unit_states([unit])[unit]["LoadState"] == "loaded":
        _run(["systemctl", "stop", unit], unit=unit)
    return remove([path], dry)


def restart_running(unit, dry):
    """Restart a unit where it runs, without waiting for it. Returns what was done, in words."""
    if unit_states([unit])[unit]["ActiveState"] == "inactive":
        return []
    if not dry:
        _act(unit, "restart")
    return ["%s: restart" % unit]


def create_users(names, dry):
    """Create the system users that are missing, as /etc/sysusers.d says. Returns their names."""
    missing = [name for name in names if not user_exists(name)]
    if missing and not dry:
        _run(["systemd-sysusers", "/etc/sysusers.d/provisioner.conf"])
    return missing


def load_modules(names, dry):
    """Load the kernel modules that are not there. Returns those that were loaded.

    A failure is no error: preflight has seen that each feature is there, built in or loadable.
    """
    missing = [name for name in names if not os.path.isdir("/sys/module/" + name)]
    if dry:
        return missing
    for name in missing:
        subprocess.run(["modprobe", "--quiet", name], check=False, capture_output=True)
    return [name for name in missing if os.path.isdir("/sys/module/" + name)]


def set_sysctls(values, dry):
    """Set the kernel parameters that differ. Returns their names."""
    changed = []
    for name, value in sorted(values.items()):
        path = "/proc/sys/" + name.replace(".", "/")
        try:
            with open(path, encoding="ascii") as file:
                if " ".join(file.read().split()) == value:
                    continue
            changed.append(name)
            if not dry:
                with open(path, "w", encoding="ascii") as file:
                    file.write(value)
        except OSError as error:
            raise NotAppliedError("kernel parameter %s cannot be set to %s: %s" % (name, value, error)) from error
    return changed


def action_for(unit, actual):
    """What brings a unit to its desired state: start, restart, reload, or nothing.

    Judged by the hash in the running process' environment, and by whether it was started before a file that it reads was last
    written, so that a restart is never lost: neither one whose run was killed, nor one after a repaired edit by hand.
    """
    if not actual["active"]:
        # a unit that is starting, or between two automatic restarts, may have read the old files: start it afresh
        old = actual["outdated"] or actual["hash"] != unit["hash"]
        return "restart" if actual["state"].startswith("activating") and old else "start"
    if actual["outdated"] or (unit["hash"] and actual["hash"] != unit["hash"]):
        return "restart"
    return "reload" if actual["stale"] else None


def run_units(units, dry):
    """Enable, start, restart or reload the units that need it; starting does not wait for readiness. Returns what was done."""
    names = [unit["name"] for unit in units]
    states = unit_states(names)
    # an error sticks, too: of a unit that systemd looked for while its file was away, say, under a process that runs on
    if (
        any(state["NeedDaemonReload"] == "yes" or state["LoadState"] in ("error", "bad-setting") for state in states.values())
        and not dry
    ):
        _run(["systemctl", "daemon-reload"])
        states = unit_states(names)
    todo = []
    for unit in units:
        actual = describe_unit(unit, states[unit["name"]])
        todo.append((unit["name"], None if actual["enabled"] else "enable", action_for(unit, actual)))
    enable = [name for name, enabling, _ in todo if enabling]
    if enable and not dry:
        # the links matter at the next boot; a reload of systemd for their sake would only cost time
        _run(["systemctl", "enable", "--quiet", "--no-reload", *enable])
    for name, _, action in todo:
        if action and not dry:
            _act(name, action)
    return ["%s: %s" % (name, step) for name, *steps in todo for step in steps if step]


def _act(name, action):
    if action == "reload":
        _run(["systemctl", "reload", name], unit=name)
        os.makedirs(RUNTIME_DIR, mode=0o755, exist_ok=True)
        with open(os.path.join(RUNTIME_DIR, name + ".reloaded"), "w", encoding="ascii") as file:
            file.write(repr(time.clock_gettime(time.CLOCK_MONOTONIC)))
    else:
        _run(["systemctl", action, "--no-block", name], unit=name)


def _run(command, unit=""):
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise NotAppliedError("%s failed: %s" % (" ".join(command), done.stderr.strip()), unit)


def wait_healthy(until, wanted_hash):
    """Poll until the unit is active, runs its desired configuration, and answers; or fail with its journal.

    Args:
        until: unit, url, ca, path, seconds; each but unit may be missing.
        wanted_hash: the configuration hash that must be running.
    """
    begin = time.monotonic()
    fewest = None
    while True:
        looked = time.monotonic()
        state = unit_states([until["unit"]])[until["unit"]]
        last = _observed(until, wanted_hash, state)
        if not last:
            return
        seconds, restarts = time.monotonic() - begin, int(state.get("NRestarts") or 0)
        fewest = restarts if fewest is None else min(fewest, restarts)
        if seconds > until["seconds"]:
            raise NotAppliedError("not healthy within %d s; last seen: %s" % (until["seconds"], last), until["unit"])
        # (a unit that shall answer a URL: flanneld, which has none, ends as often as it likes until its Node has a podCIDR)
        if until.get("url") and restarts - fewest >= HOPELESS:
            raise NotAppliedError(
                "not healthy: it ended %d times in %d s; last seen: %s" % (HOPELESS, seconds, last), until["unit"]
            )
        # a look costs two processes and a handshake: on a slow machine, looking all the time is what keeps the unit from its health
        time.sleep(max(0.2, 2 * (time.monotonic() - looked)))


def _observed(until, wanted_hash, state):
    """Empty where everything is as it should be, else the first thing that is not."""
    name = until["unit"]
    if state["ActiveState"] != "active":
        return "%s is %s/%s after %s restarts" % (name, state["ActiveState"], state["SubState"], state["NRestarts"])
    if wanted_hash and running_hash(name, state) != wanted_hash:
        return "%s runs an older configuration" % name
    if until.get("path") and not os.path.exists(until["path"]):
        return "%s does not exist yet" % until["path"]
    return _answer(until["url"], until.get("ca"), max(3, until["seconds"] / 60)) if until.get("url") else ""


def _answer(url, ca, timeout):
    """Empty where the URL answers 200 in time, else what it answered. The health endpoints need no identity."""
    import ssl  # noqa: PLC0415 - half of a role's time on the node, for the few that ask a URL
    import urllib.error  # noqa: PLC0415
    import urllib.request  # noqa: PLC0415

    handlers = [urllib.request.ProxyHandler({})]
    try:
        if ca:
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca)))
        with urllib.request.build_opener(*handlers).open(url, timeout=timeout) as response:
            return "" if response.status == 200 else "%s answers %d" % (url, response.status)
    except urllib.error.HTTPError as error:
        with error:
            return "%s answers %d: %s" % (url, error.code, error.read(2000).decode(errors="replace"))
    except OSError as error:
        return "%s: %s" % (url, error)
