"""`provisioner etcd snapshot | list | restore`: a cluster's state in one file, and back again."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from provisioner.cli.common import ClusterOption, JsonOption, YesOption, confirm, console, open_cluster, output, print_json
from provisioner.cli.run import DeadlineOption, limited, open_session
from provisioner.errors import ProvisionerError
from provisioner.words import ago
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from provisioner.backup.archive import Manifest, Opened
    from provisioner.backup.restore import Restored
    from provisioner.backup.seal import Secret
    from provisioner.backup.snapshot import Backup

MIB = 1 << 20
PHASES = (
    ("look", "Look at the machines"),
    ("data", "Make the backup's data ready on every member"),
    ("change", "Change over, with no API server running"),
    ("nodes", "Wait for every node"),
)


def snapshot(  # noqa: PLR0917 - typer reads the options from the signature
    cluster: ClusterOption = None,
    target: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Default: workspace/NAME/backups/NAME-TIME.backup.age.", show_default=False
        ),
    ] = None,
    recipients: RecipientOption = None,
    passphrase_file: PassphraseOption = None,
    plain: PlainOption = False,
    keep: Annotated[
        int | None,
        typer.Option(
            "--keep", metavar="N", min=1, help="Then delete all but the newest N in workspace/NAME/backups.", show_default=False
        ),
    ] = None,
    deadline: DeadlineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Back the cluster up into one file: etcd's data, the CAs and keys, cluster.yaml. Changes nothing on any machine.

    The data comes from a healthy member, and is verified. The file is encrypted, so that age or `etcd restore` opens it, for public
    keys or with a passphrase, which is asked for where none is given.
    """
    from provisioner import pki  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.backup import snapshot as snapshots  # noqa: PLC0415

    loaded, workspace = open_cluster(cluster)
    require_built(workspace)
    if target is not None:
        refuse_existing(target)
    key = key_of(recipients or [], passphrase_file, plain=plain)
    with open_session(loaded, workspace, "etcd snapshot", deadline=deadline, again="`provisioner etcd snapshot` again") as session:
        known = replace(session, pki=pki.read(workspace.pki, now=dt.datetime.now(dt.UTC)))
        session.display.plan([("backup", "Back the cluster up")])
        session.display.start("backup")
        made = snapshots.take(known, key=key, target=target and target.absolute())
        session.display.finish("backup")
        gone = snapshots.outdated(snapshots.listed(workspace), keep, made=made.path) if keep else ()
        for one in gone:
            one.path.unlink()
            session.display.say(f"{one.path.name}: deleted, older than the newest {keep}")
    if as_json:
        print_json({"cluster": loaded.name, **_row(made), "deleted": [str(one.path) for one in gone]})
    else:
        output.print(str(made.path), markup=False)


def list_(
    cluster: ClusterOption = None,
    machines: Annotated[
        bool, typer.Option("--machines", help="Also those that the members have taken by themselves, on their machines.")
    ] = False,
    as_json: JsonOption = False,
    deadline: DeadlineOption = None,
) -> None:
    """The backups in workspace/NAME/backups, the newest first. What is in an encrypted one is not known before it is opened."""
    from provisioner.backup import scheduled  # noqa: PLC0415
    from provisioner.backup import snapshot as snapshots  # noqa: PLC0415
    from provisioner.display import waiting  # noqa: PLC0415
    from provisioner.ssh import Connections  # noqa: PLC0415

    loaded, workspace = open_cluster(cluster)
    found = snapshots.listed(workspace)
    there: tuple[scheduled.OnMachine, ...] = ()
    silent: dict[str, ProvisionerError] = {}
    if machines:
        with (
            limited(deadline, "`provisioner etcd list` again"),
            Connections(loaded, workspace) as connections,
            waiting(console, "asking every member's machine"),
        ):
            there, silent = scheduled.on_machines(loaded, connections)
    if as_json:
        document: dict[str, object] = {"cluster": loaded.name, "backups": [_row(one) for one in found]}
        if machines:
            document["machines"] = [one.to_json() for one in there]
            document["silent"] = sorted(silent)
        print_json(document)
        return
    for name, error in silent.items():
        console.print(f"{name}: not asked: {error.message}", markup=False)
    for other in there:
        kind = "encrypted" if other.sealed else "NOT encrypted"
        place = f"{other.node}:{other.path}"
        output.print(f"{other.taken:%Y-%m-%d %H:%M:%S} UTC  {other.bytes / MIB:8.1f} MiB  {kind:34} {place}", markup=False)
    for one in found:
        inside = "encrypted" if one.sealed else "damaged" if one.manifest is None else f"Kubernetes {one.manifest.kubernetes}"
        output.print(f"{one.taken:%Y-%m-%d %H:%M:%S} UTC  {one.bytes / MIB:8.1f} MiB  {inside:34} {one.path}", markup=False)
    if not found and not there:
        output.print(f"no backup in {workspace.backups}; `provisioner etcd snapshot` makes one", markup=False)


