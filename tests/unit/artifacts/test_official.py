"""The sources `mirror` and `release`, against a server in the official layout that does all that servers do wrong."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from provisioner.artifacts import Cache, CachedFile, Lock, ensure
from provisioner.artifacts.download import CHUNK
from provisioner.config import HttpProxy
from provisioner.errors import ArtifactError, BadInput

from .conftest import (
    APISERVER_WANT,
    ETCD,
    ETCD_PATH,
    ETCD_TARBALL,
    ETCD_WANTS,
    KUBELET,
    KUBELET_PATH,
    KUBELET_WANT,
    PATIENT,
    QUICK,
    RUNC_WANT,
    SERVER_PATH,
    SERVER_TARBALL,
    Notes,
    Site,
    from_mirror,
    make_lock,
    sha256,
    tarball,
)


def whole(error: pytest.ExceptionInfo[ArtifactError]) -> str:
    return "\n".join((error.value.message, *error.value.details, error.value.hint))


def test_a_bare_file_comes_from_the_mirror(site: Site, cache: Cache, notes: Notes) -> None:
    found = from_mirror(site, cache, KUBELET_WANT, notes=notes)["kubelet"]
    assert found.path.read_bytes() == KUBELET
    assert found == CachedFile("kubelet", found.path, sha256(KUBELET), len(KUBELET), "mirror")
    assert notes.totals["kubelet"] == len(KUBELET)
    assert notes.done["kubelet"][-1] == len(KUBELET)
    assert list((cache.root / "partial").iterdir()) == []
    assert list((cache.root / "work").iterdir()) == []


def test_members_of_an_archive_come_with_one_download(site: Site, cache: Cache) -> None:
    found = from_mirror(site, cache, *ETCD_WANTS)
    assert {name: file.path.read_bytes() for name, file in found.items()} == ETCD
    assert site.asked == [(ETCD_PATH, "")]


def test_the_official_sites_are_asked_by_name_over_tls(official: Site, cache: Cache, lock: Lock) -> None:
    found = ensure((KUBELET_WANT, *ETCD_WANTS), lock, sources=("release",), cache=cache, patience=PATIENT)
    assert found["kubelet"].path.read_bytes() == KUBELET
    assert found["etcd"].source == "release"
    assert sorted(path for path, _ in official.asked) == [KUBELET_PATH, ETCD_PATH]


def test_a_redirect_is_followed(official: Site, cache: Cache, lock: Lock) -> None:
    official.redirects[KUBELET_PATH] = "https://cdn.example.com/kubelet"
    official.files["cdn.example.com/kubelet"] = KUBELET
    found = ensure((KUBELET_WANT,), lock, sources=("release",), cache=cache, patience=PATIENT)
    assert found["kubelet"].path.read_bytes() == KUBELET


def test_an_untrusted_certificate_is_refused(
    official: Site, cache: Cache, lock: Lock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "empty.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(ArtifactError) as error:
        ensure((KUBELET_WANT,), lock, sources=("release",), cache=cache, patience=PATIENT)
    assert "CERTIFICATE_VERIFY_FAILED" in whole(error)
    assert official.asked == []


def test_warm_nothing_is_asked(site: Site, cache: Cache) -> None:
    first = from_mirror(site, cache, KUBELET_WANT, *ETCD_WANTS)
    site.asked.clear()
    assert from_mirror(site, cache, KUBELET_WANT, *ETCD_WANTS) == first
    assert site.asked == []


def test_a_directory_is_a_mirror_too(cache: Cache, lock: Lock, tmp_path: Path) -> None:
    for path, data in ((KUBELET_PATH, KUBELET), (ETCD_PATH, ETCD_TARBALL)):
        (tmp_path / "mirror" / path).parent.mkdir(parents=True)
        (tmp_path / "mirror" / path).write_bytes(data)
    found = ensure((KUBELET_WANT, *ETCD_WANTS), lock, sources=("mirror",), mirror=str(tmp_path / "mirror"), cache=cache)
    assert found["kubelet"].path.read_bytes() == KUBELET
    assert found["etcdctl"].path.read_bytes() == ETCD["etcdctl"]
    # the mirror's own files are left alone
    assert (tmp_path / "mirror" / KUBELET_PATH).read_bytes() == KUBELET


def test_a_missing_mirror_directory_is_named(cache: Cache, lock: Lock, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as error:
        ensure((KUBELET_WANT,), lock, sources=("mirror",), mirror=str(tmp_path / "gone"), cache=cache)
    assert f"{tmp_path / 'gone'}: no such directory" in whole(error)


def test_wrong_bytes_are_thrown_away_and_both_sums_named(site: Site, cache: Cache) -> None:
    wrong = b"x" + KUBELET[1:]
    site.files[KUBELET_PATH] = wrong
    with pytest.raises(ArtifactError) as error:
        from_mirror(site, cache, KUBELET_WANT)
    assert f"its sha256 is {sha256(wrong)}, and the lock has {sha256(KUBELET)}" in whole(error)
    assert cache.blobs() == ()
    assert list((cache.root / "partial").iterdir()) == []


def test_a_file_cut_short_by_its_server_is_refused(site: Site, cache: Cache) -> None:
    site.files[KUBELET_PATH] = KUBELET[:-1]
    with pytest.raises(ArtifactError) as error:
        from_mirror(site, cache, KUBELET_WANT)
    assert "wrong bytes" in whole(error)


def test_a_dying_connection_is_resumed_and_hardly_a_byte_sent_twice(site: Site, cache: Cache) -> None:
    # the pieces are whole reads of the client, so that what arrived is exactly what was sent
    site.dies_after[KUBELET_PATH] = [4 * CHUNK, 2 * CHUNK, CHUNK]
    found = from_mirror(site, cache, KUBELET_WANT)["kubelet"]
    assert found.path.read_bytes() == KUBELET
    ranges = [asked for _, asked in site.asked]
    assert ranges == ["", f"bytes={4 * CHUNK}-", f"bytes={6 * CHUNK}-", f"bytes={7 * CHUNK}-"]
    assert site.sent[KUBELET_PATH] == len(KUBELET)


def test_a_later_run_goes_on_where_one_stopped(site: Site, cache: Cache) -> None:
    half = 8 * CHUNK
    site.dies_after[KUBELET_PATH] = [half, *([0] * 100)]
    with pytest.raises(ArtifactError) as error:
        from_mirror(site, cache, KUBELET_WANT, patience=QUICK)
    assert "not reached within" in whole(error)
    site.dies_after.clear()
    site.sent.clear()
    found = from_mirror(site, cache, KUBELET_WANT)["kubelet"]
    assert found.path.read_bytes() == KUBELET
    assert site.sent[KUBELET_PATH] == len(KUBELET) - half


def test_a_server_without_ranges_starts_over(site: Site, cache: Cache) -> None:
    site.ranges = False
    site.dies_after[KUBELET_PATH] = [4 * CHUNK]
    assert from_mirror(site, cache, KUBELET_WANT)["kubelet"].path.read_bytes() == KUBELET
    assert site.sent[KUBELET_PATH] == len(KUBELET) + 4 * CHUNK


def test_a_leftover_that_is_no_beginning_of_the_file_is_dropped(site: Site, cache: Cache) -> None:
    site.dies_after[KUBELET_PATH] = [CHUNK, *([0] * 100)]
    with pytest.raises(ArtifactError):
        from_mirror(site, cache, KUBELET_WANT, patience=QUICK)
    (left,) = (cache.root / "partial").iterdir()
    site.dies_after.clear()
    left.write_bytes(b"other bytes of just some length")
    assert from_mirror(site, cache, KUBELET_WANT)["kubelet"].path.read_bytes() == KUBELET


def test_a_leftover_that_is_longer_than_the_file_is_dropped(site: Site, cache: Cache) -> None:
    site.dies_after[KUBELET_PATH] = [CHUNK, *([0] * 100)]
    with pytest.raises(ArtifactError):
        from_mirror(site, cache, KUBELET_WANT, patience=QUICK)
    (left,) = (cache.root / "partial").iterdir()
    site.dies_after.clear()
    left.write_bytes(KUBELET + b"more")
    assert from_mirror(site, cache, KUBELET_WANT)["kubelet"].path.read_bytes() == KUBELET


def test_a_passing_server_error_is_waited_out(site: Site, cache: Cache) -> None:
    site.statuses[KUBELET_PATH] = [503, 429, 500]
    assert from_mirror(site, cache, KUBELET_WANT)["kubelet"].path.read_bytes() == KUBELET
    assert len(site.asked) == 4


def test_a_lasting_server_error_is_told(site: Site, cache: Cache) -> None:
    site.statuses[KUBELET_PATH] = [503] * 1000
    with pytest.raises(ArtifactError) as error:
        from_mirror(site, cache, KUBELET_WANT, patience=QUICK)
    assert "HTTP 503" in whole(error)


def test_a_missing_file_is_told_at_once(site: Site, cache: Cache) -> None:
    del site.files[KUBELET_PATH]
    with pytest.raises(ArtifactError) as error:
        from_mirror(site, cache, KUBELET_WANT, *ETCD_WANTS)
    assert f"{site.url}/{KUBELET_PATH}: HTTP 404" in whole(error)
    assert "1 file could not be had" in error.value.message
    # what could be had is kept
    assert len(cache.blobs()) == len(ETCD)
    assert len([path for path, _ in site.asked if path == KUBELET_PATH]) == 1


def test_a_dead_site_is_given_up_once_for_all_its_files(cache: Cache, site: Site) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        site.port = closed.getsockname()[1]
    with pytest.raises(ArtifactError) as error:
        from_mirror(site, cache, KUBELET_WANT, *ETCD_WANTS, patience=QUICK)
    assert "4 files could not be had" in error.value.message
    assert "127.0.0.1 cannot be reached (" in whole(error)
    assert "refused" in whole(error)


def test_a_file_without_a_known_sum_is_refused_before_anything_is_asked(site: Site, cache: Cache) -> None:
    with pytest.raises(ArtifactError) as error:
        from_mirror(site, cache, RUNC_WANT)
    assert "no published sum of the official file is known" in whole(error)
    assert "provisioner artifacts lock --source release --arch amd64 runc" in whole(error)
    assert site.asked == []


def test_sources_are_tried_in_the_users_order(official: Site, cache: Cache, lock: Lock, tmp_path: Path) -> None:
    mirrored = tmp_path / "mirror" / KUBELET_PATH
    mirrored.parent.mkdir(parents=True)
    mirrored.write_bytes(KUBELET)
    mirror = str(tmp_path / "mirror")
    found = ensure((KUBELET_WANT,), lock, sources=("mirror", "release"), mirror=mirror, cache=cache, patience=PATIENT)
    assert (found["kubelet"].source, official.asked) == ("mirror", [])
    other = Cache.open(tmp_path / "other")
    found = ensure((KUBELET_WANT,), lock, sources=("release", "mirror"), mirror=mirror, cache=other, patience=PATIENT)
    assert found["kubelet"].source == "release"
    assert [path for path, _ in official.asked] == [KUBELET_PATH]


def test_the_next_source_fills_in_for_one_that_lacks_a_file(official: Site, cache: Cache, lock: Lock, tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    wants = (KUBELET_WANT, *ETCD_WANTS)
    found = ensure(wants, lock, sources=("mirror", "release"), mirror=str(tmp_path / "mirror"), cache=cache, patience=PATIENT)
    assert {file.source for file in found.values()} == {"release"}


def test_every_source_says_why_it_failed(site: Site, cache: Cache, lock: Lock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", site.url)
    monkeypatch.setenv("SSL_CERT_FILE", str(site.authority))
    with pytest.raises(ArtifactError) as error:
        ensure((RUNC_WANT,), lock, sources=("mirror", "release", "modules"), mirror=site.url, cache=cache, patience=QUICK)
    text = whole(error)
    assert "runc (runc 1.4.3, amd64)" in text
    assert "  mirror: no published sum" in text
    assert "  release: no published sum" in text
    assert "  modules: no sum of a build is known" in text
    assert "lock --source modules --arch amd64 runc" in text


def test_without_an_address_the_mirror_is_passed_over(official: Site, cache: Cache, lock: Lock) -> None:
    found = ensure((KUBELET_WANT,), lock, sources=("mirror", "release"), cache=cache, patience=PATIENT)
    assert found["kubelet"].source == "release"
    with pytest.raises(BadInput, match="has no address"):
        ensure((KUBELET_WANT,), lock, sources=("mirror",), cache=cache)
    with pytest.raises(BadInput, match="no source of artifacts"):
        ensure((KUBELET_WANT,), lock, sources=("ftp",), cache=cache)
    assert len(official.asked) == 1


def test_a_tarball_stands_in_for_a_bare_file_by_its_sha512(site: Site, cache: Cache) -> None:
    del site.files[KUBELET_PATH]
    site.files[SERVER_PATH] = SERVER_TARBALL
    found = from_mirror(site, cache, KUBELET_WANT, APISERVER_WANT)
    assert found["kubelet"].path.read_bytes() == KUBELET
    assert found["kube-apiserver"].path.read_bytes() == b"apiserver"
    assert [path for path, _ in site.asked].count(SERVER_PATH) == 1


def test_a_login_of_the_mirror_is_used_and_never_shown(site: Site, cache: Cache, lock: Lock) -> None:
    address = site.url.replace("//", "//user:p%40ss@")
    ensure((KUBELET_WANT,), lock, sources=("mirror",), mirror=address, cache=cache, patience=PATIENT)
    assert site.logins == ["Basic dXNlcjpwQHNz"]
    with pytest.raises(ArtifactError) as error:
        ensure((APISERVER_WANT,), lock, sources=("mirror",), mirror=address, cache=cache, patience=PATIENT)
    assert "HTTP 404" in whole(error)
    assert "p%40ss" not in whole(error)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"../../etc/passwd": b"x"}, "outside of itself"),
        ({"/etc/passwd": b"x"}, "outside of itself"),
        ({"etcd-v3.6.14-linux-amd64/README": b"x"}, "does not hold"),
        (None, "not a tar archive"),
    ],
)
def test_an_archive_with_other_members_than_it_should_have_is_refused(
    site: Site, cache: Cache, members: dict[str, bytes] | None, said: str
) -> None:
    good = {f"etcd-v3.6.14-linux-amd64/{name}": content for name, content in ETCD.items()}
    data = b"no archive at all" * 100 if members is None else tarball(members if "README" in str(members) else {**members, **good})
    site.files[ETCD_PATH] = data
    lock = make_lock()
    component = lock.components["etcd"].model_dump()
    component["versions"]["3.6.14"]["official"]["tarball"]["amd64"] = f"sha256:{sha256(data)}"
    with pytest.raises(ArtifactError) as error:
        from_mirror(site, cache, *ETCD_WANTS, lock=make_lock(etcd=component))
    assert said in whole(error)
    assert cache.blobs() == ()


def test_two_runs_at_once_download_once(site: Site, cache: Cache) -> None:
    results: list[dict[str, CachedFile]] = []

    def run() -> None:
        results.append(from_mirror(site, Cache.open(cache.root), KUBELET_WANT, *ETCD_WANTS))

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert all(result == results[0] for result in results)
    assert sorted(path for path, _ in site.asked) == [KUBELET_PATH, ETCD_PATH]


def test_a_full_disk_is_told_and_leaves_the_cache_sound(site: Site, cache: Cache) -> None:
    # a limit on file size makes the kernel refuse the write (EFBIG), as it does on a full disk (ENOSPC), and needs no mount
    script = """
