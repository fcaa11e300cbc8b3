"""Checks of the machines as the API shows them, and of the components' own health answers."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping

from provisioner import topology
from provisioner.cluster_api import Object, message_of
from provisioner.config import Node
from provisioner.errors import ProvisionerError, WaitTimeout
from provisioner.pki import CaName
from provisioner.render.layout import ROLES
from provisioner.tls_client import client_context
from provisioner.verify.model import CheckFailed, Context, each, listed, patiently, plural, settling
from provisioner.verify.probe import describe, is_ready, shorten
from provisioner.wait import NotYet, wait_until

# Taints that come and go by themselves; an administrator's cordon is one of them.
_LIFECYCLE_TAINTS = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")


def units_of(context: Context, node: Node) -> tuple[str, ...]:
    """The systemd units that make this machine what cluster.yaml says it is."""
    return tuple(unit.name.removesuffix(".service") for role in ROLES if role.applies(context.cluster, node) for unit in role.units)


def units(context: Context) -> str:
    """Every unit of every machine is active."""

    def look(node: Node) -> int:
        names = units_of(context, node)
        done = context.connections.run(node, "systemctl is-active " + " ".join(names), timeout=context.seconds, sudo=False)
        states = done.stdout.decode(errors="replace").split()
        if len(states) != len(names):
            raise CheckFailed(f"{node.name}: systemctl answered {shorten((done.stdout + done.stderr).decode(errors='replace'))!r}")
        wrong = [f"{name} is {state}" for name, state in zip(names, states, strict=True) if state != "active"]
        if wrong:
            raise CheckFailed(f"{node.name}: {', '.join(wrong)}")
        return len(names)

    return f"{sum(each(context.cluster.nodes, look))} units active on {plural(len(context.cluster.nodes), 'machine')}"


def node_set(context: Context) -> str:
    """The Nodes are exactly those of cluster.yaml, each Ready, of the right version, address, taints and labels."""
    live = {node["metadata"]["name"]: node for node in context.api.items("/api/v1/nodes")}
    wanted = {node.name: node for node in context.cluster.kubernetes_nodes}
    wrong = [f"{name}: in cluster.yaml, but the API has no such Node" for name in sorted(wanted.keys() - live.keys())]
    wrong += [f"{name}: a Node that cluster.yaml does not know" for name in sorted(live.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & live.keys()):
        wrong += [f"{name}: {problem}" for problem in node_problems(context, wanted[name], live[name])]
    ranges = [cidr for node in live.values() for cidr in node["spec"].get("podCIDRs") or []]
    if len(set(ranges)) != len(ranges):
        wrong.append(f"two Nodes share a pod CIDR: {listed(ranges)}")
    if wrong:
        raise CheckFailed(*wrong)
    cordoned = [name for name, node in live.items() if node["spec"].get("unschedulable")]
    note = f"; cordoned: {listed(cordoned)}" if cordoned else ""
    return f"{plural(len(live), 'Node')} Ready, v{context.cluster.kubernetes.version}: {listed(live)}{note}"


def node_problems(context: Context, wanted: Node, live: Object) -> list[str]:
    """What distinguishes a live Node from the one cluster.yaml describes."""
    problems = []
    status, spec = live.get("status") or {}, live.get("spec") or {}
    if not is_ready(live):
        ready = next((item for item in status.get("conditions") or [] if item["type"] == "Ready"), None)
        problems.append(
            f"not Ready: {ready['reason']}: {shorten(ready['message'])} (status {ready['status']})"
            if ready
            else "not Ready: its kubelet has not reported yet"
        )
    version = (status.get("nodeInfo") or {}).get("kubeletVersion")
    if version != f"v{context.cluster.kubernetes.version}":
        problems.append(f"kubelet {version}, not v{context.cluster.kubernetes.version}")
    addresses = [item["address"] for item in status.get("addresses") or [] if item["type"] == "InternalIP"]
    if addresses != [str(wanted.ip)]:
        problems.append(f"InternalIP {listed(addresses) or 'missing'}, not {wanted.ip}")
    if context.cluster.network.plugin == "flannel" and not spec.get("podCIDR"):
        problems.append("has no pod CIDR")
    expected: set[tuple[str, str, str]] = {(taint.key, taint.value, taint.effect) for taint in topology.taints_of(wanted)}
    found = {
        (taint["key"], taint.get("value", ""), taint["effect"])
        for taint in spec.get("taints") or []
        if not taint["key"].startswith(_LIFECYCLE_TAINTS)
    }
    if found != expected:
        problems.append(f"taints {_taints(found)}, not {_taints(expected)}")
    labels = live["metadata"].get("labels") or {}
    missing = [f"{key}={value}" for key, value in topology.role_labels_of(wanted).items() if labels.get(key) != value]
    if missing:
        problems.append(f"lacks the labels {listed(missing)}")
    return problems


def _taints(taints: set[tuple[str, str, str]]) -> str:
    return listed(f"{key}{'=' + value if value else ''}:{effect}" for key, value, effect in taints) or "none"


def kubelets(context: Context) -> str:
    """Every kubelet answers the apiserver now: Ready in the API may be up to 50 seconds old."""

    def ask(node: Node) -> None:
        answer = context.api.request("GET", f"/api/v1/nodes/{node.name}/proxy/healthz", timeout=context.seconds / 2)
        if answer.status != 200 or answer.text.strip() != "ok":
            raise CheckFailed(
                f"{node.name}: asked through {answer.node}, the kubelet's /healthz gave {answer.status}: {message_of(answer)}"
            )

    each(context.cluster.kubernetes_nodes, ask)
    return f"{plural(len(context.cluster.kubernetes_nodes), 'kubelet')} answered ok through the apiserver"


def apiservers(context: Context) -> str:
    """``/readyz`` of each apiserver."""

    def ask(node: Node) -> str:
        answer = context.api.request_to(node, "/readyz", query={"verbose": ""}, timeout=context.seconds / 2)
        if answer.status != 200:
            failed = [line for line in answer.text.splitlines() if line.startswith("[-]")]
            raise CheckFailed(f"{node.name}: /readyz gave {answer.status}: {'; '.join(failed) or message_of(answer)}")
        return node.name

    return f"/readyz ok on {listed(each(context.cluster.control_planes, ask))}"


def controllers(context: Context) -> str:
    """Every controller-manager and scheduler answers, and both leases are renewed by one of our control planes."""
    tls = client_context(context.pki.trust(CaName.CLUSTER))
    ports = {
        "kube-controller-manager": topology.CONTROLLER_MANAGER_PORT,
        "kube-scheduler": topology.SCHEDULER_PORT,
    }

    def ask(target: tuple[Node, str]) -> None:
        node, component = target
        status, text = https_get(context, node, ports[component], "/healthz", tls)
        if status != 200:
            raise CheckFailed(f"{node.name}: {component}'s /healthz gave {status}: {shorten(text)}")

    def lease(component: str) -> str:
        return renewed(context, component, hostnames)

    # the holder of a lease calls itself by its machine's host name, which need not be the Node's name
    hostnames = dict(each(context.cluster.control_planes, lambda node: (hostname(context, node), node.name)))
    problems: list[str] = []
    holders: list[str] = []
    try:
        holders = each(ports, lease)
    except CheckFailed as failure:
        problems += failure.seen
    try:
        each([(node, component) for node in context.cluster.control_planes for component in ports], ask)
    except CheckFailed as failure:
        problems += failure.seen
    if problems:
        raise CheckFailed(*problems)
    return f"{'; '.join(holders)}; /healthz ok on {plural(len(context.cluster.control_planes), 'control plane')}"


def hostname(context: Context, node: Node) -> str:
    """The machine's host name, as the kernel has it.

    Raises:
        CheckFailed: it does not tell.
    """
    try:
        return context.connections.run(node, "uname -n").text.strip()
    except ProvisionerError as error:
        raise CheckFailed(error.message) from None


def renewed(context: Context, component: str, hostnames: Mapping[str, str]) -> str:
    """Watch a component's lease until it is renewed; that it exists proves nothing.

    Args:
        hostnames: Node name of each control plane by its machine's host name.

    Raises:
        CheckFailed: no lease, a holder that is none of ours, or nobody renewed it.
    """
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"namespace": "kube-system", "name": component}}
    first: list[str] = []

    def look() -> str:
        live = context.api.get(lease)
        if live is None:
            raise NotYet("there is no lease")
        spec = live["spec"]
        holder = str(spec.get("holderIdentity") or "")
        now = str(spec.get("renewTime"))
        first[:] = first or [now]
        if not holder:
            raise NotYet("nobody holds the lease")
        if now == first[0]:
            raise NotYet(f"{holder} has not renewed the lease since {now}")
        return holder

    try:
        # renewed every 2 s (--leader-elect-retry-period) unless changed by flags
        holder = wait_until(f"the lease of {component} is renewed", look, seconds=context.seconds * 0.8, every=0.25)
    except WaitTimeout as error:
        raise CheckFailed(error.message) from None
    node = hostnames.get(holder.rsplit("_", 1)[0])
    if node is None:
        raise CheckFailed(
            f"the lease of {component} is held by {holder}, none of {listed(node.name for node in context.cluster.control_planes)}"
        )
    return f"{component} led by {node}"


def api_paths(context: Context) -> str:
    """From every machine's own network, the API answers by its node's proxy and by its ClusterIP."""
    tls = client_context(context.pki.trust(CaName.CLUSTER))
    service = str(topology.kubernetes_service_ip(context.cluster))
    ways = (("127.0.0.1", topology.API_PROXY_PORT, "its api-proxy"), (service, 443, f"the ClusterIP {service}"))

    def ask(target: tuple[Node, tuple[str, int, str]]) -> None:
        node, (host, port, name) = target
        status, text = https_get(context, node, port, "/readyz", tls, host=host)
        if status != 200:
            raise CheckFailed(f"{node.name}: the API by {name} gave {status}: {shorten(text)}")

    each([(node, way) for node in context.cluster.kubernetes_nodes for way in ways], ask)
    return f"/readyz ok from {plural(len(context.cluster.kubernetes_nodes), 'host')} by api-proxy and by {service}:443"


def virtual_address(context: Context) -> str:
    """Exactly one control plane holds the API's virtual address, and every machine reaches the API there, by its certificate."""
    endpoint = context.cluster.control_plane_endpoint
    if endpoint is None or endpoint.vip is None:
        return "the cluster has none"
    address, port = endpoint.host, endpoint.port
    planes = context.cluster.control_planes
    # a certificate without the address is refused; hostname and address are one to `ssl`
    tls = client_context(context.pki.trust(CaName.CLUSTER))

    def holds(node: Node) -> bool:
        done = context.connections.run(node, "ip -4 -oneline address show", timeout=context.seconds / 4, sudo=False)
        if done.code != 0:
            raise CheckFailed(f"{node.name}: its addresses cannot be told: {shorten(done.complaint)}")
        return f" {address}/" in done.text

    def look() -> str:
        held = dict(zip((node.name for node in planes), settling(planes, holds), strict=True))
        holders = [name for name, holding in held.items() if holding]
        if len(holders) != 1:
            raise NotYet(f"{address} is held by {listed(holders) or 'no control plane'}, not by exactly one")
        return holders[0]

    def ask(node: Node) -> None:
        status, text = https_get(context, node, port, "/readyz", tls, host=address, name=address)
        if status != 200:
            raise CheckFailed(f"{node.name}: the API by {address} gave {status}: {shorten(text)}")

    # for a moment after a change there may be two holders, or none
    holder = patiently(look, context.seconds / 2)
    each(context.cluster.nodes, ask)
    return f"{address} held by {holder}; /readyz ok there from {plural(len(context.cluster.nodes), 'machine')}, by its certificate"


