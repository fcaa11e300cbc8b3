"""Variables of the roles that make a control plane: etcd, etcd_backup, kube_apiserver, vip, kube_controller_manager,
kube_scheduler."""

from __future__ import annotations

from collections.abc import Mapping

from provisioner import topology
from provisioner.config import Certificates, FlagValue
from provisioner.pki import Lifetimes
from provisioner.render.context import HostContext
from provisioner.render.templates import role_defaults


def flags(*layers: Mapping[str, FlagValue]) -> dict[str, str]:
    """Merge flag layers, later ones win; values in the form the Go components parse."""
    merged: dict[str, FlagValue] = {}
    for layer in layers:
        merged.update(layer)
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in merged.items()}


def etcd(host: HostContext) -> dict[str, object]:
    """https://etcd.io/docs/v3.6/op-guide/configuration/"""
    cluster, ip, name = host.cluster, host.node.ip, host.node.name
    client, peer = topology.ETCD_CLIENT_PORT, topology.ETCD_PEER_PORT
    members = host.joins_etcd or tuple((member.name, topology.etcd_peer_url(member)) for member in cluster.etcd_members)
    computed: dict[str, FlagValue] = {
        "name": name,
        "advertise-client-urls": f"https://{ip}:{client}",
        "listen-client-urls": f"https://127.0.0.1:{client},https://{ip}:{client}",
        "listen-peer-urls": f"https://{ip}:{peer}",
        "listen-metrics-urls": f"http://127.0.0.1:{topology.ETCD_METRICS_PORT}",
        "quota-backend-bytes": cluster.etcd.quota_backend_bytes,
        "heartbeat-interval": cluster.etcd.heartbeat_interval,
        "election-timeout": cluster.etcd.election_timeout,
    }
    return {
        "etcd_flags": flags(role_defaults("etcd")["etcd_base_flags"], computed, cluster.etcd.flags),
        "etcd_birth": {
            "ETCD_INITIAL_ADVERTISE_PEER_URLS": topology.etcd_peer_url(host.node),
            "ETCD_INITIAL_CLUSTER": ",".join(f"{member}={url}" for member, url in members),
            "ETCD_INITIAL_CLUSTER_STATE": "existing" if host.joins_etcd else "new",
            "ETCD_INITIAL_CLUSTER_TOKEN": f"{cluster.name}-{host.cluster_id}",
        },
        "etcd_health_url": f"http://127.0.0.1:{topology.ETCD_METRICS_PORT}/readyz",
        "etcd_learner_health_url": f"http://127.0.0.1:{topology.ETCD_METRICS_PORT}/livez",
    }


def etcd_backup(host: HostContext) -> dict[str, object]:
    """https://www.freedesktop.org/software/systemd/man/latest/systemd.timer.html"""
    cluster, backups = host.cluster, host.cluster.backups
    return {
        "etcd_backup_schedule": backups.schedule,
        "etcd_backup_directory": backups.directory,
        "etcd_backup_settings": {
            "cluster": cluster.name,
            "clusterId": host.cluster_id,
            "member": host.node.name,
            "kubernetes": cluster.kubernetes.version,
            "directory": backups.directory,
            "keep": backups.keep,
            "recipients": list(backups.recipients),
            "copy": list(backups.carry),
        },
    }


def kube_apiserver(host: HostContext) -> dict[str, object]:
    """https://kubernetes.io/docs/reference/command-line-tools-reference/kube-apiserver/"""
    cluster = host.cluster
    issuer = topology.service_account_issuer(cluster)
    computed: dict[str, FlagValue] = {
        "advertise-address": str(host.node.ip),
        "etcd-servers": ",".join(topology.etcd_servers_of(cluster, host.node)),
        "secure-port": topology.APISERVER_PORT,
        "service-account-issuer": issuer,
        "service-cluster-ip-range": str(cluster.network.service_cidr),
        "service-node-port-range": cluster.network.node_port_range,
    }
    if len(cluster.control_planes) > 1:
        # lets long-lived connections spread again after one server was away
        computed["goaway-chance"] = "0.001"
    return {
        "kube_apiserver_flags": flags(
            role_defaults("kube_apiserver")["kube_apiserver_base_flags"], computed, cluster.components.kube_apiserver.flags
        ),
        "kube_apiserver_health_url": f"https://127.0.0.1:{topology.APISERVER_PORT}/readyz",
    }


def vip(host: HostContext) -> dict[str, object]:
    """https://www.keepalived.org/manpage.html

    The address goes with a prefix of 32: a second one of the machine's own network would depend on the first.
    """
    endpoint = host.cluster.control_plane_endpoint
    assert endpoint, "by layout"  # noqa: S101
    assert endpoint.vip, "by layout"  # noqa: S101
    return {
        "vip_address": f"{endpoint.host}/32",
        "vip_interface": endpoint.vip.interface or host.traits.interface,
        "vip_router_id": endpoint.vip.virtual_router_id,
        "vip_source": str(host.node.ip),
        "vip_peers": [str(node.ip) for node in host.cluster.control_planes if node.name != host.node.name],
        "vip_health_port": topology.API_HEALTH_PORT,
        "vip_apiserver_port": topology.APISERVER_PORT,
    }


def kube_controller_manager(host: HostContext) -> dict[str, object]:
    """https://kubernetes.io/docs/reference/command-line-tools-reference/kube-controller-manager/"""
    cluster = host.cluster
    computed: dict[str, FlagValue] = {
        "cluster-cidr": str(cluster.network.pod_cidr),
        "cluster-name": cluster.name,
        "node-cidr-mask-size": cluster.network.node_prefix,
        "service-cluster-ip-range": str(cluster.network.service_cidr),
    }
    if cluster.certificates.validity != Certificates().validity:
        # of the kubelets' client certificates
        computed["cluster-signing-duration"] = f"{int(Lifetimes.of(cluster).leaf.total_seconds())}s"
    return {
        "kube_controller_manager_flags": flags(
            role_defaults("kube_controller_manager")["kube_controller_manager_base_flags"],
            computed,
            cluster.components.kube_controller_manager.flags,
        ),
        "kube_controller_manager_health_url": f"https://127.0.0.1:{topology.CONTROLLER_MANAGER_PORT}/healthz",
    }


def kube_scheduler(host: HostContext) -> dict[str, object]:
    """https://kubernetes.io/docs/reference/command-line-tools-reference/kube-scheduler/"""
    return {
        "kube_scheduler_flags": flags(
            role_defaults("kube_scheduler")["kube_scheduler_base_flags"], host.cluster.components.kube_scheduler.flags
        ),
        "kube_scheduler_health_url": f"https://127.0.0.1:{topology.SCHEDULER_PORT}/healthz",
    }
