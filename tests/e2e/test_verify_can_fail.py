"""Every check of `verify` fails on a cluster that is broken in the way it looks for, says what it saw, and passes after the repair.

One healthy cluster, one set of probe pods; each scenario breaks one thing for real, runs the checks that must notice, and repairs
it whatever happened. What a check must say names the machine or the component that was broken: failing alone would prove little.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import yaml

from provisioner import pki as pki_module
from provisioner.artifacts.lock import load_lock
from provisioner.cluster_api import ClusterApi
from provisioner.config import Node, Role
from provisioner.pki import CaName
from provisioner.report import CheckResult, Outcome
from provisioner.verify import CHECKS
from provisioner.verify.model import Check, Context, Level
from provisioner.verify.network import APP, PEER
from provisioner.verify.probe import Probe
from provisioner.verify.runner import run_checks
from provisioner.wait import NotYet, wait_until

pytestmark = pytest.mark.e2e

BY_ID = {check.id: check for check in CHECKS}
# Seconds a check may look at a broken cluster before it must have said so; those that wait for things to settle use them up.
LOOK = 6.0
# The machine that runs the tests may be slow and busy: repairs get all the time they need.
REPAIR = 240.0


class Machines:
    """The cluster under test and short ways to hurt it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.planes = context.cluster.control_planes
        self.workers = [node for node in context.cluster.nodes if not node.has(Role.CONTROL_PLANE) and node.has(Role.WORKER)]

    def run(self, node: Node, command: str, *, stdin: bytes = b"") -> str:
        done = self.context.connections.run(node, command, stdin=stdin, timeout=120)
        assert done.code == 0, f"{node.name}: {command}: {done.complaint}"
        return done.text

    def patch(self, path: str, body: dict[str, Any]) -> None:
        answer = self.context.api.request("PATCH", path, body=body, content_type="application/merge-patch+json", timeout=60)
        assert answer.status < 300, answer.text

    @contextlib.contextmanager
    def stopped(self, unit: str, *nodes: Node) -> Iterator[None]:
        try:
            for node in nodes:
                self.run(node, f"systemctl stop {unit}")
            yield
        finally:
            for node in nodes:
                self.run(node, f"systemctl start {unit}")

    @contextlib.contextmanager
    def rules(self, node: Node, text: str) -> Iterator[None]:
        """nftables rules in a table of our own, gone afterwards."""
        try:
            self.run(node, "nft -f -", stdin=f"table ip broken {{\n{text}\n}}\n".encode())
            yield
        finally:
            self.run(node, "nft delete table ip broken")

    @contextlib.contextmanager
    def file(self, node: Node, path: str, change: Callable[[str], str], *then: str) -> Iterator[None]:
        """A file's content changed in place (owner and mode stay); ``then`` runs after the change and after the repair."""
        before = self.run(node, f"cat {path}")
        after = change(before)
        if after == before:
            # no assert: it would print the file, which may hold a key
            pytest.fail(f"{path} does not hold what this test changes")
        try:
            self.run(node, f"cat > {path}", stdin=after.encode())
            for command in then:
                self.run(node, command)
            yield
        finally:
            self.run(node, f"cat > {path}", stdin=before.encode())
            for command in then:
                self.run(node, command)


# --- what is broken ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def kube_proxy_dead(machines: Machines) -> Iterator[None]:
    worker = machines.workers[0]
    with machines.stopped("kube-proxy", worker):
        machines.run(worker, "nft delete table ip kube-proxy")
        yield


@contextlib.contextmanager
def dns_without_replicas(machines: Machines) -> Iterator[None]:
    path = "/apis/apps/v1/namespaces/kube-system/deployments/coredns"
    replicas = machines.context.api.request("GET", path).json()["spec"]["replicas"]
    try:
        machines.patch(path, {"spec": {"replicas": 0}})
        wait_until("no DNS pod is left", lambda: _no_pods(machines, "k8s-app=kube-dns"), seconds=REPAIR)
        yield
    finally:
        machines.patch(path, {"spec": {"replicas": replicas}})


def _no_pods(machines: Machines, selector: str) -> None:
    if pods := machines.context.api.items("/api/v1/namespaces/kube-system/pods", labelSelector=selector):
        raise NotYet(f"{len(pods)} pods")


