"""Processes by number and start: a number alone may be another's by now. Standard library only."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Process:
    """A process of this machine.

    Attributes:
        started: ticks since the machine's boot, of /proc/PID/stat.
    """

    number: int
    started: int

    @classmethod
    def of(cls, number: int) -> Process | None:
        """The process that has this number now; None for none."""
        started = _started(number)
        return None if started is None else cls(number, started)

    @classmethod
    def current(cls) -> Process:
        """This process."""
        return cls.of(os.getpid()) or cls(os.getpid(), 0)

    @property
    def alive(self) -> bool:
        """Whether it runs still (a zombie does not)."""
        return _started(self.number) == self.started

    def to_text(self) -> str:
        """For a file or a command line."""
        return f"{self.number}:{self.started}"

    @classmethod
    def from_text(cls, text: str) -> Process:
        """The opposite of :meth:`to_text`.

        Raises:
            ValueError: it is none.
        """
        number, _, started = text.partition(":")
        return cls(int(number), int(started))

    def wait(self) -> None:
        """Return when it has ended."""
        try:
            handle = os.pidfd_open(self.number)
        except ProcessLookupError:
            return
        try:
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            while self.alive:
                poll.poll(60_000)
        finally:
            os.close(handle)

    def stop(self, *, seconds: float) -> None:
        """End it and its process group, which it leads: as by Ctrl-C, and after a while for good.

        Args:
            seconds: how long it may take to end cleanly.
        """
        if not self.alive:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.number, signal.SIGINT)
        deadline = time.monotonic() + seconds
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.number, signal.SIGKILL)


def _started(number: int) -> int | None:
    try:
        text = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return None
    # the command's name, in parentheses, may hold anything
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])
