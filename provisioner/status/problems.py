"""What is wrong, each thing once, where it is wrong: consequences of a problem that is named already are left out."""

from __future__ import annotations

from collections.abc import Iterator

from provisioner.status.etcd import GONE
from provisioner.status.model import EtcdMember, Problem, Status
from provisioner.words import ago

CLUSTER = "cluster"
# Of the quota: below it writes still pass, but compaction and a look at what fills it should not wait.
NEARLY_FULL = 0.8
# Seconds in which the member whose turn it is has taken a backup of a large database, and carried it off.
BACKUP_SECONDS = 3600.0
# Entries. Members apply a moment apart; this is what etcd keeps behind a snapshot for slow ones (snapshot-catchup-entries):
# who lacks more may have to be sent the whole database.
BEHIND = 5000

_ALARMS = {
    "NOSPACE": (
        "etcd alarm NOSPACE: its database has reached the quota, so every write to the cluster is refused",
        "`provisioner etcd cure`",
    ),
    "CORRUPT": (
        "etcd alarm CORRUPT: its data is not that of the other members",
        "stop etcd there, move /var/lib/etcd/member away, and run `provisioner apply`: it comes back as a fresh member",
    ),
}


def problems(status: Status) -> tuple[Problem, ...]:
    """Everything that is not as it should be."""
    return (
        *_machines(status),
        *_etcd(status),
        *_apiservers(status),
        *_leases(status),
        *_nodes(status),
        *_proxies(status),
        *_vip(status),
        *_backups(status),
    )


def _dark(status: Status) -> set[str]:
    """Machines that could not be asked: of them that is said, and not all that follows."""
    return {machine.name for machine in status.machines if not machine.reachable}


def _machines(status: Status) -> Iterator[Problem]:
    for machine in status.machines:
        if not machine.reachable:
            yield Problem(machine.name, f"cannot be reached: {machine.error}", machine.remedy)


def _etcd(status: Status) -> Iterator[Problem]:
    dark, members = _dark(status), status.etcd.members
    voters = [member for member in members if not member.learner and member.listed is not False]
    alive = sum(member.healthy for member in voters)
    if status.etcd.quorum is False:
        yield Problem(
            CLUSTER,
            f"etcd has no quorum: {len(voters) // 2 + 1} of its {len(voters)} members must see each other; the API takes no writes",
            "bring machines back; a member whose data is lost for good needs `provisioner apply` after a majority is there again",
        )
    elif status.etcd.quorum and alive < len(voters) and alive == len(voters) // 2 + 1:
        yield Problem(
            CLUSTER, f"etcd runs with {alive} of {len(voters)} members: the loss of another one stops it", "bring them back"
        )
    for member in members:
        if member.error == GONE:
            yield Problem(
                CLUSTER, f"etcd alarm {', '.join(member.alarms)} of a member that is gone ({member.id})", "`provisioner etcd cure`"
            )
            continue
        if not member.healthy and member.name not in dark:
            yield _unhealthy(member)
        if member.healthy and member.listed is False:
            yield Problem(member.name, "runs etcd, but is not in etcd's member list", "`provisioner apply`")
        if member.healthy and member.learner:
            yield Problem(member.name, "its etcd member is still a learner, without a vote", "`provisioner apply` promotes it")
        if member.behind is not None and member.behind > BEHIND:
            yield Problem(
                member.name,
                f"its etcd member is {member.behind} entries behind the leader",
                "look at its disk and network: `provisioner preflight` shows etcd's sync latency",
            )
        for alarm in member.alarms:
            cause, remedy = _ALARMS.get(alarm, (f"etcd alarm {alarm}", "see docs/etcd.md"))
            yield Problem(member.name, cause, remedy)
        if member.quota_mib and member.db_mib and "NOSPACE" not in member.alarms and member.db_mib > NEARLY_FULL * member.quota_mib:
            share = f"{member.db_mib:.0f} of {member.quota_mib:.0f} MiB"
            loose = (member.in_use_mib or 0) <= NEARLY_FULL * member.quota_mib
            yield Problem(
                member.name,
                f"etcd's database nears its quota: {share}, of which {member.in_use_mib or 0:.0f} MiB hold data",
                "`provisioner etcd defrag`" if loose else "raise `etcd.quotaBackendBytes`, then `provisioner apply`",
            )
    versions = {member.version for member in members if member.version}
    if len(versions) > 1:
        yield Problem(CLUSTER, f"etcd members run different versions: {', '.join(sorted(versions))}", "`provisioner apply`")


def _unhealthy(member: EtcdMember) -> Problem:
    if member.id and member.listed and member.error.startswith("in etcd's member list"):
        remedy = f"`provisioner apply`, or `etcdctl member remove {member.id}` once its machine is gone for good"
    else:
        remedy = f"`journalctl -u etcd` on {member.name}"
    return Problem(member.name, f"its etcd member is not healthy: {member.error}", remedy)


