"""CAs replaced in three passes over all machines: trust both, reissue, drop the old one.

INPUTS: a cluster as cluster.yaml says, every machine of which answers. OUTPUTS: the same cluster under new CAs, by the same name.

What a pass means is in the stored PKI (``pki.rotation``), so that the desired state follows from it, and a pass is nothing but what
`apply` does. Between two passes stands a proof: a machine that missed one would be locked out by the next. Killed at any moment, it
goes on with the pass that it was in.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from provisioner import members, phases, pki
from provisioner.certs import published, workloads
from provisioner.certs.look import look as look_at_certificates
from provisioner.certs.workloads import Survey
from provisioner.errors import ApplyError, BadInput, PreflightUnfit
from provisioner.pki import CaName, Pki, Rotation, Stage
from provisioner.pki import rotation as rotations
from provisioner.session import Session

AGAIN = f"`{rotations.COMMAND}` goes on with the pass that it was in; until then `apply` keeps the cluster in it"
# More names than these are no help.
_SHOWN = 10
_TITLES = {
    Stage.TRUST: "everyone trusts the old and the new",
    Stage.REISSUE: "every certificate anew, by the new",
    Stage.DROP: "nobody trusts the old any more",
}
_NUMBERS = {stage: number for number, stage in enumerate(Stage, 1)}


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user wants.

    Attributes:
        stop_after: end once this pass is through.
        restart: restart the workloads that have cached the old CA.
        leave_pods: go on although pods have cached it that are not restarted.
    """

    stop_after: Stage | None = None
    restart: bool = True
    leave_pods: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """What a run did.

    Attributes:
        rotation: as it is now on record; None when it is through.
        passes: those that this run went through.
        restarted: workloads.
        left: pods that have cached the old CA and were left.
        fingerprints: SHA-256 of each CA, before and after.
        seconds: of each pass.
    """

    rotation: Rotation | None
    passes: tuple[Stage, ...] = ()
    restarted: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    fingerprints: Mapping[CaName, tuple[str, str]] = field(default_factory=dict)
    seconds: Mapping[Stage, float] = field(default_factory=dict)


# Looks, and brings the machines to the present stage; returns the session at the end and whether anything was changed.
Converge = Callable[[Session], tuple[Session, bool]]


def choose(under_way: Rotation | None, only: Sequence[CaName]) -> tuple[CaName, ...]:
    """The CAs that are replaced: those named, or all; those of the rotation under way.

    Raises:
        BadInput: others than these are named.
    """
    wanted = tuple(name for name in CaName if name in (only or CaName))
    if under_way is None:
        return wanted
    if only and set(wanted) != set(under_way.cas):
        raise BadInput(
            f"{under_way.notice}; it is of no other CAs: nothing was changed",
            hint=f"`{rotations.COMMAND}` without --only ends it; then begin the next",
        )
    return under_way.cas


def look(session: Session) -> Session:
    """What differs, and who is there; changes nothing."""
    session.display.clear()
    session.display.plan([(phase.name, phase.title) for phase in phases.LOOK])
    with session.workspace.untouched() as scratch:
        looked = phases.run(replace(session, workspace=scratch, only_looks=True), phases.LOOK)
    return replace(looked, workspace=session.workspace)


def require_fit(looked: Session) -> None:
    """Refuse to begin with a cluster that is not as cluster.yaml says.

    Raises:
        PreflightUnfit: names what is in the way; nothing was changed.
    """
    reasons = [error.message for error in looked.set_aside.values()]
    reasons += [
        f"{leaver.name} is in {looked.workspace.cluster_file.name} no more, and was not let go yet" for leaver in looked.leaving
    ]
    reasons += [f"{change.host}: {change.kind} {change.what}: {change.action}" for change in looked.plan.changes]
    reasons += _strangers(looked)
    if reasons:
        raise PreflightUnfit(
            "the cluster is not as cluster.yaml says, and a CA is replaced in no other one; nothing was changed",
            hint="`provisioner apply` first; a machine that is gone for good: `provisioner node remove NAME --unreachable`",
            details=_shown(reasons),
        )


