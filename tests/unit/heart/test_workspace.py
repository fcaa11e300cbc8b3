"""The workspace: one run at a time, nothing half written, a layout of another version refused, a journal that only tells."""

from __future__ import annotations

import datetime as dt
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from provisioner.errors import BadInput, ProvisionerError, WaitTimeout
from provisioner.wait import NotYet, wait_until
from provisioner.workspace import LAYOUT, Workspace, write_atomic


@contextmanager
def holder(workspace: Workspace) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is told to end."""
    code = """
        import sys
        from pathlib import Path
        from provisioner.workspace import Workspace
        with Workspace.of(Path(sys.argv[1]), "test").lock("apply"):
            print("held", flush=True)
            sys.stdin.read()
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(workspace.cluster_file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_a_second_run_is_told_who_holds_the_workspace(workspace: Workspace) -> None:
    with holder(workspace) as other:
        with pytest.raises(ProvisionerError) as refused, workspace.lock("plan"):
            pass
        message = refused.value.message
        assert "`provisioner apply`" in message
        assert f"process {other.pid} of " in message
        assert str(workspace.root) in message
        assert refused.value.hint
    with workspace.lock("plan"):
        held = json.loads((workspace.root / "lock").read_text())
        assert held["pid"] == os.getpid()
        assert held["command"] == "plan"


def test_a_killed_run_leaves_no_lock_behind(workspace: Workspace) -> None:
    with holder(workspace) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        with workspace.lock("apply"):
            pass


def test_a_lock_is_free_again_after_an_error(workspace: Workspace) -> None:
    with pytest.raises(RuntimeError, match="broken"), workspace.lock("apply"):
        raise RuntimeError("broken")
    with workspace.lock("apply"):
        pass


def test_a_lock_file_without_sense_does_not_break_the_message(workspace: Workspace) -> None:
    with holder(workspace):
        (workspace.root / "lock").write_text("{")
        with pytest.raises(ProvisionerError, match="in use by another process"), workspace.lock("plan"):
            pass


def test_everything_is_the_owners_alone(workspace: Workspace) -> None:
    with workspace.lock("apply"):
        workspace.record("phase", phase="pki")
    write_atomic(workspace.pki / "ca.pem", b"key")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in workspace.root.rglob("*")}
    assert stat.S_IMODE(workspace.root.stat().st_mode) == 0o700
    assert modes == {"layout": 0o644, "lock": 0o600, "journal.jsonl": 0o600, "pki": 0o700, "ca.pem": 0o600}


# -- atomic writes ---------------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file"
    write_atomic(path, "old")
    write_atomic(path, b"new", mode=0o640)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "directory"
    path.mkdir()
    (path / "inside").touch()
    with pytest.raises(OSError, match=r"[Dd]irectory"):
        write_atomic(path, b"new")
    assert [found.name for found in tmp_path.iterdir()] == ["directory"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """A process that writes 1 MiB over and over is killed in the middle: what is there is one whole version."""
    path = tmp_path / "file"
    size = 1 << 20
    code = f"""
        import sys
        from pathlib import Path
        from provisioner.workspace import write_atomic
        for number in range(10 ** 9):
            write_atomic(Path(sys.argv[1]), bytes([number % 256]) * {size})
            if number == 3:
                print("writing", flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        for _ in range(50):
            content = path.read_bytes()
            assert len(content) == size
            assert content == content[:1] * size
        process.kill()
    content = path.read_bytes()
    assert content == content[:1] * size


# -- layout ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("found", ["0", "2", "99", "", "abc"])
def test_a_workspace_of_another_version_is_refused(workspace: Workspace, found: str) -> None:
    workspace.create()
    (workspace.root / "layout").write_text(found)
    with pytest.raises(BadInput, match=f"layout {found or 'of no number'}, this version reads layout {LAYOUT}") as refused:
        Workspace.of(workspace.cluster_file, "test")
    assert refused.value.hint


def test_a_workspace_from_before_there_were_numbers_is_refused(workspace: Workspace) -> None:
    workspace.pki.mkdir(parents=True)
    with pytest.raises(BadInput, match="layout 0"):
        Workspace.of(workspace.cluster_file, "test")


def test_a_lab_has_its_workspace_around_its_cluster_file(tmp_path: Path) -> None:
    home = tmp_path / "workspace" / "lab"
    home.mkdir(parents=True)
    (home / "cluster.yaml").touch()
    (home / "known_hosts").touch()
    assert Workspace.of(home / "cluster.yaml", "lab").root == home
    # another cluster's name: a directory of its own, beside the file
    assert Workspace.of(home / "cluster.yaml", "other").root == home / "workspace" / "other"


# -- journal -----------------------------------------------------------------------------------------------------------------------


def test_the_journal_has_one_object_a_line_also_from_several_threads(workspace: Workspace) -> None:
    def write() -> None:
        for count in range(50):
            workspace.record("phase", number=count)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in workspace.journal.read_text().splitlines()]
    assert len(lines) == 200
    assert {line["event"] for line in lines} == {"phase"}
    assert all(dt.datetime.fromisoformat(line["time"]).tzinfo for line in lines)


# -- waiting -----------------------------------------------------------------------------------------------------------------------


def test_a_wait_returns_the_first_value() -> None:
    answers: Iterator[Exception | int] = iter([NotYet("starting"), ConnectionRefusedError("refused"), 42])

    def probe() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert wait_until("the answer", probe, seconds=30, every=0.001, retry_on=(ConnectionRefusedError,)) == 42


def test_a_deadline_tells_what_was_seen_last() -> None:
    count = 0

    def probe() -> None:
        nonlocal count
        count += 1
        raise NotYet(f"try {count}")

    with pytest.raises(WaitTimeout) as late:
        wait_until("every node Ready", probe, seconds=0.05, every=0.01, hint="look at the kubelets")
    assert late.value.message == f"every node Ready: not reached within 0.05 s; last seen: try {count}"
    assert late.value.hint == "look at the kubelets"
    assert count >= 1


def test_a_probe_is_tried_once_even_without_time() -> None:
    assert wait_until("now", lambda: "value", seconds=0) == "value"


def test_an_error_that_is_no_not_yet_ends_the_wait() -> None:
    def probe() -> None:
        raise PermissionError("forbidden")

    with pytest.raises(PermissionError, match="forbidden"):
        wait_until("the answer", probe, seconds=60, retry_on=(ConnectionError,))


def test_an_exception_without_words_is_named() -> None:
    def probe() -> None:
        raise TimeoutError

    with pytest.raises(WaitTimeout, match="last seen: TimeoutError"):
        wait_until("the answer", probe, seconds=0.01, every=0.005, retry_on=(TimeoutError,))


def test_a_full_disk_is_told_with_the_file(workspace: Workspace, tmp_path: Path) -> None:
    workspace.create()
    workspace.journal.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as full:
        workspace.record("run")
    assert full.value.filename == str(workspace.journal)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as large:
            write_atomic(tmp_path / "new", b" " * (1 << 17))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert large.value.filename == str(tmp_path / "new")
