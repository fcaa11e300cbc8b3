"""Values that the tests of the driver's heart share: a small cluster, what it wants of a machine, and what a machine says."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from provisioner.artifacts import load_lock
from provisioner.config import Cluster
from provisioner.desired import HostState
from provisioner.display import Display
from provisioner.session import Session
from provisioner.ssh import Connections
from provisioner.workspace import Workspace

NODES = {
    "cp-1": ("10.77.0.11", ("control-plane", "etcd")),
    "cp-2": ("10.77.0.12", ("control-plane", "etcd")),
    "etcd-1": ("10.77.0.13", ("etcd",)),
    "worker-1": ("10.77.0.21", ("worker",)),
}


@pytest.fixture
def make_cluster() -> Callable[..., Cluster]:
    """Builds a Cluster of ``NODES``; keyword arguments are keys of cluster.yaml."""

    def make(**keys: object) -> Cluster:
        nodes = [{"name": name, "address": ip, "roles": roles} for name, (ip, roles) in NODES.items()]
        return Cluster.model_validate({"apiVersion": "provisioner/v1", "name": "test", "nodes": nodes, **keys})

    return make


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "cluster.yaml").touch()
    return Workspace.of(tmp_path / "cluster.yaml", "test")


@pytest.fixture
def printed() -> io.StringIO:
    """What the session's display has printed."""
    return io.StringIO()


@pytest.fixture
def session(cluster: Cluster, workspace: Workspace, printed: io.StringIO, tmp_path: Path) -> Session:
    """A session before its first phase; nothing is connected."""
    display = Display(Console(file=printed, width=200, soft_wrap=True))
    return Session(cluster, workspace, Connections(cluster, workspace), load_lock(), display, tmp_path / "log", str(tmp_path))


@pytest.fixture
def actual_of() -> Callable[[HostState], dict[str, Any]]:
    """What ``host_state`` returns of a machine that is just as desired."""

    def describe(state: HostState) -> dict[str, Any]:
        files: dict[str, Any] = {
            file.path: {"type": "file", "sha256": file.sha256, "mode": file.mode, "owner": file.owner, "group": file.group}
            for file in state.files
        }
        for item in state.artifacts:
            files[item.path] = {"type": "file", "sha256": item.sha256, "mode": item.mode, "owner": "root", "group": "root"}
        unit = {"loaded": True, "active": True, "state": "active/running", "enabled": True}
        unit |= dict.fromkeys(("daemon_reload", "stale", "outdated"), False)
        return {
            "files": files,
            "absent": [],
            "swept": [],
            "units": {wanted.name: {**unit, "hash": wanted.hash} for wanted in state.units},
            "sysctls": dict(state.sysctls),
            "modules": list(state.modules),
            "users": list(state.users),
            "kubelet_certificate": None,
        }

    return describe


@pytest.fixture
def changed() -> Callable[..., Any]:
    """A frozen value with some fields changed."""
    return dataclasses.replace
