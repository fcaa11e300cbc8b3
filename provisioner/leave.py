"""Machines that are in cluster.yaml no more: out of the plan's view by nothing but what the cluster and the registry know of them.

By the time these phases run, every machine that stays is as cluster.yaml says: its API server does not ask a member that leaves,
and whoever joins has joined. Only the proxies still lead to the control planes that leave: these serve while the API servers
that stay are restarted, or come into being. Then pods move, the proxies lead elsewhere, and one machine at a time: its API server
ends gracefully, its member leaves etcd's list, its Node goes; at last the machine is wiped and forgotten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from provisioner import inventory, members, pki, plays, registry, runner, topology
from provisioner import session as sessions
from provisioner.cluster_api import ClusterApi
from provisioner.config import Role
from provisioner.errors import Interrupted, ProvisionerError
from provisioner.etcd_api import EtcdError, Member
from provisioner.leaver import Leaver
from provisioner.lifecycle import drain, reset
from provisioner.plan import Change
from provisioner.session import Session
from provisioner.ssh.known_hosts import KnownHosts
from provisioner.ssh.target import target_of
from provisioner.wait import wait_until

ROLE = "leave"
# On a Node that was cordoned because its machine leaves.
LEAVING = "provisioner/leaving"
# On a Node that was cordoned while its machine is upgraded.
UPGRADING = "provisioner/upgrading"
_OURS = (LEAVING, UPGRADING)
# Seconds for etcd to take a member off its list, and for a new leader to be seen.
MEMBER_SECONDS = 60.0
# Until the controllers notice that a machine is silent: 40 s without a renewed lease, and some to spare.
SILENT_SECONDS = 120.0


def seen(session: Session, api: ClusterApi | None, listed: Sequence[Member] | None) -> Session:
    """What the cluster itself knows of the machines that leave. Those that neither answer nor are given up are set aside.

    Args:
        api: the cluster's API; None where it does not serve.
        listed: etcd's member list; None where nobody serves it.
    """
    found = []
    aside = dict(session.set_aside)
    for leaver in session.leaving:
        url = topology.etcd_peer_url(leaver.node)
        entry = next((member.id for member in listed or () if url in member.peer_urls), 0)
        registered = None if api is None else leaver.node.is_kubernetes_node and api.get(_node(leaver.name)) is not None
        found.append(replace(leaver, registered=registered, member_id=entry))
        if not leaver.answers and leaver.name not in session.removal.given_up and leaver.name not in aside:
            error = ProvisionerError(
                f"{leaver.name} is to leave, and does not answer: it is left as it is",
                hint=f"where it is gone for good: `provisioner node remove {leaver.name} --unreachable`",
            )
            session.display.say(f"warning: {error.message} ({error.hint})")
            aside[leaver.name] = error
    return replace(session, leaving=tuple(found), set_aside=aside)


def changes(session: Session) -> tuple[Change, ...]:
    """What will be done about the machines that leave, for the plan. Pure."""
    return tuple(change for leaver in departing(session) for change in _changes(session, leaver))


def departing(session: Session) -> tuple[Leaver, ...]:
    """The machines that leave in this run. Pure."""
    return tuple(leaver for leaver in session.leaving if leaver.name not in session.set_aside)


def is_wanted(session: Session) -> bool:
    """Whether any machine leaves."""
    return bool(departing(session))


def _changes(session: Session, leaver: Leaver) -> list[Change]:
    name = leaver.name
    rows = []
    if leaver.registered or (leaver.registered is None and leaver.node.is_kubernetes_node):
        how = "drain, then delete" if _is_drained(session, leaver) else "delete, and with it the pods that ran there"
        rows.append(Change(name, ROLE, "node", name, how))
    if leaver.member_id:
        rows.append(Change(name, ROLE, "member", name, "remove from etcd"))
    why = "it carries nothing of this cluster" if leaver.answers else "it does not answer"
    what = "wipe" if leaver.ours else f"forget ({why})"
    return [*rows, Change(name, ROLE, "machine", name, what)]


def _is_drained(session: Session, leaver: Leaver) -> bool:
    """Whether its pods are moved before it goes: of a machine that is given up nobody would end them."""
    return leaver.ours and leaver.name not in session.removal.given_up


def returned(session: Session, nodes: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Nodes that we have cordoned, and that stay: a change of mind between two runs, or an upgrade that was cut short. Pure.

    Args:
        nodes: the API's Nodes by name.
    """
    staying = {node.name for node in session.nodes}
    return tuple(name for name, node in nodes.items() if name in staying and is_ours(node))


