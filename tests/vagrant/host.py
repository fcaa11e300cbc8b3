"""Where the drill's libvirt lives: namespaces of its own for network, mounts and processes.

Nothing of it is seen outside, and nothing outlives it: the first process of the process namespace dies with the drill, and the
kernel then ends the daemons, the machines and, as the last, the network. Files are in the drill's directory.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from provisioner.errors import LabError
from provisioner.wait import NotYet, wait_until

# Machines run as root: the drill's directory is nobody else's to read. No cgroups: there is no systemd that gave libvirt any.
QEMU_CONF = """\
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
cgroup_controllers = []
namespaces = []
"""
LIBVIRTD_CONF = 'auth_unix_rw = "none"\nauth_unix_ro = "none"\n'

# Runs as process 1 of the namespace. bash waits for orphans, QEMU's processes among them: libvirt takes one that nobody has waited
# for as alive. /sys shows the network of whoever mounted it, so it is mounted again; with it go the machine's own cgroups.
INIT = """\
set -eu
cd "$1"
ip link set lo up
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
for place in etc/libvirt var/lib/libvirt var/cache/libvirt var/log/libvirt; do
    mkdir -p "/$place" "$place"
    mount --bind "$place" "/$place"
done
virtlogd --daemon
libvirtd --daemon
touch ready
while sleep 3600; do :; done
"""


@dataclass(slots=True)
class Host:
    """A libvirt daemon in namespaces. A context manager: on its end every process in it is killed.

    Attributes:
        directory: of the daemons' files and of Vagrant's; it must exist.
        nice: scheduling priority of everything in it.
    """

    directory: Path
    nice: int = 10
    _outer: subprocess.Popen[bytes] | None = field(default=None)
    _inner: int = 0

    def __enter__(self) -> Host:
        configuration = self.directory / "etc/libvirt"
        configuration.mkdir(parents=True, exist_ok=True)
        (configuration / "qemu.conf").write_text(QEMU_CONF)
        (configuration / "libvirtd.conf").write_text(LIBVIRTD_CONF)
        if Path("/etc/libvirt/nwfilter").is_dir():
            shutil.copytree("/etc/libvirt/nwfilter", configuration / "nwfilter", dirs_exist_ok=True)
        (self.directory / "ready").unlink(missing_ok=True)
        log = (self.directory / "host.log").open("ab")
        guard = ("setpriv", "--pdeathsig", "KILL", "--", "nice", "-n", str(self.nice))
        apart = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
        with log:
            self._outer = subprocess.Popen(
                # a drill that is killed takes all of it along
                [*guard, *apart, "bash", "-c", INIT, "init", str(self.directory)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            wait_until("libvirt's daemon", self._look, seconds=60)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _look(self) -> None:
        assert self._outer is not None
        if self._outer.poll() is not None:
            lines = (self.directory / "host.log").read_text(errors="replace").splitlines()[-10:]
            raise LabError("libvirt's daemon does not start", details=tuple(lines))
        if not (self.directory / "ready").exists():
            raise NotYet("not started")
        children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
        self._inner = int(children[0])
        if self.run(["virsh", "--connect", "qemu:///system", "list"], timeout=30).returncode:
            raise NotYet("does not answer")

    def close(self) -> None:
        """Kill everything in the namespaces. Harmless when done already."""
        if self._outer is not None:
            if self._outer.poll() is None:
                # its child, process 1 within, has asked the kernel to die with it, and the others die with that one
                self._outer.send_signal(signal.SIGKILL)
            self._outer.wait()
            while self._inner and Path(f"/proc/{self._inner}").exists():
                time.sleep(0.1)
            self._outer = None

    def popen(self, argv: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command within; standard error goes where standard output goes."""
        enter = ["nsenter", "--target", str(self._inner), "--net", "--mount", "--pid", f"--wdns={cwd or self.directory}", "--"]
        return subprocess.Popen(
            [*enter, "nice", "-n", str(self.nice), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(env or {})},
        )

    def run(
        self, argv: Sequence[str], *, timeout: float, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command within, to its end.

        Raises:
            TimeoutExpired: it was killed after ``timeout`` seconds.
        """
        with self.popen(argv, cwd=cwd, env=env) as process:
            try:
                said, _ = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(list(argv), process.returncode, said, "")
