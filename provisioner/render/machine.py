"""Variables of the roles that every machine, or every Kubernetes node, carries: base, containerd, api_proxy, kubelet,
kube_proxy, network."""

from __future__ import annotations

import math
from collections.abc import Mapping

from provisioner import topology
from provisioner.config import FlagValue, Role
from provisioner.render.context import HostContext
from provisioner.render.control_plane import flags
from provisioner.render.templates import role_defaults
from provisioner.render.trust import no_proxy, sources_of

IMAGE_DIR = "/var/lib/provisioner/images"
STAGING_IN_MEMORY_MIB = 3000
# On the machine; Ansible makes a directory of its own in it, for the login user alone.
# (module_utils/provisioner_litter.py looks there for what was left)
MEMORY_DIR, DISK_DIR = "/dev/shm", "/var/tmp"  # noqa: S108

# What a kubelet makes of a token: its own kubeconfig, and its client certificate (a link to it).
KUBELET_IDENTITY = ("/var/lib/kubelet/kubeconfig", "/var/lib/kubelet/pki/kubelet-client-current.pem")

# What the kubelet runs before it has an image of a private registry pulled, and what that one reads.
# https://kubernetes.io/docs/tasks/administer-cluster/kubelet-credential-provider/
PROVIDER_CONFIG = "/etc/kubernetes/kubelet/credential-provider.yaml"
PROVIDER_DIRECTORY = "/usr/local/lib/provisioner/credential-providers"
PROVIDER = f"{PROVIDER_DIRECTORY}/provisioner-registries"
LOGINS = "/etc/kubernetes/kubelet/registry-logins.json"


