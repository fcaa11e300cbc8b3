"""Rules about the machine itself: distribution, kernel, Python, memory, disks, clock, identity."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from provisioner import facts as paths
from provisioner import os_table
from provisioner.config import Role
from provisioner.preflight.model import Finding, Machine, error, info, warning

# https://kubernetes.io/docs/reference/node/kernel-version-requirements/
OLDEST_KERNEL = (5, 4)
OLDEST_KERNEL_FOR_NFTABLES = (5, 13)
OLDEST_PYTHON = (3, 9)
# The sandboxing of our units (ProtectProc= and others).
OLDEST_SYSTEMD = 247
# MiB. kubeadm's own limit for a control plane; a worker's services take about 300.
CONTROL_PLANE_MEMORY = 1700
WORKER_MEMORY = 700
ETCD_MEMORY = 450
# Milliseconds, 99th percentile of wal_fsync: https://etcd.io/docs/v3.6/faq/
DISK_SYNC_P99 = 10.0
# Seconds.
SKEW_WARNING = 2.0
SKEW_ERROR = 30.0
CONTROLLERS = ("cpu", "cpuset", "memory", "pids")


def architecture(machine: Machine) -> Iterator[Finding]:
    """There are binaries for it."""
    if machine.facts.arch not in os_table.ARCHITECTURES:
        yield error(
            f"its processor is {machine.facts.arch}; there are binaries for {' and '.join(os_table.ARCHITECTURES)}",
            "use a 64-bit x86 or ARM machine with a 64-bit system",
        )


def distribution(machine: Machine) -> Iterator[Finding]:
    """It is one whose packages are known."""
    facts = machine.facts
    if os_table.is_supported(facts.os_id, facts.os_version):
        return
    name = facts.os_name or f"{facts.os_id} {facts.os_version}".strip() or "a system without /etc/os-release"
    known = ", ".join(f"{release.os_id} {release.version}" for release in os_table.RELEASES)
    if os_table.family_of(facts.os_id, facts.os_like):
        yield warning(f"{name} is untested", f"known to work: {known}")
    else:
        yield error(f"{name} is not supported: the names of its packages are unknown", f"use one of: {known}")


def service_manager(machine: Machine) -> Iterator[Finding]:
    """systemd runs it."""
    found = machine.facts.systemd
    if not found:
        yield error("systemd is not its process 1", "boot the machine with systemd (`apt-get install systemd-sysv`)")
    elif found < OLDEST_SYSTEMD:
        yield error(f"systemd {found} is too old", f"upgrade the distribution: systemd {OLDEST_SYSTEMD} or newer is needed")


def python(machine: Machine) -> Iterator[Finding]:
    """Ansible can use its Python."""
    if _version(machine.facts.python_version) < OLDEST_PYTHON:
        yield error(f"Python {machine.facts.python_version} is too old for Ansible", "install Python 3.9 or newer as python3")


def root(machine: Machine) -> Iterator[Finding]:
    """The login ends up as root."""
    if machine.facts.uid != 0:
        yield error(
            f"commands run there with user id {machine.facts.uid}, not as root",
            "let `ssh.user` be root, or a user whose sudo leads to root",
        )


def kernel(machine: Machine) -> Iterator[Finding]:
    """The kernel is recent enough."""
    if not machine.kubernetes:
        return
    found = _version(machine.facts.kernel)
    if found < OLDEST_KERNEL:
        yield error(f"kernel {machine.facts.kernel} is too old for Kubernetes", "upgrade to kernel 5.4 or newer")
    elif machine.cluster.network.proxy_mode == "nftables" and found < OLDEST_KERNEL_FOR_NFTABLES:
        yield error(
            f"kernel {machine.facts.kernel} is too old for kube-proxy's nftables mode",
            "upgrade to kernel 5.13 or newer, or set `network.proxyMode: iptables`",
        )


def kernel_features(machine: Machine) -> Iterator[Finding]:
    """What containers and the network need is built in, or can be loaded."""
    if not machine.kubernetes:
        return
    network = machine.cluster.network
    needed = ["overlay", "nf_conntrack"]
    if network.plugin == "flannel":
        needed += ["bridge", "br_netfilter", "veth", "iptables", "xt_comment", "xt_masquerade"]
        needed += ["vxlan"] if network.backend == "vxlan" else []
    if network.proxy_mode == "nftables":
        needed += ["nf_tables", "nft_fib", "nft_masq", "nft_numgen"]
    else:
        needed += ["iptables", "xt_comment", "xt_masquerade"]
    found = machine.facts.kernel_features
    absent = sorted({name for name in needed if found.get(name) is False})
    unknown = sorted({name for name in needed if found.get(name, False) is None})
    if absent:
        yield error(
            f"its kernel {machine.facts.kernel} lacks {', '.join(absent)}",
            "boot the distribution's full kernel with its modules (Ubuntu: linux-modules-extra; Rocky: kernel-modules-extra)",
        )
    if unknown:
        yield info(
            f"whether its kernel has {', '.join(unknown)} cannot be told", "a service that lacks one fails to start, and says so"
        )


def cgroup(machine: Machine) -> Iterator[Finding]:
    """Its control groups can limit containers."""
    facts = machine.facts
    if not machine.kubernetes:
        return
    missing = [name for name in CONTROLLERS if name not in facts.cgroup_controllers]
    if missing and facts.cgroup_controllers:
        yield error(
            f"cgroup v{facts.cgroup} there is without {', '.join(missing)}",
            "switch them on (kernel command line: `cgroup_enable=memory cgroup_memory=1` on a Raspberry Pi) and reboot",
        )
    if facts.cgroup == 1:
        yield info(
            "cgroup v1: kubelet and containerd are configured for it",
            "newer releases of Kubernetes will drop it: plan for cgroup v2",
        )


def oom_score(machine: Machine) -> Iterator[Finding]:
    """Services may protect themselves from the OOM killer."""
    if not machine.facts.can_lower_oom:
        yield info("oom_score_adj cannot be lowered there: services are configured without", "")


def memory(machine: Machine) -> Iterator[Finding]:
    """There is enough, and two processors for a control plane."""
    facts = machine.facts
    control_plane = machine.has(Role.CONTROL_PLANE)
    needed = CONTROL_PLANE_MEMORY if control_plane else WORKER_MEMORY if machine.kubernetes else ETCD_MEMORY
    if 0 < facts.memory_mib < needed:
        role = "control plane" if control_plane else "worker" if machine.kubernetes else "member of etcd"
        yield error(f"{facts.memory_mib} MiB of memory; a {role} needs {needed} MiB", "give the machine more memory")
    if control_plane and facts.cpus < 2:
        yield warning("one processor; a control plane wants two", "give the machine a second one")


def swap(machine: Machine) -> Iterator[Finding]:
    """The kubelet takes swap as it is told to."""
    facts, node = machine.facts, machine.node
    if not facts.swap_mib or not machine.kubernetes:
        return
    refuses = {**machine.cluster.kubelet.config, **node.kubelet}.get("failSwapOn")
    off = "switch it off for good: `swapoff -a` and no swap in /etc/fstab (`systemctl mask dev-zram0.swap` where it is zram)"
    if refuses is True:
        yield error(f"swap is on ({facts.swap_mib} MiB), and failSwapOn makes the kubelet refuse that", off)
    else:
        yield warning(f"swap is on ({facts.swap_mib} MiB): the kubelet is configured to start all the same; pods get none", off)


def disk_space(machine: Machine) -> Iterator[Finding]:
    """Each filesystem has room for what goes there, all of it together; less is asked where the cluster is in place already."""
    needs: dict[str, int] = {paths.OWN_DATA: 200}
    if machine.has(Role.ETCD):
        needs[paths.ETCD_DATA] = 1024
    if machine.kubernetes:
        needs |= {paths.BINARIES: 400, paths.CONTAINERD_DATA: 2048, paths.KUBELET_DATA: 512}
    if machine.is_ours:
        needs = {path: min(size, 100) for path, size in needs.items()}
    on_device: dict[str, list[str]] = defaultdict(list)
    for path in needs:
        if path in machine.facts.disks:
            on_device[machine.facts.disks[path].device].append(path)
    for here in on_device.values():
        free = min(machine.facts.disks[path].free_mib for path in here)
        needed = sum(needs[path] for path in here)
        if free < needed:
            yield error(
                f"{free} MiB free for {', '.join(here)}; {needed} MiB are needed",
                "free some room, or mount a larger filesystem there",
            )
    quota = machine.cluster.etcd.quota_backend_bytes >> 20
    etcd = machine.facts.disks.get(paths.ETCD_DATA)
    if machine.has(Role.ETCD) and etcd and needs[paths.ETCD_DATA] <= etcd.free_mib < quota:
        yield warning(
            f"{etcd.free_mib} MiB free for {paths.ETCD_DATA}, less than etcd's quota of {quota} MiB",
            "give it a larger filesystem, or lower `etcd.quotaBackendBytes`",
        )


def disk_kind(machine: Machine) -> Iterator[Finding]:
    """Filesystems keep what is written, run what is placed, and sync quickly where etcd lives."""
    disks = machine.facts.disks
    run = (paths.BINARIES, paths.CONTAINERD_DATA, *([paths.PLUGINS] if machine.uses_flannel else [])) if machine.kubernetes else ()
    if noexec := [path for path in run if path in disks and disks[path].noexec]:
        yield error(f"{', '.join(noexec)}: mounted noexec, so nothing there can run", "mount it without noexec (/etc/fstab)")
    written = (paths.OWN_DATA, *([paths.ETCD_DATA] if machine.has(Role.ETCD) else []), *run)
    if read_only := [path for path in written if path in disks and disks[path].read_only]:
        yield error(f"{', '.join(read_only)}: mounted read-only", "mount it read-write; a filesystem with errors needs fsck first")
    etcd = disks.get(paths.ETCD_DATA)
    if not machine.has(Role.ETCD) or etcd is None:
        return
    if etcd.filesystem in {"tmpfs", "ramfs"}:
        yield warning(f"{paths.ETCD_DATA} is in memory ({etcd.filesystem}): a reboot loses the member", "put it on a disk")
    elif etcd.filesystem in {"nfs", "nfs4", "cifs", "fuse.sshfs", "9p"}:
        yield warning(f"{paths.ETCD_DATA} is on {etcd.filesystem}: etcd needs a local disk", "put it on a local disk, best an SSD")
    elif etcd.rotational and not machine.facts.container:
        yield info(
            f"{paths.ETCD_DATA} is on a disk that says it rotates: etcd wants an SSD", "ignore it for a virtual disk on an SSD"
        )


def disk_sync(machine: Machine) -> Iterator[Finding]:
    """The disk syncs as quickly as etcd needs it to: each write to the cluster waits for that on most of the members."""
    found = machine.facts.disk_sync
    if found is None or not machine.has(Role.ETCD) or found.p99_ms <= DISK_SYNC_P99:
        return
    how = f"of {found.syncs} syncs tried now" if found.source == "measured" else f"as etcd counted {found.syncs} since its start"
    yield warning(
        f"the disk of {paths.ETCD_DATA} is slow to sync: p99 {found.p99_ms:.1f} ms ({how}); "
        f"etcd wants less than {DISK_SYNC_P99:g} ms (https://etcd.io/docs/v3.6/faq/)",
        "put it on an SSD of its own, and keep other writers off it; where that cannot be, raise `etcd.heartbeatInterval` and "
        "`etcd.electionTimeout` (docs/etcd.md)",
    )


def clock(machine: Machine) -> Iterator[Finding]:
    """Its clock agrees with the controller's, and something keeps it right."""
    skew = machine.facts.clock_skew_s
    seconds = f"{abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the controller's"
    keep = "set the clock and let chrony or systemd-timesyncd keep it (on the controller too)"
    if abs(skew) > SKEW_ERROR:
        yield error(f"its clock is {seconds}: certificates would not be valid yet, or no longer", keep)
    elif abs(skew) > SKEW_WARNING:
        yield warning(f"its clock is {seconds}", keep)
    elif not machine.facts.time_sync and not machine.facts.container and "time_sync" not in machine.facts.incomplete:
        yield warning(
            "nothing keeps its clock right (the kernel says it is not synchronised)", "run chrony or systemd-timesyncd there"
        )


