"""The phases that are Python: each takes a session and returns the next one. Playbooks are phases too; see phases.py."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from cryptography import x509

from provisioner import authorities, cluster_api, leave, members, objects, plays, verify
from provisioner import session as sessions
from provisioner.addons import record
from provisioner.addons.objects import addon_objects
from provisioner.addons.table import wanted_by
from provisioner.cluster_api import ClusterApi, ClusterApiError
from provisioner.config import Node, Role
from provisioner.errors import ApplyError, BadInput, ProvisionerError, WaitTimeout
from provisioner.etcd_api import Member
from provisioner.inventory import is_vital
from provisioner.pki import CaName
from provisioner.plan import CLUSTER, CONTENT, Change, Plan, difference
from provisioner.plays import play, refuse_failures, unit_active
from provisioner.render import binary_path
from provisioner.render.machine import KUBELET_IDENTITY
from provisioner.session import Session
from provisioner.wait import NotYet, wait_until

READY_SECONDS = 180
_KUBELET = binary_path("kubelet")


def compare(session: Session) -> Session:
    """INPUTS: rendered/. OUTPUTS: the actual state of every machine, what differs on them; tokens for nodes that must join."""
    rendered = sessions.render(session)
    # the official client takes a second to import: now, while Ansible waits for the machines
    threading.Thread(target=cluster_api.preload, name="import of the client", daemon=True).start()
    rendered = _with_actual(rendered)
    authorities.refuse_older_copy(rendered)
    rendered = sessions.with_tokens(rendered, _joining(rendered, rendered.actual))
    changes: list[Change] = []
    for name, state in rendered.states.items():
        changes += difference(state, rendered.actual[name])
    changes += [change for name in rendered.tokens for change in _forgotten(name, rendered.actual[name])]
    return replace(rendered, plan=Plan(tuple(changes)))


def read_state(session: Session) -> Session:
    """INPUTS: rendered/. OUTPUTS: as :func:`compare`, and what differs in the cluster itself: objects, members, who leaves."""
    rendered = compare(session)
    changes = list(rendered.plan.changes)
    # a run about single machines is one about workers: etcd is not asked
    listed = members.listing(rendered) if rendered.scope is None else None
    looked = replace(rendered, joining=members.joins(rendered, listed))
    looked, cluster_changes = _look_at_cluster(looked, listed, changes)
    for name in members.strangers(looked, listed):
        session.display.say(
            f"warning: {name} is a member of etcd, but no machine of cluster.yaml nor one that was; it is left as it is"
        )
    if looked.holds:
        changes = _without_nodes(changes)
    changes += members.changes(looked.joining)
    changes += cluster_changes
    changes += leave.changes(looked)
    looked = replace(looked, plan=Plan(tuple(changes)))
    members.refuse_unsafe_removal(looked, listed)
    return looked


def _without_nodes(changes: Sequence[Change]) -> list[Change]:
    """The changes without those that an upgrade makes on drained machines alone."""
    from provisioner.upgrade.stages import NODES, role_of  # noqa: PLC0415 - it imports what the plan is of

    return [change for change in changes if role_of(change) not in NODES.roles]


def _with_actual(session: Session) -> Session:
    """The session with the actual state of its machines; a worker whose state cannot be read is set aside."""
    if not session.states:
        return session
    tally = play(session, ("state",), check=session.only_looks)
    session = plays.set_aside(session, tally.aside.values())
    refuse_failures(tally, session)
    states = {name: state for name, state in session.states.items() if name not in session.set_aside}
    return replace(session, states=states, actual=tally.results)


def prepare(session: Session) -> Session:
    """INPUTS: the plan, the cache. OUTPUTS: bundles of what machines lack; proxies with their ways to who leaves, until then."""
    return sessions.pack(leave.keep_ways(session))


def install_packages(session: Session) -> Session:
    """INPUTS: the machines' repositories. OUTPUTS: every machine has the packages it lacked, or is set aside."""
    tally = play(session, ("packages",))
    vital = [failure for failure in tally.failures if is_vital(session.cluster.node(failure.host))]
    others = [failure for failure in tally.failures if failure not in vital]
    refuse_failures(replace(tally, failures=vital), session)
    return plays.set_aside(session, others)


def lacks_packages(session: Session) -> bool:
    """Whether some machine lacks packages of its distribution."""
    return any(change.kind == "package" for change in session.plan.changes)


