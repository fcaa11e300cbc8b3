"""Errors have a remedy, bugs leave a traceback in a file of the user's own, and signals end a run cleanly."""

from __future__ import annotations

import ast
import errno
import importlib
import json
import os
import pkgutil
import pty
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import provisioner
from provisioner.cli.ending import explain, keep_traceback
from provisioner.errors import BadInput, Interrupted, ProvisionerError

# A run of the tests in the background, or under nohup, hands on its own ignored signals.
HEARING = ("env", "--default-signal=INT,TERM,HUP")
PACKAGE = Path(provisioner.__file__).parent
COMMAND = Path(sys.executable).parent / "provisioner"
# Raised without a remedy of their own or of their class, because no user meets them as they are: (file, class): why.
WITHOUT = {
    ("artifacts/*", "DownloadFailed"): "a source turns it into a refusal; the error over all sources has the remedy",
    ("lifecycle/drain.py", "Interrupted"): "`cli.run.limited` adds how to go on",
    ("runner.py", "Interrupted"): "`cli.run.limited` adds how to go on",
    ("status/kubernetes.py", "ProvisionerError"): "a cell of `status`, which names its problems with remedies itself",
    ("support/*", "ProvisionerError"): "a line of the bundle's list of what is missing",
}


def _classes() -> dict[str, type[ProvisionerError]]:
    for module in pkgutil.walk_packages([str(PACKAGE)], "provisioner."):
        if module.name.rpartition(".")[2] not in ("__main__", "_share") and not module.name.startswith("provisioner._share"):
            importlib.import_module(module.name)

    def below(kind: type[ProvisionerError]) -> Iterator[type[ProvisionerError]]:
        yield kind
        for inner in kind.__subclasses__():
            yield from below(inner)

    return {kind.__name__: kind for kind in below(ProvisionerError)}


def _without_hint() -> Iterator[tuple[str, str, int]]:
    """(file, class, line) of every place that makes an error without a remedy."""
    classes = _classes()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in classes and not classes[name].remedy and not any(word.arg in ("hint", None) for word in node.keywords):
                yield str(path.relative_to(PACKAGE)), name, node.lineno


def test_every_error_has_a_remedy() -> None:
    found = list(_without_hint())
    excused = [
        (path, name, line)
        for path, name, line in found
        if any(name == kind and re.fullmatch(pattern.replace("*", ".*"), path) for pattern, kind in WITHOUT)
    ]
    assert [one for one in found if one not in excused] == [], "give them `hint=`: what can the user do?"
    for pattern, kind in WITHOUT:
        used = [one for one in excused if one[1] == kind and re.fullmatch(pattern.replace("*", ".*"), one[0])]
        assert used, f"{pattern}: {kind}: no such place any more; take it off the list"


def test_the_class_s_remedy_stands_in() -> None:
    assert ProvisionerError("x", hint="do this").hint == "do this"
    assert [kind.__name__ for kind in _classes().values() if kind.remedy and not kind("x").hint] == []
    assert BadInput("x").hint == Interrupted("x").hint == ""


def broken(words: str) -> None:
    raise ZeroDivisionError(words)


def test_a_bug_leaves_its_traceback_in_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(ZeroDivisionError) as caught:
        broken("password: hunter2hunter2")
    told = explain(caught.value)
    kept = next(tmp_path.iterdir())
    assert str(kept) in told.hint
    assert "this is a bug" in told.hint
    assert told.message.startswith("internal error: ZeroDivisionError")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    text = kept.read_text()
    assert "test_errors.py" in text
    assert "provisioner 0" in text
    assert "hunter2hunter2" not in text


def test_no_room_for_the_traceback_is_no_second_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert keep_traceback(ValueError("x")) is None
    assert "--debug" in explain(ValueError("x")).hint


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_behind_standard_output(number: int) -> None:
    assert explain(OSError(number, os.strerror(number))).message == f"standard output: {os.strerror(number)}"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_file_that_the_system_refuses_is_no_bug(number: int) -> None:
    told = explain(OSError(number, os.strerror(number), "/some/file"))
    assert told.message == f"/some/file: {os.strerror(number)}"
    assert told.hint
    assert "bug" not in told.hint


# --- whole processes: what happens between them and a shell ---------------------------------------------------------------------

