"""journalctl's question and its answer as values; pure, so that what a user types is seen to stay one word of a command line.

journalctl's JSON: https://systemd.io/JOURNAL_EXPORT_FORMATS/#journal-json-format
"""

from __future__ import annotations

import datetime as dt
import json
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from provisioner.errors import BadInput, ProvisionerError

PRIORITIES = ("emerg", "alert", "crit", "err", "warning", "notice", "info", "debug")
_PRIORITY = f"(?:{'|'.join(PRIORITIES)}|[0-7])"
_SPAN = re.compile(r"(\d+ ?(s|sec|m|min|h|hour|hours|d|day|days|w|week|weeks) ?)+")
_FIELDS = ("MESSAGE", "PRIORITY", "_PID", "_SYSTEMD_UNIT", "UNIT", "OBJECT_SYSTEMD_UNIT", "__REALTIME_TIMESTAMP")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a machine's journal.

    Attributes:
        units: units of systemd; their own lines and systemd's about them.
        lines: the newest so many.
        since: as journalctl takes it ("2030-05-17 12:30", "yesterday", "-2h"), or a span back from now ("2h", "1h 30min").
        grep: a Perl regular expression that the message must match.
        priority: a syslog level, that and worse; or two with `..` between.
    """

    units: tuple[str, ...]
    lines: int = 100
    since: str = ""
    grep: str = ""
    priority: str = ""
    follow: bool = False

    def command(self) -> str:
        """The shell command; whatever a user has typed is quoted as one word."""
        words = ["journalctl", "--no-pager", "--quiet", "--output=json", "--all", f"--output-fields={','.join(_FIELDS)}"]
        words += [f"--unit={unit}" for unit in self.units]
        words.append(f"--lines={self.lines}")
        if self.since:
            words.append(f"--since={since(self.since)}")
        if self.grep:
            words.append(f"--grep={self.grep}")
        if self.priority:
            words.append(f"--priority={self.priority}")
        if self.follow:
            words.append("--follow")
        return shlex.join(words)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the journal. ``priority`` is syslog's word for it; ``pid`` 0 where none is known."""

    time: dt.datetime
    unit: str
    message: str
    priority: str = "info"
    pid: int = 0

    def to_json(self) -> dict[str, object]:
        """For --json."""
        return {
            "time": self.time.isoformat(timespec="microseconds"),
            "unit": self.unit,
            "priority": self.priority,
            "pid": self.pid,
            "message": self.message,
        }

    def text(self) -> str:
        """For people, one entry a line; what would steer a terminal is shown as its escape."""
        safe = "".join(char if char.isprintable() or char == "\t" else _escaped(char) for char in self.message)
        who = self.unit.removesuffix(".service") + (f"[{self.pid}]" if self.pid else "")
        return f"{self.time:%Y-%m-%dT%H:%M:%S}.{self.time.microsecond // 1000:03d}Z {who}: {safe}"


def since(text: str) -> str:
    """A span back from now as journalctl takes it; anything else as it is."""
    return f"-{text}" if _SPAN.fullmatch(text) else text


def check_priority(text: str) -> None:
    """Refuse what is no syslog level.

    Raises:
        BadInput: it is none.
    """
    if text and not re.fullmatch(rf"{_PRIORITY}(\.\.{_PRIORITY})?", text):
        raise BadInput(f'"{text}" is no priority', hint=f"one of {', '.join(PRIORITIES)}, 0 to 7, or two with .. between")


def parse(lines: Iterable[str | bytes]) -> Iterator[Entry]:
    """Entries out of journalctl's lines; what is no entry (a login shell's greeting) is left out."""
    for line in lines:
        try:
            record = json.loads(line)
            stamp = int(record["__REALTIME_TIMESTAMP"])
        except (ValueError, TypeError, KeyError):
            continue
        level = str(_text(record.get("PRIORITY")) or "6")
        # what systemd and others say about a unit carries that unit's name beside their own
        names = (_text(record.get(field)) for field in ("UNIT", "OBJECT_SYSTEMD_UNIT", "_SYSTEMD_UNIT"))
        unit = next((name for name in names if name), "")
        pid = _text(record.get("_PID"))
        yield Entry(
            time=dt.datetime.fromtimestamp(stamp // 1_000_000, dt.UTC).replace(microsecond=stamp % 1_000_000),
            unit=unit,
            message=_text(record.get("MESSAGE")),
            priority=PRIORITIES[int(level)] if level.isdigit() and int(level) < len(PRIORITIES) else level,
            pid=int(pid) if pid.isdigit() else 0,
        )


def ordered(entries: Iterable[Entry]) -> list[Entry]:
    """Oldest first: with --grep and --lines newer releases of journalctl print the newest first."""
    return sorted(entries, key=lambda entry: entry.time)


def refusal(node: str, complaint: str, question: Question) -> ProvisionerError:
    """Why journalctl said no, as an error with its remedy."""
    last = (complaint.splitlines() or ["it gave no reason"])[-1]
    if question.since and "timestamp" in complaint:
        return BadInput(
            f'--since "{question.since}" is no time: {last}',
            hint='e.g. 2h, "1h 30min", yesterday, "2030-05-17 12:30" by the machine\'s clock',
        )
    if question.grep and re.search(r"pattern|regular expression|PCRE", complaint, re.IGNORECASE):
        if "without" in complaint:
            return ProvisionerError(f"{node}: {last}", hint="its journalctl cannot search: leave out --grep, and pipe into grep")
        return BadInput(f'--grep "{question.grep}" is no regular expression: {last}', hint="it is a Perl one, as for `grep -P`")
    return ProvisionerError(f"{node}: journalctl failed: {last}", hint=f"`provisioner ssh {node} -- journalctl` shows more")


def _text(value: object) -> str:
    """A field's text: journald gives bytes that are no UTF-8 as a list of numbers, and a repeated field as a list of texts."""
    if isinstance(value, list):
        if all(isinstance(item, int) and 0 <= item < 256 for item in value):
            return bytes(value).decode(errors="replace")
        return " ".join(_text(item) for item in value)
    return "" if value is None else str(value)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "replace").decode()
