"""The controller's cache: one directory, files named by their sha256, safe for several runs at once.

    blobs/sha256/ab/abcd…      the bytes, read-only
    index/abcd….json           what the file looked like (size, times, inode) when its sum was last checked
    derived/sha256-ef01….json  what came out of an archive or a registry's image with that sum: {name: sha256}
    partial/                   downloads under way; a later run goes on where one stopped
    locks/ work/ go/           one lock file per download or build; builds under way; the pinned Go release

A warm `ensure` asks the file system once per file and hashes nothing: a file whose size, times or inode changed since it was
checked is hashed again, and thrown away where its bytes are not what its name says.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from provisioner.errors import ArtifactError
from provisioner.wait import NotYet, wait_until

CHUNK = 1 << 20
# How long a run waits for another one that downloads or builds the same thing; a first Kubernetes build takes minutes.
LOCK_SECONDS = 2 * 3600.0
SWEEP_SECONDS = 600.0
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A checked file of the cache. ``source`` says where its bytes are from: ``mirror``, ``release`` or ``modules``."""

    name: str
    path: Path
    sha256: str
    size: int
    source: str


def default_directory() -> Path:
    """``$PROVISIONER_CACHE``, else ``$XDG_CACHE_HOME/provisioner``, else ``~/.cache/provisioner``."""
    if given := os.environ.get("PROVISIONER_CACHE"):
        return Path(given).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG specification: a relative path is to be ignored
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "provisioner"


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


