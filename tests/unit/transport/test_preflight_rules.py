"""The rules of preflight over facts as values: each fires on its problem, and a healthy machine is left alone."""

from __future__ import annotations

import dataclasses
import datetime as dt
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioner import os_table, pki, preflight
from provisioner.config import Cluster
from provisioner.errors import ExitCode, PreflightUnfit, ProvisionerError
from provisioner.facts import FEATURES, PATHS, Disk, DiskSync, HostFacts
from provisioner.preflight import Problem
from provisioner.preflight.model import Severity
from provisioner.ssh import SshError, Trouble
from provisioner.workspace import Workspace

DISK = Disk(free_mib=20_000, total_mib=40_000, filesystem="ext4", device="8:1", rotational=False, noexec=False, read_only=False)
ID = "0123456789abcdef"
OURS = {"cluster": "t", "id": ID}
ROLES = {"a": ["control-plane", "etcd"], "b": ["worker"], "c": ["etcd"]}


def cluster_with(**values: object) -> Cluster:
    """Control plane `a` with etcd, worker `b`, etcd-only `c`."""
    nodes = [{"name": name, "address": f"10.0.0.{number}", "roles": roles} for number, (name, roles) in enumerate(ROLES.items(), 1)]
    return Cluster.model_validate({"name": "t", "nodes": nodes, **values})


def healthy(name: str) -> HostFacts:
    """A machine nobody would complain about."""
    number = list(ROLES).index(name) + 1
    return HostFacts(
        name=name,
        arch="amd64",
        os_id="debian",
        os_version="12",
        os_like=(),
        os_name="Debian GNU/Linux 12 (bookworm)",
        kernel="6.1.0-40-amd64",
        cgroup=2,
        cgroup_controllers=("cpu", "cpuset", "io", "memory", "pids"),
        cpus=2,
        memory_mib=3900,
        swap_mib=0,
        disks=dict.fromkeys(PATHS, DISK),
        clock_skew_s=0.01,
        time_sync=True,
        listening={22: "sshd"},
        listening_udp={},
        interfaces={"lo": ("127.0.0.1",), "eth0": (f"10.0.0.{number}",)},
        mtus={"lo": 65536, "eth0": 1500},
        macs={"lo": "00:00:00:00:00:00", "eth0": f"52:54:00:00:00:0{number}"},
        cluster_interface="eth0",
        default_route=True,
        ip_forward=False,
        resolv_conf="/etc/resolv.conf",
        resolv_nameservers=("9.9.9.9",),
        hostname=name,
        machine_id=str(number) * 32,
        product_uuid=f"uuid-{number}",
        container="",
        kernel_features=dict.fromkeys(FEATURES, True),
        can_lower_oom=True,
        systemd=252,
        units={},
        python="/usr/bin/python3",
        python_version="3.11.2",
        uid=0,
        commands={program.name: True for program in os_table.PROGRAMS} | {"systemd-sysusers": True, "sysctl": True},
        packages_missing=(),
        selinux="disabled",
        apparmor=False,
        ufw=False,
        marker=None,
        leftovers=(),
    )


def look(
    *changed: HostFacts,
    cluster: Cluster | None = None,
    cluster_id: str | None = None,
    unreachable: dict[str, ProvisionerError] | None = None,
) -> list[Problem]:
    """Preflight of three healthy machines, some of them replaced."""
    facts = {name: healthy(name) for name in ROLES} | {machine.name: machine for machine in changed}
    facts = {name: found for name, found in facts.items() if name not in (unreachable or {})}
    return preflight.check(cluster or cluster_with(), facts, unreachable or {}, cluster_id=cluster_id)


def with_(name: str, **values: object) -> HostFacts:
    return dataclasses.replace(healthy(name), **values)  # type: ignore[arg-type]  # the table below gives fields their types


def told(problems: list[Problem]) -> set[tuple[str, str, Severity]]:
    return {(problem.host, problem.rule, problem.severity) for problem in problems}


def test_healthy_machines_have_no_problem() -> None:
    assert look() == []
    preflight.require_fit([])


def disks(**change: object) -> dict[str, Disk]:
    return dict.fromkeys(PATHS, dataclasses.replace(DISK, **change))  # type: ignore[arg-type]


def without(*names: str) -> dict[str, bool | None]:
    return {name: name not in names for name in FEATURES}