def merge(*layers: Mapping[str, object]) -> dict[str, object]:
    """Merge configuration objects deeply; later layers win, lists are replaced."""
    result: dict[str, object] = {}
    for layer in layers:
        for key, value in layer.items():
            known = result.get(key)
            result[key] = merge(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return result


def users_of(host: HostContext) -> list[dict[str, str]]:
    """System users of the components on this machine."""
    users = []
    if host.node.has(Role.ETCD):
        users.append({"name": "etcd", "home": "/var/lib/etcd"})
    if host.node.has(Role.CONTROL_PLANE):
        users += [{"name": name, "home": "/"} for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler")]
    return users


def base(host: HostContext) -> dict[str, object]:
    """Users, kernel settings, the marker."""
    defaults = role_defaults("base")
    on_node = host.node.is_kubernetes_node
    return {
        "base_cluster_name": host.cluster.name,
        "base_cluster_id": host.cluster_id,
        "base_node_name": host.node.name,
        "base_users": users_of(host),
        "base_sysctls": defaults["base_kubernetes_sysctls"] if on_node else {},
        "base_modules": defaults["base_kubernetes_modules"] if on_node else [],
        "base_packages": list(host.traits.packages_missing),
    }


def artifacts(host: HostContext) -> dict[str, object]:
    """Where a bundle (about 250 MB) waits to be unpacked: in memory, on a machine that can spare it."""
    return {"artifacts_staging": MEMORY_DIR if host.traits.memory_mib >= STAGING_IN_MEMORY_MIB else DISK_DIR}


def containerd(host: HostContext) -> dict[str, object]:
    """https://github.com/containerd/containerd/blob/main/docs/cri/config.md"""
    proxy = host.cluster.http_proxy
    environment = {
        "HTTP_PROXY": proxy.http,
        "HTTPS_PROXY": proxy.https,
        "NO_PROXY": ",".join(no_proxy(host.cluster)) if proxy.http or proxy.https else "",
    }
    return {
        "containerd_systemd_cgroup": host.traits.cgroup == 2,
        "containerd_restrict_oom_score_adj": not host.traits.can_lower_oom,
        "containerd_oom_score_adjust": -999 if host.traits.can_lower_oom else 0,
        "containerd_sandbox_image": host.images["pause"].reference,
        "containerd_images": [
            {
                "reference": image.reference,
                "path": f"{IMAGE_DIR}/{name}.tar",
                "sha256": host.artifacts[image.artifact].sha256,
            }
            for name, image in sorted(host.images.items())
        ],
        "containerd_registries": [
            {"name": name, "server": itself.to_vars(), "mirrors": [mirror.to_vars() for mirror in mirrors]}
            for name, (itself, mirrors) in sources_of(host.cluster).items()
        ],
        "containerd_proxy_environment": {name: value for name, value in environment.items() if value},
    }


def api_proxy(host: HostContext) -> dict[str, object]:
    """https://docs.haproxy.org/2.6/configuration.html"""
    # every machine asks every apiserver: half a second up to 50 machines, then slower in proportion
    interval = 500 * max(1, math.ceil(len(host.cluster.kubernetes_nodes) / 50))
    return {
        "api_proxy_port": topology.API_PROXY_PORT,
        "api_proxy_backends": [
            {"name": name, "address": address}
            for name, address in topology.api_backends([*host.cluster.control_planes, *host.leaving_planes])
        ],
        "api_proxy_check_milliseconds": interval,
        "api_proxy_own_server": host.node.name if host.node.has(Role.CONTROL_PLANE) else "",
        "api_proxy_health_port": topology.API_HEALTH_PORT,
    }


# Of a disk that is the host's, a share says nothing: 15 % of a large one is more than a cluster ever fills, and others fill it.
# All of the defaults have to be named: https://kubernetes.io/docs/concepts/scheduling-eviction/node-pressure-eviction/#hard-eviction-thresholds
_HOSTS_DISK: Mapping[str, object] = {
    "evictionHard": {
        "memory.available": "100Mi",
        "nodefs.available": "1Gi",
        "nodefs.inodesFree": "5%",
        "imagefs.available": "1Gi",
        "imagefs.inodesFree": "5%",
    },
    "imageGCHighThresholdPercent": 100,
}


def kubelet(host: HostContext) -> dict[str, object]:
    """https://kubernetes.io/docs/reference/config-api/kubelet-config.v1beta1/"""
    cluster, defaults = host.cluster, role_defaults("kubelet")
    detected: dict[str, object] = {
        "clusterDNS": [str(topology.dns_service_ip(cluster))],
        "clusterDomain": cluster.network.dns_domain,
        "registerWithTaints": [taint.model_dump(exclude_defaults=True) for taint in topology.taints_of(host.node)],
        "resolvConf": host.traits.resolv_conf,
    }
    if host.traits.cgroup == 1:
        # 1.35 and newer refuse cgroup v1 unless told: https://kep.k8s.io/5573
        detected["failCgroupV1"] = False
    if host.traits.swap:
        detected["failSwapOn"] = False
    if not host.traits.can_lower_oom:
        detected["oomScoreAdj"] = 0
    if host.traits.container:
        detected.update(_HOSTS_DISK)
    reserved: dict[str, object] = {}
    if cluster.kubelet.system_reserved:
        reserved["systemReserved"] = cluster.kubelet.system_reserved
    if cluster.kubelet.kube_reserved:
        reserved["kubeReserved"] = cluster.kubelet.kube_reserved
    computed: dict[str, FlagValue] = {"hostname-override": host.node.name, "node-ip": str(host.node.ip)}
    if host.registries.logins:
        computed["image-credential-provider-config"] = PROVIDER_CONFIG
        computed["image-credential-provider-bin-dir"] = PROVIDER_DIRECTORY
    return {
        # as long as it has one, it asks for no other
        "kubelet_forget": list(KUBELET_IDENTITY) if host.bootstrap_kubeconfig else [],
        "kubelet_health_url": f"http://127.0.0.1:{topology.KUBELET_HEALTH_PORT}/healthz",
        "kubelet_private_registries": sorted(host.registries.logins),
        "kubelet_flags": flags(defaults["kubelet_base_flags"], computed, cluster.kubelet.flags),
        "kubelet_config": merge(defaults["kubelet_base_config"], detected, reserved, cluster.kubelet.config, host.node.kubelet),
    }


def kube_proxy(host: HostContext) -> dict[str, object]:
    """https://kubernetes.io/docs/reference/config-api/kube-proxy-config.v1alpha1/"""
    cluster, defaults = host.cluster, role_defaults("kube_proxy")
    computed: dict[str, object] = {
        "clusterCIDR": str(cluster.network.pod_cidr),
        "hostnameOverride": host.node.name,
        "mode": cluster.network.proxy_mode,
    }
    if host.traits.container:
        # the conntrack table belongs to the machine below, and cannot be sized from inside a container
        computed["conntrack"] = {"maxPerCore": 0, "min": 0}
    if not host.traits.can_lower_oom:
        computed["oomScoreAdj"] = 0
    return {
        "kube_proxy_health_url": f"http://127.0.0.1:{topology.KUBE_PROXY_HEALTH_PORT}/healthz",
        "kube_proxy_flags": flags(defaults["kube_proxy_base_flags"], cluster.kube_proxy.flags),
        "kube_proxy_config": merge(defaults["kube_proxy_base_config"], computed, cluster.kube_proxy.config),
    }


def network(host: HostContext) -> dict[str, object]:
    """https://github.com/flannel-io/flannel/blob/master/Documentation/backends.md"""
    settings = host.cluster.network
    backend: dict[str, object] = {"Type": settings.backend}
    if settings.backend == "vxlan":
        backend["Port"] = settings.vxlan_port
    config = {"Network": str(settings.pod_cidr), "EnableNFTables": settings.proxy_mode == "nftables", "Backend": backend}
    return {
        "network_flags": flags(
            role_defaults("network")["network_base_flags"], {"iface": str(host.node.ip)}, host.cluster.components.flannel.flags
        ),
        "network_config": config,
        "network_node_name": host.node.name,
        "network_pod_cidr": str(settings.pod_cidr),
    }
