"""The pages tell the truth where a program can see it: links lead somewhere, commands, options and make targets exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from provisioner.cli import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMAND = re.compile(
    r"^(?:    )?(?:cd \S+ && )?(?P<block>(?:provisioner|make) .*)$|`(?P<quoted>(?:provisioner|make) [^`]+)`", re.MULTILINE
)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]*)(#[^)\s]*)?\)")


def commands() -> Iterator[tuple[Path, str]]:
    """Every command line of the pages that calls provisioner or make: in indented blocks, fences and `back quotes`."""
    for page in PAGES:
        for found in COMMAND.finditer(page.read_text()):
            yield page, (found["block"] or found["quoted"]).partition("  ")[0]


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub makes them, and its own."""
    text = page.read_text()
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    own = re.findall(r'<a id="([^"]+)"', text)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(own)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target, anchor in LINK.findall(page.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        path = (page.parent / target) if target else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor[1:] not in anchors(path)):
            broken.append(target + anchor)
    assert broken == []


def test_commands_and_their_options_exist() -> None:
    root = get_command(app)
    wrong = []
    found = 0
    for page, line in commands():
        words = line.split(" -- ")[0].split()
        if words[0] != "provisioner" or words[1].isupper() or "|" in line:
            continue
        found += 1
        command, rest = root, words[1:]
        while rest and isinstance(command, TyperGroup) and rest[0] in command.commands:
            command, rest = command.commands[rest[0]], rest[1:]
        if not command.context_settings.get("allow_interspersed_args", True):
            # what follows the first word is another program's
            rest = list(takewhile(lambda word: word.startswith("-"), rest))
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        options |= {"--help"}
        missing = [word for word in rest if word.startswith("--") and word.partition("=")[0].rstrip("`,.…") not in options]
        if missing or (isinstance(command, TyperGroup) and rest and not rest[0].startswith(("-", "…", "["))):
            wrong.append(f"{page.relative_to(ROOT)}: {line}")
    assert wrong == []
    assert found > 40, "the pages have their commands in another form now: this test does not see them"


def test_every_command_has_a_page_besides_the_reference() -> None:
    def leaves(command: object, path: str) -> Iterator[str]:
        if isinstance(command, TyperGroup):
            for name, below in command.commands.items():
                yield from leaves(below, f"{path} {name}")
        else:
            yield path

    text = "".join(page.read_text() for page in PAGES if page.parent.name != "reference")
    missing = [command for command in leaves(get_command(app), "provisioner") if not re.search(rf"{command}\b", text)]
    assert missing == []


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {
        (str(page.relative_to(ROOT)), word)
        for page, line in commands()
        for word in re.sub(r"#.*|\".*?\"", "", line).split()[1:]
        if line.startswith("make ") and re.fullmatch(r"[a-z0-9-]+", word)
    }
    assert named, "the pages name no target any more: this test does not see them"
    assert {(page, word) for page, word in named if word not in targets} == set()