def _apiservers(status: Status) -> Iterator[Problem]:
    dark = _dark(status)
    for server in status.apiservers:
        if not server.ready and server.node not in dark:
            yield Problem(
                server.node, f"its apiserver is not ready: {server.error}", f"`journalctl -u kube-apiserver` on {server.node}"
            )
    if status.api_error:
        yield Problem(CLUSTER, f"Nodes and leases are unknown: {status.api_error}", "bring an apiserver back first")


def _leases(status: Status) -> Iterator[Problem]:
    full = any("NOSPACE" in member.alarms for member in status.etcd.members)
    blocked = full or status.stale or status.etcd.quorum is False
    for lease in status.leases:
        if lease.error or lease.expired:
            cause = lease.error or f"{lease.holder} has not renewed the lease for {lease.seconds or 0:.0f} s"
            yield Problem(
                lease.component,
                f"nobody leads: {cause}",
                "it follows when etcd takes writes again"
                if blocked
                else f"`journalctl -u {lease.component}` on the control planes",
            )


def _nodes(status: Status) -> Iterator[Problem]:
    dark, wanted = _dark(status), f"v{status.kubernetes_version}"
    for node in status.nodes:
        if not node.expected:
            yield Problem(node.name, "a Node that cluster.yaml does not know", f"`kubectl delete node {node.name}` if it is gone")
            continue
        if node.ready is False and node.name not in dark:
            yield Problem(node.name, f"Node not Ready: {node.reason}", f"`journalctl -u kubelet` on {node.name}")
        if node.kubelet and node.kubelet != wanted:
            yield Problem(
                node.name,
                f"kubelet {node.kubelet}, not {wanted}",
                "`provisioner upgrade` (`provisioner apply`, where its kubelet does not run)",
            )


def _proxies(status: Status) -> Iterator[Problem]:
    ready = {server.node for server in status.apiservers if server.ready}
    planes = [server.node for server in status.apiservers]
    for proxy in status.proxies:
        if proxy.error:
            yield Problem(
                proxy.node,
                f"its proxy to the API does not answer: {proxy.error}",
                f"`systemctl status provisioner-api-proxy` on {proxy.node}",
            )
            continue
        for backend in proxy.backends:
            if not backend.up and backend.name in ready:
                yield Problem(
                    proxy.node,
                    f"its proxy has {backend.name} {backend.state} ({backend.check}), though that apiserver is ready",
                    f"see whether {proxy.node} reaches {backend.name} on port 6443 (a firewall, a route)",
                )
        names = [backend.name for backend in proxy.backends]
        if set(names) != set(planes):
            yield Problem(
                proxy.node,
                f"its proxy knows the apiservers {', '.join(names) or 'none'}, cluster.yaml has {', '.join(planes)}",
                "`provisioner apply`",
            )


def _vip(status: Status) -> Iterator[Problem]:
    vip = status.vip
    if vip is None or len(vip.holders) == 1:
        return
    if vip.holders:
        yield Problem(
            CLUSTER,
            f"the virtual address {vip.address} is on {' and '.join(vip.holders)} at once",
            "see whether VRRP (IP protocol 112) passes between them: firewalls, `journalctl -u provisioner-vip`",
        )
    elif vip.unknown:
        yield Problem(
            CLUSTER,
            f"no machine that answers holds the virtual address {vip.address}; {', '.join(vip.unknown)} could not be asked",
            "`journalctl -u provisioner-vip` on the control planes",
        )
    else:
        yield Problem(
            CLUSTER,
            f"no machine holds the virtual address {vip.address}",
            "`systemctl status provisioner-vip` on the control planes",
        )


def _backups(status: Status) -> Iterator[Problem]:
    healthy = {member.name for member in status.etcd.members if member.healthy}
    # of a member that is not well that is said, and not that it gives no backup
    asked = [one for one in status.backups if one.node in healthy]
    last = status.last_backup
    since = f"the last good one is {ago(last.age or 0.0)} old, on {last.node}" if last else "there is no good one"
    for one in asked:
        if not one.timer:
            yield Problem(one.node, "the timer of its backups does not run", "`provisioner apply`")
        if one.failed:
            yield Problem(one.node, f"its last backup failed; {since}", f"`provisioner logs {one.node} etcd-backup`")
    fired = min((one.fired for one in asked if one.fired is not None and one.ran), default=None)
    if fired is None or any(one.failed or one.running for one in asked):
        return
    if fired > BACKUP_SECONDS and (last is None or (last.age or 0.0) > fired + BACKUP_SECONDS):
        yield Problem(
            CLUSTER,
            f"no member has taken a backup when it was time, {ago(fired)} ago; {since}",
            "`provisioner logs NODE etcd-backup` for each member of etcd",
        )
