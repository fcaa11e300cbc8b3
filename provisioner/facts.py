"""What the machines are: one SSH round trip per host, in parallel, with ``probe`` running on each."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Self

from provisioner import os_table, probe
from provisioner.config import Cluster, Node, Role
from provisioner.errors import ProvisionerError
from provisioner.ssh import Completed, Connections, SshError, Trouble, parallel

MARKER = "/etc/provisioner/cluster.json"

# Where the roles put what takes room.
ETCD_DATA = "/var/lib/etcd"
CONTAINERD_DATA = "/var/lib/containerd"
KUBELET_DATA = "/var/lib/kubelet"
OWN_DATA = "/var/lib/provisioner"
BINARIES = "/usr/local/bin"
PLUGINS = "/opt/cni/bin"
PATHS = ("/", ETCD_DATA, CONTAINERD_DATA, KUBELET_DATA, OWN_DATA, BINARIES, PLUGINS)

# Kernel features by name: modules that bring one (any of them), and the options of a kernel that has it built in.
FEATURES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "overlay": (("overlay",), ("CONFIG_OVERLAY_FS",)),
    "bridge": (("bridge",), ("CONFIG_BRIDGE",)),
    "br_netfilter": (("br_netfilter",), ("CONFIG_BRIDGE_NETFILTER",)),
    "veth": (("veth",), ("CONFIG_VETH",)),
    "vxlan": (("vxlan",), ("CONFIG_VXLAN",)),
    "nf_conntrack": (("nf_conntrack",), ("CONFIG_NF_CONNTRACK",)),
    "nf_tables": (("nf_tables",), ("CONFIG_NF_TABLES",)),
    "nft_fib": (("nft_fib",), ("CONFIG_NFT_FIB",)),
    "nft_masq": (("nft_masq",), ("CONFIG_NFT_MASQ",)),
    "nft_numgen": (("nft_numgen",), ("CONFIG_NFT_NUMGEN",)),
    "iptables": (("nft_compat", "ip_tables"), ("CONFIG_NFT_COMPAT", "CONFIG_IP_NF_IPTABLES")),
    "xt_comment": (("xt_comment",), ("CONFIG_NETFILTER_XT_MATCH_COMMENT",)),
    "xt_masquerade": (("xt_MASQUERADE", "ipt_MASQUERADE"), ("CONFIG_NETFILTER_XT_TARGET_MASQUERADE",)),
}

# Units whose presence or state matters: other Kubernetes distributions, container engines, firewalls.
UNITS = (
    *("k3s", "k3s-agent", "rke2-server", "rke2-agent", "k0scontroller", "k0sworker", "snap.microk8s.daemon-kubelite"),
    *("kubelet", "containerd", "docker", "crio", "etcd", "kube-apiserver", "haproxy", "firewalld"),
)

# What another installation, or an earlier one, leaves behind.
LEFTOVERS = (
    *("/etc/kubernetes/manifests", "/etc/kubernetes/admin.conf", "/etc/kubernetes/kubelet.conf", "/etc/kubernetes/pki"),
    *("/var/lib/etcd/member", "/var/lib/rancher/k3s", "/var/lib/rancher/rke2", "/var/lib/k0s", "/var/lib/kubelet/pki"),
    *("/etc/cni/net.d",),
)

# Exit code and words of the shell around the probe; everything else comes from the probe itself.
NO_PYTHON = 96
COMMAND = (
    f"p=$(command -v python3) || exit {NO_PYTHON}; "
    # isolated, without site packages (half of Python's own start), writing no byte code: nothing on the machine changes
    '"$p" -IBS - || { c=$?; "$p" -V >&2; exit "$c"; }'
)
SECONDS = probe.SECONDS + 30


@dataclass(frozen=True, slots=True)
class Disk:
    """The filesystem that a path is on, or would be on. ``device`` tells filesystems apart; sizes are in MiB."""

    free_mib: int
    total_mib: int
    filesystem: str
    device: str
    rotational: bool
    noexec: bool
    read_only: bool


@dataclass(frozen=True, slots=True)
class DiskSync:
    """99th percentile of a sync to the disk of etcd's data, in ms. ``source``: "measured", or "etcd" where one runs and counts."""

    p99_ms: float
    syncs: int
    source: str


