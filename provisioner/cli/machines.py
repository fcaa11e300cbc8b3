"""`provisioner preflight` and `provisioner ssh`: looking at the machines, and logging in to one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from provisioner.cli import complete
from provisioner.cli.common import ClusterOption, JsonOption, console, find_node, open_cluster, print_json
from provisioner.errors import ExitCode, ProvisionerError
from provisioner.terminal import wide
from provisioner.words import count

if TYPE_CHECKING:
    from provisioner.config import Cluster, Node
    from provisioner.facts import HostFacts
    from provisioner.preflight import Problem
    from provisioner.workspace import Workspace

STYLES = {"error": "bold red", "warning": "yellow", "info": "dim"}


def preflight(cluster: ClusterOption = None, as_json: JsonOption = False) -> None:
    """Look at every machine, name every problem with its remedy, change nothing. Exit 4: a machine is unfit."""
    from provisioner import preflight as checks  # noqa: PLC0415 - keeps `--help` and completion quick
    from provisioner import registry  # noqa: PLC0415
    from provisioner.display import waiting  # noqa: PLC0415
    from provisioner.facts import gather  # noqa: PLC0415
    from provisioner.ssh import Connections  # noqa: PLC0415

    loaded, workspace = open_cluster(cluster)
    asked = f"looking at {count(len(loaded.nodes), 'machine')}"
    with Connections(loaded, workspace) as connections, waiting(console, asked):
        facts, unreachable = gather(loaded, connections)
    known = registry.read(workspace)
    problems = checks.check(loaded, facts, unreachable, cluster_id=checks.cluster_id_of(workspace), known=known)
    unfit = any(problem.severity == "error" for problem in problems)
    if as_json:
        print_json(
            {
                "cluster": loaded.name,
                "fit": not unfit,
                "problems": [problem.to_json() for problem in problems],
                "machines": {name: found.to_json() for name, found in facts.items()},
            }
        )
    else:
        print_problems(loaded, facts, unreachable, problems)
    raise typer.Exit(ExitCode.PREFLIGHT_UNFIT if unfit else ExitCode.OK)


def print_problems(
    cluster: Cluster,
    facts: Mapping[str, HostFacts],
    unreachable: Mapping[str, ProvisionerError],
    problems: Sequence[Problem],
) -> None:
    """The findings as a table, grouped by machine; every machine has a line that says what it is."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for node in cluster.nodes:
        own = [problem for problem in problems if problem.host == node.name]
        worst = min((list(STYLES).index(problem.severity) for problem in own), default=len(STYLES))
        verdict = ("[bold red]unfit[/]", "[yellow]fit, with warnings[/]", "[green]fit[/]", "[green]fit[/]")[worst]
        about = _about(facts[node.name]) if node.name in facts else "could not be looked at" if node.name in unreachable else ""
        table.add_row(f"[bold]{escape(node.name)}[/]", f"{verdict}  [dim]{escape(about)}[/]")
        for problem in own:
            remedy = problem.remedy if problem.severity != "info" else ""
            text = escape(problem.message) + (f"\n[dim]{escape(remedy)}[/]" if remedy else "")
            table.add_row(f"  [{STYLES[problem.severity]}]{problem.severity}[/]", text)
    wide().print(table)
    counts = {severity: sum(problem.severity == severity for problem in problems) for severity in ("error", "warning")}
    console.print(
        f"{len(facts)} of {len(cluster.nodes)} machines answered: {counts['error']} errors, {counts['warning']} warnings; "
        "nothing was changed"
    )


def _about(facts: HostFacts) -> str:
    """A machine in one line."""
    disk = f", {facts.disk_free_mib['/'] / 1024:.0f} GiB free" if "/" in facts.disks else ""
    kind = f", {facts.container}" if facts.container else ""
    return (
        f"{facts.os_name}, {facts.arch}, kernel {facts.kernel}, {facts.cpus} CPUs, {facts.memory_mib / 1024:.1f} GiB{disk}, "
        f"cgroup v{facts.cgroup}{kind}"
    )


def ssh(
    node: Annotated[
        str,
        typer.Argument(metavar="NODE", autocompletion=complete.nodes, help="Name of the node in cluster.yaml.", show_default=False),
    ],
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND...]", help="Run this instead of a shell (the words are joined, as ssh does).", show_default=False
        ),
    ] = None,
    cluster: ClusterOption = None,
) -> None:
    """Log in to a machine, or run a command on it, with this cluster's key, bastion and known_hosts."""
    loaded, workspace = open_cluster(cluster)
    words = ssh_words(loaded, workspace, find_node(loaded, workspace, node)) + (command or [])
    try:
        os.execvp("ssh", words)  # noqa: S606 - replaces this process on purpose: the terminal and the exit code are ssh's own
    except OSError as error:
        raise ProvisionerError(
            f"ssh cannot be run: {error.strerror}", hint="install the OpenSSH client (`apt-get install openssh-client`)"
        ) from error


def ssh_words(cluster: Cluster, workspace: Workspace, node: Node) -> list[str]:
    """The command line of ssh(1) to a machine, without what is to be run there.

    Raises:
        SshError: its host key is not on record yet, and the machine cannot be reached to record it.
    """
    from provisioner.display import waiting  # noqa: PLC0415
    from provisioner.ssh import Connections, openssh_args  # noqa: PLC0415
    from provisioner.ssh.known_hosts import KnownHosts  # noqa: PLC0415
    from provisioner.ssh.target import bastion_of, target_of  # noqa: PLC0415

    known = KnownHosts(workspace.known_hosts)
    targets = [target_of(cluster, workspace, node), bastion_of(cluster, workspace)]
    if not all(known.keys_of(target.host, target.port) for target in targets if target):
        # ssh(1) is told to refuse keys that are not on record: look at the machine once in our own way, which records its key
        with Connections(cluster, workspace) as connections, waiting(console, f"connecting to {node.name}"):
            connections.connect(node)
    return ["ssh", *openssh_args(cluster, workspace, node), node.address]
