"""What goes to a machine in one piece: made once, made anew when damaged, and in the order that the machine is told."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest
import zstandard

from provisioner.artifacts import Cache, bundle
from provisioner.desired import Artifact, Shipment, load_shipment, save_shipment

CONTENTS = (os.urandom(100_000), b"text " * 50_000, b"")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def digests(cache: Cache, tmp_path: Path) -> list[str]:
    """Blobs in the cache."""
    found = []
    for content in CONTENTS:
        sha256 = hashlib.sha256(content).hexdigest()
        path = cache.blob(sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        found.append(sha256)
    return found


def unpacked(path: Path) -> bytes:
    """As `zstd -dc` does: frame after frame."""
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes()), read_across_frames=True) as reader:
        return reader.read()


def test_a_bundle_is_its_files_one_after_the_other(cache: Cache, digests: list[str], tmp_path: Path) -> None:
    plain = bundle.write(digests, tmp_path / "bundles", codec="none", cache=cache)
    packed = bundle.write(digests, tmp_path / "bundles", codec="zstd", cache=cache)
    assert plain.read_bytes() == unpacked(packed) == b"".join(CONTENTS)
    assert packed.stat().st_size < plain.stat().st_size
    other = bundle.write(digests[::-1], tmp_path / "bundles", codec="zstd", cache=cache)
    assert unpacked(other) == b"".join(reversed(CONTENTS))
    assert sorted(path.suffix for path in (tmp_path / "bundles").iterdir()) == [".none", ".zstd", ".zstd"]
    assert (tmp_path / "bundles").stat().st_mode & 0o777 == 0o700


def test_compressing_is_paid_for_once(cache: Cache, digests: list[str]) -> None:
    first = bundle.compressed(cache, digests[0])
    inode = first.stat().st_ino
    assert bundle.compressed(cache, digests[0]).stat().st_ino == inode


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_compressed_file_is_made_anew(cache: Cache, digests: list[str], damage: bytes | None) -> None:
    """The machine would refuse its bytes at every run: nobody would ever get the file again."""
    path = bundle.compressed(cache, digests[1])
    path.write_bytes(path.read_bytes()[:-1] + b"x" if damage is None else damage)
    assert unpacked(bundle.compressed(cache, digests[1])) == CONTENTS[1]


def test_a_shipment_is_read_back_and_none_is_nothing(tmp_path: Path) -> None:
    shipment = Shipment((Artifact("artifacts", "/usr/local/bin/etcd", "a" * 64, 5, "/cache/a", 0o755),), "/tmp/bundle", "zstd")
    save_shipment(tmp_path, "cp-1", shipment)
    assert load_shipment(tmp_path, "cp-1") == shipment
    assert load_shipment(tmp_path, "cp-2") == Shipment()