def _strangers(session: Session) -> list[str]:
    """Who is part of the cluster and would be locked out, for nobody here knows the way to it."""
    listed = members.listing(session)
    with session.api() as api:
        names = {str(node["metadata"]["name"]) for node in api.items("/api/v1/nodes")}
    unknown = sorted(names - {node.name for node in session.cluster.nodes})
    found = [f"{name} is a Node, and no machine of cluster.yaml: it would be locked out" for name in unknown]
    return found + [
        f"{name} is a member of etcd, and no machine of cluster.yaml: it would be locked out"
        for name in members.strangers(session, listed)
    ]


def preview(looked: Session, cas: Sequence[CaName]) -> Survey:
    """The pods that will have to be restarted."""
    if CaName.CLUSTER not in cas:
        return Survey({}, {})
    with looked.api() as api:
        return workloads.survey(api)


def run(session: Session, cas: Sequence[CaName], wishes: Wishes, converge: Converge) -> Done:
    """Go through the passes that are left. Whoever calls it has asked.

    Args:
        session: a fresh one, as each pass begins with.
        cas: of a rotation that is not under way yet.
        wishes: what the user wants.
        converge: brings the machines to what the stored PKI says.

    Raises:
        ProvisionerError: a pass is not through; the message says where, and how to go on.
    """
    directory = session.workspace.pki
    now = dt.datetime.now(dt.UTC)
    rotation = rotations.read(directory) or rotations.begin(session.cluster, directory, cas, now=now)
    fingerprints = _fingerprints(pki.read(directory, now=now), rotation)
    done = Done(rotation, fingerprints=fingerprints)
    while True:
        title = f"pass {_NUMBERS[rotation.stage]} of {len(Stage)}, {rotation.stage}: {_TITLES[rotation.stage]}"
        session.display.say(title)
        session.workspace.record("rotation", **rotation.to_json())
        began = time.monotonic()
        done = _pass(session, rotation, wishes, converge, done)
        seconds = {**done.seconds, rotation.stage: round(time.monotonic() - began, 1)}
        done = replace(done, passes=(*done.passes, rotation.stage), seconds=seconds)
        if rotation.stage.following is None:
            rotations.finish(directory)
            session.workspace.record("rotation", id=rotation.id, stage="done")
            return replace(done, rotation=None)
        if rotation.stage is wishes.stop_after:
            return done
        rotation = rotations.advance(directory)
        done = replace(done, rotation=rotation)


def _fingerprints(keys: Pki, rotation: Rotation) -> dict[CaName, tuple[str, str]]:
    found = {}
    for name in rotation.cas:
        signs, other = keys.cas[name].fingerprint, keys.others[name].fingerprint
        found[name] = (signs, other) if rotation.stage is Stage.TRUST else (other, signs)
    return found


def _pass(session: Session, rotation: Rotation, wishes: Wishes, converge: Converge, done: Done) -> Done:
    """One pass, and the proof that it is through everywhere."""
    session.display.clear()
    try:
        reached, changed = converge(session)
    except ApplyError as error:
        raise ApplyError(error.message, hint=f"when it is mended, {AGAIN}", details=error.details) from None
    _require_all(reached)
    if changed:
        reached = look(session)
        _require_all(reached)
    if left := [f"{change.host}: {change.kind} {change.what}: {change.action}" for change in reached.plan.changes]:
        raise ApplyError(
            f"pass {rotation.stage} is not through: {len(left)} differences are left", hint=AGAIN, details=_shown(left)
        )
    if strangers := _strangers(reached):
        raise ApplyError(
            f"pass {rotation.stage} is not through everywhere",
            hint=f"take them out (`provisioner node remove NAME`), or write them into cluster.yaml; then {AGAIN}",
            details=_shown(strangers),
        )
    keys = reached.the_pki()
    with reached.api() as api:
        if {CaName.CLUSTER, CaName.FRONT_PROXY} & set(rotation.cas):
            published.bring_about(api, keys)
        if rotation.stage is Stage.TRUST and CaName.CLUSTER in rotation.cas:
            restarted, pods = _restart(reached, rotation, wishes)
            done = replace(done, restarted=(*done.restarted, *restarted), left=pods)
    require_served(reached, rotation)
    return done


