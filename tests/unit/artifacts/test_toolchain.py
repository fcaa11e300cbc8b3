"""The source `modules`, as far as it goes without building: the pinned Go, the environment, what is missing."""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest

from provisioner.artifacts import Cache, Want, ensure, load_lock
from provisioner.artifacts.download import Downloader
from provisioner.artifacts.gobuild import build
from provisioner.artifacts.lock import Arch, GoToolchain
from provisioner.artifacts.recipes import RECIPES
from provisioner.artifacts.sources.modules import job_for
from provisioner.artifacts.toolchain import Go, environment, find_go, machine
from provisioner.errors import ArtifactError

from .conftest import QUICK, Notes, Site, sha256

FAKE_GO = """#!/bin/sh
case "$1 $2" in
    "env -json") echo '{"GOPROXY": "'"${GOPROXY}"'", "GOCACHE": "/var/go-cache", "GOMODCACHE": "/var/mod-cache", "GOSUMDB": ""}' ;;
    "env GOVERSION") echo "%s" ;;
    *) exit 1 ;;
esac
"""


def module() -> str:
    return f"golang.org/toolchain@v0.0.1-go1.26.8.linux-{machine()}"


def make_proxy(directory: Path, *, extra: str = "") -> tuple[Path, GoToolchain]:
    """A module proxy in a directory, as GOPROXY=file://… takes it, with a Go release that is a script."""
    path, _, version = module().partition("@")
    archive = directory / path / "@v" / f"{version}.zip"
    archive.parent.mkdir(parents=True)
    with zipfile.ZipFile(archive, "w") as files:
        files.writestr(f"{module()}/bin/go", FAKE_GO % "go1.26.8")
        files.writestr(f"{module()}/pkg/tool/linux/compile", "#!/bin/sh\n")
        files.writestr(f"{module()}/src/_go.mod", "module std\n")
        files.writestr(f"{module()}/VERSION", "go1.26.8\n")
        if extra:
            files.writestr(extra, "x")
    sums: dict[Arch, str] = {"amd64": f"sha256:{'0' * 64}", "arm64": f"sha256:{'0' * 64}"}
    return archive, GoToolchain(version="1.26.8", toolchain={**sums, machine(): f"sha256:{sha256(archive.read_bytes())}"})


