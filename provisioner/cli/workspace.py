"""`provisioner workspace export | import`: the controller's own state, from one controller to another."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from provisioner.cli.backup_keys import (
    IdentityOption,
    PassphraseOption,
    PlainOption,
    RecipientOption,
    key_of,
    refuse_existing,
    require_built,
    secret_of,
)
from provisioner.cli.common import ClusterOption, JsonOption, console, open_cluster, output, print_json
from provisioner.cli.run import DeadlineOption, limited, open_session
from provisioner.errors import BadInput
from provisioner.workspace import RESERVED, Workspace

if TYPE_CHECKING:
    from provisioner.backup.archive import Opened

_PRIVATE = ".import."
app = typer.Typer(help="Take the controller's own state to another machine.", no_args_is_help=True)


@app.command()
def export(  # noqa: PLR0917 - typer reads the options from the signature
    target: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file; must not exist.")],
    cluster: ClusterOption = None,
    recipients: RecipientOption = None,
    passphrase_file: PassphraseOption = None,
    plain: PlainOption = False,
    as_json: JsonOption = False,
    deadline: DeadlineOption = None,
) -> None:
    """Write cluster.yaml and every key that cannot be made again into one encrypted file. Asks no machine anything."""
    from provisioner import pki  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.backup import snapshot  # noqa: PLC0415

    loaded, workspace = open_cluster(cluster)
    require_built(workspace)
    refuse_existing(target)
    key = key_of(recipients or [], passphrase_file, plain=plain)
    with open_session(
        loaded, workspace, "workspace export", deadline=deadline, again="`provisioner workspace export` again"
    ) as session:
        known = replace(session, pki=pki.read(workspace.pki, now=dt.datetime.now(dt.UTC)))
        session.display.plan([("export", "Write the file")])
        session.display.start("export")
        made = snapshot.export(known, key=key, target=target.absolute())
        session.display.finish("export")
    if as_json:
        print_json({"cluster": loaded.name, "file": str(made.path), "bytes": made.bytes, "encrypted": made.sealed})
    else:
        output.print(str(made.path), markup=False)


@app.command("import")
def import_(  # noqa: PLR0917 - typer reads the options from the signature
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Of `workspace export`, or a backup.")],
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="Makes DIR/workspace/NAME.")] = Path(),
    identity: IdentityOption = None,
    passphrase_file: PassphraseOption = None,
    ca_fingerprint: Annotated[
        str | None,
        typer.Option(
            "--ca-fingerprint", metavar="SHA256", help="Refuse a file of any other CA than this cluster's.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
    deadline: DeadlineOption = None,
) -> None:
    """Make a workspace out of such a file, where the controller was lost or is another machine now. Overwrites nothing.

    Take files from people you trust: without the old workspace, nothing but the CA's fingerprint tells whose cluster it is.
    Then `apply` goes on with the cluster that runs. Where its machines were lost too: put the new addresses into cluster.yaml;
    `apply` builds the cluster anew with the same keys, and `etcd restore` brings its data back.
    """
    from provisioner import leftovers  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.backup import archive, seal  # noqa: PLC0415
    from provisioner.display import waiting  # noqa: PLC0415

    secret = secret_of(file, identity or [], passphrase_file)
    parent = into / "workspace"
    parent.mkdir(parents=True, exist_ok=True)
    leftovers.sweep_private(parent, _PRIVATE)
    with (
        limited(deadline, "`provisioner workspace import` again"),
        waiting(console, f"opening {file}"),
        seal.opened(file, secret, parent=parent, prefix=_PRIVATE, ca=None) as (opened, directory),
    ):
        _refuse_other_ca(opened, ca_fingerprint, file)
        root = parent / opened.manifest.cluster
        if root.exists() and any(root.iterdir()):
            raise BadInput(
                f"{root}: there is such a workspace already; nothing was changed",
                hint="move it away, or name another place: --into",
            )
        if root.exists():
            root.rmdir()
        _arrange(opened, directory / "made").rename(root)
    if as_json:
        print_json(
            {
                "cluster": opened.manifest.cluster,
                "workspace": str(root),
                "caFingerprint": opened.manifest.ca_fingerprint,
                "hasData": opened.manifest.etcd is not None,
            }
        )
        return
    output.print(str(root / archive.CLUSTER_FILE), markup=False)
    console.print(f"the cluster's CA has the fingerprint {opened.manifest.ca_fingerprint}", markup=False)
    if (into / archive.CLUSTER_FILE).exists():
        console.print(
            f"[yellow]warning:[/] {escape(str(into / archive.CLUSTER_FILE))} is another file: name this one, "
            f"--cluster {escape(str(root))}"
        )
    console.print("look at `ssh.key` and other files that it names: they are not in the export unless they lay in the workspace")


def _refuse_other_ca(opened: Opened, wanted: str | None, file: Path) -> None:
    """Where the user knows whose it must be."""
    found = opened.manifest.ca_fingerprint
    if wanted is not None and wanted.lower().replace(":", "") != found:
        raise BadInput(
            f"{file}: its CA has the fingerprint {found}, not the one that was given; nothing was changed",
            hint="another cluster's file, or a forged one",
        )


def _arrange(opened: Opened, root: Path) -> Path:
    """The files as a workspace has them."""
    from provisioner import load  # noqa: PLC0415
    from provisioner.backup import archive  # noqa: PLC0415

    loaded = load.read(opened.files[archive.CLUSTER_FILE], exists=True).cluster
    if loaded is not None and loaded.name != opened.manifest.cluster:
        raise archive.damaged(str(root.name), f"its cluster.yaml is of {loaded.name}, its manifest of {opened.manifest.cluster}")
    Workspace(root, root / archive.CLUSTER_FILE).create()
    taken = {entry.name for entry in root.iterdir()} | RESERVED
    for name, path in opened.files.items():
        if name == archive.SNAPSHOT:
            continue
        target = root / name.removeprefix(archive.SSH)
        if name.startswith(archive.SSH) and target.name in taken:
            raise archive.damaged(str(root.name), f"a key of SSH is called {target.name}")
        target.parent.mkdir(mode=0o700, exist_ok=True, parents=True)
        path.rename(target)
    return root
