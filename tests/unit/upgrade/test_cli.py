"""`provisioner upgrade`, as far as it goes without machines."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from provisioner import pki
from provisioner.cli.upgrade import refuse_rotation
from provisioner.config import Cluster
from provisioner.errors import BadInput
from provisioner.pki import CaName, rotation
from provisioner.workspace import Workspace


def test_no_upgrade_while_cas_are_being_replaced(tmp_path: Path) -> None:
    nodes = [{"name": "a", "address": "192.0.2.1", "roles": ["control-plane", "etcd"]}]
    cluster = Cluster.model_validate({"apiVersion": "provisioner/v1", "name": "one", "nodes": nodes})
    workspace = Workspace(tmp_path / "workspace" / "one", tmp_path / "cluster.yaml")
    workspace.create()
    now = dt.datetime.now(dt.UTC)
    pki.ensure(cluster, workspace.pki, now=now)
    refuse_rotation(workspace)
    rotation.begin(cluster, workspace.pki, (CaName.ETCD,), now=now)
    with pytest.raises(BadInput) as refused:
        refuse_rotation(workspace)
    assert "the etcd CA is being replaced (pass trust)" in refused.value.message
    assert refused.value.hint == "`provisioner certs rotate-ca` first"
