"""The inventories shipped with the project are valid. That of the Vagrantfile: see tests/unit/vagrant."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from provisioner.config import Cluster
from provisioner.lab import clusterfile, keys
from provisioner.lab.spec import Shape
from provisioner.load import load

TOP = Path(__file__).parents[3]
NAMES = ("lab-single", "lab-ha", "vagrant", "bare-metal")


def loaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Load an inventory where it lies in the tree, with the keys that it names in place."""
    monkeypatch.setenv("HOME", str(tmp_path))
    directory = tmp_path / "inventories" / name
    shutil.copytree(TOP / "inventories" / name, directory)
    machines = ("cp-1", "cp-2", "cp-3", "worker-1", "worker-2")
    vagrants = [tmp_path / f".vagrant/machines/{machine}/virtualbox/private_key" for machine in machines]
    for key in (directory / "id_ed25519", tmp_path / ".ssh/id_ed25519", *vagrants):
        keys.ensure(key, name)
    return load(directory / "cluster.yaml")


def test_no_inventory_is_forgotten() -> None:
    assert sorted(path.parent.name for path in (TOP / "inventories").glob("*/cluster.yaml")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_inventories_are_valid(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert loaded(name, tmp_path, monkeypatch).name == name


@pytest.mark.parametrize(("name", "shape"), [("lab-single", Shape(1, 2)), ("lab-ha", Shape(3, 2))])
def test_lab_inventories_are_taken_up_by_lab_up(name: str, shape: Shape) -> None:
    clusterfile.network_of(TOP / "inventories" / name / "cluster.yaml", name, shape)
