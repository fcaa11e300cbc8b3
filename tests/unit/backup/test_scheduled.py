"""What members take by themselves: whose turn it is, what they write, and what a restore believes of it."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import io
import json
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from provisioner import pki as pkis
from provisioner.backup import archive, on_machine, restore, scheduled, seal, snapshot
from provisioner.backup.archive import BackupError
from provisioner.config import Cluster
from provisioner.errors import BadInput
from provisioner.pki import CaName, Pki
from provisioner.pki import rotation as rotations
from provisioner.pki.store import ca_file
from provisioner.render.layout import binary_path
from provisioner.session import Session
from provisioner.workspace import Workspace

DATABASE = bytes(range(256)) * 64
NODES = [{"name": "a", "address": "192.0.2.1", "roles": ["control-plane", "etcd"]}]
MakeStatus = Callable[..., dict[str, Any]]


def status(member: int, *, leader: int = 1, term: int = 5, learner: bool = False, errors: tuple[str, ...] = ()) -> dict[str, Any]:
    """As etcdctl 3.6 prints it."""
    said = {"header": {"member_id": member}, "leader": leader, "raftTerm": term, "errors": list(errors), "version": "3.6.14"}
    return {"Endpoint": f"https://192.0.2.{member}:2379", "Status": said | ({"isLearner": True} if learner else {})}


@pytest.mark.parametrize(
    ("statuses", "turn"),
    [
        ([status(3), status(1), status(2)], 2),
        ([status(3, leader=2), status(2, leader=2), status(1, leader=2)], 1),
        # the one whose turn it was is dead
        ([status(3), status(1)], 3),
        # no other is fit
        ([status(1)], 1),
        ([status(1), status(2, learner=True)], 1),
        ([status(1), status(2, leader=0), status(3)], 3),
        # cut off, it follows the leader of an older term
        ([status(1), status(2, leader=9, term=4), status(3)], 3),
        ([status(1, errors=("memberID:2 alarm:CORRUPT ",)), status(2), status(3)], 3),
        ([status(1, errors=("memberID:2 alarm:NOSPACE ",)), status(2), status(3)], 2),
        ([status(1, leader=0)], None),
        ([], None),
    ],
)
def test_whose_turn_it_is(statuses: list[dict[str, Any]], turn: int | None) -> None:
    assert on_machine.chosen(statuses) == turn
    assert on_machine.chosen(statuses[::-1]) == turn, "whoever asks, and in whatever order they answer"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pki, bytes, Workspace]:
    """A cluster's keys, its CA as the workspace has it, and the workspace."""
    root = tmp_path_factory.mktemp("mine")
    workspace = Workspace(root / "workspace" / "mine", root / "cluster.yaml")
    workspace.create()
    made = pkis.ensure(cluster(), workspace.pki, now=dt.datetime.now(dt.UTC))
    return made, ca_file(workspace.pki, CaName.CLUSTER).read_bytes(), workspace


def cluster() -> Cluster:
    return Cluster.model_validate({"name": "mine", "nodes": NODES})


