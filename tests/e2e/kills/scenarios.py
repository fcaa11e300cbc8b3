"""What gives `apply` work: each scenario changes cluster.yaml or the machines, and says through which phases the run must go."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from provisioner.config import Role
from tests.e2e.kills.site import Layout, Site

LOOK = ("preflight", "artifacts", "pki", "state")
NODE = ("bundles", "machines", "nodes", "settle")
PLANE = ("bundles", "machines", "etcd", "control_plane", "objects", "nodes", "settle")
# The longest delay after the start of a phase: about its length.
LENGTHS = {"preflight": 1.0, "state": 2.5, "bundles": 1.5, "machines": 9.0, "members": 12.0, "etcd": 4.0}
LENGTH = 3.0


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of work.

    Attributes:
        fits: whether it can follow on a layout.
        make: brings it about; the cluster is as cluster.yaml says before.
        phases: those that the run goes through for certain.
        seconds: about how long it takes on a machine with 2 cores.
    """

    fits: Callable[[Layout], bool]
    make: Callable[[Site, random.Random], None]
    phases: tuple[str, ...]
    seconds: float


def build(site: Site, _chance: random.Random) -> None:
    """From nothing: machines that carry a cluster are reset first. The workspace keeps its keys."""
    if site.real.workspace.was_used:
        done = site.cli("reset", "--yes")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def drift(site: Site, chance: random.Random) -> None:
    """On every machine files and binaries are gone and units are stopped; some of the cluster's objects are deleted."""
    with site.api() as (cluster, connections, _, api):
        # the binding last: without it nothing more may be deleted
        for obj in sorted(chance.sample(OBJECTS, 2), key=lambda found: found["kind"] == "ClusterRoleBinding"):
            api.delete(obj)
        for node in cluster.nodes:
            plane = node.has(Role.CONTROL_PLANE)
            damage = [
                "rm -f /usr/local/bin/crictl /etc/kubernetes/kubelet/config.yaml",
                "systemctl stop kube-proxy; rm -f /usr/local/bin/kube-proxy",
                *chance.sample(EVERYWHERE, 2),
                *(chance.sample(ON_PLANES, 3) if plane else ()),
            ]
            done = connections.run(node, "; ".join(damage), timeout=120)
            assert done.code == 0, done.stderr


EVERYWHERE = (
    "systemctl stop kubelet",
    "systemctl disable -q flanneld",
    "systemctl stop provisioner-api-proxy",
    "rm -f /opt/cni/bin/portmap",
    "chmod 0644 /etc/kubernetes/kubelet/config.yaml 2>/dev/null; true",
    "sysctl -q -w net.ipv4.ip_forward=0",
    "rm -f /etc/systemd/system/kubelet.service",
)
# not two members at once: `apply` refuses to restart the third, which is another test's matter
ON_PLANES = (
    "systemctl stop kube-scheduler; rm -f /usr/local/bin/kube-scheduler",
    "systemctl stop kube-controller-manager",
    "rm -f /etc/kubernetes/kube-apiserver/audit-policy.yaml",
    "systemctl stop kube-apiserver",
    "systemctl stop etcd; rm -f /usr/local/bin/etcd",
    "rm -f /usr/local/bin/kubectl",
)
OBJECTS = (
    {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "namespace": "kube-system"}},
    {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "coredns", "namespace": "kube-system"}},
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "provisioner:cluster-admins"},
    },
    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "coredns", "namespace": "kube-system"}},
)


def flags(site: Site, _chance: random.Random) -> None:
    """A flag of etcd, the API servers and the kubelets changes: all of them restart, one machine at a time."""
    site.write(replace(site.layout, flags=site.layout.flags + 1))


def _resized(planes: int = 0, workers: int = 0) -> Callable[[Site, random.Random], None]:
    def make(site: Site, _chance: random.Random) -> None:
        site.write(replace(site.layout, planes=planes or site.layout.planes, workers=workers or site.layout.workers))

    return make


SCENARIOS = {
    "build": Scenario(lambda _: True, build, (*LOOK, *PLANE), 40),
    "drift": Scenario(lambda _: True, drift, (*LOOK, *NODE, "control_plane"), 25),
    "flags": Scenario(lambda _: True, flags, (*LOOK, "etcd", "control_plane", "nodes", "settle"), 35),
    "grow": Scenario(lambda now: now.planes == 1, _resized(planes=3), (*LOOK, *PLANE, "members"), 60),
    "shrink": Scenario(
        lambda now: now.planes == 3, _resized(planes=1), (*LOOK, "machines", "settle", "drain", "leave", "leave"), 50
    ),
    "add-worker": Scenario(lambda now: now.workers == 1, _resized(workers=2), (*LOOK, *NODE), 25),
    "remove-worker": Scenario(lambda now: now.workers == 2, _resized(workers=1), (*LOOK, "drain", "leave", "leave"), 25),
}
