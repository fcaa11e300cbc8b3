"""`artifacts lock`: sums fetched from their projects, written into versions.yml in place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from provisioner.artifacts.download import Downloader, DownloadFailed
from provisioner.artifacts.lock import default_path, load_lock
from provisioner.artifacts.relock import fetch_official, parse_sums, replace_scalars, rows, write_sums
from provisioner.cli.artifacts import app
from provisioner.errors import ArtifactError, BadInput

from .conftest import KUBELET_PATH, PATIENT, Notes, Site, make_lock

A, B = "a" * 64, "b" * 128


def test_only_the_sums_change_in_the_file(tmp_path: Path) -> None:
    before = default_path().read_text()
    path = tmp_path / "versions.yml"
    path.write_text(before)
    lock = load_lock(path)
    row = next(row for row in rows(lock) if row.sum is None)
    write_sums(path, {row.path: f"sha256:{A}"})
    changed = [(old, new) for old, new in zip(before.splitlines(), path.read_text().splitlines(), strict=True) if old != new]
    assert len(changed) == 1
    assert changed[0][1] == changed[0][0].replace("null", f"sha256:{A}")
    assert {r.path: r.sum for r in rows(load_lock(path))} == {**{r.path: r.sum for r in rows(lock)}, row.path: f"sha256:{A}"}


def test_a_sum_that_would_break_the_lock_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "versions.yml"
    path.write_text(default_path().read_text())
    row = next(rows(load_lock(path)))
    with pytest.raises(BadInput, match="not a lock"):
        write_sums(path, {row.path: "sha256:short"})
    assert path.read_text() == default_path().read_text()


def test_replacing_needs_a_scalar_at_the_path() -> None:
    assert replace_scalars("a: {b: null} # why\n", {("a", "b"): "1"}) == "a: {b: 1} # why\n"
    for path in (("a",), ("a", "c"), ("x", "b"), ("a", "b", "c")):
        with pytest.raises(KeyError):
            replace_scalars("a: {b: null}\n", {path: "1"})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (A, f"sha256:{A}"),
        (f"{A}\n", f"sha256:{A}"),
        (f"{B}", f"sha512:{B}"),
        (f"{'0' * 64}  other\n{A}  file.tar.gz\n", f"sha256:{A}"),
        (f"{A} *file.tar.gz", f"sha256:{A}"),
        (f"{A}  ./dist/file.tar.gz", f"sha256:{A}"),
    ],
)
def test_sums_are_read_as_projects_write_them(text: str, found: str) -> None:
    assert parse_sums(text.encode(), "file.tar.gz", "https://example.com") == found


@pytest.mark.parametrize("text", ["", "not here", f"{A}  file.tar.gz.sig", "<html>", f"{A[:-1]}  file.tar.gz", "\xff"])
def test_what_is_no_sum_is_refused(text: str) -> None:
    with pytest.raises(DownloadFailed, match=r"no sum of file\.tar\.gz"):
        parse_sums(text.encode("latin-1"), "file.tar.gz", "https://example.com")


def test_published_sums_are_fetched(official: Site) -> None:
    official.files[f"{KUBELET_PATH}.sha256"] = A.encode()
    lock = make_lock()
    wanted = [row for row in rows(lock) if row.file in {"kubelet", "runc"} and row.source == "official"]
    with Downloader(Notes(), PATIENT) as downloader:
        found = fetch_official(lock, wanted, downloader)
    assert found.sums == {wanted[0].path: f"sha256:{A}"}
    assert len(found.problems) == 2
    assert "arm64/kubelet.sha256: HTTP 404" in found.problems[0]
    assert "its project publishes no sums" in found.problems[1]


def test_the_command_writes_what_it_found_and_fails_for_the_rest(official: Site, tmp_path: Path) -> None:
    path = tmp_path / "versions.yml"
    path.write_text(default_path().read_text())
    base = "dl.k8s.io/v1.36.3/kubernetes-server-linux"
    official.files[f"{base}-amd64.tar.gz.sha512"] = B.encode()
    arguments = ["lock", "kubernetes", "--version", "1.36.3", "--source", "release", "--lock", str(path), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ArtifactError)
    assert "still unknown" in result.exception.message
    document = json.loads(result.stdout)
    assert document["changed"] == {"kubernetes.versions.1.36.3.official.server.amd64": f"sha512:{B}"}
    assert load_lock(path).release("kubernetes", "1.36.3").official["server"]["amd64"] == f"sha512:{B}"
    assert official.asked == [(f"{base}-amd64.tar.gz.sha512", ""), (f"{base}-arm64.tar.gz.sha512", "")]
    official.files[f"{base}-arm64.tar.gz.sha512"] = B.encode()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def test_an_unknown_component_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["lock", "kubernets"])
    assert isinstance(result.exception, BadInput)
    assert "kubernets: not a component" in result.exception.message
