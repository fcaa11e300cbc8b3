"""A kubectl for users who have none: the cache of artifacts holds the one of every version that a lab was built with."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from provisioner.artifacts import Arch, Cache, load_lock
from provisioner.artifacts.ensure import in_cache_of
from provisioner.artifacts.wants import wants_of
from provisioner.errors import ArtifactError
from provisioner.testing.cluster import ClusterError


def cached() -> Path:
    """A kubectl made executable in the cache: of the newest version that is there.

    Raises:
        ClusterError: there is none.
    """
    lock, cache = load_lock(), Cache.open()
    arch: Arch = "arm64" if platform.machine() in {"aarch64", "arm64"} else "amd64"
    for version in lock.kubernetes_versions:
        target = cache.root / "bin" / f"kubectl-{version}"
        if target.exists():
            return target
        try:
            wants = wants_of(lock, version, arch, [("kubernetes", ("kubectl",))])
            found = in_cache_of(wants, lock, sources=("release", "modules"), cache=cache).get("kubectl")
            if found is None:
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            # beside it first: several processes may do this at once
            fresh = target.with_name(f".{target.name}.{os.getpid()}")
            shutil.copyfile(found.path, fresh)
            fresh.chmod(0o755)
            fresh.replace(target)
        except (ArtifactError, OSError) as error:
            raise ClusterError(f"kubectl: command not found, and none can be taken from the cache: {error}") from None
        return target
    raise ClusterError("kubectl: command not found: install one, or use the client (`cluster.core`, `cluster.client`)")
