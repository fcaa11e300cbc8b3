"""Which member is asked for a snapshot, and which backups are kept."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from provisioner.backup import snapshot
from provisioner.backup.snapshot import Backup
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
    assert [one.path.name for one in snapshot.outdated(found, 2)] == [names[0]]
    assert snapshot.outdated(found, 3) == ()


def test_a_list_of_none(tmp_path: Path) -> None:
    assert snapshot.listed(Workspace(tmp_path, tmp_path / "cluster.yaml")) == ()
    assert snapshot.outdated([Backup(tmp_path, 1, dt.datetime.now(dt.UTC))], 1) == ()
