#!/usr/bin/python
# Apache-2.0 (see LICENSE)
"""Bring a role's part of a host's desired state about, in one round trip."""

from __future__ import annotations

DOCUMENTATION = r"""
module: role_state
short_description: Bring a role's part of a host's desired state about, in one round trip
description:
  - Places files, creates users, sets the kernel, runs units, and waits until they are healthy, in this order.
  - What a host shall be comes from its desired state, rendered by the driver; the action plugin of the same name reads it.
  - A file is replaced atomically, with its final owner and mode from its first byte. A unit is restarted when the hash in
    its running process is not the one on disk, so a restart is never lost. Supports check mode and diff.
options:
  role:
    description: The role whose part it is.
    type: str
    required: true
  until:
    description: Wait for this after everything else; on failure the unit's last journal lines are part of the error.
    type: dict
    suboptions:
      unit: {description: A unit that must be active and run its desired configuration., type: str, required: true}
      url: {description: A URL that must answer 200., type: str}
      ca: {description: Certificate authority of an https URL., type: path}
      path: {description: A file that must exist., type: path}
      seconds: {description: Deadline; the action plugin lengthens it by PROVISIONER_PATIENCE., type: int, default: 120}
  gate:
    description: Whether to wait at all. The action plugin leaves C(until) out where not.
    type: bool
    default: true
  discard:
    description: Before everything else, stop the unit of C(until) and remove this, which nobody needs any more.
    type: path
  forget:
    description: Remove these once the files are placed, before units are run. What a unit makes by itself, and would keep.
    type: list
    elements: path
    default: []
  finally_restart:
    description: Once C(until) holds, restart this unit where it runs. It waits ever longer between attempts to reach what was away.
    type: str
  finally_remove:
    description: Remove this file once C(until) holds.
    type: path
  payload:
    description: Base64 of gzipped JSON. Filled by the action plugin.
    type: str
author: [provisioner]
"""

EXAMPLES = r"""
- name: Run etcd
  role_state:
    role: etcd
    until:
      unit: etcd.service
      url: http://127.0.0.1:2381/readyz
"""

RETURN = r"""
changes: {description: "What was done, in words.", returned: always, type: list}
journal: {description: Last lines of the journal of the unit that failed., returned: failure, type: list}
"""

import base64
import gzip
import json

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provisioner_apply import (
    NotAppliedError,
    create_users,
    discard,
    load_modules,
    place_files,
    remove,
    restart_running,
    run_units,
    set_sysctls,
    sweep,
    wait_healthy,
)
from ansible.module_utils.provisioner_before import record_before
from ansible.module_utils.provisioner_host import ours_in

UNTIL = {
    "unit": {"type": "str", "required": True},
    "url": {"type": "str"},
    "ca": {"type": "path"},
    "path": {"type": "path"},
    "seconds": {"type": "int", "default": 120},
}


def apply(wanted, params, dry):
    """Everything in order; returns what was done, in words, and the diffs."""
    until, last = params["until"], params["finally_remove"]
    if wanted["before"] and not dry:
        try:
            record_before(wanted["before"])
        except OSError as error:
            raise NotAppliedError("what the machine was before cannot be written down: %s" % error) from error
    changes = ["discarded " + path for path in discard(until["unit"], params["discard"], dry)] if params["discard"] else []
    placed, diffs = place_files(wanted["files"], dry)
    changes += ["placed " + path for path in placed]
    kept = [item["path"] for item in wanted["files"]]
    left = [path for path in ours_in(wanted["swept"]) if path not in kept]
    changes += ["removed " + path for path in remove([*params["forget"], *wanted["absent"]], dry)]
    changes += ["removed " + path for path in sweep(left, dry)]
    changes += ["created user " + name for name in create_users(wanted["users"], dry)]
    changes += ["loaded module " + name for name in load_modules(wanted["modules"], dry)]
    changes += ["set " + name for name in set_sysctls(wanted["sysctls"], dry)]
    changes += run_units(wanted["units"], dry)
    if until and not dry:
        hashes = {unit["name"]: unit["hash"] for unit in wanted["units"]}
        wait_healthy(until, hashes.get(until["unit"], ""))
    if params["finally_restart"]:
        changes += restart_running(params["finally_restart"], dry)
    if last:
        changes += ["removed " + path for path in remove([last], dry)]
    return changes, diffs


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "role": {"type": "str", "required": True},
            "until": {"type": "dict", "options": UNTIL},
            "gate": {"type": "bool", "default": True},
            "discard": {"type": "path"},
            "forget": {"type": "list", "elements": "path", "default": []},
            "finally_remove": {"type": "path"},
            "finally_restart": {"type": "str"},
            "payload": {"type": "str", "no_log": True},
        },
        required_by={"discard": "until"},
        supports_check_mode=True,
    )
    if not module.params["payload"]:
        module.fail_json(msg="role_state needs its action plugin: run it with provisioner's ansible.cfg")
    wanted = json.loads(gzip.decompress(base64.b64decode(module.params["payload"])))
    try:
        changes, diffs = apply(wanted, module.params, module.check_mode)
    except NotAppliedError as error:
        module.fail_json(msg=error.message, unit=error.unit, journal=error.journal)
    module.exit_json(changed=bool(changes), changes=changes, diff=diffs)


if __name__ == "__main__":
    main()
