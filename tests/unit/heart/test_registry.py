"""The record of machines: what was put on record is read again, and what cluster.yaml may not say of a machine on record."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from provisioner import registry
from provisioner.config import Cluster, Node, Role, Taint
from provisioner.errors import BadInput, ProvisionerError
from provisioner.workspace import Workspace

FULL = Node(
    name="full",
    address="full.example.org",
    cluster_address=IPv4Address("10.77.0.31"),
    roles=(Role.WORKER, Role.ETCD),
    labels={"example.com/rack": "b", "empty": ""},
    taints=(Taint(key="dedicated", value="db", effect="NoSchedule"), Taint(key="flaky", effect="NoExecute")),
    ssh_port=2222,
    ssh_user="admin",
    ssh_key="keys/full",
    kubelet={"maxPods": 50, "evictionHard": {"memory.available": "5%"}},
)


def without(cluster: Cluster, *names: str) -> Cluster:
    """The cluster without some of its machines."""
    return cluster.model_copy(update={"nodes": tuple(node for node in cluster.nodes if node.name not in names)})


def test_every_field_of_a_machine_is_read_as_it_was_put_on_record(workspace: Workspace) -> None:
    # a field that is new in Node and left at its default here would be tested by nobody
    assert FULL.model_fields_set == set(Node.model_fields)
    # "no taints" is something else than "the default ones"
    bare = Node(name="bare", address="10.77.0.32", roles=(Role.WORKER,), taints=())
    registry.remember(workspace, [FULL, bare])
    assert registry.read(workspace) == {"full": FULL, "bare": bare}
    # as in cluster.yaml, so that people can read it, and put an entry back
    first = json.loads((workspace.root / "machines.json").read_text())["machines"][0]
    assert (first["clusterAddress"], first["sshPort"], first["roles"]) == ("10.77.0.31", 2222, ["worker", "etcd"])


def test_nothing_is_on_record_in_a_new_workspace(workspace: Workspace) -> None:
    assert registry.read(workspace) == {}
    registry.forget(workspace, "worker-1")
    registry.remember(workspace, [])
    assert not workspace.root.exists()


def test_the_record_grows_and_the_last_description_of_a_machine_counts(workspace: Workspace, cluster: Cluster) -> None:
    registry.remember(workspace, cluster.nodes[:2])
    moved = cluster.node("cp-2").model_copy(update={"ssh_user": "admin"})
    registry.remember(workspace, [moved, cluster.node("worker-1")])
    assert registry.read(workspace) == {"cp-1": cluster.node("cp-1"), "cp-2": moved, "worker-1": cluster.node("worker-1")}


def test_the_file_is_the_owners_alone_and_is_not_written_without_need(workspace: Workspace, cluster: Cluster) -> None:
    registry.remember(workspace, cluster.nodes)
    path = workspace.root / "machines.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.stat()
    registry.remember(workspace, cluster.nodes)
    registry.forget(workspace, "nobody")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_who_is_forgotten_twice_is_forgotten_and_the_others_stay(workspace: Workspace, cluster: Cluster) -> None:
    registry.remember(workspace, cluster.nodes)
    for _ in range(2):
        registry.forget(workspace, "worker-1", "etcd-1")
        assert list(registry.read(workspace)) == ["cp-1", "cp-2"]
    registry.forget(workspace, "cp-1", "cp-2")
    assert registry.read(workspace) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"machines": null}',
        '{"machines": ["worker-1"]}',
        '{"machines": [{"address": "10.77.0.21", "roles": ["worker"]}]}',
        '{"machines": [{"name": "worker-1", "address": "10.77.0.21"}]}',
        '{"machines": [{"name": "worker-1", "address": "10.77.0.21", "roles": ["wroker"]}]}',
        '{"machines": [{"name": "worker-1", "address": "10.77.0.21", "roles": ["worker"], "color": "red"}]}',
        b'{"machines": "\xff"}',
    ],
)
def test_a_damaged_record_is_refused_with_what_to_do_and_left_as_it_is(
    workspace: Workspace, cluster: Cluster, text: str | bytes
) -> None:
    workspace.create()
    path = workspace.root / "machines.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for act in (
        lambda: registry.read(workspace),
        lambda: registry.remember(workspace, cluster.nodes),
        lambda: registry.forget(workspace, "worker-1"),
    ):
        with pytest.raises(ProvisionerError, match="cannot be read") as refused:
            act()
        assert str(path) in refused.value.message
        assert "move it away" in refused.value.hint
    assert path.read_bytes() == (text if isinstance(text, bytes) else text.encode())


# -- what cluster.yaml may not say -------------------------------------------------------------------------------------------------


def test_machines_on_record_that_cluster_yaml_names_no_more_leave(cluster: Cluster) -> None:
    known = {node.name: node for node in cluster.nodes}
    assert registry.left_out(cluster, known) == ()
    assert registry.left_out(cluster, {}) == ()
    gone = registry.left_out(without(cluster, "cp-2", "worker-1"), known)
    assert gone == (cluster.node("cp-2"), cluster.node("worker-1"))


def test_a_machine_that_stays_under_another_name_is_not_wiped(cluster: Cluster) -> None:
    """By name worker-1 leaves and worker-9 joins, and both are one machine."""
    known = {node.name: node for node in cluster.nodes}
    renamed = cluster.node("worker-1").model_copy(update={"name": "worker-9"})
    here = without(cluster, "worker-1")
    with pytest.raises(BadInput, match="nothing was changed") as refused:
        registry.left_out(here.model_copy(update={"nodes": (*here.nodes, renamed)}), known)
    assert "worker-9 has the address 10.77.0.21 of worker-1" in refused.value.message
    assert "call it worker-1 again" in refused.value.hint
    assert "provisioner node remove worker-1" in refused.value.hint


def test_a_machine_is_known_by_the_address_that_the_cluster_uses(cluster: Cluster) -> None:
    known = {"old": cluster.node("worker-1").model_copy(update={"name": "old"})}
    by_dns = Node(name="new", address="w.example.org", cluster_address=IPv4Address("10.77.0.21"), roles=(Role.WORKER,))
    here = without(cluster, "worker-1")
    with pytest.raises(BadInput, match="new has the address"):
        registry.left_out(here.model_copy(update={"nodes": (*here.nodes, by_dns)}), known)


def test_the_same_name_at_another_address_is_no_machine_that_leaves(cluster: Cluster, make_cluster: Callable[..., Cluster]) -> None:
    """That it is another machine is for preflight to say, which sees the machine."""
    known = {"worker-1": cluster.node("worker-1").model_copy(update={"address": "10.77.0.99"})}
    assert registry.left_out(make_cluster(), known) == ()


def test_a_machine_that_stays_keeps_its_roles(cluster: Cluster) -> None:
    known = {node.name: node for node in cluster.nodes}
    registry.refuse_lost_roles(cluster, known)
    registry.refuse_lost_roles(cluster, {})
    # who leaves loses all of them, and who gets one more loses none
    registry.refuse_lost_roles(without(cluster, "cp-2"), known)
    more = cluster.node("etcd-1").model_copy(update={"roles": (Role.ETCD, Role.WORKER)})
    grown = without(cluster, "etcd-1")
    grown = grown.model_copy(update={"nodes": (*grown.nodes, more)})
    registry.refuse_lost_roles(grown, known)
    with pytest.raises(BadInput, match=r"etcd-1: cluster\.yaml takes the role worker from a machine that stays") as refused:
        registry.refuse_lost_roles(cluster, {"etcd-1": more})
    assert "nothing was changed" in refused.value.message
    assert "provisioner node remove etcd-1" in refused.value.hint
