"""The drills' figures are printed and written at the end, whatever pytest captures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.drills.figures import Bar
from tests.e2e.drills.record import Record, kept


def test_a_record_is_shown_and_written_at_its_end(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_OUT", str(tmp_path / "figures.json"))
    with kept(Record(1, full=False), request.config, "SOME_OUT") as record:
        record.add("a drill", [Bar("seconds", 1.0, 2.0)])
        assert not (tmp_path / "figures.json").exists()
    written = json.loads((tmp_path / "figures.json").read_text())
    assert [entry["drill"] for entry in written["drills"]] == ["a drill"]