def is_ours(node: Mapping[str, Any]) -> bool:
    """Whether it was us who cordoned a Node, and not an administrator."""
    return any(mark in (node["metadata"].get("annotations") or {}) for mark in _OURS)


def is_upgraded(node: Mapping[str, Any]) -> bool:
    """Whether we have cordoned a Node for an upgrade that did not come to its end there."""
    return UPGRADING in (node["metadata"].get("annotations") or {})


def welcome_back(api: ClusterApi, name: str) -> None:
    """Let pods be placed again on a Node that we have cordoned."""
    # in one step: a cordon without its mark would be taken for an administrator's
    api.merge(_node(name), {"metadata": {"annotations": dict.fromkeys(_OURS)}, "spec": {"unschedulable": None}})


def _node(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}


def keep_ways(session: Session) -> Session:
    """The session with proxies that lead to control planes that leave, too, until :func:`leave_all` leads them elsewhere."""
    planes = [leaver.node for leaver in departing(session) if _serves(leaver)]
    return sessions.lead_to(session, planes) if planes else session


def _serves(leaver: Leaver) -> bool:
    """Whether a machine that leaves is one of our control planes, and answers."""
    return leaver.ours and leaver.node.has(Role.CONTROL_PLANE)


def _lead_elsewhere(session: Session) -> Session:
    """Proxies as cluster.yaml says, but for control planes that stay because they could not be drained."""
    going = [leaver for leaver in departing(session) if _serves(leaver)]
    if not going or not session.plan.hosts_of("api_proxy"):
        return session
    session = sessions.lead_to(session, [leaver.node for leaver in session.leaving if _serves(leaver) and leaver not in going])
    tally = plays.play(session, ("api_proxy",))
    session = plays.set_aside(session, tally.aside.values())
    plays.refuse_failures(tally, session)
    return session


def drain_all(session: Session) -> Session:
    """INPUTS: the API. OUTPUTS: no pod but those of DaemonSets on any machine that leaves. One that cannot be drained is set aside.

    Raises:
        ApplyError: etcd's quorum would not survive that members leave.
    """
    failures: dict[str, ProvisionerError] = {}
    with session.api() as api:
        # the first look may have found an API or an etcd that this run has repaired since
        listed = members.listing(session) if session.scope is None else None
        session = seen(session, api, listed)
        # whoever joins has joined
        members.refuse_unsafe_removal(replace(session, joining=()), listed)
        for leaver in departing(session):
            if leaver.registered and _is_drained(session, leaver):
                removal = session.removal
                mark(api, leaver.name, LEAVING)
                try:
                    drain.drain(api, leaver.name, seconds=removal.drain_seconds, force=removal.force, say=session.display.say)
                except Interrupted:
                    raise
                except ProvisionerError as error:
                    # the others need not stay for it
                    session.display.say(f"warning: {error.message}")
                    failures[leaver.name] = error
    return replace(session, set_aside={**session.set_aside, **failures})


def mark(api: ClusterApi, name: str, why: str) -> None:
    """Note that the cordon to come is ours: an administrator's own outlives a change of mind.

    Args:
        why: ``LEAVING`` or ``UPGRADING``.
    """
    node = api.get(_node(name))
    if node is not None and not node["spec"].get("unschedulable"):
        api.merge(_node(name), {"metadata": {"annotations": {why: "true"}}})


def remove_dead_members(session: Session) -> None:
    """Take the members of machines that are gone for good off etcd's list: before others join, for each dead one counts for
    the quorum."""
    for leaver in departing(session):
        if leaver.member_id and not leaver.answers:
            if leaver.registered:
                with session.api() as api:
                    drain.await_silence(api, leaver.name, seconds=SILENT_SECONDS)
            _remove_member(session, leaver)


