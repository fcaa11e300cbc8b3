"""`status --watch`: what counts as a change; on a terminal, in a pipe, and its end by Ctrl-C, with machines that refuse us."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from provisioner import pki
from provisioner.cli.status import parts, show
from provisioner.cli.watch import Watch
from provisioner.load import load
from provisioner.status.changes import changes
from provisioner.status.model import Apiserver, Backend, Etcd, EtcdMember, Lease, Machine, NodeState, Problem, Proxy, Status, Vip
from provisioner.terminal import wide

SECONDS = 60.0
WHOLE = Status(
    cluster="t",
    kubernetes_version="1.36.3",
    machines=(Machine("cp-1", "10.0.0.1", ("control-plane",), reachable=True),),
    etcd=Etcd((EtcdMember("cp-1", "a", True, True, leader=True, raft_index=7, raft_term=2, db_mib=1),), quorum=True),
    apiservers=(Apiserver("cp-1", ready=True),),
    leases=(Lease("kube-scheduler", "cp-1", 1.0),),
    nodes=(NodeState("cp-1", ready=True, kubelet="v1.36.3"),),
    proxies=(Proxy("cp-1", (Backend("cp-1", True, "UP", 3),)),),
    vip=Vip("10.0.0.9", ("cp-1",)),
)


def test_what_moves_all_the_time_is_no_change() -> None:
    later = replace(
        WHOLE,
        etcd=Etcd((replace(WHOLE.etcd.members[0], raft_index=9, db_mib=2),), quorum=True),
        leases=(Lease("kube-scheduler", "cp-1", 2.0),),
        proxies=(Proxy("cp-1", (Backend("cp-1", True, "UP", 9),)),),
        seconds=3,
    )
    assert changes(WHOLE, later) == ()


def test_every_change_is_told() -> None:
    worse = replace(
        WHOLE,
        machines=(replace(WHOLE.machines[0], reachable=False),),
        etcd=Etcd((replace(WHOLE.etcd.members[0], healthy=False),), quorum=False),
        apiservers=(Apiserver("cp-1", ready=False),),
        leases=(Lease("kube-scheduler", "cp-1", 99.0),),
        nodes=(NodeState("cp-1", ready=False), NodeState("new", ready=True)),
        proxies=(Proxy("cp-1", (Backend("cp-1", False, "DOWN", 0),)),),
        vip=Vip("10.0.0.9", ()),
    )
    assert [str(turn) for turn in changes(WHOLE, worse)] == [
        "machine cp-1: answers -> UNREACHABLE",
        "etcd cp-1: leader -> DOWN",
        "control plane cp-1: ready -> NOT READY",
        "leader kube-scheduler: cp-1 -> nobody",
        "node cp-1: Ready v1.36.3 -> NOT READY",
        "node new: not there -> Ready",
        "proxy cp-1: 1 of 1 API servers up -> 0 of 1 API servers up",
        "virtual address: cp-1 -> no machine",
    ]


def test_what_nobody_tells_of_is_not_gone() -> None:
    silent = replace(
        WHOLE,
        machines=(replace(WHOLE.machines[0], reachable=False),),
        leases=(),
        nodes=(),
        proxies=(),
        api_error="no control plane can be reached",
    )
    told = [str(turn) for turn in changes(WHOLE, silent)]
    assert told == [
        "machine cp-1: answers -> UNREACHABLE",
        "leader kube-scheduler: cp-1 -> not known",
        "node cp-1: Ready v1.36.3 -> not known",
        "proxy cp-1: 1 of 1 API servers up -> not known",
    ]
    assert [str(turn) for turn in changes(silent, WHOLE)][2] == "node cp-1: not known -> Ready v1.36.3"
    assert [str(turn) for turn in changes(WHOLE, replace(WHOLE, nodes=()))] == ["node cp-1: Ready v1.36.3 -> not there"]


def test_the_screen_marks_what_has_turned() -> None:
    watch = Watch(parts)
    watch.take(WHOLE)
    watch.take(replace(WHOLE, apiservers=(Apiserver("cp-1", ready=False),)))
    console = Console(width=100, record=True, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - closed below
    console.print(watch.draw(2))
    console.file.close()
    text = console.export_text()
    assert "t: look 2, 0 s ago; 2 s between two; Ctrl-C ends" in text
    assert "control plane cp-1: ready -> NOT READY" in text
    rows = [line for line in text.splitlines() if line.startswith("cp-1")]
    assert [row.startswith("cp-1 *") for row in rows] == [False, False, True, False], rows


NASTY = "v1[/]\x1b[2J\x9b2J\udc9b"


def test_words_of_others_are_no_orders() -> None:
    attacked = replace(
        WHOLE,
        etcd=Etcd((replace(WHOLE.etcd.members[0], alarms=(NASTY,)),), quorum=True),
        leases=(Lease("kube-scheduler", NASTY, 1.0),),
        nodes=(NodeState("cp-1", ready=True, kubelet=NASTY),),
        proxies=(Proxy("cp-1", (Backend(NASTY, True, "UP", 3), Backend(NASTY, False, "DOWN", 3))), Proxy(NASTY)),
        vip=Vip("10.0.0.9", (NASTY,)),
        problems=(Problem("cp-1", NASTY, NASTY),),
    )
    watch = Watch(parts)
    watch.take(WHOLE)
    watch.take(attacked)
    with (console := Console(width=400, file=io.StringIO())).capture() as captured:
        console.print(watch.draw(2))
    assert captured.get().count("v1[/]\N{REPLACEMENT CHARACTER}[2J") > 10
    assert not set(captured.get()) & {"\x1b", "\x9b", "\udc9b"}


def test_a_line_in_a_pipe_neither_breaks_nor_is_filled_up(capsys: pytest.CaptureFixture[str]) -> None:
    long = replace(WHOLE, problems=(Problem("cp-1", "cause " * 60 + "end", "remedy"),))
    show(long, wide(160))
    lines = capsys.readouterr().out.splitlines()[-2:]
    assert [line.rstrip() for line in lines] == lines
    assert (lines[0].endswith("end"), lines[1]) == (True, "    remedy: remedy")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A cluster whose machines refuse every connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (tmp_path / "cluster.yaml").write_text(
        f"name: t\nssh: {{port: {port}}}\n"
        "nodes:\n"
        "  - {name: cp-1, address: 127.0.0.1, clusterAddress: 10.0.0.1, roles: [control-plane, etcd]}\n"
        "  - {name: worker-1, address: 127.0.0.2, clusterAddress: 10.0.0.2, roles: [worker]}\n"
    )
    pki.ensure(load(tmp_path / "cluster.yaml"), tmp_path / "workspace" / "t" / "pki", now=dt.datetime.now(dt.UTC))
    (tmp_path / "workspace" / "t" / "layout").write_text("1\n")
    return tmp_path


@contextlib.contextmanager
def watching(directory: Path, *more: str, stdout: int, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "provisioner", "status", "--watch", "--interval", "0.5", *more],
        cwd=directory,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40", **environ},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def read_until(handle: int, wanted: bytes) -> bytes:
    text, deadline = b"", time.monotonic() + SECONDS
    while wanted not in text:
        ready, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, text.decode(errors="replace")
        chunk = os.read(handle, 1 << 16)
        assert chunk, text.decode(errors="replace")
        text += chunk
    return text


def test_on_a_terminal_one_screen_is_drawn_anew(directory: Path) -> None:
    master, slave = pty.openpty()
    with watching(directory, stdout=slave, NO_COLOR="") as process:
        os.close(slave)
        text = read_until(master, b"look 2")
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the terminal's other end is gone
            while chunk := os.read(master, 1 << 16):
                text += chunk
        assert process.wait(SECONDS) == 1, "the exit code of the last look: no machine answers"
        assert process.stderr is not None
        assert process.stderr.read() == b""
    os.close(master)
    entered, _, rest = text.partition(b"\x1b[?1049h")
    assert entered.strip() == b""
    _, left, after = rest.partition(b"\x1b[?1049l")
    assert left, "the terminal is given back"
    assert b"cannot be reached: connection refused" in after, "the last look stays"
    assert b"\x1b[1;31m" in text


@pytest.mark.parametrize(
    ("more", "number", "code"),
    [([], signal.SIGHUP, -signal.SIGHUP), ([], 0, -signal.SIGPIPE), (["--json"], 0, -signal.SIGPIPE)],
)
def test_a_terminal_that_is_closed_is_no_bug(directory: Path, more: list[str], number: int, code: int) -> None:
    master, slave = pty.openpty()
    with watching(directory, *more, stdout=slave, NO_COLOR="", TMPDIR=str(directory)) as process:
        os.close(slave)
        read_until(master, b'"healthy"' if more else b"look 1")
        os.close(master)
        if number:
            process.send_signal(number)
        assert process.wait(SECONDS) == code
        assert process.stderr is not None
        assert b"internal error" not in process.stderr.read()
    assert list(directory.glob("*.traceback")) == []


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_escape_sequences_gets_each_look_below_the_last(directory: Path, environ: dict[str, str]) -> None:
    master, slave = pty.openpty()
    with watching(directory, stdout=slave, **environ) as process:
        os.close(slave)
        text = read_until(master, b"look 2")
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 1
    os.close(master)
    assert b"\x1b" not in text


def test_in_a_pipe_each_look_is_appended(directory: Path) -> None:
    with watching(directory, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        text = read_until(process.stdout.fileno(), b"look 2").decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 1
    assert " problems (looked for" in text.partition("look 2")[0]
    assert "\x1b" not in text


def test_as_json_each_look_is_a_line(directory: Path) -> None:
    with watching(directory, "--json", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        text = read_until(process.stdout.fileno(), b"}\n{")
        process.send_signal(signal.SIGINT)
        process.wait(SECONDS)
    first = json.loads(text.splitlines()[0])
    assert (first["healthy"], first["changes"], first["machines"][0]["reachable"]) == (False, [], False)
