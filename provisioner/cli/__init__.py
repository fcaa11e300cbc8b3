"""The command line. Thin: parse, call, print, exit code. One module per group of commands."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from provisioner import __version__
from provisioner.cli.ending import run_and_exit
from provisioner.cli.lazy import Commands, NarrowContext


class _Root(TyperGroup):
    """All commands, each imported when it is asked for."""

    context_class = NarrowContext

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = Commands(__name__, COMMANDS, GROUPS)


app = typer.Typer(
    name="provisioner",
    cls=_Root,
    help="From Linux machines that answer SSH to a verified, highly available Kubernetes cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
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
    ("report", "report", "report"),
    ("graph", "graph", "graph"),
    ("kubeconfig", "kubeconfig", "kubeconfig"),
    ("kubectl", "kubectl", "kubectl"),
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


def main() -> None:
    """Entry point of the `provisioner` command: no traceback reaches a user without --debug."""
    run_and_exit(app)
