"""The cluster under test: which of its machines are in cluster.yaml now, and commands on the controller that can be told apart."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provisioner import lab, phases, pki
from provisioner.cluster_api import ClusterApi
from provisioner.config import Cluster
from provisioner.load import load
from provisioner.ssh import Connections
from provisioner.wait import NotYet, wait_until

Real = Any  # tests/e2e/conftest.py's; pytest imports no test module by name

SHAPE = ("--control-planes", "1", "--workers", "1", "--spares", "3")
PLANES = ("cp-1", "spare-1", "spare-2")
WORKERS = ("worker-1", "spare-3")
# The longest that a disturbed `apply` may take to come to an end of its own.
PATIENCE = 600.0
TITLES = {phase.title: phase.name for phase in (*phases.LOOK, *phases.CHANGE)}


@dataclass(frozen=True, slots=True)
class Layout:
    """What cluster.yaml says. ``flags`` counts the changes of the flags, so that each is another one."""

    planes: int = 1
    workers: int = 1
    flags: int = 0

    @property
    def machines(self) -> tuple[str, ...]:
        """Names of the machines in cluster.yaml."""
        return (*PLANES[: self.planes], *WORKERS[: self.workers])


@dataclass(frozen=True, slots=True)
class Moment:
    """What `apply` was doing when the blow fell. ``phase`` is empty before the first and after the last."""

    seconds: float
    phase: str
    missed: bool = False


class Driver:
    """`apply` under way, its lines as they come."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.began = time.monotonic()
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr
        # the pipe closes under the reader where the block ends early
        with contextlib.suppress(ValueError, OSError):
            for line in self.process.stderr:
                self.lines.append(line)

    @property
    def output(self) -> str:
        """All that it has said."""
        return "".join(list(self.lines))

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.process.poll() is not None

    def phase(self) -> str:
        """The phases under way: those that have begun and not ended. `objects` goes beside `nodes`."""
        running: list[str] = []
        for line in list(self.lines):
            if match := re.match(r"\[ *[\d.]+ s\] (.+?) (…|ok|nothing to do|FAILED)", line):
                name = TITLES.get(match[1], "")
                if match[2] == "…":
                    running.append(name)
                elif name in running:
                    running.remove(name)
        return ", ".join(running)

    def reach(self, phase: str, delay: float) -> Moment:
        """Wait until a phase has begun (any, where none is named), and so many seconds more."""
        title = next((title for title, name in TITLES.items() if name == phase), "")

        def begun() -> None:
            if phase and not self.ended and f"{title} …" not in self.output:
                raise NotYet(f"in {self.phase()}")

        wait_until(f"the phase {phase}", begun, seconds=PATIENCE, every=0.02)
        due = time.monotonic() + delay

        def is_due() -> None:
            if not self.ended and time.monotonic() < due:
                raise NotYet("not yet")

        wait_until("the moment", is_due, seconds=delay + 60, every=0.01)
        return Moment(round(time.monotonic() - self.began, 2), self.phase(), missed=self.ended)

    def end(self, seconds: float = PATIENCE) -> int:
        """Wait for its end; returns its exit code."""
        code = self.process.wait(seconds)
        self._reader.join(10)
        return code


