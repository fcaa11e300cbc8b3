from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner import pki, verify
from provisioner.cli.common import open_cluster
from provisioner.cli.verify import verify as command
from provisioner.errors import BadInput, ProvisionerError
from provisioner.report import CheckResult, Outcome, Pairs, Report
from provisioner.verify import CHECKS, runner
from provisioner.verify.model import Check, CheckFailed, Context, Evidence, Level, each, patiently, settling
from provisioner.verify.runner import Event, run_checks, select
from provisioner.wait import NotYet


def passes(_: Context) -> str:
    return "seen"


def fails(_: Context) -> str:
    raise CheckFailed("a: 1", "b: 2")


def refused(_: Context) -> str:
    raise ProvisionerError("cp-1 answered 500", details=("more",))


def broken(_: Context) -> str:
    raise KeyError("spec")


def check(name: str, run: object = passes, *needs: str, level: Level = Level.SMOKE, seconds: float = 5) -> Check:
    assert callable(run)
    return Check(name, f"title of {name}", level, run, needs, seconds, per_node=0)


def outcomes(report: Report) -> dict[str, str]:
    return {result.id: str(result.outcome) for result in report.results}


def test_outcomes_and_what_was_seen(context: Context) -> None:
    report = run_checks(context, [check("ok"), check("bad", fails), check("api", refused), check("bug", broken)], level=Level.SMOKE)
    assert outcomes(report) == {"ok": "passed", "bad": "failed", "api": "failed", "bug": "failed"}
    seen = {result.id: result.failures for result in report.results}
    assert seen["bad"] == ("a: 1", "b: 2")
    assert seen["api"] == ("cp-1 answered 500", "more")
    assert seen["bug"] == ("internal error in this check: KeyError: 'spec'",)
    assert report.results[0].evidence == "seen"


def test_what_builds_on_a_failed_check_is_blocked_all_the_way(context: Context) -> None:
    checks = [check("pods", fails), check("dns", passes, "pods"), check("more", passes, "dns"), check("other")]
    report = run_checks(context, checks, level=Level.SMOKE)
    assert outcomes(report) == {"pods": "failed", "dns": "blocked", "more": "blocked", "other": "passed"}
    assert not report.passed


def test_a_check_waits_for_what_it_needs(context: Context) -> None:
    order: list[str] = []

    def noting(name: str) -> object:
        def run(_: Context) -> str:
            order.append(name)
            return name

        return run

    checks = [check("late", noting("late"), "first"), check("first", noting("first"))]
    assert run_checks(context, checks, level=Level.SMOKE).passed
    assert order == ["first", "late"]


def test_independent_checks_run_side_by_side(context: Context) -> None:
    meeting = threading.Barrier(3)

    def meet(_: Context) -> str:
        meeting.wait(timeout=30)
        return "met"

    assert run_checks(context, [check(name, meet) for name in "abc"], level=Level.SMOKE).passed


def test_a_check_that_hangs_is_given_up_and_its_late_answer_is_not_counted(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "GRACE", 0.1)
    release = threading.Event()

    def hangs(_: Context) -> str:
        release.wait(30)
        return "too late"

    try:
        began = time.monotonic()
        report = run_checks(context, [check("hangs", hangs, seconds=0.1), check("ok")], level=Level.SMOKE)
        assert time.monotonic() - began < 20
    finally:
        release.set()
    assert outcomes(report) == {"hangs": "failed", "ok": "passed"}
    assert "given up" in report.results[0].failures[0]


def test_deadlines_are_the_checks_own_or_the_callers(context: Context) -> None:
    given: list[float] = []

    def note(current: Context) -> str:
        given.append(current.seconds)
        return ""

    slow = Check("slow", "", Level.SMOKE, note, seconds=10, per_node=2)
    run_checks(context, [slow], level=Level.SMOKE)
    run_checks(context, [slow], level=Level.SMOKE, seconds=3)
    assert given == [10 + 2 * 5, 3], "five nodes"


def test_events_tell_every_beginning_and_end(context: Context) -> None:
    events: list[Event] = []
    run_checks(context, [check("bad", fails), check("next", passes, "bad")], level=Level.SMOKE, on_event=events.append)
    assert [(event.check.id, event.result.outcome if event.result else None) for event in events] == [
        ("bad", None),
        ("bad", Outcome.FAILED),
        ("next", Outcome.BLOCKED),
    ]


