"""`reset.wipe` against a real machine that is half installed, broken, somebody else's, or has things of others on it."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from rich.console import Console

from provisioner import inventory, lab, pki, preflight, runner
from provisioner.artifacts import load_lock
from provisioner.config import Node
from provisioner.display import Display
from provisioner.errors import ExitCode, LabError, PreflightUnfit, ProvisionerError
from provisioner.lab import host as lab_host
from provisioner.lifecycle import reset
from provisioner.lifecycle.reset import ResetResult
from provisioner.load import load
from provisioner.render.footprint import questions
from provisioner.session import Session
from provisioner.share import ANSIBLE_CFG, PLAYBOOKS, SHARE
from provisioner.ssh import Connections
from provisioner.wait import NotYet, wait_until
from provisioner.workspace import Workspace
from tests.e2e.machine import SCRIPT, Snapshot, differences, parse

REQUIRED = os.environ.get("PROVISIONER_REQUIRE_LAB") == "1"


def _why_not() -> str:
    try:
        lab_host.check()
    except LabError as error:
        return f"{error.message}; {error.hint}"
    return ""


pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(bool(_why_not()) and not REQUIRED, reason=_why_not() or "the host can run lab machines"),
]

UNIT = "# Placed by provisioner\\n[Service]\\nEnvironment=PROVISIONER_HASH=1\\nExecStart=/bin/sleep infinity\\nRestart=always\\n"
# The name that portmap gives to the chain of container 1111 in our network.
NAMED = "CNI-DN-" + hashlib.sha512(b"flannel1111").hexdigest()[:21]
TASK = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/1111"
# A machine on which a run was killed, and which was mistreated since: no binary is there, a unit's file is gone while it runs,
# containerd's child has lost its parent, a container is left that takes no SIGTERM, things are mounted, a namespace has no process.
BROKEN = f"""
set -e
mkdir -p /etc/provisioner /etc/kubernetes/pki /etc/cni/net.d /usr/local/lib/provisioner /run/flannel /var/lib/cni/networks/flannel
echo '{{"cluster": "test", "id": "ID"}}' >/etc/provisioner/cluster.json
touch /etc/kubernetes/pki/ca.crt /etc/cni/net.d/10-flannel.conflist /var/lib/cni/networks/flannel/1
touch /usr/local/bin/.provisioner-abcdefgh
for unit in kubelet kube-proxy flanneld; do
  printf '{UNIT}' >/etc/systemd/system/$unit.service
  mkdir -p /etc/systemd/system/multi-user.target.wants
  ln -s /etc/systemd/system/$unit.service /etc/systemd/system/multi-user.target.wants/
