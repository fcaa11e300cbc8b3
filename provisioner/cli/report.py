"""`provisioner report`."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provisioner.cli.backup_keys import require_built
from provisioner.cli.common import ClusterOption, JsonOption, console, open_cluster, output, print_json
from provisioner.errors import BadInput, ExitCode
from provisioner.workspace import Workspace, write_atomic

if TYPE_CHECKING:
    from provisioner.config import Cluster
    from provisioner.pages import Page
    from provisioner.report import Report


def report(
    cluster: ClusterOption = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page there, in one step.")] = None,
    as_json: JsonOption = False,
) -> None:
    """The cluster on one page: how it is now, the last verify and the last run as they are on record. Changes and tries nothing.

    Machines, etcd, pods, certificates and versions are asked for; what does not answer is said in its place. Exit 0: it could
    report, problems or not; 1: no machine can be reached.
    """
    if html is None and not as_json:
        raise BadInput(
            "a report goes into a file, or to standard output as JSON", hint="`provisioner report --html report.html`, or --json"
        )
    from provisioner.display import waiting  # noqa: PLC0415 - keeps `--help` and completion quick

    loaded, workspace = open_cluster(cluster)
    require_built(workspace)
    require_place(html, "--html")
    with waiting(console, f"looking at all of {loaded.name}"):
        page = gather(loaded, workspace)
    if html is not None:
        write(page, html)
    if as_json:
        print_json(page.to_json())
    elif html is not None:
        output.print(f"{html}: {_verdict(page)}", markup=False)
    raise typer.Exit(ExitCode.OK if page.status.reached else ExitCode.FAILURE)


def require_place(file: Path | None, option: str, *, in_place: bool = False) -> None:
    """Before anything is asked, for that may take minutes: whether the file can come to be.

    Args:
        in_place: what is there is written to, which may be /dev/stdout; otherwise a file takes its place.

    Raises:
        BadInput: its directory is missing or cannot be written to, or what is there is no file.
    """
    if file is None:
        return
    target = file.resolve()
    if not target.parent.is_dir():
        raise BadInput(f"{file.parent}: no such directory", hint=f"make it, or name another file with {option}")
    if file.is_dir():
        raise BadInput(f"{file}: a directory", hint=f"name a file with {option}")
    if not in_place and file.exists() and not file.is_file():
        raise BadInput(f"{file}: a device or a pipe, which a file would replace", hint=f"name a file with {option}")
    open_to_us = (file, os.W_OK) if in_place and file.exists() else (target.parent, os.W_OK | os.X_OK)
    if not os.access(*open_to_us, effective_ids=True):
        raise BadInput(f"{file}: nothing can be written there", hint=f"name another file with {option}, or mend {open_to_us[0]}")


def gather(cluster: Cluster, workspace: Workspace, *, verified: Report | None = None) -> Page:
    """Everything on the page; ``verified`` where `verify` has just run."""
    from provisioner import pages, pki  # noqa: PLC0415 - keeps `--help` and completion quick
    from provisioner.ssh import Connections  # noqa: PLC0415
    from provisioner.status import CONNECT_SECONDS  # noqa: PLC0415

    keys = pki.read(workspace.pki, now=dt.datetime.now(dt.UTC))
    with Connections(cluster, workspace, seconds=CONNECT_SECONDS) as connections:
        return pages.gather(cluster, workspace, connections, keys, report=verified)


def write(page: Page, file: Path) -> None:
    """The page as a file; it holds no secret, and is for others to read."""
    from provisioner import pages  # noqa: PLC0415

    # where it is a link, it stays one
    write_atomic(file.resolve(), pages.render(page), mode=0o644)


def _verdict(page: Page) -> str:
    from provisioner.pages import tables  # noqa: PLC0415

    return tables.verdict(page)[1]
