# Apache-2.0 (see LICENSE)
"""Temporary files on a node whose maker was killed: the next look takes them away.

Runs on the node's own Python (3.9 and newer) with the standard library only.
"""

from __future__ import annotations

import glob
import os
import shutil
import time

# Half of a file that `write_atomic` or `place_artifacts` was about to put in its place.
PREFIX = ".provisioner-"
# Where Ansible makes a directory for a bundle; see `render/machine.py`.
STAGING = ("/dev/shm", "/var/tmp")  # noqa: S108
BUNDLE = "provisioner.bundle"
# An empty directory may be another Ansible's, which is about to fill it.
OLD_SECONDS = 60


def sweep(paths):
    """Remove temporary files beside these paths, and bundles that nobody unpacks any more.

    A module of a run that was killed may still be at work here. It fails where its file is gone, and nobody waits for it.
    """
    for directory in sorted({os.path.dirname(path) for path in paths}):
        for path in glob.glob(os.path.join(glob.escape(directory), PREFIX + "*")):
            _unlink(path)
    for parent in STAGING:
        for path in glob.glob(os.path.join(parent, "ansible-tmp-*")):
            if os.path.exists(os.path.join(path, BUNDLE)):
                shutil.rmtree(path, ignore_errors=True)
            else:
                _remove_empty(path)


def _unlink(path):
    try:
        os.unlink(path)
    except OSError:
        # gone already, or a directory: none of ours
        return


def _remove_empty(path):
    try:
        if time.time() - os.lstat(path).st_mtime > OLD_SECONDS:
            os.rmdir(path)
    except OSError:
        return
