"""How a run shows itself: a live view on a terminal, plain lines elsewhere; both also keep each phase's time.

``waiting`` is for what has no phases: a spinner with the time, or a plain line once it has taken long enough to wonder.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from provisioner.events import TaskStep
from provisioner.terminal import ASCII, is_live, speaks_unicode

# A plain line for what takes longer than the first; then one at each of these, and one a minute, so that nobody takes it for dead.
PATIENCE = 2.0
SIGNS_OF_LIFE = (10.0, 30.0, 60.0)
# Between two lines about a phase that goes on.
HEARTBEAT = 30.0


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
        """The time in which the display may draw; plain lines say of a long phase that it goes on."""
        with _repeated(self._sign_of_life, HEARTBEAT):
            yield

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The time in which something else has the terminal."""
        rows, self.rows = self.rows, []
        try:
            yield
        finally:
            self.rows = rows

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

    def _sign_of_life(self) -> None:
        for row in list(self.rows):
            if row.state == "running":
                self._line(row, f"… ({time.monotonic() - row.began:.0f} s so far)")

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
        """Draw eight times a second until the block ends."""
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
        if not speaks_unicode(sys.stderr):
            marks = {state: (ASCII.get(mark, mark), style) for state, (mark, style) in marks.items()}
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
    return LiveDisplay(console) if is_live() else Display(console)


@contextmanager
def waiting(console: Console, text: str) -> Iterator[Callable[[str], None]]:
    """Show that something takes its time, and how much.

    Args:
        console: of stderr.
        text: what is done, in a few words ("looking at 5 machines").

    Yields:
        a function that changes the words.
    """
    told = [text]
    began = time.monotonic()
    if is_live():
        spinner = Spinner("dots" if speaks_unicode(sys.stderr) else "line")

        def draw() -> Spinner:
            spinner.update(text=Text(f"{told[0]} {time.monotonic() - began:.0f} s"))
            return spinner

        with Live(console=console, get_renderable=draw, refresh_per_second=8, transient=True):
            yield lambda words: told.__setitem__(0, words)
        return

    spoken = threading.Event()

    def speak() -> None:
        spoken.set()
        console.print(f"{told[0]} … ({time.monotonic() - began:.0f} s so far)", markup=False)

    with _repeated(speak, PATIENCE, *SIGNS_OF_LIFE):
        yield lambda words: told.__setitem__(0, words)
    if spoken.is_set():
        console.print(f"{told[0]}: done ({time.monotonic() - began:.1f} s)", markup=False)


@contextmanager
def _repeated(act: Callable[[], None], *moments: float) -> Iterator[None]:
    """Do something at these moments of a block (seconds from its start), and then again and again at the distance of the last."""
    over = threading.Event()

    def loop() -> None:
        began, due = time.monotonic(), list(moments)
        while not over.wait(max(0.0, due[0] - (time.monotonic() - began))):
            act()
            last = due.pop(0)
            due = due or [last + moments[-1]]

    thread = threading.Thread(target=loop, daemon=True, name="signs-of-life")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
