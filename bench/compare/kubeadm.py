"""The cluster by kubeadm, in its best honest case.

Before the clock starts every machine has what a prepared image of kubeadm's users has: containerd running with all images imported
and unpacked, kubelet with kubeadm's drop-in, CNI plugins, kubeadm, kernel settings, and the endpoint's name in /etc/hosts. Nothing
is downloaded or pulled afterwards.

With the clock: `kubeadm init --upload-certs` on the first control plane; flannel's objects as soon as the API answers; all
joins (control planes and workers) at once as soon as they can succeed, which is when the signed cluster-info is published.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.compare import machines
from bench.compare.checks import PASSING, Api
from bench.compare.materials import WORKER_IMAGES, Materials, etcd_tag
from bench.compare.watch import Watcher
from provisioner import lab
from provisioner.config import Role
from provisioner.lab import Lab, Machine, cgroups

ENDPOINT = "api.race"
POD_CIDR, SERVICE_CIDR = "10.244.0.0/16", "10.96.0.0/16"
SECONDS = 300.0
# SystemVerification refuses cgroup v1; bridge netfilter is the kernel's, and set; memory and CPUs are shared with the host
IGNORED = ["SystemVerification", "Swap", "NumCPU", "Mem", "FileContent--proc-sys-net-bridge-bridge-nf-call-iptables"]

KUBELET_UNIT = """\
[Unit]
Description=kubelet: The Kubernetes Node Agent
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/local/bin/kubelet
Restart=always
# the packages' own unit waits for ten seconds
RestartSec=1

