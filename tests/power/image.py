"""The disk of the drill's virtual machines: a bootable Debian 12 with a kernel of its own, made once and kept in the cache.

It differs from the lab's tree (``provisioner.lab.image``) in what a machine has and a container has not: kernel and modules, udev,
networkd, file system checks. The kernel is started by QEMU directly, so there is no boot loader; name and address come on
its command line.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from provisioner.lab import image as lab_image
from provisioner.lab.commands import run

PACKAGES = ("linux-image-cloud-amd64", "udev")
DISK_BYTES = 8 << 30
# nothing that wakes up by itself, and no terminals; unlike in the lab, devices and the network are the machine's own business
MASKED = (
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
)

HOST_KEYS_UNIT = """\
[Unit]
Description=Make the machine's SSH host keys at its first boot
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A
ExecStartPost=/bin/sync

[Install]
WantedBy=multi-user.target
"""

FILES = {
    "etc/fstab": "/dev/vda / ext4 errors=remount-ro 0 1\n",
    "etc/machine-id": "",
    "etc/ssh/sshd_config.d/lab.conf": lab_image.SSHD,
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=persistent\nSystemMaxUse=64M\n",
    "etc/systemd/system/ssh-host-keys.service": HOST_KEYS_UNIT,
    # under emulation a service may be busy for longer than systemd's 90 s
    "etc/systemd/system.conf.d/slow.conf": "[Manager]\nDefaultTimeoutStartSec=600s\nDefaultTimeoutStopSec=300s\n",
    # kubelet wants one, and an address of the machine itself would make CoreDNS ask itself; this one leads nowhere (RFC 5737)
    "etc/resolv.conf": "nameserver 192.0.2.1\n",
    "etc/apt/sources.list": "# these machines have no way out\n",
}
WANTS = {
    "multi-user.target": ("/etc/systemd/system/ssh-host-keys.service", "/lib/systemd/system/systemd-networkd.service"),
    "network-online.target": ("/lib/systemd/system/systemd-networkd-wait-online.service",),
    # writes networkd's file from `ip=` on the kernel's command line
    "sysinit.target": ("/lib/systemd/system/systemd-network-generator.service",),
}
LINKS = {
    **{f"etc/systemd/system/{unit}": "/dev/null" for unit in MASKED},
    **{f"etc/systemd/system/{target}.wants/{Path(unit).name}": unit for target, units in WANTS.items() for unit in units},
    "etc/systemd/system/default.target": "/lib/systemd/system/multi-user.target",
}


@dataclass(frozen=True, slots=True)
class Image:
    """A bootable disk in the cache: a raw ext4 file system, the kernel and its initial file system."""

    directory: Path

    @property
    def disk(self) -> Path:
        """The root file system; machines write to layers above it."""
        return self.directory / "disk.raw"

    @property
    def kernel(self) -> Path:
        """What QEMU starts."""
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        """What the kernel starts with."""
        return self.directory / "initrd"


def recipe() -> str:
    """Hash of everything that decides the disk's content, save the day's package versions."""
    parts = (lab_image.recipe(), PACKAGES, DISK_BYTES, FILES, LINKS)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def ensure() -> Image:
    """The image of the present recipe, made now if it is not in the cache (about a minute).

    Raises:
        LabError: a tool failed; its last lines are in the details.
    """
    root = lab_image.cache_root().absolute()
    made = root / f"power-cut-{recipe()}"
    if made.is_dir():
        return Image(made)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in root.glob("power-cut-*"):
        shutil.rmtree(old)
    # not `.build-`: the lab takes those for remains of its own builds
    with tempfile.TemporaryDirectory(dir=root, prefix=".power-cut-") as name:
        work = Path(name)
        lab_image.bootstrap(work, packages=(*lab_image.PACKAGES, *PACKAGES))
        lab_image.configure(work / "tree", files=FILES, links=LINKS)
        (work / "out").mkdir()
        (work / "tree/root/.ssh").mkdir(mode=0o700, exist_ok=True)
        write_disk(work / "tree", work / "out")
        (work / "out").rename(made)
    return Image(made)


def write_disk(tree: Path, out: Path, *, size: int = DISK_BYTES) -> None:
    """Make ``disk.raw``, ``vmlinuz`` and ``initrd`` of a tree, which loses the latter two.

    Args:
        tree: with one kernel in its /boot.
        out: the directory that they are written to.
        size: of the disk, in bytes; it is sparse.

    Raises:
        LabError: the file system cannot be made.
    """
    for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        (found,) = (tree / "boot").glob(pattern)
        shutil.move(found, out / name)
    disk = out / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(size)
    # lazy initialisation would keep the machines' disks busy for minutes after their first boot
    run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", str(tree), str(disk)], timeout=600)


def with_login(image: Image, public_key: str, target: Path) -> None:
    """Copy the image's disk and let an SSH key in as root; the copy is what a drill's machines have below their own layers.

    Args:
        image: from the cache.
        public_key: a line of authorized_keys.
        target: the copy; sparse.

    Raises:
        LabError: cp or debugfs failed.
    """
    run(["cp", "--sparse=always", "--reflink=auto", str(image.disk), str(target)], timeout=600)
    keys = target.with_suffix(".keys")
    keys.write_text(f"{public_key}\n")
    path = "/root/.ssh/authorized_keys"
    commands = (f"write {keys} {path}", f"set_inode_field {path} mode 0100600", f"set_inode_field {path} uid 0")
    said = run(["debugfs", "-w", "-f", "-", str(target)], stdin="".join(f"{line}\n" for line in commands))
    keys.unlink()
    if "Allocated inode" not in said:
        # debugfs ends with 0 whatever happened
        raise AssertionError(f"debugfs did not write {path}: {said}")
