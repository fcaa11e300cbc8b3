"""`provisioner graph`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from provisioner.choices import Format
from provisioner.cli.common import ClusterOption, open_cluster


def graph(
    cluster: ClusterOption = None,
    form: Annotated[
        Format, typer.Option("--format", "-f", help="mermaid: for Markdown and mermaid.live; dot: for Graphviz.")
    ] = Format.MERMAID,
) -> None:
    """The topology of cluster.yaml as a graph on standard output: roles, endpoint, proxies, etcd's peers, the pods' network.

    No machine is asked: it is what shall be. `report --html` draws what is.
    """
    from provisioner.graph import graph_of, write  # noqa: PLC0415 - keeps `--help` quick

    loaded, _ = open_cluster(cluster)
    sys.stdout.write(write(graph_of(loaded), form))
