"""etcd's member list: which machines still have to join it and how, and which changes its quorum would not survive.

A cluster is born with every member of cluster.yaml at once. From then on the member list is the truth: a machine that is not
on it, or whose data is gone, joins as a learner, catches up, and is promoted, one at a time
(https://etcd.io/docs/v3.6/op-guide/runtime-configuration/, https://etcd.io/docs/v3.6/learning/design-learner/).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from provisioner import session as sessions
from provisioner import topology
from provisioner.config import Node
from provisioner.errors import ApplyError, ProvisionerError
from provisioner.etcd_api import EtcdApi, EtcdError, Member, listed_by_any
from provisioner.plan import Change
from provisioner.plays import play, refuse_failures
from provisioner.session import Session
from provisioner.wait import wait_until

ETCD = "etcd.service"
# A learner of a large database has gigabytes to fetch first.
SYNC_SECONDS = 600
# A change of the member list waits for the change before it to be known everywhere.
CALL_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Join:
    """One machine on its way into the member list.

    Args:
        node: the machine.
        how: what will be done, for the plan.
        replaces: id of the entry that it had before its data was lost; 0 for none.
        starts: whether its member must be started with a birth certificate of its own; else it runs, and lacks a vote only.
    """

    node: Node
    how: str
    replaces: int = 0
    starts: bool = True


def joins(session: Session, listed: Sequence[Member] | None) -> tuple[Join, ...]:
    """The machines that must join an etcd cluster which exists already, in cluster.yaml's order. Pure.

    Args:
        listed: the member list (``listing``).
    """
    data = {
        node.name: bool(session.actual[node.name]["etcd_data"])
        for node in session.cluster.etcd_members
        if node.name in session.actual
    }
    if not _was_born(session) or not (any(data.values()) or any(leaver.member for leaver in session.leaving)):
        return ()
    nodes = tuple(node for node in session.cluster.etcd_members if node.name in data)
    return classify(nodes, data, listed)


def classify(nodes: Sequence[Node], data: Mapping[str, bool], listed: Sequence[Member] | None) -> tuple[Join, ...]:
    """What each machine is to the member list. Pure.

    Args:
        nodes: machines with the role etcd that could be looked at.
        data: whether each holds a member's data.
        listed: the member list; None while no member serves it, and then whoever has no data waits for it.

    Raises:
        ApplyError: a machine's name is listed at another address: its member would be taken for a stranger, and its data discarded.
    """
    found = []
    for node in nodes:
        _refuse_moved(node, listed or ())
        entry = next((member for member in listed or () if topology.etcd_peer_url(node) in member.peer_urls), None)
        if listed is None:
            join = None if data[node.name] else Join(node, "join once the other members run")
        elif entry is None:
            join = Join(node, "add as a learner, then promote" + (" (discards a removed member's data)" if data[node.name] else ""))
        elif data[node.name]:
            join = Join(node, "promote", starts=False) if entry.learner else None
        elif entry.name and not entry.client_urls:
            # one of the founders, whose first start was cut short: it is born like the others
            join = None
        elif entry.name:
            join = Join(node, "replace the member whose data is gone: remove it, add as a learner, then promote", replaces=entry.id)
        else:
            join = Join(node, "start as a learner, then promote")
        if join:
            found.append(join)
    return tuple(found)


def _refuse_moved(node: Node, listed: Sequence[Member]) -> None:
    url = topology.etcd_peer_url(node)
    known = [member for member in listed if member.name == node.name]
    if known and not any(url in member.peer_urls for member in listed):
        raise ApplyError(
            f"{node.name}: etcd knows this member at {', '.join(known[0].peer_urls)}, cluster.yaml says {url}; nothing was changed",
            hint="a member cannot be moved to another address: put the old one back, or give the machine another name",
        )


def listing(session: Session) -> tuple[Member, ...] | None:
    """The member list as any member knows it at this moment; None where none answers."""
    staying = [node for node in session.cluster.etcd_members if node.name not in session.set_aside]
    return listed_by_any((*staying, *_leaving_members(session)), lambda node: api_of(session, node))


def _leaving_members(session: Session) -> tuple[Node, ...]:
    """Machines that leave and run a member still."""
    return tuple(leaver.node for leaver in session.leaving if leaver.member)


def changes(found: Sequence[Join]) -> tuple[Change, ...]:
    """The joins as the plan shows them."""
    return tuple(Change(join.node.name, "etcd", "member", join.node.name, join.how) for join in found)


def strangers(session: Session, listed: Sequence[Member] | None) -> tuple[str, ...]:
    """Members of the running etcd cluster that are no machines of cluster.yaml, nor on their way out of it, by name or peer
    URL. Pure."""
    nodes = (*session.cluster.etcd_members, *(leaver.node for leaver in session.leaving))
    known = {topology.etcd_peer_url(node) for node in nodes}
    return tuple(member.name or ", ".join(member.peer_urls) for member in listed or () if not known.intersection(member.peer_urls))


# -- before a change -----------------------------------------------------------------------------------------------------------


def refuse_quorum_loss(session: Session, listed: Sequence[Member] | None) -> None:
    """Stop before a change that would leave etcd without its quorum, even for the time of one restart. Pure.

    Args:
        listed: the member list; None while no member runs, and then there is no quorum to lose.

    Raises:
        ApplyError: names the members that are down already, and those that the change would restart.
    """
    restarts = restarted(session)
    if listed is None:
        return
    voters = [member for member in listed if not member.learner]
    down = _down(session, voters)
    if not down:
        return
    need, up = topology.quorum(len(voters)), len(voters) - len(down)
    lost = sorted(join.node.name for join in session.joining if join.replaces)
    counts = f"{up} of {len(voters)} members are up, {need} are needed"
    if up < need and session.joining:
        raise ApplyError(
            f"etcd has lost its quorum: {', '.join(down)} {'is' if len(down) == 1 else 'are'} down ({counts}); nothing was changed",
            hint="bring members that still have their data back first; without a quorum the member list cannot be changed",
        )
    if restarts and up - 1 < need:
        raise ApplyError(
            f"this change restarts etcd on {', '.join(restarts)}, while {', '.join(down)} {'is' if len(down) == 1 else 'are'}"
            f" already down ({counts}): etcd would lose its quorum; nothing was changed",
            hint=f"bring {', '.join(down)} back first (`provisioner status` shows the members)"
            + (f"; undo the change to etcd, and `provisioner apply` replaces {', '.join(lost)}" if lost else ""),
        )


def restarted(session: Session) -> tuple[str, ...]:
    """Machines whose running member the plan restarts."""
    joining = {join.node.name for join in session.joining}
    return tuple(
        change.host
        for change in session.plan.changes
        if change.what == ETCD and change.action.startswith("restart") and change.host not in joining
    )


def _down(session: Session, voters: Sequence[Member]) -> tuple[str, ...]:
    """Voters that this run cannot start before it touches the others: their machine does not answer, or their data is gone."""
    known = {topology.etcd_peer_url(node): node for node in session.cluster.etcd_members}
    replaced = {join.replaces for join in session.joining}
    up = {topology.etcd_peer_url(node) for node in _leaving_members(session)}
    found = []
    for voter in voters:
        node = next((known[url] for url in voter.peer_urls if url in known), None)
        if up.intersection(voter.peer_urls):
            continue
        if node is None or node.name not in session.actual or voter.id in replaced:
            found.append(node.name if node else voter.name)
    return tuple(found)


def refuse_unsafe_removal(session: Session, listed: Sequence[Member] | None) -> None:
    """Stop before members are taken off the list, where those that stay would be without a quorum. Pure.

    Raises:
        ApplyError: etcd has lost its quorum already, or would with the removal.
    """
    leaving = {leaver.member_id: leaver for leaver in session.leaving if leaver.member_id and leaver.name not in session.set_aside}
    if not leaving or listed is None:
        return
    voters = [member for member in listed if not member.learner]
    down = _down(session, voters)
    names = ", ".join(leaver.name for leaver in leaving.values())
    if len(voters) - len(down) < topology.quorum(len(voters)):
        raise ApplyError(
            f"{names}: etcd has lost its quorum ({', '.join(sorted(down))} down), so its member list cannot be changed; "
            "nothing was changed",
            hint="bring members that still have their data back first; `provisioner status` shows them",
        )
    # by then whoever joins has a vote: a learner of an earlier run, and one that takes the place of lost data, as any other
    staying = [member for member in voters if member.id not in leaving]
    votes = {url for member in staying for url in member.peer_urls}
    joining = {join.node.name: topology.etcd_peer_url(join.node) for join in session.joining}
    after = len(staying) + sum(url not in votes for url in joining.values())
    down = tuple(name for name in _down(session, staying) if name not in joining)
    healthy = after - len(down)
    if healthy < topology.quorum(after):
        raise ApplyError(
            f"{names}: without {'it' if len(leaving) == 1 else 'them'} etcd would have {after} members, {healthy} of them up, "
            f"and {topology.quorum(after)} are needed; nothing was changed",
            hint=f"bring {', '.join(sorted(down))} back first, or add a member" if down else "add a member first",
        )


# -- the change ----------------------------------------------------------------------------------------------------------------


def join_all(session: Session) -> Session:
    """INPUTS: rendered/, the member list. OUTPUTS: every machine of cluster.yaml with the role etcd is a voting member.

    Raises:
        ApplyError, EtcdError, WaitTimeout: with the member and what etcd said; the next apply goes on from there.
    """
    if listing(session) is None:
        # nobody serves the list yet: those that have their data come first
        refuse_failures(play(session, ("etcd",)), session)
    for planned in session.joining:
        with voter(session, but=planned.node.name) as etcd:
            listed = etcd.members()
            data = {planned.node.name: bool(session.actual[planned.node.name]["etcd_data"])}
            for join in classify((planned.node,), data, listed):
                session = _join(session, etcd, join, listed)
    return session


def _join(session: Session, etcd: EtcdApi, join: Join, listed: tuple[Member, ...]) -> Session:
    node, url = join.node, topology.etcd_peer_url(join.node)
    if join.starts:
        listed = _without_orphans(session, etcd, listed)
        if join.replaces:
            listed = etcd.remove_member(join.replaces)
        if not any(url in member.peer_urls for member in listed):
            listed = wait_until(
                f"{node.name}: its place on etcd's member list",
                lambda: etcd.add_learner(url),
                seconds=CALL_SECONDS,
                retry_on=(EtcdError,),
            )
        names = tuple((node.name if url in member.peer_urls else member.name, member.peer_urls[0]) for member in listed)
        session = sessions.joining_etcd(session, node, names)
        refuse_failures(play(session, ("etcd_join",), joins=node.name), session)
    member = next(member for member in etcd.members() if url in member.peer_urls)
    if member.learner:
        wait_until(
            f"{node.name}: in sync with etcd's leader",
            lambda: etcd.promote(member.id),
            seconds=SYNC_SECONDS,
            every=0.5,
            hint=f"look at `journalctl -u etcd` on {node.name}; `provisioner apply` promotes it once it has caught up",
            retry_on=(EtcdError,),
        )
    return session


def _without_orphans(session: Session, etcd: EtcdApi, listed: tuple[Member, ...]) -> tuple[Member, ...]:
    """The list without learners that never started and are no machine of cluster.yaml: what a change of mind left behind."""
    known = {topology.etcd_peer_url(node) for node in session.cluster.etcd_members}
    for member in listed:
        if member.learner and not member.name and not known.intersection(member.peer_urls):
            listed = etcd.remove_member(member.id)
    return listed


def voter(session: Session, *, but: str) -> EtcdApi:
    """A member that serves the list with a quorum behind it; one that stays, where there is one.

    Args:
        but: name of the machine that the list is to be changed for; it is not asked.

    Raises:
        ApplyError: none does.
    """
    failures = []
    staying = [node for node in session.cluster.etcd_members if node.name in session.actual and node.name != but]
    for node in (*staying, *(node for node in _leaving_members(session) if node.name != but)):
        try:
            etcd = api_of(session, node, timeout=CALL_SECONDS)
        except ProvisionerError as error:
            failures.append(error.message)
            continue
        try:
            if not etcd.status().learner:
                etcd.members()
                return etcd
        except ProvisionerError as error:
            failures.append(error.message)
        etcd.close()
    raise ApplyError(
        f"{but}: etcd's member list cannot be changed: no member has a quorum behind it",
        hint="`provisioner status` shows the members; bring those back that have their data",
        details=tuple(failures),
    )


def _was_born(session: Session) -> bool:
    """Whether etcd has served before: no API server is placed anywhere until every founding member is healthy."""
    return any(leaver.member or leaver.apiserver for leaver in session.leaving) or any(
        bool(session.actual.get(node.name, {}).get("units", {}).get("kube-apiserver.service", {}).get("loaded"))
        for node in session.cluster.control_planes
    )


def api_of(session: Session, node: Node, *, timeout: float = 5) -> EtcdApi:
    """A client of one member."""
    return EtcdApi(node, session.workspace, session.connections, session.the_pki(), timeout=timeout)
