"""Rules about labels and taints of nodes."""

from __future__ import annotations

from collections.abc import Iterator

from provisioner.problems import Path, Problem, error, quoted, warning
from provisioner.rules import syntax
from provisioner.rules.rule import Context

# The kubelet writes these by itself and takes other values back.
_KUBELETS_OWN = frozenset(
    {"kubernetes.io/hostname", "kubernetes.io/os", "kubernetes.io/arch", "beta.kubernetes.io/os", "beta.kubernetes.io/arch"}
)
_ROLE_LABELS = frozenset(
    {"node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/worker", "node-role.kubernetes.io/etcd"}
)
_OLD_ROLE_LABEL = "node-role.kubernetes.io/master"
# Prefixes below kubernetes.io that are for people to use; everything else there belongs to Kubernetes' components.
# https://kubernetes.io/docs/reference/labels-annotations-taints/
_FREE_PREFIXES = (
    "node-role.kubernetes.io",
    "node-restriction.kubernetes.io",
    "node.kubernetes.io",
    "topology.kubernetes.io",
    "app.kubernetes.io",
)
# The node lifecycle controller sets and clears these by a node's state.
_STATE_TAINTS = frozenset(
    f"node.kubernetes.io/{state}"
    for state in (
        "not-ready",
        "unreachable",
        "memory-pressure",
        "disk-pressure",
        "pid-pressure",
        "network-unavailable",
        "unschedulable",
        "out-of-service",
    )
)


def labels_valid(context: Context) -> Iterator[Problem]:
    """Labels have Kubernetes' syntax; none is a role's, the kubelet's own, or (warning) under a prefix of Kubernetes'."""
    for index, node in enumerate(context.cluster.nodes):
        for key, value in node.labels.items():
            path = ("nodes", index, "labels", key)
            fault = syntax.label_key_fault(key) or syntax.label_value_fault(value)
            if fault:
                yield error(path, f"no label that Kubernetes takes: {fault}")
            else:
                yield from _reserved_label(path, key)


def _reserved_label(path: Path, key: str) -> Iterator[Problem]:
    prefix = key.rpartition("/")[0]
    if key in _KUBELETS_OWN:
        yield error(path, "the kubelet sets this label itself and would put its own value back")
    elif key in _ROLE_LABELS:
        yield error(path, "this label follows from the node's roles; set `roles` instead")
    elif key == _OLD_ROLE_LABEL:
        yield error(path, "this label is gone since Kubernetes 1.24; the role control-plane sets its successor")
    elif f".{prefix}".endswith((".kubernetes.io", ".k8s.io")) and not f".{prefix}".endswith(
        tuple(f".{free}" for free in _FREE_PREFIXES)
    ):
        yield warning(
            path, f"the prefix {prefix} is reserved for Kubernetes' own components; your own labels need another, or none"
        )


def taints_valid(context: Context) -> Iterator[Problem]:
    """Taints have Kubernetes' syntax, come once, and tell no node's state."""
    for index, node in enumerate(context.cluster.nodes):
        seen: set[tuple[str, str]] = set()
        for position, taint in enumerate(node.taints or ()):
            path = ("nodes", index, "taints", position)
            if fault := syntax.label_key_fault(taint.key):
                yield error((*path, "key"), f"{quoted(taint.key)}: {fault}")
            if fault := syntax.label_value_fault(taint.value):
                yield error((*path, "value"), f"{quoted(taint.value)}: {fault}")
            if taint.key in _STATE_TAINTS:
                yield error((*path, "key"), f"{taint.key} tells a node's state; Kubernetes sets it and takes it away")
            if (taint.key, taint.effect) in seen:
                yield error(path, f"the node has a taint {taint.key} with effect {taint.effect} already")
            seen.add((taint.key, taint.effect))
