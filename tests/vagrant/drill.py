"""The order of things: `vagrant up`, `init --from-vagrant`, `apply`, `verify`, `apply` again, `reset`, `vagrant destroy`.

What a user types, typed by a program, in the namespaces of the drill's own libvirt. Only the first deadline is fixed; those after
it are multiples of how much slower than the controller the machines turn out to be.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provisioner import patience
from tests.power.drill import SPEED_PROBE, DrillFailed
from tests.vagrant import box
from tests.vagrant.host import Host

TOP = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# Seconds that a command may take on machines as quick as the controller; emulated ones get as many times more as they are slower.
ALLOWED = {"init": 60, "apply": 300, "verify": 300, "reset": 180, "destroy": 120}
# Until the machines answer nobody knows how slow they are.
UP_SECONDS = 3600
# A gate may still be too short for a moment in which everything else is slow too: then the same command goes on where it stopped.
APPLY_RUNS = 3
# Checks that only look may be tried again; the cluster's own are not to be flattered.
VERIFY_RUNS = 3
# What the machines are, as opposed to the lab's.
LOOK = """\
uname -r; stat -f -c %T /sys/fs/cgroup; systemd-detect-virt; id -un; lsmod | tail -n +2 | cut -d' ' -f1 | sort | tr '\\n' ' '; echo
ip -4 -oneline address show dev eth0 | grep -o dynamic || echo static
"""
# Of all that a cluster leaves on a machine, what would be worst.
LEFT = """\
systemctl list-units --all --plain --no-legend 'etcd*' 'kube*' 'containerd*' 'flannel*' 'provisioner*' | cut -d' ' -f1
ls -d /etc/kubernetes /var/lib/etcd/member /var/lib/kubelet/pods /etc/provisioner /opt/cni/bin/bridge 2>/dev/null
ls -d /sys/class/net/cni0 /sys/class/net/flannel.1 2>/dev/null
sudo nft list tables 2>/dev/null | grep -i kube
true
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the machines are made of; as the Vagrantfile's variables."""

    control_planes: int = 1
    workers: int = 1
    cpus: int = 2
    memory_mib: int = 2560
    driver: str = "qemu"