@pytest.fixture
def no_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A PATH without Go, and with the few tools that the fake one needs; returns its first, empty directory."""
    (tmp_path / "path").mkdir()
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:{tmp_path / 'tools'}")
    monkeypatch.delenv("GOFLAGS", raising=False)
    return tmp_path / "path"


def find(pinned: GoToolchain, cache: Cache, notes: Notes) -> Go:
    with Downloader(notes, QUICK) as downloader:
        return find_go(pinned, cache, downloader, notes)


@pytest.mark.usefixtures("no_go")
def test_where_there_is_no_go_the_pinned_one_is_fetched_once(
    cache: Cache, notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive, pinned = make_proxy(tmp_path / "proxy")
    monkeypatch.setenv("GOPROXY", f"file://{tmp_path / 'nothing'},file://{tmp_path / 'proxy'},direct")
    go = find(pinned, cache, notes)
    home = go.command.parent.parent
    assert home.is_relative_to(cache.root)
    assert go.command.stat().st_mode & stat.S_IXUSR
    assert (home / "pkg/tool/linux/compile").stat().st_mode & stat.S_IXUSR
    assert (home / "src/go.mod").read_text() == "module std\n"
    assert go.environment["GOMODCACHE"] == "/var/mod-cache"
    archive.unlink()
    assert find(pinned, cache, notes).command == go.command


@pytest.mark.usefixtures("no_go")
def test_the_pinned_go_comes_over_http_too(
    site: Site, cache: Cache, notes: Notes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    archive, pinned = make_proxy(tmp_path / "proxy")
    path, _, version = module().partition("@")
    site.files[f"{path}/@v/{version}.zip"] = archive.read_bytes()
    monkeypatch.setenv("GOPROXY", site.url)
    assert find(pinned, cache, notes).command.is_file()
    assert len(site.asked) == 1


@pytest.mark.usefixtures("no_go")
def test_a_go_with_other_bytes_is_not_run(cache: Cache, notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, pinned = make_proxy(tmp_path / "proxy")
    archive.write_bytes(archive.read_bytes() + b"x")
    monkeypatch.setenv("GOPROXY", f"file://{tmp_path / 'proxy'}")
    with pytest.raises(ArtifactError, match="could not be fetched") as error:
        find(pinned, cache, notes)
    assert "and not the locked" in error.value.details[0]
    assert not (cache.root / "go").exists()


@pytest.mark.usefixtures("no_go")
def test_an_archive_that_would_write_elsewhere_is_refused(
    cache: Cache, notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pinned = make_proxy(tmp_path / "proxy", extra=f"{module()}/../../../escaped")
    monkeypatch.setenv("GOPROXY", f"file://{tmp_path / 'proxy'}")
    with pytest.raises(ArtifactError, match="is no path of"):
        find(pinned, cache, notes)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.usefixtures("no_go")
def test_without_go_and_without_a_proxy_the_remedy_is_told(cache: Cache, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = load_lock()
    monkeypatch.setenv("GOPROXY", "off")
    want = Want("crictl", "1.36.0", "crictl", machine())
    if lock.release("crictl", "1.36.0").modules["crictl"][machine()] is None:
        pytest.skip(f"the lock has no sum of crictl for {machine()}")
    with pytest.raises(ArtifactError) as error:
        ensure((want,), lock, sources=("modules",), cache=cache, progress=notes)
    text = "\n".join(error.value.details)
    assert "Go 1.26.8 is needed to build from modules" in text
    assert "$GOPROXY" in text


def test_another_go_on_path_is_passed_over(
    no_go: Path, cache: Cache, notes: Notes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, pinned = make_proxy(tmp_path / "proxy")
    monkeypatch.setenv("GOPROXY", f"file://{tmp_path / 'proxy'}")
    own = no_go / "go"
    own.write_text(FAKE_GO % "go1.22.1")
    own.chmod(0o755)
    assert find(pinned, cache, notes).command.is_relative_to(cache.root)
    own.write_text(FAKE_GO % "go1.26.8")
    assert find(pinned, cache, notes).command == own


def test_nothing_of_the_users_environment_can_change_bytes(no_go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (no_go / "go").write_text(FAKE_GO % "go1.26.8")
    (no_go / "go").chmod(0o755)
    hostile = {
        "GOFLAGS": "-race",
        "GOAMD64": "v3",
        "GOEXPERIMENT": "x",
        "CGO_CFLAGS": "-O0",
        "CGO_ENABLED": "1",
        "CC": "clang",
        "LD_PRELOAD": "/x.so",
        "LANG": "de_DE",
        "GOENV": "/home/me/env",
    }
    for name, value in hostile.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GOPROXY", "https://goproxy.example.com")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.com")
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ca.pem")
    given = environment(no_go / "go")
    assert not {value for name, value in hostile.items()} & set(given.values())
    assert given["GOPROXY"] == "https://goproxy.example.com"
    assert given["HTTPS_PROXY"] == "http://proxy.example.com"
    assert given["SSL_CERT_FILE"] == "/etc/ca.pem"
    assert given["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize(("component", "package"), [("runc", "libseccomp-dev"), ("pause", "libc6-dev")])
def test_a_missing_c_compiler_is_told_with_the_packages(no_go: Path, tmp_path: Path, component: str, package: str) -> None:
    lock = load_lock()
    job = job_for(lock, component, next(iter(lock.components[component].versions)), machine())
    (tmp_path / "work").mkdir()
    with pytest.raises(ArtifactError, match="gcc is not installed") as error:
        build(job, [RECIPES[component].packages[0][0]], Go(no_go / "go", {"PATH": str(no_go)}), tmp_path / "work")
    assert error.value.hint.startswith("apt-get install gcc libc6-dev")
    assert package in error.value.hint


def test_a_compiler_that_cannot_link_statically_is_told(no_go: Path, tmp_path: Path) -> None:
    (no_go / "gcc").write_text("#!/bin/sh\necho 'main.c: fatal error: seccomp.h: No such file' >&2\nexit 1\n")
    (no_go / "gcc").chmod(0o755)
    lock = load_lock()
    job = job_for(lock, "runc", "1.4.3", machine())
    (tmp_path / "work").mkdir()
    path = f"{no_go}:{tmp_path / 'tools'}"
    with pytest.raises(ArtifactError, match="cannot make a static program with libc and seccomp") as error:
        build(job, ["runc"], Go(no_go / "go", {"PATH": path}), tmp_path / "work")
    assert "seccomp.h" in error.value.details[0]
