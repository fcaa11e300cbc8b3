"""Machines that leave, as values: what becomes of each, who stays after all, and removals that etcd would not survive."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

import pytest

from provisioner import leave, members, topology
from provisioner.cluster_api import ClusterApi
from provisioner.config import Cluster, Node, Role
from provisioner.errors import ApplyError, ProvisionerError
from provisioner.etcd_api import Member
from provisioner.events import Tally
from provisioner.facts import HostFacts
from provisioner.leaver import Leaver, Removal
from provisioner.members import Join
from provisioner.plan import Change, Plan
from provisioner.session import Session

OURS = "0123456789abcdef"


def machine(number: int, *roles: Role, name: str = "") -> Node:
    """A machine; without roles, a member of etcd."""
    return Node(name=name or f"m-{number}", address=f"10.77.0.{number}", roles=roles or (Role.ETCD,))


WORKER = machine(41, Role.WORKER, name="old-worker")
PLANE = machine(42, Role.CONTROL_PLANE, Role.ETCD, name="old-cp")
MEMBER = machine(43, Role.ETCD, name="old-etcd")


@dataclass
class Nodes:
    """Stands in for the API, of which nothing but ``get`` is asked."""

    names: tuple[str, ...]
    asked: list[str] = field(default_factory=list)

    def get(self, obj: Mapping[str, Any]) -> dict[str, Any] | None:
        assert (obj["apiVersion"], obj["kind"]) == ("v1", "Node")
        name = obj["metadata"]["name"]
        self.asked.append(name)
        return {"metadata": {"name": name}} if name in self.names else None


def api(*names: str) -> ClusterApi:
    return cast("ClusterApi", Nodes(names))


def listed(*nodes: Node, first: int = 1, **changes: Any) -> list[Member]:
    """Entries of machines whose members vote and have started."""
    values: dict[str, Any] = {"learner": False, **changes}
    return [
        Member(
            **{
                "id": number,
                "name": node.name,
                "peer_urls": (topology.etcd_peer_url(node),),
                "client_urls": (f"https://{node.ip}:2379",),
                **values,
            }
        )
        for number, node in enumerate(nodes, first)
    ]


# -- from facts --------------------------------------------------------------------------------------------------------------------


def facts(marker: Mapping[str, object] | None, **units: str) -> HostFacts:
    """Facts of a machine, of which nothing else is looked at here."""
    values: dict[str, Any] = dict.fromkeys(item.name for item in fields(HostFacts))
    named = {f"{name.replace('_', '-')}.service": state for name, state in units.items()}
    return HostFacts(**{**values, "marker": marker, "units": named, "python": "/usr/bin/python3.11"})


def test_a_machine_with_this_clusters_marker_is_ours() -> None:
    found = Leaver.of(PLANE, facts({"id": OURS}, etcd="active", kube_apiserver="activating", kubelet="active"), OURS)
    assert found == Leaver(PLANE, answers=True, ours=True, member=True, apiserver=True, python="/usr/bin/python3.11")
    assert found.name == "old-cp"


@pytest.mark.parametrize("state", ["inactive", "failed", "deactivating"])
def test_what_is_stopped_does_not_run(state: str) -> None:
    found = Leaver.of(PLANE, facts({"id": OURS}, etcd=state, kube_apiserver=state), OURS)
    assert (found.ours, found.member, found.apiserver) == (True, False, False)


@pytest.mark.parametrize(
    ("marker", "cluster_id"), [({"id": "another"}, OURS), (None, OURS), ({}, OURS), ({"id": OURS}, None), ({}, None), (None, None)]
)
def test_another_clusters_machine_or_a_wiped_one_is_let_be(marker: Mapping[str, object] | None, cluster_id: str | None) -> None:
    """What runs there is not this cluster's, whatever it is called."""
    found = Leaver.of(PLANE, facts(marker, etcd="active", kube_apiserver="active"), cluster_id)
    assert found == Leaver(PLANE, answers=True, python="/usr/bin/python3.11")


def test_a_machine_without_facts_does_not_answer() -> None:
    assert Leaver.of(PLANE, None, OURS) == Leaver(PLANE)
    assert not Leaver(PLANE).answers


# -- what the cluster knows of them ------------------------------------------------------------------------------------------------