SLOW = """
import sys, time
from provisioner import cli
from provisioner.cli import cluster
def slow(_):
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        print("cleaned up", flush=True)
cluster.open_cluster = slow
sys.argv = ["provisioner", "plan"]
cli.main()
"""
# The same within what keeps the deadline.
OPENED = """
from provisioner.cli import run
cluster.open_cluster = lambda _: (None, None)
def session(*_, deadline):
    with run.limited(deadline, "again"):
        slow(None)
cluster.open_session = session
"""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, -signal.SIGTERM, "stopped by SIGTERM"),
        (signal.SIGHUP, -signal.SIGHUP, "stopped by SIGHUP"),
    ],
)
def test_signals_end_it_cleanly(tmp_path: Path, number: int, code: int, said: str) -> None:
    process = subprocess.Popen(
        [*HEARING, sys.executable, "-c", SLOW],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "cleaned up" in out
    assert said in err
    assert "remedy: " in err
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [[], ["--deadline", "1"]])
def test_sigterm_and_a_deadline_end_what_does_not_hear_ctrl_c(tmp_path: Path, words: list[str]) -> None:
    """Shells start what they put into the background with SIGINT ignored."""
    slow = SLOW.replace("cluster.open_cluster = slow", OPENED).replace('"plan"', f'"plan", *{words!r}')
    process = subprocess.Popen(
        ["env", "--ignore-signal=INT", "--default-signal=TERM", sys.executable, "-c", slow],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    if not words:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (1 if words else -signal.SIGTERM), err
    assert "cleaned up" in out
    assert ("not done within 1 s" if words else "stopped by SIGTERM") in err


def test_nohup_stays_in_force(tmp_path: Path) -> None:
    process = subprocess.Popen(
        ["nohup", sys.executable, "-c", SLOW.replace("30", "0.5")], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    time.sleep(0.05)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1  # of the broken cluster, not of the signal
    assert b"SIGHUP" not in err


# A run with a live display and a journal.
RUN = """
import os, sys, time
from pathlib import Path
from provisioner import cli
from provisioner.cli import cluster, run
from provisioner.load import load
from provisioner.workspace import Workspace
def slow(_):
    path = Path("cluster.yaml")
    with run.open_session(load(path), Workspace.of(path, "test"), "apply") as session:
        session.display.plan([("etcd", "Run etcd")])
        session.display.start("etcd")
        os.write(1, b"ready\\n")
        WORK
cluster.open_cluster = slow
sys.argv = ["provisioner", "plan"]
cli.main()
"""
CLUSTER = (
    "name: test\nnodes:\n  - {name: cp-1, address: 127.0.0.1, clusterAddress: 10.77.0.11, roles: [control-plane, etcd, worker]}\n"
)


def ends(workspace: Path) -> list[tuple[str, str]]:
    """The events of a journal, with their errors."""
    records = [json.loads(line) for line in (workspace / "journal.jsonl").read_text().splitlines()]
    return [(record["event"], record.get("error", "")) for record in records]


def test_a_terminal_that_is_closed_ends_a_run_as_sighup_does(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*HEARING, sys.executable, "-c", RUN.replace("WORK", "time.sleep(30)")],
        cwd=tmp_path,
        env={**os.environ, "TERM": "xterm", "NO_COLOR": "", "TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGHUP
    assert ends(tmp_path / "workspace" / "test") == [("run", ""), ("failed", "stopped by Ctrl-C")]
    assert list(tmp_path.glob("*.traceback")) == []


@pytest.mark.parametrize(
    ("work", "end"), [("1 / 0", ("failed", "ZeroDivisionError: division by zero")), ("raise cli.typer.Exit(2)", ("done", ""))]
)
def test_every_end_of_a_run_is_on_record(tmp_path: Path, work: str, end: tuple[str, str]) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    script = [sys.executable, "-c", RUN.replace("WORK", work)]
    subprocess.run(script, cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)}, capture_output=True, check=False, timeout=60)
    assert ends(tmp_path / "workspace" / "test") == [("run", ""), end]


def shell(line: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "P": str(COMMAND), **environ}
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=60)


def test_a_reader_that_goes_away_is_no_error_and_no_success(tmp_path: Path) -> None:
    done = shell("$P schema | true; echo ${PIPESTATUS[0]}", tmp_path)
    assert done.stdout == "141\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("$P schema >/dev/full", 1, "No space left"),
        ("$P validate >&-", 3, "remedy"),
        ("$P validate 2>&-", 3, ""),
        ("$P schema >&-", 0, ""),
        ("$P schema <&- >&- 2>&-", 0, ""),
        ('printf %s "$CLUSTER" >cluster.yaml; $P graph >&-', 0, ""),
        ("$P validate <&-", 3, "remedy"),
        ("env -u HOME $P validate", 3, "remedy"),
        ("mkdir gone; cd gone; rmdir ../gone; $P validate", 3, "remedy"),
        ("$P validate --cluster .", 3, "remedy"),
    ],
)
def test_odd_surroundings(tmp_path: Path, line: str, code: int, said: str) -> None:
    done = shell(line, tmp_path, CLUSTER=CLUSTER)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
