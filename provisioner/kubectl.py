"""A kubectl for users who have none: the cache of artifacts holds the one of every version that a cluster was built with."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from provisioner.artifacts import Arch, Cache, load_lock
from provisioner.artifacts.ensure import in_cache_of
from provisioner.artifacts.wants import wants_of
from provisioner.errors import ArtifactError


def in_cache(versions: Sequence[str] | None = None, *, mirror: str | None = None) -> Path | None:
    """A kubectl of the cache, made executable there; None where it has none of these versions.

    Args:
        versions: the first of them that is there is taken; default: all of the lock, the default first.
        mirror: cluster.yaml's ``artifacts.mirror``.

    Raises:
        ArtifactError: one is there, and cannot be made executable.
    """
    lock, cache = load_lock(), Cache.open()
    arch: Arch = "arm64" if platform.machine() in {"aarch64", "arm64"} else "amd64"
    for version in versions or lock.kubernetes_versions:
        wants = wants_of(lock, version, arch, [("kubernetes", ("kubectl",))])
        found = in_cache_of(wants, lock, sources=("mirror", "release", "modules"), mirror=mirror, cache=cache).get("kubectl")
        if found is None:
            continue
        target = cache.root / "bin" / f"kubectl-{version}-{found.sha256.removeprefix('sha256:')[:12]}"
        try:
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                # beside it first: several processes may do this at once
                fresh = target.with_name(f".{target.name}.{os.getpid()}")
                shutil.copyfile(found.path, fresh)
                fresh.chmod(0o755)
                fresh.replace(target)
        except OSError as error:
            raise ArtifactError(
                f"{target}: {error.strerror}", hint="make room there, or move the cache with PROVISIONER_CACHE"
            ) from error
        return target
    return None
