"""The drill's machines: QEMU processes with a disk each, on a bridge in a network namespace of their own.

**What a power cut loses.** The guest's memory goes with the process. Its disk is a qcow2 layer opened with ``cache=none``: QEMU
writes around this host's page cache, and where a piece of the file has been newly allocated, QEMU's memory alone knows so until
the guest asks for a flush. So what the guest has flushed is in the file, and new blocks that it has not flushed are lost with the
process, as in the volatile cache of a disk. (Blocks in a piece of 64 KiB that an earlier flush has made known survive unflushed.)

``cache=unsafe`` is a disk that lies: it takes flushes and does nothing. A drill on it must fail.
"""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network
from pathlib import Path

from provisioner.errors import LabError
from provisioner.lab import network
from provisioner.lab.commands import run
from provisioner.lab.spec import Lab, Machine, Shape, free_network
from tests.power.image import Image

NAME = "power-cut"
# none of the lab's own pool: the two never meet
POOL = IPv4Network("10.78.0.0/16")
# Emulated processors have no time stamp counters of their own that could differ: without being told so, the kernel reads the
# time from an emulated chip, a hundred times slower, and Go programs ask for the time all day.
FAST = "tsc=reliable clocksource=tsc mitigations=off"


class Cache(StrEnum):
    """How QEMU treats a machine's disk."""

    HONEST = "none"
    LYING = "unsafe"


@dataclass(frozen=True, slots=True)
class Hardware:
    """What each machine is made of.

    Attributes:
        accelerator: QEMU's ``-accel``: ``tcg`` is software emulation and works everywhere; ``kvm`` is hardware's.
        cpus: virtual processors.
        memory_mib: RAM.
        cache: of the disk.
        nice: scheduling priority of the processes, 0 to 19.
    """

    accelerator: str = "tcg"
    cpus: int = 2
    memory_mib: int = 2560
    cache: Cache = Cache.HONEST
    nice: int = 0


@dataclass(slots=True)
class Machines:
    """All machines of a drill. A context manager: whatever happens, no process, interface or namespace is left.

    Attributes:
        shape: how many of which kind.
        hardware: of each.
        image: what they boot.
        directory: of disks, consoles and the workspace; it must exist.
    """

    shape: Shape
    hardware: Hardware
    image: Image
    directory: Path
    lab: Lab = field(init=False)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Machines:
        # what an earlier drill left behind when it was killed: its machines died with it, its network did not
        nowhere = Lab(NAME, self.shape, POOL, self.directory, self.directory, self.image.disk)
        network.delete_switch(nowhere)
        chosen = free_network((), network.host_networks(), POOL.subnets(new_prefix=24))
        self.lab = Lab(NAME, self.shape, chosen, self.directory, self.directory, self.image.disk)
        try:
            network.create_switch(self.lab)
        except BaseException:
            network.delete_switch(self.lab)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.cut_power()
        network.delete_switch(self.lab)

    @property
    def all(self) -> tuple[Machine, ...]:
        """The machines, in cluster.yaml's order."""
        return self.lab.machines

    def make_disks(self, base: Path) -> None:
        """An empty layer for each machine above a common disk.

        Raises:
            LabError: qemu-img failed.
        """
        for machine in self.all:
            disk = str(self._disk(machine))
            run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", disk])

    def _disk(self, machine: Machine) -> Path:
        return self.directory / f"{machine.name}.qcow2"

    def console(self, machine: Machine) -> Path:
        """What the machine's kernel and systemd have said since the first boot."""
        return self.directory / f"{machine.name}.console"

    def power_on(self) -> None:
        """Start those that do not run. Returns at once: nobody has booted yet."""
        for machine in self.all:
            if not self.running(machine):
                with self.console(machine).open("ab") as console:
                    self._processes[machine.name] = subprocess.Popen(
                        self._command(machine), stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
                    )

    def _command(self, machine: Machine) -> list[str]:
        hardware, lab = self.hardware, self.lab
        tap = machine.name
        links = run(["ip", "-n", lab.switch, "-o", "link", "show"])
        if f" {tap}:" not in links:
            run(["ip", "-n", lab.switch, "tuntap", "add", tap, "mode", "tap"])
            run(["ip", "-n", lab.switch, "link", "set", tap, "master", network.BRIDGE, "up"])
        address = f"ip={machine.address}::{lab.gateway}:255.255.255.0::eth0:off"
        kernel = f"root=/dev/vda ro console=ttyS0 net.ifnames=0 {FAST} systemd.hostname={machine.name} {address}"
        return [
            *("ip", "netns", "exec", lab.switch, "nice", "-n", str(hardware.nice)),
            # a drill that is killed takes its machines along
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35"),
            *("-accel", hardware.accelerator, "-cpu", "host" if hardware.accelerator == "kvm" else "max"),
            *("-smp", str(hardware.cpus), "-m", str(hardware.memory_mib)),
            *("-kernel", str(self.image.kernel), "-initrd", str(self.image.initrd), "-append", kernel),
            *("-drive", f"file={self._disk(machine)},if=none,id=disk,format=qcow2,cache={hardware.cache},discard=unmap"),
            *("-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci", "-serial", "stdio"),
            *("-netdev", f"tap,id=net,ifname={tap},script=no,downscript=no"),
            *("-device", f"virtio-net-pci,netdev=net,mac={network.hardware_address(machine)}"),
        ]

    def running(self, machine: Machine) -> bool:
        """Whether the machine's process lives."""
        process = self._processes.get(machine.name)
        return process is not None and process.poll() is None

    def refuse_dead(self) -> None:
        """Raise if a machine that was powered on has ended by itself.

        Raises:
            LabError: with the last lines of its console.
        """
        for machine in self.all:
            if machine.name in self._processes and not self.running(machine):
                lines = self.console(machine).read_text(errors="replace").splitlines()[-15:]
                raise LabError(f"{machine.name}: QEMU ended", details=tuple(lines))

    def cut_power(self) -> None:
        """SIGKILL for every process, one system call after the other; returns when all are dead. Harmless when none runs."""
        living = [process for process in self._processes.values() if process.poll() is None]
        for process in living:
            # not Popen.kill(): its look whether the process still lives would come between two signals
            os.kill(process.pid, signal.SIGKILL)
        for process in living:
            process.wait()
        self._processes.clear()