def restore(  # noqa: PLR0917 - typer reads the options from the signature
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")],
    cluster: ClusterOption = None,
    identity: IdentityOption = None,
    passphrase_file: PassphraseOption = None,
    yes: YesOption = False,
    skip_verify: Annotated[bool, typer.Option("--skip-verify", help="Without the proof at the end.")] = False,
    deadline: DeadlineOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put the cluster back to a backup: everything since is lost. Asks; changes nothing before the backup is found whole.

    Every member of etcd gets the backup's data at once while no API server runs, half a minute or so; pods go on running. What the
    members held stays beside it until the next restore. On new machines `apply` comes first.
    """
    from provisioner import pki  # noqa: PLC0415
    from provisioner.backup import restore as restores  # noqa: PLC0415
    from provisioner.pki import rotation  # noqa: PLC0415

    loaded, workspace = open_cluster(cluster)
    require_built(workspace)
    # asked for before anything is on the terminal, or held
    secret = secret_of(file, identity or [], passphrase_file)
    with (
        open_session(loaded, workspace, "etcd restore", deadline=deadline, again="run the restore again: it goes on") as session,
        _open(file, workspace, secret) as (opened, _),
    ):
        known = replace(session, pki=pki.read(workspace.pki, now=dt.datetime.now(dt.UTC)))
        session.display.plan(PHASES)
        session.display.start("look")
        interpreters = restores.require_fit(known, opened)
        session.display.finish("look")
        if not yes:
            with session.display.paused():
                _tell(opened, rotation.former(workspace.pki))
                confirm(f"Put {loaded.name} back to that, and lose everything since?")
        done = restores.restore(known, opened, interpreters)
        if not skip_verify and not done.nodes_silent:
            restores.prove(replace(session, pki=pki.ensure(loaded, workspace.pki, now=dt.datetime.now(dt.UTC))))
    if as_json:
        print_json({"cluster": loaded.name, "backup": str(file), "manifest": _shown(opened.manifest), **done.to_json()})
    else:
        _report(opened, done, proved=not skip_verify and not done.nodes_silent)
    if done.nodes_silent:
        raise ProvisionerError(
            f"restored, but not proved: the kubelet of {', '.join(done.nodes_silent)} could not be started",
            hint="bring the machine back, then `provisioner apply`, which proves it; gone for good: `provisioner node remove`",
        )


def _report(opened: Opened, done: Restored, *, proved: bool) -> None:
    for name in done.nodes_deleted:
        console.print(f"{name}: its Node was in the backup, and is no machine of cluster.yaml: deleted", markup=False)
    for name in done.nodes_registered:
        console.print(f"{name}: not in the backup: registered anew", markup=False)
    output.print(
        f"restored to {opened.manifest.created:%Y-%m-%d %H:%M:%S} UTC in {done.seconds:.0f} s{', and proved' if proved else ''}; "
        f"without the API for {done.api_seconds:.0f} s",
        markup=False,
    )
    console.print("`provisioner plan` shows what differs from cluster.yaml by now", markup=False)


def _tell(opened: Opened, former: Collection[str]) -> None:
    manifest = opened.manifest
    age = dt.datetime.now(dt.UTC) - manifest.created
    if manifest.ca_fingerprint in former:
        console.print(
            "it is from before the cluster's CA was replaced: its data is taken, and the CAs stay as they are", markup=False
        )
    kind = "etcd's data alone, " if manifest.is_data else ""
    console.print(
        f"the backup: {manifest.cluster}, {kind}Kubernetes {manifest.kubernetes}, "
        f"of {manifest.created:%Y-%m-%d %H:%M:%S} UTC ({ago(age.total_seconds())} ago)",
        markup=False,
    )


def _open(file: Path, workspace: Workspace, secret: Secret) -> AbstractContextManager[tuple[Opened, Path]]:
    """The backup's files for the time of a block; found whole and of this cluster."""
    from provisioner.backup import seal, snapshot  # noqa: PLC0415
    from provisioner.pki import CaName, rotation  # noqa: PLC0415
    from provisioner.pki.store import ca_file  # noqa: PLC0415

    ca = ca_file(workspace.pki, CaName.CLUSTER).read_bytes()
    workspace.backups.mkdir(mode=0o700, exist_ok=True)
    return seal.opened(
        file, secret, parent=workspace.backups, prefix=snapshot.PRIVATE, ca=ca, former=rotation.backup_keys(workspace.pki)
    )


def _row(backup: Backup) -> dict[str, object]:
    return {
        "file": str(backup.path),
        "bytes": backup.bytes,
        "taken": backup.taken.isoformat(timespec="seconds"),
        "encrypted": backup.sealed,
        "manifest": _shown(backup.manifest) if backup.manifest else None,
    }


def _shown(manifest: Manifest) -> dict[str, object]:
    return manifest.model_dump(mode="json", by_alias=True, exclude={"files"})