@dataclass(slots=True)
class Drill:
    """One drill in a host that is made and gone by its caller.

    Attributes:
        figures: what was measured so far.
        log: what was typed and what it printed, without progress bars.
    """

    host: Host
    settings: Settings
    made_box: Path
    figures: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _slower: float = 1.0

    @property
    def project(self) -> Path:
        """The directory with the Vagrantfile, and later with cluster.yaml and the workspace."""
        return self.host.directory / "project"

    @property
    def names(self) -> list[str]:
        """Vagrant's names of the machines."""
        kinds = (("cp", self.settings.control_planes), ("worker", self.settings.workers))
        return [f"{kind}-{n}" for kind, count in kinds for n in range(1, count + 1)]

    def run(self) -> None:
        """Everything in order.

        Raises:
            DrillFailed: a command failed for good, or left something behind.
        """
        self.project.mkdir()
        shutil.copy(TOP / "Vagrantfile", self.project)
        self._vagrant("box", "add", "--name", box.NAME, str(self.made_box), seconds=600)
        shape = {"CONTROL_PLANES": str(self.settings.control_planes), "WORKERS": str(self.settings.workers)}
        self._vagrant("up", "--provider=libvirt", seconds=UP_SECONDS, figure="vagrant_up_s", more=shape)
        self._measure_speed()
        self._provisioner("init", "--from-vagrant", figure="init_s")
        self.figures["machines"] = {name: self._look(name) for name in self.names}
        self._apply()
        self._verify()
        again = self._provisioner("apply", "--yes", "--skip-verify", allowed="apply", figure="apply_again_s")
        if "changed=0" not in again:
            raise DrillFailed(f"a second `apply` finds something to do:\n{again[-2000:]}")
        self._provisioner("reset", "--yes", figure="reset_s")
        left = {name: self._ssh(name, LEFT).split() for name in self.names}
        self.figures["left_after_reset"] = left
        if any(left.values()):
            raise DrillFailed(f"`reset` has left something behind: {left}")
        self._provisioner("preflight", allowed="init", figure="preflight_s")
        self._vagrant("destroy", "--force", seconds=self._allowed("destroy"), figure="vagrant_destroy_s")
        domains = self.host.run(["virsh", "--connect", "qemu:///system", "list", "--all", "--name"], timeout=60).stdout.split()
        if domains:
            raise DrillFailed(f"`vagrant destroy` has left machines behind: {domains}")
        self.figures["whole_s"] = round(time.monotonic() - self._began, 1)

    def _say(self, text: str) -> None:
        line = f"[{time.monotonic() - self._began:7.1f} s] {text}"
        self.log.append(line)
        print(line, flush=True)

    def _allowed(self, command: str) -> float:
        # the controller's own part, and that of the commands that talk to it, is not slower; the sum errs on the long side
        return ALLOWED[command] * (1 + self._slower)

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "VAGRANT_HOME": str(self.host.directory / "home"),
            "VAGRANT_DEFAULT_PROVIDER": "libvirt",
            "VAGRANT_CHECKPOINT_DISABLE": "1",
            "VAGRANT_NO_COLOR": "1",
            "BOX": box.NAME,
            "DRIVER": self.settings.driver,
            "CPUS": str(self.settings.cpus),
            "MEMORY": str(self.settings.memory_mib),
            patience.VARIABLE: str(max(1, min(patience.LARGEST, math.ceil(self._slower)))),
        }

    def _command(self, argv: list[str], seconds: float, more: dict[str, str] | None = None) -> tuple[int, str, float]:
        """Exit code, output, seconds."""
        # no one needs to know whose home it is, as the log goes into the repository
        home = str(Path.home())
        shown = " ".join(argv).replace(home, "~")
        self._say(f"$ {shown}")
        began = time.monotonic()
        try:
            done = self.host.run(argv, timeout=seconds, cwd=self.project, env={**self._environment(), **(more or {})})
        except subprocess.TimeoutExpired:
            raise DrillFailed(f"`{shown}` did not end within {seconds:.0f} s") from None
        spent = round(time.monotonic() - began, 1)
        # carriage returns: Vagrant's progress bars
        lines = [line for line in done.stdout.replace("\r", "\n").splitlines() if line.strip() and "Progress: " not in line]
        self.log += [f"    {line.replace(home, '~')}" for line in lines]
        self._say(f"exit code {done.returncode} after {spent} s")
        return done.returncode, "\n".join(lines), spent

    def _vagrant(self, *args: str, seconds: float, figure: str = "", more: dict[str, str] | None = None) -> str:
        code, said, spent = self._command(["vagrant", *args], seconds, more)
        if figure:
            self.figures[figure] = spent
        if code:
            raise DrillFailed(f"`vagrant {' '.join(args)}` failed with exit code {code}:\n{said[-3000:]}")
        return said

    def _provisioner(self, *args: str, allowed: str = "", figure: str) -> str:
        code, said, self.figures[figure] = self._command(["provisioner", *args], self._allowed(allowed or args[0]))
        if code:
            raise DrillFailed(f"`provisioner {' '.join(args)}` failed with exit code {code}:\n{said[-3000:]}")
        return said

    def _ssh(self, name: str, script: str) -> str:
        # a pseudo terminal, Vagrant's default, would turn every line's end into two characters
        argv = ["vagrant", "ssh", name, "--no-tty", "--command", script]
        done = self.host.run(argv, timeout=300 * (1 + self._slower), cwd=self.project, env=self._environment())
        if done.returncode:
            raise DrillFailed(f"`vagrant ssh {name}` failed with exit code {done.returncode}:\n{done.stdout[-2000:]}")
        return done.stdout

    def _measure_speed(self) -> None:
        """How much slower a machine is than the controller, on one processor."""
        own = float(subprocess.run([sys.executable, "-c", SPEED_PROBE], check=True, capture_output=True, text=True).stdout)
        theirs = float(self._ssh(self.names[0], f"python3 -c '{SPEED_PROBE}'").split()[-1])
        self._slower = max(1.0, theirs / own)
        self.figures["times_slower"] = round(theirs / own, 1)
        self._say(f"a machine is {theirs / own:.1f} times slower than the controller")

    def _look(self, name: str) -> dict[str, Any]:
        kernel, cgroup, virtual, user, modules, address = self._ssh(name, LOOK).strip().splitlines()[-6:]
        return {
            "kernel": kernel,
            "cgroup": "v2" if cgroup == "cgroup2fs" else cgroup,
            "virtual": virtual,
            "user": user,
            "modules_before": len(modules.split()),
            "address": address,
        }

    def _apply(self) -> None:
        codes: list[int] = []
        spent, said = 0.0, ""
        while not codes or codes[-1]:
            if len(codes) == APPLY_RUNS:
                raise DrillFailed(f"`provisioner apply` does not come to an end: exit codes {codes}:\n{said[-3000:]}")
            code, said, seconds = self._command(["provisioner", "apply", "--yes", "--skip-verify"], self._allowed("apply"))
            codes.append(code)
            spent += seconds
        self.figures["apply_s"] = round(spent, 1)
        self.figures["apply_exit_codes"] = codes

    def _verify(self) -> None:
        runs: list[dict[str, Any]] = []
        while not runs or runs[-1]["exit"]:
            if len(runs) == VERIFY_RUNS:
                raise DrillFailed(f"`provisioner verify` does not pass: {runs}")
            code, said, spent = self._command(["provisioner", "verify"], self._allowed("verify"))
            failed = [line.strip() for line in said.splitlines() if line.lstrip().startswith(("FAILED", "failed", "✗", "BLOCKED"))]
            runs.append({"exit": code, "seconds": spent, "failed": failed})
        self.figures["verify"] = runs


def document(settings: Settings, figures: dict[str, Any], failure: str) -> dict[str, Any]:
    """The whole result as plain values, for bench/results."""
    machines = {
        "control_planes": settings.control_planes,
        "workers": settings.workers,
        "cpus": settings.cpus,
        "memory_mib": settings.memory_mib,
        "provider": "libvirt",
        "driver": settings.driver,
    }
    return {"drill": "vagrant", "machines": machines, "passed": not failure, "failure": failure, "figures": figures}
