# Apache-2.0 (see LICENSE)
"""Hand reset_machine what may be of ours on the machine, as the driver has computed it."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """Runs on the controller."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Pack it into one string, so that the machine's journal is spared five thousand characters."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        options = dict(self._task.args)
        document = {name: options.pop(name) for name in ("footprint", "authorities")}
        payload = base64.b64encode(gzip.compress(json.dumps(document).encode(), mtime=0)).decode()
        result.update(self._execute_module("reset_machine", {**options, "payload": payload}, task_vars=task_vars))
        return result
