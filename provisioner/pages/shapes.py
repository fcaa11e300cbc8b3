"""A picture as a value: rectangles, lines, words and marks with their places, in SVG's units. Drawn by one macro of the template.

``css`` names classes of ``style.css``, whose colours follow the reader's scheme; every tone has a mark of its own shape as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Tone(StrEnum):
    """How something is. The worst of several is the first of these."""

    BAD = "bad"
    WARN = "warn"
    UNKNOWN = "unknown"
    OK = "ok"

    @property
    def word(self) -> str:
        """For those who do not see the mark."""
        return {"bad": "wrong", "warn": "to be looked at", "unknown": "not known", "ok": "well"}[self.value]


def worst(*tones: Tone) -> Tone:
    """The tone of a whole; of nothing, not known."""
    order = tuple(Tone)
    return min(tones, key=order.index, default=Tone.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Rect:
    """A rectangle. ``title`` is shown when it is pointed at."""

    x: float
    y: float
    width: float
    height: float
    css: str
    title: str = ""
    radius: float = 0


@dataclass(frozen=True, slots=True)
class Path:
    """A line, in SVG's words for it."""

    d: str
    css: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Words:
    """Text on its baseline. ``anchor``: start, middle or end; ``turn``: degrees."""

    x: float
    y: float
    text: str
    css: str = ""
    anchor: str = "start"
    turn: float = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """The sign of a tone, or of a leader; ``x`` and ``y`` are its middle."""

    x: float
    y: float
    name: str
    size: float = 14


Shape = Rect | Path | Words | Mark


@dataclass(frozen=True, slots=True)
class Picture:
    """All of it, with its words for those who do not see it.

    Attributes:
        css: of the picture as a whole: how wide it is at least.
    """

    name: str
    title: str
    desc: str
    width: float
    height: float
    shapes: tuple[Shape, ...]
    css: str = ""


def short(text: str, most: int) -> str:
    """At most so many characters, without its middle where it has more: names of machines differ at their ends."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[-end:] if end else ''}"
