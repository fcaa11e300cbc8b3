"""The base image of the lab's machines: a Debian 12 tree made once with mmdebstrap and kept in the controller's cache.

It holds all that nodes take from their distribution, because lab machines have no way out. The tree is read-only in effect: every
machine writes to a layer of its own above it. Its directory carries a hash of this recipe, so a changed recipe makes a new tree.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from provisioner.errors import LabError
from provisioner.lab.apt import sources_for
from provisioner.lab.commands import run

SUITE = "bookworm"
# a full run takes 20 to 60 s; a slow mirror must not fail it
BUILD_SECONDS = 1800

PACKAGES = (
    "ca-certificates",
    "conntrack",
    "dbus",
    "ethtool",
    "haproxy",
    "iproute2",
    "iptables",
    "iputils-ping",
    "keepalived",
    "kmod",
    "less",
    "mount",
    "nftables",
    "openssh-server",
    "procps",
    "python3",
    "socat",
    "sudo",
    "systemd",
    "systemd-sysv",
    "util-linux",
    "zstd",
)

# No devices, no networkd (addresses are set from outside), no terminals, and nothing that wakes up by itself.
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-networkd-wait-online.service",
    "systemd-udev-settle.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
)
# Installed, but started by the roles' own units only.
DISABLED = ("haproxy.service", "keepalived.service", "nftables.service", "conntrackd.service")

SHARED_UNIT = """\
[Unit]
Description=Share mounts with child namespaces: kubelet asks for it, and systemd does it only outside containers
DefaultDependencies=no
Before=sysinit.target ssh.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/mount --make-rshared /

[Install]
WantedBy=sysinit.target
"""

# With cgroup v2 systemd-nspawn leaves the tree writable by itself.
CGROUP_UNIT = """\
[Unit]
Description=Make the cgroup v1 controllers writable for kubelet and containerd
DefaultDependencies=no
Before=sysinit.target ssh.service
ConditionPathExists=!/sys/fs/cgroup/cgroup.controllers

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'for c in /sys/fs/cgroup/*/; do mount -o remount,bind,rw "$c" || true; done'

[Install]
WantedBy=sysinit.target
"""

SSHD = """\
# A driver opens many sessions at once.
MaxSessions 200
MaxStartups 200
UseDNS no
PasswordAuthentication no
HostKey /etc/ssh/ssh_host_ed25519_key
"""

FILES = {
    "etc/systemd/system/lab-shared.service": SHARED_UNIT,
    "etc/systemd/system/lab-cgroup.service": CGROUP_UNIT,
    "etc/ssh/sshd_config.d/lab.conf": SSHD,
    # kept over a restart: a drill wants to know what happened before. The kernel's messages are the host's, once is enough.
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=persistent\nSystemMaxUse=64M\nReadKMsg=no\n",
    "etc/apt/sources.list": "# lab machines have no way out\n",
}
LINKS = {
    **{f"etc/systemd/system/{unit}": "/dev/null" for unit in MASKED},
    "etc/systemd/system/sysinit.target.wants/lab-shared.service": "/etc/systemd/system/lab-shared.service",
    "etc/systemd/system/sysinit.target.wants/lab-cgroup.service": "/etc/systemd/system/lab-cgroup.service",
    "etc/systemd/system/default.target": "/lib/systemd/system/multi-user.target",
}
# Directories that overlayfs cannot serve well: bound in from the host's own file system.
BOUND = ("containerd", "etcd", "kubelet", "provisioner")

DPKG_EXCLUDES = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


def recipe() -> str:
    """Hash of everything that decides the tree's content, save the day's package versions."""
    parts = (SUITE, PACKAGES, MASKED, DISABLED, FILES, LINKS, BOUND, DPKG_EXCLUDES)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def cache_root() -> Path:
    """Where base images are kept: ``lab-images`` of the controller's cache."""
    chosen = os.environ.get("PROVISIONER_CACHE")
    if chosen:
        return Path(chosen) / "lab-images"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "provisioner" / "lab-images"


def path() -> Path:
    """The tree of the present recipe, whether it exists or not."""
    return cache_root().absolute() / f"{SUITE}-{recipe()}"


@contextlib.contextmanager
def _build_lock(directory: Path) -> Iterator[None]:
    handle = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def ensure() -> Path:
    """The base image's tree, made now if it is not there. Two callers at once make it once.

    Raises:
        LabError: mmdebstrap failed; its last lines are in the details.
    """
    tree = path()
    if tree.is_dir():
        return tree
    tree.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _build_lock(tree.parent):
        if tree.is_dir():
            return tree
        for left in tree.parent.glob(".build-*"):
            shutil.rmtree(left)
        with tempfile.TemporaryDirectory(dir=tree.parent, prefix=".build-") as name:
            work = Path(name)
            bootstrap(work)
            configure(work / "tree")
            (work / "tree").rename(tree)
    return tree


def bootstrap(work: Path, *, packages: Iterable[str] = PACKAGES) -> None:
    """Unpack packages and what they depend on into ``work/tree``.

    Raises:
        LabError: mmdebstrap failed.
    """
    # In a file of mode 0600: a source may name a user and a password.
    sources = work / "lab.sources"
    sources.touch(mode=0o600)
    sources.write_text(sources_for(SUITE))
    mirror = [str(sources)] if sources.stat().st_size else []
    # Killed with this process, in a mount and a process namespace of its own: a crash half way leaves no mount and no process.
    guard = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    options = ["--mode=root", "--variant=minbase", f"--include={','.join(packages)}"]
    options += [f"--dpkgopt=path-exclude={pattern}" for pattern in DPKG_EXCLUDES]
    options += ["--aptopt=Apt::Install-Recommends false", '--aptopt=Acquire::Languages "none"']
    try:
        run([*guard, "mmdebstrap", *options, SUITE, str(work / "tree"), *mirror], timeout=BUILD_SECONDS)
    except LabError as error:
        raise LabError(
            "the base image of the lab's machines could not be made: mmdebstrap failed",
            hint="check that this host reaches a Debian mirror (`apt-get update`), then run the command again",
            details=error.details or (error.message,),
        ) from error


def configure(tree: Path, *, files: Mapping[str, str] = FILES, links: Mapping[str, str] = LINKS) -> None:
    """Turn the plain tree into a machine: units, links, and nothing that two machines must not share."""
    for pattern in ("etc/ssh/ssh_host_*", "etc/apt/sources.list.d/*", "var/lib/apt/lists/*"):
        for found in tree.glob(pattern):
            shutil.rmtree(found) if found.is_dir() and not found.is_symlink() else found.unlink()
    for unit in DISABLED:
        for wants in tree.glob("etc/systemd/system/*.wants"):
            (wants / unit).unlink(missing_ok=True)
    for name, content in files.items():
        target = tree / name
        _make_parents(tree, target)
        target.write_text(content)
        target.chmod(0o644)
    for name, destination in links.items():
        link = tree / name
        _make_parents(tree, link)
        link.unlink(missing_ok=True)
        link.symlink_to(destination)
    for name in BOUND:
        (tree / "var/lib" / name).mkdir(exist_ok=True, mode=0o755)
    # mmdebstrap gives the root of the tree the mode of a temporary directory
    tree.chmod(stat.S_IRWXU | stat.S_IRGRP | stat.S_IXGRP | stat.S_IROTH | stat.S_IXOTH)


def _make_parents(tree: Path, target: Path) -> None:
    for parent in reversed(target.relative_to(tree).parents):
        (tree / parent).mkdir(exist_ok=True, mode=0o755)
