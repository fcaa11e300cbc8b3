"""The manual pages are what the commands say, in a language that man reads without a word of complaint."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from provisioner.cli import COMMANDS, GROUPS
from provisioner.cli.man import pages, text

ROOT = Path(__file__).parents[3]
PAGES = pages()


def test_the_pages_are_current() -> None:
    there = {str(path.relative_to(ROOT / "man")): path.read_text() for path in sorted((ROOT / "man").glob("man*/*"))}
    assert there == PAGES, "run `make docs`"


def test_every_command_has_a_page_and_is_listed() -> None:
    names = [name for _, _, name in COMMANDS] + [name for _, name in GROUPS]
    for name in names:
        assert f"man1/provisioner-{name}.1" in PAGES
        assert f"provisioner\\-{name.replace('-', chr(92) + '-')} (1)" in PAGES["man1/provisioner.1"]
    assert len(PAGES) == len(names) + 2


def test_what_is_special_to_roff_is_not() -> None:
    assert text(".start") == r"\&.start"
    assert text("'start") == r"\&'start"
    assert text("a\\b … `--cluster`") == r"a\eb \[u2026] \fB\-\-cluster\fR"
    for page in PAGES.values():
        assert page.isascii()
        assert not re.search(r"^\.(?![A-Z]{2}\b|[BI]\b|BR\b|TP\b|PP\b|br\b|nh\b|ad\b|\\\")", page, re.MULTILINE)


def said_of(name: str, directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """A formatter's words about a page; a machine without it is said so, and CI takes that for a failure."""
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    path = directory / Path(name).name
    path.write_text(PAGES[name])
    return subprocess.run([*command, str(path)], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", PAGES)
def test_mandoc_has_no_complaint(name: str, tmp_path: Path) -> None:
    said = said_of(name, tmp_path, "mandoc", "-T", "lint", "-W", "warning")
    # no date, so that the same sources give the same page
    assert [line for line in said.stdout.splitlines() if "missing date" not in line] == []


@pytest.mark.parametrize("name", PAGES)
def test_groff_has_no_complaint(name: str, tmp_path: Path) -> None:
    said = said_of(name, tmp_path, "groff", "-man", "-ww", "-K", "utf8", "-T", "utf8")
    assert said.stderr == ""
    assert "DESCRIPTION" in re.sub(r".\x08", "", said.stdout)
