"""A cluster and a context without machines: for what can be judged from values alone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from provisioner.config import Cluster
from provisioner.verify.model import Context
from provisioner.workspace import Workspace


@pytest.fixture
def cluster() -> Cluster:
    """Three control planes with etcd, two workers."""
    nodes: list[dict[str, Any]] = [
        {"name": f"cp-{index}", "address": f"192.0.2.{index}", "roles": ["control-plane", "etcd"]} for index in (1, 2, 3)
    ]
    nodes += [{"name": f"worker-{index}", "address": f"192.0.2.{10 + index}", "roles": ["worker"]} for index in (1, 2)]
    return Cluster.model_validate({"name": "c", "nodes": nodes})


@pytest.fixture
def context(cluster: Cluster, tmp_path: Path) -> Context:
    """Whatever would talk to a machine is absent: a check that tries fails with AttributeError."""
    nothing: Any = SimpleNamespace()
    workspace = Workspace(tmp_path, tmp_path / "cluster.yaml")
    return Context(cluster, workspace, nothing, nothing, nothing, nothing, seconds=1)
