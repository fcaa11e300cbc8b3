"""What every run of the tests keeps to; above all: in CI a test that did not run is a failure.

With ``CI=true`` (as `.ci/run` sets it) a skip whose reason is not one of ``EXPECTED_SKIPS`` counts as a failure, and a run of
the whole suite fails unless every end-to-end test that was collected has run, and at least one has passed.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Generator, Iterator

import pytest

# Patterns of the reasons for which a test may be skipped in CI too; each says here why. At present there is none.
EXPECTED_SKIPS: tuple[str, ...] = ()
E2E = pytest.StashKey[dict[str, str]]()


def pytest_configure() -> None:
    """A run in the background of a shell inherits an ignored Ctrl-C; tests of interrupts, and the commands they start, need it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _signals_stay_as_they_were() -> Iterator[None]:
    """A handler that one test leaves behind takes Ctrl-C from the tests of interrupts, wherever the order puts them."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    left = {number.name for number, handler in kept.items() if signal.getsignal(number) is not handler}
    for number, handler in kept.items():
        signal.signal(number, handler)
    assert not left, f"the test has left a handler of its own for {left}"


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() == "true"


def _is_expected(reason: str) -> bool:
    return any(re.search(pattern, reason) for pattern in EXPECTED_SKIPS)


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    longrepr = report.longrepr
    return (longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)).removeprefix("Skipped: ")


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turn an unexpected skip into a failure that says so."""
    # an expected failure (xfail) is reported as skipped, too; xfail_strict watches over those
    if _in_ci() and report.skipped and not hasattr(report, "wasxfail") and not _is_expected(_reason(report)):
        reason = _reason(report)
        report.outcome = "failed"
        report.longrepr = f"unexpected skip in CI: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    if item.get_closest_marker("e2e") and report.when == "call":
        item.config.stash.setdefault(E2E, {})[item.nodeid] = report.outcome
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _is_whole_suite(config: pytest.Config) -> bool:
    """Whether nobody has asked for a part of the tests only."""
    narrowed = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf", "collectonly")
    return config.args_source is not pytest.Config.ArgsSource.ARGS and not any(config.getoption(name, None) for name in narrowed)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    missing = _missing(session) if _in_ci() and _is_whole_suite(session.config) else ""
    if missing:
        reporter = session.config.pluginmanager.get_plugin("terminalreporter")
        assert reporter is not None, "pytest's own reporter is off"
        reporter.stats.setdefault("error", []).append(
            pytest.CollectReport(nodeid="the end-to-end tests", outcome="failed", longrepr=missing, result=[])
        )
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
    yield


def _missing(session: pytest.Session) -> str:
    """What is wrong with the end-to-end tests of a whole run; empty when they have run."""
    ran = session.config.stash.get(E2E, {})
    if silent := [item.nodeid for item in session.items if item.get_closest_marker("e2e") and item.nodeid not in ran]:
        return "\n".join(["in CI every end-to-end test must run; these did not:", *silent])
    if "passed" not in ran.values():
        return "in CI at least one end-to-end test must pass, and none has"
    return ""
