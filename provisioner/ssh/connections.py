"""``Connections``: commands and port forwards on a cluster's machines, over one SSH connection each."""

from __future__ import annotations

import contextlib
import logging
import shlex
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import paramiko

from provisioner.config import Cluster, Node
from provisioner.errors import ProvisionerError
from provisioner.patience import stretch
from provisioner.ssh.auth import KeyRing
from provisioner.ssh.eof import send_eof
from provisioner.ssh.errors import SshError, Trouble
from provisioner.ssh.forward import Forward
from provisioner.ssh.known_hosts import KnownHosts
from provisioner.ssh.link import Link, lost
from provisioner.ssh.target import Target, bastion_of, target_of
from provisioner.workspace import Workspace

T = TypeVar("T")

CHUNK = 1 << 17
# Exit code and words by which the wrapper below says that sudo, not the command, failed.
SUDO_REFUSED = 97
SUDO_SIGN = b"provisioner: sudo refused: "


@dataclass(frozen=True, slots=True)
class Completed:
    """What a command left: its exit code (-1 where a signal ended it) and what it printed."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are no UTF-8 are replaced."""
        return self.stdout.decode(errors="replace")

    @property
    def complaint(self) -> str:
        """Standard error as text, without the blank ends; for messages."""
        return self.stderr.decode(errors="replace").strip()


