"""What the terminal at hand can show: colours, redrawn lines, characters beyond ASCII; and where output goes that nobody reads.

Three decisions, made here alone:

- *colour* where the stream is a terminal that understands escape sequences; ``FORCE_COLOR`` and ``CLICOLOR_FORCE`` turn it on
  elsewhere, ``NO_COLOR`` (https://no-color.org) and ``CLICOLOR=0`` off everywhere: then no escape sequence is written at all;
- a *live* display where stderr is such a terminal and ``NO_COLOR`` is not set; never in a pipe, whatever ``FORCE_COLOR`` says;
- *characters*: what the encoding of a stream lacks is written in ASCII (``…`` as ``...``), never a ``UnicodeEncodeError``.
"""

from __future__ import annotations

import codecs
import errno
import os
import shutil
import sys
from collections.abc import Mapping
from typing import IO, Any, Literal, TextIO

from rich.console import Console

HANDLER = "provisioner-ascii"
# What the messages, tables and displays of this program use beyond ASCII, and what most comes close to it.
# fmt: off
ASCII = {
    "…": "...",
    "–": "-",  # noqa: RUF001
    "—": "--",
    "‑": "-",  # noqa: RUF001
    "→": "->",
    "←": "<-",
    "↔": "<->",
    "⇒": "=>",
    "✓": "+",
    "✔": "+",
    "✗": "x",
    "✘": "x",
    "·": ".",
    "•": "*",
    "▸": ">",
    "×": "x",  # noqa: RUF001
    "≥": ">=",
    "≤": "<=",
    "‘": "'",  # noqa: RUF001
    "’": "'",  # noqa: RUF001
    "“": '"',
    "”": '"',
    "\N{NO-BREAK SPACE}": " ",
    "±": "+/-",
    "µ": "u",
    "°": " deg",
    "█": "#",
    "━": "-",
    "╸": "-",
    "╺": "-",
    "─": "-",
    "│": "|",
}
# fmt: on


def _substitute(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is written for characters that the encoding lacks; bytes of file names that were no text come out as they were."""
    assert isinstance(error, UnicodeEncodeError)  # noqa: S101 - the handler is registered for writing alone
    char = error.object[error.start]
    if "\udc80" <= char <= "\udcff":
        return bytes([ord(char) - 0xDC00]), error.start + 1
    if char in ASCII:
        return ASCII[char], error.start + 1
    code = ord(char)
    return (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"), error.start + 1


codecs.register_error(HANDLER, _substitute)


def harden(stream: TextIO | Any, environ: Mapping[str, str] = os.environ) -> None:
    """Make a stream write whatever it is given; a terminal in the C locale that was asked for gets ASCII."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is None:  # a test's own, or closed by whoever started us
        return
    wanted = environ.get("LC_ALL") or environ.get("LC_CTYPE") or environ.get("LANG") or ""
    if stream.isatty() and wanted in ("C", "POSIX") and not environ.get("PYTHONIOENCODING"):
        reconfigure(encoding="ascii", errors=HANDLER)
    else:
        reconfigure(errors=HANDLER)


def wants_colour(stream: IO[str] | None, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether escape sequences may go into a stream."""
    if environ.get("NO_COLOR") or environ.get("CLICOLOR") == "0":
        return False
    if any(environ.get(name, "0") not in ("", "0", "false") for name in ("FORCE_COLOR", "CLICOLOR_FORCE")):
        return True
    return is_terminal(stream, environ)


def is_tty(stream: IO[str] | None) -> bool:
    """Whether a stream is a terminal of any kind."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False


def is_terminal(stream: IO[str] | None, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a stream is a terminal that understands escape sequences."""
    return is_tty(stream) and environ.get("TERM", "dumb") not in ("dumb", "unknown", "")


def is_live(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether lines on stderr may be redrawn."""
    return is_terminal(sys.stderr, environ) and wants_colour(sys.stderr, environ)


def speaks_unicode(stream: IO[str] | None) -> bool:
    """Whether a stream can show this program's marks as they are."""
    # what Rich puts in a stream's place while it draws says nothing of the encoding
    stream = getattr(stream, "rich_proxied_file", stream)
    try:
        "✓✗▸…⠋".encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class StreamConsole(Console):
    """Rich's console, with this module's decisions; the streams are those of the moment, which tests replace.

    Args:
        to: which standard stream.
        width: columns; default: the terminal's.
        soft_wrap: lines are left to the terminal to break, so that they can be searched and copied; not for tables.
        live: whether lines may be redrawn; default: on stderr alone, where ``is_live`` says so.
    """

    def __init__(
        self, to: Literal["stdout", "stderr"], *, width: int | None = None, soft_wrap: bool = True, live: bool | None = None
    ) -> None:
        stream = getattr(sys, to)
        colour = wants_colour(stream)
        system: Literal["auto"] | None = "auto" if colour else None
        super().__init__(
            stderr=to == "stderr",
            highlight=False,
            soft_wrap=soft_wrap,
            width=width,
            color_system=system,
            no_color=not colour,
            force_terminal=colour,
            force_interactive=to == "stderr" and is_live() if live is None else live,
            legacy_windows=False,
        )
        self.to = to

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError as error:
            # what the kernel says of a terminal that was closed
            if error.errno != errno.EIO:
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """The reader has gone. Of progress nothing is lost: go on in silence. Of a result everything is: end.

        Raises:
            BrokenPipeError: it was stdout.
        """
        self.quiet = True
        if self.to == "stdout":
            raise BrokenPipeError
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def wide(width: int = 180) -> Console:
    """Where a table goes: the terminal as wide as it is; a pipe has no width of its own, so lines long enough for grep."""
    return StreamConsole("stdout", width=None if is_tty(sys.stdout) else width, soft_wrap=False)


def help_width() -> int:
    """Columns for --help: readable where there are few, no longer than one reads where there are many."""
    return max(min(shutil.get_terminal_size().columns, 100) - 2, 30)
