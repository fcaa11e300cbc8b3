"""`pip install .` gives a command that works: the wheel, installed away from the checkout, finds everything it needs."""

from __future__ import annotations

import email
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from provisioner import __version__

ROOT = Path(__file__).parents[2]
# directory in the checkout -> its place in the wheel
CARRIED = {
    "provisioner": "provisioner",
    **{name: f"provisioner/_share/{name}" for name in ("playbooks", "roles", "plugins", "ansible.cfg", "versions.yml")},
    # pip puts it beside the bin directory, where man(1) looks
    "man": f"provisioner-{__version__}.data/data/share/man",
}


def run(command: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        command, cwd=cwd, env={**_clean(), **environment}, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _clean() -> dict[str, str]:
    """The environment without what would let the checkout shine through."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "ANSIBLE_", "PROVISIONER_"))}


def carried() -> dict[str, Path]:
    """Every file that a wheel must hold, by its path there."""
    found = {}
    for source, target in CARRIED.items():
        path = ROOT / source
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                found[target if file == path else f"{target}/{file.relative_to(path)}"] = file
    return found


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the source distribution of this checkout."""
    directory = tmp_path_factory.mktemp("dist")
    run([sys.executable, "-m", "hatchling", "build", "-d", directory], ROOT)
    (wheel,), (source,) = directory.glob("*.whl"), directory.glob("*.tar.gz")
    return wheel, source


@pytest.fixture(scope="session")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel in it; the packages it depends on are those of this run's environment."""
    directory = tmp_path_factory.mktemp("installed") / "venv"
    run([sys.executable, "-m", "venv", "--without-pip", directory], directory.parent)
    uv = Path(sys.executable).with_name("uv")
    run([uv, "pip", "install", "--offline", "--no-deps", "--no-index", "--python", directory / "bin" / "python", built[0]], ROOT)
    (site,) = directory.glob("lib/python*/site-packages")
    # a path line only: .pth files over there, the one of an editable installation among them, are not read
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return directory


def test_the_wheel_holds_every_file_and_no_other(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        expected = carried()
        assert names == expected.keys()
        different = [name for name, file in expected.items() if wheel.read(name) != file.read_bytes()]
        assert different == []


def test_the_metadata_names_licence_and_command(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        files = {name.partition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
        metadata = email.message_from_bytes(wheel.read(files["METADATA"]))
        commands = wheel.read(files["entry_points.txt"]).decode()
        licence = wheel.read(files["licenses/LICENSE"]).decode()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence
    assert "provisioner = provisioner.cli:main" in commands
    assert metadata["Requires-Python"] == ">=3.11"
    assert str(metadata.get_payload()).lstrip().startswith("# provisioner"), "the README is the long description"


def test_a_wheel_made_from_the_source_distribution_is_the_same(built: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, source = built
    run(["tar", "--extract", "--file", source, "--directory", tmp_path], ROOT)
    (unpacked,) = tmp_path.iterdir()
    assert {"LICENSE", "README.md", "Makefile", "requirements.lock", "tests"} <= {path.name for path in unpacked.iterdir()}
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path / "again"], unpacked)
    (again,) = (tmp_path / "again").glob("*.whl")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert set(first.namelist()) == set(second.namelist())


def test_the_installed_command_finds_its_playbooks_roles_and_data(installed: Path, tmp_path: Path) -> None:
    script = (
        "import json; from provisioner import objects, share; from provisioner.artifacts import gobuild;"
        "print(json.dumps([str(p) for p in (share.ANSIBLE_CFG, share.PLAYBOOKS / 'site.yml', share.ROLES / 'etcd', share.VERSIONS,"
        " objects.MANIFESTS, gobuild.KEPT)]))"
    )
    paths = [Path(path) for path in json.loads(run([installed / "bin" / "python", "-c", script], tmp_path))]
    assert [path for path in paths if not path.exists()] == []
    assert [path for path in paths if not path.is_relative_to(installed)] == []


def test_the_installed_command_works(installed: Path, tmp_path: Path) -> None:
    command = installed / "bin" / "provisioner"
    assert run([command, "--version"], tmp_path).startswith("provisioner ")
    run([command, "init", ".", "--preset", "ha"], tmp_path)
    assert "OK" in run([command, "validate"], tmp_path)
    assert "1.36.3" in run([command, "artifacts", "list"], tmp_path)


def test_ansible_accepts_the_installed_playbooks(installed: Path, tmp_path: Path) -> None:
    (share,) = installed.glob("lib/python*/site-packages/provisioner/_share")
    for playbook in sorted((share / "playbooks").glob("*.yml")):
        shown = run(
            [Path(sys.executable).with_name("ansible-playbook"), "--syntax-check", "-i", "one,", playbook],
            tmp_path,
            ANSIBLE_CONFIG=str(share / "ansible.cfg"),
            ANSIBLE_HOME=str(tmp_path / "ansible"),
            ANSIBLE_LOCALHOST_WARNING="false",
        )
        assert f"playbook: {playbook}" in shown


def test_what_is_installed_fits_together() -> None:
    run([Path(sys.executable).with_name("uv"), "pip", "check", "--python", sys.executable], ROOT)
