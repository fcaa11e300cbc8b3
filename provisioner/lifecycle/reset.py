"""Machines go back to what they were: a look at what would be destroyed, and the run that does it.

INPUTS: machines that answer SSH, and the CA of the workspace, which tells whose they are. OUTPUTS: machines with nothing of the
cluster on them; the workspace, its PKI above all, stays as it is.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioner import facts, inventory, preflight, runner
from provisioner.config import Cluster, Node, Role
from provisioner.errors import ApplyError, Interrupted, PreflightUnfit, ProvisionerError
from provisioner.events import Failure, Tally
from provisioner.facts import HostFacts
from provisioner.patience import stretch
from provisioner.pki import CaName
from provisioner.pki.store import ca_file, next_ca_file
from provisioner.render.footprint import footprint_of
from provisioner.session import Session
from provisioner.ssh import parallel
from provisioner.workspace import Workspace

# How long a machine may take. A healthy one is done in a quarter of a minute; a slow disk full of images takes its time.
SECONDS = 300
# How a reset goes on that was cut short or incomplete.
AGAIN = "`provisioner reset` again takes up what is left"
# What is lost with a machine: pods that run there, and etcd's data.
_LOSSES = "ls /var/lib/kubelet/pods 2>/dev/null | wc -l; du -sm /var/lib/etcd/member 2>/dev/null | cut -f1"


@dataclass(frozen=True, slots=True)
class Survey:
    """One machine before a reset.

    Attributes:
        cluster: name of the cluster that it belongs to, by its marker; empty without one.
        foreign: the cluster it belongs to is another one.
        running: units of ours that run there.
        pods: how many pods it has.
        etcd_mib: size of etcd's data; None without any.
    """

    node: Node
    facts: HostFacts
    cluster: str = ""
    foreign: bool = False
    running: tuple[str, ...] = ()
    pods: int = 0
    etcd_mib: int | None = None

    def to_json(self) -> dict[str, object]:
        """For ``--json``."""
        return {
            "cluster": self.cluster,
            "roles": [role.value for role in self.node.roles],
            "running": list(self.running),
            "pods": self.pods,
            "etcdMiB": self.etcd_mib,
        }


@dataclass(frozen=True, slots=True)
class ResetResult:
    """One machine after it.

    Attributes:
        changed: whether there was anything; a machine that was clean already is left alone.
        removed: what was found and is gone, by kind.
        notes: what the user should know: what was left on purpose, and why.
        seconds: how long the machine took.
    """

    host: str
    changed: bool
    removed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, object]:
        """For ``--json``."""
        removed = {kind: list(items) for kind, items in self.removed.items()}
        return {"changed": self.changed, "removed": removed, "notes": list(self.notes), "seconds": self.seconds}


class ResetError(ProvisionerError):
    """A machine could not be reset, or not wholly; the details say what is still there."""


def survey(session: Session, nodes: Sequence[Node]) -> dict[str, Survey | ProvisionerError]:
    """What would be destroyed, machine by machine; a machine that does not answer has its error instead. Changes nothing."""
    cluster_id = preflight.cluster_id_of(session.workspace)

    def look(node: Node) -> Survey:
        found = facts.look(session.cluster, node, session.connections)
        lines = session.connections.run(node, _LOSSES).text.split()
        marker = found.marker
        return Survey(
            node,
            found,
            cluster="" if marker is None else str(marker.get("cluster") or "of unknown name"),
            foreign=marker is not None and "id" in marker and marker["id"] != cluster_id,
            running=tuple(sorted(unit for unit, state in found.units.items() if state == "active" and unit in _SHOWN)),
            pods=int(lines[0]) if lines and lines[0].isdigit() else 0,
            etcd_mib=int(lines[1]) if len(lines) > 1 and lines[1].isdigit() else None,
        )

    return parallel(nodes, look)


_SHOWN = frozenset({"kubelet.service", "containerd.service", "etcd.service"})


def refuse_foreign(found: Mapping[str, Survey | ProvisionerError]) -> None:
    """Touch nobody else's machine.

    Raises:
        PreflightUnfit: names the machines and the clusters they belong to.
    """
    foreign = [one for one in found.values() if isinstance(one, Survey) and one.foreign]
    if foreign:
        names = ", ".join(one.node.name for one in foreign)
        raise PreflightUnfit(
            f"{names}: of another cluster; nothing was changed on any machine",
            hint="run `provisioner reset` with the workspace that made it; to reset the other machines, name them",
            details=tuple(f"{one.node.name} belongs to {one.cluster}, by {facts.MARKER}" for one in foreign),
        )


def refuse_living(session: Session, found: Mapping[str, Survey | ProvisionerError]) -> None:
    """Do not tear a machine out of a cluster that goes on without knowing.

    Raises:
        PreflightUnfit: names the machines that are part of a running cluster.
    """
    # one that has lost its marker may still be a member
    inside = [name for name, one in found.items() if isinstance(one, Survey) and (one.cluster or one.running)]
    others = tuple(node for node in session.cluster.nodes if node.name not in found)
    if not inside or not others:
        return
    known, _ = facts.gather(session.cluster, session.connections, nodes=others)
    known.update({name: one.facts for name, one in found.items() if isinstance(one, Survey)})
    if not preflight.is_running(session.cluster.etcd_members, known, preflight.cluster_id_of(session.workspace)):
        return
    lines = []
    for name in inside:
        node = session.cluster.node(name)
        member = ", a member of its etcd" if node.has(Role.ETCD) else ""
        lines.append(f"{name} is part of the cluster {session.cluster.name}, which runs{member}")
    raise PreflightUnfit(
        f"{', '.join(inside)}: part of a cluster that runs; nothing was changed",
        hint=f"`provisioner node remove {inside[0]}` takes it out of the cluster first; `--force` resets it all the same,"
        " and leaves its Node and its member of etcd behind",
        details=tuple(lines),
    )


def wipe(
    session: Session, nodes: Sequence[Node], *, seconds: int = SECONDS, again: str = AGAIN
) -> dict[str, ResetResult | ProvisionerError]:
    """Take the cluster off machines, all at a time. Destroys; whoever calls it has asked.

    Args:
        session: cluster, workspace, connections, log, sockets and display are used; no plan and no desired state.
        nodes: the machines; they need not be in cluster.yaml any more.
        seconds: how long each may take.
        again: what the user does about a machine that is not clean in the end.

    Returns:
        by name: what was removed; or why not, with what is still there. A machine that does not answer is among the latter.

    Raises:
        Interrupted: Ctrl-C; a machine may be half reset, and `reset` goes on.
        ApplyError: Ansible itself could not run.
    """
    looked = parallel(nodes, lambda node: facts.look(session.cluster, node, session.connections))
    results: dict[str, ResetResult | ProvisionerError] = {
        name: error for name, error in looked.items() if isinstance(error, ProvisionerError)
    }
    there = [node for node in nodes if node.name not in results]
    if there:
        interpreters = {name: one.python for name, one in looked.items() if isinstance(one, HostFacts)}
        tally = _play(session, there, interpreters, seconds, again)
        results.update({node.name: _result(node, tally, again) for node in there})
    session.workspace.record("reset", machines={name: _summary(result) for name, result in results.items()})
    return {node.name: results[node.name] for node in nodes}


def _play(session: Session, nodes: Sequence[Node], interpreters: Mapping[str, str], seconds: int, again: str) -> Tally:
    variables = variables_of(session.cluster, session.workspace, seconds)
    path = inventory.write_apart(session.cluster, session.workspace, "to_reset", nodes, interpreters, **variables)
    try:
        return runner.play(
            ("reset",),
            inventory=path,
            variables={},
            log=session.log,
            sockets=session.sockets,
            hosts=len(nodes),
            on_step=session.display.step,
        )
    except Interrupted:
        raise Interrupted("stopped by Ctrl-C: machines may be half reset", hint=again) from None
    except ApplyError as error:
        raise ResetError(error.message, hint=error.hint, details=error.details) from None


def variables_of(cluster: Cluster, workspace: Workspace, seconds: int) -> dict[str, object]:
    """The role's variables."""
    return {
        "reset_footprint": footprint_of(cluster).to_json(),
        "reset_authorities": list(_authorities(workspace)),
        "reset_cluster_id": preflight.cluster_id_of(workspace) or "",
        "reset_seconds": math.ceil(stretch(seconds)),
    }


