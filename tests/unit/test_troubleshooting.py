"""docs/troubleshooting.md quotes messages: each one is really in the code, so that nobody searches the page in vain."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
SOURCES = sorted([*(ROOT / "provisioner").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")])
# What stands for a name, a number or an address: in the page, and in a string of the source.
GAP, HOLE = "…", "\N{NULL}"
# Letters: less says nothing, and is found anywhere.
LEAST = 10
GROUPS = (
    *("SSH", "Preflight", "Artifacts", "etcd", "The API", "Nodes that are not Ready", "Network and DNS", "Certificates and keys"),
    *("Upgrade", "Backup and restore", "Lab", "Vagrant"),
)


def text_of(node: ast.AST) -> str | None:
    """A string of the source, with a hole for whatever is computed; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return None


def strings() -> Iterator[str]:
    """Every string of the program that is no docstring: what it may say."""
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) not in silent and (text := text_of(node)):
                yield text


def rows() -> Iterator[tuple[str, str]]:
    """The first column of every row of the page, with its group."""
    group = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            group = line[3:]
        elif line.startswith("| ") and not line.startswith(("| Message |", "| --- |")):
            yield group, line.split(" | ")[0].removeprefix("| ")


def quoted() -> Iterator[str]:
    """Messages of the program: back-quoted, and with blanks in them (`pod-to-pod` is the name of a check)."""
    for _, cell in rows():
        # as Markdown reads it: two back quotes around what has single ones in it
        for found in re.finditer(r"(?P<quote>`+)(?P<text>.+?)(?P=quote)(?!`)", cell):
            if " " in found["text"].strip():
                yield found["text"].strip()


SAID = tuple(strings())
MESSAGES = tuple(quoted())


def is_said(message: str) -> bool:
    """Whether some string of the source can be this message: its parts stand in it, one after the other."""
    parts = [part for part in message.split(GAP) if part]
    return any(_holds(text, parts) for text in SAID)


def _holds(text: str, parts: list[str]) -> bool:
    end = 0
    for part in parts:
        start = text.find(part, end)
        if start < 0:
            return False
        end = start + len(part)
    return True


@pytest.mark.parametrize("message", MESSAGES)
def test_every_quoted_message_is_in_the_code(message: str) -> None:
    assert len(re.sub(r"[^A-Za-z]", "", message)) >= LEAST, "too little of it is quoted to be found"
    assert is_said(message), "no string of the program says this any more: correct the page"


def test_the_search_can_fail() -> None:
    assert is_said("no control plane answers: …")
    assert not is_said("no control plane ever answered: …")
    assert not is_said("the lease of … is held by …, and we are glad of it")


def test_the_page_is_whole() -> None:
    assert len(MESSAGES) > 60
    assert set(GROUPS) <= {group for group, _ in rows()}
