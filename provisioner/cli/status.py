"""`provisioner status`."""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterable, Set
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from provisioner.cli.common import ClusterOption, JsonOption, console, open_cluster, print_json
from provisioner.errors import BadInput, ExitCode
from provisioner.report import printable
from provisioner.terminal import is_tty, wide
from provisioner.words import ago

if TYPE_CHECKING:
    from provisioner.status.changes import Turn
    from provisioner.status.model import EtcdMember, Proxy, Status

# Seconds between two looks.
INTERVAL = 5.0


def status(
    cluster: ClusterOption = None,
    as_json: JsonOption = False,
    watched: Annotated[
        bool,
        typer.Option(
            "--watch", help="Look again and again until Ctrl-C, and mark what has changed. With --json: a document a line."
        ),
    ] = False,
    interval: Annotated[
        float | None,
        typer.Option(
            "--interval",
            metavar="SECONDS",
            min=0.5,
            help=f"With --watch: between two looks. Default: {INTERVAL:g}.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """How the cluster is now: machines, etcd, apiservers, leases, Nodes, proxies, with every problem. Changes nothing.

    Works with whatever answers, and while another command runs. Exit 0: it could report, problems or not; 1: no machine
    can be reached. Ctrl-C ends --watch with the exit code of its last look.
    """
    from provisioner import pki  # noqa: PLC0415 - keeps `--help` and completion quick
    from provisioner.display import waiting  # noqa: PLC0415
    from provisioner.ssh import Connections  # noqa: PLC0415
    from provisioner.status import CONNECT_SECONDS, look  # noqa: PLC0415

    if interval is not None and not watched:
        raise BadInput("--interval goes with --watch", hint="add --watch, or leave it out: a single look has no interval")
    loaded, workspace = open_cluster(cluster)
    keys = pki.read(workspace.pki, now=dt.datetime.now(dt.UTC))
    with Connections(loaded, workspace, seconds=CONNECT_SECONDS) as connections:
        if watched:
            from provisioner.cli.watch import watch  # noqa: PLC0415

            last = watch(
                lambda: look(loaded, workspace, connections, keys),
                connections.close,
                partial(parts, verdict_first=True),
                interval=INTERVAL if interval is None else interval,
                as_json=as_json,
            )
            raise typer.Exit(ExitCode.INTERRUPTED if last is None else ExitCode.OK if last.reached else ExitCode.FAILURE)
        with waiting(console, f"looking at {loaded.name}"):
            found = look(loaded, workspace, connections, keys)
    if as_json:
        print_json(found.to_json())
    else:
        show(found, wide(160))
    raise typer.Exit(ExitCode.OK if found.reached else ExitCode.FAILURE)


def show(found: Status, console: Console) -> None:
    """The look for people; readable at 80 columns and without colour."""
    for part in parts(found):
        console.print(part, soft_wrap=isinstance(part, Text))


def parts(found: Status, turns: Iterable[Turn] = (), *, verdict_first: bool = False) -> list[RenderableType]:
    """The look as what is printed, one below the other; names whose state has turned are marked.

    Args:
        verdict_first: where only the beginning may be seen.
    """
    turned = {(turn.table, turn.name) for turn in turns}
    tables = (_machines(found, turned), _etcd(found, turned), _control_plane(found, turned), _nodes(found, turned))
    drawn: list[RenderableType] = [piece for table in tables if table.row_count for piece in (table, Text(""))]
    lines: list[RenderableType] = []
    if found.vip is not None:
        lines.append(Text(f"virtual address {found.vip.address}: {printable(', '.join(found.vip.holders)) or 'on no machine'}"))
    if found.backups:
        last = found.last_backup
        told = (
            f"the last good one is {ago(last.age or 0.0)} old, {last.good} on {last.node}" if last else "none went all the way yet"
        )
        lines.append(Text(f"backups by the members: {told}"))
    if found.stale:
        lines.append(Text("Nodes and leases are as an apiserver remembers them: etcd takes no reads", style="yellow"))
    count = len(found.problems)
    verdict = f"{found.cluster}: {f'{count} problem' if count else 'no problem'}{'s' if count > 1 else ''}"
    lines.append(Text.assemble((verdict, "bold red" if count else "bold green"), f" (looked for {found.seconds:.1f} s)"))
    for problem in found.problems:
        lines.append(_indented(2, f"{problem.host}: {problem.cause}"))
        if problem.remedy:
            lines.append(_indented(4, f"remedy: {problem.remedy}", style="dim"))
    return [*lines, Text(""), *drawn] if verdict_first else [*drawn, *lines]


def _indented(columns: int, text: str, style: str = "") -> RenderableType:
    """A line on a terminal stays indented where it breaks; elsewhere it does not break, for grep."""
    if is_tty(sys.stdout):
        return Padding(Text(printable(text), style=style), (0, 0, 0, columns), expand=False)
    return Text(" " * columns + printable(text), style=style)


def _words(text: str) -> str:
    """What others have said: neither a terminal's orders nor markup."""
    return escape(printable(text))


def _marked(name: str, turned: bool) -> str:
    return f"[bold reverse]{_words(name)} *[/]" if turned else _words(name)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    return table


def _mark(good: bool, text: str = "ok") -> str:
    return f"[green]{escape(text)}[/]" if good else f"[bold red]{escape(text)}[/]"


def _machines(found: Status, turned: Set[tuple[str, str]]) -> Table:
    table = _table("MACHINE", "ROLES", "ADDRESS", "SSH")
    for machine in found.machines:
        state = _mark(machine.reachable, "ok" if machine.reachable else "UNREACHABLE")
        table.add_row(_marked(machine.name, ("machine", machine.name) in turned), ", ".join(machine.roles), machine.address, state)
    return table


def _etcd(found: Status, turned: Set[tuple[str, str]]) -> Table:
    table = _table("ETCD", "STATE", "TERM", "INDEX", "BEHIND", "DB/USED/QUOTA MiB", "ALARMS")
    for member in found.etcd.members:
        table.add_row(
            _marked(member.name, ("etcd", member.name) in turned),
            _state(member),
            _number(member.raft_term),
            _number(member.raft_index),
            _number(member.behind),
            "/".join("-" if size is None else f"{size:.0f}" for size in (member.db_mib, member.in_use_mib, member.quota_mib))
            if member.db_mib is not None
            else "-",
            f"[bold red]{_words(', '.join(member.alarms))}[/]" if member.alarms else "none" if member.healthy else "-",
        )
    return table


def _state(member: EtcdMember) -> str:
    if member.healthy:
        return _mark(True, "leader" if member.leader else "learner" if member.learner else "follower")
    return _mark(False, "no leader" if member.raft_index is not None else "STRANGER" if "member list" in member.error else "DOWN")


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


def _control_plane(found: Status, turned: Set[tuple[str, str]]) -> Table:
    table = _table("CONTROL PLANE", "APISERVER", "LEADS")
    led: dict[str, list[str]] = {}
    for lease in found.leases:
        age = "never renewed" if lease.seconds is None else f"renewed {lease.seconds:.0f} s ago"
        name = _marked(lease.component, ("leader", lease.component) in turned)
        led.setdefault(lease.holder, []).append(f"{name}, {age}{' EXPIRED' if lease.expired else ''}")
    for server in found.apiservers:
        changed = ("control plane", server.node) in turned
        table.add_row(
            _marked(server.node, changed),
            _mark(server.ready, "ready" if server.ready else "NOT READY"),
            "\n".join(led.pop(server.node, [])),
        )
    for holder, components in led.items():
        table.add_row(_words(holder) or "(nobody)", "-", "\n".join(components))
    return table


def _nodes(found: Status, turned: Set[tuple[str, str]]) -> Table:
    table = _table("NODE", "STATE", "KUBELET", "ITS PROXY'S APISERVERS (SESSIONS)")
    proxies = {proxy.node: proxy for proxy in found.proxies}
    names = [node.name for node in found.nodes]
    for node in found.nodes:
        state = _mark(bool(node.ready), "Ready" if node.ready else "NOT READY")
        proxy = proxies.get(node.name)
        changed = ("node", node.name) in turned or ("proxy", node.name) in turned
        table.add_row(
            _marked(node.name, changed),
            state + (" cordoned" if node.cordoned else ""),
            _words(node.kubelet) or "-",
            _backends(proxy),
        )
    for proxy in found.proxies:
        if proxy.node not in names:
            table.add_row(_words(proxy.node), "unknown", "-", _backends(proxy))
    return table


def _backends(proxy: Proxy | None) -> str:
    if proxy is None:
        return "-"
    if proxy.error:
        return _mark(False, "NO ANSWER")
    return ", ".join(
        f"{_words(backend.name)} UP ({backend.sessions})"
        if backend.up
        else f"[bold red]{_words(backend.name)} DOWN[/] ({backend.sessions})"
        for backend in proxy.backends
    )
