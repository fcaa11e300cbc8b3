"""Checks of etcd: every member, one leader, the same data everywhere, and Secrets that are stored encrypted."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from contextlib import ExitStack

from provisioner.config import Node
from provisioner.errors import ProvisionerError
from provisioner.etcd_api import EtcdApi, HashKv, Member, Status
from provisioner.topology import ETCD_CLIENT_PORT
from provisioner.verify.model import CheckFailed, Context, each, listed, patiently, plural
from provisioner.wait import NotYet

# Members apply entries a moment apart; more than this many entries behind is not a moment.
_BEHIND = 1000


def members(context: Context) -> str:
    """Every member healthy, one leader, no alarm, the member list of cluster.yaml, one HashKV at one revision."""
    nodes = context.cluster.etcd_members
    with ExitStack() as stack:

        def connect(node: Node) -> EtcdApi:
            return EtcdApi(node, context.workspace, context.connections, context.pki, timeout=context.seconds / 3)

        apis = each(nodes, connect)
        for api in apis:
            stack.enter_context(api)
        return patiently(lambda: look(nodes, apis), context.seconds * 0.6)


def look(nodes: Sequence[Node], apis: Sequence[EtcdApi]) -> str:
    """One look at all members.

    Raises:
        NotYet: with a line for each thing that is wrong.
    """
    views: list[tuple[Node, Status, tuple[Member, ...]]] = []
    wrong: list[str] = []
    try:
        # serializable: a member without a quorum still says what it knows
        views = each(
            list(zip(nodes, apis, strict=True)), lambda pair: (pair[0], pair[1].status(), pair[1].members(linearizable=False))
        )
    except CheckFailed as failure:
        wrong += failure.seen
    if not wrong:
        wrong = disagreements(views)
    if not wrong:
        # alarms are asked of the leader's log: only sensible once there is one
        try:
            names = {status.member_id: node.name for node, status, _ in views}
            wrong = [f"{names.get(alarm.member_id, hex(alarm.member_id))}: alarm {alarm.alarm}" for alarm in apis[0].alarms()]
        except ProvisionerError as error:
            wrong = [error.message]
    if wrong:
        raise NotYet("\n".join(wrong))
    revision = min(status.revision for _, status, _ in views)
    try:
        hashes = dict(zip((node.name for node in nodes), each(apis, lambda api: api.hash_kv(revision)), strict=True))
    except CheckFailed as failure:
        raise NotYet("\n".join(failure.seen)) from None
    if different := hash_differences(hashes, revision):
        raise NotYet(different)
    leader = next(node.name for node, status, _ in views if status.leader == status.member_id)
    largest = max(status.db_size for _, status, _ in views) / (1 << 20)
    return (
        f"{plural(len(nodes), 'member')} of etcd {views[0][1].version} healthy, led by {leader}; "
        f"HashKV {next(iter(hashes.values())).hash} at revision {revision} on each; {largest:.1f} MiB"
    )


def disagreements(views: Sequence[tuple[Node, Status, tuple[Member, ...]]]) -> list[str]:
    """What members say that is wrong in itself, or differs between them or from cluster.yaml."""
    wrong: list[str] = []
    names = {status.member_id: node.name for node, status, _ in views}
    wanted = {node.name: f"https://{node.ip}:{ETCD_CLIENT_PORT}" for node, _, _ in views}
    furthest = max((status.raft_applied_index for _, status, _ in views), default=0)
    for node, status, known in views:
        if not status.leader:
            wrong.append(f"{node.name}: sees no leader")
        if status.learner:
            wrong.append(f"{node.name}: still a learner, without a vote")
        wrong += [f"{node.name}: reports {error}" for error in status.errors]
        behind = furthest - status.raft_applied_index
        if behind > _BEHIND:
            wrong.append(f"{node.name}: {behind} entries behind")
        found = {member.name or f"(not started, {hex(member.id)})": member.client_urls for member in known}
        if found.keys() != wanted.keys():
            wrong.append(f"{node.name}: the member list is {listed(found)}, cluster.yaml says {listed(wanted)}")
        else:
            wrong += [
                f"{node.name}: {name} is listed at {listed(urls) or 'no address'}, not {wanted[name]}"
                for name, urls in found.items()
                if wanted[name] not in urls
            ]
    leaders = {status.leader for _, status, _ in views}
    if len(leaders) > 1:
        said = (f"{node.name} follows {names.get(status.leader, hex(status.leader))}" for node, status, _ in views)
        wrong.append(f"more than one leader: {', '.join(said)}")
    elif not wrong and leaders - names.keys():
        wrong.append(f"the leader {hex(next(iter(leaders)))} is none of the members of cluster.yaml")
    if len({status.version for _, status, _ in views}) > 1:
        wrong.append("different versions: " + ", ".join(f"{node.name} {status.version}" for node, status, _ in views))
    return wrong


def hash_differences(hashes: dict[str, HashKv], revision: int) -> str:
    """Why the members' hashes are not one and the same; empty where they are."""
    if len({value.compact_revision for value in hashes.values()}) > 1:
        compacted = ", ".join(f"{name} to {value.compact_revision}" for name, value in hashes.items())
        return f"members are compacted to different revisions ({compacted}): their hashes cannot be compared"
    if len({value.hash for value in hashes.values()}) > 1:
        return f"HashKV at revision {revision} differs: " + ", ".join(f"{name} {value.hash}" for name, value in hashes.items())
    return ""


def encryption(context: Context) -> str:
    """A Secret written through the API lies encrypted in etcd."""
    context.probe.make_namespace()
    canary = secrets.token_hex(16)
    secret = context.probe.object("v1", "Secret", "at-rest", stringData={"canary": canary})
    context.api.apply(secret)
    prefix = str(context.cluster.components.kube_apiserver.flags.get("etcd-prefix", "/registry")).rstrip("/")
    key = f"{prefix}/secrets/{context.probe.namespace}/at-rest"
    raw = _read(context, key)
    with contextlib.suppress(ProvisionerError):
        context.api.delete(secret)
    if raw is None:
        raise CheckFailed(f"etcd has no key {key} for a Secret the API has just stored")
    # k8s:enc:PROVIDER:v1:KEY-NAME: ; see https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/
    if not raw.startswith(b"k8s:enc:") or canary.encode() in raw:
        raise CheckFailed(f"a Secret lies readable in etcd: {key} begins with {raw[:12]!r}, not k8s:enc:")
    if raw.startswith(b"k8s:enc:identity"):
        raise CheckFailed(f"a Secret lies readable in etcd: {key} is written by the provider `identity`")
    provider = raw.split(b":", 5)[2].decode(errors="replace")
    return f"a Secret is stored as k8s:enc:{provider}, {len(raw)} bytes, without its text"


def _read(context: Context, key: str) -> bytes | None:
    failures = []
    for node in context.cluster.etcd_members:
        try:
            with EtcdApi(node, context.workspace, context.connections, context.pki, timeout=context.seconds / 3) as api:
                return api.read(key)
        except ProvisionerError as error:
            failures.append(error.message)
    raise CheckFailed(*failures)
