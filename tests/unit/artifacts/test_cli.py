"""`provisioner artifacts`: parse, call, print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from provisioner.artifacts import Cache, Lock, Want, ensure, everything, load_lock
from provisioner.artifacts.lock import default_path
from provisioner.artifacts.relock import write_sums
from provisioner.cli.artifacts import app
from provisioner.errors import ArtifactError, BadInput

from .conftest import sha256

CLUSTER = """
apiVersion: provisioner/v1
name: test
nodes: [{name: m1, address: 10.77.0.1, roles: [control-plane, etcd, worker]}]
artifacts: {sources: [modules]}
"""

FILES = len(everything(load_lock(), "1.36.3", "amd64"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a cluster of one machine, a lock of tiny builds that are in a cache already, and that cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROVISIONER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    (tmp_path / "versions.yml").write_text(default_path().read_text())
    sums: dict[tuple[str, ...], str] = {}
    for want in everything(load_lock(), "1.36.3", "amd64"):
        with Cache.open().temporary() as work:
            (work / "file").write_text(want.name)
            Cache.open().add(work / "file")
        keys = ("components", want.component, "versions", want.version, "modules", want.name, "amd64")
        sums[keys] = f"sha256:{sha256(want.name.encode())}"
    write_sums(tmp_path / "versions.yml", sums)
    return tmp_path


def test_of_another_version_the_clusters_addons_are_shown_too(workplace: Path) -> None:
    def shown() -> set[str]:
        result = run("list", "--lock", "versions.yml", "--kubernetes", "1.35.4", "--json")
        assert result.exit_code == 0, result.exception
        return {row["name"] for row in json.loads(result.stdout)}

    assert "images/metrics-server.tar" not in shown()
    (workplace / "cluster.yaml").write_text(f"{CLUSTER}addons: {{metricsServer: true, localPath: true}}\n")
    assert {"images/metrics-server.tar", "images/local-path-provisioner.tar", "etcd"} < shown()


@pytest.mark.parametrize("command", ["fetch", "list"])
def test_the_clusters_files_are_shown(workplace: Path, command: str) -> None:
    result = run(command, "--lock", "versions.yml", "--json")
    assert result.exit_code == 0, result.exception
    rows = json.loads(result.stdout)
    assert {"etcd", "kubelet", "flanneld", "images/pause.tar"} < {row["name"] for row in rows}
    assert {(row["sha256"] == sha256(row["name"].encode()), row["source"]) for row in rows} == {(True, "modules")}
    assert Path(rows[0]["path"]).is_relative_to(workplace / "cache")
    table = run(command, "--lock", "versions.yml")
    assert sha256(b"etcdutl")[:16] in table.stdout


def test_list_shows_what_is_missing_and_changes_nothing(workplace: Path) -> None:
    cache = Cache.open()
    cache.blob(sha256(b"etcd")).unlink()
    before = sorted(workplace.rglob("*"))
    rows = json.loads(run("list", "--lock", "versions.yml", "--json").stdout)
    assert next((row["name"], row["sha256"]) for row in rows) == ("etcd", None)
    assert sorted(workplace.rglob("*")) == before


@pytest.mark.usefixtures("workplace")
def test_verify_hashes_everything_and_fails_once_for_damage() -> None:
    assert json.loads(run("verify", "--json").stdout)["files"] == FILES
    path = Cache.open().blob(sha256(b"etcdctl"))
    path.chmod(0o644)
    path.write_text("etcdCTL")
    result = run("verify", "--json")
    assert isinstance(result.exception, ArtifactError)
    assert f"1 of {FILES} files were damaged" in result.exception.message
    assert json.loads(result.stdout)["damaged"] == [sha256(b"etcdctl")]
    assert json.loads(run("verify", "--json").stdout) == {"cache": str(Cache.open().root), "files": FILES - 1, "damaged": []}


@pytest.mark.usefixtures("workplace")
def test_unknown_versions_and_files_are_bad_input() -> None:
    for arguments in (("list", "--kubernetes", "9.9.9"), ("list", "--lock", "gone.yml"), ("fetch", "--cluster", "gone")):
        result = run(*arguments)
        assert isinstance(result.exception, BadInput), arguments


def test_files_of_two_architectures_at_once_are_a_mistake(lock: Lock, cache: Cache) -> None:
    wants = (Want("etcd", "3.6.14", "etcd", "amd64"), Want("etcd", "3.6.14", "etcd", "arm64"))
    with pytest.raises(ValueError, match="one architecture at a time"):
        ensure(wants, lock, sources=("modules",), cache=cache)
