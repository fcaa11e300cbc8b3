# Apache-2.0 (see LICENSE)
"""Send a host the bundle of artifacts it lacks, as the driver has made it."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleConnectionFailure, AnsibleError
from ansible.plugins.action import ActionBase

from provisioner import quarantine
from provisioner.desired import Shipment, load_shipment

# By this name a look knows it for ours where a run was killed; see module_utils/provisioner_litter.py.
BUNDLE = "provisioner.bundle"


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Runs on the controller."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Send, then unpack."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        variables = task_vars or {}
        shipment = load_shipment(variables["rendered_dir"], variables["inventory_hostname"])
        result.update(quarantine.guarded(variables, lambda: self._place(shipment, variables)))
        return result

    def _place(self, shipment: Shipment, variables: dict[str, Any]) -> dict[str, Any]:
        fields = ("path", "sha256", "size", "mode")
        artifacts = [{name: getattr(item, name) for name in fields} for item in shipment.artifacts]
        options: dict[str, Any] = {"role": self._task.args["role"], "artifacts": artifacts, "codec": shipment.codec}
        if artifacts and not self._task.check_mode:
            self._make_tmp_path()
            options["bundle"] = self._connection._shell.join_path(self._connection._shell.tmpdir, BUNDLE)
            try:
                self._transfer_file(shipment.bundle, options["bundle"])
            except AnsibleConnectionFailure:
                raise
            except AnsibleError as error:
                return {"failed": True, "msg": f"the artifacts could not be sent to the host: {error}"}
        result: dict[str, Any] = self._execute_module("place_artifacts", options, task_vars=variables)
        self._remove_tmp_path(self._connection._shell.tmpdir)
        return result
