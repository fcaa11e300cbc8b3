"""What a killed run has left goes; what a living command holds, and what is nobody's litter, stays."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from provisioner import leftovers, runner
from provisioner.share import ANSIBLE_CFG
from provisioner.workspace import Workspace, private_directory, write_atomic

# Killed while it held a directory with a key, half a file, and the sockets of SSH.
KILLED = """
import os, signal, sys
from pathlib import Path
from provisioner import runner
from provisioner.tls_client import write_client_files
from provisioner.workspace import Workspace, private_directory
root = Path(sys.argv[1])
workspace = Workspace(root, root / "cluster.yaml")
with private_directory(root, ".client-") as directory, runner.control_sockets(workspace.sockets) as sockets:
    write_client_files(directory, b"", b"", b"key")
    (Path(sockets) / "socket").touch()
    os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    from provisioner.workspace import write_atomic
    write_atomic(root / "pki" / "cluster-ca.pem", "half")
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path / "workspace", tmp_path / "cluster.yaml")
    made.create()
    return made


def age(*paths: Path) -> None:
    for path in paths:
        os.utime(path, (time.time() - 100,) * 2)


def hidden(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in workspace.root.rglob(".*"))


def test_what_a_killed_process_held_goes(workspace: Workspace, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(workspace.root)], check=False, env=environment)
    assert killed.returncode == -9
    left = list(workspace.root.rglob(".*"))
    assert sorted(path.name[:8] for path in left) == [".client-", ".cluster"]
    sockets = workspace.sockets.readlink()
    assert (sockets / "socket").exists()
    age(*left)
    leftovers.sweep(workspace)
    assert hidden(workspace) == []
    assert not sockets.exists()
    assert not os.path.lexists(workspace.sockets)


def test_what_is_held_or_new_or_of_others_stays(workspace: Workspace) -> None:
    other = workspace.root / ".git"
    other.mkdir()
    with private_directory(workspace.root, ".client-") as held:
        new = workspace.root / ".admin.kubeconfig.abcd1234"
        new.touch()
        age(held, other)
        leftovers.sweep(workspace)
        assert held.is_dir()
        assert hidden(workspace) == sorted([held.name, new.name, other.name])
        age(new)
        leftovers.sweep(workspace)
        assert hidden(workspace) == sorted([held.name, other.name])


def test_bundles_and_what_logs_should_not_hold_go(workspace: Workspace) -> None:
    log = workspace.logs / "20240101-apply"
    gone = [log / "ansible" / "state" / "command", log / "tmp" / "ansible-local-1" / "file", workspace.root / "bundles" / "a.tar"]
    kept = [log / "ansible" / "state" / "stdout", workspace.root / "known_hosts"]
    for path in (*gone, *kept):
        write_atomic(path, "")
    leftovers.sweep(workspace)
    assert not [path for path in gone if path.exists()]
    assert all(path.exists() for path in kept)


def test_the_processes_of_an_earlier_run_end_and_no_others(workspace: Workspace, tmp_path: Path) -> None:
    def sleeper(home: Path) -> subprocess.Popen[bytes]:
        # it tells that it runs: within execve(2), a process has no environment yet
        script = ["sh", "-c", "echo; read -r forever"]
        environment = {**os.environ, "ANSIBLE_HOME": str(home)}
        process = subprocess.Popen(script, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdout
        process.stdout.read(1)
        return process

    with sleeper(workspace.ansible) as ours, sleeper(tmp_path / "other") as other:
        try:
            # nobody takes the dead one's exit code while we wait for it to be gone: a zombie has no environment
            with leftovers.swept(workspace):
                assert ours.wait(5) == -9
            assert other.poll() is None
        finally:
            ours.kill()
            other.kill()


def test_the_runner_gives_its_processes_the_mark(workspace: Workspace) -> None:
    environment = runner._environment(workspace.logs / "run", "sockets")
    assert environment["ANSIBLE_HOME"] == str(workspace.ansible)


def test_a_link_to_somewhere_else_is_not_followed(workspace: Workspace, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    workspace.sockets.symlink_to(precious)
    leftovers.sweep(workspace)
    assert precious.is_dir()
    assert not os.path.lexists(workspace.sockets)


def test_a_node_loses_half_files_and_bundles_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("litter", ANSIBLE_CFG.parent / "plugins/module_utils/provisioner_litter.py")
    assert spec
    assert spec.loader
    litter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(litter)
    monkeypatch.setattr(litter, "STAGING", (str(tmp_path / "shm"),))
    half, bundle = tmp_path / "etc" / ".provisioner-x1", tmp_path / "shm" / "ansible-tmp-1" / litter.BUNDLE
    other, young = tmp_path / "shm" / "ansible-tmp-2" / "others", tmp_path / "shm" / "ansible-tmp-3"
    for path in (half, bundle, other):
        write_atomic(path, "")
    young.mkdir()
    litter.sweep([str(tmp_path / "etc" / "file"), str(tmp_path / "missing" / "file")])
    assert not half.exists()
    assert not bundle.parent.exists()
    assert other.exists()
    assert young.exists()
    age(young)
    litter.sweep([])
    assert not young.exists()
