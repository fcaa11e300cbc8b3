"""One machine: its disk, its boot, its end.

The disk is the base image below a layer of the machine's own, joined by overlayfs. All that differs from machine to machine is
written into that layer before the first boot.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sys
import uuid
from ipaddress import IPv4Address
from pathlib import Path
from threading import Event

from provisioner.errors import LabError, WaitTimeout
from provisioner.lab import keys, network
from provisioner.lab.cgroups import Cgroups
from provisioner.lab.commands import run
from provisioner.lab.image import BOUND
from provisioner.lab.spec import Lab, Machine
from provisioner.wait import NotYet, wait_until

LAUNCH = Path(__file__).with_name("launch.py")
# where systemd-nspawn leaves files behind after a SIGKILL
NSPAWN_RUN = Path("/run/systemd/nspawn")
BANNER_SECONDS = 5.0
CONSOLE_LINES = 15
MODULES = Path("/lib/modules") / os.uname().release

# What containerd, runc and kubelet need beyond nspawn's default filter; all of it is the machine's own namespace's business.
SYSTEM_CALLS = "@keyring bpf perf_event_open"


def host_key(lab: Lab, machine: Machine) -> Path:
    """The machine's private host key, as seen on the host."""
    return lab.disk(machine) / "upper/etc/ssh/ssh_host_ed25519_key"


def prepare(lab: Lab, machine: Machine, login_key: str) -> str:
    """Write the machine's own layer of its disk, once; the public host key is returned.

    Args:
        login_key: public line that may log in as root.

    Raises:
        OSError: the disk is full, or the state root is on a file system that overlayfs cannot write to.
    """
    disk = lab.disk(machine)
    upper = disk / "upper"
    for directory in ("upper", "work", "root", *(f"var/{name}" for name in BOUND)):
        (disk / directory).mkdir(parents=True, exist_ok=True, mode=0o755)
    # modes of directories in the upper layer hide those of the image below: they must be the same
    for name, mode in (("etc/ssh", 0o755), ("root/.ssh", 0o700), ("var/log/journal", 0o755)):
        (upper / name).mkdir(parents=True, exist_ok=True, mode=mode)
    (upper / "root").chmod(0o700)
    public = keys.ensure(host_key(lab, machine), machine.name)
    machine_id = upper / "etc/machine-id"
    if machine_id.exists():
        return public
    hosts = "".join(f"{other.address} {other.name}\n" for other in lab.machines)
    files = {
        "etc/hostname": f"{machine.name}\n",
        "etc/hosts": f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{hosts}",
        # never answers, but is not empty: kubelet refuses to work without a resolver
        "etc/resolv.conf": f"nameserver {lab.gateway}\noptions timeout:1 attempts:1\n",
        "root/.ssh/authorized_keys": f"{login_key}\n",
    }
    for name, content in files.items():
        (upper / name).write_text(content)
    (upper / "root/.ssh/authorized_keys").chmod(0o600)
    # last: it marks the layer as complete
    machine_id.write_text(f"{uuid.uuid4().hex}\n")
    return public


def nspawn(lab: Lab, machine: Machine) -> list[str]:
    """The command line of the machine's systemd-nspawn."""
    disk = lab.disk(machine)
    return [
        "systemd-nspawn",
        "--quiet",
        f"--directory={disk / 'root'}",
        f"--machine={nspawn_name(lab, machine)}",
        f"--hostname={machine.name}",
        "--boot",
        "--keep-unit",
        "--register=no",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--capability=all",
        f"--system-call-filter={SYSTEM_CALLS}",
        f"--network-namespace-path={network.NETNS / lab.resource(machine)}",
        "--bind=/dev/kmsg",
        *(f"--bind={disk / 'var' / name}:/var/lib/{name}" for name in BOUND),
        # so that `modprobe` in a machine loads what the host's kernel has as modules
        *(["--bind-ro=/lib/modules"] if MODULES.is_dir() else []),
    ]


def nspawn_name(lab: Lab, machine: Machine) -> str:
    """The machine's name for systemd-nspawn: unique on the host, and a valid host name."""
    return f"{lab.name}.{machine.name}"


