"""`provisioner status --watch`: one look after the other, over the same SSH connections, until Ctrl-C."""

from __future__ import annotations

import datetime as dt
import json
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from provisioner.report import printable
from provisioner.status.changes import Turn, changes
from provisioner.terminal import StreamConsole, is_terminal, wants_colour, wide

if TYPE_CHECKING:
    from provisioner.status.model import Status

# Changes that stay on the screen.
KEPT = 8
# Seconds between two drawings, so that the age of the look is seen to grow.
TICK = 0.5

# The look as a list of things to print; the names in it that have changed are marked.
Parts = Callable[["Status", "Iterable[Turn]"], "list[RenderableType]"]


@dataclass(slots=True)
class Watch:
    """What has been seen so far."""

    parts: Parts
    last: Status | None = None
    turns: tuple[Turn, ...] = ()
    seen: float = 0.0
    looks: int = 0
    past: deque[tuple[str, Turn]] = field(default_factory=lambda: deque(maxlen=KEPT))

    def take(self, found: Status) -> None:
        """The next look."""
        self.turns = changes(self.last, found) if self.last else ()
        self.last, self.seen = found, time.monotonic()
        self.looks += 1
        now = f"{dt.datetime.now().astimezone():%H:%M:%S}"
        self.past.extend((now, turn) for turn in self.turns)

    def draw(self, interval: float) -> Group:
        """The screen as it is now: what is wrong and what has changed comes first, for a small window shows no more."""
        if self.last is None:
            return Group(Text("the first look …", style="dim"))
        age = time.monotonic() - self.seen
        head = Text(
            f"{self.last.cluster}: look {self.looks}, {age:.0f} s ago; {interval:g} s between two; Ctrl-C ends", style="dim"
        )
        new = {id(turn) for turn in self.turns}
        told = [
            Text(f"{'*' if id(turn) in new else ' '} {at}  {printable(str(turn))}", style="bold" if id(turn) in new else "dim")
            for at, turn in self.past
        ]
        return Group(head, Text(""), *([*told, Text("")] if told else []), *self.parts(self.last, self.turns))


def watch(look: Callable[[], Status], stop: Callable[[], None], parts: Parts, *, interval: float, as_json: bool) -> Status | None:
    """Look until Ctrl-C; returns the last look, None where there was none.

    On a terminal one screen is drawn anew; elsewhere, and where no escape sequence is wanted, each look is appended;
    ``as_json``: one document a line.

    Args:
        look: one look; runs in a thread of its own, so that Ctrl-C need not wait for machines that do not answer.
        stop: ends a look that is under way.
        interval: seconds from the end of a look to the next one's beginning.
    """
    state = Watch(parts)
    found: queue.SimpleQueue[Status | BaseException] = queue.SimpleQueue()
    ended = threading.Event()

    def keep_looking() -> None:
        while not ended.is_set():
            try:
                found.put(look())
            except BaseException as error:  # handed to the main thread, which raises it
                found.put(error)
                return
            ended.wait(interval)

    live = not as_json and is_terminal(sys.stdout) and wants_colour(sys.stdout)
    console = StreamConsole("stdout", soft_wrap=False, live=True)
    screen = Live(console=console, screen=True, auto_refresh=False, vertical_overflow="ellipsis") if live else None
    worker = threading.Thread(target=keep_looking, name="watch", daemon=True)
    worker.start()
    try:
        with screen or nullcontext():
            while True:
                try:
                    one = found.get(timeout=TICK)
                except queue.Empty:
                    one = None
                if isinstance(one, BaseException):
                    raise one
                if one is not None:
                    state.take(one)
                    if screen is None:
                        _append(state, as_json=as_json)
                if screen is not None:
                    screen.update(state.draw(interval), refresh=True)
    except KeyboardInterrupt:
        pass
    finally:
        ended.set()
        stop()
    if screen is not None and state.last is not None:
        # the other screen is gone with all it showed
        for part in state.parts(state.last, ()):
            console.print(part)
    return state.last


def _append(state: Watch, *, as_json: bool) -> None:
    assert state.last is not None, "a look was taken"  # noqa: S101
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    if as_json:
        document = {"time": now, "changes": [str(turn) for turn in state.turns], **state.last.to_json()}
        sys.stdout.write(json.dumps(document, separators=(",", ":"), default=str) + "\n")
        sys.stdout.flush()
        return
    console = wide(160)
    console.print(f"== {now}, look {state.looks}", markup=False)
    for turn in state.turns:
        console.print(f"* {printable(str(turn))}", markup=False)
    for part in state.parts(state.last, state.turns):
        console.print(part, soft_wrap=isinstance(part, Text))
    console.print()
    sys.stdout.flush()
