"""Checks of the network as pods see it: pod to pod, Services, DNS."""

from __future__ import annotations

from collections.abc import Callable

from provisioner import topology
from provisioner.cluster_api import Object
from provisioner.errors import ProvisionerError
from provisioner.report import Pairs
from provisioner.verify.model import CheckFailed, Context, Evidence, each, listed, patiently, plural, settling
from provisioner.verify.probe import HTTP_PORT, UDP_PORT, Dialled, ProbePod, shorten

APP = "probe"
# A second pod on each node: an endpoint on the caller's node that is not the caller.
PEER = "peer"

# Larger than any usual MTU, jumbo frames included: several segments each way.
TCP_BYTES = 12_000
# Larger than an Ethernet frame, so it is fragmented; netexec's buffer holds 2048.
UDP_BYTES = 1_900
_PATTERN = "0123456789abcdefghijklmnopqrstuvwxyz"


def payload(size: int) -> str:
    """Text of that many bytes in which a lost, doubled or swapped part shows."""
    words = (f"{index:06x}{_PATTERN}" for index in range(size // 42 + 1))
    return "".join(words)[:size]


def probe_pods(context: Context) -> str:
    """A pod on every node: scheduled, started and Ready."""
    context.probe.deploy(APP)
    pods = context.probe.wait_ready(APP, seconds=context.seconds * 0.9)
    return f"Ready on {listed(pod.node.name for pod in pods)}"


def peer_pods(context: Context) -> str:
    """The same once more, so that every node has two."""
    context.probe.deploy(PEER)
    pods = context.probe.wait_ready(PEER, seconds=context.seconds * 0.9)
    return f"Ready on {listed(pod.node.name for pod in pods)}"


def pod_to_pod(context: Context) -> Evidence:
    """Every pod reaches every other one by its address, with payloads larger than the MTU, over TCP and UDP."""
    pods = context.probe.pods()
    pairs = [(source, target) for source in pods for target in pods if source is not target]

    def attempt(pair: tuple[ProbePod, ProbePod]) -> tuple[str, ...]:
        try:
            _pair(*pair)
        except CheckFailed as failure:
            return failure.seen
        except ProvisionerError as error:
            return (error.message,)
        return ()

    tried = pairs or [(pod, pod) for pod in pods]
    outcomes = list(zip(tried, each(tried, attempt), strict=True))
    failed = tuple((source.node.name, target.node.name, "; ".join(seen)) for (source, target), seen in outcomes if seen)
    found = Pairs(tuple(pod.node.name for pod in pods), failed)
    if failed:
        raise CheckFailed(*(line for _, seen in outcomes for line in seen), pairs=found)
    payloads = f"{TCP_BYTES} bytes TCP, {UDP_BYTES} bytes UDP"
    if not pairs:
        return Evidence(f"one node: {pods[0].node.name}'s pod reaches itself by its address, {payloads}", found)
    return Evidence(f"all {len(pairs)} ordered pairs of {plural(len(pods), 'node')}: {payloads}, echoed whole", found)


def _pair(source: ProbePod, target: ProbePod) -> None:
    way = f"{source.node.name} -> {target.node.name} (pod {source.ip} -> {target.ip})"
    text = payload(TCP_BYTES)
    large = source.dial(target.ip, HTTP_PORT, f"echo?msg={text}")
    if large.answers != (text,):
        raise CheckFailed(f"{way}: {TCP_BYTES} bytes over TCP: {_echo(large)}; {_smaller(source, target, large)}")
    text = payload(UDP_BYTES)
    # UDP may lose a datagram and owe us nothing: one of three has to come through
    datagrams = source.dial(target.ip, UDP_PORT, f"echo {text}", protocol="udp")
    if text not in datagrams.answers:
        again = source.dial(target.ip, UDP_PORT, f"echo {text}", protocol="udp", tries=2)
        if text not in again.answers:
            raise CheckFailed(f"{way}: {UDP_BYTES} bytes over UDP: {_echo(again)}; TCP passes")


def _echo(dialled: Dialled) -> str:
    if dialled.answers:
        return f"came back changed ({len(dialled.answers[0])} bytes: {shorten(dialled.answers[0], 60)!r})"
    return dialled.why


def _smaller(source: ProbePod, target: ProbePod, large: Dialled) -> str:
    """What a small packet does tells a wrong MTU from no path at all."""
    small = source.dial(target.ip, HTTP_PORT, "hostname")
    if small.answers == (target.name,):
        swallowed = any(word in large.why.lower() for word in ("timeout", "deadline", "no answer"))
        advice = ": look at the MTU of the pods' network and of the path between the nodes" if swallowed else ""
        return f"a small packet passes{advice}"
    return f"small packets do not pass either ({small.why})"


def cluster_ip(context: Context) -> str:
    """From every node a Service's ClusterIP leads to pods that are there, over TCP and UDP."""
    pods = context.probe.pods()
    names = {pod.name for pod in pods}
    address = str(context.probe.service(APP)["spec"]["clusterIP"])
    more = min(2 * len(pods), 20)

    def call(pod: ProbePod) -> int:
        seen = set()
        for port, protocol in ((80, "http"), (81, "udp")):
            way = f"{pod.node.name} -> ClusterIP {address}:{port}/{protocol}"
            # one call first: where nothing answers, many would only take longer to say so
            for tries in (1, more):
                dialled = pod.dial(address, port, "hostname", protocol=protocol, tries=tries)
                # a lost datagram is no broken Service
                if (dialled.errors and protocol == "http") or not dialled.answers:
                    raise CheckFailed(f"{way}: {max(len(dialled.errors), 1)} of {plural(tries, 'call')} failed: {dialled.why}")
                if strangers := set(dialled.answers) - names:
                    raise CheckFailed(f"{way}: answered by {listed(strangers)}, which is no pod of ours")
                seen |= set(dialled.answers)
        return len(seen)

    def look() -> str:
        reached = settling(pods, call)
        spread = f"{min(reached)} to {max(reached)} of {plural(len(pods), 'endpoint')}"
        return f"{address} answers from {plural(len(pods), 'node')}, from each {spread}"

    return patiently(look, context.seconds * 0.7)


def node_port(context: Context) -> str:
    """From every node the NodePort answers on every node's address."""
    pods = context.probe.pods()
    names = {pod.name for pod in pods}
    port = _node_port(context.probe.service(APP))

    def call(pair: tuple[ProbePod, ProbePod]) -> None:
        pod, other = pair
        dialled = pod.dial(str(other.node.ip), port, "hostname")
        if dialled.errors or not set(dialled.answers) <= names or not dialled.answers:
            raise CheckFailed(f"{pod.node.name} -> NodePort {other.node.name} ({other.node.ip}:{port}): {_hostname(dialled)}")

    def look() -> str:
        settling([(pod, other) for pod in pods for other in pods], call)
        return f"port {port} answers on {plural(len(pods), 'node')} from {plural(len(pods), 'node')}"

    return patiently(look, context.seconds * 0.7)


def _node_port(service: Object) -> int:
    return next(int(port["nodePort"]) for port in service["spec"]["ports"] if port["name"] == "http")


def hairpin(context: Context) -> str:
    """A pod that calls its own Service reaches itself."""
    return _local(context, f"{APP}-local", lambda pod: pod.name, "itself")


def own_node_endpoint(context: Context) -> str:
    """A pod that calls a Service reaches another pod on its own node."""
    peers = {pod.node.name: pod.name for pod in context.probe.pods(PEER)}
    return _local(context, f"{PEER}-local", lambda pod: peers[pod.node.name], "its neighbour on the node")


def _local(context: Context, service: str, expected: Callable[[ProbePod], str], whom: str) -> str:
    pods = context.probe.pods()
    address = str(context.probe.service(service)["spec"]["clusterIP"])

    def call(pod: ProbePod) -> None:
        dialled = pod.dial(address, 80, "hostname", tries=2)
        wanted = expected(pod)
        if dialled.errors or set(dialled.answers) != {wanted}:
            raise CheckFailed(
                f"{pod.node.name}: pod {pod.name} -> Service {service} ({address}): wanted {wanted} ({whom}): {_hostname(dialled)}"
            )

    def look() -> str:
        settling(pods, call)
        return f"on {plural(len(pods), 'node')} each pod reached {whom} by {address}"

    return patiently(look, context.seconds * 0.7)


def _hostname(dialled: Dialled) -> str:
    if dialled.errors:
        return dialled.why
    return f"answered by {listed(set(dialled.answers))}" if dialled.answers else "no answer"


def dns(context: Context) -> str:
    """From every node cluster DNS knows Services by their short and their full names, and does not know what is not there."""
    pods = context.probe.pods()
    names = {pod.name for pod in pods}
    domain = context.cluster.network.dns_domain
    namespace = context.probe.namespace
    server = str(topology.dns_service_ip(context.cluster))

    def call(pod: ProbePod) -> None:
        for name in (APP, f"{APP}.{namespace}.svc.{domain}."):
            dialled = pod.dial(name, 80, "hostname")
            if dialled.errors or not dialled.answers or not set(dialled.answers) <= names:
                raise CheckFailed(f"{pod.node.name}: {name}: {_hostname(dialled)}")
        # Go's server tells a client that speaks HTTP to its HTTPS port so: it proves that the name led to an apiserver
        dialled = pod.dial("kubernetes.default", 443, "healthz")
        if not any("HTTPS" in answer for answer in dialled.answers):
            raise CheckFailed(f"{pod.node.name}: kubernetes.default: {_hostname(dialled)}")
        absent = pod.dial(f"no-such-service.{namespace}.svc.{domain}.", 80, "hostname")
        if absent.answers or not any("no such host" in error for error in absent.errors):
            raise CheckFailed(f"{pod.node.name}: a name that does not exist: {_hostname(absent)}, not NXDOMAIN")

    def look() -> str:
        settling(pods, call)
        return f"{APP}, {APP}.{namespace}.svc.{domain} and kubernetes.default resolve by {server} from {plural(len(pods), 'node')}"

    return patiently(look, context.seconds * 0.7)