@dataclass(frozen=True, slots=True)
class HostFacts:
    """One machine, as it was looked at. Sizes in MiB, times in seconds; ports map to the listening program ("" if unknown).

    Attributes:
        arch: amd64, arm64, or what the kernel calls another one.
        cgroup: 2 where that is the only hierarchy, else 1.
        clock_skew_s: the machine's clock minus the controller's, from the midpoints of the round trip.
        kernel_features: present or loadable; None where the machine does not tell.
        systemd: its version; 0 where it is not process 1.
        can_lower_oom: whether oom_score_adj may be lowered there.
        container: "systemd-nspawn", "lxc", ...; empty on a machine or a virtual machine.
        marker: content of the marker file, of whichever cluster; None without one.
        resolv_conf: the file pods should get their nameservers from.
        disk_sync: how quickly the disk of etcd's data syncs; None on machines without the role etcd.
        incomplete: parts that could not be found out, and why.
    """

    name: str
    arch: str
    os_id: str
    os_version: str
    os_like: tuple[str, ...]
    os_name: str
    kernel: str
    cgroup: int
    cgroup_controllers: tuple[str, ...]
    cpus: int
    memory_mib: int
    swap_mib: int
    disks: Mapping[str, Disk]
    clock_skew_s: float
    time_sync: bool
    listening: Mapping[int, str]
    listening_udp: Mapping[int, str]
    interfaces: Mapping[str, tuple[str, ...]]
    mtus: Mapping[str, int]
    macs: Mapping[str, str]
    cluster_interface: str
    default_route: bool
    ip_forward: bool
    resolv_conf: str
    resolv_nameservers: tuple[str, ...]
    hostname: str
    machine_id: str
    product_uuid: str
    container: str
    kernel_features: Mapping[str, bool | None]
    can_lower_oom: bool
    systemd: int
    units: Mapping[str, str]
    python: str
    python_version: str
    uid: int
    commands: Mapping[str, bool]
    packages_missing: tuple[str, ...]
    selinux: str
    apparmor: bool
    ufw: bool
    marker: Mapping[str, object] | None
    leftovers: tuple[str, ...]
    disk_sync: DiskSync | None = None
    probe_cpu_s: float = 0.0
    incomplete: Mapping[str, str] = field(default_factory=dict)

    @property
    def disk_free_mib(self) -> dict[str, int]:
        """Free room by path."""
        return {path: disk.free_mib for path, disk in self.disks.items()}

    @property
    def mtu(self) -> int:
        """MTU of the interface that carries the cluster address; 0 where none does."""
        return self.mtus.get(self.cluster_interface, 0)

    @property
    def firewalld(self) -> bool:
        """Whether firewalld filters on this machine."""
        return self.units.get("firewalld.service") == "active"

    def to_json(self) -> dict[str, object]:
        """A document that ``from_json`` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> Self:
        """Read what ``to_json`` wrote, or JSON made of it (where keys are text and tuples are lists).

        Raises:
            ProvisionerError: it is no such document.
        """
        try:
            values = {item.name: _restore(item.name, document[item.name]) for item in dataclasses.fields(cls)}
            return cls(**values)  # type: ignore[arg-type]  # the document's own shape, which the tests pin
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ProvisionerError(
                f"facts of a machine are not as this version writes them: {type(error).__name__}: {error}",
                hint="run `provisioner preflight` again",
            ) from error


def gather(
    cluster: Cluster, connections: Connections, *, nodes: Iterable[Node] | None = None, workers: int = 32
) -> tuple[dict[str, HostFacts], dict[str, ProvisionerError]]:
    """Look at the machines, all at a time, one round trip each.

    Args:
        nodes: those to look at; default: all of the cluster.
        workers: how many at a time.

    Returns:
        facts and failures, both by node name.
    """
    wanted = tuple(cluster.nodes if nodes is None else nodes)
    results = parallel(wanted, lambda node: look(cluster, node, connections), workers=workers)
    facts = {name: result for name, result in results.items() if isinstance(result, HostFacts)}
    return facts, {name: result for name, result in results.items() if isinstance(result, ProvisionerError)}


def look(cluster: Cluster, node: Node, connections: Connections) -> HostFacts:
    """Look at one machine.

    Raises:
        SshError: it cannot be reached, or has no Python that can look at it.
    """
    # connected beforehand: the time of the round trip is to be that of the probe, for the clock's sake
    connections.connect(node)
    sent = time.time()
    done = connections.run(node, COMMAND, stdin=script(etcd=node.has(Role.ETCD)), timeout=SECONDS)
    return parse(cluster, node, done, (sent, time.time()))


@cache
def script(*, etcd: bool) -> bytes:
    """The probe's text with its questions: the same for every machine, but that only those with etcd are asked for its disk."""
    questions = {
        "paths": PATHS,
        "features": {name: {"modules": modules, "config": options} for name, (modules, options) in FEATURES.items()},
        "units": [f"{unit}.service" for unit in UNITS],
        "marker": MARKER,
        "commands": [program.name for program in os_table.PROGRAMS] + ["systemd-sysusers", "sysctl", "tar", "zstd"],
        "leftovers": LEFTOVERS,
        "disk_sync": ETCD_DATA if etcd else "",
    }
    # spawned by the interpreter from its standard input, the script has no file to be found by: send the text itself
    return f"{Path(probe.__file__).read_text(encoding='utf-8')}\nreport(json.loads({json.dumps(questions)!r}))\n".encode()


