"""What goes to a machine in one piece: the files it lacks, one after the other, compressed where it can unpack them.

A bundle is the plain concatenation of its files; the machine knows their sizes and sums. Each file's zstd frames are kept
in the cache beside the blob, so that compressing is paid for once, and a bundle is made by copying.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import zstandard

from provisioner.artifacts.cache import Cache

Codec = Literal["zstd", "none"]
# Level 3 takes 3 s for a control plane's 900 MB, once; it leaves about a quarter of the bytes, as higher levels nearly do.
LEVEL = 3


def compressed(cache: Cache, sha256: str) -> Path:
    """The zstd form of a blob, made where it is missing or was touched. The machine checks the sum of what it unpacks.

    Raises:
        ArtifactError: the cache's disk is full, or cannot be written.
    """
    path = cache.root / "zstd" / sha256[:2] / f"{sha256}.zst"
    if not cache.unchanged(path.name, path):
        with cache.guarded(), cache.temporary() as work:
            target = work / path.name
            with cache.blob(sha256).open("rb") as source, target.open("wb") as sink:
                zstandard.ZstdCompressor(level=LEVEL, threads=-1).copy_stream(source, sink)
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            target.replace(path)
        cache.note(path.name, path)
    return path


def write(digests: Sequence[str], directory: Path, *, codec: Codec, cache: Cache) -> Path:
    """Write the bundle of these blobs, in this order, and return its path; one that is there already is used as it is.

    Raises:
        ArtifactError: the disk is full, or cannot be written.
    """
    key = hashlib.sha256(" ".join((codec, *digests)).encode()).hexdigest()[:32]
    path = directory / f"{key}.{codec}"
    if path.exists():
        return path
    parts = [compressed(cache, digest) if codec == "zstd" else cache.blob(digest) for digest in digests]
    with cache.guarded():
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_suffix(".part")
        with temporary.open("wb") as sink:
            for part in parts:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, sink, 1 << 20)
        temporary.replace(path)
    return path