import resource, signal, sys
from pathlib import Path
from provisioner.artifacts import Cache, Lock, Want, ensure
from provisioner.errors import ArtifactError
address, cache, lock, limit = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
want = Want("kubernetes", "1.36.3", "kubelet", "amd64")
try:
    ensure((want,), Lock.model_validate_json(lock), sources=("mirror",), mirror=address, cache=Cache.open(Path(cache)))
except ArtifactError as error:
    print(error.message, error.hint)
"""
    command = [sys.executable, "-c", script, site.url, str(cache.root), make_lock().model_dump_json(), str(2 * CHUNK)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{cache.root}: the artifact cache's disk is full" in done.stdout
    assert "PROVISIONER_CACHE" in done.stdout
    assert cache.blobs() == ()
    assert from_mirror(site, cache, KUBELET_WANT)["kubelet"].path.read_bytes() == KUBELET


def test_the_lock_knows_sha512(lock: Lock) -> None:
    known = lock.release("kubernetes", "1.36.3").official["server"]["amd64"]
    assert known == f"sha512:{hashlib.sha512(SERVER_TARBALL).hexdigest()}"


def test_the_clusters_proxy_comes_before_the_environments(
    site: Site, cache: Cache, lock: Lock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(site.authority))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    proxy = HttpProxy(https=site.url)
    found = ensure((KUBELET_WANT,), lock, sources=("release",), cache=cache, patience=PATIENT, proxy=proxy)
    assert found["kubelet"].path.read_bytes() == KUBELET
    past = HttpProxy(https="http://127.0.0.1:9", http="http://127.0.0.1:9", no_proxy=("127.0.0.1",))
    found = ensure(ETCD_WANTS, lock, sources=("mirror",), mirror=site.url, cache=cache, patience=PATIENT, proxy=past)
    assert found["etcd"].path.read_bytes() == ETCD["etcd"]


def test_an_interrupt_ends_downloads_under_way(site: Site, cache: Cache, lock: Lock) -> None:
    class Interrupting(Notes):
        """Ctrl-C, as it reaches the main thread: while it waits for the downloads."""

        def advance(self, key: str, done: int) -> None:
            if not self.done:
                os.kill(os.getpid(), signal.SIGINT)
            super().advance(key, done)

    # an endless stream of dying connections: without the interrupt this would go on for a long time
    site.dies_after[KUBELET_PATH] = [CHUNK] * 8 + [0] * 10_000
    with pytest.raises(KeyboardInterrupt):
        from_mirror(site, cache, KUBELET_WANT, notes=Interrupting())
    site.dies_after.clear()
    assert from_mirror(site, cache, KUBELET_WANT)["kubelet"].path.read_bytes() == KUBELET
    assert lock.kubernetes_versions == ("1.36.3",)
