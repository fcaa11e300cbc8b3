"""A cluster with every kind of machine, and its PKI."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner.config import Cluster
from provisioner.pki import Pki, ensure

NODES: dict[str, tuple[str, tuple[str, ...]]] = {
    "cp-1": ("10.77.0.11", ("control-plane", "etcd")),
    "cp-2": ("10.77.0.12", ("control-plane", "etcd", "worker")),
    "cp-3": ("10.77.0.13", ("control-plane",)),
    "etcd-1": ("10.77.0.14", ("etcd",)),
    "w-1": ("10.77.0.21", ("worker",)),
    "w-2": ("10.77.0.22", ("worker", "etcd")),
}


@pytest.fixture
def now() -> dt.datetime:
    return dt.datetime(2030, 5, 17, 12, 30, 15, 123456, tzinfo=dt.UTC)


@pytest.fixture
def make_cluster() -> Callable[..., Cluster]:
    """Builds a Cluster of ``NODES``; keyword arguments are keys of cluster.yaml, ``nodes`` further or changed machines."""

    def make(*, nodes: dict[str, tuple[str, tuple[str, ...]]] | None = None, **keys: object) -> Cluster:
        machines = [{"name": name, "address": ip, "roles": roles} for name, (ip, roles) in {**NODES, **(nodes or {})}.items()]
        return Cluster.model_validate({"apiVersion": "provisioner/v1", "name": "test", "nodes": machines, **keys})

    return make


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster(extraSans=["api.example.org", "fd00::1"], controlPlaneEndpoint={"host": "k8s.example.org"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "workspace" / "test" / "pki"


@pytest.fixture
def pki(cluster: Cluster, root: Path, now: dt.datetime) -> Pki:
    return ensure(cluster, root, now=now)