[Install]
WantedBy=multi-user.target
"""
# as in kubeadm's packages
_OF_KUBELET = "/etc/kubernetes/kubelet.conf", "/etc/kubernetes/bootstrap-kubelet.conf"
KUBEADM_DROP_IN = f"""\
[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--kubeconfig={_OF_KUBELET[0]} --bootstrap-kubeconfig={_OF_KUBELET[1]}"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
EnvironmentFile=-/etc/default/kubelet
ExecStart=
ExecStart=/usr/local/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS
"""
CONTAINERD_UNIT = """\
[Unit]
Description=containerd container runtime
After=network.target local-fs.target
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=/usr/local/bin/containerd
Restart=always
RestartSec=1
KillMode=process
Delegate=yes
LimitNOFILE=1048576
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity

[Install]
WantedBy=multi-user.target
"""
CONTAINERD_CONFIG = """\
version = 3

[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "/usr/local/bin/runc"
  SystemdCgroup = {systemd}
"""
SYSCTL = "net.ipv4.ip_forward = 1\nnet.bridge.bridge-nf-call-iptables = 1\nnet.bridge.bridge-nf-call-ip6tables = 1\n"
INSTALL = f"""\
cd {machines.SHELF}
mkdir -p /usr/local/bin /opt/cni/bin
install -m 755 bin/* /usr/local/bin/
install -m 755 cni/* /opt/cni/bin/
cp -r etc/. /etc/
chmod 600 /etc/kubeadm.yaml
echo '{{api}} {ENDPOINT}' >> /etc/hosts
sysctl -q --system || true
systemctl daemon-reload
systemctl enable --quiet kubelet
systemctl enable --quiet --now containerd
for archive in images/*.tar; do
  ctr --namespace k8s.io images import --label io.cri-containerd.pinned=pinned "$archive"
done
cd /
rm -rf {machines.SHELF}
"""
BINARIES = ("containerd", "containerd-shim-runc-v2", "ctr", "runc", "crictl", "kubelet", "kubectl")

# No plugin of flannel's own (its CNI wrapper comes in another image): the conflist that the toolkit writes, by the same container,
# and flannel is started again at once where its Node has no addresses yet, instead of after the kubelet's ten seconds.
FLANNEL_SCRIPT = """\
(
  until [ -s /run/flannel/subnet.env ]; do sleep 0.1; done
  . /run/flannel/subnet.env
  bridge="${FLANNEL_SUBNET%/*}"
  subnet="${bridge%.*}.$((${bridge##*.} - 1))/${FLANNEL_SUBNET#*/}"
  cat > /etc/cni/net.d/.10-flannel.conflist <<END
{"cniVersion": "1.0.0", "name": "flannel", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "mtu": $FLANNEL_MTU, "ipMasq": false,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "$subnet"}]], "routes": [{"dst": "POD_CIDR"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
END
  mv /etc/cni/net.d/.10-flannel.conflist /etc/cni/net.d/10-flannel.conflist
) &
until /opt/bin/flanneld --ip-masq --kube-subnet-mgr --iface=eth0; do sleep 0.5; done
""".replace("POD_CIDR", POD_CIDR)


@dataclass(frozen=True, slots=True)
class Secrets:
    """What joins are admitted with, chosen beforehand so that nothing waits for it."""

    token: str = field(default_factory=lambda: f"{secrets.token_hex(3)}.{secrets.token_hex(8)}")
    certificate_key: str = field(default_factory=lambda: secrets.token_hex(32))


def install(place: Lab, materials: Materials, chosen: Secrets) -> None:
    """Everything that is in place before the clock starts.

    Raises:
        RuntimeError: a machine refuses.
    """
    driver = "systemd" if cgroups.detect().version == 2 else "cgroupfs"
    first = place.machines[0]

    def one(machine: Machine) -> None:
        wanted = (
            materials.images if Role.CONTROL_PLANE in machine.roles else {name: materials.images[name] for name in WORKER_IMAGES}
        )
        machines.shelve(
            place,
            machine,
            {
                "bin/kubeadm": materials.kubeadm,
                **{f"bin/{name}": materials.files[name].path for name in BINARIES},
                **{name: file.path for name, file in materials.files.items() if name.startswith("cni/")},
                **{f"images/{name}.tar": path for name, path in wanted.items()},
                "etc/kubeadm.yaml": configuration(place, machine, materials, chosen, driver),
                "etc/systemd/system/kubelet.service": KUBELET_UNIT,
                "etc/systemd/system/kubelet.service.d/10-kubeadm.conf": KUBEADM_DROP_IN,
                "etc/systemd/system/containerd.service": CONTAINERD_UNIT,
                "etc/containerd/config.toml": CONTAINERD_CONFIG.format(
                    pause=materials.references["pause"], systemd=str(driver == "systemd").lower()
                ),
                "etc/sysctl.d/90-kubernetes.conf": SYSCTL,
            },
        )
        machines.ssh(place.name, machine.name, INSTALL.format(api=first.address))

    machines.everywhere(place.machines, one)


def configuration(place: Lab, machine: Machine, materials: Materials, chosen: Secrets, driver: str) -> str:
    """kubeadm's configuration file of one machine (https://kubernetes.io/docs/reference/config-api/kubeadm-config.v1beta4/)."""
    api = "kubeadm.k8s.io/v1beta4"
    local = {"advertiseAddress": str(machine.address), "bindPort": 6443}
    registration: dict[str, Any] = {
        "name": machine.name,
        "criSocket": "unix:///run/containerd/containerd.sock",
        "ignorePreflightErrors": IGNORED,
        "imagePullPolicy": "IfNotPresent",
        "kubeletExtraArgs": [{"name": "node-ip", "value": str(machine.address)}],
    }
    if machine != place.machines[0]:
        join: dict[str, Any] = {
            "apiVersion": api,
            "kind": "JoinConfiguration",
            "nodeRegistration": registration,
            "discovery": {
                "bootstrapToken": {
                    "apiServerEndpoint": f"{ENDPOINT}:6443",
                    "token": chosen.token,
                    # saves the joins from waiting for the CA's hash, which is known only after init has begun
                    "unsafeSkipCAVerification": True,
                }
            },
        }
        if Role.CONTROL_PLANE in machine.roles:
            join["controlPlane"] = {"localAPIEndpoint": local, "certificateKey": chosen.certificate_key}
        return yaml.safe_dump(join)
    documents: list[dict[str, Any]] = [
        {
            "apiVersion": api,
            "kind": "InitConfiguration",
            "bootstrapTokens": [{"token": chosen.token, "ttl": "2h0m0s"}],
            "certificateKey": chosen.certificate_key,
            "localAPIEndpoint": local,
            "nodeRegistration": registration,
        },
        {
            "apiVersion": api,
            "kind": "ClusterConfiguration",
            "kubernetesVersion": f"v{materials.versions['kubernetes']}",
            "controlPlaneEndpoint": f"{ENDPOINT}:6443",
            "networking": {"podSubnet": POD_CIDR, "serviceSubnet": SERVICE_CIDR, "dnsDomain": "cluster.local"},
            "etcd": {"local": {"imageTag": etcd_tag(materials.versions)}},
            "dns": {"imageRepository": "docker.io/coredns", "imageTag": materials.versions["coredns"]},
        },
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": driver,
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
        },
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "oomScoreAdj": 0,
            # the conntrack table is the host's
            "conntrack": {"maxPerCore": 0, "min": 0},
        },
    ]
    return yaml.safe_dump_all(documents)


