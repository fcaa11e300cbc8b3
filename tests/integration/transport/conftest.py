"""A real OpenSSH server on loopback, with keys and configuration of its own, stopped by its pid."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from provisioner.config import Cluster, Node, Role, Ssh
from provisioner.wait import NotYet, wait_until
from provisioner.workspace import Workspace


def tool(name: str) -> str:
    """An OpenSSH or system program; the test is skipped, by name, where it is not installed."""
    found = shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: openssh-server, openssh-client, sudo)")
    return found


def make_key(path: Path, *options: str) -> Path:
    """A private key without a passphrase (unless ``-N`` says otherwise), its public half beside it."""
    path.unlink(missing_ok=True)
    passphrase = () if "-N" in options else ("-N", "")
    subprocess.run([tool("ssh-keygen"), "-q", "-t", "ed25519", "-f", str(path), *passphrase, *options], check=True)
    return path


def free_port() -> int:
    """A TCP port of loopback nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Sshd:
    """One server: where it answers, the key it takes, and its parts on disk."""

    directory: Path
    port: int
    user_key: Path
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def host_key(self) -> Path:
        """The server's private host key."""
        return self.directory / "host_key"

    @property
    def log(self) -> str:
        """What the server logged so far."""
        return (self.directory / "sshd.log").read_text()

    def start(self) -> None:
        """Run it in the foreground of a child process, and wait until it accepts."""
        config = self.directory / "sshd_config"
        config.write_text(
            "\n".join(
                (
                    *self.options,  # the first value of an option counts
                    f"Port {self.port}",
                    "ListenAddress 127.0.0.1",
                    f"HostKey {self.host_key}",
                    f"AuthorizedKeysFile {self.directory / 'authorized_keys'}",
                    f"PidFile {self.directory / 'pid'}",
                    "StrictModes no",
                    "UsePAM no",
                    "PermitRootLogin prohibit-password",
                    "PasswordAuthentication no",
                    "KbdInteractiveAuthentication no",
                    "MaxStartups 200",
                    "LogLevel VERBOSE",
                    "",
                )
            )
        )
        with (self.directory / "sshd.log").open("ab") as log:
            self.process = subprocess.Popen([tool("sshd"), "-D", "-e", "-f", str(config)], stdin=subprocess.DEVNULL, stderr=log)
        wait_until("sshd accepts", self._probe, seconds=60, every=0.02, retry_on=(OSError,))

    def _probe(self) -> None:
        assert self.process is not None
        assert self.process.poll() is None, self.log
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as stream:
            if not stream.recv(4):
                raise NotYet("closed at once")

    def stop(self) -> None:
        """End the server and the sessions it serves."""
        self.drop_sessions()
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def drop_sessions(self) -> None:
        """Kill the processes that serve connections, as a machine's crash would end them."""
        self.signal_sessions(signal.SIGKILL)

    def signal_sessions(self, number: signal.Signals) -> None:
        """Send a signal to the processes that serve connections."""
        if self.process is None:
            return
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
                os.kill(int(child), number)

    def new_host_key(self) -> None:
        """Start again with another host key, as a reinstalled machine would."""
        self.stop()
        make_key(self.host_key)
        self.start()


@pytest.fixture
def make_sshd(tmp_path: Path) -> Iterator[Callable[..., Sshd]]:
    """Make servers; every one is stopped at the end. Root only: another user's sshd cannot serve sessions here."""
    if os.geteuid() != 0:
        pytest.skip("needs root: sshd must be able to start sessions")
    # sshd's privilege separation wants it, and only a service manager makes it
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    made: list[Sshd] = []

    def make(*options: str) -> Sshd:
        directory = tmp_path / f"sshd-{len(made)}"
        directory.mkdir()
        server = Sshd(directory, free_port(), make_key(directory / "user_key"), options)
        make_key(server.host_key)
        (directory / "authorized_keys").write_bytes((directory / "user_key.pub").read_bytes())
        # a temporary user's session must be able to read it
        for parent in (tmp_path.parent.parent, tmp_path.parent, tmp_path, directory):
            parent.chmod(parent.stat().st_mode | 0o055)
        made.append(server)
        server.start()
        return server

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def sshd(make_sshd: Callable[..., Sshd]) -> Sshd:
    """One server with plain settings."""
    return make_sshd()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace whose cluster.yaml would lie in tmp_path."""
    return Workspace(root=tmp_path / "workspace" / "t", cluster_file=tmp_path / "cluster.yaml")


def cluster_of(*servers: Sshd, address: str = "127.0.0.1", **ssh: object) -> Cluster:
    """A cluster whose machines are these servers."""
    nodes = tuple(
        Node.model_validate(
            {
                "name": f"n{number}",
                "address": address,
                "clusterAddress": f"127.0.0.{number}",
                "roles": [Role.CONTROL_PLANE, Role.ETCD, Role.WORKER],
                "sshPort": server.port,
            }
        )
        for number, server in enumerate(servers, start=1)
    )
    values: dict[str, object] = {"key": str(servers[0].user_key), **ssh}
    return Cluster(name="t", nodes=nodes, ssh=Ssh.model_validate(values))


@pytest.fixture
def login_user() -> Iterator[str]:
    """A temporary user of this machine, with a shell, no password and no rights; removed at the end."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes a user of this machine")
    name = f"prov{secrets.token_hex(4)}"
    subprocess.run([tool("useradd"), "--create-home", "--shell", "/bin/sh", "--password", "*", name], check=True)
    try:
        yield name
    finally:
        sudoers_file(name).unlink(missing_ok=True)
        uid = pwd.getpwnam(name).pw_uid
        wait_until(f"no process of {name} is left", lambda: _no_process_of(uid), seconds=60)
        subprocess.run([tool("userdel"), "--remove", name], check=True, capture_output=True)


def sudoers_file(user: str) -> Path:
    """Where a temporary user's sudo rule goes."""
    return Path("/etc/sudoers.d") / user


def _no_process_of(uid: int) -> None:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                owner, status = entry.stat().st_uid, (entry / "status").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            # a dead one that nobody waits for, as under a container's process 1 that is no init, holds nothing of the user's
            if owner == uid and "\nState:\tZ" not in status:
                raise NotYet(f"process {entry.name}")
