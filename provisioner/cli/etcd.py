"""`provisioner etcd`: care of a running etcd."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from provisioner.cli import backup
from provisioner.cli.common import ClusterOption, JsonOption, YesOption, confirm, console, open_cluster, output, print_json

if TYPE_CHECKING:
    from provisioner.config import Cluster
    from provisioner.etcd_api import EtcdApi

app = typer.Typer(help="Back etcd up and restore it; defragment it, cure it when it is full.", no_args_is_help=True)
app.command()(backup.snapshot)
app.command("list")(backup.list_)
app.command()(backup.restore)

MIB = 1 << 20


@app.command()
def defrag(cluster: ClusterOption = None, yes: YesOption = False, as_json: JsonOption = False) -> None:
    """Give back the room that deleted data left in etcd's database: one member at a time, the leader last.

    A member answers nobody while it is defragmented; its apiserver leaves the proxies for that time. Refused when a
    member is down.
    """
    from provisioner.display import waiting  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.lifecycle import etcd  # noqa: PLC0415

    with _members(cluster, "etcd defrag") as (loaded, apis):
        with waiting(console, "asking every member"):
            known = etcd.require_whole(apis)
        if not yes:
            sizes = ", ".join(
                f"{name} ({status.db_size / MIB:.0f} MiB, {status.db_size_in_use / MIB:.0f} in use)"
                for name, status in ((name, known[name]) for name in etcd.order(known))
            )
            console.print(f"etcd of {loaded.name}, one member at a time, in this order: {sizes}", markup=False)
            if len(known) == 1:
                console.print("it is the only member: the cluster takes no writes meanwhile", markup=False)
            confirm("Defragment?")
        with waiting(console, "defragmenting"):
            done = etcd.defragment(apis, _say)
    if as_json:
        print_json({"cluster": loaded.name, "members": etcd.rows(done)})
        return
    freed = sum(one.before - one.after for one in done)
    output.print(f"defragmented {len(done)} member{'s' if len(done) > 1 else ''}: {freed / MIB:.1f} MiB given back", markup=False)


@app.command()
def cure(cluster: ClusterOption = None, yes: YesOption = False, as_json: JsonOption = False) -> None:
    """Cure the alarm NOSPACE: etcd's database has reached its quota and refuses writes.

    Forgets the history of all keys (what they are now stays), defragments one member after another, the leader last,
    and lowers the alarm when there is room again. With no alarm there is nothing to do. The alarm CORRUPT is refused.
    """
    from provisioner.display import waiting  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.lifecycle import etcd  # noqa: PLC0415

    with _members(cluster, "etcd cure") as (loaded, apis):
        with waiting(console, "asking every member"):
            known = etcd.statuses(apis)
        alarms = etcd.raised(known)
        etcd.refuse_corrupt(alarms, known)
        if any(alarm.alarm == etcd.NOSPACE for _, alarm in alarms) and not yes:
            names = ", ".join(member for member, _ in alarms)
            console.print(
                f"alarm NOSPACE (raised by {names}): etcd's database has reached its quota, and every write to the cluster is "
                "refused until there is room and the alarm is lowered.\nTo do: forget the history of all keys (their values now "
                "stay; clients that watch from an older revision list anew), defragment one member at a time, lower the alarm.",
                markup=False,
            )
            confirm("Cure it?")
        with waiting(console, "curing etcd"):
            done = etcd.cure(apis, loaded.etcd.quota_backend_bytes, _say)
    if as_json:
        print_json({"cluster": loaded.name, **done.to_json()})
    elif done.alarms:
        output.print("cured: no alarm is raised any more, and etcd takes writes", markup=False)
    else:
        output.print("nothing to cure: no alarm is raised", markup=False)


@contextmanager
def _members(given: Path | None, command: str) -> Iterator[tuple[Cluster, tuple[EtcdApi, ...]]]:
    """Clients of every member, under the workspace's lock, and a record in the journal."""
    from provisioner import pki  # noqa: PLC0415
    from provisioner.lifecycle import etcd  # noqa: PLC0415
    from provisioner.ssh import Connections  # noqa: PLC0415

    loaded, workspace = open_cluster(given)
    keys = pki.read(workspace.pki, now=dt.datetime.now(dt.UTC))
    with workspace.lock(command), Connections(loaded, workspace) as connections:
        with etcd.opened(loaded, workspace, connections, keys) as apis:
            workspace.record("run", command=command, argv=sys.argv[1:])
            yield loaded, apis
        workspace.record("done", command=command)


def _say(line: str) -> None:
    console.print(line, markup=False)
