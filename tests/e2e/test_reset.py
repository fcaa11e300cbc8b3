"""`provisioner reset` on real clusters: the machine after it is the machine before, compared in all that a cluster can change."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from provisioner import pki
from provisioner.cluster_api import ClusterApi
from provisioner.wait import NotYet, wait_until
from tests.e2e.machine import SCRIPT, Snapshot, differences, parse

pytestmark = pytest.mark.e2e

# What others have on the machine before we come: a file beside ours in each shared place, a unit, rules in tables of both kinds.
# Part of the comparison: a reset that takes any of it shows.
OTHERS = """
set -e
mkdir -p /etc/kubernetes /opt/cni/bin /etc/containerd /usr/local/lib/others /srv/data
for f in /etc/kubernetes/mine.conf /opt/cni/bin/mine /etc/containerd/mine.toml /usr/local/bin/kubectl-mine /srv/data/kept
do echo mine >$f; done
chmod 0751 /etc/kubernetes
cp /bin/sleep /usr/local/bin/containerd-shim-mine
cat >/etc/systemd/system/mine.service <<END
[Service]
ExecStart=/usr/local/bin/containerd-shim-mine infinity
[Install]
WantedBy=multi-user.target
END
systemctl enable --quiet --now mine.service
nft add table inet mine
nft 'add chain inet mine input { type filter hook input priority 10; policy accept; }'
nft add rule inet mine input tcp dport 4444 drop
iptables -t filter -N MINE-CHAIN
iptables -t filter -A MINE-CHAIN -p tcp --dport 5555 -j DROP
iptables -t filter -A INPUT -j MINE-CHAIN
ip link add mine0 type bridge
useradd --system mine-user
"""
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    # hostPort is more than the Pod Security of other namespaces allows
    "metadata": {"name": "hostport", "namespace": "kube-system", "labels": {"app": "hostport"}},
    "spec": {
        "nodeName": "worker-1",
        "containers": [
            {
                "name": "netexec",
                "image": "registry.k8s.io/e2e-test-images/agnhost:2.63.0",
                "args": ["netexec", "--http-port=8080"],
                "ports": [{"containerPort": 8080, "hostPort": 18080}],
                "volumeMounts": [{"name": "memory", "mountPath": "/memory"}],
            }
        ],
        "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory"}}],
    },
}
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "hostport", "namespace": "kube-system"},
    "spec": {"type": "NodePort", "selector": {"app": "hostport"}, "ports": [{"port": 80, "targetPort": 8080}]},
}


def snapshot(real: Any, node: str) -> Snapshot:
    return parse(real.run(node, "python3 -", stdin=SCRIPT.read_bytes()))


@pytest.fixture(scope="module")
def real(bare_lab: Callable[..., contextlib.AbstractContextManager[Any]]) -> Iterator[Any]:
    """A control plane and a worker with things of others on them, and no cluster."""
    with bare_lab("--workers", "1") as lab:
        for node in lab.cluster.nodes:
            lab.run(node, OTHERS)
        yield lab


@pytest.fixture(scope="module")
def before(real: Any) -> dict[str, Snapshot]:
    return {node.name: snapshot(real, node.name) for node in real.cluster.nodes}


def build(real: Any) -> None:
    done = real.cli("apply", "--yes", "--skip-verify")
    assert done.returncode == 0, done.stderr


def run_pods(real: Any) -> None:
    """A pod with a port of the machine and a volume in memory, behind a Service with a port of every machine."""
    keys = pki.read(real.workspace.pki, now=dt.datetime.now(dt.UTC))
    with ClusterApi(real.cluster, real.workspace, real.connections, keys) as api:
        for obj in (POD, SERVICE):
            api.create(obj)

        def running() -> None:
            found = api.get(POD)
            if found is None or found["status"].get("phase") != "Running":
                raise NotYet(str(found and found["status"]))

        wait_until("the pod runs", running, seconds=120)


def test_a_machine_is_afterwards_what_it_was(real: Any, before: dict[str, Snapshot]) -> None:
    build(real)
    run_pods(real)
    # the comparison sees what a cluster is: one that found nothing now would find nothing left later either
    for node in real.cluster.nodes:
        now = "\n".join(differences(before[node.name], snapshot(real, node.name)))
        bridge = ("cni0", "veth") if node.name == "worker-1" else ()
        for trace in (
            "files: new: /usr/local/bin/kubelet",
            "units: new: kubelet.service",
            "flannel.1",
            "kubepods",
            "KUBE-",
            *bridge,
        ):
            assert trace in now, trace
    assert "CNI-HOSTPORT-DNAT" in real.run("worker-1", "iptables-save")

    asked = real.cli("reset")
    assert asked.returncode == 3, asked.stderr
    assert "`--yes`" in asked.stderr
    assert f"cp-1 (control-plane, etcd): of the cluster {real.name}" in asked.stderr
    some = real.cli("reset", "worker-1", "--yes")
    assert some.returncode == 4, some.stderr
    assert "node remove worker-1" in some.stderr
    for node in real.cluster.nodes:
        assert real.run(node, "systemctl is-active kubelet containerd").split() == ["active"] * 2, "nothing was changed"

    said: list[str] = []
    session = threading.Thread(target=lambda: said.append(real.run("cp-1", "read line; sleep 15; echo alive", stdin=b"go\n")))
    session.start()
    done = real.cli("reset", "--yes", "--json")
    session.join()
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert said == ["alive\n"], "an SSH session lives through it"
    machines = json.loads(done.stdout)["machines"]
    assert {name: machine["changed"] for name, machine in machines.items()} == {"cp-1": True, "worker-1": True}
    assert machines["cp-1"]["before"]["etcdMiB"] > 0
    assert machines["worker-1"]["before"]["pods"] >= 1
    for node in real.cluster.nodes:
        assert differences(before[node.name], snapshot(real, node.name)) == [], node.name

    again = real.cli("reset", "--yes")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("already clean") == 2

    # the workspace has kept the PKI: the same cluster can be built anew
    build(real)
    proof = real.cli("verify")
    assert proof.returncode == 0, proof.stdout


def test_a_machine_that_does_not_answer_is_named_and_the_others_are_reset(real: Any, before: dict[str, Snapshot]) -> None:
    """After the test above, which has left a cluster."""
    machine = real.machine("worker-1")
    machine.power_off()
    done = real.cli("reset", "--yes")
    assert done.returncode == 1, done.stderr
    assert "worker-1" in done.stderr.splitlines()[-2] + done.stderr.splitlines()[-1]
    assert "cp-1: clean" in done.stdout
    assert differences(before["cp-1"], snapshot(real, "cp-1")) == []
    machine.start()
    later = real.cli("reset", "--yes")
    assert later.returncode == 0, later.stderr
    assert "cp-1: already clean" in later.stdout
    assert "worker-1: clean" in later.stdout
    assert real.run("worker-1", "ls /etc/kubernetes /usr/local/bin").split() == [
        *("/etc/kubernetes:", "mine.conf", "/usr/local/bin:", "containerd-shim-mine", "kubectl-mine")
    ]


def test_the_other_network_and_an_address_that_a_killed_keepalived_has_left(real: Any) -> None:
    """kube-proxy's chains in iptables, routes through the other machines, the virtual address. Needs clean machines."""
    clean = {node.name: snapshot(real, node.name) for node in real.cluster.nodes}
    address = f"{str(real.cluster.node('cp-1').ip).rpartition('.')[0]}.200"
    settings = f"network: {{proxyMode: iptables, backend: host-gw}}\ncontrolPlaneEndpoint: {{host: {address}, vip: {{}}}}\n"
    with real.edited(lambda text: text + settings):
        build(real)
        # as one that was killed leaves it
        real.run("cp-1", f"systemctl stop provisioner-vip; ip addr replace {address}/32 dev eth0")
        assert f"{address}/32" in real.run("cp-1", "ip addr")
        assert "KUBE-SERVICES" in real.run("cp-1", "iptables-save")
        assert "10.244." in real.run("cp-1", "ip route show via $(getent hosts worker-1 | cut -d' ' -f1)")
        done = real.cli("reset", "--yes")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    for node in real.cluster.nodes:
        assert differences(clean[node.name], snapshot(real, node.name)) == [], node.name
