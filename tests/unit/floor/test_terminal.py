"""Escape sequences, characters and progress: only where they belong."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from provisioner import display
from provisioner.display import Display, LiveDisplay, display_for, waiting
from provisioner.terminal import ASCII, HANDLER, StreamConsole, harden, is_live, speaks_unicode, wants_colour

COMMAND = Path(sys.executable).parent / "provisioner"
CLUSTER = """\
apiVersion: provisioner/v1
name: test
nodes:
  - {name: cp-1, address: localhost, clusterAddress: 10.77.0.11, sshPort: 1, roles: [control-plane, etcd, worker]}
"""
ESCAPE = re.compile(rb"\x1b")
CLEAN = dict.fromkeys(("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "CLICOLOR", "PYTHONIOENCODING", "LC_CTYPE", "LANG"), "")


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "environ", "colour"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "dumb"}, False),
        (Terminal(), {}, False),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "xterm", "CLICOLOR": "0"}, False),
        (io.StringIO(), {"TERM": "xterm"}, False),
        (io.StringIO(), {"FORCE_COLOR": "1"}, True),
        (io.StringIO(), {"FORCE_COLOR": "0"}, False),
        (io.StringIO(), {"CLICOLOR_FORCE": "1"}, True),
        (io.StringIO(), {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        (None, {"TERM": "xterm"}, False),
    ],
)
def test_who_gets_colours(stream: io.StringIO | None, environ: Mapping[str, str], colour: bool) -> None:
    assert wants_colour(stream, environ) is colour


def test_a_pipe_never_gets_a_live_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert not is_live()
    assert type(display_for(StreamConsole("stderr"))) is Display


def test_no_character_is_too_much() -> None:
    every = "".join(ASCII) + "\N{SNOWMAN}\N{GRINNING FACE}é\udce9"
    written = every.encode("ascii", HANDLER)
    assert b"..." in written
    assert rb"\u2603\U0001f600\xe9" in written
    assert written.endswith(b"\xe9")  # the byte of a file name that was no text
    assert every.encode("utf-8", HANDLER).endswith(b"\xe9")


def test_a_stream_in_the_c_locale_that_was_asked_for() -> None:
    class Raw(io.TextIOWrapper):
        def isatty(self) -> bool:
            return True

    for environ, unicode in (({"LC_ALL": "C"}, False), ({"LANG": "de_DE.UTF-8", "LC_ALL": "POSIX"}, False), ({}, True)):
        stream = Raw(io.BytesIO(), encoding="utf-8")
        harden(stream, environ)
        assert speaks_unicode(stream) is unicode
        stream.write("✓ …")
    latin = io.TextIOWrapper(io.BytesIO(), encoding="iso-8859-1")
    harden(latin, {})
    latin.write("é ✓ …")
    latin.flush()
    assert latin.buffer.getvalue() == b"\xe9 + ..."


# --- whole processes --------------------------------------------------------------------------------------------------------------


def on_a_terminal(words: list[str], cwd: Path, *, columns: int = 80, **environ: str) -> bytes:
    """What a command writes to a terminal of its own (both streams)."""
    ours, theirs = pty.openpty()
    env = {**os.environ, **CLEAN, "COLUMNS": str(columns), "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **environ}
    process = subprocess.Popen([str(COMMAND), *words], cwd=cwd, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 0.2)[0]:
            try:
                more = os.read(ours, 65536)
            except OSError:  # the other side has gone
                break
            seen += more
    os.close(ours)
    process.wait(timeout=60)
    return seen


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    return tmp_path


def test_a_terminal_gets_colours(here: Path) -> None:
    seen = on_a_terminal(["preflight"], here)
    assert ESCAPE.search(seen)
    assert "cp-1" in seen.decode()


@pytest.mark.parametrize(
    ("words", "environ"),
    [
        (["preflight"], {"NO_COLOR": "1"}),
        (["plan"], {"NO_COLOR": "1"}),
        (["--help"], {"NO_COLOR": "1"}),
        (["plan"], {"TERM": "dumb"}),
        (["validate", "--cluster", "nowhere"], {"CLICOLOR": "0"}),
    ],
)
def test_no_escape_sequence_where_none_is_wanted(here: Path, words: list[str], environ: dict[str, Any]) -> None:
    seen = on_a_terminal(words, here, **environ)
    assert seen
    assert not ESCAPE.search(seen), seen


@pytest.mark.parametrize("words", [["preflight"], ["plan"]])
def test_an_ascii_terminal_gets_ascii(here: Path, words: list[str]) -> None:
    seen = on_a_terminal(words, here, LC_ALL="C", TERM="dumb")
    assert seen
    assert seen.isascii(), seen
    assert b"Traceback" not in seen


def test_no_encoding_stops_a_command(here: Path) -> None:
    odd = here / "Übung ✓ [x]"
    odd.mkdir()
    (odd / "cluster.yaml").write_text(CLUSTER)
    env = {**os.environ, **CLEAN, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    for words in (["validate"], ["plan"], ["kubeconfig"]):
        done = subprocess.run(
            [str(COMMAND), *words, "--cluster", str(odd)], cwd=here, env=env, capture_output=True, check=False, timeout=60
        )
        assert done.stdout.isascii()
        assert done.stderr.isascii()
        assert b"internal error" not in done.stderr
        assert b"Traceback" not in done.stderr


def test_tables_fit_their_terminal(here: Path) -> None:
    for columns in (40, 80):
        seen = on_a_terminal(["preflight"], here, columns=columns, NO_COLOR="1").decode().splitlines()
        table = [line for line in seen if line.startswith(("cp-1", "  error", "         "))]
        assert table
        assert max(map(len, table)) <= columns


# --- progress ---------------------------------------------------------------------------------------------------------------------


def test_plain_progress_is_silent_while_it_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting(StreamConsole("stderr"), "looking"):
        pass
    assert capsys.readouterr() == ("", "")


def test_plain_progress_speaks_when_it_takes_long(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "PATIENCE", 0.05)
    monkeypatch.setattr(display, "SIGNS_OF_LIFE", (0.1, 0.15))
    with waiting(StreamConsole("stderr"), "looking [at] it") as say:
        time.sleep(0.08)
        say("nearly there")
        time.sleep(0.2)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0].startswith("looking [at] it … (")
    assert lines[1].startswith("nearly there … (")
    assert lines[-1].startswith("nearly there: done (")


def test_a_failure_is_not_called_done(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "PATIENCE", 0.01)
    with contextlib.suppress(ValueError), waiting(StreamConsole("stderr"), "looking"):
        time.sleep(0.1)
        raise ValueError("x")
    assert "done" not in capsys.readouterr().err


def test_a_long_phase_says_that_it_goes_on(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "HEARTBEAT", 0.05)
    shown = Display(StreamConsole("stderr"))
    shown.plan([("etcd", "Run etcd")])
    with shown.running():
        shown.start("etcd")
        time.sleep(0.2)
        with shown.paused():
            capsys.readouterr()
            time.sleep(0.2)
            assert capsys.readouterr().err == "", "somebody is being asked"
        shown.finish("etcd")
    assert "Run etcd ok" in capsys.readouterr().err


def test_the_live_table_has_ascii_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = LiveDisplay(StreamConsole("stderr"))
    shown.plan([("one", "First"), ("two", "Second")])
    shown.start("one")
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with shown.console.capture() as captured:
        shown.console.print(shown.draw())
    assert captured.get().isascii()
    assert "> First" in captured.get()
