"""The reference pages say what the code says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from provisioner.errors import ExitCode
from provisioner.preflight import RULES
from provisioner.verify.checks import CHECKS
from tools import reference

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_is_current(name: str) -> None:
    assert (ROOT / "docs/reference" / name).read_text() == reference.PAGES[name](), "run `make docs`"


def test_a_stale_page_is_named_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reference.main(tmp_path, check=False) == 0
    (tmp_path / "roles.md").write_text("old")
    capsys.readouterr()
    assert reference.main(tmp_path, check=True) == 1
    assert "roles.md" in capsys.readouterr().err
    assert reference.main(tmp_path, check=False) == 0
    assert reference.main(tmp_path, check=True) == 0


def test_every_role_and_variable_is_there() -> None:
    page = reference.roles()
    for path in (ROOT / "roles").glob("*/meta/argument_specs.yml"):
        assert f"\n## {path.parents[1].name}\n" in page
        for name in yaml.safe_load(path.read_text())["argument_specs"]["main"].get("options", {}):
            assert f"| `{name}` |" in page


def test_every_rule_check_code_and_version_is_there() -> None:
    page = reference.checks()
    assert [name for name in (*RULES, *(check.id for check in CHECKS)) if f"| `{name}` |" not in page] == []
    page = reference.exit_codes()
    assert [code for code in ExitCode if f"| {int(code)} | " not in page] == []
    lock = yaml.safe_load((ROOT / "versions.yml").read_text())
    page = reference.versions()
    for kubernetes, chosen in lock["releases"].items():
        assert f"Kubernetes {kubernetes}" in page
        assert all(f"| {name} | " in page and version in page for name, version in chosen.items())