def dns_cut_off_on_a_node(machines: Machines) -> AbstractContextManager[None]:
    chain = "chain pre { type filter hook prerouting priority -300; udp dport 53 drop; tcp dport 53 drop; }"
    return machines.rules(machines.workers[0], chain)


def scheduler_stopped(machines: Machines) -> AbstractContextManager[None]:
    return machines.stopped("kube-scheduler", *machines.planes)


def controller_manager_stopped(machines: Machines) -> AbstractContextManager[None]:
    return machines.stopped("kube-controller-manager", *machines.planes)


def one_apiserver_stopped(machines: Machines) -> AbstractContextManager[None]:
    return machines.stopped("kube-apiserver", machines.planes[-1])


def one_etcd_member_stopped(machines: Machines) -> AbstractContextManager[None]:
    return machines.stopped("etcd", machines.planes[-1])


def api_proxy_stopped(machines: Machines) -> AbstractContextManager[None]:
    return machines.stopped("provisioner-api-proxy", machines.workers[0])


@contextlib.contextmanager
def vxlan_device_deleted(machines: Machines) -> Iterator[None]:
    worker = machines.workers[0]
    try:
        machines.run(worker, "ip link delete flannel.1")
        yield
    finally:
        machines.run(worker, "systemctl restart flanneld")


def large_packets_swallowed(machines: Machines) -> AbstractContextManager[None]:
    # what a path with a smaller MTU does that drops the ICMP messages which would say so
    chain = 'chain forward { type filter hook forward priority 0; oifname "flannel.1" meta length > 1000 drop; }'
    return machines.rules(machines.workers[0], chain)


def bridged_packets_pass_by_the_rules(machines: Machines) -> AbstractContextManager[None]:
    # the classic of Services that work from every node but the endpoint's own
    return _sysctl(machines, machines.workers[0], "net.bridge.bridge-nf-call-iptables", "0")


@contextlib.contextmanager
def _sysctl(machines: Machines, node: Node, name: str, value: str) -> Iterator[None]:
    before = machines.run(node, f"sysctl -n {name}").strip()
    assert before != value
    try:
        machines.run(node, f"sysctl -q -w {name}={value}")
        yield
    finally:
        machines.run(node, f"sysctl -q -w {name}={before}")


@contextlib.contextmanager
def hairpin_off(machines: Machines) -> Iterator[None]:
    """A CNI without hairpinMode: the bridge does not give a packet back to the port it came from."""
    worker = machines.workers[0]
    names = r"ip -o link show master cni0 | sed 's/^[0-9]*: \([^@:]*\).*/\1/'"
    ports = f"for port in $({names}); do ip link set dev $port type bridge_slave hairpin %s; done"
    try:
        machines.run(worker, ports % "off")
        yield
    finally:
        machines.run(worker, ports % "on")


@contextlib.contextmanager
def no_cni_configuration(machines: Machines) -> Iterator[None]:
    worker = machines.workers[0]
    try:
        # the files, not the directory: without the directory containerd ends
        machines.run(worker, "rm /etc/cni/net.d/*")
        wait_until("the runtime has no network", lambda: _network_ready(machines, worker, wanted=False), seconds=REPAIR)
        yield
    finally:
        # flanneld's unit writes it anew
        machines.run(worker, "systemctl restart flanneld")
        wait_until("the runtime has a network", lambda: _network_ready(machines, worker, wanted=True), seconds=REPAIR)


def _network_ready(machines: Machines, node: Node, *, wanted: bool) -> None:
    conditions = json.loads(machines.run(node, "crictl info"))["status"]["conditions"]
    state = next(condition["status"] for condition in conditions if condition["type"] == "NetworkReady")
    if state is not wanted:
        raise NotYet(f"NetworkReady is {state}")


def kubelet_stopped(machines: Machines) -> AbstractContextManager[None]:
    return machines.stopped("kubelet", machines.workers[0])


def every_kubelet_stopped(machines: Machines) -> AbstractContextManager[None]:
    return machines.stopped("kubelet", *machines.context.cluster.kubernetes_nodes)


def containerd_stopped(machines: Machines) -> AbstractContextManager[None]:
    # the unit that imports images goes down with it, and does not come back by itself
    return machines.stopped("containerd provisioner-images", machines.workers[0])