def start(lab: Lab, machine: Machine, cgroups: Cgroups) -> None:
    """Boot a machine that does not run: fresh control groups and network, the same disk. Returns before it is up.

    Raises:
        LabError: a tool or the kernel refused.
    """
    stop(lab, machine, cgroups)
    if not lab.image.is_dir():
        raise LabError(
            f"{lab.image}: the base image of lab {lab.name} is gone",
            hint=f"`provisioner lab down --name {lab.name}`, then bring it up again",
        )
    network.connect(lab, machine)
    disk = lab.disk(machine)
    layers = {"lowerdir": lab.image, "upperdir": disk / "upper", "workdir": disk / "work"}
    name = lab.resource(machine)
    spec = {
        "groups": [str(path) for path in cgroups.create(name)],
        "unified": cgroups.version == 2,
        "overlay": ",".join(f"{option}={escape(path)}" for option, path in layers.items()),
        "root": str(disk / "root"),
        "log": str(console(lab, machine)),
        "environment": {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "TERM": "dumb",
            # sysctls inside the machine, /proc/sys/net above all
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes",
        },
        "argv": nspawn(lab, machine),
    }
    run(cgroups.wrap(name, [sys.executable, "-I", "-S", str(LAUNCH), json.dumps(spec)]))


def escape(path: Path) -> str:
    """A path as a mount option: overlayfs splits options at commas and lower directories at colons."""
    text = str(path)
    for special in ("\\", ",", ":"):
        text = text.replace(special, "\\" + special)
    return text


def stop(lab: Lab, machine: Machine, cgroups: Cgroups) -> None:
    """End a machine as a power cut does: every process killed, the network gone, the disk left. Harmless when it does not run.

    Raises:
        WaitTimeout: a process does not die.
    """
    cgroups.remove(lab.resource(machine))
    network.disconnect(lab, machine)
    _sweep(lab, machine)


def _sweep(lab: Lab, machine: Machine) -> None:
    """Delete what a killed systemd-nspawn leaves under /run: empty directories, sockets, and the lock on the disk's inode."""
    for name in ("propagate", "unix-export"):
        shutil.rmtree(NSPAWN_RUN / name / nspawn_name(lab, machine), ignore_errors=True)
    upper = lab.disk(machine) / "upper"
    if upper.exists():
        # named inode-DEVICE:INODE after the root directory, whose inode on an overlay is the upper layer's
        for lock in NSPAWN_RUN.glob(f"locks/inode-*:{upper.stat().st_ino}"):
            lock.unlink(missing_ok=True)


def console(lab: Lab, machine: Machine) -> Path:
    """What the machine wrote to its console, over all its boots."""
    return lab.disk(machine) / "console.log"


def console_tail(lab: Lab, machine: Machine) -> tuple[str, ...]:
    """The console's last lines, for an error's details."""
    with contextlib.suppress(OSError):
        return tuple(console(lab, machine).read_text(errors="replace").splitlines()[-CONSOLE_LINES:])
    return ()


def running(lab: Lab, machine: Machine, cgroups: Cgroups) -> bool:
    """Whether any process of the machine lives."""
    return bool(cgroups.processes(lab.resource(machine)))


def ssh_answers(address: IPv4Address, *, seconds: float = BANNER_SECONDS) -> bool:
    """Whether an SSH server greets at port 22."""
    try:
        with socket.create_connection((str(address), 22), timeout=seconds) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def wait_for_ssh(lab: Lab, machine: Machine, cgroups: Cgroups, *, seconds: float, cancelled: Event | None = None) -> None:
    """Wait until the machine takes SSH connections.

    Args:
        seconds: the deadline.
        cancelled: set from another thread, it ends the wait.

    Raises:
        LabError: it stopped, or the time is up; the console's last lines are in the details.
    """

    def answers() -> None:
        if cancelled is not None and cancelled.is_set():
            raise LabError(f"{machine.name} of lab {lab.name}: no longer waited for")
        if not running(lab, machine, cgroups):
            raise LabError(f"{machine.name} of lab {lab.name} stopped while it booted", details=console_tail(lab, machine))
        if not ssh_answers(machine.address):
            raise NotYet(f"no SSH greeting from {machine.address}")

    try:
        wait_until(f"SSH on {machine.name} of lab {lab.name}", answers, seconds=seconds, every=0.1)
    except WaitTimeout as error:
        raise LabError(error.message, details=console_tail(lab, machine)) from error
