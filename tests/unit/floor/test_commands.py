"""Every command and option of the command line, as typer knows them: explained, narrow, and honest about wrong input."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperArgument, TyperCommand, TyperOption
from typer.main import get_command

from provisioner.cli import COMMANDS, GROUPS, app
from provisioner.cli.ending import attempt
from provisioner.cli.lazy import NarrowContext, first_sentence
from provisioner.cli.reference import leaves
from provisioner.errors import ExitCode

ROOT: Any = get_command(app)
LEAVES = dict(leaves(ROOT, "provisioner"))
# Commands that print nothing a script could want, or hand the terminal to another program.
WITHOUT_JSON = {
    "provisioner init": "writes a file and says which",
    "provisioner schema": "prints JSON anyway",
    "provisioner graph": "Mermaid or DOT, which tools read",
    "provisioner ssh": "the terminal is ssh's",
    "provisioner kubectl": "the terminal is kubectl's",
    "provisioner lab up": "prints the path of cluster.yaml and nothing else",
    "provisioner lab down": "prints nothing on stdout",
    "provisioner lab load-image": "prints nothing on stdout",
    "provisioner lab ssh": "the terminal is ssh's",
}
# What a command must be given before it looks for its cluster.
NEEDED = {
    "provisioner ssh": ("cp-1",),
    "provisioner logs": ("cp-1",),
    "provisioner node add": ("w-1",),
    "provisioner node remove": ("w-1",),
    "provisioner node replace": ("w-1",),
    "provisioner etcd restore": ("no.backup",),
    "provisioner workspace export": ("--output", "x.age"),
}

Attempt = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Attempt:
    """The command line in an empty directory, within this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROVISIONER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PROVISIONER_DEBUG", raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["provisioner", *words])
        code = attempt(app)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def commands() -> Iterator[tuple[str, Any]]:
    """Every command and group with its path."""

    def walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield path, command
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(f"{path} {name}", inner)

    return walk("provisioner", ROOT)


ALL = dict(commands())


def help_of(path: str, width: int) -> str:
    names = ["-h", "--help"]
    with NarrowContext(ALL[path], info_name=path, help_option_names=names, terminal_width=width) as context:
        return str(ALL[path].get_help(context))


def test_the_walk_sees_all() -> None:
    assert {name for _, _, name in COMMANDS} | {name for _, name in GROUPS} == set(ROOT.commands)
    assert len(LEAVES) > 30


@pytest.mark.parametrize("path", ALL)
def test_every_command_option_and_argument_is_explained(path: str) -> None:
    command = ALL[path]
    assert inspect.cleandoc(command.help or "").strip(), f"{path} has no help"
    dumb = [one.name for one in command.params if isinstance(one, TyperOption | TyperArgument) and not (one.help or "").strip()]
    assert dumb == [], f"{path}: without help: {dumb}"


@pytest.mark.parametrize("path", ALL)
def test_lists_show_a_whole_sentence(path: str) -> None:
    words = first_sentence(ALL[path].help or "")
    assert words
    assert not words.endswith((".", "...", ","))


@pytest.mark.parametrize("path", LEAVES)
def test_what_prints_has_json(path: str) -> None:
    options = {option for one in LEAVES[path].params for option in one.opts}
    assert ("--json" in options) != (path in WITHOUT_JSON)


@pytest.mark.parametrize("path", ALL)
def test_help_fits_forty_columns_and_ascii(path: str) -> None:
    text = help_of(path, 38)
    assert [line for line in text.splitlines() if len(line) > 40] == []
    assert text.encode("ascii", "provisioner-ascii")
    assert "\x1b" not in text
    # names are never cut: whoever reads must be able to type them
    for one in ALL[path].params:
        for option in one.opts if isinstance(one, TyperOption) else ():
            assert option in text


@pytest.mark.parametrize("path", [path for path, one in LEAVES.items() if "--cluster" in {o for p in one.params for o in p.opts}])
def test_outside_of_any_cluster_there_is_a_remedy(path: str, run: Attempt, tmp_path: Path) -> None:
    words = path.split()[1:]
    given: list[tuple[str, ...]] = [("--cluster", "nowhere")]
    if not path.startswith("provisioner artifacts"):  # which take what goes with the newest version
        given.append(())
    for more in given:
        code, out, err = run(*words, *NEEDED.get(path, ()), *more)
        assert code == ExitCode.BAD_INPUT, err
        assert "error: " in err
        assert "remedy: " in err
        assert "Traceback" not in err
        assert out == ""
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "cache"] == []


def _typed(command: TyperCommand) -> Iterator[str]:
    """Options that take a number or one of some words."""
    for one in command.params:
        if isinstance(one, TyperOption) and not one.is_flag:
            kind = one.type_descriptor
            if kind.is_choice or kind.is_ranged or kind.annotation in (int, float):
                yield one.opts[0]


@pytest.mark.parametrize(("path", "option"), [(path, option) for path, one in LEAVES.items() for option in _typed(one)])
def test_garbage_is_bad_input(path: str, option: str, run: Attempt) -> None:
    """Not exit code 2, which means "changes" where `plan` says it."""
    code, out, err = run(*path.split()[1:], *NEEDED.get(path, ()), option, "gar\N{SNOWMAN}bage [x]")
    assert code == ExitCode.BAD_INPUT, err
    assert option in err
    assert "--help` shows" in err
    assert "Traceback" not in err
    assert out == ""


def test_there_are_options_to_try_garbage_on() -> None:
    assert sum(1 for one in LEAVES.values() for _ in _typed(one)) > 20


@pytest.mark.parametrize("path", LEAVES)
def test_an_unknown_option_is_bad_input(path: str, run: Attempt) -> None:
    if path == "provisioner lab ssh":  # hands options on
        return
    code, _, err = run(*path.split()[1:], "--no-such-option")
    assert code == ExitCode.BAD_INPUT
    assert "--no-such-option" in err
