from __future__ import annotations

import datetime as dt
import io
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from provisioner.errors import ExitCode, VerifyFailed
from provisioner.report import CheckResult, Outcome, Pairs, Report, printable

PASSED = CheckResult("nodes", "the Nodes are there", "smoke", Outcome.PASSED, 0.25, "3 Nodes Ready")
FAILED = CheckResult("dns", "DNS answers", "smoke", Outcome.FAILED, 5.0, failures=("cp-1: no answer", "cp-2: <&> [bold]"))
BLOCKED = CheckResult("exec", "exec works", "full", Outcome.BLOCKED, 0, failures=("not tried: probe-pods did not pass",))


def report(*results: CheckResult) -> Report:
    return Report("c", "1.36.3", "smoke", dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), 6.5, results)


def test_only_a_run_in_which_every_check_passed_has_passed() -> None:
    assert report(PASSED).passed
    assert not report(PASSED, FAILED).passed
    assert not report(PASSED, BLOCKED).passed, "what was not tried is not proved"
    assert not report().passed, "a run without a check proves nothing"


def test_failure_is_the_error_of_the_command_line_and_lists_what_each_check_saw() -> None:
    with pytest.raises(VerifyFailed) as caught:
        report(PASSED, FAILED, BLOCKED).raise_if_failed()
    error = caught.value
    assert error.exit_code is ExitCode.VERIFY_FAILED
    assert int(error.exit_code) == 5
    assert error.details == (
        "dns (failed): cp-1: no answer",
        "dns (failed): cp-2: <&> [bold]",
        "exec (blocked): not tried: probe-pods did not pass",
    )
    assert "1 of 3 checks passed, 1 failed, 1 blocked" in error.message
    assert "--only dns,exec" in error.hint
    report(PASSED).raise_if_failed()
    with pytest.raises(VerifyFailed, match="no check was run"):
        report().raise_if_failed()


def test_json_holds_everything() -> None:
    document = json.loads(json.dumps(report(PASSED, FAILED).to_json()))
    assert document["passed"] is False
    assert document["counts"] == {"passed": 1, "failed": 1, "blocked": 0}
    assert document["started"] == "2026-01-02T03:04:05.000+00:00"
    assert [check["id"] for check in document["checks"]] == ["nodes", "dns"]
    assert document["checks"][0]["evidence"] == "3 Nodes Ready"
    assert document["checks"][1]["failures"] == ["cp-1: no answer", "cp-2: <&> [bold]"]
    assert document["format"] == 1


def test_junit_counts_a_blocked_check_as_an_error_and_survives_any_text() -> None:
    odd = CheckResult("logs", "logs", "smoke", Outcome.FAILED, 1, failures=("\x1b[31mred\x00 \ufffe ]]> <a&b>", "second"))
    root = ElementTree.fromstring(report(PASSED, FAILED, BLOCKED, odd).to_junit())  # noqa: S314 - our own output
    suite = root.find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors"), suite.get("skipped")) == ("4", "2", "1", "0")
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases][:2] == ["nodes: the Nodes are there", "dns: DNS answers"]
    assert cases[0].findtext("system-out") == "3 Nodes Ready"
    failure = cases[1].find("failure")
    assert failure is not None
    assert failure.get("message") == "cp-1: no answer"
    assert "cp-2: <&> [bold]" in (failure.text or "")
    assert cases[2].find("error") is not None
    assert "<a&b>" in (cases[3].findtext("failure") or "")


def test_printable_keeps_lines_and_drops_control_characters() -> None:
    assert printable("a\tb\nc é …") == "a\tb\nc é …"
    assert printable("\x1b[2J\x00") == "\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}"
    assert (
        printable("\x7f\x80\x9b2J\udc9b\ufffe\xa0")
        == "\N{REPLACEMENT CHARACTER}" * 3 + "2J" + "\N{REPLACEMENT CHARACTER}" * 2 + "\xa0"
    )


@pytest.mark.parametrize("width", [60, 200])
def test_table_shows_text_as_it_is(width: int) -> None:
    text = io.StringIO()
    Console(file=text, width=width, force_terminal=False).print(report(PASSED, FAILED).to_table())
    shown = " ".join(text.getvalue().split())
    assert "3 Nodes Ready" in shown
    assert "cp-2: <&> [bold]" in shown, "rich must not take a node's words for markup"
    assert "DNS answers:" in shown


def test_lines_are_one_for_each_thing_seen() -> None:
    lines = report(PASSED, FAILED).to_lines()
    assert lines[0] == "ok      nodes                0.2 s  3 Nodes Ready"
    assert [line.split()[0] for line in lines[1:3]] == ["FAILED", "FAILED"]
    assert lines[-1] == "c: 1 of 2 checks passed, 1 failed in 6.5 s"


def test_a_report_comes_back_from_its_json(tmp_path: Path) -> None:
    pairs = Pairs(("a", "b"), (("a", "b", "no <answer>"),))
    full = replace(report(PASSED, FAILED, BLOCKED, replace(FAILED, id="pod-to-pod", pairs=pairs)), only=("dns",))
    assert Report.of(json.loads(json.dumps(full.to_json()))) == full
    full.save(tmp_path / "verify.json")
    assert Report.last(tmp_path / "verify.json") == full
    assert "pairs" not in full.to_json()["checks"][0], "only of checks that try pairs"
    assert "only" not in report(PASSED).to_json()


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"format": 1, "checks": [{}]}'])
def test_what_is_no_report_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "verify.json").write_text(text)
    assert Report.last(tmp_path / "verify.json") is None
    assert Report.last(tmp_path / "none.json") is None
