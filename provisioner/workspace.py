"""The directory that holds all a cluster's own files on the controller: paths, the lock, atomic writes, the journal."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import getpass
import json
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from provisioner.errors import BadInput, ProvisionerError

# Raised when the layout below changes; a workspace of another number is refused with the way to convert it.
LAYOUT = 1
# Names that the paths below take, and so no file of a user's beside them.
RESERVED = frozenset(
    {
        *(
            "cluster.yaml",
            "layout",
            "lock",
            "journal.jsonl",
            "machines.json",
            "known_hosts",
            "replacing",
            "restoring",
            "sockets",
            "verify.json",
        ),
        *("pki", "admin.kubeconfig", "break-glass.kubeconfig", "rendered", "inventory", "ansible", "logs", "backups", "bundles"),
    }
)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Errors of the block tell of this file: what the system says of writing to an open one has no name in it."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o600) -> None:
    """Replace a file in one step: readers see the old content or the new one, also after a crash.

    Args:
        path: the file; its directory is made (0700) where it is missing.
        data: the whole content; text is written as UTF-8.
        mode: permissions, set before the first byte is written.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    raw = data.encode() if isinstance(data, str) else data
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with named(path), os.fdopen(handle, "wb") as file:
            # held by a living process: see ``leftovers``
            fcntl.flock(file, fcntl.LOCK_EX)
            os.fchmod(file.fileno(), mode)
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def private_directory(parent: Path | None, prefix: str) -> Iterator[Path]:
    """A directory of mode 0700 for the time of the block. A lock on it tells whether its maker lives: see ``leftovers``."""
    with tempfile.TemporaryDirectory(dir=parent, prefix=prefix, ignore_cleanup_errors=True) as name:
        handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(handle)


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths of one cluster's files; ``root`` is a directory of mode 0700."""

    root: Path
    cluster_file: Path
    # where a look writes what it computes: see ``untouched``
    scratch: Path | None = None

    @property
    def _computed(self) -> Path:
        return self.scratch or self.root

    @property
    def pki(self) -> Path:
        """CAs, leaf certificates, keys."""
        return self._computed / "pki"

    @property
    def replacing(self) -> Path:
        """The command of a replacement under way whose old machine leaves before the new one comes."""
        return self.root / "replacing"

    @property
    def was_used(self) -> bool:
        """Whether a cluster was built from here: keys are made for no other reason."""
        return (self.root / "pki" / "cluster-ca.pem").exists()

    @property
    def known_hosts(self) -> Path:
        """Host keys of this cluster's machines, in OpenSSH's format."""
        return self.root / "known_hosts"

    @property
    def kubeconfig(self) -> Path:
        """The everyday administrator's kubeconfig."""
        return self._computed / "admin.kubeconfig"

    @property
    def break_glass(self) -> Path:
        """The kubeconfig for emergencies."""
        return self._computed / "break-glass.kubeconfig"

    @property
    def rendered(self) -> Path:
        """Desired state per host, as the Ansible modules read it (holds secrets: 0600)."""
        return self._computed / "rendered"

    @property
    def inventory(self) -> Path:
        """Ansible's inventories."""
        return self._computed / "inventory"

    @property
    def ansible(self) -> Path:
        """Ansible's own home; in the environment of all that a run starts, and of nothing else."""
        return self.root / "ansible"

    @property
    def sockets(self) -> Path:
        """A link to the run's directory of SSH's control sockets, which is elsewhere: their paths must be short."""
        return self.root / "sockets"

    @property
    def backups(self) -> Path:
        """Backups of the cluster; see ``backup``."""
        return self.root / "backups"

    @property
    def restoring(self) -> Path:
        """The command of a restore under way: until it ends, etcd's data may be of two times."""
        return self.root / "restoring"

    @property
    def proof(self) -> Path:
        """What the last `verify` of the whole cluster found, as its --json."""
        return self.root / "verify.json"

    @property
    def logs(self) -> Path:
        """One directory per run."""
        return self.root / "logs"

    @property
    def journal(self) -> Path:
        """What happened, one JSON object a line; tells, never decides."""
        return self.root / "journal.jsonl"

    @classmethod
    def of(cls, cluster_file: Path, name: str) -> Workspace:
        """The workspace that belongs to a cluster.yaml: its own directory where that is ``workspace/NAME`` already (as for
        labs), else ``workspace/NAME`` beside it.

        Raises:
            BadInput: the workspace was made by another version of this program.
        """
        home = cluster_file.resolve().parent
        inside = home.name == name and home.parent.name == "workspace"
        root = home if inside else home / "workspace" / name
        workspace = cls(root=root, cluster_file=cluster_file.resolve())
        workspace._check_layout()
        return workspace

    def _check_layout(self) -> None:
        marker = self.root / "layout"
        if not self.root.exists() or (not marker.exists() and not (self.root / "pki").exists()):
            return
        found = marker.read_text().strip() if marker.exists() else "0"
        if found != str(LAYOUT):
            raise BadInput(
                f"{self.root}: this workspace has layout {found or 'of no number'}, this version reads layout {LAYOUT}",
                hint="use the version of provisioner that made it, or move the directory away to start anew",
            )

    def create(self) -> None:
        """Make the directory (0700) and its layout marker; harmless when they are there."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (self.root / "layout").exists():
            write_atomic(self.root / "layout", f"{LAYOUT}\n", mode=0o644)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[Workspace]:
        """This workspace with copies of its keys, for a look: certificates that it issues, kubeconfigs, rendered files and
        inventories go to a directory that is gone afterwards. ``session.adopt`` takes them over. Under the lock only."""
        self.create()
        with private_directory(self.root, ".look-") as directory:
            copy = replace(self, scratch=directory)
            if self.pki.exists():
                shutil.copytree(self.pki, copy.pki)
            for mine, other in ((self.kubeconfig, copy.kubeconfig), (self.break_glass, copy.break_glass)):
                if mine.exists():
                    shutil.copy2(mine, other)
            yield copy

    def record(self, event: str, **values: object) -> None:
        """Append one line to the journal."""
        self.create()
        line = json.dumps({"time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"), "event": event, **values})
        handle = os.open(self.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with named(self.journal), os.fdopen(handle, "a") as file:
            file.write(line + "\n")

    @contextlib.contextmanager
    def lock(self, command: str) -> Iterator[None]:
        """Hold the workspace for one command. The kernel drops the lock with the process, so a killed run leaves none behind.

        Raises:
            ProvisionerError: another process holds it; the message names holder, command and age.
        """
        self.create()
        path = self.root / "lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ProvisionerError(
                    f"{self.root}: in use by {_holder(path)}",
                    hint="wait for that command to end; the lock goes with its process",
                ) from None
            os.ftruncate(handle, 0)
            holder = {
                "pid": os.getpid(),
                "user": getpass.getuser(),
                "host": socket.gethostname(),
                "command": command,
                "argv": shlex.join(sys.argv),
                "since": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            }
            os.pwrite(handle, json.dumps(holder).encode(), 0)
            yield
        finally:
            os.close(handle)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        age = dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(holder["since"])
        return (
            f"`provisioner {holder['command']}` (process {holder['pid']} of {holder['user']} on {holder['host']}, "
            f"for {int(age.total_seconds())} s)"
        )
    except (OSError, ValueError, KeyError):
        return "another process that is just starting"
