"""What checks make of what they are shown."""

from __future__ import annotations

import ssl
from decimal import Decimal
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from provisioner.cluster_api import Object
from provisioner.config import Cluster, Node
from provisioner.etcd_api import HashKv, Member, Status
from provisioner.verify import etcd, hosts, network, nodes, probe, workloads
from provisioner.verify.model import CheckFailed, Context

# --- Nodes -------------------------------------------------------------------------------------------------------------


def live_node(node: Node, **changes: Any) -> Object:
    taints = [] if node.name.startswith("worker") else [{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}]
    role = "worker" if node.name.startswith("worker") else "control-plane"
    return {
        "metadata": {"name": node.name, "labels": {f"node-role.kubernetes.io/{role}": ""}, **changes.get("metadata", {})},
        "spec": {"podCIDR": "10.244.0.0/24", "taints": taints, **changes.get("spec", {})},
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}],
            "nodeInfo": {"kubeletVersion": "v1.36.3"},
            "addresses": [{"type": "InternalIP", "address": str(node.ip)}, {"type": "Hostname", "address": node.name}],
            **changes.get("status", {}),
        },
    }


def test_a_node_as_it_shall_be_has_no_problems(context: Context) -> None:
    for node in context.cluster.nodes:
        assert nodes.node_problems(context, node, live_node(node)) == []


NOT_READY = {"conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown", "message": "Kubelet stopped"}]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"status": NOT_READY}, "not Ready: NodeStatusUnknown: Kubelet stopped (status Unknown)"),
        ({"status": {"conditions": []}}, "not Ready: its kubelet has not reported yet"),
        # a readiness test that asks "is there a status" passes this one
        ({"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "x", "message": ""}]}}, "not Ready: x"),
        ({"status": {"nodeInfo": {"kubeletVersion": "v1.36.2"}}}, "kubelet v1.36.2, not v1.36.3"),
        ({"status": {"addresses": [{"type": "InternalIP", "address": "10.0.2.15"}]}}, "InternalIP 10.0.2.15, not 192.0.2.1"),
        ({"spec": {"taints": []}}, "taints none, not node-role.kubernetes.io/control-plane:NoSchedule"),
        ({"spec": {"podCIDR": ""}}, "has no pod CIDR"),
        ({"metadata": {"labels": {}}}, "lacks the labels node-role.kubernetes.io/control-plane="),
    ],
)
def test_a_node_that_differs(context: Context, changes: dict[str, Any], expected: str) -> None:
    node = context.cluster.node("cp-1")
    (problem,) = nodes.node_problems(context, node, live_node(node, **changes))
    assert problem.startswith(expected)


def test_taints_that_come_and_go_by_themselves_are_not_a_difference(context: Context) -> None:
    node = context.cluster.node("worker-1")
    taints = [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]
    assert nodes.node_problems(context, node, live_node(node, spec={"taints": taints})) == []


def test_units_of_each_kind_of_machine(context: Context) -> None:
    worker = set(nodes.units_of(context, context.cluster.node("worker-1")))
    assert {"containerd", "kubelet", "kube-proxy", "provisioner-api-proxy", "flanneld"} <= worker
    assert not worker & {"etcd", "kube-apiserver"}
    assert {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", *worker} == set(
        nodes.units_of(context, context.cluster.node("cp-1"))
    )


# --- etcd --------------------------------------------------------------------------------------------------------------


def view(cluster: Cluster, index: int, **changes: Any) -> tuple[Node, Status, tuple[Member, ...]]:
    known = tuple(
        Member(number, f"cp-{number}", (f"https://192.0.2.{number}:2380",), (f"https://192.0.2.{number}:2379",), learner=False)
        for number in (1, 2, 3)
    )
    values: dict[str, Any] = {
        "member_id": index,
        "leader": 2,
        "raft_term": 5,
        "raft_index": 100,
        "raft_applied_index": 100,
        "revision": 80,
        "version": "3.6.14",
        "db_size": 1,
        "db_size_in_use": 1,
        "learner": False,
        "errors": (),
    }
    members = changes.pop("members", known)
    return cluster.node(f"cp-{index}"), Status(**{**values, **changes}), members


