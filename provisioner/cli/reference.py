"""The reference page of the command line, docs/reference/cli.md, written out of the commands themselves (`make docs`)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from provisioner.cli import app
from provisioner.errors import ExitCode

MEANINGS = {
    ExitCode.OK: "done; for `plan`: nothing to do",
    ExitCode.FAILURE: "something failed; the message names host and task, and the command that goes on",
    ExitCode.PLAN_HAS_CHANGES: "`plan`, or `upgrade --plan`, found changes to make",
    ExitCode.BAD_INPUT: "the command line or a file of yours is wrong; nothing was changed",
    ExitCode.PREFLIGHT_UNFIT: "a machine is unfit; nothing was changed",
    ExitCode.VERIFY_FAILED: "the cluster runs, but a check of it failed",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C",
}
_HEAD = """# Command line

<!-- Written by `make docs` out of the commands; do not edit by hand. -->

What a script may want to read goes to standard output, progress and errors to standard error. Colour and the live display appear
on a terminal only, and `NO_COLOR` is honoured. `provisioner --debug COMMAND` shows the traceback of an error.

Without `--cluster`, a command takes `cluster.yaml` of the working directory, else the only `workspace/*/cluster.yaml` there is.

| Exit code | Meaning |
| --- | --- |
"""


def exit_codes() -> str:
    """The rows of the table of exit codes."""
    return "\n".join(f"| {int(code)} | {meaning} |" for code, meaning in MEANINGS.items())


def reference(application: typer.Typer = app) -> str:
    """The whole page, in Markdown."""
    root = get_command(application)
    assert isinstance(root, TyperGroup)  # noqa: S101 - an application of several commands is one
    return (
        f"{_HEAD}{exit_codes()}\n\n" + "\n\n".join(_command(path, command) for path, command in leaves(root, "provisioner")) + "\n"
    )


def leaves(command: TyperGroup | TyperCommand, path: str) -> Iterator[tuple[str, TyperCommand]]:
    """(path, command) of every command that does something, in the order of --help."""
    if isinstance(command, TyperGroup):
        for name, inner in command.commands.items():
            assert isinstance(inner, TyperGroup | TyperCommand)  # noqa: S101 - typer makes no others
            yield from leaves(inner, f"{path} {name}")
    else:
        yield path, command


def _command(path: str, command: TyperCommand) -> str:
    with command.context_class(command, info_name=path) as context:
        usage = command.get_usage(context).removeprefix("Usage: ").replace("[[", "[").replace("]]", "]")
        rows = []
        for parameter in command.params:
            assert isinstance(parameter, TyperArgument | TyperOption)  # noqa: S101 - typer makes no others
            record = parameter.get_help_record(context)
            if record:
                rows.append(f"| `{_cell(record[0])}` | {_cell(record[1])} |")
    lines = [f"## {path}", "", inspect.cleandoc(command.help or ""), "", f"    {usage}"]
    if rows:
        lines += ["", "| Argument or option | Meaning |", "| --- | --- |", *rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