class Connections:
    """SSH connections to a cluster's machines, each made at its first use and shared by all threads.

    A context manager: leaving it closes every forward and connection. Host keys are checked against the workspace's
    known_hosts; a bastion and users that need sudo are taken care of. paramiko's own log goes to ``logs/ssh.log``.

    Args:
        cluster: the machines, and how they are reached.
        workspace: known_hosts and log.
        seconds: limit of each step of connecting; default: generous ones, for machines that are slow and not dead.
    """

    def __init__(self, cluster: Cluster, workspace: Workspace, *, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._cluster = cluster
        self._workspace = workspace
        self._known_hosts = KnownHosts(workspace.known_hosts)
        self._keys = KeyRing()
        self._lock = threading.Lock()
        self._links: dict[Target, Link] = {}
        # weak: an open forward lives by its own thread, a closed one need not be kept
        self._forwards: weakref.WeakSet[Forward] = weakref.WeakSet()
        self._closed = False
        self._log = _Log(workspace)

    def __enter__(self) -> Connections:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End every forward and connection. Harmless when done already; nothing can be run afterwards."""
        with self._lock:
            self._closed = True
            forwards, links = list(self._forwards), list(self._links.values())
            self._forwards.clear()
            self._links.clear()
        for forward in forwards:
            forward.close()
        # a bastion comes before the machines behind it in the dictionary: close those first, while their channels still live
        for link in reversed(links):
            link.close()
        self._log.close()

    def connect(self, node: Node) -> None:
        """Make the connection now, so that the first command does not pay for it.

        Raises:
            SshError: the machine cannot be reached, is not the one on record, or does not let us in.
        """
        self._link(node).connect()

    def run(self, node: Node, command: str, *, stdin: bytes = b"", timeout: float = 30, sudo: bool = True) -> Completed:
        """Run a shell command (POSIX sh) on a machine.

        Args:
            node: the machine.
            command: shown in messages and in the machine's process list: never put a secret here, give it on ``stdin``.
            stdin: what the command reads.
            timeout: seconds the command may take, and a free session may be waited for; connecting has limits of its own.
            sudo: run it as root (through `sudo -n` where the login user is not root).

        Raises:
            SshError: the machine cannot be reached, sudo wants a password, the connection broke, or the time is up.
                A command that fails raises nothing: see ``Completed.code``.
        """
        link, timeout = self._link(node), stretch(timeout)
        through_sudo = sudo and link.target.user != "root"
        line = _wrap(command, through_sudo=through_sudo, check=through_sudo and not link.sudo_works)
        with link.session(time.monotonic() + timeout) as channel:
            done = _execute(channel, line, stdin, _Naming(link.target, command, timeout))
        if through_sudo:
            if done.code == SUDO_REFUSED and done.stderr.startswith(SUDO_SIGN):
                raise _sudo_refused(link.target, done.stderr.removeprefix(SUDO_SIGN).decode(errors="replace").strip())
            link.sudo_works = True
        return done

    def forward(self, node: Node, port: int, host: str = "127.0.0.1") -> Forward:
        """A local TCP port that leads to ``host:port`` as seen from a machine. Close it, or use it in a `with`.

        The machine must be reachable now; a connection that breaks later is made again for the next client.

        Raises:
            SshError: there is no connection to the machine.
        """
        link = self._link(node)
        link.connect()
        forward = Forward(lambda: link.open((host, port)), name=f"{node.name} to {host}:{port}")
        with self._lock:
            if self._closed:
                forward.close()
                raise RuntimeError("these connections are closed")
            self._forwards.add(forward)
        return forward

    def _link(self, node: Node) -> Link:
        target = target_of(self._cluster, self._workspace, node)
        bastion = bastion_of(self._cluster, self._workspace)
        with self._lock:
            if self._closed:
                raise RuntimeError("these connections are closed")
            via = self._made(bastion, None) if bastion else None
            return self._made(target, via)

    def _made(self, target: Target, via: Link | None) -> Link:
        if target not in self._links:
            strict = self._cluster.ssh.host_keys == "strict"
            self._links[target] = Link(
                target, self._known_hosts, self._keys, strict=strict, via=via, log=self._log.name, seconds=self._seconds
            )
        return self._links[target]


def parallel(nodes: Iterable[Node], function: Callable[[Node], T], *, workers: int = 32) -> dict[str, T | ProvisionerError]:
    """Run ``function(node)`` for every node at a time, in threads.

    Returns:
        by node name, in the given order: the value, or the ProvisionerError it raised. Any other exception is a bug and propagates.
    """
    given = tuple(nodes)
    if not given:
        return {}

    def guarded(node: Node) -> T | ProvisionerError:
        try:
            return function(node)
        except ProvisionerError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(workers, len(given)), thread_name_prefix="node") as pool:
        return dict(zip((node.name for node in given), pool.map(guarded, given), strict=True))


@dataclass(frozen=True, slots=True)
class _Naming:
    """What a message about a command needs."""

    target: Target
    command: str
    timeout: float

    @property
    def brief(self) -> str:
        """The command's first line, shortened."""
        line = self.command.strip().partition("\n")[0]
        return line if len(line) <= 80 else line[:79] + "…"


def _wrap(command: str, *, through_sudo: bool, check: bool) -> str:
    """The line given to the login shell, whatever shell that is: everything that matters is inside `sh -c`."""
    if not through_sudo:
        return f"exec sh -c {shlex.quote(command)}"
    line = f"exec sudo -n -- sh -c {shlex.quote(command)}"
    if check:
        # In the same round trip: only a wrapper can tell sudo's refusal from a failure of the command itself.
        sign = SUDO_SIGN.decode()
        line = f"why=$(sudo -n -- sh -c : 2>&1) || {{ printf '%s%s' '{sign}' \"$why\" >&2; exit {SUDO_REFUSED}; }}\n{line}"
    return f"exec sh -c {shlex.quote(line)}"


def _execute(channel: paramiko.Channel, line: str, stdin: bytes, naming: _Naming) -> Completed:
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        channel.close()  # wakes whoever waits on it below

    watchdog = threading.Timer(naming.timeout, expire)
    watchdog.daemon = True
    watchdog.start()
    errors: list[bytes] = []
    output: list[bytes] = []
    helpers = [threading.Thread(target=_drain, args=(channel.recv_stderr, errors), daemon=True)]
    if stdin:
        # its own thread: a command that prints before it reads would otherwise block both sides
        helpers.append(threading.Thread(target=_feed, args=(channel, stdin), daemon=True))
    failure: Exception | None = None
    try:
        channel.exec_command(line)
        if not stdin:
            send_eof(channel)
        for helper in helpers:
            helper.start()
        _drain(channel.recv, output)
        code = channel.recv_exit_status()
    except (paramiko.SSHException, EOFError, OSError) as error:
        failure, code = error, -1
        channel.close()
    finally:
        watchdog.cancel()
        for helper in helpers:
            if helper.ident is not None:
                helper.join()
        watchdog.join()
    if expired.is_set():
        tail = b"".join(errors).decode(errors="replace").splitlines()[-5:]
        raise SshError(
            Trouble.COMMAND_TIMEOUT,
            f"{naming.target.who}: `{naming.brief}` did not end within {naming.timeout:g} s",
            hint="see whether the machine is overloaded or one of its disks or mounts hangs",
            details=tuple(tail),
        )
    transport = channel.get_transport()
    if failure is not None or (code == -1 and not transport.is_active()):
        raise lost(naming.target, failure or transport.get_exception()) from failure
    return Completed(code, b"".join(output), b"".join(errors))


def _drain(receive: Callable[[int], bytes], into: list[bytes]) -> None:
    while chunk := receive(CHUNK):
        into.append(chunk)


def _feed(channel: paramiko.Channel, data: bytes) -> None:
    # a command may end without reading everything: its exit code says what that means
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        channel.sendall(data)
        send_eof(channel)


def _sudo_refused(target: Target, why: str) -> SshError:
    reason = why.splitlines()[-1] if why else "no reason given"
    return SshError(
        Trouble.SUDO,
        f"{target.who}: {target.user} cannot become root without a password: {reason}",
        hint=f"as root there: `echo '{target.user} ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/{target.user}` (with sudo installed), "
        "or log in as root (`ssh.user: root`)",
    )


class _Log:
    """paramiko's log, in the workspace and nowhere else. The file is made when there is something to write."""

    def __init__(self, workspace: Workspace) -> None:
        self.name = f"provisioner.ssh.paramiko.{id(self)}"
        self._logger = logging.getLogger(self.name)
        self._logger.propagate = False
        self._logger.setLevel(logging.WARNING)
        self._handler = _LazyFile(workspace)
        self._logger.addHandler(self._handler)

    def close(self) -> None:
        self._logger.removeHandler(self._handler)
        self._handler.close()
        # a transport's thread may still say goodbye: without a handler Python would print that on the terminal
        self._logger.addHandler(logging.NullHandler())


class _LazyFile(logging.Handler):
    def __init__(self, workspace: Workspace) -> None:
        super().__init__()
        self._workspace = workspace
        self._file: logging.FileHandler | None = None
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        # A log that cannot be written must not take down what it logs.
        with contextlib.suppress(OSError):
            if self._file is None:
                self._workspace.create()
                self._workspace.logs.mkdir(mode=0o700, exist_ok=True)
                self._file = logging.FileHandler(self._workspace.logs / "ssh.log", encoding="utf-8")
                self._file.setFormatter(self.formatter)
            self._file.emit(record)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()
