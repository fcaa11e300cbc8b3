"""``provisioner.ssh`` against real OpenSSH servers on loopback."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from provisioner.config import Bastion, Cluster
from provisioner.errors import ProvisionerError
from provisioner.ssh import Completed, Connections, SshError, Trouble, openssh_args, parallel
from provisioner.ssh.known_hosts import KnownHosts
from provisioner.wait import wait_until
from provisioner.workspace import Workspace

from .conftest import Sshd, cluster_of, free_port, make_key, sudoers_file, tool

MakeSshd = Callable[..., Sshd]


def run_once(cluster: Cluster, workspace: Workspace, command: str = "true", *, sudo: bool = True) -> Completed:
    with Connections(cluster, workspace) as connections:
        return connections.run(cluster.nodes[0], command, sudo=sudo)


def fails(cluster: Cluster, workspace: Workspace, trouble: Trouble) -> SshError:
    """The error of the first command, which must be of that kind, name the host and give a remedy."""
    with pytest.raises(SshError) as caught:
        run_once(cluster, workspace)
    error = caught.value
    assert error.trouble is trouble, error.message
    assert error.message.startswith("n1")
    assert error.hint
    return error


def test_run_returns_code_output_and_errors(sshd: Sshd, workspace: Workspace) -> None:
    cluster = cluster_of(sshd)
    with Connections(cluster, workspace) as connections:
        done = connections.run(cluster.nodes[0], "id -u; cat; echo bad >&2; exit 7", stdin=b"given\n")
        assert (done.code, done.stdout, done.stderr) == (7, b"0\ngiven\n", b"bad\n")
        # quoting survives, and nothing waits for input that is not there
        done = connections.run(cluster.nodes[0], """printf '%s' "a'b$((1+1))" ; cat""")
        assert done.text == "a'b2"
        assert connections.run(cluster.nodes[0], "kill -9 $$").code == -1
    assert sshd.log.count("Accepted publickey") == 1


def test_known_hosts_is_recorded_private_and_readable_by_openssh(sshd: Sshd, workspace: Workspace) -> None:
    cluster = cluster_of(sshd)
    run_once(cluster, workspace)
    assert stat.S_IMODE(workspace.known_hosts.stat().st_mode) == 0o600
    found = subprocess.run(
        [tool("ssh-keygen"), "-F", f"[127.0.0.1]:{sshd.port}", "-f", str(workspace.known_hosts)], check=True, capture_output=True
    )
    blob = sshd.host_key.with_suffix(".pub").read_text().split()[1]
    assert blob in found.stdout.decode()
    before = workspace.known_hosts.read_bytes()
    run_once(cluster, workspace)
    assert workspace.known_hosts.read_bytes() == before


def test_a_changed_host_key_is_refused_until_the_remedy_is_run(sshd: Sshd, workspace: Workspace) -> None:
    cluster = cluster_of(sshd)
    run_once(cluster, workspace)
    (old,) = KnownHosts(workspace.known_hosts).keys_of("127.0.0.1", sshd.port)
    sshd.new_host_key()
    error = fails(cluster, workspace, Trouble.HOST_KEY_CHANGED)
    shown = subprocess.run([tool("ssh-keygen"), "-lf", str(sshd.host_key)], check=True, capture_output=True).stdout.decode()
    assert old.fingerprint in error.details[0]
    assert error.details[1].split()[-1] in shown
    remedy = ["ssh-keygen", "-R", f"[127.0.0.1]:{sshd.port}", "-f", str(workspace.known_hosts)]
    assert f"ssh-keygen -R '{remedy[2]}' -f '{remedy[4]}'" in error.hint
    subprocess.run(remedy, check=True, capture_output=True)
    assert run_once(cluster, workspace).code == 0


def test_the_recorded_kind_of_key_is_asked_for(sshd: Sshd, workspace: Workspace) -> None:
    """A server with several host keys whose RSA or ECDSA key alone is on record: no false alarm."""
    for kind in ("rsa", "ecdsa"):
        other = make_key(sshd.directory / f"host_{kind}", "-t", kind)
        sshd.stop()
        sshd.options = (f"HostKey {other}",)
        sshd.start()
        words = other.with_suffix(".pub").read_text().split()
        workspace.create()
        workspace.known_hosts.write_text(f"[127.0.0.1]:{sshd.port} {words[0]} {words[1]}\n")
        assert run_once(cluster_of(sshd), workspace).code == 0


def test_strict_refuses_an_unknown_host_and_takes_a_known_one(sshd: Sshd, workspace: Workspace) -> None:
    cluster = cluster_of(sshd, hostKeys="strict")
    error = fails(cluster, workspace, Trouble.HOST_KEY_UNKNOWN)
    assert not workspace.known_hosts.exists()
    workspace.create()
    workspace.known_hosts.write_text(error.details[0] + "\n")
    assert run_once(cluster, workspace).code == 0


def test_a_key_the_server_does_not_take(sshd: Sshd, workspace: Workspace, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger")
    error = fails(cluster_of(sshd, key="stranger"), workspace, Trouble.AUTHENTICATION)
    assert any(str(stranger) in line and "SHA256:" in line for line in error.details)
    body = "".join(stranger.read_text().splitlines()[1:-1])
    assert not any(body[start : start + 20] in " ".join(error.details) for start in range(0, len(body) - 20, 20))


def test_key_files_that_cannot_be_used(sshd: Sshd, workspace: Workspace, tmp_path: Path) -> None:
    assert "No such file" in fails(cluster_of(sshd, key="missing"), workspace, Trouble.KEY_FILE).message
    make_key(tmp_path / "locked", "-N", "a passphrase")
    assert "encrypted" in fails(cluster_of(sshd, key="locked"), workspace, Trouble.KEY_FILE).message
    make_key(tmp_path / "old", "-N", "a passphrase", "-t", "rsa", "-m", "PEM")
    assert "encrypted" in fails(cluster_of(sshd, key="old"), workspace, Trouble.KEY_FILE).message
    (tmp_path / "garbage").write_text("nothing of the kind\n")
    (tmp_path / "garbage").chmod(0o600)
    assert "not a private key" in fails(cluster_of(sshd, key="garbage"), workspace, Trouble.KEY_FILE).message
    make_key(tmp_path / "open").chmod(0o644)
    assert "chmod 600" in fails(cluster_of(sshd, key="open"), workspace, Trouble.KEY_FILE).hint
    assert "no regular file" in fails(cluster_of(sshd, key="."), workspace, Trouble.KEY_FILE).message


def test_keys_are_found_relative_to_cluster_yaml_and_at_home(
    sshd: Sshd, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "keys").mkdir()
    sshd.user_key.rename(tmp_path / "keys" / "mine")
    assert run_once(cluster_of(sshd, key="keys/mine"), workspace).code == 0
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run_once(cluster_of(sshd, key="~/keys/mine"), workspace).code == 0
    (tmp_path / ".ssh").mkdir()
    (tmp_path / "keys" / "mine").rename(tmp_path / ".ssh" / "id_ed25519")
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    assert run_once(cluster_of(sshd, key=None), workspace).code == 0
    (tmp_path / ".ssh" / "id_ed25519").unlink()
    assert "no private key" in fails(cluster_of(sshd, key=None), workspace, Trouble.AUTHENTICATION).message


def test_keys_of_an_agent(sshd: Sshd, workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = subprocess.Popen([tool("ssh-agent"), "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
        monkeypatch.setenv("HOME", str(tmp_path))
        wait_until("the agent listens", (tmp_path / "agent").stat, seconds=60, retry_on=(FileNotFoundError,))
        subprocess.run([tool("ssh-add"), str(sshd.user_key)], check=True, capture_output=True, timeout=60)
        assert run_once(cluster_of(sshd, key=None), workspace).code == 0
        # the named key is encrypted on disk, but the agent holds it unlocked
        subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "a passphrase", "-f", str(sshd.user_key)], check=True)
        assert run_once(cluster_of(sshd), workspace).code == 0
    finally:
        agent.terminate()
        agent.wait(30)


def test_no_server_there(sshd: Sshd, workspace: Workspace) -> None:
    sshd.stop()
    assert f"port {sshd.port}" in fails(cluster_of(sshd), workspace, Trouble.REFUSED).message


def test_a_name_that_does_not_resolve(sshd: Sshd, workspace: Workspace) -> None:
    assert "no-such-host.invalid" in fails(cluster_of(sshd, address="no-such-host.invalid"), workspace, Trouble.NAME).message
    assert fails(cluster_of(sshd, address="a" * 80 + ".example"), workspace, Trouble.NAME)


def test_a_server_that_accepts_and_never_answers(sshd: Sshd, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provisioner.ssh.link.HANDSHAKE_SECONDS", 1.0)
    sshd.stop()
    with socket.create_server(("127.0.0.1", sshd.port)):
        begin = time.monotonic()
        assert "answers nothing" in fails(cluster_of(sshd), workspace, Trouble.TIMEOUT).message
        assert time.monotonic() - begin < 30


def test_a_machine_that_does_not_even_accept(sshd: Sshd, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provisioner.ssh.link.CONNECT_SECONDS", 1.0)
    sshd.stop()
    with socket.socket() as server:
        server.bind(("127.0.0.1", sshd.port))
        server.listen(0)
        # a full queue: the kernel then drops what else asks to connect, as a firewall would
        with socket.create_connection(("127.0.0.1", sshd.port), timeout=5):
            assert "no answer" in fails(cluster_of(sshd), workspace, Trouble.TIMEOUT).message


def test_who_would_rather_know_soon_is_told_soon(sshd: Sshd, workspace: Workspace) -> None:
    sshd.stop()
    cluster = cluster_of(sshd)
    with socket.create_server(("127.0.0.1", sshd.port)), Connections(cluster, workspace, seconds=0.5) as connections:
        begin = time.monotonic()
        with pytest.raises(SshError, match=r"answers nothing within 0\.5 s"):
            connections.connect(cluster.nodes[0])
        assert time.monotonic() - begin < 15, "the usual limit is 20 s"


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_a_server_that_is_no_ssh_server(sshd: Sshd, workspace: Workspace, answer: bytes) -> None:
    sshd.stop()

    def serve(server: socket.socket) -> None:
        client, _ = server.accept()
        with client:
            client.sendall(answer)

    with socket.create_server(("127.0.0.1", sshd.port)) as server:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        fails(cluster_of(sshd), workspace, Trouble.NOT_SSH)
        thread.join()


def test_bastion(make_sshd: MakeSshd, workspace: Workspace) -> None:
    machine, bastion = make_sshd(), make_sshd()
    cluster = cluster_of(machine, bastion=Bastion(host="127.0.0.1", port=bastion.port, key=str(bastion.user_key)))
    with Connections(cluster, workspace) as connections:
        assert connections.run(cluster.nodes[0], "echo $SSH_CONNECTION").text.split()[3] == str(machine.port)
        with serving(echo) as port, connections.forward(cluster.nodes[0], port) as forward:
            assert exchange(forward.port, b"through both") == b"through both"
    assert "direct-tcpip" in bastion.log or "Accepted publickey" in bastion.log
    known = KnownHosts(workspace.known_hosts)
    assert known.keys_of("127.0.0.1", bastion.port)
    assert known.keys_of("127.0.0.1", machine.port)
    # OpenSSH gets there the same way, with the keys on record and nothing else
    ssh = [
        tool("ssh"),
        "-o",
        "BatchMode=yes",
        *openssh_args(cluster, workspace, cluster.nodes[0]),
        "127.0.0.1",
        "echo",
        "$SSH_CONNECTION",
    ]
    done = subprocess.run(ssh, check=False, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[3] == str(machine.port).encode()

    bastion.new_host_key()
    error = fails(cluster, workspace, Trouble.HOST_KEY_CHANGED)
    assert "bastion" in error.message
    assert subprocess.run(ssh, check=False, capture_output=True, timeout=60).returncode == 255


def test_bastion_that_cannot_reach_the_machine(make_sshd: MakeSshd, workspace: Workspace) -> None:
    machine, bastion, closed = make_sshd(), make_sshd(), make_sshd("AllowTcpForwarding no")
    cluster = cluster_of(machine, bastion=Bastion(host="127.0.0.1", port=bastion.port, key=str(bastion.user_key)))
    machine.stop()
    assert "the bastion 127.0.0.1 cannot connect" in fails(cluster, workspace, Trouble.REFUSED).message
    cluster = cluster_of(machine, bastion=Bastion(host="127.0.0.1", port=closed.port, key=str(closed.user_key)))
    assert "AllowTcpForwarding" in fails(cluster, workspace, Trouble.SESSION_REFUSED).hint
    bastion.stop()
    cluster = cluster_of(machine, machine, bastion=Bastion(host="127.0.0.1", port=bastion.port, key=str(bastion.user_key)))
    assert "by way of bastion" in fails(cluster, workspace, Trouble.REFUSED).message


def test_names_with_blanks_and_percents_reach_openssh(make_sshd: MakeSshd, tmp_path: Path) -> None:
    machine, bastion = make_sshd(), make_sshd()
    odd = tmp_path / "a 100% odd 'place'"
    odd.mkdir()
    workspace = Workspace(root=odd / "w", cluster_file=odd / "cluster.yaml")
    for number, server in enumerate((machine, bastion)):
        (odd / f"key {number}").write_bytes(server.user_key.read_bytes())
        (odd / f"key {number}").chmod(0o600)
    cluster = cluster_of(machine, key="key 0", bastion=Bastion(host="127.0.0.1", port=bastion.port, key="key 1"))
    assert run_once(cluster, workspace).code == 0
    ssh = [tool("ssh"), "-o", "BatchMode=yes", *openssh_args(cluster, workspace, cluster.nodes[0]), "127.0.0.1", "true"]
    done = subprocess.run(ssh, check=False, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_user_with_sudo_and_one_without(sshd: Sshd, workspace: Workspace, login_user: str) -> None:
    tool("sudo")
    cluster = cluster_of(sshd, user=login_user)
    assert run_once(cluster, workspace, "id -un", sudo=False).text.strip() == login_user
    error = fails(cluster, workspace, Trouble.SUDO)
    assert "without a password" in error.message
    assert login_user in error.hint

    rule = sudoers_file(login_user)
    rule.write_text(f"{login_user} ALL=(ALL) NOPASSWD: ALL\n")
    rule.chmod(0o440)
    with Connections(cluster, workspace) as connections:
        node = cluster.nodes[0]
        done = connections.run(node, "id -u; cat; echo 'sudo: no' >&2; exit 97", stdin=b"in")
        assert (done.code, done.stdout, done.stderr) == (97, b"0\nin", b"sudo: no\n")
        assert connections.run(node, "id -u").text == "0\n"
        assert connections.run(node, "id -un", sudo=False).text.strip() == login_user


def test_much_output_on_both_streams_and_much_input_at_once(sshd: Sshd, workspace: Workspace) -> None:
    cluster = cluster_of(sshd)
    data = os.urandom(1 << 16) * 128  # 8 MiB, four times the SSH window
    script = "head -c 8388608 /dev/zero | tr '\\0' x; head -c 8388608 /dev/zero | tr '\\0' y >&2; sha256sum"
    with Connections(cluster, workspace) as connections:
        done = connections.run(cluster.nodes[0], script, stdin=data, timeout=300)
        assert done.stdout[: 1 << 23] == b"x" * (1 << 23)
        assert done.stderr == b"y" * (1 << 23)
        assert done.stdout[1 << 23 :].split()[0].decode() == hashlib.sha256(data).hexdigest()
        # input nobody reads is no error
        assert connections.run(cluster.nodes[0], "exit 3", stdin=data, timeout=300).code == 3


def test_a_command_that_takes_too_long(sshd: Sshd, workspace: Workspace) -> None:
    cluster = cluster_of(sshd)
    with Connections(cluster, workspace) as connections:
        begin = time.monotonic()
        with pytest.raises(SshError) as caught:
            connections.run(cluster.nodes[0], "echo last words >&2; sleep 600", timeout=1, stdin=b"x" * (1 << 23))
        assert caught.value.trouble is Trouble.COMMAND_TIMEOUT
        assert "`echo last words" in caught.value.message
        assert caught.value.details == ("last words",)
        assert time.monotonic() - begin < 60
        # the connection itself is as good as before
        assert connections.run(cluster.nodes[0], "echo on").text == "on\n"
    assert sshd.log.count("Accepted publickey") == 1


def test_fifty_commands_at_a_time_on_one_machine(sshd: Sshd, workspace: Workspace) -> None:
    """OpenSSH allows ten sessions on a connection: the others wait their turn."""
    cluster = cluster_of(sshd)
    results: dict[int, str] = {}
    with Connections(cluster, workspace) as connections:

        def work(number: int) -> None:
            results[number] = connections.run(cluster.nodes[0], f"sleep 0.05; echo {number}", timeout=300).text

        threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {number: f"{number}\n" for number in range(50)}
    assert sshd.log.count("Accepted publickey") == 1


def test_a_machine_that_allows_fewer_sessions(make_sshd: MakeSshd, workspace: Workspace) -> None:
    cluster = cluster_of(make_sshd("MaxSessions 2"))
    with Connections(cluster, workspace) as connections:
        results: list[int] = []

        def work() -> None:
            results.append(connections.run(cluster.nodes[0], "sleep 0.1", timeout=300).code)

        threads = [threading.Thread(target=work) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == [0] * 12
    fails(cluster_of(make_sshd("MaxSessions 0")), workspace, Trouble.SESSION_REFUSED)


def test_parallel_gives_each_machine_its_own_result(make_sshd: MakeSshd, workspace: Workspace) -> None:
    servers = [make_sshd() for _ in range(3)]
    for server in servers[1:]:
        (server.directory / "authorized_keys").write_bytes((servers[0].directory / "user_key.pub").read_bytes())
    cluster = cluster_of(*servers)
    servers[1].stop()
    with Connections(cluster, workspace) as connections:
        results = parallel(cluster.nodes, lambda node: connections.run(node, f"echo {node.name}").text)
    assert list(results) == ["n1", "n2", "n3"]
    assert (results["n1"], results["n3"]) == ("n1\n", "n3\n")
    assert isinstance(results["n2"], ProvisionerError)
    assert len(workspace.known_hosts.read_text().splitlines()) == 2
    assert parallel((), lambda node: node) == {}
    with pytest.raises(ZeroDivisionError):
        parallel(cluster.nodes, lambda node: 1 // len(node.labels))


def test_a_dropped_connection_is_made_again(sshd: Sshd, workspace: Workspace) -> None:
    cluster = cluster_of(sshd)
    node = cluster.nodes[0]
    with Connections(cluster, workspace) as connections:
        with serving(echo) as port, connections.forward(node, port) as forward:
            assert exchange(forward.port, b"before") == b"before"
            sshd.drop_sessions()
            assert connections.run(node, "echo back").text == "back\n"
            sshd.drop_sessions()
            assert exchange(forward.port, b"after") == b"after"

        outcome: list[object] = []

        def interrupted() -> None:
            try:
                outcome.append(connections.run(node, "echo begun > started; sleep 600", timeout=300))
            except SshError as error:
                outcome.append(error.trouble)

        home = connections.run(node, "rm -f started; pwd").text.strip()
        thread = threading.Thread(target=interrupted)
        thread.start()
        connections.run(node, "until test -e started; do sleep 0.05; done; rm started", timeout=120)
        assert home
        sshd.drop_sessions()
        thread.join(120)
        assert outcome == [Trouble.LOST]
    assert "ssh.log" not in {entry.name for entry in workspace.root.iterdir()}


def test_a_connection_that_fell_silent_is_made_again(sshd: Sshd, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a power cut: nothing says that the machine's side of the connection is gone."""
    cluster = cluster_of(sshd)
    with Connections(cluster, workspace) as connections:
        connections.run(cluster.nodes[0], "true")
        sshd.signal_sessions(signal.SIGSTOP)
        monkeypatch.setattr("provisioner.ssh.link.CHANNEL_SECONDS", 5.0)
        assert connections.run(cluster.nodes[0], "echo back", timeout=300).text == "back\n"
    assert sshd.log.count("Accepted publickey") == 2


