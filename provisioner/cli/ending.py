"""How a run of the command ends: results flushed, errors in words, signals as Ctrl-C does it, and the exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import typer
from typer._click.exceptions import NoArgsIsHelpError

from provisioner import __version__
from provisioner.errors import STOPPED, BadInput, ExitCode, Interrupted, ProvisionerError
from provisioner.terminal import StreamConsole, harden, help_width

AGAIN = "the same command again takes up what is there"


@dataclass(slots=True)
class Stop:
    """The signal that asked for the end, if one did."""

    number: int = 0


def run_and_exit(app: typer.Typer) -> NoReturn:
    """Run the command line and end the process.

    Exit codes are those of ``ExitCode``. A process that SIGTERM or SIGHUP has asked to end cleans up as after Ctrl-C and then ends
    by that signal; one whose reader has gone (`| head`) ends by SIGPIPE, as other programs do, and so never claims success.
    """
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        harden(stream)
    _hoist_debug(sys.argv)
    with _stoppable() as stop:
        code = attempt(app, stop)
    if code in (128 + signal.SIGTERM, 128 + signal.SIGHUP, 128 + signal.SIGPIPE):
        _die_by(code - 128)
    sys.exit(code)


def attempt(app: typer.Typer, stop: Stop | None = None) -> int:
    """Run the command line; the exit code, after the words that go with it."""
    try:
        code = app(standalone_mode=False, terminal_width=help_width())
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit as error:  # typer's own way out, also of a broken pipe
        return _unread(stop) if _reader_gone(error.__context__) else int(error.code or 0)
    except typer.TyperException as error:
        _show_usage(error)
        return ExitCode.BAD_INPUT
    except (ProvisionerError, typer.Abort, KeyboardInterrupt) as error:
        told = error if isinstance(error, ProvisionerError) else Interrupted("interrupted", hint=AGAIN)
    except Exception as error:
        if _reader_gone(error):
            return _unread(stop)
        told = explain(error)
    else:
        if code != ExitCode.INTERRUPTED:
            return int(code or 0)
        # typer's word for a Ctrl-C that no command has turned into an error
        told = Interrupted("interrupted", hint=AGAIN)
    if os.environ.get("PROVISIONER_DEBUG"):
        traceback.print_exception(told.__cause__ if told.__cause__ and not isinstance(told, Interrupted) else told)
    if isinstance(told, Interrupted) and stop and stop.number:
        name = signal.Signals(stop.number).name
        show_error(Interrupted(f"stopped by {name}" if told.message in (STOPPED, "interrupted") else told.message, hint=told.hint))
        return 128 + stop.number
    show_error(told)
    return told.exit_code


def _reader_gone(error: BaseException | None) -> bool:
    """Whether an error says that nobody reads standard output any more: a pipe without a reader, a terminal that was closed."""
    if not isinstance(error, OSError) or error.errno != errno.EIO or sys.stdout is None:
        return isinstance(error, BrokenPipeError)
    try:
        os.write(sys.stdout.fileno(), b"")
    except (OSError, ValueError) as still:
        return getattr(still, "errno", None) == errno.EIO
    return False  # of a disk that fails


def _unread(stop: Stop | None) -> int:
    """The exit code where nobody reads any more; a terminal that is closed says so by SIGHUP, too."""
    return 128 + (stop.number if stop and stop.number else signal.SIGPIPE)


def show_error(error: ProvisionerError) -> None:
    """Print an error the way every command does: what, the details, the remedy."""
    from rich.markup import escape  # noqa: PLC0415 - not before there is something to print

    console = StreamConsole("stderr")
    word = "[bold red]interrupted:[/]" if isinstance(error, Interrupted) else "[bold red]error:[/]"
    console.print(f"{word} {escape(error.message)}")
    for line in error.details:
        console.print(f"  {escape(line)}")
    if error.hint:
        console.print(f"[bold]remedy:[/] {escape(error.hint)}")


def _show_usage(error: typer.TyperException) -> None:
    """A command line that cannot be understood; where a group of commands was called without one, its help says it all."""
    text = error.format_message()
    command = getattr(getattr(error, "ctx", None), "command_path", "provisioner")
    if isinstance(error, NoArgsIsHelpError):
        sys.stderr.write(f"{text}\n")
    elif text:
        show_error(BadInput(text, hint=f"`{command} --help` shows what it takes"))


def explain(error: Exception) -> ProvisionerError:
    """What no command has foreseen: a file that the system refuses is the user's to mend, everything else is a bug."""
    if isinstance(error, OSError) and error.strerror:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        where = error.filename if error.filename is not None else "standard output" if full else ""
        if where:
            told = ProvisionerError(
                f"{where}: {error.strerror}", hint="look at that file's permissions, and at the room on its disk"
            )
            told.__cause__ = error
            return told
    kept = keep_traceback(error)
    told = ProvisionerError(
        f"internal error: {type(error).__name__}: {error}",
        hint=(f"this is a bug: report it with {kept}" if kept else "this is a bug: report what `--debug` shows")
        + "; `provisioner --debug …` shows it at once",
    )
    told.__cause__ = error
    return told


def keep_traceback(error: BaseException) -> Path | None:
    """Write the traceback into a file of the user's own (0600), without secrets; None where there is no room for it."""
    from provisioner.redact import redact  # noqa: PLC0415 - for the one run that needs it

    head = f"provisioner {__version__}, Python {platform.python_version()}, {platform.platform()}\n$ {' '.join(sys.argv)}\n\n"
    text = redact(head + "".join(traceback.format_exception(error)))
    try:
        handle, name = tempfile.mkstemp(prefix="provisioner-", suffix=".traceback")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:  # noqa: PTH123 - a handle, not a path
            file.write(text)
    except OSError:
        return None
    return Path(name)


def hear_ctrl_c() -> None:
    """Make SIGINT count where whoever started us has it ignored, as shells do for what they put into the background.

    Ctrl-C is not meant for such a process; SIGTERM and a deadline are, and end a run by it. To be called in the main thread.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def _stoppable() -> Iterator[Stop]:
    """SIGTERM and SIGHUP do what Ctrl-C does: every part of a run knows how to stop for that. `nohup` stays in force."""
    stop = Stop()

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.number = number
        hear_ctrl_c()
        os.kill(os.getpid(), signal.SIGINT)

    before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}
    for number in (int(signal.SIGTERM), int(signal.SIGHUP)):
        if signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _die_by(number: int) -> NoReturn:
    """End by a signal, so that whoever waits for this process sees it."""
    with contextlib.suppress(OSError, ValueError):  # what is left in the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # not reached, unless the signal is blocked


def _open_closed() -> None:
    """A standard stream that was closed by whoever started us (`>&-`) is empty and takes everything; no file gets its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - as long as the process


def _hoist_debug(words: list[str]) -> None:
    """`provisioner plan --debug` is `provisioner --debug plan`; what stands after `--`, or is ssh's, is somebody else's."""
    end = words.index("--") if "--" in words else len(words)
    if "ssh" not in words[1:3] and "--debug" in words[1:end]:
        words.remove("--debug")
        words.insert(1, "--debug")