def changes_members(session: Session) -> bool:
    """Whether machines join etcd, or members are to be taken off its list that are gone for good."""
    return bool(session.joining) or any(leaver.member_id and not leaver.answers for leaver in leave.departing(session))


def change_members(session: Session) -> Session:
    """INPUTS: rendered/, the member list. OUTPUTS: every machine of cluster.yaml with the role etcd is a voting member.

    Members that are gone for good leave first: each of them counts for the quorum of those who vote on the others.
    """
    if any(
        change.role == "etcd" and change.kind == "unit" and change.action.startswith("start") for change in session.plan.changes
    ):
        # members that are merely down vote on those that come and go
        refuse_failures(play(session, ("etcd",)), session)
    leave.remove_dead_members(session)
    return members.join_all(session)


def _joining(session: Session, actual: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Nodes whose kubelet has no client certificate that the cluster's CA signed for it and that is still good.

    In a rotation of CAs also those that believe the CAs in their own kubeconfig, which nobody writes anew but they themselves.
    """
    pki = session.the_pki()
    ca = pki.cas[CaName.CLUSTER].parsed
    now = dt.datetime.now(dt.UTC)
    joining = []
    for node in session.cluster.kubernetes_nodes:
        if node.name not in actual:
            continue
        pem = actual[node.name]["kubelet_certificate"]
        fixed = pki.rotation is not None and actual[node.name].get("kubelet_authority") == ""
        if pem is None or fixed or not _is_good(pem, ca, node.name, now):
            joining.append(node.name)
    return joining


def _forgotten(host: str, actual: Mapping[str, Any]) -> tuple[Change, ...]:
    """What goes of a kubelet's identity, for a token to take its place."""
    answers = zip(KUBELET_IDENTITY, (actual.get("kubelet_authority"), actual["kubelet_certificate"]), strict=True)
    return tuple(Change(host, "kubelet", "file", path, "remove (it joins anew)") for path, there in answers if there is not None)


def _is_good(pem: str, ca: x509.Certificate, node: str, now: dt.datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(pem.encode())
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, x509.InvalidVersion):
        return False
    except Exception as error:  # cryptography raises its backend's InvalidSignature here
        if type(error).__name__ != "InvalidSignature":
            raise
        return False
    named = certificate.subject.rfc4514_string()
    return certificate.not_valid_after_utc > now and f"CN=system:node:{node}" in named.split(",")


def _desired_objects(session: Session) -> tuple[objects.Object, ...]:
    coredns = session.lock.image("coredns", session.cluster.kubernetes.version)
    own = objects.cluster_objects(session.cluster, coredns_image=coredns)
    users = _user_objects(session)
    # what they name is theirs: applied twice, by the same field manager, it would never be as both say
    theirs = {record.ref_of(obj): obj for obj in users}
    if session.scope is not None:
        # a run about single machines leaves addons and the user's own manifests to `apply`
        return tuple(obj for obj in own if record.ref_of(obj) not in theirs)
    ours = {record.ref_of(obj): obj for obj in (*own, *(obj for found in _addon_objects(session).values() for obj in found))}
    # in our place, for what is in a Namespace comes after it
    placed = (theirs.get(ref, obj) for ref, obj in ours.items())
    return (*placed, *(obj for obj in users if record.ref_of(obj) not in ours))


def _user_objects(session: Session) -> tuple[objects.Object, ...]:
    return objects.user_objects(session.cluster, session.workspace.cluster_file.parent)


def _addon_objects(session: Session) -> Mapping[str, tuple[objects.Object, ...]]:
    version = session.cluster.kubernetes.version
    images = {addon.component: session.lock.image(addon.component, version) for addon in wanted_by(session.cluster)}
    return addon_objects(session.cluster, images, session.the_pki())


def _labels(session: Session) -> tuple[objects.Object, ...]:
    names = {node.name for node in session.nodes}
    return tuple(obj for obj in objects.node_labels(session.cluster) if obj["metadata"]["name"] in names)


def _look_at_cluster(
    session: Session, listed: Sequence[Member] | None, changes: Sequence[Change]
) -> tuple[Session, tuple[Change, ...]]:
    """What the API knows: differences of its objects (of a cluster that is not there yet, all of them), and machines that leave.

    Args:
        session: with the actual state of the machines.
        listed: etcd's member list; None where nobody serves it.
        changes: what differs on the machines.

    Raises:
        ClusterApiError: no control plane answers, though one should, and nothing that this run does would help.
    """
    desired = (*_desired_objects(session), *_labels(session))
    served = session.scope is not None or any(leaver.apiserver for leaver in session.leaving)
    if not served and not any(unit_active(session, node.name, "kube-apiserver.service") for node in session.cluster.control_planes):
        _refuse_unseen_version(session, changes)
        return leave.seen(session, None, listed), _all_of(desired, "create")
    # the break-glass identity: a run that was cut short may have left API servers without the binding that makes `admin` one
    try:
        with session.api(leaf="break-glass") as api:
            stale = [secret for secret in objects.bootstrap_secrets(api) if session.concerns(objects.bootstrapped(secret))]
            nodes = _nodes(api, _expected(session), whole=session.scope is None)
            _name_strangers(session, nodes)
            session = _with_versions(session, api, nodes)
            back = leave.returned(session, nodes)
            # before the dry runs, which may fail where an object is somebody else's
            addons = record.look(api, _addon_objects(session), _user_objects(session)) if session.scope is None else ()
            differences = (
                *objects.difference(api, desired),
                *addons,
                *objects.deletions(stale),
                *(
                    Change(name, "settle", "node", name, "uncordon (it was to leave, or was being upgraded, and stays)")
                    for name in back
                ),
            )
            return leave.seen(session, api, listed), differences
    except ClusterApiError as error:
        # machines that leave are not touched before it is known what the cluster knows of them
        if session.leaving or not _may_serve_again(error, changes):
            raise
        _refuse_unseen_version(session, changes)
        session.display.say(f"warning: the API does not answer, and what it holds is not compared: {error.message}")
        return leave.seen(session, None, listed), _all_of(desired, "apply (the API does not answer yet)")


def _with_versions(session: Session, api: ClusterApi, nodes: Mapping[str, Mapping[str, Any]]) -> Session:
    """`apply` would put a new version on all machines at once, without a backup and with pods on them.

    A kubelet that is not Ready does not count: it comes back with the version of cluster.yaml. A dead machine may be taken out
    while an upgrade is under way, which could not go on otherwise; the other machines' kubelets then stay as they are.

    Raises:
        BadInput: with the versions that run.
    """
    if session.upgrading:
        return session
    said = {}
    for node in (node for node in session.cluster.control_planes if node.name not in session.set_aside):
        with contextlib.suppress(ClusterApiError):
            said[f"the API server of {node.name}"] = str(api.request_to(node, "/version").json().get("gitVersion") or "")
    names = {node.name for node in session.nodes}
    said |= {
        f"the kubelet of {name}": str(node["status"]["nodeInfo"]["kubeletVersion"])
        for name, node in nodes.items()
        if name in names and not not_ready(node)
    }
    wanted = f"v{session.cluster.kubernetes.version}"
    others = {name: version for name, version in said.items() if version != wanted}
    if not others:
        return session
    shown = ", ".join([f"{version} is {name}" for name, version in others.items()][:5] + ["…"] * (len(others) > 5))
    if _may_hold(session, said):
        session.display.say(f"warning: an upgrade is under way ({shown}): kubelets and what is beside them stay as they are")
        return replace(session, holds=True)
    raise BadInput(
        f"cluster.yaml says Kubernetes {wanted}, and {shown}: nothing was changed",
        hint="`provisioner upgrade` goes to another version, or on; for everything else set `kubernetes.version` to what runs",
    )


def _may_hold(session: Session, said: Mapping[str, str]) -> bool:
    """Whether a machine that is given up may go all the same: an upgrade to cluster.yaml's version has begun. Pure.

    A version that was written into cluster.yaml and runs nowhere is none: its API servers would come with this run.

    Args:
        said: versions as they were told (``v1.36.3``), by who told them.
    """
    return bool(session.removal.given_up) and f"v{session.cluster.kubernetes.version}" in said.values()


def _refuse_unseen_version(session: Session, changes: Sequence[Change]) -> None:
    """Where no API server tells its version: a kubelet that is another one than cluster.yaml's is an upgrade, too.

    Raises:
        BadInput: names the machines.
    """
    moved = [change.host for change in changes if change.what == _KUBELET and change.action.startswith(CONTENT)]
    if moved and not session.upgrading:
        raise BadInput(
            f"the API does not answer, and {', '.join(moved)} would get another kubelet: nothing was changed",
            hint="set `kubernetes.version` to what ran, `provisioner apply`, and `provisioner upgrade` then; where the file is "
            f"just damaged, delete {_KUBELET} there, and `provisioner apply` again",
        )


def _all_of(desired: Sequence[objects.Object], action: str) -> tuple[Change, ...]:
    return tuple(Change(CLUSTER, "objects", "object", objects.describe(obj), action) for obj in desired)


def _may_serve_again(error: ClusterApiError, changes: Sequence[Change]) -> bool:
    """Whether the API is silent, and this run starts some of what it is silent for: a stopped etcd, say, under running servers."""
    silent = error.status == 0 or error.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return silent and any(change.kind == "unit" and change.role in ("etcd", "kube_apiserver") for change in changes)


def _name_strangers(session: Session, nodes: Collection[str]) -> None:
    """Say which Nodes are none of cluster.yaml's, nor on their way out."""
    known = {node.name for node in session.cluster.nodes} | {leaver.name for leaver in session.leaving}
    for name in sorted(set(nodes) - known):
        session.display.say(
            f"warning: {name} is a Node, but no machine of cluster.yaml nor one that was; it is left as it is"
            f" (where its machine is gone, `provisioner node remove {name} --unreachable` takes it out)"
        )


def apply_objects(session: Session) -> Session:
    """INPUTS: manifests/, tokens. OUTPUTS: RBAC, policies, CoreDNS, addons and no others, the Secrets of bootstrap tokens."""
    changed = session.plan.hosts_of("objects")
    if not changed and not session.tokens:
        return session
    now = dt.datetime.now(dt.UTC)
    # the break-glass identity: the binding that makes `admin` an administrator is one of these objects
    with session.api(leaf="break-glass") as api:
        # API servers may have got their etcd back a moment ago
        wait_until("the API answers", lambda: _is_up(api), seconds=READY_SECONDS, retry_on=(ClusterApiError,))
        for name, token in session.tokens.items():
            api.apply(objects.bootstrap_secret(token, session.cluster.node(name), now))
        if changed:
            addons = record.begin(api, _addon_objects(session), _user_objects(session)) if session.scope is None else None
            objects.apply_all(api, _desired_objects(session))
            if addons is not None:
                record.finish(api, addons)
    return session


def _is_up(api: ClusterApi) -> None:
    answer = api.request("GET", "/readyz")
    if answer.status != HTTPStatus.OK:
        raise NotYet(f"{answer.node}: /readyz gave {answer.status}: {' '.join(answer.text[-300:].split())}")


def settle(session: Session) -> Session:
    """INPUTS: the API. OUTPUTS: every Node registered, labelled and Ready, every API server ready; no bootstrap token left.

    A worker that does not become Ready is set aside.

    Raises:
        WaitTimeout: a control plane is not Ready in time; with what it said last.
    """
    expected = _expected(session)
    planes = tuple(node for node in session.nodes if node.has(Role.CONTROL_PLANE))
    with session.api() as api:
        labels = {obj["metadata"]["name"]: obj for obj in _labels(session)}
        labelled: set[str] = set()
        late: dict[str, str] = {}

        def all_ready() -> None:
            nodes = _nodes(api, expected, whole=session.scope is None)
            for name in leave.returned(session, nodes):
                leave.welcome_back(api, name)
            for name in sorted(expected & nodes.keys() - labelled):
                api.apply(labels[name])
                labelled.add(name)
            waiting = {name: not_ready(nodes.get(name)) for name in sorted(expected)}
            late.clear()
            late.update({name: why for name, why in waiting.items() if why})
            if late:
                raise NotYet("; ".join(f"{name}: {why}" for name, why in late.items()))
            for node in planes:
                ready_server(api, node)

        try:
            wait_until("every node and API server ready", all_ready, seconds=READY_SECONDS)
        except WaitTimeout as error:
            if not late or any(is_vital(session.cluster.node(name)) for name in late):
                raise _explained(session, error) from None
            session = _without_late(session, late)
        for secret in objects.bootstrap_secrets(api):
            if session.concerns(objects.bootstrapped(secret)):
                api.delete(secret)
    return session


def _expected(session: Session) -> set[str]:
    """The Nodes that this run is about."""
    return {node.name for node in session.nodes if node.is_kubernetes_node}


def _nodes(api: ClusterApi, names: Collection[str], *, whole: bool) -> dict[str, Mapping[str, Any]]:
    """The Nodes of these names that there are; asked for one by one unless the ``whole`` cluster is meant."""
    if whole:
        return {node["metadata"]["name"]: node for node in api.items("/api/v1/nodes")}
    found = {name: api.get({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}) for name in names}
    return {name: node for name, node in found.items() if node is not None}


def _without_late(session: Session, late: Mapping[str, str]) -> Session:
    """The session without workers whose Node is not Ready in time."""
    aside = {}
    for name, why in late.items():
        error = _explained(session, WaitTimeout(f"{name}: not Ready within {READY_SECONDS:g} s: {why}"))
        aside[name] = ApplyError(error.message, details=error.details)
        session.display.say(f"warning: set aside: {error.message}")
    return replace(session, set_aside={**session.set_aside, **aside})


def ready_server(api: ClusterApi, node: Node) -> None:
    """Look once at one API server.

    Raises:
        NotYet: it is not ready, with what it said.
    """
    try:
        answer = api.request_to(node, "/readyz")
    except ClusterApiError as error:
        raise NotYet(error.message) from None
    if answer.status != HTTPStatus.OK:
        raise NotYet(f"{node.name}: its API server's /readyz gave {answer.status}: {' '.join(answer.text[-300:].split())}")


def _explained(session: Session, error: WaitTimeout) -> WaitTimeout:
    """The same error with the last journal lines of the nodes that it names."""
    details: list[str] = []
    for node in session.cluster.kubernetes_nodes:
        if f"{node.name}:" in error.message:
            try:
                tail = session.connections.run(node, "journalctl --no-pager -q -n 12 -o short-iso -u kubelet -u flanneld").text
            except ProvisionerError as unreachable:
                tail = unreachable.message
            details += [f"last lines of kubelet and flanneld on {node.name}:", *(f"  {line}" for line in tail.splitlines())]
    return WaitTimeout(
        error.message,
        hint=f"when it is mended, `{session.command} --cluster {session.workspace.cluster_file}` goes on where this run stopped",
        details=tuple(details),
    )


def not_ready(node: Mapping[str, Any] | None) -> str:
    """Why a Node is not Ready, by its own word; "" where it is."""
    if node is None:
        return "not registered"
    for condition in node["status"].get("conditions") or ():
        if condition["type"] == "Ready":
            return "" if condition["status"] == "True" else str(condition.get("message") or condition.get("reason"))
    return "no Ready condition yet"


def refuse_incomplete(session: Session) -> None:
    """Say at the end of a run what it could not do.

    Raises:
        ApplyError: names the machines that were set aside.
    """
    if not session.set_aside:
        return
    if session.scope is not None and len(session.set_aside) == 1:
        # the run was about this machine
        only = next(iter(session.set_aside.values()))
        raise ApplyError(only.message, hint=only.hint or "`provisioner apply` goes on where this run stopped", details=only.details)
    names = ", ".join(session.set_aside)
    leaving = {leaver.name for leaver in session.leaving}
    others = "; the other machines are as cluster.yaml says" if session.scope is None else ""
    raise ApplyError(
        f"{names}: set aside{others}",
        hint="; ".join(dict.fromkeys(error.hint for name, error in session.set_aside.items() if error.hint and name in leaving))
        or f"when {names} {'is' if len(session.set_aside) == 1 else 'are'} back or mended, run `{session.command}` again",
        details=tuple(line for error in session.set_aside.values() for line in (error.message, *error.details)),
    )


# What proves one machine that has joined a cluster: its services, and the ways to and from its pods.
OF_ONE_MACHINE = ("units", "kubelets", "api-paths", "pod-to-pod", "cluster-ip", "dns", "logs")


def prove(session: Session) -> Session:
    """INPUTS: the cluster. OUTPUTS: report.json of `verify --level smoke`; a failed check fails the run.

    Not of a cluster with a machine that was set aside: that is known already, and said at the end. A run about single machines
    proves those, against one control plane.
    """
    if session.set_aside or (session.scope is not None and not session.nodes):
        return session
    cluster, only = session.cluster, tuple[str, ...]()
    if session.scope is not None:
        with session.api() as api:
            plane = session.cluster.node(api.request("GET", "/readyz").node)
        cluster, only = cluster.model_copy(update={"nodes": (plane, *session.nodes)}), OF_ONE_MACHINE
    report = verify.run(
        cluster, session.workspace, session.connections, session.the_pki(), only=only, confined=session.scope is not None
    )
    if session.scope is None:
        report.save(session.workspace.proof)
    report.raise_if_failed()
    return session
