"""plan, apply, up, kubeconfig: thin over phases.py."""

from __future__ import annotations

import datetime as dt
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from provisioner.cli.common import ClusterOption, JsonOption, YesOption, console, open_cluster, output, print_json
from provisioner.config import Cluster
from provisioner.errors import BadInput, ExitCode, Interrupted, ProvisionerError
from provisioner.plan import CLUSTER, Plan
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from provisioner.session import Session

OnlyOption = Annotated[str | None, typer.Option("--only", metavar="PHASE", help="Run this phase alone.")]
FromOption = Annotated[str | None, typer.Option("--from", metavar="PHASE", help="Begin with this phase.")]


@contextmanager
def open_session(cluster: Cluster, workspace: Workspace, command: str) -> Iterator[Session]:
    """Everything a run needs: the workspace's lock, connections, a log directory of its own."""
    from provisioner.artifacts import load_lock  # noqa: PLC0415 - quick --help
    from provisioner.display import display_for  # noqa: PLC0415
    from provisioner.runner import control_sockets  # noqa: PLC0415
    from provisioner.session import Session  # noqa: PLC0415
    from provisioner.ssh import Connections  # noqa: PLC0415

    log = workspace.logs / f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S.%f}-{command}"
    with workspace.lock(command), Connections(cluster, workspace) as connections, control_sockets() as sockets:
        log.mkdir(parents=True, mode=0o700)
        workspace.record("run", command=command, argv=sys.argv[1:], log=str(log))
        display = display_for(console)
        session = Session(cluster, workspace, connections, load_lock(), display, log, sockets)
        try:
            with display.running():
                yield session
        except KeyboardInterrupt:
            raise Interrupted("stopped by Ctrl-C", hint="`provisioner apply` goes on where this run stopped") from None
        except ProvisionerError as error:
            workspace.record("failed", command=command, error=error.message, exit=int(error.exit_code))
            raise
        workspace.record("done", command=command)


def plan(
    cluster: ClusterOption = None,
    as_json: JsonOption = False,
    diff: Annotated[bool, typer.Option("--diff/--no-diff", help="Show what would change inside files.")] = True,
) -> None:
    """Show what apply would do, exactly, and change nothing. Exit 0: nothing to do; 2: changes."""
    from provisioner import phases  # noqa: PLC0415

    loaded, workspace = open_cluster(cluster)
    with open_session(loaded, workspace, "plan") as session:
        session.display.plan([(phase.name, phase.title) for phase in phases.LOOK])
        found = phases.run(session, phases.LOOK).plan
    if as_json:
        print_json(found.to_json())
    else:
        print_plan(found, diff=diff)
    raise typer.Exit(ExitCode.PLAN_HAS_CHANGES if found else ExitCode.OK)


def apply(
    cluster: ClusterOption = None,
    yes: YesOption = False,
    only: OnlyOption = None,
    start: FromOption = None,
    skip_verify: Annotated[bool, typer.Option("--skip-verify", help="Do not prove the cluster at the end.")] = False,
) -> None:
    """Create the cluster, or bring it to what cluster.yaml says. Resumes by itself after whatever stopped the last run."""
    loaded, workspace = open_cluster(cluster)
    apply_cluster(loaded, workspace, yes=yes, only=only, start=start, skip_verify=skip_verify)


def apply_cluster(
    cluster: Cluster,
    workspace: Workspace,
    *,
    yes: bool,
    only: str | None = None,
    start: str | None = None,
    skip_verify: bool = False,
) -> None:
    """`apply` for a cluster at hand; prints the plan and asks unless told not to.

    Raises:
        ProvisionerError: some phase failed; the message says how to go on.
    """
    from provisioner import members, phases, steps  # noqa: PLC0415
    from provisioner.session import discard  # noqa: PLC0415

    chosen = phases.choose(only=only, start=start, skip_verify=skip_verify)
    with open_session(cluster, workspace, "apply") as session:
        session.display.plan([(phase.name, phase.title) for phase in phases.LOOK])
        looked = phases.run(session, phases.LOOK)
        if not looked.plan:
            if not looked.set_aside:
                console.print("nothing to do: every machine is as cluster.yaml says (changed=0)")
            steps.refuse_incomplete(looked)
            return
        members.refuse_quorum_loss(looked, members.listing(looked))
        if not yes:
            _ask(looked)
        session.display.plan([(phase.name, phase.title) for phase in chosen])
        try:
            phases.run(looked, chosen)
        finally:
            discard(looked)
        seconds = session.display.seconds()
        workspace.record("seconds", **seconds)
        steps.refuse_incomplete(looked)
    console.print(f"[green]applied[/]: {_count(len(looked.plan.changes), 'change')}; kubeconfig: {workspace.kubeconfig}")


