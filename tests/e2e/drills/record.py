"""What the drills found: a table for people, JSON for bench/results."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from tests.e2e.drills.figures import Bar


@dataclass(frozen=True, slots=True)
class Entry:
    """One drill.

    Attributes:
        drill: what was done to what.
        bars: figures that have a limit.
        figures: everything that was measured, as JSON values.
    """

    drill: str
    bars: tuple[Bar, ...]
    figures: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """For the record."""
        return {"drill": self.drill, "bars": [bar.to_json() for bar in self.bars], **self.figures}


@dataclass
class Record:
    """The drills of one run, in their order."""

    seed: int
    full: bool
    entries: list[Entry] = field(default_factory=list)
    began: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))

    def add(self, drill: str, bars: Sequence[Bar] = (), **figures: Any) -> Entry:
        """Keep one drill's figures, also when an assertion fails afterwards."""
        entry = Entry(drill, tuple(bars), figures)
        self.entries.append(entry)
        return entry

    def write(self, path: Path) -> None:
        """The raw figures as JSON."""
        machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
        document = {
            "time": self.began.isoformat(timespec="seconds"),
            "form": "full" if self.full else "short",
            "seed": self.seed,
            "machine": machine | {"memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20},
            "drills": [entry.to_json() for entry in self.entries],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")

    def text(self) -> str:
        """The table: a line for each bar, and each drill's other figures."""
        table = Table(
            "drill", "figure", "value", "bar", "", title=f"drills, {'full' if self.full else 'short'} form, seed {self.seed}"
        )
        for entry in self.entries:
            name = entry.drill
            for bar in entry.bars:
                value = "none" if bar.value is None else f"{bar.value:.3g}"
                table.add_row(name, bar.what, value, f"<= {bar.limit:g}", "met" if bar.met else "MISSED")
                name = ""
            for what, figure in entry.figures.items():
                table.add_row(name, what, _brief(figure), "", "")
                name = ""
            table.add_section()
        console = Console(width=160, force_terminal=False)
        with console.capture() as capture:
            console.print(table)
        return capture.get()


@contextlib.contextmanager
def kept(record: Record, config: pytest.Config, variable: str) -> Iterator[Record]:
    """A record for the time of a module, printed and written at its end.

    Args:
        record: an empty one.
        config: pytest's.
        variable: of the environment: names the file for the raw figures; without it there is none.
    """
    yield record
    # past pytest's capture: the figures are what a run is for, also where everything passes
    capture = config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        print(f"\n{record.text()}", flush=True)
    if out := os.environ.get(variable):
        record.write(Path(out))


def _brief(figure: Any) -> str:
    if isinstance(figure, float):
        return f"{figure:.3g}"
    if isinstance(figure, dict):
        return ", ".join(f"{key} {_brief(value)}" for key, value in figure.items())
    if isinstance(figure, list | tuple):
        return "; ".join(_brief(value) for value in figure[:6]) + (" …" if len(figure) > 6 else "")
    return str(figure)
