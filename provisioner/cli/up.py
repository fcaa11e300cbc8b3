"""`provisioner up`: lab machines, a cluster on them, and the proof that it works; what CI calls."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.markup import escape

from provisioner.cli import complete
from provisioner.cli.cluster import apply_cluster
from provisioner.cli.common import JsonOption, console, open_cluster
from provisioner.cli.lab import telling
from provisioner.cli.run import DeadlineOption
from provisioner.errors import BadInput
from provisioner.workspace import write_atomic


def up(
    *,
    name: Annotated[str, typer.Option("--name", help="Name of the lab and of its cluster.")] = "lab",
    control_planes: Annotated[
        int, typer.Option("--control-planes", min=1, help="Machines with an apiserver and an etcd member.")
    ] = 1,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Machines for pods; 0: the control planes take them.")] = 2,
    version: Annotated[
        str | None,
        typer.Option(
            "--kubernetes-version",
            metavar="X.Y.Z",
            help="Default: that of versions.yml.",
            show_default=False,
            autocompletion=complete.versions,
        ),
    ] = None,
    kubeconfig: Annotated[
        Path | None,
        typer.Option(
            "--kubeconfig",
            metavar="FILE",
            help="Also put the administrator's kubeconfig there; under sudo it belongs to the user who called it.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
    deadline: DeadlineOption = None,
) -> None:
    """Lab machines, a cluster on them, and the proof that it works, in one go."""
    from provisioner import lab  # noqa: PLC0415 - quick --help
    from provisioner.artifacts.lock import load_lock  # noqa: PLC0415

    if version is not None and version not in (known := load_lock().kubernetes_versions):
        raise BadInput(f"--kubernetes-version {version}: not in versions.yml", hint=f"it has {', '.join(known)}")
    if kubeconfig is not None:
        _refuse_foreign(kubeconfig, name)
    with telling(f"lab {name}") as tell:
        path = lab.up(name, control_planes=control_planes, workers=workers, kubernetes=version, progress=tell)
    loaded, workspace = open_cluster(path)
    if version is not None and loaded.kubernetes.version != version:
        raise BadInput(
            f"lab {name} is there already, with Kubernetes {loaded.kubernetes.version}",
            hint=f"`provisioner upgrade --to {version}` takes it there; or use another --name, "
            f"or `provisioner lab down --name {name}` first",
        )
    apply_cluster(loaded, workspace, yes=True, as_json=as_json, deadline=deadline)
    if kubeconfig is not None:
        _hand_over(workspace.kubeconfig.read_bytes(), kubeconfig)
    where = escape(os.path.relpath(path.parent))
    console.print(f"try: provisioner kubectl --cluster {where} get nodes   (remove it all: provisioner lab down --name {name})")


def _refuse_foreign(path: Path, name: str) -> None:
    """A kubeconfig that holds more than this lab's cluster, or anything else, is nobody's to overwrite.

    Raises:
        BadInput: with what to do instead.
    """
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{path.parent}: no such directory", hint="make it, or name another file with --kubeconfig")
    try:
        document = yaml.safe_load(path.read_text())
        names = [str(item["name"]) for item in document["clusters"]]
    except FileNotFoundError:
        return
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        names = []
    # the cluster's own name comes first in what this program writes; that of a lab NAME-2 begins with NAME-, too
    if names[:1] != [name] or any(found != name and not found.startswith(f"{name}-") for found in names):
        raise BadInput(
            f"{path} is there, and is not the kubeconfig of a lab {name}: it would be overwritten",
            hint="name another file with --kubeconfig; `provisioner kubeconfig --merge` puts the cluster into one of yours",
        )


def _hand_over(content: bytes, path: Path) -> None:
    """Write a kubeconfig, 0600, for the user who called sudo where one did: their tests are to read it without being root."""
    write_atomic(path, content)
    user, group = os.environ.get("SUDO_UID", ""), os.environ.get("SUDO_GID", "")
    if os.geteuid() == 0 and user.isdecimal() and group.isdecimal():
        os.chown(path, int(user), int(group), follow_symlinks=False)
