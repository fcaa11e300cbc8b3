#!/usr/bin/env python3
# Placed by provisioner: a backup of etcd's data by the members themselves, at the time of the schedule, on one of them.
"""What runs on a member of etcd at the time of the schedule; its timer fires on all of them, and one does the work.

``take``: if this is the member whose turn it is, a snapshot of its data, checked, signed and encrypted, into the directory; all
but the newest few go. ``carry``: the user's own command for what was taken. Whatever fails ends with 1 and a line in the journal.

It stands alone: standard library only, Python 3.9, no import of the package it comes from. Keys come from files and go into no
argument and no message.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import hmac
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import IO, Any

CONFIG = "/etc/provisioner/etcd-backup.json"
KEY = "/etc/provisioner/etcd-backup.key"
AGE = "/usr/local/lib/provisioner/age"
# Of this run: systemd makes the directory, and takes it away when the unit has ended.
TAKEN = "/run/provisioner-etcd-backup/taken"
SNAPSHOT = "snapshot.db"
# Beside the backups: the name of the last one that went all the way.
GOOD = "last-good"
PRIVATE = ".taking-"
LOCAL = "https://127.0.0.1:2379"
FORMAT = 2
# Seconds; a member that has just been started with its machine finds its peers first.
PATIENCE = 60.0
_CHUNK = 1 << 20
Document = dict[str, Any]


class FailedError(Exception):
    """There is no backup, or it did not leave the machine; the text says why."""


def etcdctl(*args: str, endpoints: str = LOCAL) -> list[str]:
    """The command line of etcdctl, as this member."""
    pki = "/etc/etcd/pki"
    identity = ["--cacert", pki + "/ca.crt", "--cert", pki + "/server.crt", "--key", pki + "/server.key"]
    return ["/usr/local/bin/etcdctl", "--endpoints", endpoints, *identity, *args]


def ask(command: list[str], *, partly: bool = False) -> Any:
    """What a command prints as JSON.

    Args:
        partly: an answer counts also where the command failed: it tells of those members that answer.
    """
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode and not (partly and done.stdout.strip()):
        raise FailedError(complaint(command, done.stderr))
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise FailedError(f"{Path(command[0]).name} answered no JSON: {done.stdout:.200}") from None


def complaint(command: list[str], stderr: str) -> str:
    """A failed command in one line: the last that it said. Its arguments are not in it."""
    said = [line for line in stderr.splitlines() if line.strip()] or ["no reason given"]
    return f"{Path(command[0]).name} failed: {said[-1]:.500}"


def identity(status: Document) -> int:
    """The member's number in an `endpoint status`."""
    return int(status["Status"]["header"]["member_id"])


def chosen(statuses: list[Document]) -> int | None:
    """Whose turn it is, out of what `endpoint status` told of the members that answer: the follower with the lowest number, for the
    leader has enough to do; the leader where no other is fit. None where nobody is.

    Fit is who votes, sees a leader of the newest term, and whose data is not known to be damaged. All members judge by the same
    and at the same moment, so they come to the same.
    """
    corrupt = {
        int(found.group(1))
        for one in statuses
        for error in one["Status"].get("errors") or ()
        for found in [re.search(r"memberID:(\d+) alarm:CORRUPT", error)]
        if found
    }
    fit = [
        one
        for one in statuses
        if one["Status"].get("leader") and not one["Status"].get("isLearner") and identity(one) not in corrupt
    ]
    term = max((int(one["Status"]["raftTerm"]) for one in fit), default=0)
    fit = [one for one in fit if int(one["Status"]["raftTerm"]) == term]
    order = sorted((int(one["Status"]["leader"]) == identity(one), identity(one)) for one in fit)
    return order[0][1] if order else None


def own_status(seconds: float = PATIENCE) -> Document:
    """This member's status, once it sees a leader.

    Raises:
        FailedError: it does not answer, or has none, in time.
    """
    begin = time.monotonic()
    while True:
        try:
            status: Document = ask(etcdctl("endpoint", "status", "--write-out=json"))[0]
            if status["Status"].get("leader"):
                return status
            why = "it sees no leader"
        except FailedError as error:
            why = str(error)
        if time.monotonic() - begin > seconds:
            raise FailedError("the member on this machine gives no backup: " + why)
        time.sleep(1)


def whose_turn() -> int | None:
    """The number of the member that shall do it."""
    members = ask(etcdctl("member", "list", "--write-out=json"))["members"]
    urls = [member["clientURLs"][0] for member in members if member.get("clientURLs")]
    command = etcdctl(
        "--dial-timeout=2s", "--command-timeout=3s", "endpoint", "status", "--write-out=json", endpoints=",".join(urls)
    )
    return chosen(ask(command, partly=True))


def snapshot(path: Path) -> int:
    """This member's data as a file, found whole; returns its revision.

    Raises:
        FailedError: it is not whole.
    """
    command = etcdctl("snapshot", "save", str(path))
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise FailedError(complaint(command, done.stderr))
    # a database's size is a multiple of 512; behind it etcd puts the SHA-256 of what it sent
    size = path.stat().st_size - 32
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for start in range(0, max(size, 0), _CHUNK):
            digest.update(file.read(min(_CHUNK, size - start)))
        if size <= 0 or size % 512 or file.read() != digest.digest():
            raise FailedError("the snapshot is not what the member has sent: its SHA-256 differs")
    return int(ask(["/usr/local/bin/etcdutl", "snapshot", "status", str(path), "--write-out=json"])["revision"])


