"""Where artifacts come from: ``mirror``, ``release`` and ``modules``, behind one interface, :class:`Source`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from provisioner.artifacts.cache import Cache, CachedFile
from provisioner.artifacts.lock import Lock
from provisioner.artifacts.progress import Progress
from provisioner.artifacts.wants import Want


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a source does not have an artifact, and what would help."""

    reason: str
    remedy: str = ""
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Context:
    """What every source works with."""

    lock: Lock
    cache: Cache
    progress: Progress


@dataclass(slots=True)
class Outcome:
    """What a source made of a list of wants: the files it has, and its reasons for the others."""

    files: dict[Want, CachedFile] = field(default_factory=dict)
    refused: dict[Want, Refusal] = field(default_factory=dict)


class Source(Protocol):
    """One place artifacts come from."""

    @property
    def name(self) -> str:
        """As in cluster.yaml: ``mirror``, ``release`` or ``modules``."""

    def cached(self, want: Want, *, full: bool = False) -> CachedFile | None:
        """The file, where the cache has this source's locked bytes of it already. No network, no build."""

    def fetch(self, wants: Sequence[Want]) -> Outcome:
        """Get the files into the cache. Expected failures are refusals, not exceptions.

        Raises:
            ArtifactError: what stops every source (the cache's disk is full).
        """


def in_cache(context: Context, source: str, want: Want, sha256: str, *, full: bool = False) -> CachedFile | None:
    """A file of the cache by its sum."""
    path = context.cache.find(sha256, context.progress.warn, full=full)
    if path is None:
        return None
    return CachedFile(name=want.name, path=path, sha256=sha256, size=path.stat().st_size, source=source)


def waiting(progress: Progress, what: str) -> Callable[[], None]:
    """A line for the user when another run works on the same thing."""
    return lambda: progress.note(f"{what}: another run is at it; waiting for it")