done
mkdir /etc/systemd/system/kubelet.service.d
printf '[Service]\\nNice=1\\n' >/etc/systemd/system/kubelet.service.d/10-more.conf
systemctl daemon-reload
systemctl start kubelet kube-proxy flanneld
rm /etc/systemd/system/flanneld.service
mkdir -p /var/lib/kubelet/pods/1/volumes/secret /var/lib/kubelet/pods/1/volumes/bound /srv/precious
mount -t tmpfs tmpfs /var/lib/kubelet/pods/1/volumes/secret
echo precious >/srv/precious/file
mount --bind /srv/precious /var/lib/kubelet/pods/1/volumes/bound
for group in /sys/fs/cgroup/pids /sys/fs/cgroup/systemd; do mkdir -p $group/kubepods/burstable/pod1/c1; done
# what systemd was not told of
mkdir -p /sys/fs/cgroup/systemd/system.slice/containerd.service
setsid sh -c 'trap "" TERM; while :; do sleep 1; done' >/dev/null 2>&1 </dev/null &
for group in /sys/fs/cgroup/pids /sys/fs/cgroup/systemd; do echo $! >$group/kubepods/burstable/pod1/c1/cgroup.procs; done
cp /bin/sleep /usr/local/bin/containerd-shim-runc-v2
mkdir -p {TASK}/rootfs /var/lib/cni/results /var/lib/containerd/io.containerd.metadata.v1.bolt
mount -t tmpfs tmpfs {TASK}/rootfs
cd /var/lib/cni/results
echo '{{"containerId": "1111", "networkName": "flannel", "netns": "/var/run/netns/cni-1111"}}' >flannel-1111-eth0
echo '{{"containerId": "1111", "networkName": "cni-loopback"}}' >cni-loopback-1111-lo
cd /
echo '... /var/run/netns/cni-2222 ...' >/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db
ip netns add cni-1111
ip netns add cni-2222
ip link add cni0 type bridge
ip link add veth1111 type veth peer name eth0 netns cni-1111
ip link set veth1111 master cni0
nft add table ip kube-proxy
nft add table ip6 flannel-ipv6
iptables -t nat -N KUBE-SERVICES
iptables -t nat -N KUBE-SVC-1
iptables -t nat -A KUBE-SERVICES -m comment --comment "a: b" -p tcp --dport 1 -j KUBE-SVC-1
iptables -t nat -A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
iptables -t nat -A PREROUTING -p tcp --dport 9 -j RETURN
iptables -t nat -N CNI-DN-0123456789abcdef01234
iptables -t nat -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment 'dnat name: "flannel" id: "1111"' -j CNI-DN-0123456789abcdef01234
iptables -t nat -A CNI-DN-0123456789abcdef01234 -p tcp --dport 8080 -j CNI-HOSTPORT-SETMARK
iptables -t nat -A CNI-DN-0123456789abcdef01234 -p tcp --dport 8080 -j DNAT --to-destination 10.244.0.9:80
iptables -t nat -N {NAMED} 2>/dev/null || true
nft add rule ip cni_hostport hostports tcp dport 8081 dnat to 10.244.0.9:80 comment '"1111"'
ip6tables -t filter -N FLANNEL-FWD
ip6tables -t filter -A FORWARD -j FLANNEL-FWD
"""
# What others have there, with names that look like ours: podman calls the same CNI plugins.
THEIR_CHAIN = "CNI-DN-fedcba9876543210fedcb"
THEIR_ROOT = "/run/containerd/io.containerd.runtime.v2.task/theirs/9999/rootfs"
THEIR_MASQUERADE = "CNI-fedcba9876543210fedcba98"
OTHERS = f"""
set -e
ip netns add cni-9999
mkdir -p /var/lib/cni/results /var/lib/cni/networks/podman /run/containerd/theirs /srv/theirs
echo '{{"containerId": "9999", "networkName": "podman", "netns": "/run/netns/cni-9999"}}' >/var/lib/cni/results/podman-9999-eth0
echo 9999 >/var/lib/cni/networks/podman/10.88.0.2
for chain in CNI-HOSTPORT-DNAT CNI-HOSTPORT-SETMARK CNI-HOSTPORT-MASQ {THEIR_CHAIN} {THEIR_MASQUERADE}; do
  iptables -t nat -N $chain