def manifest_of(settings: Document, key: Document, path: Path, *, created: dt.datetime, revision: int, version: str) -> bytes:
    """What a restore believes once it has found it signed; in the form of provisioner.backup.archive."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_CHUNK), b""):
            digest.update(block)
    document = {
        "format": FORMAT,
        "cluster": settings["cluster"],
        "clusterId": settings["clusterId"],
        "caFingerprint": key["caFingerprint"],
        "secretsKey": key["secretsKey"],
        "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "kubernetes": settings["kubernetes"],
        "etcd": {"version": version, "revision": revision, "member": settings["member"]},
        "files": {SNAPSHOT: {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}},
    }
    return json.dumps(document, indent=1).encode()


def pack(out: IO[bytes], manifest: bytes, mac_key: bytes, path: Path) -> None:
    """Write the archive: the manifest, its MAC (HMAC-SHA256, RFC 2104), the snapshot."""
    mac = hmac.new(mac_key, manifest, hashlib.sha256).hexdigest().encode()
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar, path.open("rb") as file:
        for name, size, source in (
            ("manifest.json", len(manifest), io.BytesIO(manifest)),
            ("manifest.mac", len(mac), io.BytesIO(mac)),
            (SNAPSHOT, path.stat().st_size, file),
        ):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = size, 0o600
            tar.addfile(entry, source)


def sealed(target: Path, recipients: list[str], manifest: bytes, mac_key: bytes, path: Path) -> None:
    """Write the backup (0600), encrypted where there are recipients; on disk when this returns."""
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as out:
        if recipients:
            command = [AGE, *(word for one in recipients for word in ("--recipient", one))]
            with tempfile.TemporaryFile() as errors:
                with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=errors) as process:
                    try:
                        pack(process.stdin, manifest, mac_key, path)  # type: ignore[arg-type] # by stdin=PIPE
                        process.stdin.close()  # type: ignore[union-attr]
                    except BrokenPipeError:
                        # it has ended, and says why
                        with contextlib.suppress(BrokenPipeError):
                            process.stdin.close()  # type: ignore[union-attr]
                errors.seek(0)
                if process.returncode:
                    raise FailedError(complaint(command, errors.read().decode(errors="replace")))
        else:
            pack(out, manifest, mac_key, path)
        out.flush()
        os.fsync(out.fileno())


def backups_in(directory: Path, cluster: str) -> list[Path]:
    """The cluster's backups in a directory, the newest first."""
    form = re.compile(re.escape(cluster) + r"-\d{8}T\d{6}Z\.data(\.age)?")
    return sorted((path for path in directory.iterdir() if form.fullmatch(path.name)), reverse=True)


def take(settings: Document, key: Document) -> Path | None:
    """Take a backup where it is this member's turn; returns its path.

    Raises:
        FailedError: there is none.
    """
    status = own_status()
    turn = whose_turn()
    if turn is None:
        raise FailedError("no member of etcd is fit to give a backup")
    if turn != identity(status):
        say(f"no backup is taken here: it is the turn of member {turn:x}")
        return None
    directory = Path(settings["directory"])
    for left in directory.glob(f"{PRIVATE}*"):
        # of a run that was killed
        shutil.rmtree(left)
    created = dt.datetime.now(dt.timezone.utc)  # noqa: UP017 - Python 3.9
    name = f"{settings['cluster']}-{created:%Y%m%dT%H%M%SZ}.data{'.age' if settings['recipients'] else ''}"
    with tempfile.TemporaryDirectory(prefix=PRIVATE, dir=directory) as work:
        path, whole = Path(work, SNAPSHOT), Path(work, name)
        revision = snapshot(path)
        manifest = manifest_of(settings, key, path, created=created, revision=revision, version=status["Status"]["version"])
        sealed(whole, settings["recipients"], manifest, bytes.fromhex(key["mac"]), path)
        target = whole.rename(directory / name)
    for old in backups_in(directory, settings["cluster"])[settings["keep"] :]:
        old.unlink()
    say(f"{target}: {target.stat().st_size / (1 << 20):.1f} MiB, revision {revision}")
    return target


def carry(command: list[str], path: Path) -> None:
    """Run the user's command for a backup.

    Raises:
        FailedError: it failed.
    """
    try:
        done = subprocess.run([word.replace("{file}", str(path)) for word in command], check=False, stdin=subprocess.DEVNULL)
    except OSError as error:
        raise FailedError(f"{command[0]} cannot be run: {error.strerror}; {path} is on this machine alone") from None
    if done.returncode:
        raise FailedError(f"{path} is on this machine alone: {Path(command[0]).name} ended with {done.returncode}")
    say(f"{path} was carried off by {Path(command[0]).name}")


def say(text: str) -> None:
    """A line for the journal."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def read(path: str) -> Document:
    """One of the two files with settings."""
    document: Document = json.loads(Path(path).read_text(encoding="utf-8"))
    return document


def main(action: str) -> int:
    """``prepare``, ``take`` or ``carry``, as the unit calls them one after the other; returns the exit code."""
    settings = read(CONFIG)
    try:
        if action == "prepare":
            Path(settings["directory"]).mkdir(mode=0o700, parents=True, exist_ok=True)
        elif action == "take":
            path = take(settings, read(KEY))
            if path:
                Path(TAKEN).write_text(str(path), encoding="utf-8")
        elif Path(TAKEN).exists():
            path = Path(Path(TAKEN).read_text(encoding="utf-8"))
            if settings["copy"]:
                carry(settings["copy"], path)
            Path(settings["directory"], GOOD).write_text(f"{path.name}\n", encoding="utf-8")
    except (FailedError, OSError) as error:
        say(f"failed: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
