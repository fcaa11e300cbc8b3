"""The cluster of a run of pytest: built once for all its processes, taken down once, whatever became of those that asked for it.

Everything goes through the command line in a process of its own, as in CI: nothing of the build can meet the warnings, captures and
patches of somebody's tests. What is there is written down before it is made, so that the next run finds what a killed one left.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from provisioner.testing.process import Process
from provisioner.testing.settings import Settings

# A first build may have to make every binary out of Go modules.
BUILD_SECONDS = 3600
STOP_SECONDS = 30.0
DOWN_SECONDS = 300.0
LINES = 40


class Unavailable(Exception):  # noqa: N818 - reads as what it is at the raise
    """There is no cluster for the tests; the text says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is written down about a cluster.

    Attributes:
        owner: the process whose end is the cluster's, unless it is kept (:class:`Process` as text).
        keep: it stays.
        builder: the `provisioner up` that is or was at work.
        kubeconfig: where it is, once the cluster is built.
        error: why it could not be built.
    """

    owner: str
    keep: bool
    builder: str = ""
    kubeconfig: str = ""
    error: str = ""


def labs() -> Path:
    """Where labs are; `provisioner.lab.state.root` without the import of all that comes with it, and from wherever one looks."""
    return Path(os.environ.get("PROVISIONER_LAB_DIR") or "/var/lib/provisioner/lab").absolute()


class Site:
    """The place of one lab of pytest's.

    Args:
        lab: its name.
    """

    def __init__(self, lab: str) -> None:
        self.lab = lab
        self.home = labs() / ".pytest" / lab
        self.workspace = self.home / "workspace" / lab
        self.log = self.home / "up.log"
        self._state = self.home / "state.json"

    # --- for the run ---------------------------------------------------------------------------------------------------

    def take(self, settings: Settings, owner: Process, say: Callable[[str], None]) -> Path:
        """The kubeconfig of the run's cluster, which is built if no process of the run has done it yet.

        Args:
            settings: what is wanted.
            owner: the run's first process.
            say: is told what happens.

        Raises:
            Unavailable: it cannot be built, or the lab is another run's.
        """
        with self._locked():
            found = self.record()
            if found and found.owner == owner.to_text():
                if found.error:
                    raise Unavailable(found.error)
                if found.kubeconfig:
                    return Path(found.kubeconfig)
                # of a process of this run that was killed while it built
                _stop(found)
            elif found and Process.from_text(found.owner).alive:
                number = Process.from_text(found.owner).number
                raise Unavailable(
                    f"the cluster {self.lab} is in use by another run of pytest (process {number}): "
                    "wait for its end, or give this run a cluster of its own with `--cluster-lab NAME`"
                )
            elif found and not (found.keep and settings.keep):
                say(f"cluster: removing {self.lab}, which an earlier run left")
                self._remove(found)
            return self._build(settings, Record(owner.to_text(), settings.keep), say)

    def release(self, owner: Process, say: Callable[[str], None]) -> None:
        """Take the run's cluster down, also one that is not built yet; nothing where there is none, or it is to stay.

        Raises:
            Unavailable: something of it is left; says how to get rid of it.
        """
        found = self.record()
        if found is None or found.owner != owner.to_text():
            return
        if found.keep:
            say(f"cluster: {self.lab} is kept; kubeconfig: {found.kubeconfig or 'none'}; `{self._down_command()}` removes it")
            return
        # before the lock: whoever waits for the builder holds it
        _stop(found)
        with self._locked():
            self._remove(self.record() or found)
        say(f"cluster: {self.lab} is removed")

    def record(self) -> Record | None:
        """What is written down; None where nothing is.

        Raises:
            Unavailable: it cannot be understood.
        """
        try:
            return Record(**json.loads(self._state.read_text()))
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        except (ValueError, TypeError) as error:
            raise Unavailable(f"{self._state}: {error}: `{self._down_command()}`, then remove {self.home}") from None

    # --- parts ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        # beside the directory, which comes and goes
        path = self.home.with_name(f".{self.lab}.lock")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _write(self, record: Record) -> Record:
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        # not workspace.write_atomic: its module knows the whole program
        fresh = self._state.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(record)))
        fresh.replace(self._state)
        return record

    def _build(self, settings: Settings, record: Record, say: Callable[[str], None]) -> Path:
        self._write(record)
        if not record.keep:
            self._guard(record)
        say(f"cluster: building {self.lab}, {settings} (progress: {self.log})")
        code = self._up(settings, record)
        if code != 0:
            error = f"the cluster {self.lab} could not be built (exit code {code}):\n{self._said()}"
            self._write(replace(record, error=error))
            raise Unavailable(error)
        kubeconfig = self.workspace / "admin.kubeconfig"
        self._write(replace(record, kubeconfig=str(kubeconfig)))
        say(f"cluster: {self.lab} is ready; kubeconfig: {kubeconfig}")
        return kubeconfig

    def _up(self, settings: Settings, record: Record) -> int:
        """Run `provisioner up` to its end and return its exit code; it does not outlive an interrupt."""
        shape = ["--control-planes", str(settings.control_planes), "--workers", str(settings.workers)]
        version = ["--kubernetes-version", settings.kubernetes] if settings.kubernetes else []
        command = ["up", "--json", "--deadline", str(BUILD_SECONDS), "--name", self.lab, *shape, *version]
        with (
            self.log.open("wb") as log,
            (self.home / "up.json").open("wb") as output,
            # a group of its own: Ctrl-C is handed on below, once
            subprocess.Popen(
                _provisioner(*command),
                cwd=self.home,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                start_new_session=True,
            ) as process,
        ):
            try:
                builder = Process.of(process.pid)
                self._write(replace(record, builder=builder.to_text() if builder else ""))
                return process.wait()
            except BaseException:
                if builder := Process.of(process.pid):
                    builder.stop(seconds=STOP_SECONDS)
                raise

    def _said(self) -> str:
        """The error of a command that failed, else the end of what it printed."""
        lines = self.log.read_text(errors="replace").splitlines()
        starts = [number for number, line in enumerate(lines) if line.startswith("error:")]
        return "\n".join(lines[starts[-1] if starts else 0 :][-LINES:])

    def _guard(self, record: Record) -> None:
        """Leave somebody behind who takes the cluster down should this run be killed."""
        with (self.home / "guard.log").open("ab") as log:
            subprocess.run(
                [sys.executable, "-m", "provisioner.testing.guard", record.owner, self.lab],
                cwd=self.home,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                timeout=60,
                check=True,
            )

    def _remove(self, record: Record) -> None:
        _stop(record)
        if self._is_ours():
            try:
                done = subprocess.run(
                    _provisioner("lab", "down", "--name", self.lab, "--yes"),
                    cwd=self.home,
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    timeout=DOWN_SECONDS,
                    check=False,
                )
                said = done.stderr if done.returncode else ""
            except subprocess.TimeoutExpired:
                said = f"not done within {DOWN_SECONDS:g} s"
            if said:
                raise Unavailable(f"the cluster {self.lab} could not be removed: {said.strip()}\nremedy: `{self._down_command()}`")
        shutil.rmtree(self.home)

    def _is_ours(self) -> bool:
        """Whether there is a lab of this name that was made here: one that a user has made is theirs."""
        try:
            state = json.loads((labs() / self.lab / "state.json").read_text())
        except FileNotFoundError:
            return False
        return str(state["directory"]) == str(self.workspace)

    def _down_command(self) -> str:
        return f"provisioner lab down --name {self.lab} --yes"


def _stop(record: Record) -> None:
    if record.builder:
        Process.from_text(record.builder).stop(seconds=STOP_SECONDS)


def _provisioner(*arguments: str) -> Sequence[str]:
    return (sys.executable, "-m", "provisioner", *arguments)


def _environment() -> dict[str, str]:
    """The run's own, without what it says to its tests alone."""
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS" and not name.startswith("PYTEST_")}
    # the command runs in another directory
    return {**ours, "PROVISIONER_LAB_DIR": str(labs()), "NO_COLOR": "1", "COLUMNS": "200"}
