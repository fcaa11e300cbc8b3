"""`provisioner workspace export | import`: the controller's own state, from one controller to another."""

from __future__ import annotations

import datetime as dt
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

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
from provisioner.errors import BadInput
from provisioner.workspace import Workspace, private_directory

app = typer.Typer(help="Take the controller's own state to another machine.", no_args_is_help=True)


@app.command()
def export(  # noqa: PLR0917 - typer reads the options from the signature
    target: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file; must not exist.")],
    cluster: ClusterOption = None,
    recipients: RecipientOption = None,
    passphrase_file: PassphraseOption = None,
    plain: PlainOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write cluster.yaml and every key that cannot be made again into one encrypted file. Asks no machine anything."""
    from provisioner import pki  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.backup import snapshot  # noqa: PLC0415
    from provisioner.cli.run import open_session  # noqa: PLC0415

    loaded, workspace = open_cluster(cluster)
    require_built(workspace)
    refuse_existing(target)
    key = key_of(recipients or [], passphrase_file, plain=plain)
    with open_session(loaded, workspace, "workspace export", again="`provisioner workspace export` again") as session:
        known = replace(session, pki=pki.read(workspace.pki, now=dt.datetime.now(dt.UTC)))
        made = snapshot.export(known, key=key, target=target.absolute())
    if as_json:
        print_json({"cluster": loaded.name, "file": str(made.path), "bytes": made.bytes, "encrypted": made.sealed})
    else:
        output.print(str(made.path), markup=False)


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Of `workspace export`, or a backup.")],
    into: Annotated[Path, typer.Option("--into", metavar="DIR", help="Makes DIR/workspace/NAME.")] = Path(),
    identity: IdentityOption = None,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a workspace out of such a file, where the controller was lost or is another machine now. Overwrites nothing.

    Then `apply` goes on with the cluster that runs. Where its machines were lost too: put the new addresses into cluster.yaml;
    `apply` builds the cluster anew with the same keys, and `etcd restore` brings its data back.
    """
    from provisioner.backup import archive, seal  # noqa: PLC0415 - keeps `--help` quick

    secret = secret_of(file, identity or [], passphrase_file)
    into.mkdir(parents=True, exist_ok=True)
    with private_directory(into, ".import.") as directory:
        plain = file
        if seal.is_sealed(file):
            plain = directory / "archive"
            seal.unseal(file, plain, secret)
        (directory / "files").mkdir(mode=0o700)
        opened = archive.read(plain, directory / "files", ca=None, who=str(file))
        root = into / "workspace" / opened.manifest.cluster
        if root.exists() and any(root.iterdir()):
            raise BadInput(
                f"{root}: there is such a workspace already; nothing was changed",
                hint="move it away, or name another place: --into",
            )
        root.parent.mkdir(mode=0o755, exist_ok=True)
        if root.exists():
            root.rmdir()
        made = Path(directory, "made")
        Workspace(made, made / archive.CLUSTER_FILE).create()
        for name, path in opened.files.items():
            if name != archive.SNAPSHOT:
                (made / name).parent.mkdir(mode=0o700, exist_ok=True)
                shutil.move(path, made / name)
        made.rename(root)
    if as_json:
        print_json({"cluster": opened.manifest.cluster, "workspace": str(root), "hasData": opened.manifest.etcd is not None})
        return
    output.print(str(root / archive.CLUSTER_FILE), markup=False)
    console.print("look at `ssh.key` and other files that it names: they are not in the export unless they lay in the workspace")