def test_members_that_agree(cluster: Cluster) -> None:
    assert etcd.disagreements([view(cluster, index) for index in (1, 2, 3)]) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"leader": 0}, "cp-3: sees no leader"),
        ({"leader": 1}, "more than one leader: cp-1 follows cp-2, cp-2 follows cp-2, cp-3 follows cp-1"),
        ({"learner": True}, "cp-3: still a learner"),
        ({"errors": ("NOSPACE",)}, "cp-3: reports NOSPACE"),
        ({"raft_applied_index": 100 - 5000}, "cp-3: 5000 entries behind"),
        ({"version": "3.6.13"}, "different versions: cp-1 3.6.14"),
        ({"members": ()}, "cp-3: the member list is , cluster.yaml says cp-1, cp-2, cp-3"),
    ],
)
def test_members_that_do_not_agree(cluster: Cluster, changes: dict[str, Any], expected: str) -> None:
    wrong = etcd.disagreements([view(cluster, 1), view(cluster, 2), view(cluster, 3, **changes)])
    assert any(line.startswith(expected) for line in wrong), wrong


def test_a_member_too_many_or_at_another_address_is_seen(cluster: Cluster) -> None:
    base = view(cluster, 1)[2]
    extra = Member(9, "", ("https://192.0.2.9:2380",), (), learner=True)
    (line,) = etcd.disagreements([view(cluster, 1, members=(*base, extra)), view(cluster, 2), view(cluster, 3)])
    assert "(not started, 0x9)" in line
    moved = Member(3, "cp-3", (), ("https://192.0.2.99:2379",), learner=False)
    (line,) = etcd.disagreements([view(cluster, 1, members=(*base[:2], moved)), view(cluster, 2), view(cluster, 3)])
    assert line == "cp-1: cp-3 is listed at https://192.0.2.99:2379, not https://192.0.2.3:2379"


def test_a_leader_that_is_none_of_ours(cluster: Cluster) -> None:
    assert etcd.disagreements([view(cluster, index, leader=77) for index in (1, 2, 3)]) == [
        "the leader 0x4d is none of the members of cluster.yaml"
    ]


def test_hashes() -> None:
    assert etcd.hash_differences({"a": HashKv(1, 5, 2), "b": HashKv(1, 5, 2)}, 5) == ""
    assert "HashKV at revision 5 differs: a 1, b 2" in etcd.hash_differences({"a": HashKv(1, 5, 2), "b": HashKv(2, 5, 2)}, 5)
    assert "compacted" in etcd.hash_differences({"a": HashKv(1, 5, 2), "b": HashKv(1, 5, 3)}, 5)


# --- the scheduler -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "free",
    [
        {"a": "2", "b": "2", "c": "2"},
        {"a": "2", "b": "0.5"},
        {"a": "0.04"},
        {"a": "3.999", "b": "3.99", "c": "0"},
        {"a": "1", "b": "-0.2"},
    ],
)
def test_after_the_fillers_the_pod_fits_on_the_target_alone(free: dict[str, str]) -> None:
    room = {name: Decimal(cpu) for name, cpu in free.items()}
    plan = workloads.plan_scheduling(room)
    assert plan is not None
    after = {name: cpu - plan.fillers.get(name, Decimal(0)) for name, cpu in room.items()}
    assert [name for name, cpu in after.items() if cpu >= plan.request] == [plan.target]
    assert all(cpu > 0 for cpu in plan.fillers.values())
    assert all(after[name] >= 0 for name in plan.fillers), "a filler must fit where it has to go"
    assert room[plan.target] == max(room.values())


def test_without_room_there_is_no_plan() -> None:
    assert workloads.plan_scheduling({}) is None
    assert workloads.plan_scheduling({"a": Decimal("0.03"), "b": Decimal(0)}) is None