def flannel_objects(image: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    """(path, object) of everything that upstream's kube-flannel.yml has, in its order."""
    namespace, name, labels = "kube-flannel", "flannel", {"app": "flannel"}
    meta = {"name": name}
    rules = [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    ]
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    group = "rbac.authorization.k8s.io"
    net = {"Network": POD_CIDR, "EnableNFTables": True, "Backend": {"Type": "vxlan"}}
    container = {
        "name": "kube-flannel",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", FLANNEL_SCRIPT],
        "env": [
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
            # not through the Service: kube-proxy may not have been there yet
            {"name": "KUBERNETES_SERVICE_HOST", "value": ENDPOINT},
            {"name": "KUBERNETES_SERVICE_PORT", "value": "6443"},
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "50Mi"}},
        "securityContext": {"privileged": False, "capabilities": {"add": ["NET_ADMIN", "NET_RAW"]}},
        "volumeMounts": [
            {"name": "run", "mountPath": "/run/flannel"},
            {"name": "cni", "mountPath": "/etc/cni/net.d"},
            {"name": "config", "mountPath": "/etc/kube-flannel"},
        ],
    }
    pod = {
        "hostNetwork": True,
        "priorityClassName": "system-node-critical",
        "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
        "serviceAccountName": name,
        "containers": [container],
        "volumes": [
            {"name": "run", "hostPath": {"path": "/run/flannel", "type": "DirectoryOrCreate"}},
            {"name": "cni", "hostPath": {"path": "/etc/cni/net.d", "type": "DirectoryOrCreate"}},
            {"name": "config", "configMap": {"name": "kube-flannel-cfg"}},
        ],
    }
    template = {"metadata": {"labels": labels}, "spec": pod}
    account = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    return (
        ("/api/v1/namespaces", {"metadata": {"name": namespace}}),
        (f"{rbac}/clusterroles", {"metadata": meta, "rules": rules}),
        (
            f"{rbac}/clusterrolebindings",
            {"metadata": meta, "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name}, "subjects": [account]},
        ),
        (f"/api/v1/namespaces/{namespace}/serviceaccounts", {"metadata": meta}),
        (
            f"/api/v1/namespaces/{namespace}/configmaps",
            {"metadata": {"name": "kube-flannel-cfg"}, "data": {"net-conf.json": json.dumps(net)}},
        ),
        (
            f"/apis/apps/v1/namespaces/{namespace}/daemonsets",
            {"metadata": {"name": "kube-flannel-ds"}, "spec": {"selector": {"matchLabels": labels}, "template": template}},
        ),
    )


class Race:
    """One run, from booted and prepared machines to all nodes Ready.

    Args:
        place: a lab, installed.
        materials: what was installed.
        directory: for kubeconfig and logs.
    """

    def __init__(self, place: Lab, materials: Materials, directory: Path) -> None:
        self._lab, self._materials, self._directory = place, materials, directory
        self._api: Api | None = None
        self._failures: list[str] = []
        self._began = 0.0
        self.kubeconfig = directory / "kubeadm.kubeconfig"
        self.milestones: dict[str, Any] = {}

    def run(self) -> None:
        """Until every command has ended well and all nodes were Ready.

        Raises:
            RuntimeError, TimeoutError: something failed; the message has the command's last lines.
        """
        first, *others = self._lab.machines
        watcher = Watcher(lambda: self.kubeconfig if self.kubeconfig.exists() else None, len(self._lab.machines), self._on_api)
        self._began = time.monotonic()
        watcher.start(self._began)
        try:
            with contextlib.ExitStack() as stack:
                init = stack.enter_context(self._start(first, "init --upload-certs --skip-token-print"))
                self._fetch_kubeconfig(first, init)
                self._wait_until_joinable(init)
                self._note("joins_started_s")
                joins = {machine.name: stack.enter_context(self._start(machine, "join")) for machine in others}
                self._finish({first.name: init, **joins})
            self._note("commands_done_s")
            watcher.wait(SECONDS)
        finally:
            watcher.stop()
            self.milestones |= watcher.milestones
        if self._failures:
            raise RuntimeError("; ".join(self._failures))

    def _note(self, name: str) -> None:
        self.milestones[name] = round(time.monotonic() - self._began, 2)

    def _start(self, machine: Machine, verb: str) -> subprocess.Popen[str]:
        words = verb.split()
        command = ["/usr/local/bin/kubeadm", words[0], "--config=/etc/kubeadm.yaml", *words[1:]]
        with (self._directory / f"{machine.name}.log").open("w") as log:
            return subprocess.Popen(lab.ssh_command(self._lab.name, machine.name, command), stdout=log, stderr=log, text=True)

    def _fetch_kubeconfig(self, first: Machine, init: subprocess.Popen[str]) -> None:
        path = "/etc/kubernetes/super-admin.conf"
        script = f"for i in $(seq 600); do [ -s {path} ] && exec cat {path}; sleep 0.1; done; exit 1"
        try:
            text = machines.ssh(self._lab.name, first.name, script, timeout=90)
        except RuntimeError as error:
            raise RuntimeError(f"{error}\n{self._tail(first.name)}") from None
        if init.poll():
            raise RuntimeError(self._tail(first.name))
        partial = self.kubeconfig.with_suffix(".part")
        partial.touch(mode=0o600)
        partial.write_text(text.replace(ENDPOINT, str(first.address)))
        partial.replace(self.kubeconfig)

    def _wait_until_joinable(self, init: subprocess.Popen[str]) -> None:
        """Until cluster-info is there and signed for the token: what `kubeadm join` itself looks for, every five seconds."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if init.poll():
                raise RuntimeError(self._tail(self._lab.machines[0].name))
            if self._api is not None:
                with contextlib.suppress(*PASSING):
                    data = self._api.get("/api/v1/namespaces/kube-public/configmaps/cluster-info")["data"]
                    if any(key.startswith("jws-kubeconfig-") for key in data):
                        return
            time.sleep(0.1)
        raise TimeoutError(f"no signed cluster-info after {SECONDS:g} s: {self._tail(self._lab.machines[0].name)}")

    def _on_api(self, api: Api) -> None:
        self._api = api
        end = time.monotonic() + SECONDS
        for path, body in flannel_objects(self._materials.references["flannel"]):
            while True:
                try:
                    api.create(path, body)
                    break
                except PASSING as error:
                    if time.monotonic() > end:
                        self._failures.append(f"flannel: {error}")
                        return
                    time.sleep(0.1)
        self._note("flannel_applied_s")

    def _finish(self, running: dict[str, subprocess.Popen[str]]) -> None:
        done: dict[str, float] = {}

        def wait(name: str) -> None:
            try:
                if running[name].wait(timeout=SECONDS):
                    self._failures.append(self._tail(name))
            except subprocess.TimeoutExpired:
                running[name].kill()
                self._failures.append(f"not done within {SECONDS:g} s: {self._tail(name)}")
            done[name] = round(time.monotonic() - self._began, 2)

        threads = [threading.Thread(target=wait, args=(name,)) for name in running]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.milestones["command_done_s"] = dict(sorted(done.items()))
        if self._failures:
            raise RuntimeError("; ".join(self._failures))

    def _tail(self, name: str) -> str:
        text = (self._directory / f"{name}.log").read_text(errors="replace")
        return f"kubeadm on {name}: {text[-3000:]}"
