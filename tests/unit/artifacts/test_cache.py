"""The cache: by sum, checked, safe for several runs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from provisioner.artifacts import Cache
from provisioner.artifacts.cache import default_directory
from provisioner.errors import ArtifactError

from .conftest import KUBELET, KUBELET_PATH, KUBELET_WANT, Notes, Site, from_mirror, sha256


def put(cache: Cache, data: bytes) -> str:
    with cache.temporary() as work:
        (work / "file").write_bytes(data)
        return cache.add(work / "file")


def test_a_file_is_found_by_its_sum_alone(cache: Cache, notes: Notes) -> None:
    assert cache.find(sha256(b"data"), notes.warn) is None
    assert put(cache, b"data") == sha256(b"data")
    found = cache.find(sha256(b"data"), notes.warn)
    assert found is not None
    assert found.read_bytes() == b"data"
    assert found.stat().st_mode & 0o777 == 0o444
    assert cache.blobs() == (sha256(b"data"),)
    assert list((cache.root / "work").iterdir()) == []


def test_other_bytes_than_expected_are_not_taken_in(cache: Cache) -> None:
    with cache.temporary() as work:
        (work / "file").write_bytes(b"data")
        with pytest.raises(ArtifactError, match=sha256(b"other")):
            cache.add(work / "file", expect=sha256(b"other"))
    assert cache.blobs() == ()


def damage(path: Path) -> None:
    """Change one byte and nothing else that is easily seen: size and modification time stay."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    path.chmod(0o444)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_damaged_file_is_noticed_removed_and_fetched_anew(site: Site, cache: Cache, notes: Notes) -> None:
    path = from_mirror(site, cache, KUBELET_WANT)["kubelet"].path
    damage(path)
    found = from_mirror(site, cache, KUBELET_WANT, notes=notes)["kubelet"]
    assert found.path.read_bytes() == KUBELET
    assert [asked for asked, _ in site.asked] == [KUBELET_PATH] * 2
    assert len(notes.warnings) == 1
    assert f"{path}: damaged" in notes.warnings[0]


def test_a_cut_off_file_is_noticed(site: Site, cache: Cache, notes: Notes) -> None:
    path = from_mirror(site, cache, KUBELET_WANT)["kubelet"].path
    path.chmod(0o644)
    os.truncate(path, 100)
    assert from_mirror(site, cache, KUBELET_WANT, notes=notes)["kubelet"].path.read_bytes() == KUBELET
    assert len(notes.warnings) == 1


def test_a_touched_file_is_hashed_again_and_kept(site: Site, cache: Cache, notes: Notes) -> None:
    path = from_mirror(site, cache, KUBELET_WANT)["kubelet"].path
    os.utime(path)
    from_mirror(site, cache, KUBELET_WANT, notes=notes)
    assert len(site.asked) == 1
    assert notes.warnings == []
    # and what was seen is remembered again
    assert cache.find(sha256(KUBELET), notes.warn) == path


def test_rot_that_no_time_tells_of_is_found_by_the_full_check(cache: Cache, notes: Notes) -> None:
    sum_ = put(cache, KUBELET)
    damage(cache.blob(sum_))
    # as a bad disk would have it: the index agrees with what stat says of the damaged file
    cache._remember(sum_, _stamp_of(cache.blob(sum_)))
    assert cache.find(sum_, notes.warn) is not None
    assert cache.find(sum_, notes.warn, full=True) is None
    assert cache.blobs() == ()


def _stamp_of(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"x"', "null"])
def test_a_broken_index_costs_a_hash_and_nothing_else(cache: Cache, notes: Notes, text: str) -> None:
    sum_ = put(cache, b"data")
    (cache.root / "index" / f"{sum_}.json").write_text(text)
    assert cache.find(sum_, notes.warn) == cache.blob(sum_)
    assert notes.warnings == []


def test_a_killed_run_leaves_the_lock_free_and_nothing_half_done(cache: Cache) -> None:
    script = """
import sys, os, signal
from pathlib import Path
from provisioner.artifacts import Cache
cache = Cache.open(Path(sys.argv[1]))
with cache.exclusive("work", lambda: None), cache.temporary() as work:
    (work / "half").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script, str(cache.root)], check=False)
    assert done.returncode == -9
    waited: list[bool] = []
    with cache.exclusive("work", lambda: waited.append(True)):
        pass
    assert waited == []
    assert cache.blobs() == ()


def test_the_second_run_waits_for_the_first_and_says_so(cache: Cache) -> None:
    order: list[str] = []
    inside, told = threading.Event(), threading.Event()

    def second() -> None:
        inside.wait()
        with cache.exclusive("work", told.set):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with cache.exclusive("work", lambda: None):
        inside.set()
        assert told.wait(60)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_cache_that_cannot_be_written_is_told_with_the_way_out(tmp_path: Path) -> None:
    # a file where the directory should be fails for root too, unlike a mode
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ArtifactError) as error, Cache.open(tmp_path / "cache").temporary():
        pass
    assert str(tmp_path / "cache") in error.value.message
    assert "$PROVISIONER_CACHE" in error.value.hint


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("PROVISIONER_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_directory() == Path("/home/me/.cache/provisioner")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert default_directory() == Path("/home/me/.cache/provisioner")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert default_directory() == Path("/var/cache/provisioner")
    monkeypatch.setenv("PROVISIONER_CACHE", "~/elsewhere")
    assert default_directory() == Path("/home/me/elsewhere")


def test_a_warm_cache_hashes_nothing(site: Site, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    from_mirror(site, cache, KUBELET_WANT)
    monkeypatch.setattr("provisioner.artifacts.cache.digest", None)  # would raise where it is called
    started = time.monotonic()
    assert from_mirror(site, cache, KUBELET_WANT)["kubelet"].size == len(KUBELET)
    assert time.monotonic() - started < 30


def test_what_a_killed_run_left_is_swept_away_and_work_under_way_is_not(cache: Cache) -> None:
    left = cache.root / "work" / "left"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "file").write_bytes(b"x")
    (left / "deep").chmod(0o500)
    with cache.temporary() as busy:
        young = cache.root / "work" / "young"
        young.mkdir()
        long_ago = time.time() - 24 * 3600
        for directory in (left, busy):
            os.utime(directory, (long_ago, long_ago))
        with cache.temporary():
            assert not left.exists()
            assert busy.is_dir()
            assert young.is_dir()