done
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
iptables -t nat -A CNI-HOSTPORT-DNAT -p tcp -m comment --comment 'dnat name: "podman" id: "9999"' -j {THEIR_CHAIN}
iptables -t nat -A {THEIR_CHAIN} -p tcp --dport 9090 -j DNAT --to-destination 10.88.0.2:80
iptables -t nat -A POSTROUTING -s 10.88.0.2 -m comment --comment 'name: "podman" id: "9999"' -j {THEIR_MASQUERADE}
iptables -t nat -A {THEIR_MASQUERADE} -d 10.88.0.0/16 -m comment --comment 'name: "podman" id: "9999"' -j ACCEPT
nft add table ip cni_hostport
nft add chain ip cni_hostport hostports
nft add rule ip cni_hostport hostports tcp dport 9091 dnat to 10.88.0.2:80 comment '"9999"'
# a program of theirs, in no group of ours, works in what is mounted below a directory of ours
echo theirs >/srv/theirs/file
mount --bind /srv/theirs /run/containerd/theirs
# a container of a containerd that keeps its layers elsewhere
mkdir -p /run/layers/lower /run/layers/upper /run/layers/work {THEIR_ROOT}
echo layer >/run/layers/lower/file
mount -t overlay overlay -o lowerdir=/run/layers/lower,upperdir=/run/layers/upper,workdir=/run/layers/work {THEIR_ROOT}
cat >/etc/systemd/system/theirs.service <<END
[Service]
WorkingDirectory=/run/containerd/theirs
ExecStart=/bin/sleep infinity
END
systemctl daemon-reload
systemctl start theirs
mkdir -p /etc/kubernetes /opt/others
echo mine >/etc/kubernetes/mine.conf
nft add table ip kube-proxy-mine
nft add chain ip kube-proxy-mine KUBE-MINE
iptables -t nat -N KUBERNETES-MINE
iptables -t nat -A KUBERNETES-MINE -p tcp --dport 7 -j RETURN
iptables -t nat -A PREROUTING -j KUBERNETES-MINE
cp /bin/sleep /opt/others/containerd-shim-runc-v2
cat >/etc/systemd/system/etcd.service <<END
[Service]
ExecStart=/opt/others/containerd-shim-runc-v2 infinity
[Install]
WantedBy=multi-user.target
END
systemctl daemon-reload
systemctl enable --quiet --now etcd
mkdir -p /var/lib/etcd/member /etc/etcd/pki
echo data >/var/lib/etcd/member/db
echo mine >/etc/etcd/pki/server.crt
ip netns add mine
ip link add cni1 type bridge
useradd --system --comment mine kube-scheduler
"""


@dataclass(frozen=True)
class Target:
    """One lab machine, and a session for it."""

    session: Session
    node: Node

    @property
    def cluster_id(self) -> str:
        found = preflight.cluster_id_of(self.session.workspace)
        assert found
        return found

    def run(self, command: str, *, stdin: bytes = b"") -> str:
        done = self.session.connections.run(self.node, command, stdin=stdin, timeout=120)
        assert done.code == 0, f"{command}: {done.complaint}"
        return done.text

    def look(self) -> Snapshot:
        return parse(self.run("python3 -", stdin=SCRIPT.read_bytes()))

    def break_it(self, identity: str = "") -> None:
        self.run("bash -s", stdin=BROKEN.replace("ID", identity or self.cluster_id).encode())

    def wipe(self, *, seconds: int = 120) -> ResetResult | ProvisionerError:
        # the log of each run has a directory of its own
        log = self.session.log / f"{dt.datetime.now(dt.UTC):%H%M%S.%f}"
        # a machine that was taken out of cluster.yaml, where it had another name
        node = self.node.model_copy(update={"name": "old-name"})
        return reset.wipe(replace(self.session, log=log), [node], seconds=seconds)["old-name"]

    def wiped(self) -> ResetResult:
        result = self.wipe()
        assert isinstance(result, ResetResult), (result.message, result.details)
        return result


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """One lab machine with things of others on it, gone at the end."""
    name = f"reset-{os.getpid()}"
    directory = tmp_path_factory.mktemp("reset") / "workspace" / name
    try:
        path = lab.up(name, 1, 0, directory=directory)
        workspace = Workspace.of(path, name)
        workspace.create()
        cluster = load(path)
        pki.ensure(cluster, workspace.pki, now=dt.datetime.now(dt.UTC))
        with Connections(cluster, workspace) as connections, runner.control_sockets() as sockets:
            display = Display(Console(file=io.StringIO()))
            log = workspace.logs / "test"
            session = Session(cluster, workspace, connections, load_lock(), display, log, sockets)
            target = Target(session, cluster.nodes[0])
            target.run("bash -s", stdin=OTHERS.encode())
            yield target
    finally:
        lab.down(name)


@pytest.fixture
def clean(machine: Target) -> Iterator[Callable[[], list[str]]]:
    """What differs now from what the machine was before the test; at its end, nothing may."""
    before = machine.look()

    def compare() -> list[str]:
        after = machine.look()
        # iptables' own tables, which only a machine with a record of its first change is rid of; /srv is the test's own
        return [line for line in differences(before, after) if "/srv/precious" not in line and not line.startswith("filters:")] + [
            line for line in differences(before, after) if re.search("KUBE-|FLANNEL-|CNI-|dnat to", line)
        ]

    yield compare
    machine.run("rmdir /etc/crictl.yaml 2>/dev/null || true; rm -rf /srv/precious")
    machine.wiped()


def test_a_broken_machine_is_clean_afterwards_and_what_is_of_others_untouched(
    machine: Target, clean: Callable[[], list[str]]
) -> None:
    machine.break_it()
    seen = "\n".join(clean())
    for trace in (
        "kubelet.service",
        "kubepods",
        "cni0",
        "cni-1111",
        "cni-2222",
        TASK,
        "KUBE-SERVICES",
        NAMED,
        "dport 8081 dnat to",
    ):
        assert trace in seen, trace
    result = machine.wiped()
    assert result.changed
    assert {"units", "processes", "mounts", "interfaces", "packet filter", "cgroups", "files"} <= result.removed.keys()
    assert clean() == []
    assert machine.run("cat /srv/precious/file").strip() == "precious", "nothing is deleted through a mount"
    rules = machine.run("iptables-save -t nat; nft list tables")
    for rule in ("-A PREROUTING -p tcp -m tcp --dport 9 -j RETURN", "-A PREROUTING -j KUBERNETES-MINE", "table ip kube-proxy-mine"):
        assert rule in rules, rule
    assert machine.run("systemctl is-active etcd; cat /var/lib/etcd/member/db /etc/etcd/pki/server.crt").split() == [
        *("active", "data", "mine")
    ], "somebody's own etcd"
    assert any("etcd" in note and "not ours" in note for note in result.notes)
    assert any("kube-scheduler" in note for note in result.notes)
    assert not machine.wiped().changed, "and a second time there is nothing to do"


def test_what_the_cni_plugins_have_made_for_others_stays(machine: Target, clean: Callable[[], list[str]]) -> None:
    """podman's names are those of our pods: only what is proved ours goes."""
    machine.break_it()
    result = machine.wiped()
    removed = "\n".join(item for items in result.removed.values() for item in items)
    for ours in (
        *("/run/netns/cni-1111", "/run/netns/cni-2222", f"{TASK}/rootfs", "/var/lib/cni/networks/flannel"),
        *("nat CNI-DN-0123456789abcdef01234", f"nat {NAMED}", "nft rule ip cni_hostport hostports handle"),
        *("/var/lib/cni/results/flannel-1111-eth0", "/var/lib/cni/results/cni-loopback-1111-lo"),
    ):
        assert ours in removed, ours
    rules = machine.run("iptables-save -t nat; nft list table ip cni_hostport")
    for rule in (
        *(f"-j {THEIR_CHAIN}", f"-A {THEIR_CHAIN} -p tcp", f"-j {THEIR_MASQUERADE}", f"-A {THEIR_MASQUERADE} -d 10.88.0.0/16"),
        *("--dst-type LOCAL -j CNI-HOSTPORT-DNAT", ":CNI-HOSTPORT-SETMARK", "dport 9091 dnat to 10.88.0.2:80"),
    ):
        assert rule in rules, rule
    assert "10.244.0.9" not in rules
    assert "flannel" not in rules
    assert set(machine.run("ls /run/netns").split()) == {"mine", "cni-9999"}
    assert machine.run("cat /run/containerd/theirs/file; systemctl is-active theirs").split() == ["theirs", "active"]
    assert machine.run(f"cat {THEIR_ROOT}/file; ls /run/containerd {THEIR_ROOT}/../../..").split() == [
        *("layer", "/run/containerd:", "io.containerd.runtime.v2.task", "theirs", f"{THEIR_ROOT}/../../..:", "theirs")
    ]
    assert machine.run("find /var/lib/cni -type f | sort").split() == [
        *("/var/lib/cni/networks/podman/10.88.0.2", "/var/lib/cni/results/podman-9999-eth0")
    ]
    said = "\n".join(result.notes)
    for kept in (
        *("namespace cni-9999 ", f"chain {THEIR_CHAIN} ", f"chain {THEIR_MASQUERADE} ", "chain CNI-HOSTPORT-DNAT "),
        *("table ip cni_hostport ", "mount /run/containerd/theirs ", f"mount {THEIR_ROOT} "),
    ):
        assert kept in said, kept
    assert clean() == []


