"""`provisioner certs rotate-ca`: thin over certs/rotate.py."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from provisioner.cli.backup_keys import require_built
from provisioner.cli.common import ClusterOption, JsonOption, YesOption, confirm, console, open_cluster, output, print_json
from provisioner.cli.run import (
    DeadlineOption,
    converge,
    open_session,
    refuse_interrupted_replacement,
    refuse_interrupted_restore,
)
from provisioner.words import count

if TYPE_CHECKING:
    from provisioner.certs.rotate import Done
    from provisioner.certs.workloads import Survey
    from provisioner.config import Cluster
    from provisioner.pki import CaName, Rotation
    from provisioner.session import Session

# More names than these are no help.
_SHOWN = 10


class Authority(StrEnum):
    """``pki.CaName``; that module takes half a second to import, which `--help` need not pay."""

    CLUSTER = "cluster"
    ETCD = "etcd"
    FRONT_PROXY = "front-proxy"


class Pass(StrEnum):
    """The passes of ``pki.Stage`` after which one may stop."""

    TRUST = "trust"
    REISSUE = "reissue"


def rotate_ca(  # noqa: PLR0917 - options, each given by name on the command line
    cluster: ClusterOption = None,
    only: Annotated[
        list[Authority] | None,
        typer.Option("--only", help="This CA; may be given several times. Default: all three.", show_default=False),
    ] = None,
    stop_after: Annotated[
        Pass | None,
        typer.Option("--stop-after", help="End once this pass is through; the command again goes on.", show_default=False),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart/--no-restart", help="Restart the workloads that have read the old CA, or leave it to you.")
    ] = True,
    leave_pods: Annotated[
        bool,
        typer.Option("--leave-pods", help="Go on although pods have read the old CA and are not restarted: they lose the API."),
    ] = False,
    yes: YesOption = False,
    skip_verify: Annotated[bool, typer.Option("--skip-verify", help="Do not prove the cluster at the end.")] = False,
    as_json: JsonOption = False,
    deadline: DeadlineOption = None,
) -> None:
    """Replace the CAs, in three rolling passes over all machines: trust both, reissue, drop the old one.

    Begins only with a cluster that is as cluster.yaml says, every machine of which answers; says what it will do, and asks. Stopped
    or killed, it goes on with the pass that it was in; meanwhile `apply` and `node` keep the cluster in that pass. Kubeconfigs that
    were handed out must be fetched anew after the first pass; client certificates of your own end with the third.
    """
    from provisioner import phases  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.certs import rotate  # noqa: PLC0415
    from provisioner.pki import CaName, Stage  # noqa: PLC0415
    from provisioner.pki import rotation as rotations  # noqa: PLC0415

    loaded, workspace = open_cluster(cluster)
    require_built(workspace)
    refuse_interrupted_replacement(workspace)
    refuse_interrupted_restore(workspace)
    under_way = rotations.read(workspace.pki)
    cas = rotate.choose(under_way, tuple(CaName(name) for name in only or ()))
    last = Stage(stop_after) if stop_after else None
    rotate.refuse_nothing_left(under_way, last)
    chosen = phases.choose(skip_verify=True)
    with open_session(loaded, workspace, "certs rotate-ca", deadline=deadline, again=rotate.AGAIN) as session:
        # nobody else holds the workspace from here on
        under_way = rotations.read(workspace.pki)
        if under_way is None:
            looked = rotate.look(session)
            rotate.require_fit(looked)
            told = _plan(loaded, cas, rotate.preview(looked, cas), restart=restart)
        else:
            told = [f"{under_way.notice}, from pass {under_way.stage} on"]
        if not yes:
            with session.display.paused():
                for line in told:
                    (console if as_json else output).print(line, markup=False)
                confirm("Replace them?" if under_way is None else "Go on?")
        wishes = rotate.Wishes(last, restart=restart, leave_pods=leave_pods)
        done = rotate.run(session, cas, wishes, lambda fresh: converge(fresh, chosen, yes=True, quiet=as_json))
        if done.rotation is None and not skip_verify:
            _prove(session)
    _report(loaded, cas, done, as_json=as_json)


def _prove(session: Session) -> None:
    from dataclasses import replace  # noqa: PLC0415

    from provisioner import pki  # noqa: PLC0415
    from provisioner.backup.restore import prove  # noqa: PLC0415

    session.display.clear()
    session.display.plan([("verify", "Prove the cluster works")])
    session.display.start("verify")
    keys = pki.ensure(session.cluster, session.workspace.pki, now=dt.datetime.now(dt.UTC))
    # pods that watch the API come back in their own time where the only API server was restarted
    prove(replace(session, pki=keys))
    session.display.finish("verify")


def _plan(cluster: Cluster, cas: Sequence[CaName], found: Survey, *, restart: bool) -> list[str]:
    """What will be done, and to whom it matters. Pure."""
    from provisioner.pki.rotation import named  # noqa: PLC0415 - keeps `--help` quick

    machines = count(len(cluster.nodes), "machine")
    lines = [
        f"replaces {named(cas)} of {cluster.name}, in three rolling passes over {machines}:",
        "  1 trust    every machine, component and kubeconfig trusts the old and the new CA",
        "  2 reissue  every certificate anew, by the new CA; kubelets ask for theirs",
        "  3 drop     the old CA is trusted no more, and its key is deleted",
    ]
    if Authority.CLUSTER.value not in cas:
        return lines
    names = [str(workload) for workload in found.workloads]
    verb = "restarted after the first pass" if restart else "NOT restarted (--no-restart), and waited for"
    lines.append(f"pods that have read the old CA: {count(len(names), 'workload')} {verb}{_listed(names)}")
    if found.left:
        lines.append(f"restarted by nobody here, and yours to make anew after the first pass:{_listed(list(found.left), sign='')}")
    lines += [
        "kubeconfigs that you have handed out or merged: fetch them anew after the first pass (`--stop-after trust` stops there)",
        "client certificates of your own that the cluster's CA has signed: of no use after the third pass",
    ]
    return lines


def _listed(names: Sequence[str], sign: str = ":") -> str:
    if not names:
        return ""
    more = len(names) - _SHOWN
    return f"{sign} {', '.join(names[:_SHOWN])}{f' and {more} more' if more > 0 else ''}"


def _report(cluster: Cluster, cas: Sequence[CaName], done: Done, *, as_json: bool) -> None:
    from provisioner.pki.rotation import named  # noqa: PLC0415 - keeps `--help` quick

    under_way: Rotation | None = done.rotation
    if as_json:
        print_json(
            {
                "cluster": cluster.name,
                "rotation": under_way.to_json() if under_way else None,
                "passes": [stage.value for stage in done.passes],
                "authorities": {name.value: {"old": old, "new": new} for name, (old, new) in sorted(done.fingerprints.items())},
                "restarted": list(done.restarted),
                "left": list(done.left),
                "seconds": {stage.value: seconds for stage, seconds in done.seconds.items()},
            }
        )
        return
    if under_way:
        console.print(f"pass {under_way.stage} is through: {under_way.notice}", markup=False)
        return
    console.print(f"[green]replaced[/]: {named(cas)}")
    for name, (old, new) in done.fingerprints.items():
        console.print(f"{name}: was {old}, is {new} (SHA-256)", markup=False)
