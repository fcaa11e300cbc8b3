"""One cluster with every kind of machine, and rendering any of them: what the contract tests look at."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from provisioner import pki
from provisioner.backup import scheduled
from provisioner.config import Cluster
from provisioner.desired import File
from provisioner.pki import Pki
from provisioner.render import ROLES as ROLE_SPECS
from provisioner.render import CachedArtifact, HostContext, Image, MachineTraits
from provisioner.session import IMAGES, encryption_file
from provisioner.share import ROLES

# Every kind of machine there can be, by what it carries.
NODES: dict[str, tuple[str, tuple[str, ...]]] = {
    "cp-etcd": ("10.77.0.11", ("control-plane", "etcd")),
    "cp": ("10.77.0.12", ("control-plane",)),
    "etcd": ("10.77.0.13", ("etcd",)),
    "worker": ("10.77.0.14", ("worker",)),
    "every-role": ("10.77.0.15", ("control-plane", "etcd", "worker")),
}
# With a virtual address and scheduled backups, so that machines carry every role there is.
ENDPOINT = {"host": "10.77.0.100", "vip": {}}
BACKUPS = {"schedule": "*-*-* 03:00:00", "plain": True, "copy": ["cp", "{file}", "/mnt/share"]}
NOW = dt.datetime(2030, 5, 17, 12, 30, 15, tzinfo=dt.UTC)

MakeCluster = Callable[..., Cluster]
MakeHost = Callable[..., HostContext]


@pytest.fixture(scope="session")
def make_cluster() -> MakeCluster:
    """Builds a Cluster of ``NODES``; keyword arguments are keys of cluster.yaml."""

    def make(**keys: object) -> Cluster:
        nodes = [{"name": name, "address": ip, "roles": roles} for name, (ip, roles) in NODES.items()]
        fixed = {
            "apiVersion": "provisioner/v1",
            "name": "contract",
            "nodes": nodes,
            "controlPlaneEndpoint": ENDPOINT,
            "backups": BACKUPS,
        }
        return Cluster.model_validate({**fixed, **keys})

    return make


@pytest.fixture(scope="session")
def real_pki(make_cluster: MakeCluster, tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Real keys and certificates of that cluster."""
    return pki.ensure(make_cluster(), tmp_path_factory.mktemp("workspace") / "pki", now=NOW)


@pytest.fixture(scope="session")
def real_bundles(make_cluster: MakeCluster, real_pki: Pki) -> Mapping[str, tuple[File, ...]]:
    """What each machine really gets of the PKI."""
    cluster = make_cluster()
    bundles = {node.name: pki.bundle_for(cluster, real_pki, node) for node in cluster.nodes}
    for node in cluster.control_planes:
        bundles[node.name] = (*bundles[node.name], encryption_file(real_pki))
    for node in cluster.etcd_members:
        bundles[node.name] = (*bundles[node.name], scheduled.key_file(real_pki))
    return bundles


@pytest.fixture(scope="session")
def make_host(make_cluster: MakeCluster, real_bundles: Mapping[str, tuple[File, ...]]) -> MakeHost:
    """Builds the input of one machine: the real places of its certificates with content that never changes.

    Keyword arguments are fields of HostContext; ``traits`` may be a mapping of the fields that differ from the defaults.
    """

    def make(name: str, cluster: Cluster | None = None, **fields: Any) -> HostContext:
        traits = fields.pop("traits", {})
        loaded = cluster or make_cluster()
        values: dict[str, Any] = {
            "cluster": loaded,
            "node": loaded.node(name),
            "traits": MachineTraits(**{"interface": "eth0", **traits}),
            "cluster_id": "0123456789abcdef",
            "certificates": tuple(replace(file, content=f"content of {file.path}\n".encode()) for file in real_bundles[name]),
            "artifacts": artifacts(),
            "images": {name: Image(f"images/{name}.tar", f"registry.example/{name}:1") for name in IMAGES},
            **fields,
        }
        return HostContext(**values)

    return make


def artifacts() -> dict[str, CachedArtifact]:
    """A cache that has everything the roles ask for."""
    names = {name for role in ROLE_SPECS for name in role.binaries} | {f"images/{name}.tar" for name in IMAGES}
    return {name: CachedArtifact(Path("/cache") / name, hashlib.sha256(name.encode()).hexdigest(), 1000) for name in names}


@pytest.fixture(scope="session")
def options_of() -> Callable[[str], Mapping[str, Mapping[str, Any]]]:
    """The options of a role, from its argument_specs."""

    def read(role: str) -> Mapping[str, Mapping[str, Any]]:
        document = yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text())
        options: Mapping[str, Mapping[str, Any]] = document["argument_specs"]["main"]["options"]
        return options

    return read
