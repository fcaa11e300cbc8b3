"""What modules do on a machine, where it needs none: a gate does not keep a slow one busy; what is swept leaves no directory."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from provisioner.share import ANSIBLE_CFG

UTILS = ANSIBLE_CFG.parent / "plugins" / "module_utils"


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module's text as Ansible runs it on a machine, with a clock of the test's own."""
    for name in ("provisioner_host", "provisioner_litter", "provisioner_before", "provisioner_apply"):
        spec = importlib.util.spec_from_file_location(f"ansible.module_utils.{name}", UTILS / f"{name}.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, f"ansible.module_utils.{name}", module)
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("look", "pause"), [(0.01, 0.2), (0.1, 0.2), (3.0, 6.0)])
def test_most_of_the_time_is_left_to_the_unit(gate: ModuleType, monkeypatch: pytest.MonkeyPatch, look: float, pause: float) -> None:
    now, pauses = [0.0], list[float]()

    class Clock:
        """Time passes by looking and by sleeping."""

        @staticmethod
        def monotonic() -> float:
            return now[0]

        @staticmethod
        def sleep(seconds: float) -> None:
            pauses.append(seconds)
            now[0] += seconds

    def states(units: list[str]) -> dict[str, dict[str, str]]:
        now[0] += look
        done = now[0] > 60
        return {units[0]: {"ActiveState": "active" if done else "activating", "SubState": "start", "NRestarts": "0"}}

    monkeypatch.setattr(gate, "time", Clock)
    monkeypatch.setattr(gate, "unit_states", states)
    gate.wait_healthy({"unit": "a.service", "seconds": 120, "url": None, "path": None}, "")
    assert pauses
    assert pauses == pytest.approx([pause] * len(pauses))
    now[0] = -1000.0
    with pytest.raises(gate.NotAppliedError, match="not healthy within 5 s"):
        gate.wait_healthy({"unit": "a.service", "seconds": 5, "url": None, "path": None}, "")


def test_what_is_swept_leaves_no_empty_directory(gate: ModuleType, tmp_path: Path) -> None:
    paths = [tmp_path / name / file for name in ("old", "users") for file in ("hosts.toml", "ca.crt")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    swept = [str(path) for path in paths[:3]]
    assert gate.sweep(swept, True) == swept
    assert all(path.exists() for path in paths)
    assert gate.sweep(swept, False) == swept
    assert sorted(tmp_path.rglob("*")) == [tmp_path / "users", tmp_path / "users" / "ca.crt"]
