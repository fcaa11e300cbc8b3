#!/usr/bin/python
# Apache-2.0 (see LICENSE)
"""Take everything of a cluster off a machine, so that it is what it was before."""

from __future__ import annotations

DOCUMENTATION = r"""
module: reset_machine
short_description: Take everything of a cluster off a machine, so that it is what it was before
description:
  - Stops units and containers, unmounts, removes interfaces, rules of the packet filters, control groups, files, data, users and
    directories, and gives kernel parameters their old values back. What was there before the first change stays.
  - A machine of another cluster is refused and not touched. One with nothing of ours is left alone.
  - Everything is tried, whatever fails; then the module looks again and fails with what is still there, and why. It can be run
    again at any time. Check mode tells what would go.
options:
  cluster_id: {description: Identity of the cluster that may be removed; empty where it is not known., type: str, required: true}
  seconds: {description: How long it may take in all., type: int, required: true}
  payload: {description: "Base64 of gzipped JSON: the footprint. Filled by the action plugin.", type: str}
author: [provisioner]
"""

EXAMPLES = r"""
- name: Take the cluster off the machine
  reset_machine:
    cluster_id: "{{ reset_cluster_id }}"
    seconds: "{{ reset_seconds }}"
"""

RETURN = r"""
state:
  description: "What was found, what is still there and why, notes, whether the machine was clean already or another cluster's."
  returned: always
  type: dict
"""

import base64
import gzip
import json
import time

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provisioner_reset import DeadlineError, Machine, NotOursError, look, owner_of, reset


def explain(left, why):
    """What is still there, as lines."""
    return ["%s: %s%s" % (name, item, ": " + why[item] if item in why else "") for name, items in left.items() for item in items]


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "cluster_id": {"type": "str", "required": True},
            "seconds": {"type": "int", "required": True},
            "payload": {"type": "str", "no_log": True},
        },
        supports_check_mode=True,
    )
    if not module.params["payload"]:
        module.fail_json(msg="reset_machine needs its action plugin: run it with provisioner's ansible.cfg")
    given = json.loads(gzip.decompress(base64.b64decode(module.params["payload"])))
    began = time.monotonic()
    state = {"clean": False, "foreign": "", "found": {}, "left": [], "notes": [], "seconds": 0.0}
    try:
        evidence = owner_of(given["footprint"], module.params["cluster_id"], given["authorities"])
    except NotOursError as error:
        module.fail_json(msg="%s; nothing was changed" % error, state={**state, "foreign": str(error)})
    if not evidence:
        module.exit_json(changed=False, state={**state, "clean": True})
    machine = Machine(given["footprint"], module.params["seconds"])
    if module.check_mode:
        try:
            found = look(machine)
        except DeadlineError:
            module.fail_json(msg="the look took longer than %d s" % module.params["seconds"], state=state)
        module.exit_json(changed=True, state={**state, "found": found, "notes": machine.notes})
    found, left, late = reset(machine)
    lines = explain(left, machine.why)
    # what went wrong in a whole aspect, and cannot be seen by what is left
    lines += ["%s: %s" % item for item in machine.why.items() if item[0] in ("units", "processes", "mounts") and left]
    state = {**state, "found": found, "left": lines, "notes": machine.notes, "seconds": round(time.monotonic() - began, 1)}
    if late:
        module.fail_json(msg="not done within %d s: the time was up at: %s" % (module.params["seconds"], late), state=state)
    if lines:
        module.fail_json(msg="still there: %s" % lines[0], state=state)
    module.exit_json(changed=True, state=state)


if __name__ == "__main__":
    main()
