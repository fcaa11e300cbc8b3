"""Facts and preflight over real SSH, of this very machine, and the commands that stand on them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from provisioner import preflight
from provisioner.facts import HostFacts, gather
from provisioner.ssh import Connections, Trouble
from provisioner.ssh.errors import SshError
from provisioner.workspace import Workspace

from .conftest import Sshd, cluster_of, free_port, sudoers_file, tool

MakeSshd = Callable[..., Sshd]


def test_facts_of_this_machine(sshd: Sshd, workspace: Workspace, record_property: Callable[[str, object], None]) -> None:
    cluster = cluster_of(sshd)
    with socket.create_server(("0.0.0.0", 0)) as server, Connections(cluster, workspace) as connections:  # noqa: S104 - all of it
        facts, failed = gather(cluster, connections)
        assert failed == {}
        found = facts["n1"]
        port = server.getsockname()[1]
        assert found.listening[port] in Path("/proc/self/comm").read_text() or found.listening[port].startswith("py")
    assert found.listening[sshd.port] == "sshd"
    assert found.incomplete == {}
    assert found.uid == 0
    assert found.kernel == os.uname().release
    assert found.hostname == socket.gethostname()
    assert found.memory_mib > 100
    assert found.disk_free_mib["/"] > 0
    assert found.interfaces["lo"] == ("127.0.0.1",)
    assert found.commands["mount"]
    assert abs(found.clock_skew_s) < 30
    assert sshd.log.count("Accepted publickey") == 1
    record_property("probe, CPU seconds", found.probe_cpu_s)
    assert HostFacts.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_facts_through_sudo_are_those_of_root(sshd: Sshd, workspace: Workspace, login_user: str) -> None:
    tool("sudo")
    cluster = cluster_of(sshd, user=login_user)
    with Connections(cluster, workspace) as connections:
        facts, failed = gather(cluster, connections)
        assert facts == {}
        error = failed["n1"]
        assert isinstance(error, SshError)
        assert error.trouble is Trouble.SUDO
    rule = sudoers_file(login_user)
    rule.write_text(f"{login_user} ALL=(ALL) NOPASSWD: ALL\n")
    rule.chmod(0o440)
    with Connections(cluster, workspace) as connections:
        facts, _ = gather(cluster, connections)
    assert facts["n1"].uid == 0
    # another user's sockets are seen by root alone
    assert facts["n1"].listening[sshd.port] == "sshd"


@pytest.mark.parametrize(
    ("python", "words"),
    [
        (None, "no python3"),
        ('case "$1" in -V) echo Python 3.5.2;; *) echo SyntaxError >&2; exit 1;; esac', "cannot run the probe"),
    ],
)
def test_a_machine_without_a_fit_python(sshd: Sshd, workspace: Workspace, login_user: str, python: str | None, words: str) -> None:
    tool("sudo")
    programs = sshd.directory / "bin"
    programs.mkdir()
    (programs / "sh").symlink_to("/bin/sh")
    if python:
        (programs / "python3").write_text(f"#!/bin/sh\n{python}\n")
        (programs / "python3").chmod(0o755)
    # sudo's own PATH decides what root finds: no start-up file of a shell has a say in it
    rule = sudoers_file(login_user)
    rule.write_text(f'{login_user} ALL=(ALL) NOPASSWD: ALL\nDefaults:{login_user} secure_path="{programs}"\n')
    rule.chmod(0o440)
    cluster = cluster_of(sshd, user=login_user)
    with Connections(cluster, workspace) as connections:
        facts, failed = gather(cluster, connections)
    assert facts == {}
    assert words in failed["n1"].message
    (problem,) = preflight.check(cluster, facts, failed, cluster_id=None)
    assert (problem.rule, problem.severity) == ("ssh-python", "error")


def test_noise_of_a_login_shell_does_no_harm(sshd: Sshd, workspace: Workspace, login_user: str) -> None:
    tool("sudo")
    bash = tool("bash")
    subprocess.run([tool("usermod"), "--shell", bash, login_user], check=True)
    (Path("/home") / login_user / ".bashrc").write_text("echo noise; echo more >&2\n")
    rule = sudoers_file(login_user)
    rule.write_text(f"{login_user} ALL=(ALL) NOPASSWD: ALL\n")
    rule.chmod(0o440)
    cluster = cluster_of(sshd, user=login_user)
    with Connections(cluster, workspace) as connections:
        facts, failed = gather(cluster, connections)
    assert failed == {}
    assert facts["n1"].uid == 0


def write_cluster(directory: Path, *servers: Sshd) -> None:
    """A cluster.yaml beside a key both servers take."""
    nodes = [
        {
            "name": f"n{number}",
            "address": "127.0.0.1",
            "clusterAddress": f"10.99.99.{number}",
            "roles": roles,
            "sshPort": server.port,
        }
        for number, (server, roles) in enumerate(zip(servers, (["control-plane", "etcd"], ["worker"]), strict=True), 1)
    ]
    for server in servers:
        (server.directory / "authorized_keys").write_bytes(servers[0].user_key.with_suffix(".pub").read_bytes())
    document = {"apiVersion": "provisioner/v1", "name": "t", "ssh": {"key": str(servers[0].user_key)}, "nodes": nodes}
    (directory / "cluster.yaml").write_text(yaml.safe_dump(document))


def provisioner(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The real command line."""
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "provisioner", *words],
        cwd=directory,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_command_names_every_problem_of_every_machine(make_sshd: MakeSshd, tmp_path: Path) -> None:
    first, second = make_sshd(), make_sshd()
    write_cluster(tmp_path, first, second)
    second.stop()
    done = provisioner(tmp_path, "preflight")
    assert done.returncode == 4, done.stderr
    assert "the cluster address 10.99.99.1 is on none of its interfaces" in done.stdout
    assert "connection refused" in done.stdout
    assert "1 of 2 machines answered" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr

    done = provisioner(tmp_path, "preflight", "--json")
    assert done.returncode == 4
    document = json.loads(done.stdout)
    assert document["fit"] is False
    assert set(document["machines"]) == {"n1"}
    rules = {(problem["host"], problem["rule"]) for problem in document["problems"] if problem["severity"] == "error"}
    assert {("n1", "cluster-address"), ("n2", "ssh-connection-refused")} <= rules
    assert all(problem["remedy"] or problem["severity"] == "info" for problem in document["problems"])
    # looking changed nothing here either, but for the host key it recorded
    made = sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "workspace").rglob("*") if path.is_file())
    assert [path for path in made if not path.endswith("ssh.log")] == ["workspace/t/known_hosts"] or "workspace/t/layout" in made


