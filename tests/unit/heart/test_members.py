"""etcd's member list: who joins it and how, and which changes are refused for the quorum's sake."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from provisioner import members, topology
from provisioner.config import Cluster
from provisioner.errors import ApplyError
from provisioner.etcd_api import Member
from provisioner.members import Join
from provisioner.plan import Change, Plan
from provisioner.session import Session

IDS = {"cp-1": 1, "cp-2": 2, "etcd-1": 3}


def entry(cluster: Cluster, name: str, /, **changes: Any) -> Member:
    """A member of the list that has started and votes."""
    node = cluster.node(name)
    known = {"name": name, "peer_urls": (topology.etcd_peer_url(node),), "client_urls": (f"https://{node.ip}:2379",)}
    return Member(**{"id": IDS[name], "learner": False, **known, **changes})


def verdicts(cluster: Cluster, listed: list[Member] | None, *without_data: str) -> dict[str, Join]:
    data = {node.name: node.name not in without_data for node in cluster.etcd_members}
    return {join.node.name: join for join in members.classify(cluster.etcd_members, data, listed)}


def test_members_with_their_data_are_left_alone(cluster: Cluster) -> None:
    assert verdicts(cluster, [entry(cluster, name) for name in IDS]) == {}
    assert verdicts(cluster, None) == {}


def test_a_machine_that_is_not_on_the_list_joins_as_a_learner(cluster: Cluster) -> None:
    found = verdicts(cluster, [entry(cluster, "cp-1")], "cp-2", "etcd-1")
    assert list(found) == ["cp-2", "etcd-1"], "in cluster.yaml's order"
    assert found["cp-2"] == Join(cluster.node("cp-2"), "add as a learner, then promote")


def test_data_of_a_member_that_was_taken_off_the_list_is_discarded_and_the_plan_says_so(cluster: Cluster) -> None:
    found = verdicts(cluster, [entry(cluster, "cp-1"), entry(cluster, "etcd-1")])
    assert list(found) == ["cp-2"]
    assert "discards a removed member's data" in found["cp-2"].how


def test_a_member_whose_data_is_gone_is_replaced(cluster: Cluster) -> None:
    found = verdicts(cluster, [entry(cluster, name) for name in IDS], "cp-2")
    assert list(found) == ["cp-2"]
    assert found["cp-2"].replaces == IDS["cp-2"]
    assert "remove it" in found["cp-2"].how


def test_a_founding_member_whose_first_start_was_cut_short_is_born_like_the_others(cluster: Cluster) -> None:
    """etcd itself tells the two apart by the client URLs, which a member publishes when it first starts."""
    listed = [entry(cluster, "cp-1"), entry(cluster, "cp-2"), entry(cluster, "etcd-1", client_urls=())]
    assert verdicts(cluster, listed, "etcd-1") == {}


def test_a_join_that_was_cut_short_goes_on_where_it_stopped(cluster: Cluster) -> None:
    added = entry(cluster, "cp-2", name="", client_urls=(), learner=True)
    found = verdicts(cluster, [entry(cluster, "cp-1"), added], "cp-2", "etcd-1")["cp-2"]
    assert (found.how, found.replaces, found.starts) == ("start as a learner, then promote", 0, True)
    found = verdicts(cluster, [entry(cluster, "cp-1"), entry(cluster, "cp-2", learner=True)], "etcd-1")["cp-2"]
    assert (found.how, found.starts) == ("promote", False)


def test_without_anybody_to_ask_those_without_data_wait(cluster: Cluster) -> None:
    """Started as a founder, a member that lost its data could vote for a log that misses what it had acknowledged."""
    assert [join.how for join in verdicts(cluster, None, "cp-2").values()] == ["join once the other members run"]


@pytest.mark.parametrize("without_data", [(), ("cp-2",)])
def test_a_member_at_another_address_is_refused_and_its_data_left_alone(cluster: Cluster, without_data: tuple[str, ...]) -> None:
    listed = [entry(cluster, "cp-1"), entry(cluster, "cp-2", peer_urls=("https://10.77.0.92:2380",)), entry(cluster, "etcd-1")]
    with pytest.raises(ApplyError, match=r"cp-2: etcd knows this member at https://10\.77\.0\.92:2380.*nothing was changed"):
        verdicts(cluster, listed, *without_data)


def test_members_that_cluster_yaml_does_not_know_are_named(session: Session, cluster: Cluster) -> None:
    listed = [*(entry(cluster, name) for name in IDS), Member(9, "old-3", ("https://10.77.0.99:2380",), (), learner=False)]
    assert members.strangers(session, listed) == ("old-3",)
    assert members.strangers(session, None) == ()


def test_a_cluster_that_was_never_born_has_nobody_joining(session: Session, cluster: Cluster) -> None:
    """The first run was cut short after one member had started: the others are founders still."""
    actual: dict[str, dict[str, Any]] = {name: {"units": {}, "etcd_data": name == "cp-1"} for name in IDS}
    assert members.joins(replace(session, actual=actual), None) == ()
    actual["cp-1"]["units"] = {"kube-apiserver.service": {"loaded": True}}
    found = members.joins(replace(session, actual=actual), [entry(cluster, "cp-1")])
    assert [join.node.name for join in found] == ["cp-2", "etcd-1"]


# -- quorum ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def looked(session: Session) -> Session:
    """A session that has seen every machine, and would restart etcd on two of them."""
    restarts = tuple(
        Change(name, "etcd", "unit", "etcd.service", "restart (runs an older configuration)") for name in ("cp-1", "cp-2")
    )
    return replace(session, actual={name: {"units": {}} for name in IDS}, plan=Plan(restarts))


def test_one_restart_at_a_time_is_safe_while_every_member_can_be_had(looked: Session, cluster: Cluster) -> None:
    members.refuse_quorum_loss(looked, [entry(cluster, name) for name in IDS])
    members.refuse_quorum_loss(looked, None)


def test_a_restart_is_refused_while_another_member_is_down(looked: Session, cluster: Cluster) -> None:
    actual = {name: state for name, state in looked.actual.items() if name != "etcd-1"}
    with pytest.raises(ApplyError) as refusal:
        members.refuse_quorum_loss(replace(looked, actual=actual), [entry(cluster, name) for name in IDS])
    assert "restarts etcd on cp-1, cp-2, while etcd-1 is already down (2 of 3 members are up, 2 are needed)" in str(refusal.value)
    assert "nothing was changed" in refusal.value.message
    assert "etcd-1" in refusal.value.hint


def test_a_dead_member_does_not_hold_up_changes_that_leave_etcd_alone(looked: Session, cluster: Cluster) -> None:
    actual = {name: state for name, state in looked.actual.items() if name != "etcd-1"}
    plan = Plan((Change("cp-1", "kube_apiserver", "unit", "kube-apiserver.service", "restart (runs an older configuration)"),))
    members.refuse_quorum_loss(replace(looked, actual=actual, plan=plan), [entry(cluster, name) for name in IDS])


def test_a_member_that_nobody_knows_counts_as_down(looked: Session, cluster: Cluster) -> None:
    stranger = Member(9, "old-3", ("https://10.77.0.99:2380",), ("https://10.77.0.99:2379",), learner=False)
    listed = [entry(cluster, "cp-1"), entry(cluster, "cp-2"), stranger]
    with pytest.raises(ApplyError, match="old-3 is already down"):
        members.refuse_quorum_loss(looked, listed)
    # a learner has no vote to lose
    members.refuse_quorum_loss(looked, [entry(cluster, name) for name in IDS] + [replace(stranger, learner=True)])


def test_members_cannot_be_replaced_without_a_quorum(looked: Session, cluster: Cluster) -> None:
    joining = tuple(Join(cluster.node(name), "replace", replaces=IDS[name]) for name in ("cp-2", "etcd-1"))
    with pytest.raises(ApplyError, match="etcd has lost its quorum: cp-2, etcd-1 are down"):
        members.refuse_quorum_loss(replace(looked, joining=joining), [entry(cluster, name) for name in IDS])
