"""The kit can find what it looks for: gaps, lost writes, leases that do not move. A drill that cannot fail is no drill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.drills import figures
from tests.e2e.drills.figures import Bar, Window
from tests.e2e.drills.record import Record


def write(
    number: int, at: float | None, *, client: str = "kept", attempts: int = 1, errors: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {
        "kind": "write",
        "client": client,
        "name": f"{client}-{number // 2:06d}",
        "number": number,
        "start": (at or 0) - 0.01,
        "acknowledged": at,
        "attempts": attempts,
        "errors": [[0.0, error] for error in errors],
    }


@pytest.mark.parametrize(
    ("moments", "gap"),
    [
        ((), 10.0),
        ((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10), 1),
        ((1, 2, 9), 7),
        ((1, 4), 6),  # the end of the window counts
        ((8, 9), 8),  # and its beginning
        ((-3, 2), 8),
        ((-3, 9), 12),  # open since before the window
        ((1, 9, 13), 8),
        ((5, 25), 20),  # open at its end
        ((9, 1, 5), 4),  # in any order
    ],
)
def test_the_longest_gap(moments: tuple[float, ...], gap: float) -> None:
    assert figures.longest_gap(moments, Window(0, 10)) == gap


def test_a_fabricated_lost_write_is_found() -> None:
    events = [write(number, float(number)) for number in range(8)]
    good = {"kept-000000": 1, "kept-000001": 3, "kept-000002": 5, "kept-000003": 7}
    assert figures.lost(events, good) == {}
    absent = {name: value for name, value in good.items() if name != "kept-000002"}
    assert figures.lost(events, absent) == {"kept-000002": "acknowledged with value 5, absent"}
    assert figures.lost(events, good | {"kept-000001": 2}) == {"kept-000001": "acknowledged with value 3, holds 2"}
    assert figures.lost(events, good | {"kept-000001": 7}) == {"kept-000001": "acknowledged with value 3, holds 7"}


def test_a_write_without_its_yes_may_be_there_or_not() -> None:
    events = [write(0, 0.0), write(1, None), write(2, None)]
    for stored in ({"kept-000000": 0}, {"kept-000000": 1}, {"kept-000000": 1, "kept-000001": 2}):
        assert figures.lost(events, stored) == {}


def test_figures_of_a_writer() -> None:
    events = [
        write(0, 1.0),
        write(1, 2.0, attempts=3, errors=("timeout", "refused")),
        write(2, 5.5, attempts=2, errors=("timeout",)),
        write(3, None, attempts=4, errors=("refused",) * 4),
        write(0, 1.5, client="fresh"),
        write(0, 30.0),
    ]
    found = figures.writes(events, "kept", Window(0, 10))
    assert found == figures.Writes(acknowledged=3, retried=3, failed=7, unfinished=1, most_attempts=4, gap=24.5)
    assert figures.errors(events) == ["timeout", "refused"]


def test_a_lease_that_moves_one_that_stays_and_one_held_elsewhere() -> None:
    events = [
        {"kind": "seen", "at": 1.0, "what": "lease/a", "value": ["cp-1", 0.0]},
        {"kind": "seen", "at": 20.0, "what": "lease/a", "value": ["", 0.0]},
        {"kind": "seen", "at": 21.5, "what": "lease/a", "value": ["cp-3", 21.2]},
        {"kind": "seen", "at": 1.0, "what": "lease/b", "value": ["cp-1", 0.0]},
        {"kind": "seen", "at": 1.0, "what": "lease/c", "value": ["cp-2", 0.0]},
    ]
    assert figures.moved(events, "lease/a", "cp-1", 5.0) == 16.2
    assert [figures.held(events, f"lease/{name}", "cp-1", 5.0) for name in "abc"] == [True, True, False]
    assert figures.moved(events, "lease/b", "cp-1", 5.0) is None
    assert figures.moved(events, "lease/c", "cp-1", 5.0) is None


def test_endpoints_and_nodes() -> None:
    events: list[dict[str, Any]] = [
        {"kind": "seen", "at": 0.0, "what": "endpoints/x", "value": ["10.0.0.1", "10.0.0.2"]},
        {"kind": "seen", "at": 50.0, "what": "endpoints/x", "value": ["10.0.0.1"]},
        {"kind": "seen", "at": 0.0, "what": "nodes", "value": {"cp-1": "True", "w": "True"}},
        {"kind": "seen", "at": 40.0, "what": "nodes", "value": {"cp-1": "Unknown", "w": "True"}},
        {"kind": "seen", "at": 60.0, "what": "nodes", "value": {"cp-1": "True", "w": "False"}},
    ]
    assert figures.gone(events, "endpoints/x", "10.0.0.2", 10.0) == 40.0
    assert figures.gone(events, "endpoints/x", "10.0.0.1", 10.0) is None
    assert figures.not_ready(events, Window(10, 55), but=["cp-1"]) == {}
    assert figures.not_ready(events, Window(10, 70), but=["cp-1"]) == {"w": "False"}
    assert figures.not_ready(events, Window(70, 80)) == {"w": "False"}, "the state at the window's beginning counts"


def test_a_service_that_fails() -> None:
    events = [{"kind": "poll", "at": number / 10, "error": "timeout" if 20 <= number < 35 else None} for number in range(100)]
    assert figures.polls(events, Window(0, 9)) == figures.Polls(requests=91, failed=15, gap=1.6)
    assert figures.polls(events, Window(5, 9)).failed == 0


def test_a_bar_without_a_value_is_missed() -> None:
    assert Bar("gap", 0.9, 1).met
    assert not Bar("gap", 1.1, 1).met
    assert not Bar("lease", None, 17).met


def test_the_record(tmp_path: Path) -> None:
    record = Record(seed=7, full=True)
    record.add("cp-1 vanishes", [Bar("gap, kept", 1.2, 1)], leader_changes=1, kept=figures.writes([], "kept", Window(0, 1)).gap)
    text = record.text()
    assert "MISSED" in text
    assert "seed 7" in text
    record.write(tmp_path / "results" / "drills.json")
    document = json.loads((tmp_path / "results" / "drills.json").read_text())
    assert document["form"] == "full"
    assert document["drills"][0]["bars"] == [{"what": "gap, kept", "value": 1.2, "limit": 1, "met": False}]
