"""`provisioner kubectl`: which program is run, as whom, with which words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner.errors import ExitCode

CLUSTER = "name: one\nnodes: [{name: cp-1, address: 192.0.2.1, roles: [control-plane, etcd, worker]}]\n"
KUBECONFIG = """\
apiVersion: v1
kind: Config
clusters: [{name: one, cluster: {server: "https://192.0.2.1:6443"}}]
contexts: [{name: one, context: {cluster: one, user: one}}]
current-context: one
users: [{name: one, user: {}}]
"""
# a program that says how it was called
PROGRAM = """\
#!/bin/sh
printf '%s\\n' "$KUBECONFIG" "$@"
exit 7
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The command beside a cluster.yaml, with an empty cache of artifacts, and a kubectl of the user's own."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kubectl").write_text(PROGRAM)
    (tmp_path / "bin" / "kubectl").chmod(0o755)
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "workspace" / "one").mkdir(parents=True, mode=0o700)

    def call(*words: str, path: str = f"{tmp_path}/bin:{os.environ['PATH']}") -> subprocess.CompletedProcess[str]:
        environ = {**os.environ, "PATH": path, "PROVISIONER_CACHE": str(tmp_path / "cache"), "KUBECONFIG": "/somebody/elses"}
        program = [sys.executable, "-m", "provisioner", "kubectl", *words]
        return subprocess.run(program, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)

    return call


def test_without_a_cluster_there_is_none_to_talk_to(run: Run) -> None:
    done = run("get", "nodes")
    assert done.returncode == ExitCode.BAD_INPUT
    assert "`provisioner apply` makes it" in done.stderr


@pytest.mark.parametrize(
    ("words", "handed_on"),
    [
        (["get", "pods", "-o", "wide", "--all-namespaces"], ["get", "pods", "-o", "wide", "--all-namespaces"]),
        (["exec", "web", "--", "ls", "--", "-l"], ["exec", "web", "--", "ls", "--", "-l"]),
        (["--cluster", "cluster.yaml", "get", "--help"], ["get", "--help"]),
        (["config", "view", "--cluster", "theirs"], ["config", "view", "--cluster", "theirs"]),
        (["--", "--help"], ["--help"]),
        ([], []),
    ],
)
def test_words_are_kubectls(run: Run, tmp_path: Path, words: list[str], handed_on: list[str]) -> None:
    kubeconfig = tmp_path / "workspace" / "one" / "admin.kubeconfig"
    kubeconfig.write_text(KUBECONFIG)
    done = run(*words)
    assert done.stdout.splitlines() == [str(kubeconfig), *handed_on], done.stderr
    assert done.returncode == 7, "the exit code is kubectl's"


def test_where_there_is_no_kubectl_it_says_what_brings_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "workspace" / "one" / "admin.kubeconfig").write_text(KUBECONFIG)
    done = run("get", "nodes", path=str(tmp_path))
    assert done.returncode == ExitCode.FAILURE
    assert "provisioner artifacts fetch" in done.stderr
