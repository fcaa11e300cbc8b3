"""How a run shows itself: a live view on a terminal, plain lines elsewhere; both also keep each phase's time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from provisioner.events import TaskStep


@dataclass(slots=True)
class Row:
    """One phase of the run."""

    name: str
    title: str
    state: str = "waiting"
    began: float = 0.0
    seconds: float = 0.0
    note: str = ""


@dataclass(slots=True)
class Display:
    """Plain lines: one when a phase begins to matter, one when it ends. ``LiveDisplay`` draws the same rows."""

    console: Console
    rows: list[Row] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    work: dict[str, str] = field(default_factory=dict)

    def plan(self, phases: Sequence[tuple[str, str]]) -> None:
        """Name the phases to come, as (name, title)."""
        self.rows += [Row(name, title) for name, title in phases]

    def clear(self) -> None:
        """Forget the phases so far: they come again."""
        self.rows.clear()

    def start(self, name: str) -> None:
        """A phase begins; beginning twice is harmless."""
        row = self._row(name)
        if row.state == "waiting":
            row.state, row.began = "running", time.monotonic()
            self.started(row)

    def finish(self, name: str, *, note: str = "", state: str = "done") -> None:
        """A phase has ended (``done``, ``failed`` or ``skipped``)."""
        row = self._row(name)
        if row.state in ("waiting", "running"):
            row.seconds = time.monotonic() - row.began if row.began else 0.0
            row.state, row.note = state, note
            self.finished(row)

    def seconds(self) -> dict[str, float]:
        """Time of every phase that ran."""
        return {row.name: round(row.seconds, 2) for row in self.rows if row.state == "done"}

    @contextmanager
    def running(self) -> Iterator[None]:
        """The time in which the display may draw."""
        yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time in which something else has the terminal."""
        yield

    def step(self, step: TaskStep) -> None:
        """A task has started, or ended on a host."""

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(escape(text))

    def begin_work(self, key: str, text: str) -> None:
        """A download or a build has begun."""
        self.work[key] = text
        self.say(f"    {text}")

    def started(self, row: Row) -> None:
        """Hook: a phase began."""
        self._line(row, "…")

    def finished(self, row: Row) -> None:
        """Hook: a phase ended."""
        mark = {"done": "ok", "failed": "FAILED", "skipped": "nothing to do"}[row.state]
        self._line(row, f"{mark} ({row.seconds:.1f} s){', ' + row.note if row.note else ''}")

    def _line(self, row: Row, text: str) -> None:
        self.console.print(f"[{time.monotonic() - self.began:6.1f} s] {row.title} {text}", markup=False)

    def _row(self, name: str) -> Row:
        return next(row for row in self.rows if row.name == name)


@dataclass(slots=True)
class LiveDisplay(Display):
    """A table that is redrawn: every phase with its time, and below what each host is doing now."""

    busy: dict[str, str] = field(default_factory=dict)
    task: str = ""
    live: Live | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Draw ten times a second until the block ends."""
        with Live(console=self.console, get_renderable=self.draw, refresh_per_second=8, transient=False) as self.live:
            yield
        self.live = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop drawing, so that a question and its answer stay on the screen."""
        if self.live is None:
            yield
            return
        self.live.stop()
        yield
        self.live.start()

    def step(self, step: TaskStep) -> None:
        """Remember what runs now."""
        if step.status == "started":
            self.task, self.busy = f"{step.role} : {step.task}" if step.role else step.task, {}
        else:
            self.busy[step.host] = step.status

    def begin_work(self, key: str, text: str) -> None:
        """The table shows it."""
        self.work[key] = text

    def started(self, row: Row) -> None:
        """The table shows it."""

    def finished(self, row: Row) -> None:
        """The table shows it."""
        self.task, self.busy = "", {}

    def draw(self) -> Table:
        """The table as it is now."""
        marks = {
            "waiting": ("·", "dim"),
            "running": ("▸", "bold cyan"),
            "done": ("✓", "green"),
            "failed": ("✗", "bold red"),
            "skipped": ("-", "dim"),
        }
        table = Table.grid(padding=(0, 1))
        now = time.monotonic()
        for row in self.rows:
            mark, style = marks[row.state]
            seconds = now - row.began if row.state == "running" else row.seconds
            table.add_row(
                Text(mark, style=style),
                Text(row.title, style=style),
                Text(f"{seconds:6.1f} s" if row.state not in ("waiting", "skipped") else "", style="dim"),
                Text(row.note if row.state != "running" else self._activity(), style="dim"),
            )
        table.add_row("", Text("elapsed", style="dim"), Text(f"{now - self.began:6.1f} s", style="bold"), "")
        return table

    def _activity(self) -> str:
        if self.work:
            return "; ".join(list(self.work.values())[:3]) + (f" and {len(self.work) - 3} more" if len(self.work) > 3 else "")
        done = f"  ({', '.join(sorted(self.busy))} done)" if self.busy else ""
        return f"{self.task}{done}"


@dataclass(frozen=True, slots=True)
class Work:
    """Downloads and builds on a display: the ``artifacts.Progress`` of a run. Called from several threads."""

    display: Display
    under_way: dict[str, tuple[str, int | None]] = field(default_factory=dict)

    def start(self, key: str, text: str, total: int | None) -> None:
        """Work begins, or its size becomes known."""
        if key not in self.under_way:
            self.display.begin_work(key, text)
        self.under_way[key] = (text, total)

    def advance(self, key: str, done: int) -> None:
        """So many bytes are there."""
        text, total = self.under_way.get(key, (key, None))
        self.display.work[key] = f"{text} {done >> 20}" + (f" of {total >> 20} MiB" if total else " MiB")

    def finish(self, key: str) -> None:
        """It ended, well or not."""
        self.under_way.pop(key, None)
        self.display.work.pop(key, None)

    def note(self, text: str) -> None:
        """A line."""
        self.display.say(text)

    def warn(self, text: str) -> None:
        """A line that stands out."""
        self.display.say(f"warning: {text}")


def display_for(console: Console) -> Display:
    """Live on a terminal, plain lines elsewhere."""
    return LiveDisplay(console) if console.is_terminal else Display(console)
