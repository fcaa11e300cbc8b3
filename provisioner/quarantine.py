"""Workers that fail in the midst of a run are set aside: the action plugins hand their failures over here, and the others go on.

Ansible itself knows two ways only: a play that goes on without whoever failed, control planes included, or one that stops for
everybody; and with ``serial`` a batch that fails ends the run. So the failure of a machine that may be set aside is turned into
a result, noted in the directory of rendered states, and every later task leaves that machine alone. The driver reads the
failure from the event and ends the run with the machine's name.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Result = dict[str, Any]

# The key of a task's result by which the driver knows it.
KEY = "set_aside"
_SUFFIX = ".aside"
_REASONS = ("msg", "stderr", "module_stderr", "unit", "journal", "unreachable")


def begin(directory: Path) -> None:
    """A new run: nobody is set aside for what happened in the last one."""
    for path in directory.glob(f"*{_SUFFIX}"):
        path.unlink(missing_ok=True)


def guarded(variables: Mapping[str, Any], work: Callable[[], Result]) -> Result:
    """Do one task on one host, unless the host is set aside already; set it aside if the task fails and it may be.

    Args:
        variables: the task's. ``vital``: the run must not go on without this host. ``in_service``: the host ran before, so that
            its failure may be the change's fault; no more than ``aside_limit`` such hosts are set aside, then it is the
            change that is stopped.
        work: the task.
    """
    from ansible.errors import AnsibleConnectionFailure  # noqa: PLC0415 - the driver itself has no use for it

    directory, host = Path(variables["rendered_dir"]), str(variables["inventory_hostname"])
    if (directory / f"{host}{_SUFFIX}").exists():
        return {"changed": False, "skipped": True, "skip_reason": "set aside"}
    try:
        result = work()
    except AnsibleConnectionFailure as error:
        if not _set_aside(variables, directory, host):
            raise
        result = {"failed": True, "unreachable": True, "msg": str(error)}
    else:
        if not (result.get("failed") or result.get("unreachable")) or not _set_aside(variables, directory, host):
            return result
    return {"changed": bool(result.get("changed")), KEY: {name: result[name] for name in _REASONS if name in result}}


def _set_aside(variables: Mapping[str, Any], directory: Path, host: str) -> bool:
    """Mark a host, unless it is vital or enough are marked; tells whether it was."""
    if variables.get("vital", True):
        return False
    in_service = bool(variables.get("in_service"))
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # each host's task is a process of its own: two that fail at one moment must not both be the last that may
        fcntl.flock(handle, fcntl.LOCK_EX)
        before = sum(bool(json.loads(path.read_text())["in_service"]) for path in directory.glob(f"*{_SUFFIX}"))
        if in_service and before >= int(variables.get("aside_limit", 1)):
            return False
        (directory / f"{host}{_SUFFIX}").write_text(json.dumps({"in_service": in_service}))
    finally:
        os.close(handle)
    return True
