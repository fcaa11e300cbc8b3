"""`provisioner status`."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from provisioner.cli.common import ClusterOption, JsonOption, console, open_cluster, print_json
from provisioner.errors import ExitCode
from provisioner.terminal import wide
from provisioner.words import ago

if TYPE_CHECKING:
    from provisioner.status.model import EtcdMember, Proxy, Status


def status(cluster: ClusterOption = None, as_json: JsonOption = False) -> None:
    """How the cluster is now: machines, etcd, apiservers, leases, Nodes, proxies, with every problem. Changes nothing.

    Works with whatever answers, and while another command runs. Exit 0: it could report, problems or not; 1: no machine
    can be reached.
    """
    from provisioner import pki  # noqa: PLC0415 - keeps `--help` and completion quick
    from provisioner.display import waiting  # noqa: PLC0415
    from provisioner.ssh import Connections  # noqa: PLC0415
    from provisioner.status import CONNECT_SECONDS, look  # noqa: PLC0415

    loaded, workspace = open_cluster(cluster)
    keys = pki.read(workspace.pki, now=dt.datetime.now(dt.UTC))
    with Connections(loaded, workspace, seconds=CONNECT_SECONDS) as connections, waiting(console, f"looking at {loaded.name}"):
        found = look(loaded, workspace, connections, keys)
    if as_json:
        print_json(found.to_json())
    else:
        show(found, wide(160))
    raise typer.Exit(ExitCode.OK if found.reached else ExitCode.FAILURE)


def show(found: Status, console: Console) -> None:
    """The look for people; readable at 80 columns and without colour."""
    for table in (_machines(found), _etcd(found), _control_plane(found), _nodes(found)):
        if table.row_count:
            console.print(table)
            console.print()
    if found.vip is not None:
        console.print(f"virtual address {found.vip.address}: {', '.join(found.vip.holders) or 'on no machine'}", markup=False)
    if found.backups:
        last = found.last_backup
        told = (
            f"the last good one is {ago(last.age or 0.0)} old, {last.good} on {last.node}" if last else "none went all the way yet"
        )
        console.print(f"backups by the members: {told}", markup=False)
    if found.stale:
        console.print("Nodes and leases are as an apiserver remembers them: etcd takes no reads", style="yellow", markup=False)
    if not found.problems:
        console.print(f"[bold green]{escape(found.cluster)}: no problem[/] (looked for {found.seconds:.1f} s)")
        return
    count = len(found.problems)
    console.print(
        f"[bold red]{escape(found.cluster)}: {count} problem{'s' if count > 1 else ''}[/] (looked for {found.seconds:.1f} s)"
    )
    for problem in found.problems:
        console.print(f"  {problem.host}: {problem.cause}", markup=False, soft_wrap=False)
        if problem.remedy:
            console.print(f"    remedy: {problem.remedy}", style="dim", markup=False, soft_wrap=False)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    return table


def _mark(good: bool, text: str = "ok") -> str:
    return f"[green]{escape(text)}[/]" if good else f"[bold red]{escape(text)}[/]"


def _machines(found: Status) -> Table:
    table = _table("MACHINE", "ROLES", "ADDRESS", "SSH")
    for machine in found.machines:
        state = _mark(machine.reachable, "ok" if machine.reachable else "UNREACHABLE")
        table.add_row(machine.name, ", ".join(machine.roles), machine.address, state)
    return table


def _etcd(found: Status) -> Table:
    table = _table("ETCD", "STATE", "TERM", "INDEX", "BEHIND", "DB/USED/QUOTA MiB", "ALARMS")
    for member in found.etcd.members:
        table.add_row(
            member.name,
            _state(member),
            _number(member.raft_term),
            _number(member.raft_index),
            _number(member.behind),
            "/".join("-" if size is None else f"{size:.0f}" for size in (member.db_mib, member.in_use_mib, member.quota_mib))
            if member.db_mib is not None
            else "-",
            f"[bold red]{', '.join(member.alarms)}[/]" if member.alarms else "none" if member.healthy else "-",
        )
    return table


def _state(member: EtcdMember) -> str:
    if member.healthy:
        return _mark(True, "leader" if member.leader else "learner" if member.learner else "follower")
    return _mark(False, "no leader" if member.raft_index is not None else "STRANGER" if "member list" in member.error else "DOWN")


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _control_plane(found: Status) -> Table:
    table = _table("CONTROL PLANE", "APISERVER", "LEADS")
    led: dict[str, list[str]] = {}
    for lease in found.leases:
        age = "never renewed" if lease.seconds is None else f"renewed {lease.seconds:.0f} s ago"
        led.setdefault(lease.holder, []).append(f"{lease.component}, {age}{' EXPIRED' if lease.expired else ''}")
    for server in found.apiservers:
        table.add_row(
            server.node, _mark(server.ready, "ready" if server.ready else "NOT READY"), "\n".join(led.pop(server.node, []))
        )
    for holder, components in led.items():
        table.add_row(holder or "(nobody)", "-", "\n".join(components))
    return table


def _nodes(found: Status) -> Table:
    table = _table("NODE", "STATE", "KUBELET", "ITS PROXY'S APISERVERS (SESSIONS)")
    proxies = {proxy.node: proxy for proxy in found.proxies}
    names = [node.name for node in found.nodes]
    for node in found.nodes:
        state = _mark(bool(node.ready), "Ready" if node.ready else "NOT READY")
        proxy = proxies.get(node.name)
        table.add_row(node.name, state + (" cordoned" if node.cordoned else ""), node.kubelet or "-", _backends(proxy))
    for proxy in found.proxies:
        if proxy.node not in names:
            table.add_row(proxy.node, "unknown", "-", _backends(proxy))
    return table


def _backends(proxy: Proxy | None) -> str:
    if proxy is None:
        return "-"
    if proxy.error:
        return _mark(False, "NO ANSWER")
    return ", ".join(
        escape(f"{backend.name} {'UP' if backend.up else 'DOWN'} ({backend.sessions})")
        if backend.up
        else f"[bold red]{escape(backend.name)} DOWN[/] ({backend.sessions})"
        for backend in proxy.backends
    )
