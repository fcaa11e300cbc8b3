"""The phases of `apply`, as data, and the one function that runs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from provisioner import leave, runner, steps
from provisioner import session as sessions
from provisioner.errors import BadInput
from provisioner.events import TaskStep
from provisioner.inventory import is_vital
from provisioner.plays import play, refuse_failures, set_aside
from provisioner.render import ROLES
from provisioner.session import Session


@dataclass(frozen=True, slots=True)
class Phase:
    """One step of `apply`. Those without ``run`` are playbooks of the same name; neighbours share one Ansible process.

    ``alongside`` names a playbook phase with which this phase runs at the same time, once the one before it is through;
    ``needs`` names one without which this phase could not do its work, so that it is never run alone. ``wanted`` tells whether
    there is anything to do for a phase that most runs go without.
    """

    name: str
    title: str
    run: Callable[[Session], Session] | None = None
    alongside: str = ""
    needs: str = ""
    wanted: Callable[[Session], bool] | None = None


LOOK = (
    Phase("preflight", "Look at the machines", sessions.look),
    Phase("artifacts", "Have every artifact at hand", sessions.fetch),
    Phase("pki", "Issue certificates", sessions.issue),
    Phase("state", "Compare with what is there", steps.read_state),
)
CHANGE = (
    Phase("packages", "Install the distribution's packages", steps.install_packages, wanted=steps.lacks_packages),
    Phase("bundles", "Pack what the machines lack", steps.prepare, needs="packages"),
    Phase("machines", "Prepare the machines", needs="bundles"),
    # before the playbook that may restart members: whoever joins must not find the quorum at its edge
    Phase("members", "Change etcd's member list", steps.change_members, needs="machines", wanted=steps.changes_members),
    Phase("etcd", "Run etcd"),
    Phase("control_plane", "Run the control plane"),
    Phase("objects", "Apply the cluster's own objects", steps.apply_objects, alongside="nodes"),
    # new kubelets join with tokens, which are objects
    Phase("nodes", "Run the nodes", needs="objects"),
    Phase("settle", "Wait for every node", steps.settle),
    # with everything that stays in its place: pods have where to go
    Phase("drain", "Drain the machines that leave", leave.drain_all, wanted=leave.is_wanted),
    Phase("leave", "Let the machines go", leave.leave_all, needs="drain", wanted=leave.is_wanted),
    Phase("verify", "Prove the cluster works", steps.prove),
)


def run(session: Session, phases: Iterable[Phase]) -> Session:
    """Run phases in order; playbooks next to each other in one go.

    Raises:
        ApplyError: with host, task, reason, the unit's last journal lines, and the command that continues.
    """
    given = list(phases)
    todo = [phase for phase in given if phase.wanted is None or phase.wanted(session)]
    for phase in given:
        if phase not in todo:
            session.display.finish(phase.name, state="skipped")
    while todo:
        phase = todo[0]
        if phase.run is not None and not phase.alongside:
            session = _python(session, phase)
            todo.pop(0)
            continue
        batch = [phase]
        while len(batch) < len(todo) and (todo[len(batch)].run is None or todo[len(batch)].alongside):
            batch.append(todo[len(batch)])
        session = _playbooks(session, batch)
        todo = todo[len(batch) :]
    return session


def _python(session: Session, phase: Phase) -> Session:
    assert phase.run is not None  # noqa: S101 - the caller has looked
    session.display.start(phase.name)
    session.workspace.record("phase", phase=phase.name, state="started")
    try:
        result = phase.run(session)
    except BaseException as error:
        session.display.finish(phase.name, state="failed")
        session.workspace.record("phase", phase=phase.name, state="failed", error=str(error))
        raise
    session.display.finish(phase.name)
    session.workspace.record("phase", phase=phase.name, state="done")
    return result


def _playbooks(session: Session, batch: list[Phase]) -> Session:
    """A row of playbooks, and the Python phases that run alongside them; returns the session without who was set aside."""
    plays = {play: phase.name for phase in batch if phase.run is None for play in runner.plays_of(phase.name)}
    companions = {phase.alongside: _Companion(session, phase) for phase in batch if phase.run is not None}
    order = [phase.name for phase in batch if phase.run is None]
    current = ""

    def ended(phase: str, state: str) -> None:
        session.display.finish(phase, state=state)
        session.workspace.record("phase", phase=phase, state=state)

    def on_step(step: TaskStep) -> None:
        nonlocal current
        name = plays.get(step.play, "")
        if name and name != current:
            if current:
                ended(current, "done")
            current = name
            session.display.start(name)
            session.workspace.record("phase", phase=name, state="started")
            for phase in order[: order.index(name) + 1]:
                if phase in companions:
                    companions[phase].start()
        session.display.step(step)

    tally = None
    try:
        if order and any(session.plan.hosts_of(role.name) for role in ROLES):
            tally = play(session, tuple(order), on_step=on_step)
    finally:
        # what failed alongside is the cause of what failed in the playbooks, so it is raised first
        for companion in companions.values():
            companion.join()
    if current:
        ended(current, "failed" if tally and tally.failures else "done")
    if tally:
        # first who was set aside: where too many were, they are part of the story
        session = set_aside(session, tally.aside.values())
        refuse_failures(tally, session)
    for name in order:
        session.display.finish(name, state="skipped")
    for companion in companions.values():
        companion.start()
        companion.join()
    return session


class _Companion:
    """A Python phase in a thread of its own, beside a playbook."""

    def __init__(self, session: Session, phase: Phase) -> None:
        self._session, self._phase = session, phase
        self._thread = threading.Thread(target=self._run, name=phase.name, daemon=True)
        self._started = False
        self._error: BaseException | None = None

    def start(self) -> None:
        """Begin, once."""
        if not self._started:
            self._started = True
            self._thread.start()

    def _run(self) -> None:
        try:
            _python(self._session, self._phase)
        except BaseException as error:  # handed to the main thread by join()
            self._error = error

    def join(self) -> None:
        """Wait for the end, where it has begun; raise what it raised."""
        if self._started:
            self._thread.join()
        if self._error:
            raise self._error


def names() -> tuple[str, ...]:
    """Every phase, for --from and --only."""
    return tuple(phase.name for phase in CHANGE)


def choose(*, only: str | None = None, start: str | None = None, skip_verify: bool = False) -> tuple[Phase, ...]:
    """The phases of a run, with those that the chosen ones need.

    Args:
        only: this phase alone.
        start: this phase and all that follow.
        skip_verify: leave out the proof at the end.

    Raises:
        BadInput: there is no such phase.
    """
    for wanted in (only, start):
        if wanted is not None and wanted not in names():
            raise BadInput(f"there is no phase {wanted!r}", hint=f"the phases are {', '.join(names())}")
    chosen = {only} if only else set(names()[names().index(start) :]) if start else set(names())
    for phase in reversed(CHANGE):
        if phase.name in chosen and phase.needs:
            chosen.add(phase.needs)
    return tuple(phase for phase in CHANGE if phase.name in chosen and not (skip_verify and phase.name == "verify"))


# What must be as cluster.yaml says before a control plane or a member of etcd may leave.
_BEFORE_LEAVING = ("machines", "members", "etcd", "control_plane", "nodes")


def refuse_partial(session: Session, chosen: Iterable[Phase]) -> None:
    """Do not let a control plane or a member of etcd go in a run that leaves out what must come first. Pure.

    Raises:
        BadInput: names the machine and the phases.
    """
    names = {phase.name for phase in chosen}
    vital = [leaver.name for leaver in leave.departing(session) if is_vital(leaver.node)]
    pending = {change.role for change in session.plan.changes} - {leave.ROLE, "objects", "settle"}
    missing = [name for name in _BEFORE_LEAVING if name not in names]
    if vital and missing and pending and "leave" in names:
        raise BadInput(
            f"{', '.join(vital)} cannot leave in a run without the phases {', '.join(missing)}: other machines count on it still",
            hint="run `provisioner apply` without --only and --from",
        )


__all__ = ["CHANGE", "LOOK", "Phase", "choose", "names", "refuse_partial", "run"]
