"""Commands of the pages that look at a cluster and change nothing of it are run on a real one.

Each as it stands there, but for those that take seconds: all their options go into one run.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.docs.commands import ON_A_CLUSTER, is_refused, path_of, resolve, to_run, united

pytestmark = pytest.mark.e2e

Real = Any  # the value of the fixture `ha` (tests/e2e/conftest.py); pytest imports no test module by name

COMMANDS = united(to_run(ON_A_CLUSTER))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader of the pages works: what one command leaves there, another may take up."""
    return tmp_path_factory.mktemp("desk")


@pytest.mark.parametrize(("where", "words"), COMMANDS, ids=[" ".join(words[1:]) for _, words in COMMANDS])
def test_a_command_of_a_page(ha: Real, where: str, words: list[str], desk: Path) -> None:
    path, command, _ = resolve(words)
    # pages call the lab `lab`; the machines have the pages' names
    name = ["--name", ha.name] if path.startswith("lab ") and "--name" not in words else []
    arguments = [*path.split(), *name, *words[1 + len(path.split()) :]]
    # files go to the reader's own directory; so does the kubeconfig that is theirs
    takes = any("--cluster" in parameter.opts for parameter in command.params)
    cluster = [] if "--cluster" in words or not takes else ["--cluster", str(ha.workspace.cluster_file)]
    done = ha.command(desk, *arguments, *cluster, KUBECONFIG=str(desk / "config"))
    told = f"{where}: {' '.join(words)}\n{done.stdout}\n{done.stderr}"
    assert (done.returncode != 0) is is_refused(words), told
    assert done.stdout or done.stderr, told
    # what the page says that it writes
    for option, file in pairwise(words):
        if option in ("--html", "--junit", "--output"):
            assert (desk / file).stat().st_size > 1000, told


def test_there_are_some_of_every_kind() -> None:
    assert {path_of(words)[0] for _, words in COMMANDS} >= ON_A_CLUSTER - {"artifacts fetch", "artifacts list", "artifacts verify"}
