"""Real clusters on lab machines, built through the real command line, and taken down whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest

from provisioner import lab
from provisioner.config import Cluster, Node
from provisioner.errors import LabError
from provisioner.lab import host
from provisioner.load import load
from provisioner.ssh import Connections
from provisioner.workspace import Workspace

# Minutes of waiting: by `make drill-certs`, and in short by `make test` beside other tests.
collect_ignore = [] if os.environ.get("EXPIRY") else ["test_expiry.py"]

# `make test` runs two halves side by side: the files whose tests share one cluster (the fixture `ha`), and those with their own.
HALVES = ("shared", "own")
HALF = os.environ.get("E2E_HALF", "")

PROVISIONER = Path(sys.executable).parent / "provisioner"
# Deadlines of whole commands: generous, for the machine that runs the tests may be slow and busy.
SECONDS = 1800.0


@dataclass(frozen=True)
class Real:
    """A lab and what was built on it, in the hands of a test.

    Attributes:
        directory: where commands run; the workspace is ``workspace/NAME`` below it.
        built: the commands that made it, by name ("lab up", "apply"), with their output.
    """

    name: str
    directory: Path
    cluster: Cluster
    workspace: Workspace
    connections: Connections
    built: Mapping[str, subprocess.CompletedProcess[str]] = field(default_factory=dict)

    @staticmethod
    def command(directory: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """The real command in another directory."""
        return command(directory, *args, **environ)

    def cli(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """The real command in the cluster's directory, without a terminal."""
        return command(self.directory, *args, **environ)

    @contextlib.contextmanager
    def started(self, *args: str, stdout: int = subprocess.DEVNULL, **environ: str) -> Iterator[subprocess.Popen[str]]:
        """The command under way, its output in ``stderr``; it does not outlive the block."""
        with start(self.directory, *args, stdout=stdout, stderr=subprocess.PIPE, **environ) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    def run(self, node: Node | str, command: str, *, stdin: bytes = b"", check: bool = True) -> str:
        """Run a shell command on a machine as root and return what it printed."""
        found = self.cluster.node(node) if isinstance(node, str) else node
        done = self.connections.run(found, command, stdin=stdin, timeout=300)
        assert done.code == 0 or not check, f"{found.name}: {command}: {done.stderr.decode(errors='replace')}"
        return done.stdout.decode(errors="replace")

    def machine(self, node: str) -> lab.Handle:
        """The machine's switches: power and network cable."""
        return lab.machine(self.name, node)

    def plan(self) -> list[dict[str, Any]]:
        """The changes that `plan --json` finds; its exit code is checked against them."""
        done = self.cli("plan", "--json")
        assert done.returncode in (0, 2), done.stderr
        changes: list[dict[str, Any]] = json.loads(done.stdout)["changes"]
        assert done.returncode == (2 if changes else 0), done.stderr
        return changes

    def journal(self, event: str) -> list[dict[str, Any]]:
        """The journal's records of one kind, oldest first."""
        records = [json.loads(line) for line in self.workspace.journal.read_text().splitlines()]
        return [record for record in records if record["event"] == event]

    @contextlib.contextmanager
    def edited(self, change: Callable[[str], str]) -> Iterator[None]:
        """cluster.yaml changed for a while."""
        path = self.workspace.cluster_file
        before = path.read_text()
        after = change(before)
        assert after != before
        try:
            path.write_text(after)
            yield
        finally:
            path.write_text(before)


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    return {**{key: value for key, value in os.environ.items() if key != "PROVISIONER_DEBUG"}, "COLUMNS": "200", **extra}


def start(directory: Path, *args: str, stdout: int | IO[str], stderr: int | IO[str], **environ: str) -> subprocess.Popen[str]:
    """The real command in a process group of its own, so that a signal meets nothing but it."""
    return subprocess.Popen(
        [str(PROVISIONER), *args],
        cwd=directory,
        env=environment(environ),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


def command(directory: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the real command to its end and say how long it took."""
    began = time.monotonic()
    with start(directory, *args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **environ) as process:
        try:
            stdout, stderr = process.communicate(timeout=SECONDS)
        except BaseException:
            process.terminate()
            raise
    print(f"provisioner {' '.join(args)}: exit {process.returncode} after {time.monotonic() - began:.1f} s")
    return subprocess.CompletedProcess(args, process.returncode, stdout, stderr)


@contextlib.contextmanager
def machines(directory: Path, name: str, *shape: str) -> Iterator[subprocess.CompletedProcess[str]]:
    """Lab machines through the command line, gone at the end also where the start failed half way."""
    try:
        host.check()
    except LabError as error:
        pytest.skip(f"{error.message}; {error.hint}")
    try:
        up = command(directory, "lab", "up", "--name", name, *shape)
        assert up.returncode == 0, up.stderr
        yield up
    finally:
        down = command(directory, "lab", "down", "--name", name, "--yes")
        assert down.returncode == 0, down.stderr


@contextlib.contextmanager
def real_lab(directory: Path, name: str, shape: Sequence[str], *, built: bool) -> Iterator[Real]:
    """A lab, with a cluster on it where ``built``."""
    with machines(directory, name, *shape) as up:
        path = directory / "workspace" / name / "cluster.yaml"
        cluster = load(path)
        workspace = Workspace.of(path, name)
        with Connections(cluster, workspace) as connections:
            done = {"lab up": up}
            if built:
                done["apply"] = command(directory, "apply", "--yes")
                assert done["apply"].returncode == 0, f"{done['apply'].stdout}\n{done['apply'].stderr}"
            yield Real(name, directory, cluster, workspace, connections, done)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Function]) -> None:
    """The drills last: one that fails may leave the shared cluster broken. With ``E2E_HALF``, without the other half."""
    if HALF not in ("", *HALVES):
        raise pytest.UsageError(f"E2E_HALF={HALF}: {' or '.join(HALVES)}")
    items.sort(key=lambda item: item.path.name == "test_drills.py")
    shared = {item.path for item in items if "ha" in item.fixturenames}
    out = [item for item in items if HALF and (item.path in shared) is not (HALF == "shared")]
    items[:] = [item for item in items if item not in out]
    config.hook.pytest_deselected(items=out)


@pytest.fixture(scope="session")
def ha(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """Three control planes with etcd and two workers: every test that needs a whole cluster shares it, and leaves it whole."""
    with real_lab(
        tmp_path_factory.mktemp("ha"), f"ha-{os.getpid()}", ["--control-planes", "3", "--workers", "2"], built=True
    ) as real:
        yield real


@pytest.fixture(scope="module")
def bare_lab(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., contextlib.AbstractContextManager[Real]]:
    """Makes labs with nothing on their machines; the arguments are those of `lab up`."""

    def make(*shape: str) -> contextlib.AbstractContextManager[Real]:
        return real_lab(tmp_path_factory.mktemp("bare"), f"bare-{os.getpid()}", shape, built=False)

    return make
