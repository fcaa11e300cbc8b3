"""What kubeadm needs on a machine and the toolkit does not: kubeadm itself, and container images of the components.

Everything is made of what the toolkit's own artifacts are made of: kubeadm from the same Go modules with the same Go release,
the images from the very binaries that the toolkit runs under systemd. Userland in images (nft, iptables, a shell) is that of the
lab machines' own base image.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from provisioner import artifacts
from provisioner.artifacts.cache import Cache, CachedFile, digest
from provisioner.artifacts.download import Downloader
from provisioner.artifacts.gobuild import Job, build
from provisioner.artifacts.lock import Arch, Lock, load_lock
from provisioner.artifacts.oci import CONFIG, LAYER, MANIFEST, Blob, write_archive
from provisioner.artifacts.progress import Silent
from provisioner.artifacts.recipes import RECIPES
from provisioner.artifacts.toolchain import find_go, machine
from provisioner.lab import image as lab_image

GOMOD = Path(__file__).parent / "gomod"
SOURCES = ("mirror", "release", "modules")
# kubeadm's release of etcd's image carries a revision
ETCD_REVISION = "0"
# What kube-proxy and flannel call, and what a shell script needs; libraries follow by themselves.
TOOLS = ("usr/sbin/nft", "usr/sbin/xtables-nft-multi", "usr/bin/dash", "usr/bin/sleep", "usr/bin/cat", "usr/bin/mv")
LINKS = {
    "bin": "usr/bin",
    "sbin": "usr/sbin",
    "lib": "usr/lib",
    "lib64": "usr/lib64",
    "usr/bin/sh": "dash",
    **{
        f"usr/sbin/{family}{tool}": "xtables-nft-multi"
        for family in ("iptables", "ip6tables")
        for tool in ("", "-save", "-restore")
    },
}


@dataclass(frozen=True, slots=True)
class Image:
    """One image: its reference, the binary in it and where that lies, and whether userland comes along."""

    name: str
    reference: str
    binary: str
    place: str
    userland: bool = False


@dataclass(frozen=True, slots=True)
class Materials:
    """Files for machines.

    Attributes:
        versions: component -> version.
        files: name -> the toolkit's own artifacts ("kubelet", "cni/bridge", "images/agnhost.tar"…).
        kubeadm: the binary.
        images: name -> archive for ``ctr images import``; control planes need all, workers those in ``WORKER_IMAGES``.
        references: name -> the reference that the archive's import gives.
    """

    versions: Mapping[str, str]
    files: Mapping[str, CachedFile]
    kubeadm: Path
    images: Mapping[str, Path]
    references: Mapping[str, str]


# what a worker runs, and agnhost for the checks
WORKER_IMAGES = ("kube-proxy", "flannel", "coredns", "pause", "agnhost")


class KubeadmJob(Job):
    """A build whose go.mod and go.sum are kept here, not among the product's."""

    @property
    def kept(self) -> Path:
        """Where its go.mod and go.sum are kept."""
        return GOMOD / f"{self.component}-{self.version}"


def prepare(kubernetes: str) -> Materials:
    """Everything in the cache: the toolkit's artifacts, kubeadm, the images. The first call takes minutes, later ones a second.

    Args:
        kubernetes: a version of ``versions.yml``.

    Raises:
        ArtifactError: something can be neither fetched nor built.
        LabError: the lab machines' base image cannot be made.
    """
    lock, cache, arch = load_lock(), Cache.open(), machine()
    files = artifacts.ensure(artifacts.everything(lock, kubernetes, arch), lock, sources=SOURCES, cache=cache)
    versions = {"kubernetes": kubernetes, "go": lock.go.version, **lock.releases[kubernetes]}
    home = cache.root / "compare"
    home.mkdir(parents=True, exist_ok=True)
    kubeadm = home / f"kubeadm-{kubernetes}-{arch}-go{lock.go.version}"
    if not kubeadm.is_file():
        _build_kubeadm(lock, cache, kubernetes, arch, kubeadm)
    tree = lab_image.ensure()
    images: dict[str, Path] = {name: files[f"images/{name}.tar"].path for name in ("agnhost", "pause")}
    references = {name: lock.image(name, kubernetes) for name in images}
    for made in _images(kubernetes, versions):
        archive = home / f"{made.name}-{_key(made, files, tree)}.tar"
        if not archive.is_file():
            with cache.temporary() as work:
                _make_image(made, files, tree, arch=arch, work=work, target=work / "image.tar")
                (work / "image.tar").replace(archive)
        images[made.name], references[made.name] = archive, made.reference
    # coredns is in the toolkit's cache as an image already, and needs kubeadm's name for it only: `ctr images tag`
    images["coredns"], references["coredns"] = files["images/coredns.tar"].path, lock.image("coredns", kubernetes)
    return Materials(versions=versions, files=files, kubeadm=kubeadm, images=images, references=references)