def _require_all(session: Session) -> None:
    """No machine may miss a pass.

    Raises:
        ApplyError: names those that did.
    """
    missing = [*session.set_aside, *(leaver.name for leaver in session.leaving if leaver.name not in session.set_aside)]
    if missing:
        names = ", ".join(missing)
        raise ApplyError(
            f"{names}: not in this pass, and locked out by the next one: stopped before it",
            hint=f"bring {names} back, or `provisioner node remove {missing[0]} --unreachable`; then {AGAIN}",
            details=tuple(line for error in session.set_aside.values() for line in (error.message, *error.details)),
        )


def require_served(session: Session, rotation: Rotation) -> None:
    """Ask every machine what it holds, and every server what it shows.

    Raises:
        ApplyError: a machine is silent, or something is not as this pass wants it; names it.
    """
    found = look_at_certificates(
        session.cluster, session.workspace, session.connections, session.the_pki(), now=dt.datetime.now(dt.UTC)
    )
    lines = [f"{machine}: does not answer: {reason}" for machine, reason in found.silent]
    lines += [
        f"{row.machine}: {row.name} ({row.where}): {row.state}{': ' + row.problem if row.problem else ''}" for row in found.wrong
    ]
    if lines:
        machines = list(dict.fromkeys([*(machine for machine, _ in found.silent), *(row.machine for row in found.wrong)]))
        raise ApplyError(
            f"{', '.join(machines)}: not through pass {rotation.stage}, and locked out by the next one: stopped before it",
            hint=f"bring the machine back, or look at its services; then {AGAIN}",
            details=_shown(lines),
        )


def _restart(session: Session, rotation: Rotation, wishes: Wishes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Workloads that were restarted, and pods that were left.

    Raises:
        ApplyError: pods are left that somebody else must restart.
    """
    with session.api() as api:
        written = published.since(api)

        def stale() -> Survey:
            return workloads.survey(api, written, rotation)

        restarted: tuple[str, ...] = ()
        if wishes.restart:
            restarted = tuple(map(str, workloads.restart(api, rotation, stale, session.display.say)))
        found = stale()
    lines = [f"{pod}: {workload}" for workload, pods in found.workloads.items() for pod in pods]
    lines += [f"{pod}: {why}" for pod, why in found.left.items()]
    if not lines:
        return restarted, ()
    if not wishes.leave_pods:
        raise ApplyError(
            f"{len(lines)} pods have read the old CA at their start and would lose the API: stopped before the next pass",
            hint="have their owners make them anew (delete the pods; `kubectl rollout restart`), then "
            f"`{rotations.COMMAND}` goes on; with `--leave-pods` it goes on without them",
            details=_shown(lines),
        )
    for line in lines:
        session.display.say(f"warning: left as it is, and loses the API: {line}")
    return restarted, tuple(line.partition(": ")[0] for line in lines)


def _shown(lines: Sequence[str]) -> tuple[str, ...]:
    more = len(lines) - _SHOWN
    return (*lines[:_SHOWN], *((f"and {more} more",) if more > 0 else ()))


def refuse_nothing_left(under_way: Rotation | None, stop_after: Stage | None) -> None:
    """A pass to stop after must not be over already.

    Raises:
        BadInput: it is.
    """
    if under_way and stop_after and _NUMBERS[stop_after] < _NUMBERS[under_way.stage]:
        raise BadInput(
            f"pass {stop_after} is through: the rotation is in pass {under_way.stage}; nothing was changed",
            hint=f"`{rotations.COMMAND}` goes on",
        )
