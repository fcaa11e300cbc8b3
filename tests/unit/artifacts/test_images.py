"""Images: from a registry or a mirror of one, and the archives made of them."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from provisioner.artifacts import Cache, Lock, Want, ensure
from provisioner.artifacts.download import Downloader
from provisioner.artifacts.oci import single_binary
from provisioner.artifacts.recipes import ImageSpec
from provisioner.artifacts.relock import fetch_official, rows
from provisioner.errors import ArtifactError

from .conftest import PATIENT, Notes, Site, make_lock, sha256

PAUSE = Want("pause", "3.10.2", "images/pause.tar", "amd64")
BASE = "registry.k8s.io/v2/pause"


@dataclass(frozen=True)
class Published:
    """An image as a registry has it."""

    config: bytes
    layer: bytes
    manifest: bytes
    index: bytes

    @classmethod
    def make(cls) -> Published:
        config = json.dumps({"architecture": "amd64", "os": "linux"}).encode()
        layer = gzip.compress(b"a layer" * 100, mtime=0)
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": _descriptor("application/vnd.docker.container.image.v1+json", config),
            "layers": [_descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", layer)] * 2,
        }
        body = json.dumps(manifest).encode()
        other = {**_descriptor(str(manifest["mediaType"]), b"another"), "platform": {"architecture": "arm64", "os": "linux"}}
        own = {**_descriptor(str(manifest["mediaType"]), body), "platform": {"architecture": "amd64", "os": "linux"}}
        index = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.list.v2+json",
            "manifests": [other, own],
        }
        return cls(config, layer, body, json.dumps(index).encode())

    def on(self, site: Site) -> None:
        for kind, data in (("manifests", self.manifest), ("manifests", self.index), ("blobs", self.config), ("blobs", self.layer)):
            site.files[f"{BASE}/{kind}/sha256:{sha256(data)}"] = data
        site.files[f"{BASE}/manifests/3.10.2"] = self.index


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{sha256(data)}", "size": len(data)}


def image_lock(digest: str | None) -> Lock:
    return make_lock(
        pause={
            "image": "registry.k8s.io/pause:{version}",
            "versions": {"3.10.2": {"official": {"image": {"amd64": digest, "arm64": None}}}},
        }
    )


def contents(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {entry.name: file.read() for entry in tar if (file := tar.extractfile(entry))}


@pytest.fixture
def image(site: Site) -> Published:
    made = Published.make()
    made.on(site)
    return made


@pytest.mark.parametrize("by", ["manifest", "index"])
def test_an_image_is_pulled_from_a_registry_that_wants_a_token(official: Site, cache: Cache, image: Published, by: str) -> None:
    official.token = "anonymous"  # noqa: S105 - that is what it is
    digest = f"sha256:{sha256(getattr(image, by))}"
    found = ensure((PAUSE,), image_lock(digest), sources=("release",), cache=cache, patience=PATIENT)
    archive = contents(found["images/pause.tar"].path)
    for data in (image.config, image.layer, image.manifest):
        assert archive[f"blobs/sha256/{sha256(data)}"] == data
    (entry,) = json.loads(archive["index.json"])["manifests"]
    assert entry["digest"] == f"sha256:{sha256(image.manifest)}"
    assert entry["annotations"]["io.containerd.image.name"] == "registry.k8s.io/pause:3.10.2"
    assert json.loads(archive["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    assert list((cache.root / "partial").iterdir()) == []
    official.asked.clear()
    ensure((PAUSE,), image_lock(digest), sources=("release",), cache=cache, patience=PATIENT)
    assert official.asked == []


def test_a_mirror_keeps_the_registrys_paths(site: Site, cache: Cache, image: Published, tmp_path: Path) -> None:
    for path, data in site.files.items():
        (tmp_path / "mirror" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mirror" / path).write_bytes(data)
    lock = image_lock(f"sha256:{sha256(image.index)}")
    by_http = ensure((PAUSE,), lock, sources=("mirror",), mirror=site.url, cache=cache, patience=PATIENT)
    other = Cache.open(tmp_path / "other")
    by_directory = ensure((PAUSE,), lock, sources=("mirror",), mirror=str(tmp_path / "mirror"), cache=other)
    assert by_http["images/pause.tar"].sha256 == by_directory["images/pause.tar"].sha256


def test_a_changed_layer_is_refused(site: Site, cache: Cache, image: Published) -> None:
    site.files[f"{BASE}/blobs/sha256:{sha256(image.layer)}"] = image.layer[:-1] + b"x"
    lock = image_lock(f"sha256:{sha256(image.manifest)}")
    with pytest.raises(ArtifactError) as error:
        ensure((PAUSE,), lock, sources=("mirror",), mirror=site.url, cache=cache, patience=PATIENT)
    assert "wrong bytes" in "\n".join(error.value.details)
    assert cache.blobs() == ()


def test_an_index_without_the_architecture_is_refused(site: Site, cache: Cache, image: Published) -> None:
    index = json.loads(image.index)
    data = json.dumps({**index, "manifests": index["manifests"][:1]}).encode()
    site.files[f"{BASE}/manifests/sha256:{sha256(data)}"] = data
    with pytest.raises(ArtifactError) as error:
        ensure((PAUSE,), image_lock(f"sha256:{sha256(data)}"), sources=("mirror",), mirror=site.url, cache=cache)
    assert "no image for linux/amd64" in "\n".join(error.value.details)


@pytest.mark.parametrize("body", [b"[]", b"{}", b"no json", b'{"config": {"digest": "../../etc"}, "layers": []}'])
def test_what_is_no_manifest_is_refused(site: Site, cache: Cache, body: bytes) -> None:
    site.files[f"{BASE}/manifests/sha256:{sha256(body)}"] = body
    with pytest.raises(ArtifactError, match="could not be had"):
        ensure((PAUSE,), image_lock(f"sha256:{sha256(body)}"), sources=("mirror",), mirror=site.url, cache=cache)
    assert cache.blobs() == ()


def test_lock_asks_the_registry_for_each_architectures_digest(official: Site, image: Published) -> None:
    official.token = "anonymous"  # noqa: S105
    lock = image_lock(None)
    wanted = [row for row in rows(lock) if row.component == "pause"]
    with Downloader(Notes(), PATIENT) as downloader:
        found = fetch_official(lock, wanted, downloader)
    assert found.problems == ()
    assert found.sums == {
        (*wanted[0].path[:-1], "amd64"): f"sha256:{sha256(image.manifest)}",
        (*wanted[0].path[:-1], "arm64"): f"sha256:{sha256(b'another')}",
    }


def test_an_archive_made_here_is_the_same_every_time(tmp_path: Path) -> None:
    spec = ImageSpec(
        binary="tool",
        entrypoint=("/tool",),
        command=("run",),
        user="65532:65532",
        directories=(("tmp", 0o1777),),
        ports=("53/udp",),
    )
    archives: list[bytes] = []
    for turn in ("a", "b"):
        work = tmp_path / turn
        work.mkdir()
        (work / "binary").write_bytes(b"\x7fELF")
        (work / "binary").chmod(0o700 if turn == "a" else 0o755)
        single_binary(spec, work / "binary", reference="example.com/tool:1", arch="arm64", work=work, target=work / "image.tar")
        archives.append((work / "image.tar").read_bytes())
    assert archives[0] == archives[1]


def test_an_archive_made_here_is_an_image(tmp_path: Path) -> None:
    spec = ImageSpec(binary="tool", entrypoint=("/tool",), command=("run",), user="65532:65532", directories=(("tmp", 0o1777),))
    (tmp_path / "binary").write_bytes(b"\x7fELF")
    target = tmp_path / "image.tar"
    single_binary(spec, tmp_path / "binary", reference="example.com/tool:1", arch="arm64", work=tmp_path, target=target)
    archive = contents(target)
    (entry,) = json.loads(archive["index.json"])["manifests"]
    manifest = archive[f"blobs/{entry['digest'].replace(':', '/')}"]
    assert entry["size"] == len(manifest)
    document = json.loads(manifest)
    config = json.loads(archive[f"blobs/{document['config']['digest'].replace(':', '/')}"])
    assert (config["architecture"], config["os"], config["config"]["User"]) == ("arm64", "linux", "65532:65532")
    assert (config["config"]["Entrypoint"], config["config"]["Cmd"]) == (["/tool"], ["run"])
    (layer,) = document["layers"]
    data = archive[f"blobs/{layer['digest'].replace(':', '/')}"]
    # an uncompressed layer's own digest is its diff id
    assert config["rootfs"]["diff_ids"] == [layer["digest"]] == [f"sha256:{sha256(data)}"]
    assert layer["size"] == len(data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        entries = {entry.name: entry for entry in tar}
    assert entries["tool"].mode == 0o755
    assert entries["tmp"].mode == 0o1777
    assert entries["tmp"].isdir()
    assert {(entry.uid, entry.gid, entry.mtime) for entry in entries.values()} == {(0, 0, 0)}
    assert set(entries) == {"tool", "tmp", "etc", "etc/passwd", "etc/group"}


def test_an_image_with_a_shell_has_it_as_links_to_one_program(tmp_path: Path) -> None:
    spec = ImageSpec(binary="tool", entrypoint=(), applets=("sh", "rm"))
    (tmp_path / "binary").write_bytes(b"\x7fELF")
    (tmp_path / "busybox").write_bytes(b"\x7fELF of busybox")
    target, work = tmp_path / "image.tar", tmp_path
    reference = "example.com/tool:1"
    single_binary(spec, work / "binary", reference=reference, arch="amd64", work=work, target=target, busybox=work / "busybox")
    archive = contents(target)
    manifest = json.loads(archive[f"blobs/{json.loads(archive['index.json'])['manifests'][0]['digest'].replace(':', '/')}"])
    with tarfile.open(fileobj=io.BytesIO(archive[f"blobs/{manifest['layers'][0]['digest'].replace(':', '/')}"])) as tar:
        entries = {entry.name: entry for entry in tar}
    assert {name: entries[f"bin/{name}"].linkname for name in ("sh", "rm")} == {"sh": "busybox", "rm": "busybox"}
    assert all(entries[f"bin/{name}"].issym() for name in ("sh", "rm"))
    assert entries["bin/busybox"].size == len(b"\x7fELF of busybox")
    assert entries["bin/busybox"].mode == 0o755
