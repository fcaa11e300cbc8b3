"""`provisioner certs`: the cluster's certificates."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from provisioner.cli.backup_keys import require_built
from provisioner.cli.common import ClusterOption, JsonOption, YesOption, console, open_cluster, print_json
from provisioner.cli.rotate_ca import rotate_ca
from provisioner.cli.run import DeadlineOption, limited
from provisioner.errors import ProvisionerError
from provisioner.terminal import wide

if TYPE_CHECKING:
    from provisioner.certs.model import Row

# More names than these are in the table.
_SHOWN = 5

app = typer.Typer(help="The cluster's certificates, wherever they are.", no_args_is_help=True)


@app.callback()
def certs() -> None:
    """The cluster's certificates, wherever they are."""


@app.command()
def status(
    cluster: ClusterOption = None,
    within: Annotated[
        int, typer.Option("--within", metavar="DAYS", min=0, help="Fail (exit code 1) where one ends within so many days.")
    ] = 30,
    as_json: JsonOption = False,
    deadline: DeadlineOption = None,
) -> None:
    """Every certificate in every place: on the controller, in files on machines, and as servers really show them.

    Changes nothing. Exit 1: one ends within --within days, is expired, missing, of another CA, or served though its file is another
    by now; or a machine does not answer.
    """
    from provisioner import pki  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.certs import look  # noqa: PLC0415
    from provisioner.certs.model import by_days  # noqa: PLC0415
    from provisioner.display import waiting  # noqa: PLC0415
    from provisioner.ssh import Connections  # noqa: PLC0415

    loaded, workspace = open_cluster(cluster)
    require_built(workspace)
    now = dt.datetime.now(dt.UTC)
    keys = pki.read(workspace.pki, now=now)
    with (
        limited(deadline, "`provisioner certs status` again"),
        Connections(loaded, workspace) as connections,
        waiting(console, f"looking at every certificate of {loaded.name}"),
    ):
        found = look(loaded, workspace, connections, keys, now=now)
    rows, ending = by_days(found.rows, now), found.ending(within)
    if as_json:
        print_json(
            {
                "cluster": loaded.name,
                "within": within,
                "rotation": keys.rotation.to_json() if keys.rotation else None,
                "certificates": [row.to_json(now) for row in rows],
                "silent": [{"machine": machine, "reason": reason} for machine, reason in found.silent],
            }
        )
    else:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for column in ("machine", "certificate", "days left", "state", "where"):
            table.add_column(column, no_wrap=column != "where", justify="right" if column == "days left" else "left")
        for row in rows:
            days = row.days_left(now)
            style = "red" if row.state.is_wrong or row in ending else "yellow" if row.state.value == "due" else ""
            where = f"{row.where}: {row.problem}" if row.problem else row.where
            table.add_row(row.machine, row.name, "" if days is None else f"{days:.0f}", row.state.value, where, style=style)
        wide(200).print(table)
    if keys.rotation:
        console.print(f"[yellow]warning:[/] {keys.rotation.notice}")
    for machine, reason in found.silent:
        console.print(f"{machine}: does not answer: {reason}", markup=False)
    _refuse([*dict.fromkeys((*found.wrong, *ending))], len(rows), [machine for machine, _ in found.silent])


@app.command()
def renew(
    cluster: ClusterOption = None,
    yes: YesOption = False,
    skip_verify: Annotated[bool, typer.Option("--skip-verify", help="Do not prove the cluster at the end.")] = False,
    as_json: JsonOption = False,
    deadline: DeadlineOption = None,
) -> None:
    """Issue every certificate anew, with the same CAs, put all copies in place, and restart what must be, one machine at a time.

    Keys are new too. Any `apply` does this for certificates that end within 90 days; kubelets renew their client certificates
    themselves. Shows the plan, with what differs from cluster.yaml otherwise, and asks. Killed half way, `apply` goes on.
    """
    from provisioner.cli.cluster import apply_cluster  # noqa: PLC0415 - keeps `--help` quick

    loaded, workspace = open_cluster(cluster)
    require_built(workspace)
    apply_cluster(loaded, workspace, yes=yes, skip_verify=skip_verify, as_json=as_json, deadline=deadline, renew=True)


app.command("rotate-ca")(rotate_ca)


def _refuse(wrong: Sequence[Row], count: int, silent: Sequence[str]) -> None:
    """End with what needs care, if anything does."""
    said = []
    if wrong:
        names = [f"{row.name} on {row.machine} ({row.state.value})" for row in wrong[:_SHOWN]]
        said.append(f"{len(wrong)} of {count} certificates need care: {', '.join(names)}{' …' if len(wrong) > _SHOWN else ''}")
    if silent:
        said.append(f"no answer from {', '.join(silent)}")
    if said:
        raise ProvisionerError(
            "; ".join(said),
            hint="`provisioner apply` issues what is due, expired, missing or of another CA, and restarts what serves an older one",
        )
