"""`provisioner artifacts`: what the cache and the lock hold, and how they get it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from provisioner.cli import complete
from provisioner.cli.common import ClusterOption, JsonOption, find_cluster_file, open_cluster, output, print_json
from provisioner.errors import ArtifactError, BadInput
from provisioner.terminal import wide

if TYPE_CHECKING:
    from provisioner.artifacts import Arch, CachedFile, Lock, Want
    from provisioner.config import Artifacts as ArtifactSettings
    from provisioner.config import HttpProxy

app = typer.Typer(help="Binaries and images: fetch or build them, check them, complete the lock.", no_args_is_help=True)

SourceName = Literal["mirror", "release", "modules"]


# typer takes no list of literals, only one of an enumeration
class _Arch(StrEnum):
    AMD64 = "amd64"
    ARM64 = "arm64"


class _Source(StrEnum):
    MIRROR = "mirror"
    RELEASE = "release"
    MODULES = "modules"


LockOption = Annotated[Path | None, typer.Option("--lock", help="Another versions.yml.", show_default=False)]
ArchOption = Annotated[list[_Arch] | None, typer.Option("--arch", help="amd64 or arm64; may be given twice. [default: amd64]")]
VersionOption = Annotated[
    str | None,
    typer.Option(
        "--kubernetes", autocompletion=complete.versions, help="Kubernetes version; default: the cluster's, else the lock's first."
    ),
]
SourceOption = Annotated[
    list[_Source] | None, typer.Option("--source", help="May be repeated: the order is the order they are tried in.")
]


def _arches(chosen: list[_Arch] | None) -> tuple[Arch, ...]:
    from provisioner.artifacts.lock import ARCHITECTURES  # noqa: PLC0415 - keeps `--help` quick

    return tuple(arch for arch in ARCHITECTURES if arch in chosen) if chosen else ("amd64",)


@dataclass(frozen=True, slots=True)
class _Scope:
    """The files that are meant, and how the cluster gets them."""

    wants: tuple[Want, ...]
    settings: ArtifactSettings
    proxy: HttpProxy


def _scope(lock: Lock, cluster: Path | None, kubernetes: str | None, arch: Arch) -> _Scope:
    """A cluster's files, or all that go with a Kubernetes version where there is no cluster."""
    from provisioner.artifacts import everything, wanted_for  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.config import Artifacts, HttpProxy  # noqa: PLC0415

    if cluster is None:
        try:
            find_cluster_file(None)
        except BadInput:
            return _Scope(everything(lock, kubernetes or lock.kubernetes_versions[0], arch), Artifacts(), HttpProxy())
    read, _ = open_cluster(cluster)
    wants = (
        everything(lock, kubernetes, arch, read)
        if kubernetes
        else wanted_for(read, lock, arch=arch, roles={role for node in read.nodes for role in node.roles})
    )
    return _Scope(wants, read.artifacts, read.http_proxy)


def _row(file: CachedFile, want: Want) -> dict[str, object]:
    return {
        "name": file.name,
        "component": want.component,
        "version": want.version,
        "arch": want.arch,
        "sha256": file.sha256,
        "size": file.size,
        "source": file.source,
        "path": str(file.path),
    }


def _print(rows: list[dict[str, object]], *, as_json: bool) -> None:
    if as_json:
        print_json(rows)
        return
    from rich.table import Table  # noqa: PLC0415 - keeps `--help` quick

    table = Table(box=None, pad_edge=False)
    for column in ("file", "version", "arch", "source", "MiB", "sha256"):
        table.add_column(column, justify="right" if column == "MiB" else "left", no_wrap=True)
    for row in rows:
        size = row["size"]
        mib = f"{size / 2**20:.1f}" if isinstance(size, int) else ""
        table.add_row(
            str(row["name"]), str(row["version"]), str(row["arch"]), str(row["source"]), mib, str(row["sha256"] or "")[:16]
        )
    wide().print(table)