def kubelet_port_blocked(machines: Machines) -> AbstractContextManager[None]:
    return machines.rules(
        machines.workers[0], "chain input { type filter hook input priority -300; tcp dport 10250 reject with tcp reset; }"
    )


@contextlib.contextmanager
def key_readable_to_all(machines: Machines) -> Iterator[None]:
    path = "/etc/kubernetes/kubelet/serving.key"
    try:
        machines.run(machines.workers[0], f"chmod 0644 {path}")
        yield
    finally:
        machines.run(machines.workers[0], f"chmod 0600 {path}")


@contextlib.contextmanager
def ca_key_on_a_worker(machines: Machines) -> Iterator[None]:
    key = machines.context.pki.cas[CaName.CLUSTER].key
    try:
        machines.run(machines.workers[0], "umask 077 && cat > /root/forgotten.pem", stdin=key)
        yield
    finally:
        machines.run(machines.workers[0], "rm -f /root/forgotten.pem")


@contextlib.contextmanager
def unit_not_enabled(machines: Machines) -> Iterator[None]:
    try:
        machines.run(machines.workers[0], "systemctl disable -q kubelet")
        yield
    finally:
        machines.run(machines.workers[0], "systemctl enable -q kubelet")


@contextlib.contextmanager
def read_only_port_open(machines: Machines) -> Iterator[None]:
    server = "python3 -m http.server --bind 127.0.0.1 --directory /etc/cni 10255"
    try:
        machines.run(machines.workers[0], f"systemd-run -q --unit=open-port {server}")
        wait_until("it listens", lambda: _listens(machines, machines.workers[0], 10255), seconds=REPAIR)
        yield
    finally:
        machines.run(machines.workers[0], "systemctl stop open-port")


def _listens(machines: Machines, node: Node, port: int) -> None:
    if f":{port} " not in machines.run(node, "ss -Hltn"):
        raise NotYet("not yet")


@contextlib.contextmanager
def node_relabelled_and_a_stranger(machines: Machines) -> Iterator[None]:
    path = f"/api/v1/nodes/{machines.workers[0].name}"
    stranger = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "stranger"}}
    try:
        machines.patch(path, {"metadata": {"labels": {"node-role.kubernetes.io/worker": None}}})
        machines.context.api.create(stranger)
        yield
    finally:
        machines.context.api.delete(stranger)
        machines.patch(path, {"metadata": {"labels": {"node-role.kubernetes.io/worker": ""}}})


@contextlib.contextmanager
def nodes_may_read_secrets(machines: Machines) -> Iterator[None]:
    group = "rbac.authorization.k8s.io"
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "too-much"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "Group", "apiGroup": group, "name": "system:nodes"}],
    }
    try:
        machines.context.api.apply(binding)
        yield
    finally:
        machines.context.api.delete(binding)


@contextlib.contextmanager
def apiserver_with_every_door_open(machines: Machines) -> Iterator[None]:
    """The first apiserver without encryption, with anonymous requests and without Pod Security."""
    plane = machines.planes[0]
    base = "/etc/kubernetes/kube-apiserver"
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: wait_until("the apiserver is back", lambda: _apiserver_ready(machines, plane), seconds=REPAIR))
        stack.callback(lambda: machines.run(plane, "systemctl restart kube-apiserver"))
        stack.enter_context(machines.file(plane, f"{base}/encryption.yaml", _identity_first))
        stack.enter_context(
            machines.file(plane, f"{base}/authentication.yaml", lambda text: re.sub(r"(?s)\n  conditions:.*", "\n", text))
        )
        stack.enter_context(
            machines.file(plane, f"{base}/admission.yaml", lambda text: text.replace("enforce: baseline", "enforce: privileged"))
        )
        machines.run(plane, "systemctl restart kube-apiserver")
        wait_until("the apiserver is back", lambda: _apiserver_ready(machines, plane), seconds=REPAIR)
        yield


def _identity_first(text: str) -> str:
    document = yaml.safe_load(text)
    for entry in document["resources"]:
        others = [provider for provider in entry["providers"] if "identity" not in provider]
        entry["providers"] = [{"identity": {}}, *others]
    return str(yaml.safe_dump(document))


def _apiserver_ready(machines: Machines, plane: Node) -> None:
    try:
        answer = machines.context.api.request_to(plane, "/readyz")
    except Exception as error:
        raise NotYet(str(error)) from None
    if answer.status != 200:
        raise NotYet(answer.text)


