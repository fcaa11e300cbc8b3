"""`provisioner support-bundle`."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from provisioner.cli import complete
from provisioner.cli.common import ClusterOption, JsonOption, console, find_node, open_cluster, print_json
from provisioner.errors import BadInput, ProvisionerError
from provisioner.words import count

# In every bundle: without anything else it tells nothing.
ALWAYS = {"cluster.yaml", "manifest.json"}


def support_bundle(  # noqa: PLR0917 - typer calls it by names
    cluster: ClusterOption = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="FILE", help="Where to write it; default: CLUSTER-support-TIME.tar.gz here.", show_default=False
        ),
    ] = None,
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="Journals from then on.")] = "24h",
    node: Annotated[
        list[str] | None,
        typer.Option(
            "--node",
            metavar="NAME",
            autocompletion=complete.nodes,
            help="Only this machine; may be given again.",
            show_default=False,
        ),
    ] = None,
    deadline: Annotated[float, typer.Option("--deadline", metavar="SECONDS", min=5, help="For everything.")] = 180,
    as_json: JsonOption = False,
) -> None:
    """One file with everything that helps to understand the cluster, without its secrets. Changes nothing.

    Works with whatever answers; what is missing is said here and in its manifest.json. Exit 1: there was nothing to collect.
    """
    loaded, workspace = open_cluster(cluster)
    nodes = tuple(find_node(loaded, workspace, name) for name in dict.fromkeys(node or ())) or loaded.nodes
    top = f"{loaded.name}-support-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}"
    path = target or Path(f"{top}.tar.gz")
    _refuse_existing(path)
    from provisioner.display import waiting  # noqa: PLC0415
    from provisioner.support import Options, of_workspace, place  # noqa: PLC0415 - two seconds, after what is refused at once
    from provisioner.support.collect import collect  # noqa: PLC0415

    with waiting(console, f"collecting from {count(len(nodes), 'machine')}"):
        found = collect(loaded, workspace, Options(nodes, since, deadline))
    for item in found.missing:
        console.print(f"[yellow]missing:[/] {escape(item.what)}: {escape(item.why)}")
    if not set(found.files) - ALWAYS:
        raise ProvisionerError(
            "there was nothing to collect: no machine can be reached, and nothing was run from this workspace yet",
            hint="`provisioner preflight` says what is wrong with the machines",
        )
    size = place(path, top, found.files, of_workspace(loaded, workspace))
    if as_json:
        print_json(
            {
                "file": str(path.resolve()),
                "bytes": size,
                "collected": len(found.files),
                "missing": [item.to_json() for item in found.missing],
            }
        )
    else:
        typer.echo(str(path))
        console.print(
            f"{len(found.files)} files, {size / 1024:.0f} KiB, {len(found.missing)} missing; it has names and "
            "addresses: look into it before you send it"
        )


def _refuse_existing(path: Path) -> None:
    """Look at the place before the work is done for it."""
    if path.is_dir():
        raise BadInput(f"{path}: a directory", hint=f"name a file in it, e.g. `--output {path / 'support.tar.gz'}`")
    if path.exists() or path.is_symlink():
        raise BadInput(f"{path}: there is such a file already", hint="name another one with --output, or move it away")
    if not path.parent.is_dir():
        raise BadInput(f"{path.parent}: no such directory", hint="make it first, or name another file with --output")
