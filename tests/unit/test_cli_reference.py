"""docs/reference/cli.md is what the commands say of themselves, and every exit code has its meaning on a page."""

from __future__ import annotations

from pathlib import Path

from provisioner.cli import COMMANDS, GROUPS
from provisioner.cli.reference import MEANINGS, exit_codes, reference
from provisioner.errors import ExitCode

ROOT = Path(__file__).parents[2]


def test_the_page_is_current() -> None:
    assert (ROOT / "docs/reference/cli.md").read_text() == reference(), "run `make docs`"


def test_every_command_and_group_is_on_the_page() -> None:
    headings = [line for line in reference().splitlines() if line.startswith("## ")]
    assert [f"## provisioner {name}" for _, _, name in COMMANDS if f"## provisioner {name}" not in headings] == []
    assert [name for _, name in GROUPS if not any(line.startswith(f"## provisioner {name} ") for line in headings)] == []


def test_every_exit_code_is_on_its_page() -> None:
    assert set(MEANINGS) == set(ExitCode)
    assert exit_codes() in (ROOT / "docs/reference/exit-codes.md").read_text()