def leave_all(session: Session) -> Session:
    """INPUTS: the API, etcd's member list. OUTPUTS: neither knows the machines that leave; those are wiped, and forgotten.

    Raises:
        ProvisionerError: with the machine and the reason; the next apply goes on from there.
    """
    session = _lead_elsewhere(session)
    leaving = departing(session)
    for leaver in leaving:
        if _serves(leaver):
            _retire(session, leaver)
        if session.scope is None and leaver.node.has(Role.ETCD):
            _remove_member(session, leaver)
    # a kubelet that runs would register its Node again at its next start: it goes first
    again = "`provisioner apply` goes on where this run stopped"
    wiped = reset.wipe(session, [leaver.node for leaver in leaving if leaver.ours], again=again)
    failures = {name: result for name, result in wiped.items() if isinstance(result, ProvisionerError)}
    with session.api() as api:
        for leaver in leaving:
            if leaver.name in failures:
                continue
            try:
                if leaver.registered and _is_drained(session, leaver):
                    drain.forget_node(api, leaver.name)
                elif leaver.registered:
                    drain.abandon(api, leaver.name, seconds=SILENT_SECONDS, say=session.display.say)
            except ProvisionerError as error:
                # the others need not stay for it
                failures[leaver.name] = error
                continue
            forget(session, leaver)
    return replace(session, set_aside={**session.set_aside, **failures})


def forget(session: Session, leaver: Leaver) -> None:
    """Drop what the controller holds of a machine: its certificates, its rendered state, its host key, its entry."""
    pki.drop(session.workspace.pki, leaver.name)
    for path in session.workspace.rendered.glob(f"{leaver.name}.*json"):
        path.unlink(missing_ok=True)
    target = target_of(session.cluster, session.workspace, leaver.node)
    # with `strict` the user has put the key there, and may want it again
    kept = session.cluster.ssh.host_keys == "strict"
    others = [target_of(session.cluster, session.workspace, node) for node in session.cluster.nodes]
    if not kept and (target.host, target.port) not in {(other.host, other.port) for other in others}:
        KnownHosts(session.workspace.known_hosts).forget(target.host, target.port)
    # last: a run that is killed before knows the machine still
    registry.forget(session.workspace, leaver.name)


def _retire(session: Session, leaver: Leaver) -> None:
    """End a control plane's services gracefully, while its etcd member serves still: connections that older proxies and other
    clients hold are told to go elsewhere."""
    interpreters = {leaver.name: leaver.python}
    path = inventory.write_apart(session.cluster, session.workspace, "to_retire", [leaver.node], interpreters)
    tally = runner.play(
        ("retire",),
        inventory=path,
        variables={},
        log=session.log,
        sockets=session.sockets,
        hosts=1,
        on_step=lambda _step: None,
    )
    plays.refuse_failures(tally, session)


def _remove_member(session: Session, leaver: Leaver) -> None:
    url = topology.etcd_peer_url(leaver.node)
    with members.voter(session, but=leaver.name) as etcd:
        entry = next((member for member in etcd.members() if url in member.peer_urls), None)
        if entry is None:
            return
        if etcd.status().leader == entry.id:
            _move_leader(session, leaver, etcd.status().member_id)
        wait_until(
            f"{leaver.name}: off etcd's member list",
            lambda: etcd.remove_member(entry.id),
            seconds=MEMBER_SECONDS,
            every=0.5,
            hint="`provisioner status` shows the members; `provisioner apply` goes on from here",
            retry_on=(EtcdError,),
        )


def _move_leader(session: Session, leaver: Leaver, target: int) -> None:
    """Hand the leadership to a member that stays: quicker than the election that its going would bring about."""
    # it may have died in this moment; then there is an election, and no harm in it
    with contextlib.suppress(ProvisionerError), members.api_of(session, leaver.node) as etcd:
        etcd.move_leader(target)
