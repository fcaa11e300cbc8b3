# Apache-2.0 (see LICENSE)
"""Read a role's part of the host's desired state and hand it to the module."""

from __future__ import annotations

import base64
import gzip
import json
import math
from typing import Any

from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase

from provisioner import quarantine
from provisioner.desired import HostState, load_host
from provisioner.patience import stretch

# how long a unit may take until it is healthy, where its role says nothing else
GATE_SECONDS = 120
FILE_FIELDS = ("path", "sha256", "mode", "owner", "group", "secret", "once")


def part_of(state: HostState, role: str) -> dict[str, Any]:
    """What one role has to do on a host; the kernel and the users are the role base's."""
    base = role == "base"
    return {
        "files": [
            {"content": file.content.decode(), **{name: getattr(file, name) for name in FILE_FIELDS}}
            for file in state.files
            if file.role == role
        ],
        "absent": [path for owner, path in state.absent if owner == role],
        "swept": [pattern for owner, pattern in state.swept if owner == role],
        "units": [
            {"name": unit.name, "hash": unit.hash, "reload_on": list(unit.reload_on), "reads": list(unit.reads)}
            for unit in state.units
            if unit.role == role
        ],
        "users": list(state.users) if base else [],
        "modules": list(state.modules) if base else [],
        "sysctls": dict(state.sysctls) if base else {},
        "before": dict(state.before) if base else {},
    }


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Runs on the controller."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Pack the role's part into one string, so that Ansible can hide it whole (``no_log``) and nothing else."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        state = load_host(variables["rendered_dir"], variables["inventory_hostname"])
        document = part_of(state, self._task.args["role"])
        options = {name: value for name, value in self._task.args.items() if name != "gate"}
        if not boolean(self._task.args.get("gate", True)):
            options.pop("until", None)
        if until := options.get("until"):
            options["until"] = {**until, "seconds": math.ceil(stretch(int(until.get("seconds", GATE_SECONDS))))}
        payload = base64.b64encode(gzip.compress(json.dumps(document).encode(), mtime=0)).decode()
        options = {**options, "payload": payload}
        result.update(quarantine.guarded(variables, lambda: self._execute_module("role_state", options, task_vars=task_vars)))
        return result
