"""The commands where no machine answers, and where there is no cluster."""

from __future__ import annotations

import datetime as dt
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from provisioner import pki
from provisioner.load import load

TEXT = """\
name: t
ssh: {{port: {port}}}
nodes:
  - {{name: cp-1, address: 127.0.0.1, clusterAddress: 10.0.0.1, roles: [control-plane, etcd]}}
  - {{name: worker-1, address: 127.0.0.2, clusterAddress: 10.0.0.2, roles: [worker]}}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A cluster whose machines refuse every connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (tmp_path / "cluster.yaml").write_text(TEXT.format(port=port))
    return tmp_path


def run(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "provisioner", *args], cwd=directory, capture_output=True, text=True, timeout=120, check=False
    )


def built(directory: Path) -> None:
    pki.ensure(load(directory / "cluster.yaml"), directory / "workspace" / "t" / "pki", now=dt.datetime.now(dt.UTC))
    (directory / "workspace" / "t" / "layout").write_text("1\n")


@pytest.mark.parametrize("command", [("status",), ("etcd", "defrag", "--yes"), ("etcd", "cure", "--yes")])
def test_without_a_cluster(directory: Path, command: tuple[str, ...]) -> None:
    done = run(directory, *command)
    assert done.returncode == 3
    assert "no cluster was built from here" in done.stderr
    assert not (directory / "workspace").exists()


def test_an_interval_is_for_watching(tmp_path: Path) -> None:
    done = run(tmp_path, "status", "--interval", "2")
    assert (done.returncode, done.stderr.splitlines()[0]) == (3, "error: --interval goes with --watch")


def test_the_checks_are_listed_as_json(tmp_path: Path) -> None:
    document = json.loads(run(tmp_path, "verify", "--list", "--json", "--only", "etcd").stdout)
    assert document["checks"][-1].keys() == {"id", "level", "title"}
    assert "etcd" in [check["id"] for check in document["checks"]]


def test_no_machine_answers(directory: Path) -> None:
    built(directory)
    done = run(directory, "status", "--json")
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert [machine["reachable"] for machine in document["machines"]] == [False, False]
    assert document["machines"][0]["error"] == "connection refused: no SSH server listens there"
    assert document["problems"][0].startswith(
        "cp-1: cannot be reached: connection refused: no SSH server listens there -> start sshd"
    )
    assert (document["etcd"]["quorum"], document["healthy"]) == (None, False)
    text = run(directory, "status")
    assert text.returncode == 1
    assert "UNREACHABLE" in text.stdout
    assert "Traceback" not in text.stderr


@pytest.mark.parametrize("command", ["defrag", "cure"])
def test_care_is_refused_where_a_member_cannot_be_reached(directory: Path, command: str) -> None:
    built(directory)
    done = run(directory, "etcd", command, "--yes")
    assert done.returncode == 1
    assert "etcd is not whole: cp-1 is down" in done.stderr
    assert "connection refused" in done.stderr


def test_what_verify_found_is_on_record_before_the_users_own_file_fails(directory: Path) -> None:
    built(directory)
    done = run(directory, "verify", "--only", "units", "--junit", "/dev/full")
    assert (done.returncode, "/dev/full: No space left" in done.stderr) == (1, True), done.stderr
    journal = (directory / "workspace" / "t" / "journal.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in journal] == ["verify"]
