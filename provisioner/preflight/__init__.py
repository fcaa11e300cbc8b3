"""Preflight: every problem of every machine, with its remedy, in one go, before anything is changed.

``RULES`` is the table; the rules stand in ``system`` (the machine itself), ``network`` and ``ownership``; what they are
given and what they return in ``model``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from provisioner.config import Cluster, Node
from provisioner.errors import PreflightUnfit, ProvisionerError
from provisioner.facts import HostFacts
from provisioner.preflight import network, ownership, system
from provisioner.preflight.model import Machine, Problem, Rule, belongs
from provisioner.ssh import SshError
from provisioner.workspace import Workspace

__all__ = ["RULES", "Problem", "check", "cluster_id_of", "is_running", "require_fit"]

# In the order in which a machine's problems are told: what explains others comes first.
RULES: Mapping[str, Rule] = {
    "marker": ownership.marker,
    "another-node": ownership.another_node,
    "moved": ownership.moved,
    "other-kubernetes": ownership.other_kubernetes,
    "old-etcd": ownership.old_etcd,
    "container-engines": ownership.container_engines,
    "other-network": ownership.other_network,
    "root": system.root,
    "architecture": system.architecture,
    "distribution": system.distribution,
    "service-manager": system.service_manager,
    "python": system.python,
    "identity": system.identity,
    "kernel": system.kernel,
    "kernel-features": system.kernel_features,
    "cgroup": system.cgroup,
    "oom-score": system.oom_score,
    "memory": system.memory,
    "swap": system.swap,
    "disk-space": system.disk_space,
    "disk-kind": system.disk_kind,
    "disk-sync": system.disk_sync,
    "clock": system.clock,
    "cluster-address": network.cluster_address,
    "virtual-address": network.virtual_address,
    "mac-address": network.mac_address,
    "mtu": network.mtu,
    "address-ranges": network.address_ranges,
    "default-route": network.default_route,
    "resolver": network.resolver,
    "ports": network.ports,
    "firewall": network.firewall,
    "selinux": network.selinux,
    "programs": network.programs,
    "completeness": system.completeness,
}


def check(
    cluster: Cluster,
    facts: Mapping[str, HostFacts],
    unreachable: Mapping[str, ProvisionerError],
    *,
    cluster_id: str | None,
    known: Mapping[str, Node] | None = None,
) -> list[Problem]:
    """Every problem of every machine, by machine in cluster.yaml's order. Pure: nothing is asked or changed.

    Args:
        facts: of the machines that answered, by node name; rules run for these, and compare them with one another.
        unreachable: why the others did not.
        cluster_id: this cluster's identity, None as long as it has no CA (``cluster_id_of``).
        known: the machines on record (``registry.read``).
    """
    problems: list[Problem] = []
    for node in cluster.nodes:
        if node.name in unreachable:
            problems.append(_unreachable(node.name, unreachable[node.name]))
        if node.name in facts:
            machine = Machine(cluster, node, facts[node.name], facts, cluster_id, (known or {}).get(node.name))
            problems += [
                Problem(node.name, finding.severity, finding.message, finding.remedy, name)
                for name, rule in RULES.items()
                for finding in rule(machine)
            ]
    return problems


def require_fit(problems: Sequence[Problem]) -> None:
    """Stop here if any machine is unfit.

    Raises:
        PreflightUnfit: there are errors; its details are all of them with their remedies.
    """
    errors = [problem for problem in problems if problem.severity == "error"]
    if not errors:
        return
    hosts = list(dict.fromkeys(problem.host for problem in errors))
    raise PreflightUnfit(
        f"{len(errors)} {'problem' if len(errors) == 1 else 'problems'} on {', '.join(hosts)}; nothing was changed",
        hint="put them right, then run this again; `provisioner preflight` shows warnings too",
        details=tuple(
            line
            for problem in errors
            for line in (f"{problem.host}: {problem.message}", *([f"    {problem.remedy}"] if problem.remedy else []))
        ),
    )


def is_running(members: Iterable[Node], facts: Mapping[str, HostFacts], cluster_id: str | None) -> bool:
    """Whether some machine that answers runs a member of this very cluster's etcd: it has been built, and lives."""
    return any(
        belongs(facts[node.name], cluster_id) and facts[node.name].units.get("etcd.service") == "active"
        for node in members
        if node.name in facts
    )


def cluster_id_of(workspace: Workspace) -> str | None:
    """The identity of the workspace's cluster, as ``pki.cluster_id`` gives it; None as long as it has no CA.

    Reads a file or the CA's certificate, and makes nothing.

    Raises:
        ProvisionerError: the file is there, but holds no certificate.
    """
    from provisioner.pki import rotation  # noqa: PLC0415 - the table of certificates is needed for this alone

    try:
        return rotation.identity(workspace.pki)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ProvisionerError(
            f"{workspace.pki}: the cluster's CA cannot be read: {getattr(error, 'strerror', None) or 'no certificate in it'}",
            hint="restore the workspace from a backup: the CA tells which machines are this cluster's",
        ) from error


def _unreachable(name: str, error: ProvisionerError) -> Problem:
    """A machine that could not be looked at; the message begins with its name already."""
    rule = f"ssh-{error.trouble}" if isinstance(error, SshError) else "ssh"
    message = "; ".join((error.message, *error.details))
    return Problem(name, "error", message.removeprefix(f"{name}: ").removeprefix(f"{name} "), error.hint, rule)
