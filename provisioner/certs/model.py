"""One certificate in one place, and what is to be said of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

CONTROLLER = "controller"


class State(StrEnum):
    """What is to be said of a certificate; the later ones are problems."""

    OK = "ok"
    # within the window in which the next `apply` issues it anew, or the kubelet does
    DUE = "due"
    EXPIRED = "expired"
    EARLY = "not valid yet"
    FOREIGN = "of another CA"
    OLD = "of the CA that is replaced"
    OUTDATED = "served, but not the file's"
    MISSING = "missing"

    @property
    def is_wrong(self) -> bool:
        """Whether something does not work, or will not after a restart."""
        return self not in (State.OK, State.DUE)


@dataclass(frozen=True, slots=True)
class Row:
    """One certificate in one place.

    Attributes:
        machine: a node's name, or "controller".
        name: as in the table of the PKI.
        where: a path, or what it is served on.
        state: what is to be said of it.
        subject: its common name.
        serial: hexadecimal.
        not_after: its end.
        problem: why it is missing or cannot be read.
    """

    machine: str
    name: str
    where: str
    state: State
    subject: str = ""
    serial: str = ""
    not_after: dt.datetime | None = None
    problem: str = ""

    def days_left(self, now: dt.datetime) -> float | None:
        """Days until its end, negative afterwards; None without a certificate."""
        return None if self.not_after is None else (self.not_after - now).total_seconds() / 86400

    def to_json(self, now: dt.datetime) -> dict[str, object]:
        """For --json."""
        days = self.days_left(now)
        return {
            "machine": self.machine,
            "name": self.name,
            "where": self.where,
            "state": self.state.value,
            "subject": self.subject,
            "serial": self.serial,
            "notAfter": self.not_after.isoformat() if self.not_after else None,
            "daysLeft": None if days is None else round(days, 1),
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True)
class Found:
    """Every certificate, and the machines that did not answer, with the reason."""

    rows: tuple[Row, ...]
    silent: tuple[tuple[str, str], ...]
    now: dt.datetime

    @property
    def wrong(self) -> tuple[Row, ...]:
        """Those with which something does not work."""
        return tuple(row for row in self.rows if row.state.is_wrong)

    def ending(self, days: float) -> tuple[Row, ...]:
        """Those that end within so many days."""
        return tuple(row for row in self.rows if (left := row.days_left(self.now)) is not None and left < days)


def by_days(rows: Sequence[Row], now: dt.datetime) -> tuple[Row, ...]:
    """What is wrong first, then by days left. Pure."""
    return tuple(sorted(rows, key=lambda row: (not row.state.is_wrong, row.days_left(now) or -1e9, row.machine, row.name)))
