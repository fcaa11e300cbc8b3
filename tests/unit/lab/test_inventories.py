"""The inventories shipped with the project are valid, and the Vagrantfile agrees with its own."""

from __future__ import annotations

import re
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
    for key in (directory / "id_ed25519", tmp_path / "workspace/vagrant/id_ed25519", tmp_path / ".ssh/id_ed25519"):
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


def test_the_vagrantfile_makes_the_machines_of_its_inventory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (TOP / "Vagrantfile").read_text()
    counts = {prefix: int(count) for prefix, count in re.findall(r'ENV\.fetch\("(CONTROL_PLANES|WORKERS)", "(\d+)"\)', text)}
    bases = {
        kind: (network, int(base)) for kind, network, base in re.findall(r'\["(\w+)-#\{n}", "([\d.]+)\.#\{(\d+) \+ n}"]', text)
    }
    assert set(bases) == {"cp", "worker"}
    expected = [
        (f"{kind}-{n}", f"{network}.{base + n}")
        for kind, (network, base) in bases.items()
        for n in range(1, counts["CONTROL_PLANES" if kind == "cp" else "WORKERS"] + 1)
    ]
    cluster = loaded("vagrant", tmp_path, monkeypatch)
    assert [(node.name, node.address) for node in cluster.nodes] == expected
