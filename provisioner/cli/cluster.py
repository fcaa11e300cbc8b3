"""plan, apply: thin over phases.py."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from provisioner.cli import complete
from provisioner.cli.common import ClusterOption, JsonOption, YesOption, open_cluster, print_json
from provisioner.cli.run import DeadlineOption, aside, converge, open_session, print_plan, refuse_interrupted_replacement, report
from provisioner.errors import ExitCode
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from provisioner.config import Cluster

OnlyOption = Annotated[
    str | None, typer.Option("--only", metavar="PHASE", autocompletion=complete.phases, help="Run this phase alone.")
]
FromOption = Annotated[
    str | None, typer.Option("--from", metavar="PHASE", autocompletion=complete.phases, help="Begin with this phase.")
]


def plan(
    cluster: ClusterOption = None,
    as_json: JsonOption = False,
    diff: Annotated[bool, typer.Option("--diff/--no-diff", help="Show what would change inside files.")] = True,
    deadline: DeadlineOption = None,
) -> None:
    """Show what apply would do, exactly, and change nothing. Exit 0: nothing to do; 2: changes."""
    from provisioner import phases  # noqa: PLC0415

    loaded, workspace = open_cluster(cluster)
    with open_session(loaded, workspace, "plan", deadline=deadline) as session, workspace.untouched() as scratch:
        session.display.plan([(phase.name, phase.title) for phase in phases.LOOK])
        looked = phases.run(replace(session, workspace=scratch, only_looks=True), phases.LOOK)
    found = looked.plan
    if as_json:
        print_json({**found.to_json(), "setAside": aside(looked)})
    else:
        print_plan(found, diff=diff)
    raise typer.Exit(ExitCode.PLAN_HAS_CHANGES if found else ExitCode.OK)


def apply(  # noqa: PLR0917 - options, each given by name on the command line
    cluster: ClusterOption = None,
    yes: YesOption = False,
    only: OnlyOption = None,
    start: FromOption = None,
    skip_verify: Annotated[bool, typer.Option("--skip-verify", help="Do not prove the cluster at the end.")] = False,
    as_json: JsonOption = False,
    deadline: DeadlineOption = None,
) -> None:
    """Create the cluster, or bring it to what cluster.yaml says. Resumes by itself after whatever stopped the last run.

    Machines that were taken out of cluster.yaml leave the cluster and are wiped. A worker that fails or does not answer is set
    aside: the others are done, and the exit code is 1.
    """
    loaded, workspace = open_cluster(cluster)
    apply_cluster(loaded, workspace, yes=yes, only=only, start=start, skip_verify=skip_verify, as_json=as_json, deadline=deadline)


def apply_cluster(
    cluster: Cluster,
    workspace: Workspace,
    *,
    yes: bool,
    only: str | None = None,
    start: str | None = None,
    skip_verify: bool = False,
    as_json: bool = False,
    deadline: float | None = None,
    renew: bool = False,
) -> None:
    """`apply` for a cluster at hand, or with ``renew`` `certs renew`; prints the plan and asks unless told not to.

    Raises:
        ProvisionerError: some phase failed; the message says how to go on.
    """
    from provisioner import phases  # noqa: PLC0415

    refuse_interrupted_replacement(workspace)
    chosen = phases.choose(only=only, start=start, skip_verify=skip_verify)
    with open_session(cluster, workspace, "certs renew" if renew else "apply", deadline=deadline) as session:
        done, changed = converge(replace(session, renew=renew), chosen, yes=yes, quiet=as_json)
        report(done, changed=changed, as_json=as_json)