@pytest.fixture
def taken(keys: tuple[Pki, bytes, Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A backup that the script took, with etcd's tools answered for."""
    monkeypatch.setattr(on_machine, "own_status", lambda: status(2))
    monkeypatch.setattr(on_machine, "whose_turn", lambda: 2)

    def snapshot_of(path: Path) -> int:
        path.write_bytes(DATABASE)
        return 77

    monkeypatch.setattr(on_machine, "snapshot", snapshot_of)
    (tmp_path / "backups").mkdir()
    path = on_machine.take(settings(tmp_path), key_of(keys[0]))
    assert path is not None
    return path


def settings(directory: Path, **others: object) -> dict[str, Any]:
    fixed = {"cluster": "mine", "clusterId": "0123", "member": "a", "kubernetes": "1.36.3", "keep": 2, "recipients": [], "copy": []}
    return {**fixed, "directory": str(directory / "backups"), **others}


def key_of(keys: Pki) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(scheduled.key_file(keys).content)
    return document


def opened(path: Path, directory: Path, ca: bytes | None) -> archive.Opened:
    directory.mkdir()
    return archive.read(path, directory, ca=ca, who=path.name)


def test_a_restore_reads_what_a_member_took(taken: Path, keys: tuple[Pki, bytes, Workspace], tmp_path: Path) -> None:
    assert stat.S_IMODE(taken.stat().st_mode) == 0o600
    assert scheduled.NAME.fullmatch(taken.name)
    found = opened(taken, tmp_path / "read", keys[1])
    manifest = found.manifest
    assert manifest.is_data
    assert manifest.etcd == archive.EtcdState(version="3.6.14", revision=77, member="a")
    assert (manifest.cluster, manifest.kubernetes) == ("mine", "1.36.3")
    assert manifest.secrets_key == scheduled.secrets_fingerprint(keys[0])
    assert list(found.files) == [archive.SNAPSHOT]
    assert found.files[archive.SNAPSHOT].read_bytes() == DATABASE
    assert [path.name for path in taken.parent.iterdir()] == [taken.name], "nothing is left beside it"


def test_one_from_before_the_ca_was_replaced_is_read_by_what_is_kept_of_it(
    taken: Path, keys: tuple[Pki, bytes, Workspace], tmp_path: Path
) -> None:
    """Two backups of one member: of the CA that is gone, and of a cluster that never was this one."""
    root = tmp_path / "pki"
    shutil.copytree(keys[2].pki, root)
    now = dt.datetime.now(dt.UTC)
    rotations.begin(cluster(), root, tuple(CaName), now=now)
    for _ in range(2):
        rotations.advance(root)
    rotations.finish(root)
    new = ca_file(root, CaName.CLUSTER).read_bytes()
    (tmp_path / "read").mkdir()
    found = archive.read(taken, tmp_path / "read", ca=new, who="x", former=rotations.former(root))
    assert found.files[archive.SNAPSHOT].read_bytes() == DATABASE
    with pytest.raises(BackupError, match="a backup of another cluster"):
        opened(taken, tmp_path / "refused", new)


def test_one_that_was_changed_or_forged_is_refused(taken: Path, keys: tuple[Pki, bytes, Workspace], tmp_path: Path) -> None:
    whole = taken.read_bytes()
    for number, (old, new) in enumerate(((b'"revision": 77', b'"revision": 78'), (b'"member": "a"', b'"member": "b"'))):
        assert whole.count(old) == 1
        taken.write_bytes(whole.replace(old, new))
        with pytest.raises(BackupError, match="its manifest was changed"):
            opened(taken, tmp_path / f"read-{number}", keys[1])
    taken.write_bytes(whole.replace(DATABASE, DATABASE[::-1]))
    with pytest.raises(BackupError, match="SHA-256 differs"):
        opened(taken, tmp_path / "data", keys[1])
    taken.write_bytes(whole)
    with pytest.raises(BackupError, match="etcd's data alone, as the members back it up"):
        opened(taken, tmp_path / "import", None)


def test_a_members_key_makes_no_backup_of_the_other_kind(keys: tuple[Pki, bytes, Workspace], tmp_path: Path) -> None:
    """Who has broken into a member can sign etcd's data, which it has anyway, and not CAs for a workspace."""
    made, ca, workspace = keys
    workspace.cluster_file.write_text("name: mine\n")
    database = tmp_path / "db"
    database.write_bytes(DATABASE)
    state = archive.EtcdState(version="3.6.14", revision=7, member="a")
    files = {**archive.of_workspace(cluster(), workspace), archive.SNAPSHOT: database}
    archive.write(tmp_path / "full", archive.manifest_of(cluster(), made, state, ca), files, ca)
    with tarfile.open(tmp_path / "full") as tar:
        content = {entry.name: file.read() for entry in tar if (file := tar.extractfile(entry))}
    assert b"secretsKey" not in content[archive.MANIFEST], "as versions before have it"
    forged = hmac.new(bytes.fromhex(key_of(made)["mac"]), content[archive.MANIFEST], hashlib.sha256).hexdigest().encode()
    assert content[archive.MAC] != forged
    repacked(tmp_path / "forged", {**content, archive.MAC: forged})
    with pytest.raises(BackupError, match="its manifest was changed"):
        opened(tmp_path / "forged", tmp_path / "read", ca)
    # nor does one of that kind pass for data with more beside it
    document = json.loads(content[archive.MANIFEST]) | {"format": archive.DATA_FORMAT}
    repacked(tmp_path / "more", {**content, archive.MANIFEST: json.dumps(document).encode()})
    with pytest.raises(BackupError, match="it is not etcd's data alone, as it says"):
        opened(tmp_path / "more", tmp_path / "read-more", ca)


def repacked(path: Path, content: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def test_beside_another_key_of_secrets_it_is_refused(taken: Path, keys: tuple[Pki, bytes, Workspace], tmp_path: Path) -> None:
    _, ca, workspace = keys
    found = opened(taken, tmp_path / "read", ca)
    other = SimpleNamespace(encryption_key="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=")
    session = SimpleNamespace(cluster=cluster(), workspace=workspace, the_pki=lambda: other)
    with pytest.raises(BadInput, match="encrypted with another key"):
        restore.require_fit(cast("Session", session), found)


def test_the_oldest_go_and_what_was_left_goes(taken: Path, keys: tuple[Pki, bytes, Workspace], tmp_path: Path) -> None:
    directory = taken.parent
    names = [f"mine-2026010{day}T030000Z.data" for day in (1, 2, 3)]
    for name in (*names, "mine-2026-notes", "mine-two-20260101T030000Z.data", "last-good"):
        (directory / name).touch()
    (directory / ".taking-abc").mkdir()
    taken.rename(directory / names[0])
    path = on_machine.take(settings(tmp_path), key_of(keys[0]))
    assert path is not None
    kept = {path.name, names[2], "mine-2026-notes", "mine-two-20260101T030000Z.data", "last-good"}
    assert {one.name for one in directory.iterdir()} == kept


def test_another_members_turn(
    taken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(on_machine, "whose_turn", lambda: 0xABC)
    assert on_machine.take(settings(tmp_path), {}) is None
    assert "it is the turn of member abc" in capsys.readouterr().err
    monkeypatch.setattr(on_machine, "whose_turn", lambda: None)
    with pytest.raises(on_machine.FailedError, match="no member of etcd is fit"):
        on_machine.take(settings(tmp_path), {})


def test_a_snapshot_that_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "snapshot.db"
    monkeypatch.setattr(on_machine, "etcdctl", lambda *_: ["true"])
    monkeypatch.setattr(on_machine, "ask", lambda *_: {"revision": 5})
    path.write_bytes(DATABASE + hashlib.sha256(DATABASE).digest())
    assert on_machine.snapshot(path) == 5
    for wrong in (DATABASE, DATABASE[:-1] + b"x" + hashlib.sha256(DATABASE).digest(), b"", hashlib.sha256(b"").digest()):
        path.write_bytes(wrong)
        with pytest.raises(on_machine.FailedError, match="SHA-256 differs"):
            on_machine.snapshot(path)
    monkeypatch.setattr(on_machine, "etcdctl", lambda *_: ["sh", "-c", "echo one >&2; echo 'the disk is full' >&2; exit 1"])
    with pytest.raises(on_machine.FailedError, match=r"^sh failed: the disk is full$"):
        on_machine.snapshot(path)


class TestTheUnit:
    """``prepare``, ``take``, ``carry`` as the unit calls them."""

    @pytest.fixture(autouse=True)
    def _places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(on_machine, "CONFIG", str(tmp_path / "config"))
        monkeypatch.setattr(on_machine, "TAKEN", str(tmp_path / "taken"))

    def run(self, tmp_path: Path, action: str, **others: object) -> int:
        (tmp_path / "config").write_text(json.dumps(settings(tmp_path, **others)))
        return on_machine.main(action)

    def test_what_was_taken_is_carried_off_and_noted(self, tmp_path: Path) -> None:
        assert self.run(tmp_path, "prepare") == 0
        assert stat.S_IMODE((tmp_path / "backups").stat().st_mode) == 0o700
        assert self.run(tmp_path, "carry", copy=["false", "{file}"]) == 0, "nothing was taken here"
        file = tmp_path / "backups" / "mine-20260101T030000Z.data"
        file.write_text("backup")
        (tmp_path / "taken").write_text(str(file))
        assert self.run(tmp_path, "carry", copy=["cp", "{file}", str(tmp_path / "there")]) == 0
        assert (tmp_path / "there").read_text() == "backup"
        assert (tmp_path / "backups" / on_machine.GOOD).read_text() == f"{file.name}\n"

    @pytest.mark.parametrize(
        ("command", "says"),
        [(["false", "{file}"], "false ended with 1"), (["no-such-command-here", "{file}"], "cannot be run: No such file")],
    )
    def test_one_that_stays_is_a_failure(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str], says: str
    ) -> None:
        assert self.run(tmp_path, "prepare") == 0
        (tmp_path / "taken").write_text(str(tmp_path / "backups" / "mine-20260101T030000Z.data"))
        assert self.run(tmp_path, "carry", copy=command) == 1
        told = capsys.readouterr().err
        assert says in told
        assert "is on this machine alone" in told
        assert not (tmp_path / "backups" / on_machine.GOOD).exists()


def test_encryption_that_fails_says_why(
    taken: Path, keys: tuple[Pki, bytes, Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "age"
    tool.write_text("#!/bin/sh\necho 'age: error: malformed recipient' >&2\nexit 1\n")
    tool.chmod(0o755)
    monkeypatch.setattr(on_machine, "AGE", str(tool))
    before = sorted(taken.parent.iterdir())
    with pytest.raises(on_machine.FailedError, match=r"^age failed: age: error: malformed recipient$"):
        on_machine.take(settings(tmp_path, recipients=["age1x"]), key_of(keys[0]))
    assert sorted(taken.parent.iterdir()) == before


def test_names_and_places_agree(taken: Path, keys: tuple[Pki, bytes, Workspace]) -> None:
    assert binary_path("age") == on_machine.AGE
    assert on_machine.FORMAT == archive.DATA_FORMAT
    assert on_machine.SNAPSHOT == archive.SNAPSHOT
    # one that was brought to the workspace is listed there, too
    workspace = keys[2]
    workspace.backups.mkdir(exist_ok=True)
    (workspace.backups / taken.name).write_bytes(taken.read_bytes())
    assert [one.manifest.is_data for one in snapshot.listed(workspace) if one.manifest] == [True]
    assert not seal.is_sealed(taken)