CASES: tuple[tuple[str, dict[str, object], str, Severity, str], ...] = (
    # host, facts that differ, rule, severity, words of the message
    ("a", {"arch": "riscv64"}, "architecture", "error", "riscv64"),
    ("a", {"os_version": "11", "os_name": "Debian 11"}, "distribution", "warning", "Debian 11 is untested"),
    ("a", {"os_id": "linuxmint", "os_like": ("ubuntu", "debian")}, "distribution", "warning", "untested"),
    ("a", {"os_id": "alpine", "os_name": "Alpine"}, "distribution", "error", "Alpine is not supported"),
    ("a", {"systemd": 0}, "service-manager", "error", "not its process 1"),
    ("a", {"systemd": 229}, "service-manager", "error", "systemd 229"),
    ("a", {"python_version": "3.7.3"}, "python", "error", "3.7.3"),
    ("a", {"uid": 1000}, "root", "error", "user id 1000"),
    ("a", {"machine_id": ""}, "identity", "error", "machine-id is empty"),
    ("b", {"kernel": "4.18.0-553.el8"}, "kernel", "error", "too old for Kubernetes"),
    ("b", {"kernel": "5.10.0-33"}, "kernel", "error", "nftables"),
    ("b", {"kernel_features": without("vxlan", "overlay")}, "kernel-features", "error", "lacks overlay, vxlan"),
    ("b", {"kernel_features": dict.fromkeys(FEATURES)}, "kernel-features", "info", "cannot be told"),
    ("b", {"cgroup_controllers": ("cpu", "cpuset", "pids")}, "cgroup", "error", "without memory"),
    ("b", {"cgroup": 1}, "cgroup", "info", "cgroup v1"),
    ("c", {"can_lower_oom": False}, "oom-score", "info", "oom_score_adj"),
    ("a", {"memory_mib": 1699}, "memory", "error", "control plane needs 1700"),
    ("b", {"memory_mib": 650}, "memory", "error", "worker needs 700"),
    ("c", {"memory_mib": 400}, "memory", "error", "member of etcd needs 450"),
    ("a", {"cpus": 1}, "memory", "warning", "one processor"),
    ("b", {"swap_mib": 512}, "swap", "warning", "512 MiB"),
    ("b", {"disks": disks(free_mib=3000)}, "disk-space", "error", "3000 MiB free"),
    ("c", {"disks": disks(free_mib=1300)}, "disk-space", "warning", "less than etcd's quota"),
    ("b", {"disks": disks(noexec=True)}, "disk-kind", "error", "noexec"),
    ("c", {"disks": disks(read_only=True)}, "disk-kind", "error", "read-only"),
    ("c", {"disks": disks(filesystem="tmpfs")}, "disk-kind", "warning", "in memory"),
    ("c", {"disks": disks(filesystem="nfs4")}, "disk-kind", "warning", "local disk"),
    ("c", {"disks": disks(rotational=True)}, "disk-kind", "info", "rotates"),
    ("a", {"disk_sync": DiskSync(10.1, 300, "measured")}, "disk-sync", "warning", "p99 10.1 ms (of 300 syncs tried now)"),
    ("c", {"disk_sync": DiskSync(48.0, 9000, "etcd")}, "disk-sync", "warning", "less than 10 ms"),
    ("a", {"clock_skew_s": 2.5}, "clock", "warning", "2.5 s ahead"),
    ("a", {"clock_skew_s": -31.0}, "clock", "error", "31.0 s behind"),
    ("a", {"time_sync": False}, "clock", "warning", "nothing keeps"),
    ("b", {"cluster_interface": "", "interfaces": {"eth0": ("10.0.2.15",)}}, "cluster-address", "error", "has 10.0.2.15 on eth0"),
    ("b", {"cluster_interface": "", "interfaces": {"lo": ("127.0.0.1",)}}, "cluster-address", "error", "none but loopback"),
    ("b", {"default_route": False}, "default-route", "warning", "cannot reach Services"),
    ("b", {"resolv_nameservers": ()}, "resolver", "error", "no nameserver"),
    ("b", {"resolv_nameservers": ("127.0.0.1",)}, "resolver", "warning", "CoreDNS"),
    ("a", {"listening": {6443: "kube-apiserver"}}, "ports", "error", "which kube-apiserver needs, is taken by kube-apiserver"),
    ("a", {"listening": {2379: ""}}, "ports", "error", "an unknown process"),
    ("b", {"listening": {16443: "nginx"}}, "ports", "error", "taken by nginx"),
    ("c", {"listening": {2380: "etcd"}}, "ports", "error", "2380"),
    ("b", {"listening_udp": {8472: "iperf"}}, "ports", "error", "UDP port 8472"),
    ("b", {"units": {"firewalld.service": "active"}}, "firewall", "warning", "firewalld filters"),
    ("c", {"ufw": True}, "firewall", "warning", "ufw filters"),
    ("b", {"selinux": "enforcing"}, "selinux", "warning", "enforcing"),
    ("b", {"packages_missing": ("haproxy", "nftables")}, "programs", "info", "haproxy, nftables"),
    ("b", {"commands": {"sysctl": True}}, "programs", "error", "systemd-sysusers"),
    ("b", {"units": {"k3s-agent.service": "inactive"}}, "other-kubernetes", "error", "k3s is installed"),
    ("b", {"units": {"kubelet.service": "failed"}}, "other-kubernetes", "error", "kubelet.service"),
    ("a", {"leftovers": ("/etc/kubernetes/admin.conf",)}, "other-kubernetes", "error", "/etc/kubernetes/admin.conf"),
    ("c", {"leftovers": ("/var/lib/etcd/member",)}, "old-etcd", "error", "another etcd"),
    ("b", {"units": {"docker.service": "active", "containerd.service": "active"}}, "container-engines", "error", "Docker"),
    ("b", {"units": {"containerd.service": "inactive"}}, "container-engines", "error", "another containerd"),
    ("b", {"units": {"crio.service": "active"}}, "container-engines", "warning", "CRI-O"),
    ("b", {"leftovers": ("/etc/cni/net.d",)}, "other-network", "error", "/etc/cni/net.d"),
    ("b", {"marker": {"cluster": "other", "id": "f" * 16}}, "marker", "error", "other (id ffffffffffffffff)"),
    ("b", {"marker": {}}, "marker", "error", "of unknown name"),
    ("b", {"incomplete": {"disks": "OSError: no"}}, "completeness", "warning", "its disks could not be found out"),
)  # fmt: skip


