"""Whatever happens to the files, the next run either cures it or says so: crashes, kills, torn and rotten files, races."""

from __future__ import annotations

import datetime as dt
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner import workspace
from provisioner.config import Cluster
from provisioner.pki import Pki, PkiError, cluster_id, ensure, store
from provisioner.pki.specs import general_names
from provisioner.wait import NotYet, wait_until

ROOTS = ("cluster-ca.pem", "etcd-ca.pem", "front-proxy-ca.pem", "service-account.pem", "encryption.key")
# Rotten bytes may still be ASN.1, of a kind the library finds worth a warning.
tolerant = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")


def roots_of(root: Path) -> dict[str, bytes]:
    return {name: (root / name).read_bytes() for name in ROOTS if (root / name).exists()}


def temporary_files(root: Path) -> list[Path]:
    return [path for path in root.rglob(".*") if path.name != ".lock"]


class PowerCut(BaseException):
    """Nothing below catches it, as nothing catches a power cut."""


@pytest.mark.parametrize("writes", range(13))
def test_a_run_that_dies_after_any_write_is_taken_up(
    cluster: Cluster, root: Path, now: dt.datetime, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    left = [writes]

    def dying(path: Path, data: bytes | str, *, mode: int = 0o600) -> None:
        if left[0] == 0:
            raise PowerCut
        left[0] -= 1
        workspace.write_atomic(path, data, mode=mode)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_atomic", dying)
        if writes < 12:
            with pytest.raises(PowerCut):
                ensure(cluster, root, now=now)
        else:
            ensure(cluster, root, now=now)
    survived = roots_of(root)
    again = ensure(cluster, root, now=now)
    assert survived.items() <= roots_of(root).items()
    assert ensure(cluster, root, now=now).issued == ()
    assert len(again.leaves) == 50


PROGRAM = """
import datetime as dt, sys
from pathlib import Path
from provisioner.config import Cluster
from provisioner.pki import cluster_id, ensure
nodes = [{"name": f"n-{i}", "address": f"10.9.{i // 250}.{i % 250 + 1}", "roles": ["worker"]} for i in range(int(sys.argv[2]))]
nodes[0]["roles"] = ["control-plane", "etcd"]
cluster = Cluster.model_validate({"apiVersion": "provisioner/v1", "name": "test", "nodes": nodes})
print(cluster_id(ensure(cluster, Path(sys.argv[1]), now=dt.datetime.fromtimestamp(float(sys.argv[3]), dt.UTC))))
"""


def start(root: Path, nodes: int, now: dt.datetime) -> subprocess.Popen[str]:
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), str(nodes), str(now.timestamp())],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("files", [0, 2, 6, 30, 90])
def test_a_killed_run_is_taken_up(root: Path, now: dt.datetime, files: int) -> None:
    """SIGKILL at the moment so many files are there; wherever it hits, the roots stay and the rest is completed."""
    with start(root, 120, now) as process:

        def enough() -> None:
            if process.poll() is None and len([*root.rglob("*.pem")]) < files:
                raise NotYet("too few files yet")

        wait_until("files of the run to be killed", enough, seconds=120, every=0.001)
        process.send_signal(signal.SIGKILL)
    survived = roots_of(root)
    with start(root, 120, now) as second:
        assert second.wait(timeout=120) == 0
    assert survived.items() <= roots_of(root).items()
    assert temporary_files(root) == []
    assert len([*(root / "nodes").glob("*.pem")]) == 120


def test_what_a_killed_run_left_half_written_is_deleted(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    (root / ".cluster-ca.pem.abc123").write_bytes(b"half")
    (root / "nodes" / ".w-1.pem.abc123").write_bytes(b"half")
    assert ensure(cluster, root, now=now).issued == ()
    assert temporary_files(root) == []


def test_runs_at_once_agree_on_one_cluster(root: Path, now: dt.datetime) -> None:
    processes = [start(root, 20, now) for _ in range(3)]
    answers = {process.communicate(timeout=120)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(answers) == 1
    assert len(answers.pop()) == 16


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cluster, Path, dt.datetime]:
    """A small PKI that the tests below copy and spoil."""
    nodes = [
        {"name": "cp-1", "address": "10.77.0.11", "roles": ["control-plane", "etcd"]},
        {"name": "w-1", "address": "10.77.0.21", "roles": ["worker"]},
    ]
    cluster = Cluster.model_validate({"apiVersion": "provisioner/v1", "name": "test", "nodes": nodes})
    root = tmp_path_factory.mktemp("sound") / "pki"
    now = dt.datetime(2030, 5, 17, tzinfo=dt.UTC)
    ensure(cluster, root, now=now)
    return cluster, root, now


def spoil(content: bytes, *, seed: int, how: str) -> bytes:
    chance = random.Random(seed)  # noqa: S311 - picks a place to damage
    at = chance.randrange(len(content))
    match how:
        case "truncate":
            return content[:at]
        case "flip":
            return content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :]
        case "cut":
            return content[:at] + content[at + chance.randrange(1, 2000) :]
        case "repeat":
            return content + content[at:]
        case _:
            return chance.randbytes(at)


def ensure_or_error(cluster: Cluster, root: Path, now: dt.datetime) -> Pki | PkiError:
    try:
        return ensure(cluster, root, now=now)
    except PkiError as error:
        return error


@tolerant
@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from([*ROOTS, "controller.pem", "nodes/cp-1.pem", "nodes/w-1.pem"]),
    seed=st.integers(min_value=0, max_value=1 << 32),
    how=st.sampled_from(["truncate", "flip", "cut", "repeat", "noise"]),
)
def test_rotten_files(sound: tuple[Cluster, Path, dt.datetime], name: str, seed: int, how: str) -> None:
    """A rotten certificate is made anew; a rotten root is an error, or was read as the very same root."""
    cluster, origin, now = sound
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "pki"
        shutil.copytree(origin, root)
        before = roots_of(root)
        path = root / name
        path.write_bytes(spoil(path.read_bytes(), seed=seed, how=how))
        after = roots_of(root)
        outcome = ensure_or_error(cluster, root, now)
        assert roots_of(root) == after
        if isinstance(outcome, PkiError):
            assert name in ROOTS
            assert name in outcome.message
            assert outcome.hint
            return
        intact = ensure(cluster, origin, now=now)
        assert outcome.leaves.keys() == intact.leaves.keys()
        assert ensure(cluster, root, now=now).issued == ()
        if name in ROOTS[:3]:
            assert cluster_id(outcome) == cluster_id(intact)
        for other in set(ROOTS) - {name}:
            assert after[other] == before[other]


@settings(deadline=None)
@given(st.lists(st.text(max_size=30) | st.ip_addresses().map(str), max_size=5))
def test_any_text_as_a_name(names: list[str]) -> None:
    """Either a name that can be written into a certificate, or a ValueError: the only ways out."""
    try:
        found = general_names(names)
    except ValueError:
        return
    assert found == general_names(reversed(names))
    assert len(found) <= len(names)
