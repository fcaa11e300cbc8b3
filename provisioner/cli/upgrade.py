"""`provisioner upgrade`: from one Kubernetes version to another."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from provisioner.cli import complete
from provisioner.cli.backup_keys import PassphraseOption, PlainOption, RecipientOption, key_of, require_built
from provisioner.cli.common import (
    ClusterOption,
    JsonOption,
    YesOption,
    confirm,
    console,
    find_cluster_file,
    open_cluster,
    output,
    print_json,
    rewrite,
)
from provisioner.cli.run import (
    DeadlineOption,
    aside,
    open_session,
    print_plan,
    refuse_interrupted_replacement,
    refuse_interrupted_restore,
)
from provisioner.errors import BadInput, ExitCode
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from provisioner.backup.seal import Key
    from provisioner.config import Cluster
    from provisioner.session import Session
    from provisioner.upgrade import Course

MAX_VERSION = 32


class _File(NamedTuple):
    """cluster.yaml as it was read, and as it shall be once the answer is yes."""

    path: Path
    read: str
    text: str


def upgrade(  # noqa: PLR0917 - typer reads the options from the signature
    cluster: ClusterOption = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="VERSION",
            autocompletion=complete.versions,
            help="Kubernetes version, written into cluster.yaml once the answer is yes. Default: what cluster.yaml says.",
            show_default=False,
        ),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what would be done, and change nothing. Exit 0: nothing; 2: something.")
    ] = False,
    recipients: RecipientOption = None,
    passphrase_file: PassphraseOption = None,
    plain: PlainOption = False,
    no_backup: Annotated[
        bool, typer.Option("--no-backup", help="Without a backup: what goes wrong then cannot be undone.")
    ] = False,
    wave: Annotated[
        int | None,
        typer.Option(
            "--wave",
            metavar="N",
            min=1,
            help="Workers that are drained together. Default: a tenth of them, at least one.",
            show_default=False,
        ),
    ] = None,
    drain_timeout: Annotated[
        float, typer.Option("--drain-timeout", metavar="SECONDS", min=1, help="Deadline for the pods of one wave to move.")
    ] = 300.0,
    workload_timeout: Annotated[
        float,
        typer.Option(
            "--workload-timeout", metavar="SECONDS", min=1, help="Deadline after each wave for every workload to be Ready again."
        ),
    ] = 300.0,
    force: Annotated[bool, typer.Option("--force", help="Evict also pods that no controller makes anew: they are lost.")] = False,
    yes: YesOption = False,
    skip_verify: Annotated[bool, typer.Option("--skip-verify", help="Do not prove the cluster at the end.")] = False,
    as_json: JsonOption = False,
    deadline: DeadlineOption = None,
) -> None:
    """Go to another Kubernetes version, one minor version at a time, with all that goes with it: etcd, containerd, network, DNS.

    A backup first; API servers one at a time; controller managers and schedulers; then each machine's kubelet, in waves, while it
    is drained within its pods' budgets. Between waves every workload must be Ready again. A machine that fails is put back on the
    version it had, and the run ends with its name. Run again, it goes on where it stopped.
    """
    loaded, workspace, file = _wanted(cluster, to)
    require_built(workspace)
    refuse_interrupted_replacement(workspace)
    refuse_interrupted_restore(workspace)
    refuse_rotation(workspace)
    if no_backup and (recipients or passphrase_file or plain):
        raise BadInput("--no-backup goes with no key", hint="leave one of them out")
    from provisioner import upgrade as upgrades  # noqa: PLC0415 - keeps `--help` quick
    from provisioner.upgrade.run import AGAIN  # noqa: PLC0415

    patience = upgrades.Patience(drain_timeout, workload_timeout, force=force)
    with open_session(loaded, workspace, "upgrade --plan" if plan else "upgrade", deadline=deadline, again=AGAIN) as fresh:
        course = _chart(fresh, wave)
        if not course.hops:
            _nothing(fresh, course, as_json=as_json)
            return
        # what is missing is asked for before anything is on the terminal
        key = None if plan or no_backup else key_of(recipients or [], passphrase_file, plain=plain)
        looked = _look(fresh, course, only_looks=plan, ask=None if plan else lambda found: _ask(found, course, yes=yes, key=key))
        if plan:
            _show(looked, course, as_json=as_json)
            raise typer.Exit(ExitCode.PLAN_HAS_CHANGES)
        rewrite(file.path, read=file.read, text=file.text)
        done = _do(looked, course, patience, key, skip_verify=skip_verify)
    _report(done, course, as_json=as_json)


def refuse_rotation(workspace: Workspace) -> None:
    """One thing at a time: a rotation of CAs restarts the same services, and proves them by what they show.

    Raises:
        BadInput: a rotation is under way.
    """
    from provisioner.pki import rotation  # noqa: PLC0415

    under_way = rotation.read(workspace.pki)
    if under_way is not None:
        raise BadInput(f"{under_way.notice}; nothing was upgraded", hint=f"`{rotation.COMMAND}` first")


def _wanted(given: Path | None, to: str | None) -> tuple[Cluster, Workspace, _File]:
    """The cluster as it shall be, and its file.

    Raises:
        BadInput: the file or the version is wrong.
    """
    from provisioner import load  # noqa: PLC0415
    from provisioner.upgrade.pin import pinned  # noqa: PLC0415

    loaded, workspace = open_cluster(given)
    path = find_cluster_file(given)
    text = path.read_text()
    if to is None or to.removeprefix("v") == loaded.kubernetes.version:
        return loaded, workspace, _File(path, text, text)
    edited = pinned(text, to.removeprefix("v")[:MAX_VERSION])
    found = load.parse(edited, path, exists=True)
    if found.cluster is None:
        raise load.refusal(found)
    return found.cluster, workspace, _File(path, text, edited)


def _chart(session: Session, wave: int | None) -> Course:
    from provisioner import pki  # noqa: PLC0415
    from provisioner import upgrade as upgrades  # noqa: PLC0415

    return upgrades.chart(replace(session, pki=pki.read(session.workspace.pki, now=dt.datetime.now(dt.UTC))), at_once=wave)


def _look(session: Session, course: Course, *, only_looks: bool, ask: Any) -> Session:
    """The look at every machine, for the first version on the way; taken over once the answer is yes."""
    from provisioner import members, phases  # noqa: PLC0415
    from provisioner.session import adopt  # noqa: PLC0415
    from provisioner.upgrade.run import at, refuse_more  # noqa: PLC0415

    first = replace(
        session, cluster=at(session.cluster, course.hops[0].target), set_aside=course.aside, upgrading=True, only_looks=only_looks
    )
    session.display.plan([(phase.name, phase.title) for phase in phases.LOOK])
    with session.workspace.untouched() as scratch:
        looked = phases.run(replace(first, workspace=scratch), phases.LOOK)
        refuse_more(looked)
        members.refuse_quorum_loss(looked, members.listing(looked))
        if ask is None:
            return replace(looked, workspace=session.workspace)
        ask(looked)
        return adopt(looked, session.workspace)


def _ask(session: Session, course: Course, *, yes: bool, key: Key | None) -> None:
    with session.display.paused():
        for line in _lines(session, course, backup=key is not None):
            console.print(line, markup=False)
        if not yes:
            confirm(f"Upgrade {session.cluster.name} to Kubernetes {course.target}?")


def _lines(session: Session, course: Course, *, backup: bool) -> Iterator[str]:
    """The course for people."""
    from provisioner.upgrade.stages import BEFORE_NODES  # noqa: PLC0415
    from provisioner.upgrade.workloads import broken  # noqa: PLC0415

    running = course.running
    versions = sorted({*running.apiservers.values(), *running.kubelets.values()})
    yield f"{session.cluster.name}: Kubernetes {' and '.join(str(one) for one in versions)} -> {course.target}"
    if backup:
        yield "  first a backup"
    for hop in course.hops:
        moved = [
            f"{name} {session.lock.version_of(name, str(hop.target))}" for name in ("etcd", "containerd", "flannel", "coredns")
        ]
        yield f"  to {hop.target}, with {', '.join(moved)}:"
        parts = [stage.title for stage in BEFORE_NODES]
        waves = [f"drained: {', '.join(node.name for node in wave)}" for wave in course.waves]
        for line in [*waves, *reversed(parts)] if hop.back else [*parts, *waves]:
            yield f"    {line}"
    for name in course.aside:
        yield f"  warning: {name} is not Ready: it is left as it is"
    for one in course.deprecated:
        yield f"  warning: somebody asks for {one}"
    for workload in broken(course.workloads):
        yield f"  warning: {workload}: it is not waited for"


def _do(session: Session, course: Course, patience: Any, key: Key | None, *, skip_verify: bool) -> Session:
    from provisioner import registry  # noqa: PLC0415
    from provisioner import upgrade as upgrades  # noqa: PLC0415
    from provisioner.backup import snapshot  # noqa: PLC0415
    from provisioner.session import discard  # noqa: PLC0415
    from provisioner.upgrade.run import at  # noqa: PLC0415

    if key is not None:
        session.display.plan([("backup", "Back the cluster up")])
        session.display.start("backup")
        # of what has written to etcd until now: a restore compares the versions
        version = max(course.running.apiservers.values())
        snapshot.take(replace(session, cluster=at(session.cluster, version)), key=key, target=None)
        session.display.finish("backup")
    registry.remember(session.workspace, session.nodes)
    try:
        done = upgrades.carry_out(session, course, patience, skip_verify=skip_verify)
    finally:
        discard(session)
    session.workspace.record("seconds", **session.display.seconds())
    return done


def _nothing(session: Session, course: Course, *, as_json: bool) -> None:
    if as_json:
        print_json({"cluster": session.cluster.name, **course.to_json()})
    else:
        version = session.cluster.kubernetes.version
        console.print(
            f"nothing to do: API servers and kubelets run {version} (`provisioner apply` does whatever else is left)", markup=False
        )


def _show(session: Session, course: Course, *, as_json: bool) -> None:
    if as_json:
        print_json({"cluster": session.cluster.name, **course.to_json(), **session.plan.to_json()})
        return
    for line in _lines(session, course, backup=True):
        output.print(line, markup=False)
    output.print()
    print_plan(session.plan, diff=False)


def _report(session: Session, course: Course, *, as_json: bool) -> None:
    from provisioner import steps  # noqa: PLC0415

    if as_json:
        print_json(
            {"cluster": session.cluster.name, **course.to_json(), "setAside": aside(session), "seconds": session.display.seconds()}
        )
    steps.refuse_incomplete(session)
    if not as_json:
        console.print(f"[green]upgraded[/]: every machine runs Kubernetes {course.target}")