@pytest.mark.parametrize(("host", "values", "rule", "severity", "words"), CASES)
def test_each_rule_fires_on_its_problem_and_nothing_else_does(
    host: str, values: dict[str, object], rule: str, severity: Severity, words: str
) -> None:
    problems = look(with_(host, **values))
    assert told(problems) == {(host, rule, severity)}
    (problem,) = problems
    assert words in problem.message
    assert problem.remedy or problem.severity == "info"


def test_every_rule_is_covered_here() -> None:
    """A rule added to the table must be added to the cases (or to the tests of several machines below)."""
    between_machines = {"mac-address", "mtu", "address-ranges", "virtual-address", "another-node", "moved"}
    assert {rule for _, _, rule, _, _ in CASES} | between_machines == set(preflight.RULES)


def test_a_machine_that_was_another_node_of_the_cluster() -> None:
    problems = look(with_("b", marker={**OURS, "node": "worker-9"}), cluster_id=ID)
    assert ("b", "another-node", "error") in told(problems)
    assert "it was worker-9 of this cluster" in problems[0].message
    assert not {problem.rule for problem in look(with_("b", marker={**OURS, "node": "b"}), cluster_id=ID)} & {"another-node"}
    # as an earlier version has written it
    assert not {problem.rule for problem in look(with_("b", marker=OURS), cluster_id=ID)} & {"another-node"}


def test_a_name_that_goes_to_another_machine() -> None:
    cluster = cluster_with()
    node = cluster.node("b")
    known = {"b": node.model_copy(update={"address": "10.9.9.9", "cluster_address": None})}

    def rules(facts: HostFacts) -> set[str]:
        found = preflight.check(cluster, {"b": facts}, {}, cluster_id=ID, known=known)
        return {problem.rule for problem in found if problem.severity == "error"}

    assert rules(healthy("b")) == {"moved"}
    # the machine itself, at a new address
    assert "moved" not in rules(with_("b", marker={**OURS, "node": "b"}))


def test_what_an_etcd_only_machine_does_not_need() -> None:
    values: dict[str, object] = {
        "kernel": "4.18.0",
        "kernel_features": dict.fromkeys(FEATURES, False),
        "cgroup_controllers": (),
        "cgroup": 1,
        "swap_mib": 100,
        "default_route": False,
        "resolv_nameservers": (),
        "listening": {10250: "kubelet"},
        "units": {"docker.service": "active"},
        "leftovers": ("/etc/cni/net.d",),
    }
    assert look(with_("c", **values)) == []


