"""The command line. Thin: parse, call, print, exit code. One module per group of commands."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from provisioner import __version__
from provisioner.cli.common import console
from provisioner.errors import BadInput, ExitCode, ProvisionerError

app = typer.Typer(
    name="provisioner",
    help="From Linux machines that answer SSH to a verified, highly available Kubernetes cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"provisioner {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
) -> None:
    """Options of every command."""
    _ = version
    if debug:
        os.environ["PROVISIONER_DEBUG"] = "1"


# Commands in the order of --help: (module of this package, function, name).
COMMANDS = (
    ("config", "init", "init"),
    ("config", "validate", "validate"),
    ("config", "schema", "schema"),
    ("machines", "preflight", "preflight"),
    ("cluster", "plan", "plan"),
    ("cluster", "apply", "apply"),
    ("up", "up", "up"),
    ("upgrade", "upgrade", "upgrade"),
    ("verify", "verify", "verify"),
    ("status", "status", "status"),
    ("kubeconfig", "kubeconfig", "kubeconfig"),
    ("machines", "ssh", "ssh"),
    ("logs", "logs", "logs"),
    ("support", "support_bundle", "support-bundle"),
    ("reset", "reset", "reset"),
)
GROUPS = (
    ("node", "node"),
    ("etcd", "etcd"),
    ("certs", "certs"),
    ("workspace", "workspace"),
    ("artifacts", "artifacts"),
    ("lab", "lab"),
)

for _module, _function, _name in COMMANDS:
    app.command(_name)(getattr(importlib.import_module(f"provisioner.cli.{_module}"), _function))
for _module, _name in GROUPS:
    app.add_typer(importlib.import_module(f"provisioner.cli.{_module}").app, name=_name)


def show_error(error: ProvisionerError) -> None:
    """Print an error the way every command does: what, the details, the remedy."""
    console.print(f"[bold red]error:[/] {escape(error.message)}")
    for line in error.details:
        console.print(f"  {escape(line)}")
    if error.hint:
        console.print(f"[bold]remedy:[/] {escape(error.hint)}")


def _show_usage(error: typer.TyperException) -> None:
    """A command line that cannot be understood; without any message where typer has printed the help instead."""
    text = error.format_message()
    command = getattr(getattr(error, "ctx", None), "command_path", "provisioner")
    if text:
        show_error(BadInput(text, hint=f"`{command} --help` shows what it takes"))


def main() -> None:
    """Entry point of the `provisioner` command: no traceback reaches a user without --debug."""
    try:
        code = app(standalone_mode=False)
    except ProvisionerError as error:
        if os.environ.get("PROVISIONER_DEBUG"):
            raise
        show_error(error)
        code = error.exit_code
    except typer.TyperException as error:
        _show_usage(error)
        code = ExitCode.BAD_INPUT
    except (typer.Abort, KeyboardInterrupt):
        console.print("[bold red]interrupted[/]")
        code = ExitCode.INTERRUPTED
    except BrokenPipeError:
        # the reader went away (`| head`): nothing left to say, and nothing to flush at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.OK
    except Exception as error:
        if os.environ.get("PROVISIONER_DEBUG"):
            raise
        show_error(_explain(error))
        code = ExitCode.FAILURE
    else:
        if code == ExitCode.INTERRUPTED:  # typer's word for a Ctrl-C that no command has turned into an error
            console.print("[bold red]interrupted[/]")
    sys.exit(int(code or 0))


def _explain(error: Exception) -> ProvisionerError:
    """What no command has foreseen: a file that the system refuses is the user's to mend, everything else is a bug."""
    if isinstance(error, OSError) and error.filename:
        return ProvisionerError(
            f"{error.filename}: {error.strerror}", hint="look at that file's permissions, and at the room on its disk"
        )
    return ProvisionerError(
        f"internal error: {type(error).__name__}: {error}",
        hint=f"run `{Path(sys.argv[0]).name} --debug …` and report the traceback: this is a bug",
    )
