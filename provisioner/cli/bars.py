"""Progress of downloads and builds: bars on a terminal, plain lines with times elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from provisioner.cli.common import console
from provisioner.terminal import is_live, speaks_unicode

# What took less is not worth a second line.
_SECONDS = 2.0


class Bars:
    """The ``artifacts.Progress`` of the command line."""

    def __init__(self) -> None:
        self._live = is_live()
        self._bars = Progress(
            SpinnerColumn("dots" if speaks_unicode(sys.stderr) else "line"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            DownloadColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self._live,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, tuple[str, float]] = {}

    @contextlib.contextmanager
    def shown(self) -> Iterator[Bars]:
        """The bars, while the block runs."""
        with self._bars:
            yield self

    def start(self, key: str, text: str, total: int | None) -> None:
        """Work begins, or begins anew."""
        if key in self._tasks:
            self._bars.update(self._tasks[key], total=total)
        elif self._live:
            self._tasks[key] = self._bars.add_task(text, total=total)
        elif key not in self._began:
            self._began[key] = (text, time.monotonic())
            console.print(text, markup=False)

    def advance(self, key: str, done: int) -> None:
        """So many bytes are there."""
        if key in self._tasks:
            self._bars.update(self._tasks[key], completed=done)

    def finish(self, key: str) -> None:
        """It ended."""
        if (task := self._tasks.pop(key, None)) is not None:
            self._bars.remove_task(task)
        if began := self._began.pop(key, None):
            text, since = began
            if (seconds := time.monotonic() - since) > _SECONDS:
                console.print(f"{text}: {seconds:.1f} s", markup=False)

    def note(self, text: str) -> None:
        """A line."""
        console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that stands out."""
        console.print("warning:", text, style="yellow", markup=False)