def test_select_by_level_and_by_name() -> None:
    checks = [check("a"), check("b", passes, "a"), check("c", level=Level.FULL), check("d", passes, "b", "c", level=Level.FULL)]
    assert [item.id for item in select(checks, Level.SMOKE)] == ["a", "b"]
    assert [item.id for item in select(checks, Level.FULL)] == ["a", "b", "c", "d"]
    assert [item.id for item in select(checks, Level.SMOKE, ["d"])] == ["a", "b", "c", "d"], "with all it builds on"
    with pytest.raises(BadInput, match="no check is called nonsense") as caught:
        select(checks, Level.SMOKE, ["a", "nonsense"])
    assert "a, b, c, d" in caught.value.hint


def test_the_table_of_checks_is_sound() -> None:
    ids = [item.id for item in CHECKS]
    assert len(set(ids)) == len(ids)
    for item in CHECKS:
        assert set(item.needs) <= set(ids[: ids.index(item.id)]), f"{item.id} needs a check that comes later, or none"
        if item.level is Level.SMOKE:
            needed = {other.id for other in select(CHECKS, Level.SMOKE)}
            assert set(item.needs) <= needed, f"{item.id} needs a check of the level full"
        assert item.run.__doc__, f"{item.id} does not say what it proves"


def test_each_collects_every_failure_and_keeps_the_order() -> None:
    assert each([3, 1, 2], lambda number: number * 2) == [6, 2, 4]
    assert each([], lambda number: number) == []

    def odd(number: int) -> int:
        if number == 1:
            raise CheckFailed("one", "uno")
        if number == 2:
            raise ProvisionerError("two")
        return number

    with pytest.raises(CheckFailed) as caught:
        each([1, 2, 3], odd)
    assert caught.value.seen == ("one", "uno", "two")


def test_patiently_gives_the_lines_last_seen() -> None:
    tries: list[int] = []

    def settles() -> str:
        tries.append(1)
        if len(tries) < 3:
            raise NotYet("not yet")
        return "there"

    assert patiently(settles, 30) == "there"

    def never() -> str:
        tries.append(1)
        settling([1, 2], odd_even)
        return ""

    def odd_even(number: int) -> None:
        raise CheckFailed(f"{number} after {len(tries)}")

    with pytest.raises(CheckFailed) as caught:
        patiently(never, 0.6)
    assert [line.split()[0] for line in caught.value.seen] == ["1", "2"]
    assert caught.value.seen[0].endswith(str(len(tries))), "the last look, not the first"


def test_a_failure_inside_patiently_that_cannot_settle_ends_it_at_once() -> None:
    def wrong() -> str:
        raise CheckFailed("never")

    with pytest.raises(CheckFailed, match="never"):
        patiently(wrong, 1000)


def test_pairs_travel_with_what_was_seen(context: Context) -> None:
    pairs = Pairs(("a", "b"), (("a", "b", "no"),))

    def fails_in_pairs(_: Context) -> Evidence:
        raise CheckFailed("a -> b: no", pairs=pairs)

    report = run_checks(
        context, [check("bad", fails_in_pairs), check("good", lambda _: Evidence("all", Pairs(("a",))))], level=Level.SMOKE
    )
    assert [(one.passed, one.seen, one.pairs) for one in report.results] == [
        (False, "a -> b: no", pairs),
        (True, "all", Pairs(("a",))),
    ]


def test_progress_counts_the_checks_of_this_cluster_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("name: c\nnodes: [{name: a, address: 192.0.2.1, roles: [control-plane, etcd, worker]}]\n")
    opened, workspace = open_cluster(path)
    workspace.create()
    pki.ensure(opened, workspace.pki, now=dt.datetime.now(dt.UTC))

    def run(*_: object, on_event: Callable[[Event], None], **__: object) -> Report:
        # without the machines, of which this cluster has none
        result = CheckResult("units", "", "smoke", Outcome.PASSED, 1.0)
        on_event(Event(CHECKS[0], result))
        return Report("c", "1.36.3", "smoke", dt.datetime.now(dt.UTC), 1.0, (result,))

    monkeypatch.setattr(verify, "run", run)
    command(path)
    wanted = [check for check in select(CHECKS, Level.SMOKE) if check.wanted(opened)]
    assert len(wanted) < len(select(CHECKS, Level.SMOKE)), "its addons are off"
    assert f"verify 1/{len(wanted)} " in capsys.readouterr().err
