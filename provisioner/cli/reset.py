"""`provisioner reset`: machines go back to what they were before the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from provisioner.cli import complete
from provisioner.cli.common import ClusterOption, JsonOption, YesOption, confirm, console, open_cluster, output, print_json
from provisioner.errors import BadInput, ExitCode, ProvisionerError

if TYPE_CHECKING:
    from provisioner.config import Cluster, Node
    from provisioner.lifecycle.reset import ResetResult, Survey
    from provisioner.session import Session

PHASES = (("look", "Look at the machines"), ("reset", "Take the cluster off the machines"))


def reset(  # noqa: PLR0917 - typer reads the options from the signature
    nodes: Annotated[
        list[str] | None,
        typer.Argument(metavar="NODE", autocompletion=complete.nodes, help="Machines; default: all of cluster.yaml."),
    ] = None,
    cluster: ClusterOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
    force: Annotated[bool, typer.Option("--force", help="Reset some machines of a cluster that goes on running.")] = False,
    deadline: Annotated[int, typer.Option("--deadline", metavar="SECONDS", min=10, help="How long a machine may take.")] = 300,
) -> None:
    """Destroy the cluster on its machines: they go back to what they were before. Asks; names what will be lost.

    Units, containers, mounts, interfaces, packet filter rules, files and data of the cluster go; what was there before, and
    what others have put there, stays. Works on machines that are half installed or broken, and can be run again. The workspace
    with its PKI stays: a later `apply` builds the cluster anew. Machines that do not answer are named at the end (exit code 1).
    """
    from provisioner import registry  # noqa: PLC0415 - keeps `--help` quick

    loaded, workspace = open_cluster(cluster)
    chosen = _chosen(loaded, nodes or [], registry.left_out(loaded, registry.read(workspace)))
    from provisioner.cli.run import open_session  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.lifecycle import reset as resets  # noqa: PLC0415

    with open_session(loaded, workspace, "reset") as session:
        session.display.plan(PHASES)
        session.display.start("look")
        found = resets.survey(session, chosen)
        resets.refuse_foreign(found)
        if not _is_whole(loaded, chosen) and not force:
            resets.refuse_living(session, found)
        session.display.finish("look")
        with session.display.paused():
            _tell(found)
            if not any(not isinstance(one, ProvisionerError) for one in found.values()):
                _refuse_incomplete({name: one for name, one in found.items() if isinstance(one, ProvisionerError)})
            if not yes:
                confirm(_question(loaded, chosen))
        results = _wipe(session, chosen, found, deadline)
    if as_json:
        print_json(_document(loaded, found, results))
    else:
        _report(results)
    _refuse_incomplete({name: result for name, result in results.items() if isinstance(result, ProvisionerError)}, quiet=as_json)


def _chosen(cluster: Cluster, names: Sequence[str], left: Sequence[Node] = ()) -> tuple[Node, ...]:
    """The machines that are meant: by default all of the cluster, and those that cluster.yaml has just let go (``left``)."""
    every = (*cluster.nodes, *left)
    known = {node.name: node for node in every}
    if unknown := [name for name in names if name not in known]:
        raise BadInput(
            f"cluster.yaml has no machine {', '.join(unknown)}; nothing was changed", hint=f"its machines are {', '.join(known)}"
        )
    return tuple(node for node in every if not names or node.name in names)


def _is_whole(cluster: Cluster, chosen: Sequence[Node]) -> bool:
    return {node.name for node in cluster.nodes} <= {node.name for node in chosen}


def _wipe(
    session: Session, chosen: Sequence[Node], found: Mapping[str, Survey | ProvisionerError], deadline: int
) -> dict[str, ResetResult | ProvisionerError]:
    """Those that answered; the others keep the error they had."""
    from provisioner import registry  # noqa: PLC0415
    from provisioner.lifecycle import reset as resets  # noqa: PLC0415

    session.display.start("reset")
    session.workspace.record("phase", phase="reset", state="started")
    there = [node for node in chosen if not isinstance(found[node.name], ProvisionerError)]
    done = resets.wipe(session, there, seconds=deadline)
    if _is_whole(session.cluster, chosen):
        # no member has any data now, so none has that of two times
        session.workspace.restoring.unlink(missing_ok=True)
        # of some machines of a cluster that goes on, the record is what finds their Nodes when they are taken out of cluster.yaml
        registry.forget(session.workspace, *(name for name, result in done.items() if not isinstance(result, ProvisionerError)))
    results: dict[str, ResetResult | ProvisionerError] = {}
    for node in chosen:
        known = found[node.name]
        results[node.name] = known if isinstance(known, ProvisionerError) else done[node.name]
    failed = any(isinstance(result, ProvisionerError) for result in results.values())
    state = "failed" if failed else "done"
    session.display.finish("reset", state=state)
    session.workspace.record("phase", phase="reset", state=state)
    return results


def _tell(found: Mapping[str, Survey | ProvisionerError]) -> None:
    """What will be destroyed, machine by machine; on stderr, where the question will be."""
    for name, one in found.items():
        if isinstance(one, ProvisionerError):
            console.print(f"{name}: does not answer, and will stay as it is: {one.message}", markup=False)
            continue
        roles = ", ".join(role.value for role in one.node.roles)
        what = [f"of the cluster {one.cluster}" if one.cluster else "no cluster's, by its marker"]
        what += [f"runs {', '.join(unit.removesuffix('.service') for unit in one.running)}"] if one.running else []
        what += [f"{one.pods} pod{'' if one.pods == 1 else 's'}"] if one.pods else []
        what += [f"{one.etcd_mib} MiB of etcd's data"] if one.etcd_mib is not None else []
        console.print(f"{name} ({roles}): {'; '.join(what)}", markup=False)


def _question(cluster: Cluster, chosen: Sequence[Node]) -> str:
    names = ", ".join(node.name for node in chosen)
    if _is_whole(cluster, chosen):
        return f"Destroy the whole cluster {cluster.name}, with everything that is stored in it, on {names}?"
    return f"Destroy what is of the cluster {cluster.name} on {names}?"


def _report(results: Mapping[str, ResetResult | ProvisionerError]) -> None:
    for name, result in results.items():
        if isinstance(result, ProvisionerError):
            output.print(f"{name}: FAILED", markup=False)
            continue
        if not result.changed:
            output.print(f"{name}: already clean", markup=False)
            continue
        counts = ", ".join(f"{kind} {len(items)}" for kind, items in result.removed.items())
        output.print(f"{name}: clean after {result.seconds:.1f} s ({counts})", markup=False)
        for note in result.notes:
            output.print(f"  note: {note}", markup=False)


def _document(
    cluster: Cluster, found: Mapping[str, Survey | ProvisionerError], results: Mapping[str, ResetResult | ProvisionerError]
) -> dict[str, object]:
    machines: dict[str, object] = {}
    for name, result in results.items():
        before = found[name]
        machines[name] = {
            "before": None if isinstance(before, ProvisionerError) else before.to_json(),
            **(
                {"error": result.message, "details": list(result.details), "remedy": result.hint}
                if isinstance(result, ProvisionerError)
                else result.to_json()
            ),
        }
    return {"cluster": cluster.name, "machines": machines}


def _refuse_incomplete(errors: Mapping[str, ProvisionerError], *, quiet: bool = False) -> None:
    """End with the names of the machines that are not clean."""
    from provisioner.lifecycle.reset import ResetError  # noqa: PLC0415

    if not errors:
        return
    if len(errors) == 1:
        raise next(iter(errors.values()))
    if all(error.exit_code == ExitCode.PREFLIGHT_UNFIT for error in errors.values()):
        raise next(iter(errors.values()))
    raise ResetError(
        f"{', '.join(errors)}: not reset",
        hint="when they can be reached again, run `provisioner reset` again: what is clean stays as it is",
        details=() if quiet else tuple(line for error in errors.values() for line in (error.message, *error.details)),
    )
