"""``ensure``: every wanted file in the cache, checked, from the first source that has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from provisioner.artifacts.cache import Cache, CachedFile
from provisioner.artifacts.download import Downloader, Patience
from provisioner.artifacts.lock import Lock
from provisioner.artifacts.progress import Progress, Silent
from provisioner.artifacts.sources import Context, Refusal, Source
from provisioner.artifacts.sources.modules import Modules
from provisioner.artifacts.sources.official import Official, mirror_of, official_sites
from provisioner.artifacts.wants import Want
from provisioner.config import HttpProxy
from provisioner.errors import ArtifactError, BadInput


def ensure(
    wants: Iterable[Want],
    lock: Lock,
    *,
    sources: Sequence[str],
    mirror: str | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
    proxy: HttpProxy | None = None,
) -> dict[str, CachedFile]:
    """Have every wanted file in the cache, and return them by name ("kubelet", "cni/bridge", "images/pause.tar").

    What the cache has already is taken first, whichever of the sources it is from, so that bytes do not change from one run to
    the next; the rest is asked of one source after the other. Warm, this costs one look at each file and hashes nothing.

    Args:
        wants: files of one architecture.
        lock: the sums.
        sources: ``mirror``, ``release``, ``modules``, in the order they are tried.
        mirror: directory or http(s) URL; without it the source ``mirror`` is passed over.
        cache: default: :meth:`Cache.open`.
        progress: told of downloads and builds; default: nothing is told.
        patience: of downloads.
        proxy: cluster.yaml's ``httpProxy``; default: the environment's.

    Raises:
        ArtifactError: some file could not be had from any source; the details have each source's reason and remedy.
    """
    wanted = tuple(wants)
    if len({want.arch for want in wanted}) > 1:
        raise ValueError("ensure() takes the files of one architecture at a time: its keys are the files' names")
    context = Context(lock=lock, cache=cache or Cache.open(), progress=progress or Silent())
    with Downloader(context.progress, patience or Patience(), proxy or HttpProxy()) as downloader:
        tried = open_sources(context, downloader, sources, mirror)
        found = _cached(wanted, tried)
        refused: dict[Want, dict[str, Refusal]] = {want: {} for want in wanted if want not in found}
        for source in tried:
            missing = [want for want in refused if want not in found]
            if not missing:
                break
            outcome = source.fetch(missing)
            found.update(outcome.files)
            for want, refusal in outcome.refused.items():
                refused[want][source.name] = refusal
    if lacking := {want: reasons for want, reasons in refused.items() if want not in found}:
        raise _failure(lacking)
    return {want.name: found[want] for want in wanted}


def in_cache_of(
    wants: Iterable[Want],
    lock: Lock,
    *,
    sources: Sequence[str],
    mirror: str | None = None,
    cache: Cache | None = None,
    progress: Progress | None = None,
) -> dict[str, CachedFile]:
    """What of the wanted files the cache has already, by name; nothing is fetched or built."""
    context = Context(lock=lock, cache=cache or Cache.open(), progress=progress or Silent())
    with Downloader(context.progress) as downloader:
        found = _cached(tuple(wants), open_sources(context, downloader, sources, mirror))
    return {want.name: file for want, file in found.items()}


def _cached(wants: Sequence[Want], sources: Sequence[Source]) -> dict[Want, CachedFile]:
    found: dict[Want, CachedFile] = {}
    for want in wants:
        for source in sources:
            if hit := source.cached(want):
                found[want] = hit
                break
    return found


def open_sources(context: Context, downloader: Downloader, names: Sequence[str], mirror: str | None) -> tuple[Source, ...]:
    """The sources by their names in cluster.yaml, in that order.

    Raises:
        BadInput: an unknown name; no source left, because ``mirror`` stands alone and has no address.
    """
    opened: list[Source] = []
    for name in names:
        if name == "mirror":
            if mirror:
                opened.append(Official(context, "mirror", mirror_of(mirror, downloader, context.cache), downloader))
        elif name == "release":
            opened.append(Official(context, "release", official_sites(downloader, context.cache), downloader))
        elif name == "modules":
            opened.append(Modules(context, downloader))
        else:
            raise BadInput(f"{name}: no source of artifacts", hint="sources are mirror, release and modules")
    if not opened:
        raise BadInput("the only source of artifacts is `mirror`, and it has no address", hint="set `artifacts.mirror`")
    return tuple(opened)


def _failure(lacking: dict[Want, dict[str, Refusal]]) -> ArtifactError:
    """One error with each source's reason, files with the same fate together."""
    fates: dict[tuple[tuple[str, Refusal], ...], list[Want]] = {}
    for want, reasons in lacking.items():
        fates.setdefault(tuple(sorted(reasons.items())), []).append(want)
    lines: list[str] = []
    for fate, wants in fates.items():
        lines.append(", ".join(str(want) for want in wants))
        for source, refusal in fate:
            lines.append(f"  {source}: {refusal.reason}")
            lines.extend(f"    {detail}" for detail in refusal.details)
            if refusal.remedy:
                lines.append(f"    remedy: {refusal.remedy}")
    count = len(lacking)
    return ArtifactError(
        f"{count} file{'' if count == 1 else 's'} could not be had from any source",
        details=tuple(lines),
        hint="cure one of the reasons above and run the command again: what arrived is kept",
    )
