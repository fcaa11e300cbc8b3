"""What plan, apply, up and the commands about single nodes share: a session, the plan for people, the question, the run."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from provisioner.cli.common import console, output, print_json
from provisioner.cli.ending import hear_ctrl_c
from provisioner.errors import STOPPED, ApplyError, BadInput, ExitCode, Interrupted, ProvisionerError
from provisioner.plan import CLUSTER, Change, Plan
from provisioner.words import count
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from provisioner.config import Cluster
    from provisioner.phases import Phase
    from provisioner.session import Session

DeadlineOption = Annotated[
    float | None,
    typer.Option(
        "--deadline",
        metavar="SECONDS",
        min=1,
        help="Stop cleanly after so many seconds; the message says how to go on. Default: no limit.",
        show_default=False,
    ),
]


AGAIN = "`provisioner apply` goes on where this run stopped"


@contextmanager
def open_session(
    cluster: Cluster, workspace: Workspace, command: str, *, deadline: float | None = None, again: str = AGAIN
) -> Iterator[Session]:
    """Everything a run needs: the workspace's lock, connections, a log directory of its own.

    Args:
        cluster: cluster.yaml.
        workspace: held for this command alone.
        command: for the lock, the journal and the log.
        deadline: seconds after which it is stopped, as by Ctrl-C.
        again: how a run that was stopped goes on.

    Raises:
        Interrupted: Ctrl-C.
        ProvisionerError: the deadline has passed; or what the run itself raises.
    """
    from provisioner import leftovers  # noqa: PLC0415 - quick --help
    from provisioner.artifacts import load_lock  # noqa: PLC0415
    from provisioner.display import display_for  # noqa: PLC0415
    from provisioner.runner import control_sockets  # noqa: PLC0415
    from provisioner.session import Session  # noqa: PLC0415
    from provisioner.ssh import Connections  # noqa: PLC0415

    log = workspace.logs / f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S.%f}-{command.replace(' ', '-')}"
    with (
        workspace.lock(command),
        leftovers.swept(workspace),
        Connections(cluster, workspace) as connections,
        control_sockets(workspace.sockets) as sockets,
    ):
        log.mkdir(parents=True, mode=0o700)
        workspace.record("run", command=command, argv=sys.argv[1:], log=str(log))
        display = display_for(console)
        session = Session(cluster, workspace, connections, load_lock(), display, log, sockets)
        try:
            with limited(deadline, again), display.running():
                yield session
        except ProvisionerError as error:
            workspace.record("failed", command=command, error=error.message, exit=int(error.exit_code))
            raise
        except typer.Exit:
            # an answer: `upgrade --plan` has changes to make
            workspace.record("done", command=command)
            raise
        except Exception as error:
            # a terminal that was closed, a full disk, a bug: that it ended is on record all the same
            workspace.record("failed", command=command, error=f"{type(error).__name__}: {error}", exit=int(ExitCode.FAILURE))
            raise
        workspace.record("done", command=command)


@contextmanager
def limited(seconds: float | None, again: str) -> Iterator[None]:
    """A block that is stopped at its deadline, as by Ctrl-C.

    Args:
        seconds: None for no deadline.
        again: how to go on.

    Raises:
        Interrupted: Ctrl-C.
        ProvisionerError: the deadline has passed.
    """
    with _alarm(seconds) as expired:
        try:
            yield
        except (KeyboardInterrupt, Interrupted, typer.Abort) as error:
            if expired.is_set():
                raise ProvisionerError(f"not done within {seconds:g} s, and stopped", hint=again) from None
            if isinstance(error, Interrupted) and (error.hint or error.message != STOPPED):
                raise
            raise Interrupted(STOPPED, hint=again) from None


@contextmanager
def _alarm(seconds: float | None) -> Iterator[threading.Event]:
    """At the deadline, what Ctrl-C does: the one way to stop that every part of a run knows."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(seconds or 0, expire)
    timer.daemon = True
    if seconds:
        hear_ctrl_c()
        timer.start()
    try:
        yield expired
    finally:
        timer.cancel()


def converge(
    session: Session,
    chosen: Sequence[Phase],
    *,
    yes: bool,
    before: Callable[[], None] = lambda: None,
    quiet: bool = False,
) -> tuple[Session, bool]:
    """Look, show the plan and ask, then make it so.

    Args:
        session: a fresh one.
        chosen: the phases that change.
        yes: do not ask.
        before: done once the answer is yes, before the first change.
        quiet: standard output is for one JSON document: the plan goes to standard error.

    Returns:
        the session at the end, and whether there was anything to do.

    Raises:
        ProvisionerError: some phase failed; the message says how to go on.
    """
    from provisioner import members, phases, registry  # noqa: PLC0415
    from provisioner.session import adopt, discard  # noqa: PLC0415

    refuse_interrupted_restore(session.workspace)
    session.display.plan([(phase.name, phase.title) for phase in phases.LOOK])
    with session.workspace.untouched() as scratch:
        looked = phases.run(replace(session, workspace=scratch), phases.LOOK)
        if pointless := [looked.set_aside[name] for name in sorted(looked.removal.insist & looked.set_aside.keys())]:
            first = pointless[0]
            raise ApplyError(f"{first.message}; nothing was changed", hint=first.hint, details=first.details)
        phases.refuse_partial(looked, chosen)
        if looked.plan:
            if looked.scope is None:
                members.refuse_quorum_loss(looked, members.listing(looked))
            if not yes:
                ask(looked, console if quiet else output)
        looked = adopt(looked, session.workspace)
    # on record first: whoever is in neither file would be lost
    registry.remember(session.workspace, (*looked.nodes, *looked.removal.unrecorded))
    before()
    if not looked.plan:
        return looked, False
    session.display.plan([(phase.name, phase.title) for phase in chosen])
    try:
        done = phases.run(looked, chosen)
    finally:
        discard(looked)
    session.workspace.record("seconds", **session.display.seconds())
    return done, True


