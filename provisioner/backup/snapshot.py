"""Takes a backup: the healthiest member's snapshot, and what the workspace holds that cannot be made again."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from provisioner import leftovers
from provisioner import pki as pkis
from provisioner.backup import archive, seal
from provisioner.backup.archive import EtcdState, Manifest
from provisioner.config import Node
from provisioner.errors import BadInput, ProvisionerError
from provisioner.etcd_api import EtcdApi, EtcdError, Status
from provisioner.pki.store import ca_file
from provisioner.session import Session
from provisioner.ssh import parallel
from provisioner.workspace import Workspace, private_directory

# Seconds without a byte of it: a member reads its whole database, which a busy disk may interrupt.
SILENT = 60.0
SUFFIX = ".backup"
PRIVATE = ".backup."
SEALED = ".backup.age"
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup on this machine. ``manifest`` is None where it is encrypted and was not opened."""

    path: Path
    bytes: int
    taken: dt.datetime
    manifest: Manifest | None = None
    sealed: bool = True


def take(session: Session, *, key: seal.Key, target: Path | None) -> Backup:
    """Take a backup.

    Args:
        session: with the PKI as it is.
        key: how it is encrypted.
        target: the file; default: one in the workspace, named after the cluster and the time. Must not exist.

    Raises:
        BadInput: the key cannot encrypt it.
        EtcdError: no member can give a snapshot, or the one that can broke off.
    """
    workspace = session.workspace
    seal.check(key)
    name = f"{session.cluster.name}-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}{SEALED if key.seals else SUFFIX}"
    with _private(workspace) as directory:
        database = directory / archive.SNAPSHOT
        state = _database(session, database)
        return _write(session, directory, key, target or workspace.backups / name, (database, state))


def export(session: Session, *, key: seal.Key, target: Path) -> Backup:
    """The workspace alone, without etcd's data. Nothing is asked of any machine.

    Raises:
        BadInput: the key cannot encrypt it.
    """
    seal.check(key)
    with _private(session.workspace) as directory:
        return _write(session, directory, key, target, None)


@contextlib.contextmanager
def _private(workspace: Workspace) -> Iterator[Path]:
    """In the workspace, where the next run takes away what a killed one has left: there are keys in it."""
    workspace.backups.mkdir(parents=True, exist_ok=True, mode=0o700)
    with private_directory(workspace.backups, PRIVATE) as directory:
        yield directory


def _write(session: Session, directory: Path, key: seal.Key, target: Path, data: tuple[Path, EtcdState] | None) -> Backup:
    keys, plain = session.the_pki(), directory / "archive"
    ca = ca_file(session.workspace.pki, pkis.CaName.CLUSTER).read_bytes()
    files = archive.of_workspace(session.cluster, session.workspace)
    state = None
    if data:
        files[archive.SNAPSHOT], state = data
    manifest = archive.write(plain, archive.manifest_of(session.cluster, keys, state, ca), files, ca)
    # what was written is what can be read: with the eyes of a restore
    (directory / "read").mkdir(mode=0o700)
    archive.read(plain, directory / "read", ca=ca, who=target.name)
    whole = plain
    if key.seals:
        whole = directory / "sealed"
        seal.seal(plain, whole, key)
    _place(whole, target)
    warning = "" if key.seals else ", NOT encrypted: it holds every key of the cluster"
    session.display.say(f"{target.name}: {target.stat().st_size / MIB:.1f} MiB{warning}")
    return Backup(target, target.stat().st_size, manifest.created, manifest, sealed=key.seals)


def _place(source: Path, target: Path) -> None:
    """Move a file to its place, whole or not at all, also to another file system; on disk when this returns.

    Raises:
        BadInput: something has come there meanwhile.
    """
    leftovers.sweep_private(target.parent, PRIVATE)
    with private_directory(target.parent, PRIVATE) as directory:
        whole = source
        if target.parent.stat().st_dev != source.stat().st_dev:
            whole = Path(shutil.copyfile(source, directory / "whole"))
            whole.chmod(0o600)
        _sync(whole)
        try:
            # unlike rename(2) this takes nobody's place
            target.hardlink_to(whole)
        except FileExistsError:
            raise BadInput(f"{target}: there is such a file already", hint="name another one with --output") from None
        except OSError:
            # a file system without links
            whole.rename(target)
        _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _database(session: Session, target: Path) -> EtcdState:
    def client(node: Node) -> EtcdApi:
        return EtcdApi(node, session.workspace, session.connections, session.the_pki())

    def look(node: Node) -> Status:
        with client(node) as etcd:
            return etcd.status()

    known = parallel(session.cluster.etcd_members, look)
    errors = [error.message for error in known.values() if isinstance(error, ProvisionerError)]
    statuses = {name: status for name, status in known.items() if isinstance(status, Status)}
    for name in healthy(statuses):
        status = statuses[name]
        session.display.say(f"{name}: etcd {status.version}, {status.db_size / MIB:.1f} MiB")
        try:
            with client(session.cluster.node(name)) as etcd, target.open("wb") as out:
                revision = etcd.status().revision
                etcd.snapshot(out, timeout=SILENT)
        except EtcdError as error:
            # another member has the same data
            session.display.say(f"warning: {error.message}")
            errors.append(error.message)
            continue
        return EtcdState(version=status.version, revision=revision, member=name)
    raise EtcdError(
        "no member of etcd can give a snapshot; no backup was made",
        hint="`provisioner status` says what is wrong, `provisioner apply` repairs",
        details=tuple(errors) or ("no member sees a leader, or an alarm CORRUPT is raised",),
    )


def healthy(known: Mapping[str, Status]) -> tuple[str, ...]:
    """Members whose data is the cluster's, in the order in which they are asked: followers first, with most of the log. Pure."""
    corrupt = {alarm.member_id for status in known.values() for alarm in status.alarms if alarm.alarm == "CORRUPT"}
    fit = {name: one for name, one in known.items() if one.leader and not one.learner and one.member_id not in corrupt}
    # one that was cut off follows a leader of an older term
    term = max((one.raft_term for one in fit.values()), default=0)
    fit = {name: one for name, one in fit.items() if one.raft_term == term}
    return tuple(sorted(fit, key=lambda name: (fit[name].leader == fit[name].member_id, -fit[name].raft_applied_index)))


# ``data``: what a member has taken by itself, and somebody has brought here
_NAME = re.compile(r"(?P<cluster>[a-z0-9-]+)-(?P<time>\d{8}T\d{6}Z)\.(backup|data)(\.age)?")


def listed(workspace: Workspace) -> tuple[Backup, ...]:
    """The backups in the workspace, the newest first; what is in encrypted ones is not known."""
    found = []
    for path in workspace.backups.glob("*Z.*"):
        named = _NAME.fullmatch(path.name)
        if named is None:
            continue
        manifest = None
        sealed = path.name.endswith(".age")
        if not sealed:
            try:
                manifest = archive.peek(path, path.name)
            except archive.BackupError:
                manifest = None
        taken = dt.datetime.strptime(named["time"], "%Y%m%dT%H%M%SZ").replace(tzinfo=dt.UTC)
        found.append(Backup(path, path.stat().st_size, taken, manifest, sealed=sealed))
    return tuple(sorted(found, key=lambda one: one.path.name, reverse=True))


def outdated(backups: Sequence[Backup], keep: int, *, made: Path) -> tuple[Backup, ...]:
    """Those that are too many: all but the newest ``keep``; never the one that was ``made`` now, whatever the clock says. Pure."""
    return tuple(one for one in sorted(backups, key=lambda one: one.taken, reverse=True)[keep:] if one.path != made)