def https_get(
    context: Context, node: Node, port: int, path: str, tls: ssl.SSLContext, *, host: str = "127.0.0.1", name: str = "127.0.0.1"
) -> tuple[int, str]:
    """GET over TLS as the node itself would.

    Args:
        context: gives connections and deadline.
        node: the machine that makes the connection.
        port: TCP port.
        path: path of the URL.
        tls: whom to trust.
        host: as seen from the node.
        name: what the certificate must be for.

    Raises:
        CheckFailed: no answer; says of whom and why.
    """
    with context.connections.forward(node, port, host=host) as forward:
        connection = http.client.HTTPConnection("127.0.0.1", forward.port, timeout=context.seconds / 2)
        try:
            connection.connect()
            connection.sock = tls.wrap_socket(connection.sock, server_hostname=name)
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise CheckFailed(
                f"{node.name}: no answer from https://{host}:{port}{path}: {forward.error or f'{type(error).__name__}: {error}'}"
            ) from None
        finally:
            connection.close()


def system_pods(context: Context) -> str:
    """Every pod of kube-system is Ready, and DNS has all its replicas."""
    deployments = "/apis/apps/v1/namespaces/kube-system/deployments"
    names = {node.name for node in context.cluster.nodes}

    def look() -> str:
        # pods of a finished Job are done, not broken
        pods = [
            pod
            for pod in context.api.items("/api/v1/namespaces/kube-system/pods")
            if (pod.get("status") or {}).get("phase") != "Succeeded"
            # of a larger cluster some machines are proved, and what ails others is not theirs
            and (not context.probe.confined or pod["spec"].get("nodeName") in names)
        ]
        wrong = [
            f"{pod['metadata']['name']} on {pod['spec'].get('nodeName') or 'no node'}: {describe(pod)}"
            for pod in pods
            if not is_ready(pod)
        ]
        dns = context.api.items(deployments, labelSelector="k8s-app=kube-dns")
        if not dns:
            wrong.append("there is no Deployment with the label k8s-app=kube-dns: the cluster has no DNS")
        for deployment in dns:
            wanted, ready = deployment["spec"].get("replicas", 1), (deployment.get("status") or {}).get("readyReplicas", 0)
            if ready < (1 if context.probe.confined else max(wanted, 1)):
                wrong.append(f"Deployment {deployment['metadata']['name']}: {ready} of {wanted} replicas Ready")
        if wrong:
            raise NotYet("\n".join(wrong))
        return f"{plural(len(pods), 'pod')} Ready: {listed(pod['metadata']['name'] for pod in pods)}"

    return patiently(look, context.seconds * 0.9)
