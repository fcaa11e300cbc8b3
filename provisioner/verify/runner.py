"""Runs checks side by side, each with a deadline of its own, and never hangs."""

from __future__ import annotations

import datetime as dt
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from provisioner.errors import BadInput, ProvisionerError
from provisioner.patience import stretch
from provisioner.report import CheckResult, Outcome, Report
from provisioner.verify.model import Check, CheckFailed, Context, Evidence, Level

# A check keeps its own deadline; this much later it is given up for hung, whatever it waits for.
GRACE = 15.0


@dataclass(frozen=True, slots=True)
class Event:
    """Progress of a run: a check began (``result`` is None) or ended."""

    check: Check
    result: CheckResult | None = None


@dataclass(slots=True)
class _Running:
    check: Check
    began: float
    gives_up: float
    done: bool = field(default=False)


def select(checks: Sequence[Check], level: Level, only: Sequence[str] = ()) -> tuple[Check, ...]:
    """The checks of a level, or those named and what they build on, in the table's order.

    Raises:
        BadInput: a name that is none of a check.
    """
    known = {check.id: check for check in checks}
    if not only:
        return tuple(check for check in checks if level.includes(check.level))
    if unknown := [name for name in only if name not in known]:
        raise BadInput(f"no check is called {', '.join(unknown)}", hint=f"checks: {', '.join(known)}")
    chosen: set[str] = set()
    todo = list(only)
    while todo:
        name = todo.pop()
        if name not in chosen:
            chosen.add(name)
            todo += known[name].needs
    return tuple(check for check in checks if check.id in chosen)


def run_checks(
    context: Context,
    checks: Sequence[Check],
    *,
    level: Level,
    seconds: float | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
) -> Report:
    """Run checks, each as soon as those it needs have passed.

    Args:
        context: what they use.
        checks: closed under ``needs`` (see :func:`select`).
        level: for the report.
        seconds: deadline of each check instead of its own.
        on_event: told of every beginning and end, on the caller's thread.
    """
    started = dt.datetime.now(dt.UTC)
    begin = time.monotonic()
    ended: queue.SimpleQueue[CheckResult] = queue.SimpleQueue()
    results: dict[str, CheckResult] = {}
    running: dict[str, _Running] = {}
    waiting = {check.id: check for check in checks}

    def finish(check: Check, result: CheckResult) -> None:
        results[check.id] = result
        on_event(Event(check, result))

    def start_what_can() -> None:
        for check in [*waiting.values()]:
            if all(need in results and results[need].passed for need in check.needs):
                del waiting[check.id]
                limit = seconds if seconds is not None else check.deadline(context.cluster)
                running[check.id] = _Running(check, time.monotonic(), time.monotonic() + stretch(limit) + GRACE)
                on_event(Event(check))
                _start(check, replace(context, seconds=limit), ended)
            elif missing := [need for need in check.needs if need in results and not results[need].passed]:
                del waiting[check.id]
                finish(check, _result(check, Outcome.BLOCKED, 0, failures=(f"not tried: {', '.join(missing)} did not pass",)))

    start_what_can()
    while running:
        next_to_give_up = min(entry.gives_up for entry in running.values())
        try:
            result = ended.get(timeout=max(0.0, next_to_give_up - time.monotonic()))
        except queue.Empty:
            for entry in [entry for entry in running.values() if entry.gives_up <= time.monotonic()]:
                del running[entry.check.id]
                spent = time.monotonic() - entry.began
                finish(
                    entry.check, _result(entry.check, Outcome.FAILED, spent, failures=(f"no result after {spent:.0f} s: given up",))
                )
        else:
            # one that was given up may still come back: its verdict stands
            entry_or_none = running.pop(result.id, None)
            if entry_or_none is not None:
                finish(entry_or_none.check, result)
        start_what_can()
    return Report(
        cluster=context.cluster.name,
        version=context.cluster.kubernetes.version,
        level=str(level),
        started=started,
        seconds=time.monotonic() - begin,
        results=tuple(results[check.id] for check in checks if check.id in results),
    )


def _start(check: Check, context: Context, ended: queue.SimpleQueue[CheckResult]) -> None:
    # a daemon: a thread that hangs in a library must not keep the program from ending
    threading.Thread(target=lambda: ended.put(_attempt(check, context)), name=f"check {check.id}", daemon=True).start()


def _attempt(check: Check, context: Context) -> CheckResult:
    began = time.monotonic()
    evidence, pairs = "", None
    failures: tuple[str, ...] = ()
    outcome = Outcome.FAILED
    try:
        seen = check.run(context)
        evidence, pairs = (seen.text, seen.pairs) if isinstance(seen, Evidence) else (seen, None)
        outcome = Outcome.PASSED
    except CheckFailed as failure:
        failures, pairs = failure.seen or ("failed without saying why",), failure.pairs
    except ProvisionerError as error:
        failures = (error.message, *error.details)
    except Exception as error:
        # a bug in one check must not take the others' results away
        if os.environ.get("PROVISIONER_DEBUG"):
            import traceback  # noqa: PLC0415

            traceback.print_exc()
        failures = (f"internal error in this check: {type(error).__name__}: {error}",)
    result = _result(check, outcome, time.monotonic() - began, evidence=evidence, failures=failures)
    return replace(result, pairs=pairs)


def _result(check: Check, outcome: Outcome, seconds: float, *, evidence: str = "", failures: tuple[str, ...] = ()) -> CheckResult:
    return CheckResult(check.id, check.title, str(check.level), outcome, seconds, evidence, failures)
