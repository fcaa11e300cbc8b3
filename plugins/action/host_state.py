# Apache-2.0 (see LICENSE)
"""Fill host_state's options from the host's desired state: names and digests only, never content."""

from __future__ import annotations

from typing import Any

from ansible.plugins.action import ActionBase

from provisioner import quarantine
from provisioner.desired import load_host


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Runs on the controller."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Ask for everything that the desired state names."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        state = load_host(variables["rendered_dir"], variables["inventory_hostname"])
        files = [{"path": file.path, "sha256": file.sha256, "show": not file.secret} for file in state.files]
        files += [{"path": item.path, "sha256": item.sha256, "show": False} for item in state.artifacts]
        options = {
            "files": files,
            "absent": [path for _, path in state.absent],
            "swept": [pattern for _, pattern in state.swept],
            "units": [{"name": unit.name, "reload_on": list(unit.reload_on), "reads": list(unit.reads)} for unit in state.units],
            "sysctls": [name for name, _ in state.sysctls],
            "modules": list(state.modules),
            "users": list(state.users),
        }
        result.update(quarantine.guarded(variables, lambda: self._execute_module("host_state", options, task_vars=task_vars)))
        return result
