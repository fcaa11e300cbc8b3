"""Where `report --html` and `verify --html --junit` may write: refused before anything is asked; links and devices stay."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from provisioner.cli.report import require_place, write
from provisioner.errors import BadInput

if TYPE_CHECKING:
    from provisioner.pages import Page


def test_no_device_and_no_pipe_is_replaced(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link, Path("/dev/null")):
        with pytest.raises(BadInput, match="a device or a pipe"):
            require_place(path, "--html")
        require_place(path, "--junit", in_place=True)
    with pytest.raises(BadInput, match="a directory"):
        require_place(tmp_path, "--html")


def test_a_link_stays_one(tmp_path: Path, make_page: Callable[..., Page]) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, file = tmp_path / "report.html", tmp_path / "elsewhere" / "page.html"
    link.symlink_to(file)
    require_place(link, "--html")
    write(make_page(), link)
    assert link.is_symlink()
    assert file.read_text().startswith("<!doctype html>")


def test_a_place_that_cannot_be_written_is_refused_before() -> None:
    before = os.geteuid()
    # not below tmp_path, which is for its owner alone
    with tempfile.TemporaryDirectory() as name:
        there = Path(name, "there")
        there.touch(0o444)
        Path(name).chmod(0o555)
        if before == 0:
            os.seteuid(65534)
        try:
            for path, in_place in ((Path(name, "new"), False), (Path(name, "new"), True), (there, False), (there, True)):
                with pytest.raises(BadInput, match="nothing can be written there"):
                    require_place(path, "--html", in_place=in_place)
        finally:
            os.seteuid(before)
            Path(name).chmod(0o755)