@dataclass
class Site:
    """One cluster, and the commands that change it.

    Attributes:
        temporary: directory for the commands' temporary files. Its name is in the environment of each of their processes, and in
            no other: that tells who is left of them.
        layout: what cluster.yaml says.
        before: the look of each spare machine before the cluster came, of `tests/e2e/machine`.
        first: the API objects of the first quiet state.
    """

    real: Real
    temporary: Path
    layout: Layout = field(default_factory=Layout)
    before: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    first: dict[str, Any] = field(default_factory=dict)
    _head: str = ""
    _addresses: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        text = self.real.workspace.cluster_file.read_text()
        self._head = text[: text.index("nodes:")]
        self._addresses = {node.name: str(node.address) for node in self.real.cluster.nodes}
        self._addresses |= dict(re.findall(r"# (spare-\d+), ([\d.]+):", text))
        assert self._addresses.keys() == {*PLANES, *WORKERS}

    # --- what cluster.yaml says --------------------------------------------------------------------------------

    def write(self, layout: Layout) -> None:
        """cluster.yaml as an editor would leave it."""
        roles = dict.fromkeys(PLANES, "control-plane, etcd") | dict.fromkeys(WORKERS, "worker")
        nodes = "".join(
            f"  - {{name: {name}, address: {self._addresses[name]}, roles: [{roles[name]}]}}\n" for name in layout.machines
        )
        number = layout.flags
        flags = (
            f"etcd: {{flags: {{max-request-bytes: {2097152 + number}}}}}\n"
            f"components: {{kubeApiserver: {{flags: {{min-request-timeout: {1800 + number}}}}}}}\n"
            f"kubelet: {{flags: {{v: {number % 2}}}}}\n"
            if number
            else ""
        )
        self.real.workspace.cluster_file.write_text(f"{self._head}nodes:\n{nodes}{flags}")
        self.layout = layout

    @property
    def cluster(self) -> Cluster:
        """What it says, as the program reads it."""
        return load(self.real.workspace.cluster_file)

    @property
    def gone(self) -> tuple[str, ...]:
        """The machines that are not in it."""
        return tuple(name for name in self._addresses if name not in self.layout.machines)

    @contextlib.contextmanager
    def connected(self) -> Iterator[tuple[Cluster, Connections]]:
        """SSH connections to all machines of the lab, those that are not in cluster.yaml among them."""
        cluster = self.cluster
        template = cluster.nodes[0]
        others = tuple(template.model_copy(update={"name": name, "address": self._addresses[name]}) for name in self.gone)
        whole = cluster.model_copy(update={"nodes": (*cluster.nodes, *others)})
        with Connections(whole, self.real.workspace) as connections:
            yield whole, connections

    @contextlib.contextmanager
    def api(self) -> Iterator[tuple[Cluster, Connections, pki.Pki, ClusterApi]]:
        """The cluster's API, through whichever control plane answers."""
        cluster, workspace = self.cluster, self.real.workspace
        issued = pki.read(workspace.pki, now=dt.datetime.now(dt.UTC))
        with Connections(cluster, workspace) as connections, ClusterApi(cluster, workspace, connections, issued) as api:
            yield cluster, connections, issued, api

    # --- commands ----------------------------------------------------------------------------------------------

    def cli(self, *args: str) -> subprocess.CompletedProcess[str]:
        """A command to its end."""
        done: subprocess.CompletedProcess[str] = self.real.cli(*args, TMPDIR=str(self.temporary))
        return done

    @contextlib.contextmanager
    def applying(self) -> Iterator[Driver]:
        """`apply` under way; it does not outlive the block."""
        with self.real.started("apply", "--yes", "--skip-verify", TMPDIR=str(self.temporary)) as process:
            yield Driver(process)

    def processes(self) -> dict[int, str]:
        """Every process on the controller that a command of ours has started, and its own: {pid: command line}."""
        mark = f"TMPDIR={self.temporary}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            # whoever ends while we look is not there
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return found

    def kill_all(self) -> None:
        """SIGKILL for each of them, until none is left: what they have just started comes later."""

        def none_left() -> None:
            found = self.processes()
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            # a zombie has no environment; what is still here is about to go
            if found:
                raise NotYet(str(found))

        wait_until("every process of the run is dead", none_left, seconds=30, every=0.05)

    # --- machines ----------------------------------------------------------------------------------------------

    def machine(self, name: str) -> lab.Handle:
        """Power and cable of a machine."""
        return lab.machine(self.real.name, name)

    def all_on(self) -> None:
        """Every machine has power and its cable, and answers."""
        for name in self._addresses:
            self.machine(name).start(wait=False)
            self.machine(name).heal_link()
        for name in self._addresses:
            self.machine(name).start()
