"""What the commands share: the --cluster option, opening a cluster, output on the right stream."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from provisioner.errors import BadInput, Interrupted
from provisioner.problems import did_you_mean
from provisioner.terminal import StreamConsole
from provisioner.workspace import Workspace, write_atomic

if TYPE_CHECKING:
    from provisioner.config import Cluster, Node

# Progress, warnings and errors go to stderr; what a script may want to read goes to stdout.
console = StreamConsole("stderr")
output = StreamConsole("stdout")


def _paths(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    from provisioner.cli.complete import clusters  # noqa: PLC0415 - which needs this module

    return clusters(ctx, incomplete)


ClusterOption = Annotated[
    Path | None,
    typer.Option(
        "--cluster",
        "-c",
        metavar="DIR|FILE",
        autocompletion=_paths,
        help="cluster.yaml, or a directory with one; default: ./cluster.yaml, else the only ./workspace/*/cluster.yaml.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def find_cluster_file(given: Path | None) -> Path:
    """The cluster.yaml meant by --cluster.

    Raises:
        BadInput: there is none, or more than one it could be.
    """
    if given is not None:
        path = given / "cluster.yaml" if given.is_dir() else given
        if not path.is_file():
            raise BadInput(f"{path}: no such file", hint="`provisioner init` writes a commented cluster.yaml")
        return path
    here = Path("cluster.yaml")
    if here.is_file():
        return here
    found = sorted(Path("workspace").glob("*/cluster.yaml"))
    if len(found) == 1:
        return found[0]
    if found:
        raise BadInput(
            "more than one workspace here: " + ", ".join(path.parent.name for path in found),
            hint="name one, e.g. `--cluster " + str(found[0].parent) + "`",
        )
    raise BadInput(
        "no cluster.yaml in this directory, and no workspace",
        hint="`provisioner init` writes one; `provisioner up` builds a lab cluster with nothing prepared",
    )


def open_cluster(given: Path | None) -> tuple[Cluster, Workspace]:
    """Read cluster.yaml and name its workspace.

    Raises:
        BadInput: the file is missing or wrong, or the workspace is of another version.
    """
    from provisioner import load  # noqa: PLC0415 - keeps `--help` and completion quick

    path = find_cluster_file(given)
    loaded = load.read(path)
    # what only a new cluster is refused is a warning where there is one already
    if loaded.cluster is None and (known := load.read(path, exists=True)).cluster is not None:
        loaded = known if Workspace.of(path, known.cluster.name).was_used else loaded
    if loaded.cluster is None or loaded.errors:
        raise load.refusal(loaded)
    for line in load.lines(path, loaded.warnings):
        console.print(f"[yellow]warning:[/] {escape(line)}")
    return loaded.cluster, Workspace.of(path, loaded.cluster.name)


def find_node(cluster: Cluster, workspace: Workspace, name: str) -> Node:
    """The node of that name.

    Raises:
        BadInput: there is none.
    """
    try:
        return cluster.node(name)
    except KeyError:
        names = [node.name for node in cluster.nodes]
        raise BadInput(
            f"there is no node {name!r} in {workspace.cluster_file}{did_you_mean(name, names)}",
            hint=f"its nodes are {', '.join(names)}",
        ) from None


def rewrite(path: Path, *, read: str, text: str) -> None:
    """Put an edited cluster.yaml in its place, with the mode and the owner that it had.

    Args:
        read: its text when it was read.

    Raises:
        BadInput: somebody else has edited it meanwhile.
    """
    if text == read:
        return
    if path.read_text() != read:
        raise BadInput(f"{path} was changed meanwhile; nothing of it was overwritten", hint="run this again")
    before = path.stat()
    write_atomic(path, text, mode=before.st_mode & 0o777)
    if os.geteuid() == 0:
        os.chown(path, before.st_uid, before.st_gid)


def print_json(document: object) -> None:
    """One JSON document on stdout, for scripts."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def confirm(question: str, *, otherwise: str = "`--yes` goes ahead without asking") -> None:
    """Ask before something is destroyed.

    Args:
        question: names what will be destroyed.
        otherwise: what to do where there is no terminal.

    Raises:
        BadInput: there is no terminal to ask at.
        Interrupted: the answer is no.
    """
    if not sys.stdin.isatty():
        raise BadInput("nobody to ask; nothing was changed", hint=otherwise)
    if not typer.confirm(question, err=True):
        raise Interrupted("not confirmed; nothing was changed", hint="the same command again asks again")