def parse(cluster: Cluster, node: Node, done: Completed, times: tuple[float, float]) -> HostFacts:
    """Facts from what the probe printed.

    Args:
        times: the controller's clock when the probe was sent and when its answer was there.

    Raises:
        SshError: there is no Python, it is too old, or the probe failed.
    """
    if done.code == NO_PYTHON and not done.stdout:
        raise SshError(
            Trouble.PYTHON,
            f"{node.name} ({node.address}): there is no python3 on the machine",
            hint="install it (`apt-get install python3`, `dnf install python3`): Ansible needs it too",
        )
    # a login shell may print its own lines around ours
    answers = [line for line in done.stdout.splitlines() if line.startswith(b'{"incomplete":')]
    if done.code != 0 or not answers:
        raise SshError(
            Trouble.PYTHON,
            f"{node.name} ({node.address}): its Python cannot run the probe (exit code {done.code})",
            hint="Python 3.9 or newer with its standard library is needed; the last line below names the machine's version",
            details=tuple(done.complaint.splitlines()[-5:]),
        )
    answer = json.loads(answers[-1])
    begin, end = answer.pop("clock")
    interfaces = answer.get("interfaces", {})
    commands = answer.get("commands", {})
    family = os_table.family_of(answer.get("os_id", ""), tuple(answer.get("os_like", ())))
    lacking = [program for program in os_table.programs_for(cluster, node) if not commands.get(program.name)]
    return HostFacts.from_json(
        {
            **_UNKNOWN,
            **answer,
            "name": node.name,
            # as NTP reckons: the mean of the two differences, so that neither the way there nor the way back counts
            "clock_skew_s": round(((begin - times[0]) + (end - times[1])) / 2, 3),
            "cluster_interface": next((name for name, found in interfaces.items() if str(node.ip) in found), ""),
            "packages_missing": sorted({program.package(family) for program in lacking}) if family else [],
        }
    )


# Values of facts that could not be found out; ``incomplete`` says so, and a preflight rule reports it.
_UNKNOWN: Mapping[str, object] = {
    **dict.fromkeys(("os_id", "os_version", "os_name", "resolv_conf", "hostname", "machine_id", "product_uuid", "container"), ""),
    **{name: [] for name in ("os_like", "cgroup_controllers", "resolv_nameservers", "leftovers")},
    **{
        name: {}
        for name in ("disks", "listening", "listening_udp", "interfaces", "mtus", "macs", "kernel_features", "units", "commands")
    },
    **dict.fromkeys(("time_sync", "default_route", "ip_forward", "can_lower_oom", "apparmor", "ufw"), False),
    "cgroup": 2,
    "cpus": 1,
    "memory_mib": 0,
    "swap_mib": 0,
    "systemd": 0,
    "selinux": "disabled",
    "marker": None,
    "disk_sync": None,
}


def _restore(name: str, value: object) -> object:
    """JSON's types back to ours."""
    if name in {"listening", "listening_udp"} and isinstance(value, Mapping):
        return {int(port): program for port, program in value.items()}
    if name == "disks" and isinstance(value, Mapping):
        return {path: Disk(**disk) for path, disk in value.items()}
    if name == "disk_sync" and isinstance(value, Mapping):
        return DiskSync(**value)
    if name == "interfaces" and isinstance(value, Mapping):
        return {interface: tuple(addresses) for interface, addresses in value.items()}
    return tuple(value) if isinstance(value, list) else value
