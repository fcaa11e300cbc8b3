"""Commands of the pages that need no cluster are run as they stand there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import ALONE, to_run

PROVISIONER = Path(sys.executable).parent / "provisioner"
COMMANDS = to_run(ALONE)
CHOICES = to_run(frozenset({"verify --only"}))


def run(words: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "HOME": str(directory), "NO_COLOR": "1"}
    return subprocess.run(
        [PROVISIONER, *words[1:]], cwd=directory, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=[" ".join(words) for _, words in COMMANDS])
def test_it_does_what_the_page_says(where: str, words: list[str], tmp_path: Path) -> None:
    if words[1] != "init":
        assert run(["provisioner", "init", "."], tmp_path).returncode == 0
    done = run(words, tmp_path)
    assert done.returncode == 0, f"{where}: {done.stdout}{done.stderr}"


@pytest.mark.parametrize(("where", "words"), CHOICES, ids=[" ".join(words) for _, words in CHOICES])
def test_the_checks_that_are_chosen_exist(where: str, words: list[str], tmp_path: Path) -> None:
    done = run([*words, "--list"], tmp_path)
    assert done.returncode == 0, f"{where}: {done.stdout}{done.stderr}"


def test_there_are_some() -> None:
    assert {words[1] for _, words in COMMANDS} >= {"graph", "init", "validate", "verify"}
    assert CHOICES