def test_settings_of_the_cluster_decide() -> None:
    old = with_("b", kernel="5.10.0", kernel_features=without("nf_tables", "nft_fib"))
    assert {problem.rule for problem in look(old)} == {"kernel", "kernel-features"}
    assert look(old, cluster=cluster_with(network={"proxyMode": "iptables"})) == []
    bare = with_("b", kernel_features=without("vxlan"), listening_udp={8472: "x"})
    assert look(bare, cluster=cluster_with(network={"backend": "host-gw"})) == []
    assert look(with_("b", leftovers=("/etc/cni/net.d",)), cluster=cluster_with(network={"plugin": "none"})) == []
    swapping = with_("b", swap_mib=512)
    strict = cluster_with(kubelet={"config": {"failSwapOn": True}})
    assert told(look(swapping, cluster=strict)) == {("b", "swap", "error")}
    lenient = strict.model_copy(
        update={"nodes": tuple(node.model_copy(update={"kubelet": {"failSwapOn": False}}) for node in strict.nodes)}
    )
    assert told(look(swapping, cluster=lenient)) == {("b", "swap", "warning")}


def test_machines_are_compared() -> None:
    twin = with_("b", machine_id="1" * 32, hostname="a", product_uuid="uuid-1", macs=healthy("a").macs)
    problems = look(twin)
    assert told(problems) == {
        (host, rule, severity)
        for host in ("a", "b")
        for rule, severity in (("identity", "error"), ("identity", "warning"), ("mac-address", "error"))
    }
    contained = [with_(name, product_uuid="same", container="systemd-nspawn") for name in ROLES]
    assert look(*contained) == []

    small = with_("b", mtus={"eth0": 1400})
    assert told(look(small)) == {("b", "mtu", "warning")}

    both = with_("b", interfaces={"eth0": ("10.0.0.2",), "eth1": ("10.0.0.1",)})
    assert told(look(both)) == {("a", "cluster-address", "error")}


def test_addresses_in_the_ranges_of_pods_and_services() -> None:
    interfaces = {"eth0": ("10.0.0.2",), "eth1": ("10.244.9.1",), "cni0": ("10.244.1.1",), "br0": ("10.96.0.10",)}
    problems = look(with_("b", interfaces=interfaces))
    assert [problem.rule for problem in problems] == ["address-ranges"] * 3
    # on a machine of ours cni0 is where it belongs
    ours = look(with_("b", interfaces=interfaces, marker=OURS), cluster_id=ID)
    assert sorted(problem.message.split()[5] for problem in ours) == ["br0", "eth1"]


def test_a_virtual_address_is_nobodys_but_the_holders() -> None:
    cluster = cluster_with(controlPlaneEndpoint={"host": "10.0.0.100", "vip": {"interface": "eth0"}})
    assert look(cluster=cluster) == []
    (problem,) = look(cluster=cluster_with(controlPlaneEndpoint={"host": "10.0.0.100", "vip": {"interface": "bond0"}}))
    assert (problem.host, problem.rule) == ("a", "virtual-address")
    assert "no interface bond0" in problem.message
    assert "eth0, lo" in problem.message

    for name, number in (("a", 1), ("b", 2), ("c", 3)):
        holds = {"interfaces": {"lo": ("127.0.0.1",), "eth0": (f"10.0.0.{number}", "10.0.0.100")}}
        (problem,) = look(with_(name, **holds), cluster=cluster)
        assert (problem.host, problem.rule, problem.severity) == (name, "virtual-address", "error")
        assert "10.0.0.100, on eth0" in problem.message
        assert look(with_(name, **holds)) == []
        # the holder of the moment may have it; a worker of the same cluster may not
        running = look(with_(name, **holds, marker=OURS), cluster=cluster, cluster_id=ID)
        assert [problem.host for problem in running] == ([] if name == "a" else [name])


def test_a_firewall_must_let_vrrp_through_where_there_is_a_virtual_address() -> None:
    cluster = cluster_with(controlPlaneEndpoint={"host": "10.0.0.100", "vip": {}})
    filtering = [with_(name, ufw=True) for name in ROLES]
    remedies = {problem.host: problem.remedy for problem in look(*filtering, cluster=cluster)}
    assert [host for host, remedy in remedies.items() if "vrrp" in remedy] == ["a"]