@app.command("fetch")
def fetch(
    *,
    cluster: ClusterOption = None,
    kubernetes: VersionOption = None,
    arch: ArchOption = None,
    source: SourceOption = None,
    mirror: Annotated[str | None, typer.Option("--mirror", help="Directory or URL; default: the cluster's.")] = None,
    lock_file: LockOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring what a cluster needs into the cache: downloaded, or built from Go modules."""
    from provisioner.artifacts import ensure, load_lock  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.cli.bars import Bars  # noqa: PLC0415

    lock = load_lock(lock_file)
    rows: list[dict[str, object]] = []
    with Bars().shown() as live:
        for one in _arches(arch):
            scope = _scope(lock, cluster, kubernetes, one)
            found = ensure(
                scope.wants,
                lock,
                sources=source or scope.settings.sources,
                mirror=mirror or scope.settings.mirror,
                progress=live,
                proxy=scope.proxy,
            )
            rows += [_row(found[want.name], want) for want in scope.wants]
    _print(rows, as_json=as_json)


@app.command("list")
def show(
    *,
    cluster: ClusterOption = None,
    kubernetes: VersionOption = None,
    arch: ArchOption = None,
    lock_file: LockOption = None,
    as_json: JsonOption = False,
) -> None:
    """What a cluster needs, and what of it the cache has. Changes nothing."""
    from provisioner.artifacts import load_lock  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.artifacts.ensure import in_cache_of  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.cli.bars import Bars  # noqa: PLC0415

    lock = load_lock(lock_file)
    rows: list[dict[str, object]] = []
    live = Bars()
    for one in _arches(arch):
        scope = _scope(lock, cluster, kubernetes, one)
        found = in_cache_of(scope.wants, lock, sources=scope.settings.sources, mirror=scope.settings.mirror, progress=live)
        for want in scope.wants:
            if hit := found.get(want.name):
                rows.append(_row(hit, want))
            else:
                missing = {"name": want.name, "component": want.component, "version": want.version, "arch": one}
                rows.append({**missing, "sha256": None, "size": None, "source": "-", "path": None})
    _print(rows, as_json=as_json)


@app.command("verify")
def verify(*, as_json: JsonOption = False) -> None:
    """Hash every file of the cache. A damaged one is removed (the next run fetches it anew), and the exit code is 1."""
    from provisioner.artifacts import Cache  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.cli.bars import Bars  # noqa: PLC0415

    cache = Cache.open()
    live = Bars()
    damaged: list[str] = []
    sums = cache.blobs()
    with live.shown():
        live.start("verify", f"{len(sums)} files", None)
        for sha256 in sums:
            if cache.find(sha256, live.warn, full=True) is None:
                damaged.append(sha256)
        live.finish("verify")
    if as_json:
        print_json({"cache": str(cache.root), "files": len(sums), "damaged": damaged})
    elif not damaged:
        output.print(f"{cache.root}: {len(sums)} files, all as their sums say")
    if damaged:
        raise ArtifactError(
            f"{cache.root}: {len(damaged)} of {len(sums)} files were damaged and are removed",
            hint="the next `provisioner artifacts fetch` or `apply` brings them anew; a disk that does this again is failing",
        )


@app.command("lock")
def lock_sums(
    *,
    component: Annotated[
        list[str] | None, typer.Argument(autocompletion=complete.artifacts, help="Only these components (kubernetes, etcd, …).")
    ] = None,
    source: Annotated[
        Literal["release", "modules"], typer.Option("--source", help="Fetch published sums, or compute them by building.")
    ] = "release",
    arch: ArchOption = None,
    version: Annotated[str | None, typer.Option("--version", help="Only this version of the component.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Sums that are known, too.")] = False,
    proof: Annotated[bool, typer.Option(help="Build a second time, with an empty Go cache, and compare.")] = True,
    lock_file: LockOption = None,
    as_json: JsonOption = False,
) -> None:
    """Complete versions.yml: sums that are null there are fetched from their projects, or computed by two builds."""
    from provisioner.artifacts import Cache, load_lock  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.artifacts.download import Downloader  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.artifacts.lock import ARCHITECTURES, default_path  # noqa: PLC0415
    from provisioner.artifacts.relock import compute_builds, fetch_official, rows, write_sums  # noqa: PLC0415
    from provisioner.cli.bars import Bars  # noqa: PLC0415

    path = lock_file or default_path()
    lock = load_lock(path)
    for name in component or ():
        lock.component(name)
    wanted = [
        row
        for row in rows(lock)
        if row.source == ("official" if source == "release" else "modules")
        and row.arch in (arch or ARCHITECTURES)
        and (not component or row.component in component)
        and (version is None or row.version == version)
        and (force or row.sum is None)
    ]
    known = {row.path: row.sum for row in wanted}
    with Bars().shown() as live, Downloader(live) as downloader:
        if source == "release":
            found = fetch_official(lock, wanted, downloader)
        else:
            found = compute_builds(lock, wanted, Cache.open(), downloader, live, proof=proof)
    changed = {keys: value for keys, value in found.sums.items() if known[keys] != value}
    if changed:
        write_sums(path, changed)
    lines = {".".join(keys[1:]): value for keys, value in changed.items()}
    if as_json:
        print_json({"lock": str(path), "changed": lines, "unknown": list(found.problems)})
    else:
        for name, value in lines.items():
            output.print(f"{name}: {value}", markup=False)
        output.print(f"{path}: {len(changed)} sums written, {len(found.sums) - len(changed)} as they were")
    if found.problems:
        raise ArtifactError(
            f"{len(found.problems)} sums are still unknown",
            details=found.problems,
            hint="those files are refused from that source; the others are not affected",
        )