def echo(client: socket.socket) -> None:
    """Read to the end of file, then send everything back: works only if a half-closed connection stays open."""
    received = bytearray()
    while chunk := client.recv(1 << 16):
        received += chunk
    client.sendall(received)


@contextmanager
def serving(handler: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server of this test on loopback, a thread per connection."""
    threads: list[threading.Thread] = []

    def handle(client: socket.socket) -> None:
        with client:
            handler(client)

    def accept(server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=handle, args=(client,)))
            threads[-1].start()

    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        acceptor = threading.Thread(target=accept, args=(server,))
        acceptor.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            acceptor.join()
            for thread in threads:
                thread.join()


def exchange(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=300) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        received = bytearray()
        while chunk := client.recv(1 << 16):
            received += chunk
        return bytes(received)


def test_forward_is_fast_and_keeps_half_closed_connections(
    sshd: Sshd, workspace: Workspace, record_property: Callable[[str, object], None]
) -> None:
    cluster = cluster_of(sshd)
    size = 32 << 20
    block = os.urandom(1 << 20)
    with (
        Connections(cluster, workspace) as connections,
        serving(echo) as port,
        connections.forward(cluster.nodes[0], port) as forward,
    ):
        begin = time.monotonic()
        assert exchange(forward.port, block * (size >> 20)) == block * (size >> 20)
        seconds = time.monotonic() - begin
    record_property("forward MiB/s, both ways", round(2 * size / (1 << 20) / seconds, 1))


def test_forward_carries_many_connections_and_leaves_no_thread(sshd: Sshd, workspace: Workspace) -> None:
    cluster = cluster_of(sshd)
    before = set(threading.enumerate())
    results: dict[int, bytes] = {}
    with Connections(cluster, workspace) as connections, serving(echo) as port:
        with connections.forward(cluster.nodes[0], port) as forward:

            def work(number: int) -> None:
                results[number] = exchange(forward.port, b"%d " % number * 1000)

            threads = [threading.Thread(target=work, args=(number,)) for number in range(60)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert results == {number: b"%d " % number * 1000 for number in range(60)}

            # connections that idle when the forward is closed end with it
            idle = [socket.create_connection(("127.0.0.1", forward.port), timeout=300) for _ in range(5)]
            for client in idle:
                client.sendall(b"hello")
        for client in idle:
            with client, suppress(ConnectionResetError):
                assert client.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", forward.port), timeout=300)
    gc.collect()
    assert {thread.name for thread in threading.enumerate() if thread not in before} == set()


def test_forward_to_a_port_nobody_listens_on(sshd: Sshd, workspace: Workspace) -> None:
    cluster = cluster_of(sshd)
    closed = free_port()
    with Connections(cluster, workspace) as connections, connections.forward(cluster.nodes[0], closed) as forward:
        with socket.create_connection(("127.0.0.1", forward.port), timeout=300) as client:
            assert client.recv(1) == b""
        assert f"127.0.0.1:{closed}" in forward.error


def test_nothing_is_printed(sshd: Sshd, workspace: Workspace, capfd: pytest.CaptureFixture[str]) -> None:
    cluster = cluster_of(sshd)
    closed = free_port()
    with Connections(cluster, workspace) as connections:
        with (
            connections.forward(cluster.nodes[0], closed) as forward,
            socket.create_connection(("127.0.0.1", forward.port), timeout=300) as client,
        ):
            client.recv(1)
        sshd.drop_sessions()
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert "FAILED" in (workspace.logs / "ssh.log").read_text()


def test_the_connections_cannot_be_used_when_closed(sshd: Sshd, workspace: Workspace) -> None:
    cluster = cluster_of(sshd)
    connections = Connections(cluster, workspace)
    connections.close()
    connections.close()
    with pytest.raises(RuntimeError):
        connections.run(cluster.nodes[0], "true")
