"""What the commands about single nodes make of a cluster.yaml, and which machines such a run is about."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from provisioner import load
from provisioner.cluster_api import ClusterApi
from provisioner.config import Cluster, Node, Role
from provisioner.errors import BadInput, ExitCode
from provisioner.etcd_api import Member
from provisioner.lifecycle import nodes

TEXT = textwrap.dedent("""\
    apiVersion: provisioner/v1
    name: shop   # of the lab
    nodes:
      # in the cellar
      - name: cp-1
        address: 10.77.0.11  # static
        roles: [control-plane, etcd]

      # in the attic
      - name: worker-1
        address: 10.77.0.21
        roles: [worker]
    # the network comes last
    network:
      podCidr: 10.244.0.0/16
    """)
CP2: dict[str, object] = {"name": "cp-2", "address": "10.77.0.12", "roles": ["control-plane", "etcd"]}
CP3: dict[str, object] = {"name": "cp-3", "address": "10.77.0.13", "roles": ["control-plane", "etcd"]}
WORKER: dict[str, object] = {"name": "worker-2", "address": "10.77.0.22", "roles": ["worker"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cluster.yaml"


def names(cluster: Cluster) -> list[str]:
    return [node.name for node in cluster.nodes]


# -- add ---------------------------------------------------------------------------------------------------------------------------


def test_a_node_is_added_with_everything_else_as_it_was(path: Path) -> None:
    edited = nodes.add(TEXT, path, WORKER)
    entry = "  - name: worker-2\n    address: 10.77.0.22\n    roles: [worker]\n"
    assert edited.text == TEXT.replace("# the network", entry + "# the network")
    assert names(edited.cluster) == ["cp-1", "worker-1", "worker-2"]
    assert edited.cluster == load.parse(edited.text, path, exists=True).cluster
    assert not path.exists(), "whoever asked for it writes it, once the answer is yes"


def test_keys_without_a_value_are_left_out(path: Path) -> None:
    given = {**WORKER, "clusterAddress": None, "labels": {}, "taints": (), "sshUser": "", "sshKey": [], "sshPort": 2222}
    assert nodes.add(TEXT, path, given).text == nodes.add(TEXT, path, {**WORKER, "sshPort": 2222}).text
    assert "sshPort: 2222" in nodes.add(TEXT, path, given).text


def test_every_problem_of_the_result_is_told(path: Path) -> None:
    wrong = {"name": "Worker_2", "address": "10.77.0.21", "roles": ["wroker"], "sshPort": 70000}
    with pytest.raises(BadInput, match="nothing was changed") as refused:
        nodes.add(TEXT, path, wrong)
    told = "\n".join(refused.value.details)
    for what in ("nodes[2].name", "nodes[2].roles[0]", "nodes[2].sshPort"):
        assert what in told
    assert refused.value.exit_code == ExitCode.BAD_INPUT
    assert refused.value.hint


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "worker-1"}, "there is a node"),
        ({"address": "10.77.0.21"}, "10.77.0.21"),
        ({"clusterAddress": "10.77.0.11"}, "10.77.0.11"),
        ({"address": "w.example.org"}, "clusterAddress"),
    ],
)
def test_a_node_that_collides_with_another_is_refused(path: Path, fields: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput) as refused:
        nodes.add(TEXT, path, {**WORKER, **fields})
    assert said in "\n".join((refused.value.message, *refused.value.details))


def test_a_file_that_was_wrong_before_is_refused(path: Path) -> None:
    with pytest.raises(BadInput) as refused:
        nodes.add(TEXT.replace("podCidr", "podCdir"), path, WORKER)
    assert any("podCdir" in line for line in refused.value.details)
    with pytest.raises(BadInput, match="cannot be read"):
        nodes.add("nodes: [", path, WORKER)


def test_a_second_member_of_etcd_is_doubtful_and_not_refused(path: Path) -> None:
    """On the way from one to three each machine is added by a run of its own."""
    two = nodes.add(TEXT, path, CP2)
    assert len(two.cluster.etcd_members) == 2
    # it is the rule about new clusters that is softened, and nothing else
    assert load.parse(two.text, path).cluster is None
    (doubt,) = (problem for problem in load.parse(two.text, path, exists=True).warnings if "2 etcd members" in problem.message)
    assert doubt.where == "nodes"
    assert len(nodes.add(two.text, path, CP3).cluster.etcd_members) == 3


# -- remove ------------------------------------------------------------------------------------------------------------------------


def test_a_node_is_removed_with_its_own_comments(path: Path) -> None:
    text = nodes.add(TEXT, path, WORKER).text
    edited = nodes.remove(text, path, ["worker-1"])
    a, b = text.index("  # in the attic"), text.index("  - name: worker-2")
    assert edited.text == text[:a] + text[b:]
    assert names(edited.cluster) == ["cp-1", "worker-2"]


def test_the_last_node_that_runs_pods_stays(path: Path) -> None:
    with pytest.raises(BadInput, match="nothing was changed"):
        nodes.remove(TEXT, path, ["worker-1"])


def test_what_was_added_and_removed_leaves_the_text_as_it_was(path: Path) -> None:
    assert nodes.remove(nodes.add(TEXT, path, WORKER).text, path, ["worker-2"]).text == TEXT


def test_several_nodes_go_at_once_although_one_alone_would_be_refused(path: Path) -> None:
    three = nodes.add(nodes.add(TEXT, path, CP2).text, path, CP3).text
    edited = nodes.remove(three, path, ["cp-1", "cp-3"])
    assert names(edited.cluster) == ["worker-1", "cp-2"]
    assert nodes.remove(TEXT, path, []).text == TEXT
    assert len(nodes.remove(three, path, ["cp-2"]).cluster.etcd_members) == 2, "on the way from three to one"


def test_the_last_control_plane_and_the_last_member_stay(path: Path) -> None:
    with pytest.raises(BadInput, match="nothing was changed") as refused:
        nodes.remove(TEXT, path, ["cp-1"])
    told = "\n".join(refused.value.details)
    assert "no node has the role control-plane" in told
    assert "no node has the role etcd" in told
    apart = nodes.add(TEXT.replace("[control-plane, etcd]", "[control-plane]"), path, {**CP2, "roles": ["etcd"]}).text
    with pytest.raises(BadInput) as refused:
        nodes.remove(apart, path, ["cp-2"])
    (line,) = (line for line in refused.value.details if "warning" not in line)
    assert "no node has the role etcd" in line


def test_a_name_that_is_not_there_is_refused_with_those_that_are(path: Path) -> None:
    for name in ("worker-9", "Worker-1", ""):
        with pytest.raises(BadInput, match="there is no node") as refused:
            nodes.remove(TEXT, path, [name])
        assert "cp-1, worker-1" in refused.value.hint


# -- change ------------------------------------------------------------------------------------------------------------------------


def test_values_are_changed_where_they_stand(path: Path) -> None:
    edited = nodes.change(TEXT, path, "cp-1", {"name": "cp-9", "address": "10.77.0.19"})
    assert edited.text == TEXT.replace("name: cp-1", "name: cp-9").replace("10.77.0.11", "10.77.0.19")
    assert edited.cluster.node("cp-9").roles == (Role.CONTROL_PLANE, Role.ETCD)
    edited = nodes.change(TEXT, path, "worker-1", {"address": "w.example.org", "clusterAddress": "10.77.0.29"})
    assert str(edited.cluster.node("worker-1").ip) == "10.77.0.29"
    assert "# in the attic\n" in edited.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "cp-1"}, "cp-1"),
        ({"name": "Worker"}, "nodes[1].name"),
        ({"address": "10.77.0.11"}, "10.77.0.11"),
        ({"address": "w.example.org"}, "clusterAddress"),
        ({"clusterAddress": "fd00::1"}, "nodes[1].clusterAddress"),
    ],
)
def test_a_change_that_makes_the_file_wrong_is_refused(path: Path, changes: dict[str, str], said: str) -> None:
    with pytest.raises(BadInput, match="nothing was changed") as refused:
        nodes.change(TEXT, path, "worker-1", changes)
    assert any(said in line for line in refused.value.details)


def test_what_cannot_be_changed_safely_is_left_to_its_author(path: Path) -> None:
    flow = TEXT[: TEXT.index("nodes:")] + "nodes: [{name: cp-1, address: 10.77.0.11, roles: [control-plane, etcd]}]\n"
    with pytest.raises(BadInput, match="brackets") as refused:
        nodes.add(flow, path, WORKER)
    assert "by hand" in refused.value.hint
    with pytest.raises(BadInput, match="there is no node") as refused:
        nodes.change(TEXT, path, "worker-9", {"name": "worker-8"})
    assert "cp-1, worker-1" in refused.value.hint


# -- which machines a run is about -------------------------------------------------------------------------------------------------


def loaded(text: str) -> Cluster:
    cluster = load.parse(text, Path("cluster.yaml"), exists=True).cluster
    assert cluster is not None
    return cluster


def test_the_cluster_while_one_of_its_machines_is_away(path: Path) -> None:
    cluster = loaded(nodes.add(nodes.add(TEXT, path, CP2).text, path, CP3).text)
    reduced = nodes.without(cluster, "cp-2")
    assert names(reduced) == ["cp-1", "worker-1", "cp-3"]
    assert reduced.network == cluster.network
    assert len(cluster.nodes) == 4, "a cluster is a value"


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        ("[control-plane, etcd]", "[worker]", "control plane"),
        ("[control-plane]", "[etcd, worker]", "control plane"),
        ("[etcd]", "[control-plane, worker]", "member of etcd"),
    ],
)
def test_the_only_one_of_its_kind_cannot_be_away(first: str, second: str, kind: str) -> None:
    text = TEXT.replace("[control-plane, etcd]", first).replace("[worker]", second)
    with pytest.raises(BadInput, match=f"cp-1 is the only {kind}: without it") as refused:
        nodes.without(loaded(text), "cp-1")
    assert "provisioner node replace cp-1 --name NEW --address ADDRESS" in refused.value.hint


def machine(*roles: Role) -> Node:
    return Node(name="-".join(roles), address="10.77.0.9", roles=roles)


def test_a_change_of_workers_is_about_them_alone() -> None:
    worker = machine(Role.WORKER)
    assert nodes.scope_of([worker]) == frozenset({"worker"})
    assert nodes.scope_of([worker, worker.model_copy(update={"name": "w-2"})]) == frozenset({"worker", "w-2"})
    assert nodes.scope_of([]) == frozenset(), "a change of nobody is not one of all"
    for vital in (machine(Role.CONTROL_PLANE), machine(Role.ETCD), machine(Role.WORKER, Role.ETCD)):
        assert nodes.scope_of([vital]) is None
        assert nodes.scope_of([worker, vital]) is None


def test_a_name_that_nobody_knows() -> None:
    error = nodes.unknown("worker-l", loaded(TEXT), ["zebra"])
    assert (error.message, error.hint) == (
        "there is no node 'worker-l'; did you mean \"worker-1\"?",
        "the nodes are cp-1, worker-1, zebra",
    )
    assert error.exit_code == ExitCode.BAD_INPUT
    # those that are on record only are proposed as well
    assert "worker-27" in nodes.unknown("worker-72", loaded(TEXT), ["worker-27"]).message


class Api:
    """Stands in for the API, of which nothing but ``get`` is asked."""

    def __init__(self, node: Mapping[str, Any] | None) -> None:
        self.node = node

    def get(self, obj: Mapping[str, Any]) -> Mapping[str, Any] | None:
        return self.node if obj == {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "old"}} else None


def api(node: Mapping[str, Any] | None) -> ClusterApi:
    return cast("ClusterApi", Api(node))


def registered(*addresses: tuple[str, str]) -> dict[str, Any]:
    return {"status": {"addresses": [{"type": kind, "address": address} for kind, address in addresses]}}


def member(name: str, url: str = "https://10.77.0.33:2380") -> Member:
    return Member(7, name, (url,), (), learner=False)


def test_a_machine_that_only_the_cluster_knows() -> None:
    node = registered(("Hostname", "old"), ("InternalIP", "10.77.0.31"), ("ExternalIP", "192.0.2.1"))
    found = nodes.stranger("old", api(node), [member("other")])
    assert found == Node(name="old", address="10.77.0.31", roles=(Role.WORKER,))
    assert nodes.stranger("old", api(node), None) == found
    # etcd says at which address its member is to be taken off the list
    both = nodes.stranger("old", api(node), [member("other", "https://10.77.0.32:2380"), member("old")])
    assert both == Node(name="old", address="10.77.0.33", roles=(Role.WORKER, Role.ETCD))
    assert nodes.stranger("old", api(None), [member("old")]) == Node(name="old", address="10.77.0.33", roles=(Role.ETCD,))


@pytest.mark.parametrize("node", [None, {}, {"status": {}}, {"status": {"addresses": None}}, registered(("Hostname", "old"))])
def test_what_has_no_name_or_no_address_is_nobody(node: Mapping[str, Any] | None) -> None:
    assert nodes.stranger("old", api(node), [member(""), member("other")]) is None
    assert nodes.stranger("older", api(registered(("InternalIP", "10.77.0.31"))), None) is None


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("Infra_0", "https://10.77.0.33:2380"),
        ("etcd.example.org", "https://10.77.0.33:2380"),
        ("old", "https://etcd.example.org:2380"),
        ("old", "https://[fd00::1]:2380"),
    ],
)
def test_a_stranger_that_could_be_no_machine_of_ours_is_taken_out_by_hand(name: str, url: str) -> None:
    """etcd takes any text for a name, and DNS names and IPv6 for addresses."""
    with pytest.raises(BadInput, match="cannot be taken out from here") as refused:
        nodes.stranger(name, api(None), [member(name, url)])
    assert "etcdctl member remove" in refused.value.hint
