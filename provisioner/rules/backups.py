"""Rules about the backups that members take by themselves."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from provisioner.config import Backups
from provisioner.problems import Path, Problem, error, quoted, warning
from provisioner.rules.rule import Context

_WORDS = "minutely|hourly|daily|monthly|weekly|yearly|annually|quarterly|semiannually"
_DAY = r"(?:mon(?:day)?|tue(?:s(?:day)?)?|wed(?:nesday)?|thu(?:rs(?:day)?)?|fri(?:day)?|sat(?:urday)?|sun(?:day)?)"
_DAYS = rf"{_DAY}(?:(?:,|\.\.){_DAY})*,?"
_PART = r"(?:\*|\d{1,4}(?:\.\.\d{1,4})?)(?:/\d{1,4})?"
_PARTS = rf"{_PART}(?:,{_PART})*"
_DATE = rf"(?:{_PARTS}-)?{_PARTS}[-~]{_PARTS}"
_TIME = rf"{_PARTS}:{_PARTS}(?::{_PARTS}(?:\.\d{{1,6}})?)?"
_ZONE = r"(?: (?:UTC|[A-Za-z]+(?:/[A-Za-z0-9_+-]+)+))?"
# The forms of systemd.time(7), "Calendar events"; the machines' own systemd has the last word.
_CALENDAR = re.compile(rf"(?:{_WORDS}|{_DAYS}(?: {_DATE})?(?: {_TIME})?|{_DATE}(?: {_TIME})?|{_TIME}){_ZONE}", re.IGNORECASE)
# What systemd's unit files and a shell take as it stands.
_DIRECTORY = re.compile(r"(/[A-Za-z0-9_][A-Za-z0-9._-]*){2,}")
# Trees that the operating system or a component of ours empties or replaces.
_NOT_THERE = (
    *("/dev", "/proc", "/sys", "/run", "/tmp", "/var/tmp", "/etc", "/usr"),  # noqa: S108
    *("/var/lib/etcd", "/var/lib/kubelet", "/var/lib/containerd"),
)
_FILE = "{file}"


def _at(key: str, *more: int) -> Path:
    return ("backups", key, *more)


def _scheduled(context: Context) -> Backups | None:
    return context.cluster.backups if context.cluster.backups.schedule is not None else None


def backup_schedule(context: Context) -> Iterator[Problem]:
    """schedule has the form of systemd's OnCalendar=."""
    backups = _scheduled(context)
    if backups and not _CALENDAR.fullmatch(backups.schedule or ""):
        yield error(
            _at("schedule"),
            f'{quoted(backups.schedule or "")} is no calendar event of systemd: e.g. "*-*-* 03:00:00", "Mon..Fri 22:30", "hourly"',
        )


def backup_is_for_somebody(context: Context) -> Iterator[Problem]:
    """Scheduled backups are encrypted for public keys of age or SSH, or expressly not."""
    from provisioner.backup.recipient import recipient  # noqa: PLC0415 - a library of its own, for the few that schedule
    from provisioner.errors import BadInput  # noqa: PLC0415

    backups = context.cluster.backups
    for index, text in enumerate(backups.recipients):
        try:
            recipient(text)
        except BadInput as wrong:
            yield error(_at("recipients", index), f"{wrong.message}; {wrong.hint}")
    if backups.plain and backups.recipients:
        yield error(_at("plain"), "with `recipients` they are encrypted; take one of the two away")
    elif backups.schedule is not None and not (backups.plain or backups.recipients):
        yield error(
            _at("schedule"),
            "needs `recipients`, public keys of `age-keygen` or SSH: a backup holds all that the cluster knows; or `plain: true`",
        )


def backup_leaves_the_machine(context: Context) -> Iterator[Problem]:
    """Scheduled backups are copied off their machine, or expressly not."""
    backups = context.cluster.backups
    if backups.carry and backups.local_only:
        yield error(_at("localOnly"), "with `copy` they leave the machine; take one of the two away")
    elif backups.carry and not any(_FILE in word for word in backups.carry[1:]):
        yield error(_at("copy"), f"no argument has {_FILE} in it, for which the path of the backup is put in")
    elif backups.carry and not backups.carry[0].strip():
        yield error(_at("copy", 0), "must be a command")
    elif any("\0" in word for word in backups.carry):
        yield error(_at("copy"), "holds a zero byte, which no argument can")
    elif backups.schedule is not None and not (backups.carry or backups.local_only):
        yield error(
            _at("schedule"),
            f'needs `copy`, a command that carries each backup off its machine, e.g. [rclone, copy, "{_FILE}", "remote:bucket"]: '
            "one that lies beside the data dies with it; or `localOnly: true`",
        )


def backup_directory(context: Context) -> Iterator[Problem]:
    """directory is an absolute path of plain characters, in no place that others empty."""
    path = context.cluster.backups.directory
    if not _DIRECTORY.fullmatch(path) or posixpath.normpath(path) != path:
        yield error(
            _at("directory"), f"{quoted(path)} is no absolute path of two names or more, of letters, digits, '.', '_' and '-'"
        )
    elif any(f"{path}/".startswith(f"{place}/") for place in _NOT_THERE):
        yield error(_at("directory"), f"{path} is in a place that the system or a component empties; take one below /var or /srv")


def backup_happens(context: Context) -> Iterator[Problem]:
    """Warning where something is said of backups, but not when."""
    backups = context.cluster.backups
    if backups.schedule is None and backups.model_copy(update={"keep": 7}) != Backups():
        yield warning(("backups",), "without `schedule` no backup is taken")
