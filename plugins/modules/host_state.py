#!/usr/bin/python
# Apache-2.0 (see LICENSE)
"""Read-only: what a host is, in the words of its desired state."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_state
short_description: Read the actual state of everything that provisioner manages on a host
description:
  - One round trip that reads files, units, kernel settings and users; it changes nothing.
  - The action plugin of the same name fills every option from the host's desired state.
options:
  files: {description: "Files: path, sha256 wanted, whether content may be shown.", type: list, elements: dict, default: []}
  absent: {description: Paths that should not exist., type: list, elements: str, default: []}
  swept: {description: Patterns of paths; what of ours is there is told., type: list, elements: str, default: []}
  units: {description: "Units to look at: name, reload_on and reads.", type: list, elements: dict, default: []}
  sysctls: {description: Names of kernel parameters., type: list, elements: str, default: []}
  modules: {description: Names of kernel modules., type: list, elements: str, default: []}
  users: {description: System users that should exist., type: list, elements: str, default: []}
author: [provisioner]
"""

EXAMPLES = r"""
- name: Read the actual state
  host_state:
"""

RETURN = r"""
state:
  description: "The actual state: files, swept, units, sysctls, modules, users, kubelet_certificate, kubelet_authority, etcd_data."
  returned: always
  type: dict
"""

import glob
import os
import re

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provisioner_host import HASH_CACHE, HashCache, describe, describe_unit, ours_in, unit_states, user_exists
from ansible.module_utils.provisioner_litter import sweep

KUBELET_CERTIFICATE = "/var/lib/kubelet/pki/kubelet-client-current.pem"
KUBELET_KUBECONFIG = "/var/lib/kubelet/kubeconfig"
# A member without a write-ahead log has never started, or has lost its data; etcd makes other files before it knows who it is.
ETCD_LOG = "/var/lib/etcd/member/wal/*.wal"
SHOWN_BYTES = 64 << 10


def shown_content(path):
    """Text of a small file, for the plan's diff."""
    try:
        if os.path.getsize(path) > SHOWN_BYTES:
            return None
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError):
        return None


def read_files(wanted, remember):
    """Actual files; content only of those that differ and are no secret."""
    cache = HashCache()
    result = {}
    for item in wanted:
        actual = describe(item["path"], cache)
        # what a link leads to may be anybody's secret, and is not shown
        if actual and actual["type"] == "file" and actual["sha256"] != item["sha256"] and item["show"]:
            actual["content"] = shown_content(item["path"])
        result[item["path"]] = actual
    if remember:
        cache.save()
    return result


def read_sysctl(name):
    """Value of a kernel parameter with single spaces, or None where the kernel has none of that name."""
    try:
        with open("/proc/sys/" + name.replace(".", "/"), encoding="ascii") as file:
            return " ".join(file.read().split())
    except OSError:
        return None


def kubelet_certificate():
    """The public half of the kubelet's client certificate; the key beside it never leaves the host."""
    try:
        with open(KUBELET_CERTIFICATE, encoding="ascii", errors="replace") as file:
            found = re.search(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", file.read(), re.DOTALL)
    except OSError:
        return None
    return found.group(0) if found else None


def kubelet_authority():
    """Where the kubelet's own kubeconfig has the CAs: a path; empty where they are in it; None where there is no kubeconfig."""
    try:
        with open(KUBELET_KUBECONFIG, encoding="utf-8", errors="replace") as file:
            found = re.search(r"^\s*certificate-authority:\s*(\S+)\s*$", file.read(), re.MULTILINE)
    except OSError:
        return None
    return found.group(1) if found else ""


def main():
    """Entry point."""
    options = {
        "files": {"type": "list", "elements": "dict", "default": []},
        "absent": {"type": "list", "elements": "str", "default": []},
        "swept": {"type": "list", "elements": "str", "default": []},
        "units": {"type": "list", "elements": "dict", "default": []},
        "sysctls": {"type": "list", "elements": "str", "default": []},
        "modules": {"type": "list", "elements": "str", "default": []},
        "users": {"type": "list", "elements": "str", "default": []},
    }
    module = AnsibleModule(argument_spec=options, supports_check_mode=True)
    want = module.params
    if not module.check_mode:
        sweep([HASH_CACHE, *(item["path"] for item in want["files"])])
    states = unit_states([unit["name"] for unit in want["units"]])
    module.exit_json(
        changed=False,
        state={
            # the digests of large files are remembered for the next look, unless nothing at all may be written
            "files": read_files(want["files"], remember=not module.check_mode),
            "absent": [path for path in want["absent"] if os.path.lexists(path)],
            "swept": ours_in(want["swept"]),
            "units": {unit["name"]: describe_unit(unit, states[unit["name"]]) for unit in want["units"]},
            "sysctls": {name: read_sysctl(name) for name in want["sysctls"]},
            "modules": [name for name in want["modules"] if os.path.isdir("/sys/module/" + name.replace("-", "_"))],
            "users": [name for name in want["users"] if user_exists(name)],
            "kubelet_certificate": kubelet_certificate(),
            "kubelet_authority": kubelet_authority(),
            "etcd_data": bool(glob.glob(ETCD_LOG)),
        },
    )


if __name__ == "__main__":
    main()