def test_the_cluster_says_whether_there_is_a_node_and_a_member(session: Session, cluster: Cluster) -> None:
    answering = [Leaver(node, answers=True, ours=True) for node in (WORKER, PLANE, MEMBER)]
    session = replace(session, leaving=tuple(answering))
    served = Nodes(("old-cp", "old-etcd", "cp-1"))
    found = leave.seen(session, cast("ClusterApi", served), listed(cluster.node("cp-1"), PLANE, MEMBER))
    assert [(leaver.name, leaver.registered, leaver.member_id) for leaver in found.leaving] == [
        ("old-worker", False, 0),
        ("old-cp", True, 2),
        # a machine without a kubelet has no Node: one of its name is another's
        ("old-etcd", False, 3),
    ]
    assert served.asked == ["old-worker", "old-cp"]
    assert found.set_aside == {}
    assert session.leaving == tuple(answering), "a session is a value"


def test_where_nobody_serves_nothing_is_known(session: Session) -> None:
    session = replace(session, leaving=(Leaver(PLANE, answers=True, ours=True),))
    assert leave.seen(session, None, None).leaving == session.leaving


def test_a_member_is_known_by_its_peer_url_not_by_its_name(session: Session) -> None:
    session = replace(session, leaving=(Leaver(PLANE, answers=True),))
    renamed, elsewhere = listed(PLANE, name="x"), listed(PLANE, peer_urls=("https://10.77.0.99:2380",))
    assert leave.seen(session, None, renamed).leaving[0].member_id == 1
    assert leave.seen(session, None, elsewhere).leaving[0].member_id == 0
    added = listed(PLANE, name="", client_urls=(), learner=True)
    assert leave.seen(session, None, added).leaving[0].member_id == 1


def test_who_does_not_answer_is_left_as_it_is_and_the_user_is_told(session: Session, printed: io.StringIO) -> None:
    earlier = ProvisionerError("worker-1: down")
    leaving = (Leaver(WORKER), Leaver(PLANE, answers=True, ours=True))
    found = leave.seen(replace(session, leaving=leaving, set_aside={"worker-1": earlier}), api("old-worker"), None)
    assert set(found.set_aside) == {"worker-1", "old-worker"}
    assert "old-worker is to leave, and does not answer: it is left as it is" in found.set_aside["old-worker"].message
    assert "provisioner node remove old-worker --unreachable" in found.set_aside["old-worker"].hint
    assert "warning: old-worker is to leave, and does not answer" in printed.getvalue()
    assert [leaver.name for leaver in leave.departing(found)] == ["old-cp"]
    assert {change.host for change in leave.changes(found)} == {"old-cp"}


def test_who_is_given_up_leaves_without_an_answer(session: Session, printed: io.StringIO) -> None:
    session = replace(session, leaving=(Leaver(WORKER), Leaver(MEMBER)), removal=Removal(frozenset({"old-worker"})))
    found = leave.seen(session, api("old-worker"), None)
    assert set(found.set_aside) == {"old-etcd"}
    assert [leaver.name for leaver in leave.departing(found)] == ["old-worker"]
    assert leave.departing(found)[0].registered
    assert "old-worker" not in printed.getvalue()


def ours(node: Node) -> Leaver:
    return Leaver(node, answers=True, ours=True)


