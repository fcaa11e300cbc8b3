"""Numbers and spans of time as people say them."""

from __future__ import annotations


def ago(seconds: float) -> str:
    """A span in whole minutes, hours or days: ``90 min``, ``3 h``, ``2 days``."""
    minutes = max(0, int(seconds)) // 60
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h" if minutes < 2880 else f"{minutes // 1440} days"


def count(number: int, word: str) -> str:
    """``1 change``, ``2 changes``."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
