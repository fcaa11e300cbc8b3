"""The code blocks of the pages, with what their authors say about them.

A block is a fence (its language behind the marks) or four spaces of indent. A comment right above it, which readers do not see,
says why no test runs it or which one does:

    <!-- not run: output -->                              nothing of the block
    <!-- not run (kubectl, vagrant): the reason -->       the lines that begin with these words
    <!-- run by: tests/e2e/test_x.py::test_y -->          this test runs all of it
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.reference import PAGES as GENERATED

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^(?P<indent> {0,3})(?P<mark>`{3,}|~{3,})\s*(?P<info>[\w+-]*)")
MARKER = re.compile(r"^\s*<!--\s*(?P<kind>not run|run by)\s*(?:\((?P<words>[^)]*)\))?\s*:\s*(?P<text>.*?)\s*-->\s*$")
LIST_ITEM = re.compile(r"^ {0,3}([-*+]|\d+[.)])\s")
SHELL = frozenset({"sh", "bash", "shell", "console"})
# An indented block has no language: it is a shell's where it begins with one of these, or with a prompt.
STARTERS = frozenset(
    {
        *("provisioner", "make", "cd", "export", "mkdir", "python3", "pip", "kubectl", "vagrant", "ip", "scp", "git", "curl"),
        *("apt-get", "docker", "man", "sudo", "$EDITOR"),
    }
)
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
# Between a command and what the page says about it.
REMARK = re.compile(r"\s{2,}.*$|\s+#\s.*$")
# Where output goes; what follows, up to the next pipe, is no argument.
REDIRECTION = re.compile(r"^[0-2&]?>{1,2}")


@dataclass(frozen=True, slots=True)
class Marker:
    """What the author says of a block.

    Attributes:
        test: the test that runs it; empty where none does.
        words: the lines that begin with one of these are meant; all of them where there are none.
        reason: why nothing runs it.
    """

    test: str = ""
    words: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """One code block. ``line`` is that of its first line of code; ``language`` is guessed for an indented one, else empty."""

    page: str
    line: int
    language: str
    text: str
    marker: Marker | None = None
    is_fence: bool = True

    @property
    def where(self) -> str:
        """Page and line, as editors take them."""
        return f"{self.page}:{self.line}"

    @property
    def is_shell(self) -> bool:
        """Whether it holds commands."""
        return self.language in SHELL

    def excuses(self, words: list[str]) -> bool:
        """Whether the author says that nothing, or another test, runs this command."""
        return self.marker is not None and (not self.marker.words or words[0].rpartition("/")[2] in self.marker.words)

    def commands(self) -> Iterator[list[str]]:
        """The words of each command, without prompts, remarks, assignments and redirections. Each part of a pipe is a command.

        In a block with prompts the rest is output; so is, in an indented one, a paragraph that does not begin as commands do.
        """
        text = re.sub(r"\s*\\\n\s*", " ", self.text)
        if not self.is_fence:
            text = "\n".join(part for part in text.split("\n\n") if guess(part))
        prompted = [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]
        for line in prompted or text.splitlines():
            for part in REMARK.sub("", line).split(" && "):
                yield from simple(shlex.split(part.strip(), comments=True))

    def refused(self) -> list[list[str]]:
        """The commands behind whose prompt the page shows an error."""
        lines = self.text.splitlines()
        failing = [line for line, shown in zip(lines, [*lines[1:], ""], strict=True) if shown.startswith("error: ")]
        return [words for line in failing if line.startswith("$ ") for words in Block("", 0, "console", line).commands()]


def pages() -> list[Path]:
    """Every page that people write."""
    generated = {ROOT / "docs/reference" / name for name in GENERATED}
    return sorted({*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")} - generated)


def blocks() -> list[Block]:
    """Every code block of every page."""
    return [block for page in pages() for block in parse(str(page.relative_to(ROOT)), page.read_text())]


def parse(page: str, text: str) -> Iterator[Block]:
    """The blocks of one page, in its order.

    Raises:
        AssertionError: a fence has no end, or something stands in a comment that only nearly is a marker.
    """
    lines = text.splitlines()
    at = 0
    in_list = False
    while at < len(lines):
        line = lines[at]
        assert not re.match(r"\s*<!--\s*(not run|run by)", line) or MARKER.match(line), f"{page}:{at + 1}: no marker: {line}"
        if fence := FENCE.match(line):
            ends = (place for place in range(at + 1, len(lines)) if re.match(rf"^ {{0,3}}{fence['mark']}[`~]*\s*$", lines[place]))
            end = next(ends, None)
            assert end is not None, f"{page}:{at + 1}: this fence has no end"
            body = [inner.removeprefix(fence["indent"]) for inner in lines[at + 1 : end]]
            yield Block(page, at + 2, fence["info"].lower(), "\n".join(body), marker(lines, at))
            at = end + 1
        elif line.startswith("    ") and line.strip() and not in_list and (at == 0 or not lines[at - 1].strip()):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            body = [inner.removeprefix("    ") for inner in lines[at:end]]
            code = "\n".join(body).strip()
            yield Block(page, at + 1, guess(code), code, marker(lines, at), is_fence=False)
            at = end
        else:
            # what is indented below an item of a list is text of that item
            in_list = bool(LIST_ITEM.match(line)) or (in_list and (not line.strip() or line.startswith(" ")))
            at += 1


def marker(lines: list[str], at: int) -> Marker | None:
    """The marker above a line, empty lines between them aside."""
    above = next((line for line in reversed(lines[:at]) if line.strip()), "")
    found = MARKER.match(above)
    if found is None:
        return None
    if found["kind"] == "run by":
        return Marker(test=found["text"])
    words = tuple(word.strip() for word in (found["words"] or "").split(",") if word.strip())
    return Marker(reason=found["text"], words=words)


def simple(words: list[str]) -> Iterator[list[str]]:
    """The commands of a pipe, each without its assignments and redirections."""
    while words:
        end = words.index("|") if "|" in words else len(words)
        command, words = words[:end], words[end + 1 :]
        command = list(itertools.dropwhile(ASSIGNMENT.match, command))
        command = list(itertools.takewhile(lambda word: not REDIRECTION.match(word), command))
        if command:
            yield command


def guess(code: str) -> str:
    """The language of an indented block: ``sh`` or nothing."""
    first = code.split("\n", 1)[0]
    words = first.split()
    while words and ASSIGNMENT.match(words[0]):
        words = words[1:]
    return "sh" if first.startswith("$ ") or (words and words[0] in STARTERS) else ""
