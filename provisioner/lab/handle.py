"""Looking at a lab and handling its machines: status, SSH, and the switches that tests and drills turn."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from provisioner.lab import cgroups, clusterfile, host, network, nspawn, state
from provisioner.lab.lab import BOOT_SECONDS, LOGIN_KEY, THREADS, get
from provisioner.lab.spec import Lab, Machine
from provisioner.workspace import Workspace


@dataclass(frozen=True, slots=True)
class MachineStatus:
    """What one machine does now. ``memory`` is in bytes; None where the kernel does not count it or the machine is stopped."""

    name: str
    roles: tuple[str, ...]
    address: str
    running: bool
    ssh: bool
    link: bool
    memory: int | None

    @property
    def state(self) -> str:
        """``running`` or ``stopped``."""
        return "running" if self.running else "stopped"


@dataclass(frozen=True, slots=True)
class LabStatus:
    """A lab and its machines."""

    name: str
    network: str
    cluster_file: Path
    machines: tuple[MachineStatus, ...]

    def to_json(self) -> dict[str, object]:
        """For `lab status --json`."""
        machines = [{**asdict(machine), "state": machine.state} for machine in self.machines]
        return {"name": self.name, "network": self.network, "clusterFile": str(self.cluster_file), "machines": machines}


def status(name: str) -> LabStatus:
    """What every machine of a lab does now.

    Raises:
        BadInput: there is no such lab.
        LabError: not root.
    """
    host.check_root()
    lab = get(name)
    groups = cgroups.detect()

    def look(one: Machine) -> MachineStatus:
        running = nspawn.running(lab, one, groups)
        return MachineStatus(
            name=one.name,
            roles=tuple(str(role) for role in one.roles),
            address=str(one.address),
            running=running,
            ssh=running and nspawn.ssh_answers(one.address, seconds=2),
            link=running and network.link_is_up(lab, one),
            memory=groups.memory(lab.resource(one)) if running else None,
        )

    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        machines = tuple(pool.map(look, lab.machines))
    return LabStatus(name=name, network=str(lab.network), cluster_file=lab.directory / clusterfile.NAME, machines=machines)


def ssh_command(name: str, node: str, command: Sequence[str] = ()) -> list[str]:
    """The OpenSSH command line that logs in to a machine, with the lab's key and host keys and nothing of the user's own settings.

    Raises:
        BadInput: there is no such lab, or no such machine in it.
    """
    lab = get(name)
    one = lab.machine(node)
    known_hosts = Workspace.of(lab.directory / clusterfile.NAME, lab.name).known_hosts
    options = {
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": f'"{known_hosts}"',
        "GlobalKnownHostsFile": "/dev/null",
        "IdentitiesOnly": "yes",
        "LogLevel": "ERROR",
    }
    settings = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    return ["ssh", "-F", "none", "-i", str(lab.directory / LOGIN_KEY), *settings, f"root@{one.address}", *command]


@dataclass(frozen=True, slots=True)
class Handle:
    """One machine in a test's or a drill's hand."""

    lab: Lab
    machine: Machine
    groups: cgroups.Cgroups

    @property
    def running(self) -> bool:
        """Whether any process of it lives."""
        return nspawn.running(self.lab, self.machine, self.groups)

    def power_off(self) -> None:
        """Pull the plug: every process killed at once, nothing shut down, memory and network state lost, the disk kept.

        Raises:
            WaitTimeout: a process does not die.
        """
        with state.lock(self.lab.name):
            nspawn.stop(self.lab, self.machine, self.groups)

    def start(self, *, wait: bool = True) -> None:
        """Boot it again from the same disk, with its cable plugged; harmless when it runs.

        Args:
            wait: return only when SSH answers.

        Raises:
            LabError: it does not come up.
        """
        with state.lock(self.lab.name):
            if not self.running:
                nspawn.start(self.lab, self.machine, self.groups)
        if wait:
            nspawn.wait_for_ssh(self.lab, self.machine, self.groups, seconds=BOOT_SECONDS)

    def cut_link(self) -> None:
        """Pull its network cable.

        Raises:
            LabError: it was never started.
        """
        network.set_link(self.lab, self.machine, up=False)

    def heal_link(self) -> None:
        """Plug its network cable in again.

        Raises:
            LabError: it was never started.
        """
        network.set_link(self.lab, self.machine, up=True)


def handle(name: str, node: str) -> Handle:
    """The machine of that name in that lab.

    Raises:
        BadInput: there is no such lab, or no such machine.
        LabError: not root.
    """
    host.check_root()
    lab = get(name)
    return Handle(lab=lab, machine=lab.machine(node), groups=cgroups.detect())