def test_a_second_apply_does_not_complain_about_what_the_first_one_made() -> None:
    running = {
        "marker": OURS,
        "leftovers": ("/etc/kubernetes/pki", "/var/lib/etcd/member", "/var/lib/kubelet/pki", "/etc/cni/net.d"),
        "units": {
            "kubelet.service": "active",
            "containerd.service": "active",
            "etcd.service": "active",
            "haproxy.service": "inactive",
        },
        "disks": disks(free_mib=600),
        "listening": {
            2379: "etcd",
            2380: "etcd",
            2381: "etcd",
            6443: "kube-apiserver",
            10257: "kube-controller-manager",
            10259: "kube-scheduler",
            10250: "kubelet",
            10248: "kubelet",
            10249: "kube-proxy",
            10256: "kube-proxy",
            16443: "haproxy",
            16444: "haproxy",
        },
        "listening_udp": {8472: ""},
    }
    machines = [with_(name, **running) for name in ROLES]
    assert [problem.rule for problem in look(*machines, cluster_id=ID) if problem.severity == "error"] == []
    # but somebody else's program on one of its ports is still one
    listening = {10250: "netcat"}
    assert told(look(with_("b", marker=OURS, listening=listening), cluster_id=ID)) == {("b", "ports", "error")}
    # and without the CA, or with another, it is another cluster's machine: that is said once, and not port by port
    for cluster_id in (None, "f" * 16):
        assert {problem.rule for problem in look(with_("a", **running), cluster_id=cluster_id)} == {"marker", "disk-space"}


def test_the_message_about_a_marker_tells_the_cases_apart() -> None:
    def message(cluster: str, cluster_id: str | None) -> str:
        (problem,) = look(with_("a", marker={"cluster": cluster, "id": ID}), cluster_id=cluster_id)
        assert "provisioner reset" in problem.remedy
        return problem.message

    assert "this workspace holds no CA" in message("t", None)
    assert "has not been made yet" in message("other", None)
    assert "id is ffff" in message("t", "f" * 16)


def test_unreachable_machines_stand_beside_the_others() -> None:
    error = SshError(Trouble.REFUSED, "b (10.0.0.2): connection refused", hint="start sshd", details=("more",))
    problems = look(with_("a", arch="mips"), unreachable={"b": error})
    assert problems[0].rule == "architecture"
    assert problems[1] == Problem("b", "error", "(10.0.0.2): connection refused; more", "start sshd", "ssh-connection-refused")


def test_require_fit_names_every_error_with_its_remedy() -> None:
    problems = look(with_("a", arch="mips", swap_mib=1), with_("b", memory_mib=1))
    with pytest.raises(PreflightUnfit) as caught:
        preflight.require_fit(problems)
    error = caught.value
    assert error.exit_code is ExitCode.PREFLIGHT_UNFIT
    assert "2 problems on a, b" in error.message
    assert [line for line in error.details if not line.startswith(" ")] == [
        f"{problem.host}: {problem.message}" for problem in problems if problem.severity == "error"
    ]
    preflight.require_fit([problem for problem in problems if problem.severity != "error"])


def test_cluster_id_is_that_of_the_pki(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, cluster_file=tmp_path / "cluster.yaml")
    assert preflight.cluster_id_of(workspace) is None
    made = pki.ensure(cluster_with(), workspace.pki, now=dt.datetime.now(dt.UTC))
    assert preflight.cluster_id_of(workspace) == pki.cluster_id(made)
    next(workspace.pki.glob("cluster-ca*")).write_text("broken\n")
    with pytest.raises(ProvisionerError, match="CA cannot be read"):
        preflight.cluster_id_of(workspace)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "os_id": st.text(max_size=5),
            "os_version": st.text(max_size=5),
            "kernel": st.text(max_size=8),
            "python_version": st.text(max_size=8),
            "marker": st.none()
            | st.dictionaries(st.sampled_from(["cluster", "id"]), st.none() | st.integers() | st.text(max_size=4)),
            "disks": st.just({}),
            "interfaces": st.just({}),
            "kernel_features": st.just({}),
            "commands": st.just({}),
            "memory_mib": st.integers(0, 10_000),
            "cluster_interface": st.just(""),
            "incomplete": st.dictionaries(st.sampled_from(["interfaces", "commands", "routes"]), st.just("why"), max_size=2),
        },
    )
)
def test_no_fact_however_odd_breaks_a_rule(values: dict[str, object]) -> None:
    for problem in look(*(with_(name, **values) for name in ROLES), cluster_id=ID):
        assert problem.message


def test_every_rule_and_every_kind_of_ssh_failure_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "preflight.md").read_text()
    rows = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert rows == {*preflight.RULES, *(f"ssh-{trouble}" for trouble in Trouble)}


def test_a_quick_disk_and_a_machine_without_etcd_are_left_alone() -> None:
    assert look(with_("a", disk_sync=DiskSync(10.0, 300, "measured"))) == []
    assert look(with_("b", disk_sync=DiskSync(80.0, 300, "measured"))) == []
