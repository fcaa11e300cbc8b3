"""What follows from cluster.yaml alone: endpoints, names in certificates, taints, labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisioner import topology
from provisioner.config import Cluster, Role

from .sample import check, node


def cluster_of(changes: dict[str, object] | None = None) -> Cluster:
    """The valid file with changes."""
    loaded = check(changes or {}, Path("/nonexistent"))
    assert loaded.cluster, loaded.problems
    return loaded.cluster


def test_service_addresses() -> None:
    cluster = cluster_of({"network.serviceCidr": "172.20.8.0/28"})
    assert str(topology.kubernetes_service_ip(cluster)) == "172.20.8.1"
    assert str(topology.dns_service_ip(cluster)) == "172.20.8.10"


def test_every_service_range_that_validates_has_both_addresses() -> None:
    for prefix in range(16, 29):
        cluster = cluster_of({"network.serviceCidr": f"10.96.0.0/{prefix}"})
        assert topology.dns_service_ip(cluster) in cluster.network.service_cidr


def test_an_apiserver_with_a_member_uses_that_one_alone() -> None:
    cluster = cluster_of({"nodes.0.roles": ["control-plane"], "nodes.3.roles": ["worker", "etcd"]})
    assert topology.etcd_servers_of(cluster, cluster.node("control-2")) == ("https://127.0.0.1:2379",)
    assert topology.etcd_servers_of(cluster, cluster.node("control-1")) == (
        "https://192.168.56.12:2379",
        "https://192.168.56.13:2379",
        "https://192.168.56.21:2379",
    )


def test_members_and_backends_use_cluster_addresses() -> None:
    cluster = cluster_of({"nodes.0.address": "a.example", "nodes.0.clusterAddress": "10.0.0.1"})
    assert ",".join(f"{member.name}={topology.etcd_peer_url(member)}" for member in cluster.etcd_members) == (
        "control-1=https://10.0.0.1:2380,control-2=https://192.168.56.12:2380,control-3=https://192.168.56.13:2380"
    )
    assert topology.api_backends(cluster.control_planes)[0] == ("control-1", "10.0.0.1:6443")
    assert topology.etcd_sans(cluster.node("control-1")) == ("control-1", "localhost", "10.0.0.1", "127.0.0.1")


def test_apiserver_names() -> None:
    cluster = cluster_of(
        {
            "nodes.0.address": "a.example",
            "nodes.0.clusterAddress": "10.0.0.1",
            "controlPlaneEndpoint": {"host": "api.example"},
            "extraSans": ["*.lab.example", "203.0.113.1"],
            "network.dnsDomain": "corp.local",
        }
    )
    names = topology.apiserver_sans(cluster, cluster.node("control-1"))
    assert len(set(names)) == len(names)
    assert {"kubernetes.default.svc.corp.local", "localhost", "127.0.0.1", "10.0.0.1", "10.96.0.1", "a.example", "control-1"} < set(
        names
    )
    assert {"*.lab.example", "203.0.113.1", "api.example"} < set(names)
    assert "192.168.56.12" not in names
    assert topology.service_account_issuer(cluster) == "https://kubernetes.default.svc.corp.local"


@pytest.mark.parametrize(
    ("roles", "given", "taints"),
    [
        (["control-plane", "etcd"], None, ["node-role.kubernetes.io/control-plane"]),
        (["control-plane", "etcd", "worker"], None, []),
        (["worker"], None, []),
        (["control-plane", "etcd"], [], []),
        (["worker"], [{"key": "example.com/gpu", "effect": "NoSchedule"}], ["example.com/gpu"]),
    ],
)
def test_taints(roles: list[str], given: list[object] | None, taints: list[str]) -> None:
    more: dict[str, object] = {} if given is None else {"taints": given}
    nodes = [node("a", "10.0.0.1", *roles, **more), node("b", "10.0.0.2", "control-plane", "worker")]
    if "etcd" not in roles:
        nodes[1] = node("b", "10.0.0.2", "control-plane", "etcd", "worker")
    cluster = cluster_of({"nodes": nodes})
    assert [taint.key for taint in topology.taints_of(cluster.node("a"))] == taints


def test_labels_and_groups() -> None:
    cluster = cluster_of({"nodes.2.roles": ["etcd"]})
    assert topology.role_labels_of(cluster.node("worker-1")) == {"node-role.kubernetes.io/worker": "", "example.com/rack": "r1"}
    assert [member.name for member in cluster.etcd_members] == ["control-1", "control-2", "control-3"]
    assert [member.name for member in cluster.control_planes] == ["control-1", "control-2"]
    assert [member.name for member in cluster.kubernetes_nodes] == ["control-1", "control-2", "worker-1", "worker-2"]
    assert not cluster.node("control-3").is_kubernetes_node
    assert cluster.nodes_with(Role.WORKER) == cluster.nodes[3:]
    with pytest.raises(KeyError):
        cluster.node("none")