# --- and who must notice -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """``sees``: for each check that must fail, a pattern that one of its lines must match. ``{worker}`` and ``{plane}`` stand for
    the machines that are broken (the first worker, the last control plane), ``{first}`` for the first control plane."""

    breaks: Callable[[Machines], AbstractContextManager[None]]
    sees: dict[str, str]
    # seconds given to the checks, where LOOK is too short to be sure that the right thing is seen
    look: float = LOOK
    # the checks' own connection to the API, made after the breaking: it begins with the first control plane
    fresh_api: bool = False


SCENARIOS = (
    Scenario(
        kube_proxy_dead,
        {
            "units": r"{worker}: kube-proxy is (inactive|failed)",
            "api-paths": r"{worker}: no answer from https://10\.96\.0\.1:443",
            "cluster-ip": r"{worker} -> ClusterIP .*failed",
            "node-port": r"-> NodePort {worker} ",
            "host-services": r"{worker}: kube-proxy is not running",
            "host-ports": r"{worker}: nothing listens on 10256 \(kube-proxy\)",
        },
    ),
    Scenario(dns_without_replicas, {"system-pods": r"coredns: 0 of 0 replicas Ready", "dns": r"{worker}: probe: "}),
    Scenario(dns_cut_off_on_a_node, {"dns": r"{worker}: probe: "}),
    Scenario(
        scheduler_stopped,
        {
            "controllers": r"the lease of kube-scheduler is renewed: not reached",
            "scheduling": r"pod (fits-one|filler-\d) is not scheduled",
        },
    ),
    Scenario(
        controller_manager_stopped,
        {
            "controllers": r"{plane}: no answer from https://127\.0\.0\.1:10257/healthz",
            "pod-comes-back": r"comes-back is Ready: none was made",
        },
    ),
    Scenario(one_apiserver_stopped, {"apiservers": r"{plane}: the apiserver does not answer"}),
    Scenario(one_etcd_member_stopped, {"etcd": r"{plane}: etcd does not answer"}),
    Scenario(api_proxy_stopped, {"api-paths": r"{worker}: no answer from https://127\.0\.0\.1:16443"}),
    Scenario(vxlan_device_deleted, {"pod-to-pod": r"{worker}.*small packets do not pass either"}),
    Scenario(large_packets_swallowed, {"pod-to-pod": r"{worker} -> .*a small packet passes: look at the MTU"}),
    Scenario(bridged_packets_pass_by_the_rules, {"own-node": r"{worker}: pod .* -> Service peer-local"}),
    Scenario(hairpin_off, {"hairpin": r"{worker}: pod .* -> Service probe-local"}),
    Scenario(
        no_cni_configuration,
        {"probe-pods": r"{worker}: pod new-probe-\w+ is not Ready", "peer-pods": r"{worker}: pod new-peer"},
        look=15,
    ),
    Scenario(
        kubelet_stopped,
        {
            "kubelets": r"{worker}: asked through cp-\d, the kubelet's /healthz gave 50\d",
            "exec": r"{worker}|probe-",
            "logs": r"probe-",
        },
    ),
    Scenario(kubelet_port_blocked, {"logs": r"cannot read the log of", "exec": r"exec .*dns-server-list"}),
    Scenario(every_kubelet_stopped, {"container-restarts": r"pod restarts is not Ready: .*kubelet has not reported"}),
    Scenario(
        containerd_stopped,
        {"units": r"{worker}: .*containerd is inactive", "host-services": r"{worker}: containerd is not running"},
    ),
    Scenario(
        key_readable_to_all,
        {
            "host-files": r"{worker}: /etc/kubernetes/kubelet/serving\.key has mode 0644, not 0600",
            "host-keys": r"{worker}: /etc/kubernetes/kubelet/serving\.key holds a key and has mode 0644",
        },
    ),
    Scenario(ca_key_on_a_worker, {"host-keys": r"{worker}: /root/forgotten\.pem holds the private key of the cluster CA"}),
    Scenario(unit_not_enabled, {"host-services": r"{worker}: kubelet does not start with the machine"}),
    Scenario(read_only_port_open, {"host-ports": r"{worker}: the kubelet's read-only port 10255 is open"}),
    Scenario(node_relabelled_and_a_stranger, {"nodes": r"stranger: a Node that cluster\.yaml does not know"}),
    Scenario(nodes_may_read_secrets, {"node-authorization": r"got 200 for /api/v1/namespaces/.*/secrets"}),
    Scenario(
        apiserver_with_every_door_open,
        {
            "encryption": r"a Secret lies readable in etcd",
            "anonymous": r"{first}: /version without credentials gave 200",
            "pod-security": r"a privileged pod with hostPID was admitted",
        },
        fresh_api=True,
    ),
)


def test_every_check_has_a_scenario() -> None:
    # (a virtual address is taken from a cluster that has one: test_vip.py; what is off by default is broken in test_addons.py)
    elsewhere = {"virtual-address", "metrics", "storage", "web-ui", "registries", "autoscaling"}
    assert {name for scenario in SCENARIOS for name in scenario.sees} | elsewhere == set(BY_ID)


@pytest.fixture(scope="module")
def machines(ha: Any) -> Iterator[Machines]:
    """The session's cluster with a probe pod and a peer on every node."""
    cluster, workspace, connections = ha.cluster, ha.workspace, ha.connections
    pki = pki_module.ensure(cluster, workspace.pki, now=dt.datetime.now(dt.UTC))
    with ClusterApi(cluster, workspace, connections, pki) as api:
        probe = Probe(cluster, api, connections, load_lock().image("agnhost", cluster.kubernetes.version))
        try:
            for app in (APP, PEER):
                probe.deploy(app)
            for app in (APP, PEER):
                probe.wait_ready(app, seconds=REPAIR)
            yield Machines(Context(cluster, workspace, connections, pki, api, probe))
        finally:
            probe.remove()


