"""Desired minus actual: what `apply` would do, per host and role, and for the cluster's own objects. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from provisioner.desired import File, HostState, Unit

# The one word for the cluster as a whole where a change is not a host's.
CLUSTER = "(cluster)"
# How the action of a file begins that gets other content.
CONTENT = "change content"


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Args:
        host: machine, or ``CLUSTER``.
        role: the role that will make it so.
        kind: file, artifact, unit, sysctl, module, user, package, object.
        what: path or name.
        action: what will be done, in words ("create", "change content", "restart").
        diff: unified diff where content may be shown.
    """

    host: str
    role: str
    kind: str
    what: str
    action: str
    diff: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """All differences; empty when there is nothing to do."""

    changes: tuple[Change, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.changes)

    def hosts_of(self, role: str) -> frozenset[str]:
        """Machines on which a role has work to do."""
        return frozenset(change.host for change in self.changes if change.role == role)

    def of_host(self, host: str) -> tuple[Change, ...]:
        """The differences of one machine."""
        return tuple(change for change in self.changes if change.host == host)

    def to_json(self) -> dict[str, object]:
        """For ``plan --json``."""
        fields = ("host", "role", "kind", "what", "action", "diff")
        return {"changes": [{name: getattr(change, name) for name in fields} for change in self.changes]}


def difference(desired: HostState, actual: Mapping[str, Any]) -> tuple[Change, ...]:
    """What differs on one host.

    Args:
        desired: the host's desired state.
        actual: what the ``host_state`` module returned for it.
    """
    host = desired.host
    changes = [_file(host, file, actual["files"].get(file.path)) for file in desired.files]
    changes += [
        _change(
            host,
            item.role,
            "artifact",
            item.path,
            _file_action(actual["files"].get(item.path), item.sha256, item.mode, "root", "root"),
        )
        for item in desired.artifacts
    ]
    changes += [Change(host, role, "file", path, "remove") for role, path in desired.absent if path in actual["absent"]]
    kept = {file.path for file in desired.files}
    changes += [
        Change(host, next(role for role, pattern in desired.swept if fnmatch(path, pattern)), "file", path, "remove")
        for path in actual["swept"]
        if path not in kept
    ]
    written = frozenset(
        change.what for change in changes if change and (change.kind == "artifact" or change.action.startswith(("create", CONTENT)))
    )
    changes += [
        _change(host, unit.role, "unit", unit.name, _unit_action(unit, actual["units"].get(unit.name), written))
        for unit in desired.units
    ]
    changes += [
        Change(host, "base", "sysctl", name, f"set to {value} (is {actual['sysctls'].get(name)})")
        for name, value in desired.sysctls
        if actual["sysctls"].get(name) != value
    ]
    changes += [Change(host, "base", "user", name, "create") for name in desired.users if name not in actual["users"]]
    packages = desired.variables.get("base_packages", [])
    assert isinstance(packages, list)  # noqa: S101 - by machine.base
    changes += [Change(host, "base", "package", name, "install") for name in packages]
    return tuple(change for change in changes if change is not None)


def _change(host: str, role: str, kind: str, what: str, action: str) -> Change | None:
    return Change(host, role, kind, what, action) if action else None


def _file(host: str, file: File, actual: Mapping[str, Any] | None) -> Change | None:
    if file.once and actual is not None:
        return None
    action = _file_action(actual, file.sha256, file.mode, file.owner, file.group)
    if not action:
        return None
    return Change(host, file.role, "file", file.path, action, "" if file.secret else _diff(file, actual))


def _file_action(actual: Mapping[str, Any] | None, sha256: str, mode: int, owner: str, group: str) -> str:
    if actual is None:
        return "create"
    wrong = []
    if actual["type"] != "file" or actual["sha256"] != sha256:
        wrong.append("content")
    if actual["mode"] != mode:
        wrong.append(f"mode {actual['mode']:04o} -> {mode:04o}")
    if (actual["owner"], actual["group"]) != (owner, group):
        wrong.append(f"owner {actual['owner']}:{actual['group']} -> {owner}:{group}")
    return f"change {', '.join(wrong)}" if wrong else ""


def _diff(file: File, actual: Mapping[str, Any] | None) -> str:
    before = actual.get("content") if actual else None
    if before is None:
        return ""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), file.content.decode().splitlines(keepends=True), file.path, file.path
    )
    return "".join(lines)


def _unit_action(unit: Unit, actual: Mapping[str, Any] | None, written: frozenset[str]) -> str:
    if actual is None or not actual["loaded"]:
        return "start"
    taken_in = sorted(written.intersection(unit.reads))
    verdicts = (
        (not actual["active"], f"start (is {actual['state']})"),
        (actual["hash"] != unit.hash, "restart (runs an older configuration)"),
        (bool(taken_in), f"restart (takes in {', '.join(taken_in)})"),
        (actual["outdated"], "restart (a file that it reads was written after its start)"),
        (actual["stale"] or bool(written.intersection(unit.reload_on)), "reload"),
        (not actual["enabled"], "enable"),
        (actual["daemon_reload"], "reload systemd"),
    )
    return next((action for holds, action in verdicts if holds), "")