def etcd_tag(versions: Mapping[str, str]) -> str:
    """The tag by which kubeadm is told of etcd's image."""
    return f"{versions['etcd']}-{ETCD_REVISION}"


def _images(kubernetes: str, versions: Mapping[str, str]) -> tuple[Image, ...]:
    registry = "registry.k8s.io"
    plain = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
    return (
        *(Image(name, f"{registry}/{name}:v{kubernetes}", name, f"usr/local/bin/{name}") for name in plain),
        Image("etcd", f"{registry}/etcd:{etcd_tag(versions)}", "etcd", "usr/local/bin/etcd"),
        # the path is in kubeadm's manifest
        Image("kube-proxy", f"{registry}/kube-proxy:v{kubernetes}", "kube-proxy", "usr/local/bin/kube-proxy", userland=True),
        Image("flannel", f"docker.io/flannel/flannel:v{versions['flannel']}", "flanneld", "opt/bin/flanneld", userland=True),
    )


def _key(image: Image, files: Mapping[str, CachedFile], tree: Path) -> str:
    """What decides an image's bytes: this file, its row, the binary, the userland."""
    parts = (digest(Path(__file__)), repr(image), files[image.binary].sha256, tree.name if image.userland else "")
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _build_kubeadm(lock: Lock, cache: Cache, version: str, arch: Arch, target: Path) -> None:
    recipe = replace(RECIPES["kubernetes"], packages=(("kubeadm", "k8s.io/kubernetes/cmd/kubeadm"),))
    job = KubeadmJob(component="kubeadm", recipe=recipe, version=version, module_version=version, arch=arch)
    with Downloader(Silent()) as downloader, cache.temporary() as work:
        go = find_go(lock.go, cache, downloader, Silent())
        build(job, ["kubeadm"], go, work)["kubeadm"].replace(target)


def _make_image(image: Image, files: Mapping[str, CachedFile], tree: Path, *, arch: Arch, work: Path, target: Path) -> None:
    """One layer: the binary, and what it calls."""
    path = work / "layer.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as layer:
        for name in (
            "etc",
            "opt",
            "opt/bin",
            "tmp",
            "usr",
            "usr/bin",
            "usr/lib",
            "usr/lib64",
            "usr/local",
            "usr/local/bin",
            "usr/sbin",
        ):
            _entry(layer, name, mode=0o1777 if name == "tmp" else 0o755, kind=tarfile.DIRTYPE)
        if image.userland:
            for name in _with_libraries(tree, TOOLS):
                _entry(layer, name, mode=0o755, content=tree / name)
            for name, destination in LINKS.items():
                _entry(layer, name, mode=0o777, kind=tarfile.SYMTYPE, link=destination)
        _entry(layer, image.place, mode=0o755, content=files[image.binary].path)
    blob = Blob.of(LAYER, path)
    config: dict[str, object] = {
        "architecture": arch,
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/opt/bin"],
            "Entrypoint": [f"/{image.place}"],
            "WorkingDir": "/",
        },
        "rootfs": {"type": "layers", "diff_ids": [blob.digest]},
    }
    config_blob = _json(work / "config.json", CONFIG, config)
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config_blob.descriptor(), "layers": [blob.descriptor()]}
    manifest_blob = _json(work / "manifest.json", MANIFEST, manifest)
    write_archive(target, manifest_blob, (config_blob, blob), reference=image.reference, arch=arch)


def _json(path: Path, media_type: str, document: object) -> Blob:
    path.write_text(json.dumps(document, sort_keys=True))
    return Blob.of(media_type, path)


def _entry(
    layer: tarfile.TarFile, name: str, *, mode: int, content: Path | None = None, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode, entry.type, entry.linkname = mode, kind, link
    if content is None:
        layer.addfile(entry)
        return
    entry.size = content.stat().st_size
    with content.open("rb") as file:
        layer.addfile(entry, file)


def _with_libraries(tree: Path, programs: Iterable[str]) -> list[str]:
    """The programs, the shared libraries they are linked with, and iptables' extensions; real files, by their path in the tree."""
    found = set(programs)
    for program in programs:
        shown = subprocess.run(["chroot", tree, "ldd", f"/{program}"], capture_output=True, text=True, check=True).stdout
        found.update(word.lstrip("/") for line in shown.splitlines() for word in line.split() if word.startswith("/"))
    found.update(str(path.relative_to(tree)) for path in tree.glob("usr/lib/*/xtables/*.so"))
    # merged /usr: `lib` and `lib64` are links, in the image as well
    return sorted(name if name.startswith("usr/") else f"usr/{name}" for name in found)