def _authorities(workspace: Workspace) -> Iterable[str]:
    """SHA-256 of the files of the CAs' certificates, as they lie on machines: both in one file, where a CA is being replaced."""
    for name in CaName:
        paths = (ca_file(workspace.pki, name), next_ca_file(workspace.pki, name))
        found = [x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.PEM) for path in paths if path.exists()]
        for content in dict.fromkeys((*found, b"".join(found)) if found else ()):
            yield hashlib.sha256(content).hexdigest()


def _result(node: Node, tally: Tally, again: str = AGAIN) -> ResetResult | ProvisionerError:
    state = tally.results.get(node.name, {})
    failure = next((failure for failure in tally.failures if failure.host == node.name), None)
    if failure is not None:
        return _error(node, failure, state, again)
    if not state:
        return ResetError(f"{node.name}: Ansible did nothing there", hint=again)
    removed = {kind: tuple(items) for kind, items in state["found"].items()}
    return ResetResult(node.name, not state["clean"], removed, tuple(state["notes"]), state["seconds"])


def _error(node: Node, failure: Failure, state: Mapping[str, object], again: str) -> ProvisionerError:
    if state.get("foreign"):
        return PreflightUnfit(f"{node.name}: {failure.reason}", hint="run `provisioner reset` with the workspace that made it")
    left, notes = state.get("left"), state.get("notes")
    lines = [*(left if isinstance(left, list) else ()), *(notes if isinstance(notes, list) else ())]
    stuck = any(re.search(r"does not die|mounted|busy", line) for line in lines)
    return ResetError(
        f"{node.name}: {'does not answer: ' if failure.unreachable else ''}{failure.reason}",
        hint=f"reboot the machine; then {again}" if stuck else again,
        details=tuple(lines),
    )


def _summary(result: ResetResult | ProvisionerError) -> str:
    if isinstance(result, ProvisionerError):
        return result.message
    return f"reset in {result.seconds} s" if result.changed else "clean already"
