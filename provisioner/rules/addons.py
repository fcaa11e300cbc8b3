"""Rules about addons."""

from __future__ import annotations

import re
from collections.abc import Iterator

from provisioner.addons.table import wanted_by
from provisioner.problems import Problem, error, quoted
from provisioner.rules.rule import Context

# Directories that volumes may lie below; what the system or the cluster's components live in is none.
_USABLE = re.compile(r"(/(var/lib|srv|data|mnt|opt|home|media)(/[A-Za-z0-9._-]+)+)|(/data)")
_TAKEN = re.compile(r"/var/lib/(kubelet|containerd|etcd|provisioner|cni|systemd|dpkg|apt|rpm)(/.*)?|/opt/(cni|containerd)(/.*)?")


def local_path_directory(context: Context) -> Iterator[Problem]:
    """Local volumes lie in a directory of their own, below /var/lib, /srv, /data, /mnt, /media, /opt or /home, and in none that
    components of the cluster or of the system use."""
    directory = context.cluster.addons.local_path_directory
    parts = directory.split("/")
    if not _USABLE.fullmatch(directory) or _TAKEN.fullmatch(directory) or {".", ".."} & {*parts}:
        yield error(
            ("addons", "localPathDirectory"),
            f"{quoted(directory)} is no place for volumes: name a directory of their own, such as /srv/volumes",
        )


def addon_images_known(context: Context) -> Iterator[Problem]:
    """The image of an addon can come from some source of `artifacts.sources`: versions.yml has its sum there. (Whether that source
    can be reached shows when it is fetched, before anything is changed.)"""
    cluster = context.cluster
    wanted = wanted_by(cluster)
    if not wanted:
        return
    # only here: reading a file needs the lock for little else
    from provisioner.artifacts.lock import load_lock  # noqa: PLC0415

    lock = load_lock()
    version = cluster.kubernetes.version
    if version not in lock.releases:
        return
    for addon in wanted:
        release = lock.release(addon.component, lock.version_of(addon.component, version))
        official = any(known for sums in release.official.values() for known in sums.values())
        built = any(known for sums in release.modules.values() for known in sums.values())
        sources = {*cluster.artifacts.sources} - ({"mirror"} if cluster.artifacts.mirror is None else set())
        if not (official and sources & {"mirror", "release"}) and not (built and "modules" in sources):
            only = "it cannot be built from Go modules" if not built else "no official digest of it is known"
            yield error(
                ("addons", addon.key),
                f"its image, {lock.image(addon.component, version)}, cannot be had from {', '.join(sorted(sources)) or '-'}: "
                f"{only}; add release or a mirror to `artifacts.sources`, or leave the addon off",
            )
