"""``artifacts lock``: fetches or computes the sums that the lock does not have, and writes them into versions.yml in place.

A sum of an official file is taken from where its project publishes it; a sum of a build is what two builds agree on, the second
one in another directory with an empty Go cache.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from provisioner.artifacts import registry
from provisioner.artifacts.cache import Cache, digest
from provisioner.artifacts.download import Downloader, DownloadFailed
from provisioner.artifacts.gobuild import Job, build, prepare_module
from provisioner.artifacts.lock import IMAGE_KEY, Arch, Lock, parse_lock
from provisioner.artifacts.progress import Progress
from provisioner.artifacts.recipes import RECIPES
from provisioner.artifacts.sources.modules import job_for
from provisioner.artifacts.toolchain import Go, find_go
from provisioner.errors import ArtifactError, ProvisionerError
from provisioner.workspace import write_atomic

SumPath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One sum of the lock. ``source`` is ``official`` or ``modules``; ``file`` its key there."""

    component: str
    version: str
    source: str
    file: str
    arch: Arch
    sum: str | None

    @property
    def path(self) -> SumPath:
        """Its keys in versions.yml."""
        return ("components", self.component, "versions", self.version, self.source, self.file, self.arch)

    def __str__(self) -> str:
        return f"{self.component} {self.version} {self.source} {self.file} {self.arch}"


def rows(lock: Lock) -> Iterator[Row]:
    """Every sum of the lock, known or not, in the file's order."""
    for component, about in lock.components.items():
        for version, release in about.versions.items():
            for file, sums in release.official.items():
                for arch, value in sums.items():
                    yield Row(component, version, "official", file, arch, value)
            for file, built in release.modules.items():
                for arch, value in built.items():
                    yield Row(component, version, "modules", file, arch, value)


@dataclass(frozen=True, slots=True)
class Found:
    """What `artifacts lock` came back with: the sums to write, and why others are still unknown."""

    sums: dict[SumPath, str]
    problems: tuple[str, ...]


def fetch_official(lock: Lock, wanted: Sequence[Row], downloader: Downloader) -> Found:
    """Sums of official files, from where their projects publish them."""
    sums: dict[SumPath, str] = {}
    problems: list[str] = []
    for row in wanted:
        try:
            sums[row.path] = _image_digest(lock, row, downloader) if row.file == IMAGE_KEY else _published(lock, row, downloader)
        except ProvisionerError as error:
            problems.append(f"{row}: {error.message}")
    return Found(sums, tuple(problems))


def _published(lock: Lock, row: Row, downloader: Downloader) -> str:
    file = lock.component(row.component).files[row.file]
    url = file.url.format(version=row.version, arch=row.arch)
    if file.sum_url is None:
        raise ArtifactError("its project publishes no sums")
    at = file.sum_url.format(version=row.version, arch=row.arch, url=url)
    return parse_sums(downloader.get(at).body, url.rpartition("/")[2], at)


def parse_sums(body: bytes, name: str, url: str) -> str:
    """The sum of a file in a list as sha256sum writes it, or in a file that is nothing but the sum.

    Raises:
        DownloadFailed: the list has none for that name.
    """
    for line in body.decode(errors="replace").splitlines():
        fields = line.split()
        if not fields or not re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{128}", fields[0]):
            continue
        if len(fields) == 1 or fields[-1].lstrip("*").rpartition("/")[2] == name:
            return f"{'sha256' if len(fields[0]) == 64 else 'sha512'}:{fields[0]}"
    raise DownloadFailed(f"{url}: no sum of {name} in it")


def _image_digest(lock: Lock, row: Row, downloader: Downloader) -> str:
    image = (lock.component(row.component).image or "").format(version=row.version)
    reference = registry.Reference.parse(image)
    url = reference.url("manifests", reference.tag)
    answer = downloader.get(url, headers=registry.authorised(downloader, url))
    own = f"sha256:{hashlib.sha256(answer.body).hexdigest()}"
    return registry.platform_digest(answer.body, own, row.arch)