def refuse_interrupted_replacement(workspace: Workspace) -> None:
    """`node replace` under one name has let the old machine go, and was cut short before the new one had come: `apply` would
    take the old one back.

    Raises:
        ProvisionerError: with the command that goes on.
    """
    if workspace.replacing.exists():
        raise ProvisionerError(
            f"`{workspace.replacing.read_text().strip()}` was cut short: nothing was changed",
            hint=f"run it again; or delete {workspace.replacing} to have the old machine back",
        )


def refuse_interrupted_restore(workspace: Workspace) -> None:
    """A restore was cut short: some members may have the data of before, some of the backup.

    Raises:
        ProvisionerError: with the command that goes on.
    """
    if workspace.restoring.exists():
        command = json.loads(workspace.restoring.read_text())["command"]
        raise ProvisionerError(
            f"`{command}` was cut short, and etcd's members may have data of two times: nothing was changed",
            hint=f"run it again; or, where it had changed nothing yet, delete {workspace.restoring}",
        )


def result(session: Session) -> dict[str, Any]:
    """For --json of the commands that change a cluster."""
    return {
        "cluster": session.cluster.name,
        **session.plan.to_json(),
        "setAside": aside(session),
        "seconds": session.display.seconds(),
        "kubeconfig": str(session.workspace.kubeconfig),
    }


def aside(session: Session) -> list[dict[str, str]]:
    """The machines that were set aside, for --json."""
    return [{"name": name, "reason": error.message, "remedy": error.hint} for name, error in session.set_aside.items()]


def report(session: Session, *, changed: bool, as_json: bool) -> None:
    """The end of a run that changes a cluster.

    Raises:
        ApplyError: machines were set aside; names them.
    """
    from provisioner import steps  # noqa: PLC0415

    if as_json:
        print_json(result(session))
    if not changed and not session.set_aside and not as_json:
        console.print("nothing to do: every machine is as cluster.yaml says (changed=0)")
    steps.refuse_incomplete(session)
    if changed and not as_json:
        console.print(
            f"[green]applied[/]: {count(len(session.plan.changes), 'change')}; kubeconfig: {session.workspace.kubeconfig}"
        )


def ask(session: Session, to: Console) -> None:
    """Show the plan and ask.

    Raises:
        BadInput: nobody is there to be asked.
        Interrupted: the answer is no.
    """
    with session.display.paused():
        print_plan(session.plan, diff=False, to=to)
        if not sys.stdin.isatty():
            raise BadInput("there are changes to make, and nobody to ask", hint="`--yes` goes ahead without asking")
        if not typer.confirm("Make it so?", err=True):
            raise Interrupted("not confirmed; nothing was changed", hint="`provisioner plan` shows each change in full")


def print_plan(found: Plan, *, diff: bool, to: Console = output) -> None:
    """The plan for people: per host and role, with diffs where they may be shown."""
    if not found:
        to.print("nothing to do: every machine is as cluster.yaml says")
        return
    hosts = list(dict.fromkeys(change.host for change in found.changes))
    for host in hosts:
        changes = found.of_host(host)
        to.print(f"[bold]{escape(host)}[/]: {count(len(changes), 'change')}")
        fresh = Counter(change.role for change in changes if change.action == "create")
        for role, number in fresh.items():
            if number > 4 and not diff:
                to.print(f"  {escape(role)}: create {number} {'objects' if host == CLUSTER else 'files'}")
        for change in changes:
            if change.action == "create" and fresh[change.role] > 4 and not diff:
                continue
            _print_change(change, diff=diff, to=to)
    machines = [host for host in hosts if host != CLUSTER]
    places = [count(len(machines), "machine")] if machines else []
    places += ["in the cluster's own objects"] if CLUSTER in hosts else []
    to.print(f"{count(len(found.changes), 'change')}: {' and '.join(places)}")


def _print_change(change: Change, *, diff: bool, to: Console) -> None:
    text = f"{escape(change.role)}: {change.kind} {escape(change.what)}: {escape(change.action)}"
    # what cannot be undone stands out
    to.print(f"  [bold red]{text}[/]" if change.role == "leave" else f"  {text}")
    if diff and change.diff:
        for line in change.diff.splitlines():
            style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "dim")
            to.print(f"    [{style}]{escape(line)}[/]")
