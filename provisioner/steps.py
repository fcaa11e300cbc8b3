"""The phases that are Python: each takes a session and returns the next one. Playbooks are phases too; see phases.py."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any

from cryptography import x509

from provisioner import cluster_api, members, objects, verify
from provisioner import session as sessions
from provisioner.cluster_api import ClusterApi, ClusterApiError
from provisioner.config import Node, Role
from provisioner.errors import ApplyError, ProvisionerError, WaitTimeout
from provisioner.pki import CaName
from provisioner.plan import CLUSTER, Change, Plan, difference
from provisioner.plays import play, refuse_failures, unit_active
from provisioner.session import Session
from provisioner.wait import NotYet, wait_until

READY_SECONDS = 180


def read_state(session: Session) -> Session:
    """INPUTS: rendered/. OUTPUTS: the actual state of every machine, the plan; tokens for nodes that must join."""
    rendered = sessions.render(session)
    # the official client takes a second to import: now, while Ansible waits for the machines
    threading.Thread(target=cluster_api.preload, name="import of the client", daemon=True).start()
    tally = play(rendered, ("state",))
    refuse_failures(tally, session)
    actual = tally.results
    rendered = sessions.with_tokens(rendered, _joining(rendered, actual))
    changes: list[Change] = []
    for name, state in rendered.states.items():
        changes += difference(state, actual[name])
    looked = replace(rendered, actual=actual)
    listed = members.listing(looked)
    looked = replace(looked, joining=members.joins(looked, listed))
    for name in members.strangers(looked, listed):
        session.display.say(f"warning: {name} is a member of etcd, but no machine of cluster.yaml; it is left as it is")
    changes += members.changes(looked.joining)
    changes += _cluster_changes(looked)
    return replace(looked, plan=Plan(tuple(changes)))


def _joining(session: Session, actual: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Nodes whose kubelet has no client certificate that the cluster's CA signed for it and that is still good."""
    ca = session.the_pki().cas[CaName.CLUSTER].parsed
    now = dt.datetime.now(dt.UTC)
    joining = []
    for node in session.cluster.kubernetes_nodes:
        if node.name not in actual:
            continue
        pem = actual[node.name]["kubelet_certificate"]
        if pem is None or not _is_good(pem, ca, node.name, now):
            joining.append(node.name)
    return joining


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
    return (*own, *objects.user_objects(session.cluster, session.workspace.cluster_file.parent))


def _cluster_changes(session: Session) -> tuple[Change, ...]:
    """Differences of the API's objects; of a cluster that is not there yet, all of them."""
    desired = _desired_objects(session)
    labels = objects.node_labels(session.cluster)
    if not any(unit_active(session, node.name, "kube-apiserver.service") for node in session.cluster.control_planes):
        return tuple(Change(CLUSTER, "objects", "object", objects.describe(obj), "create") for obj in (*desired, *labels))
    # the break-glass identity: a run that was cut short may have left API servers without the binding that makes `admin` one
    with session.api(leaf="break-glass") as api:
        return objects.difference(api, (*desired, *labels))


def apply_objects(session: Session) -> Session:
    """INPUTS: manifests/, tokens. OUTPUTS: RBAC, policies, CoreDNS, the Secrets of bootstrap tokens."""
    changed = session.plan.hosts_of("objects")
    if not changed and not session.tokens:
        return session
    now = dt.datetime.now(dt.UTC)
    # the break-glass identity: the binding that makes `admin` an administrator is one of these objects
    with session.api(leaf="break-glass") as api:
        for name, token in session.tokens.items():
            api.apply(objects.bootstrap_secret(token, session.cluster.node(name), now))
        if changed:
            for obj in _desired_objects(session):
                api.apply(obj)
    return session


def settle(session: Session) -> Session:
    """INPUTS: the API. OUTPUTS: every Node registered, labelled and Ready, every API server ready; no bootstrap token left."""
    expected = {node.name for node in session.nodes if node.is_kubernetes_node}
    planes = tuple(node for node in session.nodes if node.has(Role.CONTROL_PLANE))
    with session.api() as api:
        labels = {obj["metadata"]["name"]: obj for obj in objects.node_labels(session.cluster)}
        labelled: set[str] = set()

        def all_ready() -> None:
            nodes = {node["metadata"]["name"]: node for node in api.items("/api/v1/nodes")}
            for name in sorted(expected & nodes.keys() - labelled):
                api.apply(labels[name])
                labelled.add(name)
            waiting = {name: _not_ready(nodes.get(name)) for name in sorted(expected)}
            if late := {name: why for name, why in waiting.items() if why}:
                raise NotYet("; ".join(f"{name}: {why}" for name, why in late.items()))
            for node in planes:
                _ready_server(api, node)

        try:
            wait_until("every node and API server ready", all_ready, seconds=READY_SECONDS)
        except WaitTimeout as error:
            raise _explained(session, error) from None
        for name, token in session.tokens.items():
            api.delete(objects.bootstrap_secret(token, session.cluster.node(name), dt.datetime.now(dt.UTC)))
    return session


def _ready_server(api: ClusterApi, node: Node) -> None:
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
        hint=f"when it is mended, `provisioner apply --cluster {session.workspace.cluster_file}` goes on where this run stopped",
        details=tuple(details),
    )


def _not_ready(node: Mapping[str, Any] | None) -> str:
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
    names = ", ".join(session.set_aside)
    raise ApplyError(
        f"{names}: set aside, for {'it does' if len(session.set_aside) == 1 else 'they do'} not answer;"
        " the other machines are as cluster.yaml says",
        hint=f"when {names} {'is' if len(session.set_aside) == 1 else 'are'} back, run `provisioner apply` again",
        details=tuple("; ".join((error.message, *error.details)) for error in session.set_aside.values()),
    )


def prove(session: Session) -> Session:
    """INPUTS: the cluster. OUTPUTS: report.json of `verify --level smoke`; a failed check fails the run.

    Not of a cluster with a machine that does not answer: that is known already, and said at the end.
    """
    if session.set_aside:
        return session
    report = verify.run(session.cluster, session.workspace, session.connections, session.the_pki())
    report.raise_if_failed()
    return session