def test_cpu_the_scheduler_counts() -> None:
    def container(cpu: str, **fields: str) -> dict[str, Any]:
        return {"resources": {"requests": {"cpu": cpu}}, **fields}

    pod: Object = {"spec": {"containers": [container("100m"), container("1.5"), {}]}}
    assert workloads.requested_cpu(pod) == Decimal("1.6")
    pod["spec"]["initContainers"] = [container("2")]
    assert workloads.requested_cpu(pod) == 2
    pod["spec"]["initContainers"] = [container("1", restartPolicy="Always")]
    pod["spec"]["overhead"] = {"cpu": "10m"}
    assert workloads.requested_cpu(pod) == Decimal("2.61")
    with pytest.raises(CheckFailed, match="no CPU quantity"):
        workloads.quantity("many")


# --- pods --------------------------------------------------------------------------------------------------------------


def test_ready_is_true_only_for_the_condition_true_and_not_on_the_way_out() -> None:
    def pod(status: str, **metadata: str) -> Object:
        return {"metadata": metadata, "status": {"conditions": [{"type": "Ready", "status": status}]}}

    assert probe.is_ready(pod("True"))
    assert not probe.is_ready(pod("False"))
    assert not probe.is_ready(pod("True", deletionTimestamp="2026-01-01T00:00:00Z"))
    assert not probe.is_ready({"metadata": {}, "status": {}})
    assert not probe.is_ready({"metadata": {}, "status": {"conditions": [{"type": "PodScheduled", "status": "True"}]}})


def test_a_pods_state_in_words() -> None:
    waiting = {"state": {"waiting": {"reason": "ErrImageNeverPull", "message": "image\nnot present"}}}
    pod: Object = {"spec": {"nodeName": "w"}, "status": {"phase": "Pending", "containerStatuses": [waiting]}}
    assert probe.describe(pod) == "Pending, container waiting: ErrImageNeverPull image not present"
    conditions = [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]
    assert probe.describe({"spec": {}, "status": {"phase": "Pending", "conditions": conditions}}) == (
        "Pending, not scheduled: 0/3 nodes are available"
    )
    assert "kubelet has not reported" in probe.describe({"spec": {"nodeName": "w"}, "status": {"phase": "Pending"}})


def test_errors_of_calls_are_told_once_and_without_the_payload() -> None:
    text = network.payload(network.TCP_BYTES)
    error = f'Get "http://10.0.0.1:8080/echo?msg={text}": dial tcp 10.0.0.1:8080: i/o timeout'
    assert probe.Dialled((), (error, error)).why == "dial tcp 10.0.0.1:8080: i/o timeout"
    assert probe.Dialled((), ()).why == "no answer"


def test_payload_is_larger_than_the_mtu_and_shows_any_damage() -> None:
    text = network.payload(network.TCP_BYTES)
    assert len(text) == network.TCP_BYTES > 9000
    blocks = [text[start : start + 42] for start in range(0, len(text) - 42, 42)]
    assert len(set(blocks)) == len(blocks), "two equal parts could be swapped unseen"
    assert 1500 < network.UDP_BYTES + 5 < 2048, "fragmented, but within netexec's buffer"
    assert text == text.lower(), "netexec answers in lower case"


def test_shorten() -> None:
    assert probe.shorten("a\n b") == "a b"
    assert len(probe.shorten("x" * 1000)) < 260


# --- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_is_known_in_every_encoding() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pems = [
        key.private_bytes(Encoding.PEM, form, NoEncryption()) for form in (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL)
    ]
    first, second = (set(hosts.key_digests(pem)) for pem in pems)
    assert len(first) == 2
    assert first == second
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    assert not first & set(hosts.key_digests(other))


def test_a_client_without_a_ca_trusts_nobody() -> None:
    from provisioner.tls_client import client_context  # noqa: PLC0415

    with pytest.raises((ssl.SSLError, ValueError)):
        client_context(b"")