def test_preflight_sees_ports_that_are_taken(sshd: Sshd, workspace: Workspace) -> None:
    cluster = cluster_of(sshd)
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", 10259))
        except OSError:
            pytest.skip("port 10259 of this machine is taken already")
        server.listen()
        with Connections(cluster, workspace) as connections:
            facts, failed = gather(cluster, connections)
    problems = [problem for problem in preflight.check(cluster, facts, failed, cluster_id=None) if problem.rule == "ports"]
    assert any("port 10259, which kube-scheduler needs" in problem.message for problem in problems)


def test_ssh_of_a_node(make_sshd: MakeSshd, tmp_path: Path) -> None:
    first, second = make_sshd(), make_sshd()
    write_cluster(tmp_path, first, second)
    done = provisioner(tmp_path, "ssh", "n2", "--", "echo", "-n", "it is $((1 + 1)); exit 5")
    assert (done.returncode, done.stdout) == (5, "it is 2"), done.stderr
    # the key is on record now: ssh goes straight there, and refuses another one
    assert provisioner(tmp_path, "ssh", "n2", "true").returncode == 0
    second.new_host_key()
    assert provisioner(tmp_path, "ssh", "n2", "true").returncode == 255

    done = provisioner(tmp_path, "ssh", "nobody")
    assert done.returncode == 3
    assert "its nodes are n1, n2" in done.stderr
    second.stop()
    (tmp_path / "workspace" / "t" / "known_hosts").unlink()
    done = provisioner(tmp_path, "ssh", "n2")
    assert done.returncode == 1
    assert "connection refused" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_closed_port_is_not_listened_on(sshd: Sshd, workspace: Workspace) -> None:
    cluster = cluster_of(sshd)
    closed = free_port()
    with Connections(cluster, workspace) as connections:
        facts, _ = gather(cluster, connections)
    assert closed not in facts["n1"].listening