@contextlib.contextmanager
def looking(machines: Machines, *, fresh_api: bool) -> Iterator[Context]:
    context = machines.context
    if not fresh_api:
        yield context
        return
    with ClusterApi(context.cluster, context.workspace, context.connections, context.pki) as api:
        yield replace(context, api=api)


def look(context: Context, names: Iterable[str], *, seconds: float) -> dict[str, CheckResult]:
    """Checks side by side on the probe pods there are; those that deploy pods deploy new ones."""
    report = run_checks(context, [_on_the_pods_there_are(BY_ID[name]) for name in names], level=Level.FULL, seconds=seconds)
    return {result.id: result for result in report.results}


def _on_the_pods_there_are(check: Check) -> Check:
    if check.id not in ("probe-pods", "peer-pods"):
        return replace(check, needs=())
    app = f"new-{check.id.removesuffix('-pods')}"

    def deploy(context: Context) -> str:
        try:
            context.probe.deploy(app)
            context.probe.wait_ready(app, seconds=context.seconds * 0.9)
        finally:
            context.api.delete(context.probe.object("apps/v1", "DaemonSet", app))
        return "Ready"

    return replace(check, run=deploy, needs=())


def passes(context: Context, names: Iterable[str]) -> None:
    """Every check passes, given the time a repair takes to spread."""
    left = set(names)

    def once() -> None:
        results = look(context, sorted(left), seconds=45)
        left.difference_update(name for name, result in results.items() if result.passed)
        if left:
            raise NotYet("\n".join(line for name in sorted(left) for line in results[name].failures))

    wait_until("every check passes again", once, seconds=REPAIR, every=0.5)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.breaks.__name__)
def test_check_fails_on_a_broken_cluster_and_passes_after_the_repair(machines: Machines, scenario: Scenario) -> None:
    names = {
        "worker": re.escape(machines.workers[0].name),
        "plane": re.escape(machines.planes[-1].name),
        "first": re.escape(machines.planes[0].name),
    }
    with scenario.breaks(machines), looking(machines, fresh_api=scenario.fresh_api) as context:
        seen = look(context, scenario.sees, seconds=scenario.look)
    for name, pattern in scenario.sees.items():
        result = seen[name]
        for key, value in names.items():
            pattern = pattern.replace("{" + key + "}", value)  # noqa: PLW2901 - not str.format: patterns have braces of their own
        assert result.outcome is Outcome.FAILED, f"{name} passed on a broken cluster: {result.evidence}"
        assert any(re.search(pattern, line) for line in result.failures), f"{name}: none says {pattern!r}: {result.failures}"
    passes(machines.context, scenario.sees)
