"""How long work tells of itself: a small interface, so that the terminal's live view and a plain log are interchangeable."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called from several threads at once. ``key`` names one piece of work (a file, a build)."""

    def start(self, key: str, text: str, total: int | None) -> None:
        """Work begins; ``total`` is its size in bytes where it is known."""

    def advance(self, key: str, done: int) -> None:
        """``done`` bytes of it are there now (a total, not a difference)."""

    def finish(self, key: str) -> None:
        """Work ended, well or not."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def warn(self, text: str) -> None:
        """Something the user should know, that stops nothing."""


class Silent:
    """Tells nothing."""

    def start(self, key: str, text: str, total: int | None) -> None:
        """Nothing."""

    def advance(self, key: str, done: int) -> None:
        """Nothing."""

    def finish(self, key: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""