def compute_builds(
    lock: Lock, wanted: Sequence[Row], cache: Cache, downloader: Downloader, progress: Progress, *, proof: bool
) -> Found:
    """Sums of builds. What was built is in the cache afterwards.

    Args:
        lock: the lock so far.
        wanted: rows of ``modules``.
        cache: takes what is built.
        downloader: fetches Go, where it is not here.
        progress: told of the builds.
        proof: build a second time, elsewhere and with an empty Go cache, and compare.
    """
    sums: dict[SumPath, str] = {}
    problems: list[str] = []
    batches: dict[tuple[str, str, Arch], list[Row]] = {}
    for row in wanted:
        batches.setdefault((row.component, row.version, row.arch), []).append(row)
    for (component, version, arch), batch in batches.items():
        if component not in RECIPES:
            problems.append(f"{component}: there is no recipe to build it from modules")
            continue
        job = job_for(lock, component, version, arch)
        try:
            go = find_go(lock.go, cache, downloader, progress)
            keep_module_files(job, go, cache)
            built = _build_once(job, batch, go, cache, progress)
            if proof:
                _prove(job, built, go, cache=cache, progress=progress)
        except ArtifactError as error:
            problems.append("\n".join((f"{job}: {error.message}", *error.details, *((error.hint,) if error.hint else ()))))
            continue
        sums.update({row.path: f"sha256:{built[row.file]}" for row in batch})
    return Found(sums, tuple(problems))


def keep_module_files(job: Job, go: Go, cache: Cache) -> None:
    """Make the go.mod and go.sum of a component where none are kept yet.

    Raises:
        ArtifactError: the module proxy does not answer, or the program's own directory cannot be written.
    """
    if (job.kept / "go.mod").is_file():
        return
    with cache.temporary() as work:
        source = work / "source"
        source.mkdir()
        prepare_module(job, go, source)
        try:
            job.kept.mkdir(parents=True, exist_ok=True)
            for name in ("go.sum", "go.mod"):
                shutil.copyfile(source / name, job.kept / name)
        except PermissionError as error:
            raise ArtifactError(
                f"{job.kept}: cannot be written: {error.strerror}", hint="run `artifacts lock` in a checkout of your own"
            ) from None


def _build_once(job: Job, batch: Sequence[Row], go: Go, cache: Cache, progress: Progress) -> dict[str, str]:
    progress.start(str(job), f"{job}: building from Go modules", None)
    try:
        with cache.exclusive(f"build {job}", lambda: None), cache.temporary() as work:
            built = build(job, [row.file for row in batch], go, work)
            return {name: cache.add(path) for name, path in built.items()}
    finally:
        progress.finish(str(job))


def _prove(job: Job, built: dict[str, str], go: Go, *, cache: Cache, progress: Progress) -> None:
    key = f"{job} again"
    progress.start(key, f"{job}: building again, from nothing, to compare", None)
    try:
        with cache.temporary() as work:
            (work / "second").mkdir()
            fresh = Go(go.command, {**go.environment, "GOCACHE": str(work / "go-cache")})
            again = {name: digest(path) for name, path in build(job, list(built), fresh, work / "second").items()}
    finally:
        progress.finish(key)
    if differing := sorted(name for name in built if again[name] != built[name]):
        raise ArtifactError(f"two builds differ in {', '.join(differing)}: no sum is noted", hint="this is a bug of the recipe")


def write_sums(path: Path, sums: dict[SumPath, str]) -> None:
    """Write sums into versions.yml; comments and order stay.

    Raises:
        ArtifactError: the file cannot be written.
        BadInput: what would be written is no lock.
    """
    text = replace_scalars(path.read_text(encoding="utf-8"), sums)
    parse_lock(text, name=str(path))
    try:
        write_atomic(path, text, mode=0o644)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written: {error.strerror}", hint="copy it, and give the copy with --lock") from None


def replace_scalars(text: str, values: dict[SumPath, str]) -> str:
    """YAML text with the scalars at some key paths replaced, and everything else as it was.

    Raises:
        KeyError: no scalar is at a path.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    edits: list[tuple[int, int, str]] = []
    for path, value in values.items():
        node = root
        for key in path:
            children = node.value if isinstance(node, yaml.MappingNode) else []
            node = next((child for name, child in children if name.value == key), None)
        if not isinstance(node, yaml.ScalarNode):
            raise KeyError(".".join(path))
        edits.append((node.start_mark.index, node.end_mark.index, value))
    for start, end, value in sorted(edits, reverse=True):
        text = text[:start] + value + text[end:]
    return text