@dataclass(frozen=True, slots=True)
class Cache:
    """The cache below one directory; made when first written to."""

    root: Path

    @classmethod
    def open(cls, root: Path | None = None) -> Cache:
        """The cache at ``root`` (default: :func:`default_directory`)."""
        return cls(root or default_directory())

    # -- reading ------------------------------------------------------------------------------------------------------

    def blob(self, sha256: str) -> Path:
        """Where the bytes with that sum are, or would be."""
        return self.root / "blobs" / "sha256" / sha256[:2] / sha256

    def find(self, sha256: str, warn: Callable[[str], None], *, full: bool = False) -> Path | None:
        """The file with that sum, or None. A damaged one is removed with a warning, and is then None.

        Args:
            sha256: hex.
            warn: takes a line for the user.
            full: hash the bytes even where nothing seems to have touched them.

        Raises:
            ArtifactError: the cache cannot be read.
        """
        path = self.blob(sha256)
        with self.guarded():
            try:
                stamp = _stamp(path)
            except (FileNotFoundError, NotADirectoryError):
                return None
            if not full and stamp == self._remembered(sha256):
                return path
            try:
                actual = digest(path)
            except FileNotFoundError:  # another run found it damaged first
                return None
            if actual != sha256:
                warn(f"{path}: damaged (its sha256 is {actual}): removed, to be fetched anew")
                path.unlink(missing_ok=True)
                self._index(sha256).unlink(missing_ok=True)
                return None
            self._remember(sha256, stamp)
        return path

    def derived(self, key: str) -> Mapping[str, str]:
        """What was taken out of the archive with that sum (``sha256:…``): {name: hex sha256}; empty where nothing was."""
        try:
            found = json.loads(self._derived(key).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def blobs(self) -> tuple[str, ...]:
        """The sums of all files here."""
        return tuple(sorted(path.name for path in self.root.glob("blobs/sha256/??/*") if len(path.name) == 64))

    # -- writing ------------------------------------------------------------------------------------------------------

    def add(self, path: Path, *, expect: str | None = None) -> str:
        """Take a file in (it is moved, and must lie in :meth:`temporary`), and return its hex sha256.

        Raises:
            ArtifactError: its sum is not ``expect``, or the cache cannot be written.
        """
        with self.guarded():
            sha256 = digest(path)
            if expect is not None and sha256 != expect:
                raise ArtifactError(f"{path.name}: sha256 is {sha256}, and not {expect}")
            target = self.blob(sha256)
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as file:
                os.fchmod(file.fileno(), 0o444)
                os.fsync(file.fileno())
            path.replace(target)
            self._remember(sha256, _stamp(target))
        return sha256

    def record_derived(self, key: str, members: Mapping[str, str]) -> None:
        """Note what was taken out of the archive with that sum."""
        with self.guarded():
            self._write(self._derived(key), json.dumps(dict(sorted(members.items())), indent=1))

    def note(self, key: str, path: Path) -> None:
        """Remember how a file looks now that was made out of a blob and has no sum of its own."""
        with self.guarded():
            self._remember(key, _stamp(path))

    def unchanged(self, key: str, path: Path) -> bool:
        """Whether a file is there and looks as it did when it was noted."""
        try:
            return self._remembered(key) == _stamp(path)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def partial(self, key: str) -> Path:
        """The file that a download identified by ``key`` is written to, in this run and the next."""
        with self.guarded():
            directory = self.root / "partial"
            directory.mkdir(parents=True, exist_ok=True)
        return directory / hashlib.sha256(key.encode()).hexdigest()[:32]

    @contextlib.contextmanager
    def temporary(self) -> Iterator[Path]:
        """A directory on the cache's own file system, gone afterwards."""
        with self.guarded():
            work = self.root / "work"
            work.mkdir(parents=True, exist_ok=True)
            _sweep(work)
            directory = Path(tempfile.mkdtemp(dir=work))
            # held while it is in use: what nobody holds was left by a killed run
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            with self.guarded():
                yield directory
        finally:
            os.close(handle)
            _remove(directory)

    @contextlib.contextmanager
    def exclusive(self, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """One run at a time does what ``key`` names; the others wait. The kernel frees the lock with its process.

        Args:
            key: any text.
            waiting: called once, where another run holds the lock.
        """
        with self.guarded():
            locks = self.root / "locks"
            locks.mkdir(parents=True, exist_ok=True)
            handle = os.open(locks / hashlib.sha256(key.encode()).hexdigest()[:32], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if not _try_lock(handle):
                waiting()

                def locked() -> None:
                    if not _try_lock(handle):
                        raise NotYet("another process holds it")

                wait_until(f"{key}: the other run that works on it", locked, seconds=LOCK_SECONDS)
            yield
        finally:
            os.close(handle)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Turn the file system's errors into one the user can act on."""
        try:
            yield
        except OSError as error:
            if error.errno in _FULL:
                raise ArtifactError(
                    f"{self.root}: the artifact cache's disk is full",
                    hint="free some space (a whole set of files takes 1.5 GiB, building it 6 GiB more), "
                    "or name another directory in $PROVISIONER_CACHE",
                ) from None
            raise ArtifactError(
                f"{self.root}: the artifact cache cannot be used: {error}",
                hint="name a directory of your own in $PROVISIONER_CACHE",
            ) from None

    # -- inside -------------------------------------------------------------------------------------------------------

    def _index(self, sha256: str) -> Path:
        return self.root / "index" / f"{sha256}.json"

    def _derived(self, key: str) -> Path:
        return self.root / "derived" / f"{key.replace(':', '-')}.json"

    def _remembered(self, sha256: str) -> object:
        try:
            return json.loads(self._index(sha256).read_text())
        except (OSError, ValueError):
            return None

    def _remember(self, sha256: str, stamp: list[int]) -> None:
        self._write(self._index(sha256), json.dumps(stamp))

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False) as file:
            try:
                file.write(text)
                file.flush()
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise


def copy(source: IO[bytes], target: IO[bytes]) -> None:
    """Copy to the end, in large pieces."""
    shutil.copyfileobj(source, target, CHUNK)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(work: Path) -> None:
    """Remove what killed runs left. A directory that is just being made is not locked yet, so young ones are let be."""
    for directory in work.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - directory.stat().st_mtime < SWEEP_SECONDS:
                continue
            handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if _try_lock(handle):
                    _remove(directory)
            finally:
                os.close(handle)


def _remove(directory: Path) -> None:
    """Remove a tree, read-only directories (Go's module cache makes such) included."""
    for parent, _, _ in os.walk(directory):
        with contextlib.suppress(OSError):
            Path(parent).chmod(0o700)
    shutil.rmtree(directory, ignore_errors=True)
