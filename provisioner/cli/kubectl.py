"""`provisioner kubectl`: kubectl, the one that fits, on this cluster, through a control plane that answers."""

from __future__ import annotations

import os
import shutil
from typing import Annotated

import typer

from provisioner.cli.common import ClusterOption, open_cluster
from provisioner.cli.kubeconfig import led
from provisioner.cli.lazy import passing_on
from provisioner.errors import ArtifactError


@passing_on
def kubectl(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ARGS...]", help="kubectl's own arguments, options among them.", show_default=False),
    ] = None,
    cluster: ClusterOption = None,
) -> None:
    """Run kubectl on this cluster as its administrator, through a control plane that answers.

    The program is the one of the cluster's version, from the cache of artifacts; where the cache has none, the one of $PATH.
    Options of `provisioner` come first: whatever follows kubectl's first word is kubectl's.
    """
    from provisioner.kubectl import in_cache  # noqa: PLC0415 - keeps `--help` quick

    opened, workspace = open_cluster(cluster)
    led(opened, workspace)
    version = opened.kubernetes.version
    program = in_cache([version], mirror=opened.artifacts.mirror) or shutil.which("kubectl")
    if program is None:
        raise ArtifactError(
            f"kubectl {version} is not in the cache of artifacts, and $PATH has none",
            hint="`provisioner artifacts fetch` brings it, with what else the cluster is made of",
        )
    try:
        # replaces this process on purpose: the terminal and the exit code are kubectl's own
        os.execve(program, ["kubectl", *(words or [])], {**os.environ, "KUBECONFIG": str(workspace.kubeconfig)})  # noqa: S606
    except OSError as error:
        raise ArtifactError(f"{program} cannot be run: {error.strerror}", hint="is the cache mounted noexec?") from error
