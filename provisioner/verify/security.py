"""Checks that doors which must be shut are shut."""

from __future__ import annotations

import http.client
import ssl

from provisioner import topology
from provisioner.cluster_api import ClusterApiError, Object, message_of
from provisioner.config import Node
from provisioner.verify.model import CheckFailed, Context, each, plural
from provisioner.verify.probe import shorten

_OPEN = ("/livez", "/readyz", "/healthz")
_SHUT = ("/api", "/apis", "/version", "/metrics", "/api/v1/namespaces", "/openapi/v2")
_REFUSED = (401, 403)


def anonymous(context: Context) -> str:
    """Who shows no credentials gets the health endpoints of each apiserver and nothing else, and nothing at all of a kubelet."""

    def ask_apiserver(node: Node) -> None:
        wrong = []
        for path in _OPEN:
            status = context.api.request_to(node, path, anonymous=True, timeout=context.seconds / 2).status
            if status != 200:
                wrong.append(f"{node.name}: {path} without credentials gave {status}; load balancers need it open")
        for path in _SHUT:
            answer = context.api.request_to(node, path, anonymous=True, timeout=context.seconds / 2)
            if answer.status not in _REFUSED:
                wrong.append(f"{node.name}: {path} without credentials gave {answer.status}: {shorten(answer.text, 80)!r}")
        if wrong:
            raise CheckFailed(*wrong)

    # it is the refusal that is asked about here, not the identity of the kubelet
    unchecked = ssl.create_default_context()
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE

    def ask_kubelet(node: Node) -> None:
        with context.connections.forward(node, topology.KUBELET_PORT) as forward:
            connection = http.client.HTTPSConnection("127.0.0.1", forward.port, timeout=context.seconds / 2, context=unchecked)
            try:
                connection.request("GET", "/pods")
                status = connection.getresponse().status
            except (OSError, http.client.HTTPException) as error:
                raise CheckFailed(f"{node.name}: no answer from the kubelet: {forward.error or error}") from None
            finally:
                connection.close()
        if status not in _REFUSED:
            raise CheckFailed(f"{node.name}: the kubelet's /pods without credentials gave {status}")

    each(context.cluster.control_planes, ask_apiserver)
    each(context.cluster.kubernetes_nodes, ask_kubelet)
    return (
        f"{plural(len(context.cluster.control_planes), 'apiserver')}: {', '.join(_OPEN)} open, {', '.join(_SHUT)} refused; "
        f"{plural(len(context.cluster.kubernetes_nodes), 'kubelet')} refused /pods"
    )


def node_authorization(context: Context) -> str:
    """A kubelet may read no Secret of pods that are not its own, list none, and change no other Node."""
    nodes = context.cluster.kubernetes_nodes
    me = nodes[-1].name
    identity = {"Impersonate-User": f"system:node:{me}", "Impersonate-Group": "system:nodes"}
    context.probe.make_namespace()
    secret = context.probe.object("v1", "Secret", "not-for-nodes", stringData={"canary": "x"})
    context.api.apply(secret)
    wrong = []
    namespace = context.probe.namespace
    for path in (f"/api/v1/namespaces/{namespace}/secrets/not-for-nodes", f"/api/v1/namespaces/{namespace}/secrets"):
        answer = context.api.request("GET", path, headers=identity)
        if answer.status not in _REFUSED:
            wrong.append(f"system:node:{me} got {answer.status} for {path}, which no pod of {me} uses")
    label = {"metadata": {"labels": {"node-restriction.kubernetes.io/provisioner-verify": "x"}}}
    answer = context.api.request(
        "PATCH",
        f"/api/v1/nodes/{me}",
        body=label,
        query={"dryRun": "All"},
        headers=identity,
        content_type="application/merge-patch+json",
    )
    if answer.status not in _REFUSED:
        wrong.append(
            f"system:node:{me} may label itself node-restriction.kubernetes.io/… ({answer.status}): NodeRestriction is off"
        )
    if len(nodes) > 1:
        answer = context.api.request(
            "PATCH",
            f"/api/v1/nodes/{nodes[0].name}",
            body={"metadata": {"annotations": {"provisioner-verify": "x"}}},
            query={"dryRun": "All"},
            headers=identity,
            content_type="application/merge-patch+json",
        )
        if answer.status not in _REFUSED:
            wrong.append(f"system:node:{me} may change the Node {nodes[0].name} ({answer.status})")
    # a refusal counts only if the identity itself is accepted: its own Node it may read
    own = context.api.request("GET", f"/api/v1/nodes/{me}", headers=identity)
    if own.status != 200:
        wrong.append(f"system:node:{me} may not even read its own Node: {own.status}: {message_of(own)}")
    if wrong:
        raise CheckFailed(*wrong)
    return f"system:node:{me} was refused foreign Secrets, other Nodes and restricted labels"


def pod_security(context: Context) -> str:
    """Pod Security admission refuses a privileged pod in an ordinary namespace."""
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "privileged", "namespace": "default"},
        "spec": {
            "automountServiceAccountToken": False,
            "hostPID": True,
            "containers": [{"name": "c", "image": context.probe.image, "securityContext": {"privileged": True}}],
        },
    }
    try:
        context.api.create(pod, dry_run=True)
    except ClusterApiError as error:
        if error.status == 403 and "PodSecurity" in error.message:
            return f"refused: {shorten(error.message.partition('PodSecurity')[2], 120).strip(' :')}"
        raise
    raise CheckFailed("a privileged pod with hostPID was admitted to the namespace default (dry run)")
