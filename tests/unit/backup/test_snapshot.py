"""Which member is asked for a snapshot, and which backups are kept."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest

from provisioner.backup import restore, snapshot
from provisioner.backup.snapshot import Backup
from provisioner.errors import BadInput
from provisioner.etcd_api import Status
from provisioner.workspace import Workspace


def status(
    member: int, *, leader: int = 1, term: int = 5, applied: int = 100, learner: bool = False, errors: tuple[str, ...] = ()
) -> Status:
    return Status(member, leader, term, applied, applied, 50, "3.6.0", 1, 1, learner, errors)


def test_followers_first_and_those_with_most_of_the_log() -> None:
    known = {"a": status(1), "b": status(2, applied=90), "c": status(3, applied=99)}
    assert snapshot.healthy(known) == ("c", "b", "a")


def test_no_learner_nobody_without_a_leader_or_cut_off_and_nobody_corrupt() -> None:
    corrupt = ("memberID:4 alarm:CORRUPT ",)
    known = {
        "learner": status(2, learner=True),
        "alone": status(3, leader=0),
        "corrupt": status(4, errors=corrupt),
        "tells": status(5, errors=corrupt),
        "cut-off": status(6, leader=6, term=4, applied=500),
    }
    assert snapshot.healthy(known) == ("tells",)


def test_lists_are_newest_first_and_hold_nothing_else(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, tmp_path / "cluster.yaml")
    workspace.backups.mkdir()
    names = ("c-20260101T000000Z.backup.age", "c-20260103T000000Z.backup", "c-20260102T000000Z.backup.age")
    for name in (*names, "notes.txt", ".backup.abcdefgh", "c-20260102T000000Z.backup.age.part"):
        (workspace.backups / name).write_bytes(b"x")
    found = snapshot.listed(workspace)
    assert [one.path.name for one in found] == [names[1], names[2], names[0]]
    assert [one.sealed for one in found] == [False, True, True]
    assert [one.path.name for one in snapshot.outdated(found, 2, made=tmp_path)] == [names[0]]
    assert snapshot.outdated(found, 3, made=tmp_path) == ()
    assert snapshot.outdated(found, 2, made=found[2].path) == (), "the one just made stays, whatever the clock says"


def test_a_list_of_none(tmp_path: Path) -> None:
    assert snapshot.listed(Workspace(tmp_path, tmp_path / "cluster.yaml")) == ()
    assert snapshot.outdated([Backup(tmp_path, 1, dt.datetime.now(dt.UTC))], 1, made=tmp_path) == ()


def test_a_backup_takes_nobodys_place(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "there" / "backup"
    target.parent.mkdir()
    source.write_bytes(b"new")
    snapshot._place(source, target)
    assert target.read_bytes() == b"new"
    with pytest.raises(BadInput, match="there is such a file already"):
        snapshot._place(source, target)
    assert [path.name for path in target.parent.iterdir()] == ["backup"]


def test_revisions_never_come_twice() -> None:
    """Whatever is restored after whatever: from what a store can have come to, on to what none has."""
    now = 1_800_000_000
    first = 5_000 + restore.bump(5_000, now)
    lived = first + 900 * 3600
    older_an_hour_later = 100 + restore.bump(100, now + 3600)
    assert older_an_hour_later > lived
    of_a_restored_one = lived + restore.bump(lived, now + 7200)
    assert of_a_restored_one > older_an_hour_later
    again_at_once = 5_000 + restore.bump(5_000, now + 1)
    assert again_at_once > first
    assert restore.bump(now * 1000 + 1, now) == 1_000_000_000, "a clock that stands in the past"


def node(ready: str, heartbeat: str) -> dict[str, Any]:
    condition = {"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat, "message": "no network"}
    return {"metadata": {"name": "w"}, "status": {"conditions": [{"type": "DiskPressure", "status": "False"}, condition]}}


def test_a_node_is_ready_by_its_kubelets_new_word_and_not_by_that_of_the_backup() -> None:
    before = "2026-01-01T00:00:00Z"
    assert restore._heartbeat(node("True", before)) == before
    assert restore._heartbeat({"metadata": {"name": "w"}, "status": {}}) == ""
    assert restore._why_not_ready(node("True", before), before) == "its kubelet has not reported yet"
    assert restore._why_not_ready(node("True", "2025-12-31T23:59:59Z"), before) == "", "whatever the clock says"
    assert restore._why_not_ready(node("False", "2026-01-01T00:00:09Z"), before) == "no network"
    assert restore._why_not_ready(node("True", before), "") == "", "one that was not in the backup"
    assert restore._why_not_ready(None, "") == "not registered"