# A k3s on a machine of ours that has no kubelet: its units have other names, its places are ours.
THEIR_TASK = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/7777"
THEIR_KUBERNETES = f"""
set -e
mkdir -p /etc/provisioner /var/lib/kubelet/pods/7/volumes/token /opt/k3s {THEIR_TASK}/rootfs
echo '{{"cluster": "test", "id": "ID"}}' >/etc/provisioner/cluster.json
mount -t tmpfs tmpfs /var/lib/kubelet/pods/7/volumes/token
mount -t tmpfs tmpfs {THEIR_TASK}/rootfs
mkdir -p /var/lib/containerd/io.containerd.metadata.v1.bolt
echo /var/run/netns/cni-7777 >/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db
echo theirs >/var/lib/kubelet/theirs
cp /bin/sleep /opt/k3s/pod
setsid /opt/k3s/pod infinity >/dev/null 2>&1 </dev/null &
echo $! >/opt/k3s/pid
for group in /sys/fs/cgroup/pids /sys/fs/cgroup/systemd; do
  mkdir -p $group/kubepods/burstable/pod7
  echo $! >$group/kubepods/burstable/pod7/cgroup.procs
done
ip netns add cni-7777
ip link add cni0 type bridge
nft add table ip kube-proxy
iptables -t nat -N KUBE-SERVICES
iptables -t nat -A PREROUTING -j KUBE-SERVICES
"""
NO_KUBERNETES = f"""
kill $(cat /opt/k3s/pid)
sleep 1
ip netns del cni-7777
ip link del cni0
nft delete table ip kube-proxy
iptables -t nat -D PREROUTING -j KUBE-SERVICES
iptables -t nat -X KUBE-SERVICES
umount /var/lib/kubelet/pods/7/volumes/token {THEIR_TASK}/rootfs
rm -rf /var/lib/kubelet/* /var/lib/containerd/* $(dirname {THEIR_TASK}) /opt/k3s
for group in /sys/fs/cgroup/pids /sys/fs/cgroup/systemd; do
  rmdir $group/kubepods/burstable/pod7 $group/kubepods/burstable $group/kubepods
done
"""


