"""Playbooks against a session's machines: the inventory, how many hosts at a time, and failures as one readable error."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from provisioner import inventory, runner, timeline, topology
from provisioner.config import Role
from provisioner.errors import ApplyError
from provisioner.events import Failure, Tally, TaskStep
from provisioner.session import Session

# Below this many machines a change goes to one node at a time; above, to a tenth of them.
ONE_AT_A_TIME = 10


def unit_active(session: Session, host: str, unit: str) -> bool:
    """Whether a unit ran on a host when its state was read."""
    found = session.actual.get(host, {}).get("units", {}).get(unit)
    return bool(found and found["active"])


def pace(session: Session) -> dict[str, object]:
    """How many hosts each play takes at a time, and whether each waits behind its gate.

    What runs nowhere yet is started everywhere at once, and proved afterwards (a member alone has no quorum, a kubelet
    without an API server no certificate). What runs is changed one host at a time, each behind its gate.
    """
    etcd = _running(session, "etcd.service", Role.ETCD)
    apiserver = _running(session, "kube-apiserver.service", Role.CONTROL_PLANE)
    nodes = len(session.cluster.kubernetes_nodes)
    kubelet = any(unit_active(session, node.name, "kubelet.service") for node in session.cluster.kubernetes_nodes)
    return {
        # a founding member alone has no quorum to become healthy with
        "etcd_batch": 1 if etcd >= topology.quorum(len(session.cluster.etcd_members)) else "100%",
        "kube_apiserver_batch": 1 if apiserver else "100%",
        "node_batch": "100%" if not kubelet else 1 if nodes <= ONE_AT_A_TIME else "10%",
        "node_gate": kubelet,
        # of nodes that ran: more failures than these are the change's own, which is stopped before it has broken all of them
        "aside_limit": max(1, len(session.cluster.nodes_with(Role.WORKER)) // 10),
    }


def _running(session: Session, unit: str, role: Role) -> int:
    """On how many machines a unit runs; one that is set aside is not asked."""
    return sum(unit_active(session, node.name, unit) for node in session.cluster.nodes_with(role))


def play(
    session: Session,
    playbooks: tuple[str, ...],
    *,
    joins: str = "",
    on_step: Callable[[TaskStep], None] | None = None,
    check: bool = False,
    variables: Mapping[str, object] | None = None,
) -> Tally:
    """Run playbooks against the session's machines, as the plan says.

    Args:
        joins: the machine whose member is on the member list, and shall be born into it now (etcd_join.yml).
        check: Ansible's check mode: nothing is written on any machine.
        variables: instead of some of :func:`pace`'s.
    """
    interpreters = {name: facts.python for name, facts in session.facts.items()}
    # the role etcd starts what may start by itself; who must join first is left to the phase `members`
    etcd = inventory.Etcd(waiting=frozenset(join.node.name for join in session.joining), joins=joins)
    states = {name: state for name, state in session.states.items() if name not in session.set_aside}
    in_service = {name for name in states if unit_active(session, name, "kubelet.service")}
    path = inventory.write(session.cluster, session.workspace, states, interpreters, session.plan, etcd=etcd, in_service=in_service)
    with timeline.written(session.log, on_step or session.display.step) as told:
        tally = runner.play(
            playbooks,
            inventory=path,
            variables={**pace(session), **(variables or {})},
            log=session.log,
            sockets=session.sockets,
            hosts=len(states),
            on_step=told,
            check=check,
        )
    session.workspace.record(
        "playbooks",
        playbooks=playbooks,
        counts={host: dict(count) for host, count in sorted(tally.counts.items())},
        seconds={f"{play} | {task}": round(value, 2) for (play, task), value in tally.seconds.items()},
    )
    return tally


def set_aside(session: Session, failures: Iterable[Failure]) -> Session:
    """The session without workers that have failed: the others go on, and the run ends with their names."""
    gone = {failure.host: explained(failure) for failure in failures}
    for error in gone.values():
        session.display.say(f"warning: set aside: {error.message}")
    return replace(session, set_aside={**session.set_aside, **gone})


def explained(failure: Failure) -> ApplyError:
    """One machine's failure as an error: task, reason, and the unit's last journal lines."""
    return ApplyError(_headline(failure), details=tuple(_failure_lines(failure)))


def refuse_failures(tally: Tally, session: Session, *, hint: str = "") -> None:
    """Raise the run's failures as one error.

    Args:
        hint: how to go on; default: by the next `apply`.

    Raises:
        ApplyError: with host, task, reason and journal of each.
    """
    if not tally.failures:
        return
    first = tally.failures[0]
    details: list[str] = []
    for failure in tally.failures:
        details += _failure_lines(failure)
    details.append(f"the whole log: {session.log}")
    raise ApplyError(
        _headline(first),
        details=tuple(details),
        hint=hint
        or f"when it is mended, `{session.command} --cluster {session.workspace.cluster_file}` goes on where this run stopped",
    )


def _headline(failure: Failure) -> str:
    return f"{failure.host}: {failure.task or 'connect'}: {failure.reason.splitlines()[0]}"


def _failure_lines(failure: Failure) -> list[str]:
    where = f"{failure.role} : {failure.task}" if failure.role else failure.task
    lines = [f"{failure.host}: {where}: {'does not answer: ' if failure.unreachable else ''}{failure.reason}"]
    if failure.journal:
        lines.append(f"  last lines of {failure.unit} on {failure.host}:")
        lines += [f"    {line}" for line in failure.journal]
    return lines
