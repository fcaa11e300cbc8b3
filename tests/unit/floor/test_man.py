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


@pytest.mark.parametrize("name", PAGES)
def test_man_has_no_complaint(name: str, tmp_path: Path) -> None:
    path = tmp_path / Path(name).name
    path.write_text(PAGES[name])
    if shutil.which("mandoc"):
        said = subprocess.run(["mandoc", "-T", "lint", "-W", "warning", str(path)], capture_output=True, text=True, check=False)
        # no date, so that the same sources give the same page
        assert [line for line in said.stdout.splitlines() if "missing date" not in line] == []
    if shutil.which("groff"):
        said = subprocess.run(
            ["groff", "-man", "-ww", "-K", "utf8", "-T", "utf8", str(path)], capture_output=True, text=True, check=False
        )
        assert said.stderr == ""
        assert "DESCRIPTION" in re.sub(r".\x08", "", said.stdout)
