"""Container images as archives that ``ctr --namespace k8s.io images import`` takes (OCI image layout, in a tar).

The same input gives the same bytes: fixed times, sorted names, one layer. Layers made here are not compressed: the nodes
unpack them once, over a local network, and inflating is what an import would spend its time on.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisioner.artifacts.recipes import ImageSpec

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
_EPOCH = "1970-01-01T00:00:00Z"


class _Link(str):
    """Where a symbolic link leads."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Blob:
    """One blob of an image: its bytes are in a file, whose sha256 is known."""

    media_type: str
    path: Path
    digest: str

    @classmethod
    def of(cls, media_type: str, path: Path) -> Blob:
        """A blob whose sum is computed here."""
        with path.open("rb") as file:
            return cls(media_type, path, "sha256:" + hashlib.file_digest(file, "sha256").hexdigest())

    def descriptor(self) -> dict[str, object]:
        """As manifests and indexes name it."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.path.stat().st_size}


def single_binary(
    spec: ImageSpec, binary: Path, *, reference: str, arch: str, work: Path, target: Path, busybox: Path | None = None
) -> None:
    """Write the archive of an image that holds one static binary.

    Args:
        spec: how it is started, and as whom.
        binary: the file that becomes ``/NAME``.
        busybox: what the spec's applets are links to; needed where it has some.
        reference: the name the import gives it, with a tag.
        arch: Go's name of the architecture.
        work: a directory for intermediate files.
        target: the archive.
    """
    layer_path = work / "layer.tar"
    with tarfile.open(layer_path, "w", format=tarfile.PAX_FORMAT) as layer:
        users = "root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n"
        entries: list[tuple[str, int, bytes | Path | _Link | None]] = [
            (spec.binary, 0o755, binary),
            ("etc", 0o755, None),
            ("etc/passwd", 0o644, users.encode()),
            ("etc/group", 0o644, b"root:x:0:\nnobody:x:65534:\n"),
            *((name, mode, None) for name, mode in spec.directories),
        ]
        if spec.applets:
            entries += [("bin", 0o755, None), ("bin/busybox", 0o755, busybox)]
            entries += [(f"bin/{name}", 0o777, _Link("busybox")) for name in spec.applets]
        for name, mode, content in sorted(entries, key=lambda entry: entry[0]):
            _put(layer, name, mode, content)
    layer_blob = Blob.of(LAYER, layer_path)
    config: dict[str, object] = {
        "created": _EPOCH,
        "architecture": arch,
        "os": "linux",
        "config": {
            "User": spec.user,
            "ExposedPorts": {port: {} for port in spec.ports},
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/"],
            "Entrypoint": list(spec.entrypoint),
            "Cmd": list(spec.command),
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [layer_blob.digest]},
        "history": [{"created": _EPOCH, "created_by": "provisioner"}],
    }
    config_blob = _json_blob(work / "config.json", CONFIG, config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config_blob.descriptor(),
        "layers": [layer_blob.descriptor()],
    }
    manifest_blob = _json_blob(work / "manifest.json", MANIFEST, manifest)
    write_archive(target, manifest_blob, (config_blob, layer_blob), reference=reference, arch=arch)


def write_archive(target: Path, manifest: Blob, blobs: Sequence[Blob], *, reference: str, arch: str) -> None:
    """Write an OCI layout with one image into a tar.

    Args:
        target: the archive.
        manifest: the image's manifest.
        blobs: its config and layers.
        reference: the name the import gives it, with a tag.
        arch: Go's name of the architecture.
    """
    index = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {
                **manifest.descriptor(),
                "platform": {"architecture": arch, "os": "linux"},
                # the first is containerd's own, with the whole name; the second the OCI layout's, the tag alone
                "annotations": {
                    "io.containerd.image.name": reference,
                    "org.opencontainers.image.ref.name": reference.rpartition(":")[2],
                },
            }
        ],
    }
    unique: Mapping[str, Path] = {blob.digest: blob.path for blob in (manifest, *blobs)}
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as archive:
        _put(archive, "oci-layout", 0o644, b'{"imageLayoutVersion":"1.0.0"}')
        _put(archive, "index.json", 0o644, _dump(index))
        for directory in ("blobs", "blobs/sha256"):
            _put(archive, directory, 0o755, None)
        for digest, path in sorted(unique.items()):
            _put(archive, f"blobs/{digest.replace(':', '/')}", 0o644, path)


def _json_blob(path: Path, media_type: str, document: object) -> Blob:
    path.write_bytes(_dump(document))
    return Blob.of(media_type, path)


def _dump(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _put(archive: tarfile.TarFile, name: str, mode: int, content: bytes | Path | _Link | None) -> None:
    """Add one entry owned by root, of the epoch; a directory where there is no content."""
    entry = tarfile.TarInfo(name)
    entry.mode = mode
    entry.mtime = 0
    if isinstance(content, _Link):
        entry.type, entry.linkname = tarfile.SYMTYPE, str(content)
        archive.addfile(entry)
    elif content is None:
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
    elif isinstance(content, Path):
        entry.size = content.stat().st_size
        with content.open("rb") as file:
            archive.addfile(entry, file)
    else:
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
