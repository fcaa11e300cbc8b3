"""What is wrong with a cluster.yaml, as values: where, how badly, and in which words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

# Keys and list indices from the top of the file: ("nodes", 1, "address").
Path = tuple[str | int, ...]
Severity = Literal["error", "warning"]

_PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong, or doubtful, in a cluster.yaml.

    ``line`` and ``column`` count from 1; 0 means not known. Errors refuse the file, warnings are shown.
    """

    path: Path
    message: str
    severity: Severity = "error"
    line: int = 0
    column: int = 0

    @property
    def where(self) -> str:
        """The path as a reader writes it: ``nodes[1].address``."""
        return dotted(self.path)


def dotted(path: Path) -> str:
    """``nodes[1].labels["example.com/zone"]`` for ("nodes", 1, "labels", "example.com/zone")."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{quoted(part)}]"
    return text


def quoted(value: object) -> str:
    """A user's value in a message: one line, no control characters, not endless."""
    text = str(value)
    # of a file's name the end matters most
    limit = 400 if isinstance(value, PurePath) else 80
    shown = text if len(text) <= limit else text[: limit - 3] + "..."
    return '"' + "".join(char if char.isprintable() else char.encode("unicode_escape", "replace").decode() for char in shown) + '"'


def suggestion(word: str, known: Iterable[str]) -> str:
    """The known word that was most likely meant, or "". Case, hyphens and underscores do not count."""
    plain = {_plain(candidate): candidate for candidate in known}
    if _plain(word) in plain:
        return plain[_plain(word)]
    close = difflib.get_close_matches(_plain(word[:64]), plain, n=1, cutoff=0.7)
    return plain[close[0]] if close else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean "address"?``, or "" where nothing is near."""
    meant = suggestion(word, known)
    return f'; did you mean "{meant}"?' if meant else ""


def error(path: Path, message: str) -> Problem:
    """A problem that refuses the file."""
    return Problem(path, message)


def warning(path: Path, message: str) -> Problem:
    """A problem that is shown and does not refuse the file."""
    return Problem(path, message, "warning")


def _plain(word: str) -> str:
    return word.replace("-", "").replace("_", "").lower()
