"""A kubectl for users who have none: the cache of artifacts holds the lab's own."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path
from typing import NoReturn

from provisioner.artifacts import Arch, load_lock
from provisioner.artifacts.ensure import in_cache_of
from provisioner.artifacts.wants import wants_of
from provisioner.load import load
from provisioner.testing.cluster import ClusterError


def of_lab(workspace: Path) -> Path:
    """The kubectl of a lab's version, made executable beside its kubeconfig.

    Raises:
        ClusterError: the cache has none.
    """
    target = workspace / "kubectl"
    if target.exists():
        return target
    cluster, lock = load(workspace / "cluster.yaml"), load_lock()
    arch: Arch = "arm64" if platform.machine() in {"aarch64", "arm64"} else "amd64"
    wants = wants_of(lock, cluster.kubernetes.version, arch, [("kubernetes", ("kubectl",))])
    found = in_cache_of(wants, lock, sources=cluster.artifacts.sources, mirror=cluster.artifacts.mirror).get("kubectl")
    if found is None:
        missing()
    # beside it first: several processes may do this at once
    fresh = target.with_name(f".kubectl.{os.getpid()}")
    shutil.copyfile(found.path, fresh)
    fresh.chmod(0o755)
    fresh.replace(target)
    return target


def missing() -> NoReturn:
    """Nobody has a kubectl.

    Raises:
        ClusterError: always.
    """
    raise ClusterError("kubectl: command not found: install one, or use the client (`cluster.core`, `cluster.client`)")
