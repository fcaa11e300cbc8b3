"""The source `modules` for real: Go compiles a component, twice, from nothing, to the very bytes of the lock."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from provisioner.artifacts import Cache, Want, ensure, load_lock
from provisioner.artifacts.lock import Lock
from provisioner.artifacts.toolchain import machine
from provisioner.errors import ArtifactError

# one small binary of a small module: about 10 s from nothing on two idle cores
WANT = Want("cni-plugins", "1.9.1", "cni/host-local", machine())

pytestmark = [
    pytest.mark.skipif(
        shutil.which("go") is None and "GOPROXY" not in os.environ, reason="neither Go nor a module proxy ($GOPROXY) is here"
    ),
    pytest.mark.skipif(
        load_lock().release(WANT.component, WANT.version).modules[WANT.name][WANT.arch] is None,
        reason=f"the lock has no sum of {WANT}",
    ),
]


def build(lock: Lock, directory: Path, monkeypatch: pytest.MonkeyPatch, **environment: str) -> tuple[str, Cache]:
    """Build with an empty Go cache; returns the sha256 that was locked and found."""
    with monkeypatch.context() as patch:
        patch.setenv("GOCACHE", str(directory / "go-cache"))
        for name, value in environment.items():
            patch.setenv(name, value)
        cache = Cache.open(directory / "cache")
        return ensure((WANT,), lock, sources=("modules",), cache=cache)[WANT.name].sha256, cache


def test_two_builds_give_the_bytes_of_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = load_lock()
    locked = lock.release(WANT.component, WANT.version).modules[WANT.name][WANT.arch]
    first, cache = build(lock, tmp_path / "first", monkeypatch)
    assert f"sha256:{first}" == locked
    assert list((cache.root / "work").iterdir()) == []
    # elsewhere, from nothing again, and with an environment that would change the bytes if it were heard
    (tmp_path / "second" / "deeper").mkdir(parents=True)
    second, _ = build(
        lock,
        tmp_path / "second" / "deeper",
        monkeypatch,
        GOFLAGS="-ldflags=-X=main.x=y",
        GOAMD64="v3",
        CGO_ENABLED="1",
        GOEXPERIMENT="nogreenteagc",
    )
    assert first == second


def test_a_build_with_other_bytes_than_the_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = load_lock().model_dump()
    document["components"][WANT.component]["versions"][WANT.version]["modules"][WANT.name][WANT.arch] = f"sha256:{'0' * 64}"
    with pytest.raises(ArtifactError) as error:
        ensure((WANT,), Lock.model_validate(document), sources=("modules",), cache=Cache.open(tmp_path / "cache"))
    text = "\n".join(error.value.details)
    assert f"and the lock has {'0' * 64}" in text
    assert "--force cni-plugins" in text
    assert Cache.open(tmp_path / "cache").blobs() == ()