def test_another_kubernetes_on_a_machine_of_ours_is_left_alone(machine: Target, clean: Callable[[], list[str]]) -> None:
    try:
        machine.run("bash -s", stdin=THEIR_KUBERNETES.replace("ID", machine.cluster_id).encode())
        before = machine.look()
        result = machine.wiped()
        assert result.changed, "the marker was ours"
        assert [line for line in differences(before, machine.look()) if "/etc/provisioner" not in line] == []
        for role in ("kubelet", "containerd"):
            assert any(note.startswith(f"{role}: nothing of ours is installed") for note in result.notes), result.notes
        assert any("no pods of ours" in note for note in result.notes)
    finally:
        machine.run("bash -s", stdin=NO_KUBERNETES.encode())
    assert clean() == []


def test_what_the_record_says_was_there_stays(machine: Target, clean: Callable[[], list[str]]) -> None:
    """Chains, and a unit's file that we have overwritten; and it is said."""
    unit = "/etc/systemd/system/kube-proxy.service"
    machine.run(f"iptables -t nat -N KUBE-OLD; iptables -t nat -A KUBE-OLD -j RETURN; iptables -t nat -N {NAMED}; touch {unit}")
    # as the role base does it, on the machine's own Python
    source = "\n".join(
        line
        for name in ("provisioner_host", "provisioner_before")
        for line in (SHARE / f"plugins/module_utils/{name}.py").read_text().splitlines()
        if not line.startswith(("from __future__", "from ansible"))
    )
    asked = json.dumps(questions(machine.cluster_id))
    machine.run("python3 -", stdin=f"{source}\nrecord_before(json.loads({asked!r}))\n".encode())
    machine.break_it()
    result = machine.wiped()
    said = "\n".join(result.notes)
    assert f"{unit} was there before us, and stays, with our content" in said
    for chain in ("KUBE-OLD", NAMED, THEIR_CHAIN):
        assert f"the chain {chain} of iptables-nft's table nat was there before us, and stays" in said, said
    rules = machine.run("iptables-save -t nat")
    assert "-A KUBE-OLD -j RETURN" in rules
    assert "KUBE-SERVICES" not in rules
    machine.run(
        f"rm {unit}; systemctl daemon-reload; iptables -t nat -F KUBE-OLD; iptables -t nat -X KUBE-OLD; iptables -t nat -X {NAMED}"
    )
    assert clean() == []


def test_a_machine_of_another_cluster_is_refused(machine: Target, clean: Callable[[], list[str]]) -> None:
    machine.break_it("0000000000000000")
    before = machine.look()
    result = machine.wipe()
    assert isinstance(result, PreflightUnfit)
    assert "test (id 0000000000000000)" in result.message
    assert differences(before, machine.look()) == []
    # nor one whose marker is damaged, but whose CA is not ours
    machine.run("echo broken >/etc/provisioner/cluster.json; echo other >/etc/kubernetes/pki/ca.crt")
    refused = machine.wipe()
    assert isinstance(refused, PreflightUnfit), refused
    assert refused.exit_code == ExitCode.PREFLIGHT_UNFIT
    machine.run("rm /etc/kubernetes/pki/ca.crt")
    assert machine.wiped().changed, "one that cannot tell any more is ours by what we have placed there"
    assert clean() == []


