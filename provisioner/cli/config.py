"""`provisioner init`, `validate` and `schema`: the file before any machine is touched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from provisioner.choices import Preset
from provisioner.cli.common import ClusterOption, JsonOption, console, find_cluster_file, output, print_json
from provisioner.errors import BadInput, ExitCode

if TYPE_CHECKING:
    from provisioner.config import Cluster
    from provisioner.load import Loaded


def init(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to write it.", show_default=False)] = Path(),
    *,
    preset: Annotated[Preset, typer.Option(help="One machine with all roles, or three control planes and two workers.")] = "single",
    from_vagrant: Annotated[
        bool, typer.Option("--from-vagrant", help="With the running machines of the Vagrantfile in DIR or above it, else here.")
    ] = False,
    control_plane: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="With --from-vagrant: a control plane, where names like cp-1 do not tell; repeatable."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a cluster.yaml that is there.")] = False,
) -> None:
    """Write a commented cluster.yaml."""
    from provisioner import init as templates  # noqa: PLC0415 - keeps `--help` and completion quick

    if from_vagrant:
        _from_vagrant(directory, control_plane or [], force=force)
        return
    if control_plane:
        raise BadInput("--control-plane says something of Vagrant's machines only", hint="add --from-vagrant, or edit `roles`")
    target, beside = templates.write(directory, preset, force=force)
    console.print(f"wrote {escape(str(target))} and, for editors, {escape(beside.name)}")
    console.print(f"next: put your machines under `nodes`, then `provisioner validate --cluster {escape(str(target))}`")


def _from_vagrant(directory: Path, control_planes: list[str], *, force: bool) -> None:
    """Write a cluster.yaml of Vagrant's machines."""
    from provisioner import init as templates  # noqa: PLC0415 - keeps `--help` and completion quick
    from provisioner import patience  # noqa: PLC0415
    from provisioner.display import waiting  # noqa: PLC0415
    from provisioner.vagrant import clusterfile  # noqa: PLC0415

    templates.refuse_existing(directory, force=force)
    with waiting(console, "asking Vagrant, and its machines"):
        found = clusterfile.find(directory, control_planes=control_planes)
    target, beside = templates.write_text(directory, found.text)
    for machine in found.plan.machines:
        reached = machine.host if machine.port == 22 else f"{machine.host} port {machine.port}"
        roles = ", ".join(role.value for role in machine.roles)
        console.print(
            f"  {machine.name}: {machine.cluster_address or machine.host}, SSH at {reached} as {machine.user}; {roles}",
            markup=False,
        )
    notes = list(found.plan.notes)
    if found.absent:
        notes.append(f"not made by Vagrant, and left out: {', '.join(found.absent)}")
    if renewed := clusterfile.renew_host_keys(found, target):
        notes.append(f"made anew by Vagrant, so their new host keys are on record: {', '.join(renewed)}")
    if found.plan.emulated and patience.factor() == 1:
        notes.append(f"these machines are emulated in software: `export {patience.VARIABLE}=10` lets every command wait longer")
    for note in notes:
        console.print(f"note: {note}", markup=False)
    console.print(f"wrote {escape(str(target))} and, for editors, {escape(beside.name)}")
    where = "" if target == Path(templates.FILE_NAME) else f" --cluster {escape(str(target))}"
    console.print(f"next: `provisioner apply{where}`")


def validate(*, cluster: ClusterOption = None, as_json: JsonOption = False) -> None:
    """Check cluster.yaml and name every problem with its line."""
    from provisioner.load import lines, refusal  # noqa: PLC0415 - keeps `--help` and completion quick

    loaded = _read(cluster, as_json=as_json)
    if as_json:
        print_json(_document(loaded))
        if loaded.cluster is None:
            raise typer.Exit(ExitCode.BAD_INPUT)
        return
    if loaded.cluster is None:
        raise refusal(loaded)
    for line in lines(loaded.file, loaded.warnings):
        console.print(escape(line), style="yellow")
    output.print(f"{escape(str(loaded.file))}: OK: {escape(_summary(loaded.cluster))}")


def schema(
    *,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the reference page instead.")] = False,
) -> None:
    """Print the JSON Schema of cluster.yaml, for editors."""
    from provisioner import schema as schemas  # noqa: PLC0415 - keeps `--help` and completion quick

    if markdown:
        typer.echo(schemas.reference(), nl=False)
    else:
        print_json(schemas.json_schema())


def _read(cluster: Path | None, *, as_json: bool) -> Loaded:
    """Read the file. With --json, a file that cannot be read at all is a document with one problem too."""
    from provisioner.load import read  # noqa: PLC0415 - keeps `--help` and completion quick

    try:
        return read(find_cluster_file(cluster))
    except BadInput as error:
        if not as_json:
            raise
        message = "; ".join((error.message, *error.details))
        print_json(
            {"file": None if cluster is None else str(cluster), "valid": False, "problems": [_problem("", 0, 0, "error", message)]}
        )
        raise typer.Exit(ExitCode.BAD_INPUT) from None


def _document(loaded: Loaded) -> dict[str, object]:
    problems = [_problem(item.where, item.line, item.column, item.severity, item.message) for item in loaded.problems]
    return {"file": str(loaded.file), "valid": loaded.cluster is not None, "problems": problems}


def _problem(path: str, line: int, column: int, severity: str, message: str) -> dict[str, object]:
    return {"path": path, "line": line, "column": column, "severity": severity, "message": message}


def _summary(cluster: Cluster) -> str:
    counts = {
        "control plane": len(cluster.control_planes),
        "etcd member": len(cluster.etcd_members),
        "Kubernetes node": len(cluster.kubernetes_nodes),
    }
    parts = [f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items()]
    return f"cluster {cluster.name}, Kubernetes {cluster.kubernetes.version}, {', '.join(parts)}"