def test_proxies_keep_their_ways_to_control_planes_of_ours_that_leave(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without, nobody serves while the last API server is restarted, or the only one is replaced."""
    led: list[list[str]] = []

    def lead_to(given: Session, leaving: Iterable[Node]) -> Session:
        led.append([node.name for node in leaving])
        return given

    monkeypatch.setattr("provisioner.session.lead_to", lead_to)
    monkeypatch.setattr("provisioner.plays.play", lambda *_, **__: Tally(lambda _: None))
    leave.keep_ways(replace(session, leaving=(ours(WORKER), ours(MEMBER), Leaver(PLANE))))
    assert led == [], "no control plane that serves is among them"
    session = replace(session, leaving=(ours(PLANE), ours(WORKER)))
    leave.keep_ways(session)
    assert led == [["old-cp"]]
    changed = replace(session, plan=Plan((Change("cp-1", "api_proxy", "file", "/x", "change"),)))
    leave._lead_elsewhere(changed)
    assert led[1:] == [[]], "as cluster.yaml says"
    leave._lead_elsewhere(replace(changed, set_aside={"old-cp": ProvisionerError("could not be drained")}))
    assert led[2:] == [], "who stays serves"


def test_there_is_something_to_do_only_where_a_machine_leaves(session: Session) -> None:
    assert not leave.is_wanted(session)
    session = replace(session, leaving=(Leaver(WORKER),))
    assert leave.is_wanted(session)
    assert not leave.is_wanted(replace(session, set_aside={"old-worker": ProvisionerError("down")}))


@pytest.mark.parametrize(
    ("leaver", "rows"),
    [
        (
            Leaver(PLANE, answers=True, ours=True, registered=True, member_id=7),
            [("node", "drain, then delete"), ("member", "remove from etcd"), ("machine", "wipe")],
        ),
        (Leaver(MEMBER, answers=True, ours=True, member_id=7), [("member", "remove from etcd"), ("machine", "wipe")]),
        # drained, wiped or never joined: a run that was cut short
        (Leaver(WORKER, answers=True, ours=True, registered=False), [("machine", "wipe")]),
        # the API could not be asked: it will be, before anything is done
        (Leaver(WORKER, answers=True, ours=True), [("node", "drain, then delete"), ("machine", "wipe")]),
        (
            Leaver(WORKER, answers=True, registered=True),
            [
                ("node", "delete, and with it the pods that ran there"),
                ("machine", "forget (it carries nothing of this cluster)"),
            ],
        ),
        (
            Leaver(WORKER, registered=True),
            [("node", "delete, and with it the pods that ran there"), ("machine", "forget (it does not answer)")],
        ),
    ],
)
def test_the_plan_says_what_becomes_of_a_machine(session: Session, leaver: Leaver, rows: list[tuple[str, str]]) -> None:
    name = leaver.name
    expected = tuple(Change(name, "leave", kind, name, action) for kind, action in rows)
    assert leave.changes(replace(session, leaving=(leaver,))) == expected


def test_nodes_that_were_to_leave_and_stay_are_known_by_our_mark(session: Session) -> None:
    def node(**annotations: str) -> dict[str, Any]:
        return {"metadata": {"annotations": annotations}, "spec": {"unschedulable": True}}

    mark = {leave.LEAVING: "true"}
    nodes = {
        "worker-1": node(**mark),
        "old-worker": node(**mark),
        # cordoned by an administrator, whose cordon stays
        "cp-1": node(),
        "cp-2": {"metadata": {}, "spec": {"unschedulable": True}},
    }
    assert leave.returned(session, nodes) == ("worker-1",)
    assert leave.returned(session, {**nodes, "cp-2": {"metadata": {"annotations": None}}}) == ("worker-1",)
    # not the business of this run
    assert leave.returned(replace(session, scope=frozenset({"cp-1"})), nodes) == ()
    assert leave.returned(replace(session, set_aside={"worker-1": ProvisionerError("down")}), nodes) == ()


# -- removals that etcd would not survive ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Members by number: 1 and 2 and so on.

    Args:
        stay: machines of cluster.yaml with the role etcd.
        down: those of them that do not answer.
        leave: machines that leave, with a member that runs.
        dead: machines that leave and are given up.
        silent: machines that are to leave and do not answer: set aside.
        join: machines of cluster.yaml that join and are not on the list.
        promote: machines of cluster.yaml that are learners.
        replaced: machines of cluster.yaml whose data is gone.
        learner: machines that leave and are learners still.
        unknown: members that nobody knows.
        refused: part of the error; empty for none.
    """

    stay: str
    leave: str = ""
    down: str = ""
    dead: str = ""
    silent: str = ""
    join: str = ""
    promote: str = ""
    replaced: str = ""
    learner: str = ""
    unknown: str = ""
    refused: str = ""
    hint: str = ""


CASES = {
    "3 to 2": Case("12", "3"),
    "3 to 1": Case("1", "23"),
    "2 to 1": Case("1", "2"),
    "5 to 1": Case("1", "2345"),
    "nobody leaves": Case("123", down="23"),
    "all are replaced by others": Case("456", "123", join="456"),
    "the only one is replaced": Case("2", "1", join="2"),
    "the only one is replaced, and the first run was cut short before the new one got its vote": Case("2", "1", promote="2"),
    "the only one leaves": Case("", "1", refused="etcd would have 0 members, 0 of them up, and 1 are needed", hint="add a member"),
    "the dead one is given up": Case("12", dead="3"),
    "the dead one is replaced by another": Case("124", dead="3", join="4"),
    "two of five are dead and given up": Case("123", dead="45"),
    "a dead one and a running one of five": Case("123", "4", dead="5"),
    "the dead one of two": Case("1", dead="2", refused="etcd has lost its quorum (m-2 down)", hint="bring members"),
    "two of three are dead": Case("1", dead="23", refused="etcd has lost its quorum (m-2, m-3 down)"),
    "a running one leaves while another one is down": Case(
        "12", "3", down="2", refused="without it etcd would have 2 members, 1 of them up, and 2 are needed", hint="bring m-2 back"
    ),
    "two running ones of five leave while another one is down": Case("123", "45", down="3", refused=""),
    "three running ones of five leave while another one is down": Case(
        "12",
        "345",
        down="2",
        refused="without them etcd would have 2 members, 1 of them up, and 2 are needed",
        hint="bring m-2 back",
    ),
    "a running one leaves while another one is down and one joins": Case("124", "3", down="2", join="4"),
    "one that is silent is left, and counts": Case("12", "3", silent="4"),
    "one that is silent and one that is down": Case("12", "3", down="2", silent="4", refused="etcd has lost its quorum"),
    "a running one leaves while a silent one is left": Case(
        "1", "2", silent="3", refused="etcd would have 2 members, 1 of them up", hint="bring m-3 back"
    ),
    "no quorum now": Case("12", "3", down="12", refused="etcd has lost its quorum (m-1, m-2 down), so its member list cannot"),
    "a stranger that runs or not is nobody to count on": Case("1", "2", unknown="9", refused="2 members, 1 of them up", hint="m-9"),
    "a learner that leaves had no vote": Case("123", learner="4"),
    "a learner that leaves had no vote, and one is down": Case("123", down="3", learner="4"),
    "a learner and a member leave": Case("12", "3", learner="4"),
    "a learner leaves, a member as well, and one is down": Case(
        "12", "3", down="2", learner="4", refused="etcd would have 2 members, 1 of them up", hint="bring m-2 back"
    ),
    "one whose data is gone joins anew before the other leaves": Case("12", "3", replaced="2"),
    "one whose data is gone and one that is dead": Case("12", dead="3", replaced="2", refused="etcd has lost its quorum"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_removals(case: Case, session: Session, cluster: Cluster) -> None:
    def nodes(numbers: str) -> tuple[Node, ...]:
        return tuple(machine(int(number)) for number in numbers)

    def ids(numbers: str) -> list[int]:
        return [int(number) for number in numbers]

    here = nodes(case.stay)
    voting = "".join(number for number in case.stay if number not in case.join + case.promote)
    entries = [
        replace(listed(machine(number))[0], id=number, learner=str(number) in case.promote + case.learner)
        for number in ids(voting + case.promote + case.leave + case.dead + case.silent + case.learner + case.unknown)
    ]
    leaving = (
        *(Leaver(machine(n), answers=True, ours=True, member=True, member_id=n) for n in ids(case.leave + case.learner)),
        *(Leaver(machine(n), member_id=n) for n in ids(case.dead + case.silent)),
    )
    joining = (
        *(Join(machine(n), "add") for n in ids(case.join)),
        *(Join(machine(n), "promote", starts=False) for n in ids(case.promote)),
        *(Join(machine(n), "replace", replaces=n) for n in ids(case.replaced)),
    )
    session = replace(
        session,
        cluster=cluster.model_copy(update={"nodes": here}),
        actual={node.name: {"units": {}} for node in here if node.name not in {f"m-{number}" for number in case.down}},
        leaving=leaving,
        joining=joining,
        removal=Removal(frozenset(f"m-{number}" for number in case.dead)),
        set_aside={f"m-{number}": ProvisionerError("silent") for number in case.silent},
    )
    if not case.refused:
        members.refuse_unsafe_removal(session, entries)
        return
    with pytest.raises(ApplyError) as refused:
        members.refuse_unsafe_removal(session, entries)
    message = refused.value.message
    assert case.refused in message
    assert "nothing was changed" in message
    assert all(leaver.name in message for leaver in leaving if leaver.name not in session.set_aside)
    assert case.hint in refused.value.hint
    assert "  " not in refused.value.hint, "a name is missing"
    # nobody can say anything about members that nobody serves
    members.refuse_unsafe_removal(session, None)


# -- etcd with machines that leave -------------------------------------------------------------------------------------------------


@pytest.fixture
def leaving(session: Session, cluster: Cluster) -> Callable[..., Session]:
    """A session of which cp-2, and what else is named, leaves."""

    def make(**changes: Any) -> Session:
        rest = cluster.model_copy(update={"nodes": tuple(node for node in cluster.nodes if node.name != "cp-2")})
        leaver = Leaver(cluster.node("cp-2"), answers=True, ours=True, member_id=2)
        return replace(
            session,
            cluster=rest,
            actual={"cp-1": {"units": {}, "etcd_data": True}, "etcd-1": {"units": {}, "etcd_data": True}},
            leaving=(replace(leaver, **changes),),
        )

    return make


def three(cluster: Cluster) -> list[Member]:
    return listed(*cluster.etcd_members)


def test_a_member_that_leaves_is_no_stranger(leaving: Callable[..., Session], cluster: Cluster) -> None:
    session = leaving(member=True)
    assert members.strangers(session, three(cluster)) == ()
    # nor is one that is set aside, and left as it is
    assert members.strangers(replace(session, set_aside={"cp-2": ProvisionerError("down")}), three(cluster)) == ()
    nameless = listed(MEMBER, name="", learner=True)
    assert members.strangers(session, [*three(cluster), *nameless]) == ("https://10.77.0.43:2380",)
    assert members.strangers(replace(session, leaving=()), three(cluster)) == ("cp-2",)


def test_a_member_that_leaves_and_runs_can_be_had(leaving: Callable[..., Session], cluster: Cluster) -> None:
    voters = three(cluster)
    assert members._down(leaving(member=True), voters) == ()
    assert members._down(leaving(member=False), voters) == ("cp-2",)
    # whoever does not answer is down, though it is to leave
    assert members._down(replace(leaving(member=True), leaving=(Leaver(cluster.node("cp-2")),)), voters) == ("cp-2",)


def test_a_restart_is_safe_with_a_member_that_leaves_and_runs_still(leaving: Callable[..., Session], cluster: Cluster) -> None:
    """It goes off the list after everything that stays is as cluster.yaml says."""
    restart = Plan((Change("cp-1", "etcd", "unit", "etcd.service", "restart (runs an older configuration)"),))
    members.refuse_quorum_loss(replace(leaving(member=True), plan=restart), three(cluster))
    with pytest.raises(ApplyError, match=r"restarts etcd on cp-1, while cp-2 is already down \(2 of 3 members are up"):
        members.refuse_quorum_loss(replace(leaving(member=False), plan=restart), three(cluster))


def test_who_joins_is_found_by_the_machine_that_leaves(session: Session, cluster: Cluster) -> None:
    """The only control plane is replaced: every machine of cluster.yaml is new, and yet it is no new cluster."""
    new = machine(51, Role.CONTROL_PLANE, Role.ETCD, name="cp-9")
    session = replace(
        session,
        cluster=cluster.model_copy(update={"nodes": (new,)}),
        actual={"cp-9": {"units": {}, "etcd_data": False}},
        leaving=(Leaver(PLANE, answers=True, ours=True, member=True, apiserver=True),),
    )
    assert members.joins(session, listed(PLANE)) == (Join(new, "add as a learner, then promote"),)
    added = [*listed(PLANE), *listed(new, first=2, name="", client_urls=(), learner=True)]
    assert members.joins(session, added) == (Join(new, "start as a learner, then promote"),)
    # a machine that leaves and is not this cluster's any more says nothing about it
    assert members.joins(replace(session, leaving=(Leaver(PLANE, answers=True),)), None) == ()
    # without its member there is no cluster to join, whatever else runs there
    stopped = Leaver(PLANE, answers=True, ours=True, apiserver=True)
    assert members.joins(replace(session, leaving=(stopped,)), None) == ()


def test_members_that_leave_are_none_to_classify(cluster: Cluster) -> None:
    """The list has more entries than cluster.yaml has machines, and that alone makes nobody join."""
    staying = tuple(node for node in cluster.etcd_members if node.name != "cp-2")
    assert members.classify(staying, {node.name: True for node in staying}, three(cluster)) == ()
    found = members.classify(staying, {"cp-1": True, "etcd-1": False}, three(cluster))
    assert [(join.node.name, join.replaces) for join in found] == [("etcd-1", 3)]


def test_a_machine_that_does_not_answer_joins_nothing(session: Session, cluster: Cluster) -> None:
    actual = {"cp-1": {"units": {"kube-apiserver.service": {"loaded": True}}, "etcd_data": True}}
    found = members.joins(replace(session, actual=actual), listed(cluster.node("cp-1")))
    assert found == ()
