"""The order of things: machines, cluster, proof, writer, power cut, power, and the proof again without a command typed."""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from provisioner import pki
from provisioner.cluster_api import ClusterApi, Object
from provisioner.config import Cluster
from provisioner.errors import ProvisionerError
from provisioner.lab import keys
from provisioner.load import load
from provisioner.ssh import Connections
from provisioner.verify.probe import is_ready
from provisioner.wait import NotYet, wait_until
from provisioner.workspace import Workspace
from tests.power import image, machines, writer

PROVISIONER = Path(sys.executable).parent / "provisioner"
# Under emulation a service may need longer than a phase waits for it: then the same command goes on where it stopped.
APPLY_RUNS = 6
# of each check of `verify`; its own deadlines are for machines that are not emulated
CHECK_SECONDS = 300
# what a processor is asked to do to learn how slow it is; about a tenth of a second on a current one
SPEED_PROBE = "import time; t = time.perf_counter(); sum(i * i % 7 for i in range(1000000)); print(time.perf_counter() - t)"


class DrillFailed(Exception):  # noqa: N818 - the drill's verdict
    """What must hold after a power cut does not."""


def take(lock: int) -> None:
    """Hold an open file's lock: of drills of a kind there is one at a time.

    Raises:
        DrillFailed: another one holds it.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DrillFailed("another drill is running") from None


@dataclass(frozen=True, slots=True)
class Settings:
    """What a drill is run with.

    Attributes:
        write_seconds: how long the writer writes before the cut, at least.
        writes: how many acknowledged writes there must be before the cut, at least.
        deadline_seconds: for all of it.
    """

    write_seconds: float = 30
    writes: int = 100
    deadline_seconds: float = 3600


@dataclass(slots=True)
class Drill:
    """One drill on machines that are made and gone by its caller.

    Attributes:
        figures: what was measured so far; complete when :meth:`run` returns.
    """

    machines: machines.Machines
    settings: Settings
    figures: dict[str, Any] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Everything in order.

        Raises:
            DrillFailed: a command fails for good, or an acknowledged write is lost.
            WaitTimeout: something did not come back in time.
            ProvisionerError: a machine or its network cannot be made.
        """
        self._make()
        with self._timed("boot_s"):
            self.machines.power_on()
            self._wait_for_ssh()
        cluster = load(self._file)
        self._measure_speed(cluster)
        self._apply()
        self._verify("verify_before")
        before = self._boot_ids(cluster)
        written = self._write_and_cut(cluster)
        with self._timed("power_on_to_ready_s"):
            self.machines.power_on()
            self._wait_for_return(cluster, before)
        self._verify("verify_after")
        self._read_back(cluster, written)
        self._look_at_machines(cluster)
        self.figures["whole_s"] = round(time.monotonic() - self._began, 1)

    @property
    def _file(self) -> Path:
        return self.machines.directory / "cluster.yaml"

    def _left(self) -> float:
        return max(1.0, self.settings.deadline_seconds - (time.monotonic() - self._began))

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._began:7.1f} s] {text}", flush=True)

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        self._say(f"{name.removesuffix('_s').replace('_', ' ')} …")
        yield
        self.figures[name] = round(time.monotonic() - began, 1)

    def _make(self) -> None:
        """Disks with the drill's key in them, and cluster.yaml."""
        directory = self.machines.directory
        base = directory / "base.raw"
        image.with_login(self.machines.image, keys.ensure(directory / "id_ed25519", machines.NAME), base)
        self.machines.make_disks(base)
        self._file.write_text(cluster_file(self.machines))

    def _wait_for_ssh(self) -> None:
        def answers() -> None:
            self.machines.refuse_dead()
            for machine in self.machines.all:
                try:
                    with socket.create_connection((str(machine.address), 22), timeout=5) as connection:
                        greeting = connection.recv(8)
                except OSError as error:
                    raise NotYet(f"{machine.name}: {error}") from None
                if not greeting.startswith(b"SSH-"):
                    raise NotYet(f"{machine.name}: no greeting")

        wait_until("SSH of every machine", answers, seconds=self._left(), every=1)

    def _measure_speed(self, cluster: Cluster) -> None:
        """How much slower a machine is than the controller, on one processor: the figures mean nothing without it."""
        own = float(subprocess.run([sys.executable, "-c", SPEED_PROBE], check=True, capture_output=True, text=True).stdout)
        with self._connections(cluster) as connections:
            theirs = float(connections.run(cluster.nodes[0], f"python3 -c '{SPEED_PROBE}'", timeout=self._left()).text)
        self.figures["times_slower"] = round(theirs / own, 1)
        self._say(f"a machine is {theirs / own:.1f} times slower than the controller")

    @contextmanager
    def _connections(self, cluster: Cluster) -> Iterator[Connections]:
        with Connections(cluster, Workspace.of(self._file, cluster.name)) as connections:
            yield connections

    @contextmanager
    def _api(self, cluster: Cluster, connections: Connections) -> Iterator[Callable[[], ClusterApi]]:
        workspace = Workspace.of(self._file, cluster.name)
        keys_of_cluster = pki.ensure(cluster, workspace.pki, now=dt.datetime.now(dt.UTC))
        yield lambda: ClusterApi(cluster, workspace, connections, keys_of_cluster)

    def _command(self, *args: str) -> subprocess.CompletedProcess[str]:
        """The real command; its output is kept beside the disks."""
        began = time.monotonic()
        try:
            done = subprocess.run(
                [str(PROVISIONER), *args, "--cluster", str(self._file)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=self._left(),
            )
        except subprocess.TimeoutExpired:
            raise DrillFailed(f"provisioner {' '.join(args)}: not done when the drill's time was up") from None
        self._say(f"provisioner {' '.join(args)}: exit {done.returncode} after {time.monotonic() - began:.1f} s")
        if done.returncode and args[0] == "apply":
            print(done.stderr[-3000:], flush=True)
        return done

    def _apply(self) -> None:
        codes: list[int] = []
        with self._timed("apply_s"):
            while not codes or codes[-1]:
                if len(codes) == APPLY_RUNS:
                    raise DrillFailed(f"`apply` does not come to an end: exit codes {codes}")
                codes.append(self._command("apply", "--yes", "--skip-verify").returncode)
        self.figures["apply_exit_codes"] = codes

    def _verify(self, name: str) -> None:
        """`verify` until it passes: a check may be too slow under emulation, and pods restart once more after a cut."""
        runs: list[dict[str, Any]] = []
        began = time.monotonic()

        def passes() -> None:
            done = self._command("verify", "--json", "--timeout", str(CHECK_SECONDS))
            report = json.loads(done.stdout) if done.stdout.startswith("{") else {}
            failed = {check["id"]: check["failures"] for check in report.get("checks", ()) if check["outcome"] == "failed"}
            runs.append({"exit": done.returncode, "failed": failed, "seconds": report.get("seconds")})
            if done.returncode:
                for name_of_check, lines in failed.items():
                    print(*(f"    {name_of_check}: {line}" for line in lines), sep="\n", flush=True)
                raise NotYet(f"exit {done.returncode}; failed: {', '.join(failed)}")

        try:
            wait_until(f"`verify` ({name})", passes, seconds=self._left(), every=2)
        finally:
            self.figures[name] = {"runs": runs, "seconds": round(time.monotonic() - began, 1)}

    def _boot_ids(self, cluster: Cluster) -> dict[str, str]:
        with self._connections(cluster) as connections, self._api(cluster, connections) as connect, connect() as api:
            return {name: node["status"]["nodeInfo"]["bootID"] for name, node in _nodes(api).items()}

    def _write_and_cut(self, cluster: Cluster) -> writer.Written:
        with self._connections(cluster) as connections, self._api(cluster, connections) as connect:
            writing = writer.Writer(connect)
            writing.start()
            began = time.monotonic()
            self._say("writing …")

            def enough() -> None:
                if time.monotonic() - began < self.settings.write_seconds or writing.count < self.settings.writes:
                    raise NotYet(f"{writing.count} acknowledged writes")

            wait_until(f"{self.settings.writes} acknowledged writes", enough, seconds=self._left(), every=0.1)
            at = writing.count
            cut = time.monotonic()
            self.machines.cut_power()
            self.figures["cut_ms"] = round((time.monotonic() - cut) * 1000, 1)
            self._say(f"power cut after {at} acknowledged writes")
            written = writing.stop(2 * writer.REQUEST_SECONDS)
        self.figures["writes"] = {
            "acknowledged": written.writes,
            "objects": len(written.acknowledged),
            "per_second": round(written.writes / written.seconds, 1) if written.seconds else None,
            "sent_without_answer": sum(sequence != written.acknowledged.get(name) for name, sequence in written.attempted.items()),
        }
        return written

    def _wait_for_return(self, cluster: Cluster, before: dict[str, str]) -> None:
        """Until every apiserver is ready and every kubelet of this boot says Ready.

        What the API still has of the time before the cut does not count. Nothing is run on the machines meanwhile: only the API is
        asked.
        """
        began = time.monotonic()
        expected = {node.name for node in cluster.kubernetes_nodes}
        answered: list[float] = []

        def back() -> None:
            self.machines.refuse_dead()
            # new connections each time: those of a machine that is just booting are of no use later
            with self._connections(cluster) as connections, self._api(cluster, connections) as connect, connect() as api:
                nodes = _nodes(api)
                if not answered:
                    answered.append(round(time.monotonic() - began, 1))
                    self._say("the API answers")
                # each of them: what one says of itself is not true of the others
                for node in cluster.control_planes:
                    if (answer := api.request_to(node, "/readyz", timeout=writer.REQUEST_SECONDS)).status != HTTPStatus.OK:
                        raise NotYet(f"{node.name}: /readyz gave {answer.status}")
            late = [name for name in sorted(expected) if not _is_back(nodes.get(name), before.get(name, ""))]
            if late:
                raise NotYet(f"not back: {', '.join(late)}")

        wait_until("every Node Ready after the cut", back, seconds=self._left(), every=2, retry_on=(ProvisionerError,))
        self.figures["power_on_to_api_s"] = answered[0]

    def _read_back(self, cluster: Cluster, written: writer.Written) -> None:
        with self._connections(cluster) as connections, self._api(cluster, connections) as connect, connect() as api:
            compared = writer.compare(written, writer.read_back(api, timeout=CHECK_SECONDS))
        self.figures["read_back"] = {
            "objects": compared.read,
            "lost": list(compared.lost),
            "unacknowledged_but_kept": compared.unacknowledged_kept,
        }
        if not compared.whole:
            raise DrillFailed(f"{len(compared.lost)} acknowledged writes lost:\n" + "\n".join(compared.lost[:20]))

    def _look_at_machines(self, cluster: Cluster) -> None:
        """What the machines have to say about the cut. For the record; nothing is judged by it."""
        commands = {
            # the file system's journal was replayed: there was something that only the journal had
            "journal_replayed": "journalctl -b -k -q -o cat | grep -c 'EXT4-fs.*recovery complete'",
            # the proxies took a slow apiserver for a dead one
            "proxy_marked_down": "journalctl -b -u provisioner-api-proxy -q -o cat | grep -c 'WARNING.* is DOWN'",
            "etcd_took_too_long": "journalctl -b -u etcd -q -o cat | grep -c 'took too long'",
        }
        with self._connections(cluster) as connections:
            for name, command in commands.items():
                # grep -c ends with 1 when it counts 0
                self.figures[name] = {
                    node.name: int(connections.run(node, f"{command} || true", timeout=CHECK_SECONDS).text)
                    for node in cluster.nodes
                }


def cluster_file(made: machines.Machines) -> str:
    """cluster.yaml: the lab's usual cluster, with etcd's and the leases' times for slow machines."""
    nodes = "".join(
        f"  - {{name: {one.name}, address: {one.address}, roles: [{', '.join(one.roles)}]}}\n" for one in made.all if one.roles
    )
    leases = "{leader-elect-lease-duration: 60s, leader-elect-renew-deadline: 40s, leader-elect-retry-period: 5s}"
    return f"""\
name: {machines.NAME}
ssh: {{user: root, key: id_ed25519}}
etcd: {{heartbeatInterval: 500, electionTimeout: 5000}}
components: {{kubeControllerManager: {{flags: {leases}}}, kubeScheduler: {{flags: {leases}}}}}
nodes:
{nodes}"""


def _nodes(api: ClusterApi) -> dict[str, Object]:
    return {node["metadata"]["name"]: node for node in api.items("/api/v1/nodes", timeout=writer.REQUEST_SECONDS)}


def _is_back(node: Object | None, boot_before: str) -> bool:
    return node is not None and node["status"]["nodeInfo"]["bootID"] != boot_before and is_ready(node)
