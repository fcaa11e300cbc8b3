"""The sources ``release`` (the official sites) and ``mirror`` (a copy of them): the same files, the same sums, another place.

A mirror keeps each file at ``BASE/HOST/PATH`` of its official URL: ``BASE/dl.k8s.io/release/v1.36.3/bin/linux/amd64/kubelet``,
``BASE/github.com/etcd-io/etcd/releases/download/…``, ``BASE/registry.k8s.io/v2/pause/manifests/sha256:…``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from provisioner.artifacts import oci, registry
from provisioner.artifacts.archive import extract
from provisioner.artifacts.cache import Cache, CachedFile, copy, digest
from provisioner.artifacts.download import Downloader, DownloadFailed, shown
from provisioner.artifacts.lock import IMAGE_KEY
from provisioner.artifacts.sources import Context, Outcome, Refusal, in_cache, waiting
from provisioner.artifacts.wants import Want

PARALLEL = 4


class Place(Protocol):
    """Where official URLs are looked up."""

    def locate(self, url: str) -> str:
        """What to show the user for an official URL."""

    def fetch(self, url: str, part: Path, *, key: str, headers: Mapping[str, str]) -> None:
        """Bring the file of an official URL into ``part``, or go on with what is there.

        Raises:
            DownloadFailed: it cannot be had.
        """

    def registry_headers(self, url: str) -> Mapping[str, str]:
        """What an image's files are to be asked for with; the URL is its manifest's.

        Raises:
            DownloadFailed: the registry does not answer, or wants a login.
        """


@dataclass(frozen=True, slots=True)
class _Web:
    """The official sites themselves, or an HTTP mirror of them (``base``)."""

    downloader: Downloader
    cache: Cache
    base: str = ""

    def locate(self, url: str) -> str:
        return shown(self._url(url))

    def fetch(self, url: str, part: Path, *, key: str, headers: Mapping[str, str]) -> None:
        self.downloader.fetch(self._url(url), part, key=key, cache=self.cache, headers=headers)

    def registry_headers(self, url: str) -> Mapping[str, str]:
        # a mirror is a plain file server
        return {} if self.base else registry.authorised(self.downloader, url)

    def _url(self, url: str) -> str:
        return f"{self.base.rstrip('/')}/{url.removeprefix('https://')}" if self.base else url


@dataclass(frozen=True, slots=True)
class _Directory:
    """A mirror in a directory."""

    base: Path
    cache: Cache

    def locate(self, url: str) -> str:
        return str(self._path(url))

    def fetch(self, url: str, part: Path, *, key: str, headers: Mapping[str, str]) -> None:
        _ = key, headers
        path = self._path(url)
        if not path.is_file():
            raise DownloadFailed(f"{path}: no such file" if self.base.is_dir() else f"{self.base}: no such directory")
        try:
            source = path.open("rb")
        except OSError as error:
            raise DownloadFailed(f"{path}: {error.strerror}") from None
        with source, self.cache.guarded(), part.open("wb") as target:
            copy(source, target)

    def registry_headers(self, url: str) -> Mapping[str, str]:
        _ = url
        return {}

    def _path(self, url: str) -> Path:
        return self.base / unquote(url.removeprefix("https://"))


def official_sites(downloader: Downloader, cache: Cache) -> Place:
    """The official sites."""
    return _Web(downloader, cache)


def mirror_of(address: str, downloader: Downloader, cache: Cache) -> Place:
    """A mirror: an http(s) URL, or a directory."""
    if urlsplit(address).scheme in {"http", "https"}:
        return _Web(downloader, cache, base=address)
    return _Directory(Path(address.removeprefix("file://")).expanduser().absolute(), cache)


@dataclass(frozen=True, slots=True)
class _File:
    """One official file that gives some of the wanted ones, with its locked sum. An image's is its manifest."""

    url: str
    sum: str
    members: tuple[tuple[str, str], ...]
    image: str = ""
    arch: str = ""


