"""``events.Tally`` reads ansible-runner's events: counts, results, and of a failure all that a user needs to know."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
from rich.console import Console

from provisioner.display import Display, LiveDisplay, display_for
from provisioner.events import Tally, TaskStep
from provisioner.terminal import StreamConsole


def event(kind: str, host: str = "cp-1", **data: Any) -> dict[str, Any]:
    """An event as ansible-runner hands it on, with what the driver does not look at left out."""
    base = {"play": "Run the etcd members", "task": "Run etcd", "role": "etcd", "task_action": "managed_unit", "host": host}
    return {"uuid": "0", "counter": 1, "event": kind, "event_data": {**base, **data}}


def taken(*events: dict[str, Any]) -> tuple[Tally, list[TaskStep]]:
    steps: list[TaskStep] = []
    tally = Tally(steps.append)
    for one in events:
        assert tally.take(one) is False, "ansible-runner is to write no file for it"
    return tally, steps


def test_counts_are_kept_by_host() -> None:
    tally, steps = taken(
        event("playbook_on_task_start"),
        event("runner_on_ok", res={"changed": True}, duration=1.5),
        event("runner_on_ok", "cp-2", res={"changed": False}, duration=2.5),
        event("runner_on_ok", task="Wait", res={}, duration=0.25),
        event("runner_on_skipped", task="Never", res={}),
    )
    assert tally.counts["cp-1"] == {"executed": 2, "changed": 1, "skipped": 1}
    assert tally.counts["cp-2"]["executed"] == 1
    assert tally.counts["cp-2"]["changed"] == 0
    # the slowest host tells how long a task took
    assert tally.seconds[("Run the etcd members", "etcd : Run etcd")] == 2.5
    assert [(step.host, step.status) for step in steps] == [
        ("", "started"),
        ("cp-1", "changed"),
        ("cp-2", "ok"),
        ("cp-1", "ok"),
        ("cp-1", "skipped"),
    ]
    assert steps[0].play == "Run the etcd members"
    assert not tally.failures


def test_only_host_state_gives_a_result() -> None:
    state: dict[str, Any] = {"files": {}}
    tally, _ = taken(
        event("runner_on_ok", "cp-1", task_action="host_state", res={"changed": False, "state": state}),
        event("runner_on_ok", "cp-2", task_action="ansible.builtin.file", res={"changed": True, "state": "absent"}),
    )
    assert tally.results == {"cp-1": state}


def test_a_failed_module_gives_its_reason_and_the_units_journal() -> None:
    tally, steps = taken(
        event(
            "runner_on_failed",
            res={"msg": "not healthy within 120 s; last seen: refused", "unit": "etcd.service", "journal": ["line 1", "line 2"]},
        )
    )
    (failure,) = tally.failures
    assert (failure.host, failure.task, failure.role) == ("cp-1", "Run etcd", "etcd")
    assert failure.reason == "not healthy within 120 s; last seen: refused"
    assert failure.unit == "etcd.service"
    assert failure.journal == ("line 1", "line 2")
    assert not failure.unreachable
    assert steps[-1].status == "failed"
    assert tally.counts["cp-1"]["executed"] == 1


def test_a_module_that_broke_gives_its_last_word() -> None:
    tally, _ = taken(
        event(
            "runner_on_failed",
            res={
                "msg": "MODULE FAILURE\nSee stdout/stderr",
                "module_stderr": "Traceback:\n  ...\nOSError: disk is full\n",
                "rc": 1,
            },
        )
    )
    assert tally.failures[0].reason.endswith("OSError: disk is full")


def test_a_failure_without_words_says_so() -> None:
    tally, _ = taken(event("runner_on_failed", res=None), event("runner_on_failed", res={"stderr": "  no such file\n"}))
    assert [failure.reason for failure in tally.failures] == ["the task gave no reason", "no such file"]


def test_an_unreachable_host_is_a_failure_of_its_own_kind() -> None:
    tally, _ = taken(event("runner_on_unreachable", res={"msg": "Failed to connect to the host via ssh", "unreachable": True}))
    (failure,) = tally.failures
    assert failure.unreachable
    assert "Failed to connect" in failure.reason


def test_what_is_ignored_is_no_failure() -> None:
    tally, _ = taken(event("runner_on_failed", ignore_errors=True, res={"msg": "never mind"}))
    assert not tally.failures


def test_other_events_are_nothing() -> None:
    tally, steps = taken(
        {"event": "verbose", "stdout": "hello"},
        {"event": "playbook_on_stats", "event_data": {"ok": {"cp-1": 3}}},
        {"event": "runner_on_start", "event_data": {"host": "cp-1"}},
        {},
    )
    assert not tally.counts
    assert not steps


# -- what is shown ---------------------------------------------------------------------------------------------------------------


def plain() -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    return Display(Console(file=out, width=200)), out


def test_plain_lines_say_what_begins_and_how_it_ended() -> None:
    display, out = plain()
    display.plan([("etcd", "Run etcd"), ("nodes", "Run the nodes [all]"), ("settle", "Wait")])
    with display.running():
        display.start("etcd")
        display.start("etcd")
        display.step(TaskStep("Run the etcd members", "etcd", "Run etcd"))
        display.finish("etcd")
        display.start("nodes")
        display.say("warning: cp-1: [odd]")
        display.finish("nodes", state="failed")
        display.finish("settle", state="skipped")
        display.finish("settle", state="failed")
    lines = out.getvalue().splitlines()
    assert len(lines) == 6, lines
    assert lines[0].endswith("Run etcd …")
    assert "Run etcd ok (" in lines[1]
    assert lines[2].endswith("Run the nodes [all] …"), "brackets are no markup"
    assert lines[3] == "warning: cp-1: [odd]"
    assert "Run the nodes [all] FAILED (" in lines[4]
    assert lines[5].endswith("Wait nothing to do (0.0 s)"), "what has ended does not end again"
    assert all(line.startswith("[") for line in lines if "warning" not in line)
    assert set(display.seconds()) == {"etcd"}


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and shows every character."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_a_pipe_gets_plain_lines_and_a_terminal_a_live_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "CLICOLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert type(display_for(StreamConsole("stderr"))) is Display
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(display_for(StreamConsole("stderr")), LiveDisplay)


def test_the_live_view_shows_phase_task_and_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    out = io.StringIO()
    display = LiveDisplay(Console(file=out, force_terminal=True, width=120, color_system=None))
    display.plan([("etcd", "Run etcd"), ("nodes", "Run the nodes")])
    with display.running():
        display.start("etcd")
        display.step(TaskStep("p", "etcd", "Wait until healthy"))
        display.step(TaskStep("p", "etcd", "Wait until healthy", "cp-1", "ok"))
        console = Console(file=(drawn := io.StringIO()), width=120)
        console.print(display.draw())
        display.finish("etcd")
    shown = drawn.getvalue()
    assert "▸ Run etcd" in shown
    assert "etcd : Wait until healthy  (cp-1 done)" in shown
    assert "· Run the nodes" in shown
    assert "✓ Run etcd" in out.getvalue()