def _ask(session: Session) -> None:
    with session.display.paused():
        print_plan(session.plan, diff=False)
        if not sys.stdin.isatty():
            raise BadInput(
                "there are changes to make, and nobody to ask", hint="`provisioner apply --yes` goes ahead without asking"
            )
        if not typer.confirm("Make it so?", err=True):
            raise Interrupted("not confirmed; nothing was changed", hint="`provisioner plan` shows each change in full")


def print_plan(found: Plan, *, diff: bool) -> None:
    """The plan for people: per host and role, with diffs where they may be shown."""
    if not found:
        output.print("nothing to do: every machine is as cluster.yaml says")
        return
    hosts = list(dict.fromkeys(change.host for change in found.changes))
    for host in hosts:
        changes = found.of_host(host)
        output.print(f"[bold]{escape(host)}[/]: {_count(len(changes), 'change')}")
        fresh = Counter(change.role for change in changes if change.action == "create")
        for role, count in fresh.items():
            if count > 4 and not diff:
                output.print(f"  {escape(role)}: create {count} {'objects' if host == CLUSTER else 'files'}")
        for change in changes:
            if change.action == "create" and fresh[change.role] > 4 and not diff:
                continue
            output.print(f"  {escape(change.role)}: {change.kind} {escape(change.what)}: {escape(change.action)}")
            if diff and change.diff:
                for line in change.diff.splitlines():
                    style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "dim")
                    output.print(f"    [{style}]{escape(line)}[/]")
    machines = [host for host in hosts if host != CLUSTER]
    places = [_count(len(machines), "machine")] if machines else []
    places += ["in the cluster's own objects"] if CLUSTER in hosts else []
    output.print(f"{_count(len(found.changes), 'change')}: {' and '.join(places)}")


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def up(
    name: Annotated[str, typer.Option("--name", help="Name of the lab and of its cluster.")] = "lab",
    control_planes: Annotated[int, typer.Option("--control-planes", min=1)] = 1,
    workers: Annotated[int, typer.Option("--workers", min=0)] = 2,
) -> None:
    """Lab machines, a cluster on them, and the proof that it works, in one go."""
    from provisioner import lab  # noqa: PLC0415

    path = lab.up(name, control_planes=control_planes, workers=workers, progress=lambda text: console.print(escape(str(text))))
    loaded, workspace = open_cluster(path)
    apply_cluster(loaded, workspace, yes=True)
    console.print(f"try: KUBECONFIG={workspace.kubeconfig} kubectl get nodes   (remove it all: provisioner lab down --name {name})")


def kubeconfig(cluster: ClusterOption = None) -> None:
    """Print the administrator's kubeconfig on stdout, with a control plane that answers as its current context."""
    from provisioner import endpoint, pki, topology  # noqa: PLC0415
    from provisioner.kubeconfig import server_of  # noqa: PLC0415
    from provisioner.session import write_kubeconfigs  # noqa: PLC0415

    opened, workspace = open_cluster(cluster)
    path: Path = workspace.kubeconfig
    if not path.exists():
        raise BadInput(f"{path}: there is none yet", hint="`provisioner apply` makes it")
    now, urls = server_of(path.read_bytes()), tuple(topology.api_urls(opened).values())
    keys = pki.read(workspace.pki, now=dt.datetime.now(dt.UTC)) if len(urls) > 1 else None
    if keys:
        open_one = endpoint.answering(sorted(urls, key=lambda url: url != now), keys.cas[pki.CaName.CLUSTER].certificate)
        if not open_one:
            console.print("[yellow]warning:[/] no control plane answers from here; `provisioner status` looks at them through SSH")
        elif open_one != now:
            write_kubeconfigs(opened, workspace, keys, server=open_one)
    output.out(path.read_text(), end="")