class Official:
    """Fetches official files, several at a time."""

    def __init__(self, context: Context, name: str, place: Place, downloader: Downloader) -> None:
        self._context = context
        self._downloader = downloader
        self._name = name
        self._place = place

    @property
    def name(self) -> str:
        """``release`` or ``mirror``."""
        return self._name

    def cached(self, want: Want, *, full: bool = False) -> CachedFile | None:
        """The file, where it was fetched before from either of the two."""
        for file in self._files(want):
            sha256 = self._context.cache.derived(file.sum).get(want.name)
            if sha256 and (found := in_cache(self._context, self.name, want, sha256, full=full)):
                return found
        return None

    def fetch(self, wants: Sequence[Want]) -> Outcome:
        """Fetch the files; each is refused with the reason where it cannot be had."""
        outcome = Outcome()
        candidates = {want: self._files(want) for want in wants}
        for want, files in candidates.items():
            if not files:
                outcome.refused[want] = Refusal(
                    "no published sum of the official file is known",
                    f"`provisioner artifacts lock --source release --arch {want.arch} {want.component}` "
                    "fetches it where there is a network",
                )
        # a file may be published bare and in a tarball: whoever has no copy of the first is asked for the second
        for turn in range(max(map(len, candidates.values()), default=0)):
            jobs: dict[_File, list[Want]] = {}
            for want, files in candidates.items():
                if want not in outcome.files and turn < len(files):
                    jobs.setdefault(files[turn], []).append(want)
            self._run(jobs, outcome)
        for want in outcome.files:
            outcome.refused.pop(want, None)
        return outcome

    def _run(self, jobs: Mapping[_File, Sequence[Want]], outcome: Outcome) -> None:
        with ThreadPoolExecutor(max_workers=PARALLEL, thread_name_prefix="fetch") as pool:
            try:
                started = [(batch, pool.submit(self._get, file, batch)) for file, batch in jobs.items()]
                for batch, future in started:
                    result = future.result()
                    if isinstance(result, Refusal):
                        for want in batch:
                            outcome.refused.setdefault(want, result)
                    else:
                        outcome.files.update(result)
            except BaseException:
                # Ctrl-C: leaving the block waits for the threads, so they are told
                self._downloader.stop()
                pool.shutdown(cancel_futures=True, wait=False)
                raise

    # -- inside -------------------------------------------------------------------------------------------------------

    def _files(self, want: Want) -> list[_File]:
        """The official files that hold a wanted one and whose sum is known, the best first."""
        lock = self._context.lock
        component, sums = lock.component(want.component), lock.release(want.component, want.version).official
        found: list[_File] = []
        if component.image:
            if known := sums.get(IMAGE_KEY, {}).get(want.arch):
                image = component.image.format(version=want.version)
                url = registry.Reference.parse(image).url("manifests", known)
                found.append(_File(url, known, ((want.name, ""),), image, want.arch))
            return found
        for name, file in component.files.items():
            known = sums.get(name, {}).get(want.arch)
            if known is None or want.name not in (file.members or (name,)):
                continue
            members = tuple(
                (member, path.format(version=want.version, arch=want.arch)) for member, path in sorted(file.members.items())
            )
            url = file.url.format(version=want.version, arch=want.arch)
            found.append(_File(url, known, members or ((name, ""),)))
        return found

    def _get(self, file: _File, wants: Sequence[Want]) -> dict[Want, CachedFile] | Refusal:
        cache, progress = self._context.cache, self._context.progress
        key = file.image or urlsplit(file.url).path.rpartition("/")[2]
        try:
            with cache.exclusive(file.sum, waiting(progress, key)):
                found = {want: hit for want in wants if (hit := self.cached(want))}
                if len(found) == len(wants):
                    return found
                self._take_in(file, key)
                return {want: hit for want in wants if (hit := self.cached(want))}
        except DownloadFailed as error:
            return Refusal(error.message, error.hint, error.details)
        finally:
            progress.finish(key)

    def _take_in(self, file: _File, key: str) -> None:
        """Fetch a file and put what it holds into the cache."""
        cache = self._context.cache
        if file.image:
            self._take_in_image(file, key)
            return
        part = self._verified(file.url, file.sum, key)
        with cache.temporary() as work:
            members = dict(file.members)
            # a file that is no archive has one member without a path: itself
            taken = extract(part, members, work) if all(members.values()) else dict.fromkeys(members, part)
            cache.record_derived(file.sum, {name: cache.add(path) for name, path in taken.items()})
        part.unlink(missing_ok=True)

    def _take_in_image(self, file: _File, key: str) -> None:
        """Fetch an image's manifest (by way of its index, where the lock has that), config and layers; pack one archive."""
        cache = self._context.cache
        reference = registry.Reference.parse(file.image)
        headers = self._place.registry_headers(file.url)
        document = self._verified(file.url, file.sum, key, headers)
        parts = [document]
        own = registry.platform_digest(document.read_bytes(), file.sum, file.arch)
        if own != file.sum:
            document = self._verified(reference.url("manifests", own), own, key, headers)
            parts.append(document)
        blobs = []
        for item in registry.manifest_layers(document.read_bytes()):
            part = self._verified(reference.url("blobs", str(item["digest"])), str(item["digest"]), key, headers)
            parts.append(part)
            blobs.append(registry.blob(item, part))
        manifest = oci.Blob(registry.media_type(document.read_bytes()), document, own)
        with cache.temporary() as work:
            target = work / "image.tar"
            oci.write_archive(target, manifest, blobs, reference=file.image, arch=file.arch)
            cache.record_derived(file.sum, {file.members[0][0]: cache.add(target)})
        for part in parts:
            part.unlink(missing_ok=True)

    def _verified(self, url: str, expected: str, key: str, headers: Mapping[str, str] | None = None) -> Path:
        """The bytes of an official URL in a partial file, with the expected sum.

        Raises:
            DownloadFailed: they cannot be had, or have another sum.
        """
        cache = self._context.cache
        algorithm, _, value = expected.partition(":")
        part = cache.partial(f"{self._place.locate(url)} {expected}")
        resumed = part.exists()
        while True:
            self._place.fetch(url, part, key=key, headers=headers or {})
            actual = digest(part, algorithm)
            if actual == value:
                return part
            part.unlink()
            if not resumed:
                raise DownloadFailed(
                    f"{self._place.locate(url)}: wrong bytes: its {algorithm} is {actual}, and the lock has {value}",
                    hint="the file was changed after its release, or on its way here; it was thrown away",
                )
            # what an earlier run left may have been the beginning of something else: once more, from nothing
            resumed = False
