#!/usr/bin/python
# Apache-2.0 (see LICENSE)
"""Unpack the bundle of binaries and image archives that the controller sent, checked by sha256."""

from __future__ import annotations

DOCUMENTATION = r"""
module: place_artifacts
short_description: Place the binaries and image archives a host lacks, checked by sha256
description:
  - The driver has made a bundle of just what the host lacks; the action plugin of the same name sends it.
  - A bundle is the concatenation of its files, compressed or not. Each file gets its final mode, and replaces the old one,
    only after its sum was checked.
options:
  role: {description: The role whose artifacts are placed., type: str, required: true}
  bundle: {description: The bundle on the host. Filled by the action plugin., type: path}
  codec: {description: How it is compressed. Filled by the action plugin., type: str, choices: [zstd, none], default: none}
  artifacts: {description: "Path, sha256, size and mode of each, in order.", type: list, elements: dict, default: []}
author: [provisioner]
"""

EXAMPLES = r"""
- name: Place the host's artifacts
  place_artifacts:
    role: artifacts
"""

RETURN = r"""
placed: {description: Paths that were written, returned: always, type: list}
"""

import contextlib
import fcntl
import hashlib
import os
import subprocess
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.provisioner_host import HashCache, make_parents

BLOCK = 1 << 20
# linux/fcntl.h; Python knows its name from 3.10 on
F_SETPIPE_SZ = 1031


class WrongBytesError(Exception):
    """What was unpacked is not what was asked for."""


def unpack(stream, item, file):
    """Copy one file out of the stream, and check its sum."""
    digest, left = hashlib.sha256(), item["size"]
    # one buffer for all of it: joining what a pipe gives piece by piece costs as much as the sum
    block = memoryview(bytearray(BLOCK))
    while left:
        count = stream.readinto(block[: min(left, BLOCK)])
        if not count:
            raise WrongBytesError("%s: the bundle ends too early" % item["path"])
        digest.update(block[:count])
        file.write(block[:count])
        left -= count
    if digest.hexdigest() != item["sha256"]:
        raise WrongBytesError("%s: the bytes that arrived are not the locked ones (sha256 differs)" % item["path"])


def widen(pipe):
    """Let more than a pipe's usual 64 KiB through at once: fewer turns between the two ends. It works without, too."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, F_SETPIPE_SZ, BLOCK)


def place(stream, item, cache):
    """Take one file from the stream and put it in its place."""
    path = item["path"]
    make_parents(path)
    handle, name = tempfile.mkstemp(dir=os.path.dirname(path), prefix=".provisioner-")
    try:
        with os.fdopen(handle, "wb") as file:
            unpack(stream, item, file)
            os.fchmod(file.fileno(), item["mode"])
        os.replace(name, path)
    except BaseException:
        if os.path.exists(name):
            os.unlink(name)
        raise
    status = os.lstat(path)
    cache.entries[path] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, item["sha256"]]
    cache.changed = True


def main():
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "role": {"type": "str", "required": True},
            "bundle": {"type": "path"},
            "codec": {"type": "str", "choices": ["zstd", "none"], "default": "none"},
            "artifacts": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    artifacts = module.params["artifacts"]
    paths = [item["path"] for item in artifacts]
    if module.check_mode or not artifacts:
        module.exit_json(changed=bool(artifacts), placed=paths)
    program = ["zstd", "-dcq"] if module.params["codec"] == "zstd" else ["cat"]
    command = [*program, "--", module.params["bundle"]]
    cache = HashCache()
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as unpacker:
            widen(unpacker.stdout)
            try:
                for item in artifacts:
                    place(unpacker.stdout, item, cache)
            finally:
                cache.save()
                unpacker.kill()
    except (OSError, WrongBytesError) as error:
        module.fail_json(msg="artifacts cannot be placed: %s" % error)
    module.exit_json(changed=True, placed=paths)


if __name__ == "__main__":
    main()
