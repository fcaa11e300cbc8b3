"""The drill's box: the Debian 12 of the other drills as Vagrant expects it, for its libvirt provider.

What makes a tree a box: the user `vagrant` with Vagrant's well-known key, which Vagrant replaces by one of its own at the first
boot; sudo without a password; DHCP on every interface. There is no boot loader: the box's own Vagrantfile names kernel and initrd.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from pathlib import Path

from provisioner.errors import LabError
from provisioner.lab import image as lab_image
from provisioner.lab.commands import run
from tests.power import image

NAME = "provisioner/drill"
DISK_GIB = 8
# Vagrant's well-known public key, of Debian's package or of Vagrant's makers' own
PUBLIC_KEYS = (
    "/usr/share/rubygems-integration/all/gems/vagrant-*/keys/vagrant.pub",
    "/opt/vagrant/embedded/gems/gems/vagrant-*/keys/vagrant.pub",
)
# As for the other drill's machines: see there. kernel's messages go to the console, where libvirt keeps them.
CMD_LINE = "root=/dev/vda rw console=ttyS0 net.ifnames=0 tsc=reliable clocksource=tsc mitigations=off"

DHCP = """\
[Match]
Name=e*

[Network]
DHCP=ipv4
LinkLocalAddressing=no

[DHCPv4]
ClientIdentifier=mac
"""

FILES = {
    **image.FILES,
    "etc/hostname": "drill\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 drill\n",
    "etc/sudoers.d/vagrant": "vagrant ALL=(ALL) NOPASSWD: ALL\n",
    "etc/systemd/network/10-dhcp.network": DHCP,
}
LINKS = dict(image.LINKS)

# Merged below the user's own Vagrantfile. Vagrant loads it where the box was unpacked, so the kernel's path is known there only.
VAGRANTFILE = f"""\
Vagrant.configure("2") do |config|
  # not to be found out: that takes a dozen SSH sessions, and has taken an emulated machine for a FreeBSD
  config.vm.guest = :debian
  config.vm.provider "libvirt" do |libvirt|
    libvirt.kernel = File.join(__dir__, "vmlinuz")
    libvirt.initrd = File.join(__dir__, "initrd")
    libvirt.cmd_line = "{CMD_LINE}"
  end
end
"""


def public_key() -> str:
    """The line of authorized_keys that lets Vagrant in at a box's first boot.

    Raises:
        LabError: Vagrant is not installed.
    """
    for pattern in PUBLIC_KEYS:
        for found in sorted(Path("/").glob(pattern.removeprefix("/"))):
            return found.read_text()
    raise LabError("Vagrant's public key is not found", hint="install Vagrant: `apt-get install vagrant`")


def recipe() -> str:
    """Hash of everything that decides the box's content, save the day's package versions."""
    parts = (lab_image.recipe(), image.PACKAGES, DISK_GIB, FILES, LINKS, VAGRANTFILE, public_key())
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def ensure() -> Path:
    """The box file of the present recipe, made now if it is not in the cache (about two minutes).

    Raises:
        LabError: a tool failed; its last lines are in the details.
    """
    root = lab_image.cache_root().absolute()
    made = root / f"vagrant-{recipe()}.box"
    if made.is_file():
        return made
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in root.glob("vagrant-*.box"):
        old.unlink()
    with tempfile.TemporaryDirectory(dir=root, prefix=".vagrant-") as name:
        work = Path(name)
        tree, out = work / "tree", work / "out"
        lab_image.bootstrap(work, packages=(*lab_image.PACKAGES, *image.PACKAGES))
        lab_image.configure(tree, files=FILES, links=LINKS)
        _add_user(tree)
        out.mkdir()
        image.write_disk(tree, out, size=DISK_GIB << 30)
        run(["qemu-img", "convert", "-O", "qcow2", str(out / "disk.raw"), str(out / "box.img")], timeout=600)
        (out / "disk.raw").unlink()
        (out / "metadata.json").write_text(json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": DISK_GIB}))
        (out / "Vagrantfile").write_text(VAGRANTFILE)
        packed = work / "box"
        with tarfile.open(packed, "w:gz", compresslevel=1) as archive:
            for file in sorted(out.iterdir()):
                file.chmod(0o644)
                archive.add(file, arcname=file.name)
        packed.rename(made)
    return made


def _add_user(tree: Path) -> None:
    run(["chroot", str(tree), "useradd", "--create-home", "--shell", "/bin/bash", "--user-group", "vagrant"])
    directory = tree / "home/vagrant/.ssh"
    directory.mkdir(mode=0o700)
    (directory / "authorized_keys").write_text(public_key())
    (directory / "authorized_keys").chmod(0o600)
    run(["chroot", str(tree), "chown", "-R", "vagrant:vagrant", "/home/vagrant/.ssh"])
    (tree / "etc/sudoers.d/vagrant").chmod(0o440)
