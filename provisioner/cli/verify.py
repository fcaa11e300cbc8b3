"""`provisioner verify`."""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provisioner.choices import Level
from provisioner.cli import complete
from provisioner.cli.common import ClusterOption, JsonOption, console, open_cluster, output, print_json
from provisioner.cli.report import gather, require_place, write
from provisioner.errors import BadInput, ExitCode
from provisioner.report import MARKS
from provisioner.terminal import is_live, is_tty
from provisioner.workspace import named

if TYPE_CHECKING:
    from provisioner.verify import Event


def verify(
    cluster: ClusterOption = None,
    *,
    level: Annotated[Level, typer.Option("--level", help="smoke: about ten seconds; full: everything.")] = Level.SMOKE,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="ID[,ID]",
            autocompletion=complete.checks,
            help="Only these checks and what they build on; may be repeated.",
        ),
    ] = None,
    json: JsonOption = False,
    junit: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Also write JUnit XML.")] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Also write the whole cluster's page, as `report --html` does.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option("--timeout", metavar="SECONDS", min=1, help="Of each check, instead of its own: for very slow machines."),
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the checks and do nothing.")] = False,
) -> None:
    """Prove with the official Kubernetes client that every part of the cluster works. Exit code 5 when a check fails."""
    from provisioner.verify import CHECKS, run, select  # noqa: PLC0415 - keeps `--help` quick

    names = [name.strip() for given in only or [] for name in given.split(",") if name.strip()]
    chosen = select(CHECKS, level, names)
    if show:
        listed = chosen if names else select(CHECKS, Level.FULL)
        if json:
            print_json({"checks": [{"id": check.id, "level": str(check.level), "title": check.title} for check in listed]})
            return
        for check in listed:
            output.print(f"{check.id:20} {check.level!s:6} {check.title}", markup=False)
        return
    opened, workspace = open_cluster(cluster)
    if not (workspace.pki / "cluster-ca.pem").exists():
        raise BadInput(
            f"{workspace.root}: this workspace has no certificates: no cluster was built from here",
            hint="run `provisioner apply` first, or name the right workspace with --cluster",
        )
    require_place(junit, "--junit", in_place=True)
    require_place(html, "--html")

    from provisioner import pki  # noqa: PLC0415
    from provisioner.ssh import Connections  # noqa: PLC0415

    keys = pki.ensure(opened, workspace.pki, now=dt.datetime.now(dt.UTC))
    # those of addons that are off are no part of the run
    total = sum(check.wanted(opened) for check in chosen)
    with Connections(opened, workspace) as connections, _progress(total) as on_event:
        report = run(opened, workspace, connections, keys, level=level, only=names, seconds=timeout, on_event=on_event)
    # on record first: the user's own files may fail
    if not names:
        report.save(workspace.proof)
    workspace.record("verify", level=report.level, passed=report.passed, seconds=round(report.seconds, 2))
    if junit is not None:
        with named(junit):
            junit.write_bytes(report.to_junit())
    if html is not None:
        write(gather(opened, workspace, verified=report), html)
    if json:
        print_json(report.to_json())
        if not report.passed:
            raise typer.Exit(int(ExitCode.VERIFY_FAILED))
        return
    if is_tty(sys.stdout):
        output.print(report.to_table(), soft_wrap=False)
        output.print(report.summary(), style="bold green" if report.passed else "bold red", markup=False)
    else:
        for line in report.to_lines():
            output.print(line, markup=False)
    report.raise_if_failed()


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[Event], None]]:
    """What is being tried: one live line on a terminal, a plain line for each check elsewhere."""
    running: dict[str, str] = {}
    done: list[str] = []

    def note(event: Event) -> None:
        if event.result is None:
            running[event.check.id] = event.check.title
        else:
            running.pop(event.check.id, None)
            done.append(event.check.id)

    if is_live():
        from provisioner.display import waiting  # noqa: PLC0415 - keeps `--help` quick

        with waiting(console, "verify") as say:

            def show(event: Event) -> None:
                note(event)
                say(f"verify: {len(done)} of {total}; now: {', '.join(running) or 'the last ones'};")

            yield show
        return

    def tell(event: Event) -> None:
        note(event)
        if event.result is not None:
            mark, _ = MARKS[event.result.outcome]
            console.print(f"verify {len(done)}/{total} {mark} {event.check.id} ({event.result.seconds:.1f} s)", markup=False)

    yield tell
