"""The figures of the rounds: a table for people, JSON for bench/results."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Round:
    """One round.

    Attributes:
        at: the moment that was chosen, in words.
        phase: what the driver was doing when the blow fell; empty for nothing.
        missed: it was through already.
        code: its exit code.
        left: what outlived the driver.
        attempts: runs of `apply` until one ended with 0.
        converged: seconds from the blow until then, without the time that machines took to answer again.
        wrong: what did not hold; empty where the round has passed.
    """

    number: int
    scenario: str
    at: str
    phase: str
    blow: str
    missed: bool
    code: int
    left: tuple[str, ...]
    attempts: int
    converged: float
    seconds: float
    wrong: tuple[str, ...]


@dataclass
class Record:
    """All rounds of one run."""

    seed: int
    rounds: list[Round] = field(default_factory=list)
    began: dt.datetime = field(default_factory=lambda: dt.datetime.now(dt.UTC))

    def write(self, path: Path) -> None:
        """The raw figures as JSON."""
        machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
        document = {
            "time": self.began.isoformat(timespec="seconds"),
            "seed": self.seed,
            "machine": machine | {"memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20},
            "rounds": [asdict(one) for one in self.rounds],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")

    def text(self) -> str:
        """The table."""
        columns = ("", "scenario", "moment", "phase", "blow", "exit", "runs", "converged", "round", "")
        table = Table(*columns, title=f"kills, seed {self.seed}")
        for one in self.rounds:
            table.add_row(
                *(str(one.number), one.scenario, one.at, "(was through)" if one.missed else one.phase or "-", one.blow),
                *(str(one.code), str(one.attempts), f"{one.converged:.1f} s", f"{one.seconds:.0f} s"),
                "FAILED" if one.wrong else "ok",
            )
        console = Console(width=180, force_terminal=False)
        with console.capture() as capture:
            console.print(table)
        return capture.get()
