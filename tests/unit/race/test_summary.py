"""Medians, ratios and tables of the race; the page and its pictures are what the committed raw figures say."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.compare import plots, summary

SVG = "{http://www.w3.org/2000/svg}"


def run(contender: str, ready: float, *, error: str = "") -> dict[str, Any]:
    """A run as the race writes it; one that failed lacks its end."""
    if error:
        return {"contender": contender, "error": error, "milestones": {"all_ready_s": None}, "load_before": 0.1}
    return {
        "contender": contender,
        "error": "",
        "load_before": 0.1,
        "milestones": {"api_s": ready / 2, "all_ready_s": ready, "commands_done_s": ready - 1},
        "verified_s": ready + 10,
        "checks_s": 9.0,
        "machines_cpu_s": None,
        "controller_cpu_s": 3.0,
    }


def race(*runs: dict[str, Any]) -> dict[str, Any]:
    """A document of the race."""
    return {"shape": {"control_planes": 3, "workers": 2}, "runs": list(runs)}


@pytest.fixture(name="document")
def _document() -> dict[str, Any]:
    return race(
        *(run("kubeadm", seconds) for seconds in (60.0, 50.0, 90.0)),
        *(run("toolkit", seconds) for seconds in (31.0, 30.0, 29.0, 24.0)),
        run("toolkit", 1.0, error="RuntimeError: it broke"),
    )


def test_a_failed_run_has_no_share_in_medians_and_is_counted(document: dict[str, Any]) -> None:
    assert summary.values(document, "toolkit", "ready") == (31.0, 30.0, 29.0, 24.0)
    assert summary.failures(document, "toolkit") == 1
    assert "| runs that went through; that failed | 3; 0 | 4; 1 |" in summary.race_table(document)


def test_a_ratio_is_of_medians_and_more_than_one_where_the_toolkit_is_faster(document: dict[str, Any]) -> None:
    assert summary.ratio(document, "toolkit", "ready") == pytest.approx(60.0 / 29.5)
    assert summary.ratio(document, "kubeadm", "ready", to="toolkit") == pytest.approx(29.5 / 60.0)


def test_the_sum_leaves_the_tools_own_proof_out(document: dict[str, Any]) -> None:
    assert summary.values(document, "toolkit", "alone") == (40.0, 39.0, 38.0, 33.0)


def test_what_nobody_measured_is_no_number(document: dict[str, Any]) -> None:
    assert summary.ratio(document, "toolkit", "machines_cpu") is None
    row = next(line for line in summary.race_table(document).splitlines() if line.startswith("| CPU seconds of the five"))
    assert row == "| CPU seconds of the five machines | none | none |  |"
    assert summary.ratio(race(run("kubeadm", 50.0)), "toolkit", "ready") is None


def test_the_table_has_median_least_and_greatest(document: dict[str, Any]) -> None:
    row = next(line for line in summary.race_table(document).splitlines() if line.startswith("| all nodes Ready"))
    assert row == "| all nodes Ready | **60.0** (50.0 to 90.0) | **29.5** (24.0 to 31.0) | 2.03 |"


@given(st.floats(min_value=1e-3, max_value=1e6))
def test_an_axis_reaches_beyond_every_value_and_not_far(top: float) -> None:
    ticks = plots.nice_ticks(top)
    step = ticks[1]
    assert ticks[0] == 0
    assert top <= ticks[-1] * (1 + 1e-6)
    assert ticks[-1] - top < step * (1 + 1e-6)
    assert 2 <= len(ticks) <= 7


def test_every_run_is_a_mark_and_every_contender_has_a_median(document: dict[str, Any]) -> None:
    picture = ET.fromstring(plots.race_picture(document))  # noqa: S314 - made here
    marks = [item for item in picture.iter() if "mark" in item.get("class", "").split()]
    assert len(marks) == 3 * (3 + 4)
    assert len({item.tag for item in marks}) == 2, "contenders differ in shape, not in colour alone"
    medians = [item for item in picture.iter(f"{SVG}line") if "median" in item.get("class", "")]
    assert len(medians) == 3 * 2
    assert "29.5" in [item.text for item in picture.iter(f"{SVG}text")]


def test_marks_lie_where_their_values_are(document: dict[str, Any]) -> None:
    picture = ET.fromstring(plots.race_picture(document))  # noqa: S314 - made here
    verified = [float(item.get("cx", "")) for item in picture.iter(f"{SVG}circle")][-3:]
    values = (70.0, 60.0, 100.0)
    scale = (plots.WIDTH - plots.LEFT - plots.RIGHT) / 100.0
    assert verified == pytest.approx([plots.LEFT + value * scale for value in values], abs=0.06)


def test_a_page_without_markers_is_refused() -> None:
    page = "before\n<!-- race: written by `make race-plots` -->\nold\n<!-- end of race -->\nafter\n"
    filled = plots.fill(page, "race", "new")
    assert "old" not in filled
    assert filled.startswith("before\n")
    assert filled.endswith("<!-- end of race -->\nafter\n")
    assert plots.fill(filled, "race", "new") == filled
    with pytest.raises(ValueError, match="lacks"):
        plots.fill("no markers", "race", "new")


def committed() -> dict[str, Path]:
    """The newest raw figures of each kind."""
    return {kind: path for kind in summary.TABLES if (path := plots.newest(kind))}


def test_the_page_and_its_pictures_are_those_of_the_committed_figures() -> None:
    page = plots.PAGE.read_text()
    rendered, pictures = plots.render(page, committed())
    assert rendered == page, "run `make race-plots`"
    for name, picture in pictures.items():
        assert (plots.ASSETS / name).read_text() == picture, f"{name}: run `make race-plots`"
    assert set(re.findall(r"\]\(assets/(race-[a-z]+\.svg)\)", page)) == {path.name for path in plots.ASSETS.glob("race-*.svg")}


def test_the_committed_race_is_whole() -> None:
    path = plots.newest("race")
    assert path, "there are no raw figures of a race"
    raw = json.loads(path.read_text())
    for name in summary.contenders(raw):
        count = sum(1 for one in raw["runs"] if one["contender"] == name)
        assert count == raw["runs_each"], f"{name}: {count} runs"
    assert {"kubeadm", "toolkit"} <= set(summary.contenders(raw))
    for one in raw["runs"]:
        if not one["error"]:
            assert one["verified_s"] >= one["milestones"]["all_ready_s"] - 0.5, one
            assert one["built_s"] + one["checks_s"] == pytest.approx(one["verified_s"], abs=0.5), one


def test_the_controllers_cost_is_told_per_number_of_machines() -> None:
    runs = [{"machines": count, "wall_s": 2.0 * count, "cpu_s": 1.0 * count, "memory_mib": 100.0 + count} for count in (50, 5, 5)]
    raw = {"runs": [*runs, {"machines": 50, "wall_s": 110.0, "cpu_s": 60.0, "memory_mib": 150.0}]}
    assert summary.scale_points(raw, "cpu_s") == {50: [50.0, 60.0], 5: [5.0, 5.0]}
    assert summary.scale_table(raw).splitlines()[2:] == [
        "| 5 | **10.0** (10.0 to 10.0) | **5.0** (5.0 to 5.0) | **105.0** (105.0 to 105.0) |",
        "| 50 | **105.0** (100.0 to 110.0) | **55.0** (50.0 to 60.0) | **150.0** (150.0 to 150.0) |",
    ]
    picture = ET.fromstring(plots.scale_picture(raw))  # noqa: S314 - made here
    assert len([item for item in picture.iter(f"{SVG}rect") if "mark" in item.get("class", "")]) == 3 * 4


def test_a_days_commands_have_their_tasks_and_the_upgrade_its_source() -> None:
    seconds = dict.fromkeys(("apply_s", "second_apply_s", "add_worker_s", "remove_worker_s", "snapshot_s", "restore_s"), 5.0)
    tasks = {"cp-1": {"executed": 27, "changed": 13}, "cp-2": {"executed": 27}, "worker-1": {"executed": 19, "skipped": 1}}
    raw = {
        "runs": [{**seconds, "apply_tasks": tasks, "second_apply_tasks": {}, "add_worker_tasks": {"added": {"executed": 19}}}],
        "upgrade": {"drill": "1.35.4 -> 1.36.3, 3 + 2", "seconds": 146.6, "file": "upgrade-2026-11-27.json"},
    }
    text = summary.figures_table(raw)
    assert "| `upgrade` under load (1.35.4 -> 1.36.3, 3 + 2; one run, `upgrade-2026-11-27.json`) | **146.6** |" in text
    assert "| `apply` on bare machines | worker-1 | 19 | 0 | 1 |" in text
    assert "cp-2" not in text
    assert "| `node add`: the new machine | added | 19 | 0 | 0 |" in text