def test_without_anything_of_ours_nothing_is_touched(machine: Target, clean: Callable[[], list[str]]) -> None:
    """What another Kubernetes has left is none of our business, also where it has our names."""
    machine.run("mkdir -p /var/lib/kubelet/pods; echo theirs >/var/lib/kubelet/config.yaml; ip link add cni0 type bridge")
    assert not machine.wiped().changed
    assert machine.run("cat /var/lib/kubelet/config.yaml; rm -r /var/lib/kubelet/*; ip link del cni0").strip() == "theirs"
    assert clean() == []


def test_what_cannot_be_removed_is_named_and_the_rest_goes(machine: Target, clean: Callable[[], list[str]]) -> None:
    machine.break_it()
    machine.run("mkdir /etc/crictl.yaml")
    result = machine.wipe()
    assert isinstance(result, ProvisionerError)
    assert "/etc/crictl.yaml: Is a directory" in result.message
    assert result.hint
    assert [line for line in clean() if "/etc/crictl.yaml" not in line and "/etc/provisioner" not in line] == []
    assert machine.run("ls /etc/provisioner").strip() == "cluster.json", "it still says whose it is"
    machine.run("rmdir /etc/crictl.yaml")
    assert machine.wiped().changed
    assert clean() == []


def test_a_deadline_ends_it_and_the_next_run_goes_on(machine: Target, clean: Callable[[], list[str]]) -> None:
    """The container that takes no SIGTERM needs five seconds."""
    machine.break_it()
    result = machine.wipe(seconds=3)
    assert isinstance(result, ProvisionerError)
    assert "not done within 3 s" in result.message
    assert any("processes: " in line or "kubepods" in line for line in result.details), result.details
    assert machine.wiped().changed
    assert clean() == []


def test_a_run_that_is_killed_half_way_is_taken_up(machine: Target, clean: Callable[[], list[str]]) -> None:
    machine.break_it()
    results: list[ResetResult | ProvisionerError] = []
    thread = threading.Thread(target=lambda: results.append(machine.wipe()))
    thread.start()

    def stopped() -> None:
        done = machine.session.connections.run(machine.node, "systemctl is-active kubelet")
        if done.text.strip() == "active":
            raise NotYet("the kubelet runs")

    wait_until("the reset has begun", stopped, seconds=60)
    # the module comes to its interpreter on standard input, and no other Python runs on this machine
    machine.run("pkill --signal KILL --exact python3")
    thread.join()
    assert isinstance(results[0], ProvisionerError), "it was killed while it waited for the container"
    assert machine.wiped().changed
    assert clean() == []


def test_check_mode_tells_what_would_go(machine: Target, clean: Callable[[], list[str]], tmp_path: Path) -> None:
    machine.break_it()
    before = machine.look()
    session = machine.session
    variables = reset.variables_of(session.cluster, session.workspace, 60)
    path = inventory.write_apart(
        session.cluster, session.workspace, "to_reset", [machine.node], {machine.node.name: "/usr/bin/python3"}, **variables
    )
    program = str(Path(sys.executable).parent / "ansible-playbook")
    environ = {**os.environ, "ANSIBLE_CONFIG": str(ANSIBLE_CFG), "ANSIBLE_HOME": str(tmp_path), "LC_ALL": "C.UTF-8"}
    environ |= {"ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    done = subprocess.run(
        [program, "--check", "-vv", "--inventory", str(path), str(PLAYBOOKS / "reset.yml")],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    begin = done.stdout.index("{", done.stdout.index("changed: ["))
    found = json.JSONDecoder().raw_decode(done.stdout[begin:])[0]["state"]["found"]
    assert "kubelet.service" in found["units"]
    assert "/var/lib/kubelet/pods/1/volumes/bound" in found["mounts"]
    assert "cni0" in found["interfaces"]
    assert differences(before, machine.look()) == []
    machine.wiped()
    assert clean() == []


def test_a_machine_that_does_not_answer_has_its_error(machine: Target) -> None:
    gone = machine.node.model_copy(update={"name": "gone", "address": "127.0.0.1", "ssh_port": 9})
    session = replace(machine.session, log=machine.session.log / "gone")
    with contextlib.suppress(FileExistsError):
        session.log.mkdir(parents=True)
    results = reset.wipe(session, [gone, machine.node], seconds=60)
    assert list(results) == ["gone", machine.node.name]
    assert isinstance(results["gone"], ProvisionerError)
    assert isinstance(results[machine.node.name], ResetResult)
