"""`provisioner kubeconfig`: print it, merge it into the user's own, take it out again."""

from __future__ import annotations

import datetime as dt
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from provisioner.cli.common import ClusterOption, JsonOption, console, open_cluster, output, print_json
from provisioner.errors import BadInput, ProvisionerError

if TYPE_CHECKING:
    from provisioner.config import Cluster
    from provisioner.user_kubeconfig import Changed
    from provisioner.workspace import Workspace


def kubeconfig(  # noqa: PLR0917 - typer calls it by names
    cluster: ClusterOption = None,
    merge: Annotated[bool, typer.Option("--merge", help="Put it into your own kubeconfig instead of printing it.")] = False,
    unmerge: Annotated[bool, typer.Option("--unmerge", help="Take it out of your own kubeconfig again.")] = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--kubeconfig",
            metavar="FILE",
            help="Your own; default: as kubectl's: $KUBECONFIG, ~/.kube/config.",
            show_default=False,
        ),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Call its entries so; default: the cluster's name.", show_default=False)
    ] = "",
    switch: Annotated[bool, typer.Option("--switch/--no-switch", help="Make it the current context of your own.")] = True,
    deadline: Annotated[
        float, typer.Option("--deadline", metavar="SECONDS", min=0, help="Wait so long for another writer of FILE.")
    ] = 10,
    as_json: JsonOption = False,
) -> None:
    """Print the administrator's kubeconfig on stdout, with a control plane that answers as its current context.

    --merge puts its entries into your own kubeconfig, --unmerge takes exactly those out again.
    """
    opened, workspace = open_cluster(cluster)
    if merge and unmerge:
        raise BadInput("--merge and --unmerge are opposites", hint="give one of them")
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
        raise BadInput(f"--name {name!r} is no name", hint="letters, digits, dots and hyphens, at most 63")
    if merge:
        _show(_merge(opened, workspace, file, name=name, switch=switch, seconds=deadline), as_json=as_json, verb="merged")
    elif unmerge:
        _show(_unmerge(opened, workspace, file, name=name, seconds=deadline), as_json=as_json, verb="unmerged")
    else:
        if file or name or as_json or not switch:
            raise BadInput(
                "--kubeconfig, --name, --no-switch and --json go with --merge or --unmerge",
                hint="add one of them, or leave these out",
            )
        output.out(led(opened, workspace), end="")


def led(cluster: Cluster, workspace: Workspace) -> str:
    """The workspace's kubeconfig, led to a control plane that answers.

    Raises:
        BadInput: there is none yet.
    """
    from provisioner import endpoint, pki, topology  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.display import waiting  # noqa: PLC0415
    from provisioner.kubeconfig import server_of  # noqa: PLC0415
    from provisioner.session import write_kubeconfigs  # noqa: PLC0415

    path = workspace.kubeconfig
    if not path.exists():
        raise BadInput(f"{path}: there is none yet", hint="`provisioner apply` makes it")
    now, urls = server_of(path.read_bytes()), tuple(topology.api_urls(cluster).values())
    keys = pki.read(workspace.pki, now=dt.datetime.now(dt.UTC)) if len(urls) > 1 else None
    if keys:
        with waiting(console, "looking for a control plane that answers"):
            open_one = endpoint.answering(sorted(urls, key=lambda url: url != now), keys.trust(pki.CaName.CLUSTER))
        if not open_one:
            console.print("[yellow]warning:[/] no control plane answers from here; `provisioner status` looks at them through SSH")
        elif open_one != now:
            write_kubeconfigs(cluster, workspace, keys, server=open_one)
    return path.read_text()


def _id_of(workspace: Workspace) -> str:
    from provisioner import pki  # noqa: PLC0415

    return pki.cluster_id(pki.read(workspace.pki, now=dt.datetime.now(dt.UTC)))


def _merge(cluster: Cluster, workspace: Workspace, file: Path | None, *, name: str, switch: bool, seconds: float) -> Changed:
    from provisioner import user_kubeconfig  # noqa: PLC0415
    from provisioner.kubeconfig_merge import entries_of, merge  # noqa: PLC0415

    path = file or user_kubeconfig.default_path()
    if path.resolve() == workspace.kubeconfig.resolve():
        raise BadInput(
            f"{path}: that is this cluster's own kubeconfig", hint="name another one with --kubeconfig, or unset KUBECONFIG"
        )
    ours = entries_of(led(cluster, workspace), cluster=cluster.name, id=_id_of(workspace), name=name)
    return user_kubeconfig.change(path, lambda text: merge(text, ours, switch=switch), seconds=seconds)


def _unmerge(cluster: Cluster, workspace: Workspace, file: Path | None, *, name: str, seconds: float) -> Changed:
    from provisioner import user_kubeconfig  # noqa: PLC0415
    from provisioner.kubeconfig_merge import unmerge  # noqa: PLC0415

    path = file or user_kubeconfig.default_path()
    if not path.exists():
        raise BadInput(f"{path}: there is no such file", hint="name the one with --kubeconfig")
    try:
        identity = _id_of(workspace)
    except ProvisionerError:
        identity = ""  # the workspace is gone: by the name that the entries carry
    return user_kubeconfig.change(path, lambda text: unmerge(text, id=identity, cluster=cluster.name, name=name), seconds=seconds)


def _show(done: Changed, *, as_json: bool, verb: str) -> None:
    result = done.result
    if as_json:
        print_json(
            {
                "file": str(done.path),
                "changed": result.changed,
                "contexts": list(result.names),
                "currentContext": result.current,
                "backup": str(done.backup) if done.backup else None,
            }
        )
        return
    if not result.names:
        console.print(f"{escape(str(done.path))}: none of this cluster's entries is there")
    elif not result.changed:
        console.print(f"{escape(str(done.path))}: nothing to do; current context: {escape(result.current or 'none')}")
    else:
        contexts = ", ".join(result.names)
        console.print(
            f"[green]{verb}[/]: {escape(contexts)} in {escape(str(done.path))}; current context: {escape(result.current or 'none')}"
        )
    if done.backup:
        console.print(f"a copy of what it was: {escape(str(done.backup))}")