def identity(machine: Machine) -> Iterator[Finding]:
    """It is a machine of its own, and not a copy that kept what must differ."""
    facts = machine.facts
    if not facts.machine_id or facts.machine_id == "uninitialized":
        yield error("/etc/machine-id is empty", "run `systemd-machine-id-setup` there")
    elif twins := machine.sharing(lambda other: other.machine_id):
        yield error(
            f"has the same /etc/machine-id as {', '.join(twins)}: a clone, or the same machine twice",
            "on clones: `rm /etc/machine-id /var/lib/dbus/machine-id; systemd-machine-id-setup`, then reboot",
        )
    if twins := machine.sharing(lambda other: other.hostname):
        yield warning(f"has the same hostname ({facts.hostname}) as {', '.join(twins)}", "`hostnamectl set-hostname NAME` on each")
    # containers of one machine share its firmware
    if not facts.container and (twins := machine.sharing(lambda other: other.product_uuid)):
        yield warning(f"has the same product_uuid as {', '.join(twins)}", "give cloned virtual machines a UUID of their own")


def completeness(machine: Machine) -> Iterator[Finding]:
    """Everything could be found out."""
    for part, why in machine.facts.incomplete.items():
        yield warning(
            f"its {part.replace('_', ' ')} could not be found out ({why})",
            "the checks that need it were left out; please report this",
        )


def _version(text: str) -> tuple[int, int]:
    """Major and minor number; (0, 0) sorts below everything where there is none."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)
