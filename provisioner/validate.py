"""The cross-field rules of cluster.yaml as one table, and the one loop that runs them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from provisioner.config import Cluster
from provisioner.problems import Path as Where
from provisioner.problems import Problem
from provisioner.rules import addons, backups, flags, labels, network, nodes, outside, registries, vip
from provisioner.rules.rule import Context, Rule

_IPS = ("nodes.address", "nodes.clusterAddress")
_ROLES = ("nodes.roles",)
_NETWORK = ("network.podCidr", "network.serviceCidr", "network.nodePrefix")
_ENDPOINT = ("controlPlaneEndpoint",)
_APISERVER, _CONTROLLERS, _SCHEDULER, _FLANNEL = (
    f"components.{name}.flags" for name in ("kubeApiserver", "kubeControllerManager", "kubeScheduler", "flannel")
)
_FLAGS = ("etcd.flags", _APISERVER, _CONTROLLERS, _SCHEDULER, _FLANNEL, "kubelet.flags", "kubeProxy.flags")
_CONFIGS = ("kubelet.config", "kubeProxy.config", "nodes.kubelet")

RULES: tuple[Rule, ...] = (
    # machines
    Rule(nodes.names_unique, ("nodes.name",), per_node=True),
    Rule(nodes.names_usable, ("nodes.name",), per_node=True),
    Rule(nodes.addresses_wellformed, ("nodes.address",), per_node=True),
    Rule(nodes.addresses_unique, ("nodes.address", "nodes.sshPort", "ssh.port"), per_node=True),
    Rule(nodes.node_has_ipv4, _IPS, per_node=True),
    Rule(nodes.cluster_addresses_unique, _IPS, per_node=True),
    Rule(nodes.cluster_addresses_usable, _IPS, per_node=True),
    Rule(nodes.ssh_address_of_another, _IPS, per_node=True),
    Rule(nodes.roles_once, _ROLES, per_node=True),
    Rule(nodes.has_control_plane, _ROLES),
    Rule(nodes.has_etcd, _ROLES),
    Rule(nodes.etcd_count_odd, _ROLES),
    Rule(nodes.etcd_count_sensible, _ROLES),
    Rule(nodes.something_can_run, (*_ROLES, "nodes.taints")),
    Rule(nodes.node_count_supported, _ROLES),
    Rule(nodes.etcd_only_settings, _ROLES, per_node=True),
    Rule(nodes.endpoint_valid, (*_ENDPOINT, *_IPS, *_ROLES)),
    Rule(labels.labels_valid, ("nodes.labels",), per_node=True),
    Rule(labels.taints_valid, ("nodes.taints",), per_node=True),
    # address ranges, ports, names
    Rule(network.cidrs_disjoint, _NETWORK),
    Rule(network.cidrs_routable, _NETWORK),
    Rule(network.cidrs_spare_hosts, (*_NETWORK, *_IPS), per_node=True),
    Rule(network.cidrs_spare_endpoint, (*_NETWORK, *_ENDPOINT)),
    Rule(network.node_prefix_fits, (*_NETWORK, *_ROLES)),
    Rule(network.node_prefix_holds_pods, (*_NETWORK, *_ROLES, *_CONFIGS, "network.plugin")),
    Rule(network.service_cidr_size, (*_NETWORK, "kubernetes.version")),
    Rule(
        network.node_ports_valid,
        ("network.nodePortRange", "network.vxlanPort", "network.plugin", "ssh.port", "nodes.sshPort", *_IPS, *_ROLES),
    ),
    Rule(network.vxlan_port_free, ("network.vxlanPort", "network.plugin", "network.backend")),
    Rule(network.ssh_port_free, (*_IPS, *_ROLES, "nodes.sshPort", "ssh.port"), per_node=True),
    Rule(network.dns_domain_sane, ("network.dnsDomain", "nodes.address", *_ENDPOINT), per_node=True),
    Rule(network.extra_sans_valid, ("extraSans",)),
    Rule(network.endpoint_not_repeated, ("extraSans", *_ENDPOINT)),
    Rule(vip.vip_address, (*_ENDPOINT, *_IPS), per_node=True),
    Rule(vip.vip_port, _ENDPOINT),
    Rule(vip.vip_interface, _ENDPOINT),
    Rule(vip.vip_has_where_to_go, (*_ENDPOINT, *_ROLES)),
    Rule(network.plugin_comes_from_somewhere, ("network.plugin", "manifests")),
    # components
    Rule(flags.flag_names, _FLAGS),
    Rule(flags.flags_not_owned, _FLAGS),
    Rule(flags.flag_values, _FLAGS),
    Rule(flags.admission_plugins, (_APISERVER,)),
    Rule(flags.controllers_complete, (_CONTROLLERS,)),
    Rule(flags.scheduler_config, (_SCHEDULER,)),
    Rule(flags.kube_proxy_flags_count, ("kubeProxy.flags",)),
    Rule(flags.config_fields, _CONFIGS),
    Rule(flags.reserved_resources, ("kubelet.systemReserved", "kubelet.kubeReserved")),
    Rule(flags.etcd_timing, ("etcd.electionTimeout", "etcd.heartbeatInterval")),
    Rule(flags.certificate_lifetimes, ("certificates.renewBefore", "certificates.validity")),
    Rule(flags.etcd_quota, ("etcd.quotaBackendBytes",)),
    # backups
    Rule(backups.backup_schedule, ("backups.schedule",)),
    Rule(backups.backup_is_for_somebody, ("backups.schedule", "backups.recipients", "backups.plain")),
    Rule(backups.backup_leaves_the_machine, ("backups.schedule", "backups.copy", "backups.localOnly")),
    Rule(backups.backup_directory, ("backups.directory",)),
    Rule(backups.backup_happens, ("backups",)),
    # addons
    Rule(addons.addon_images_known, ("addons", "kubernetes.version", "artifacts.sources")),
    Rule(addons.local_path_directory, ("addons.localPathDirectory",)),
    # what lies outside
    Rule(outside.kubernetes_version_known, ("kubernetes.version",)),
    Rule(outside.ssh_users, ("ssh.user", "ssh.bastion", "nodes.sshUser")),
    Rule(outside.ssh_keys_usable, ("ssh.key", "ssh.bastion", "nodes.sshKey")),
    Rule(outside.bastion_valid, ("ssh.bastion",)),
    Rule(outside.manifests_readable, ("manifests",)),
    Rule(outside.artifacts_mirror, ("artifacts.mirror", "artifacts.sources")),
    Rule(registries.registry_mirrors, ("containerd.registryMirrors",)),
    Rule(registries.registries_usable, ("containerd.registries",)),
    Rule(registries.registry_logins_given, ("containerd.registries", "kubelet.flags")),
    Rule(outside.http_proxy_valid, ("httpProxy.http", "httpProxy.https", "httpProxy.noProxy")),
)


def problems_of(
    cluster: Cluster,
    base: Path,
    *,
    known_versions: Collection[str] | None = None,
    exists: bool = False,
    damaged: Collection[Where] = (),
) -> Iterator[Problem]:
    """Run every rule.

    Args:
        cluster: what validated; placeholders and defaults where something did not.
        base: directory of cluster.yaml, for relative file names.
        known_versions: Kubernetes versions that can be installed; None passes that rule over.
        exists: the cluster runs already; what only a new one is refused becomes a warning.
        damaged: paths of what did not validate. Nothing is said about them a second time, and no rule draws conclusions from
            the values that stand in for them.
    """
    context = Context(cluster, base, known_versions, exists)
    by_prefix: dict[str, list[Where]] = {}
    for path in damaged:
        by_prefix.setdefault(_prefix(path), []).append(path)
    broken = frozenset(damaged)
    for rule in RULES:
        gone = [prefix for prefix in by_prefix if any(f"{read}.".startswith(prefix) for read in rule.reads)]
        if gone and not (rule.per_node and all(prefix.startswith("nodes.") for prefix in gone)):
            continue
        of_nodes = {path[:2] for prefix in gone for path in by_prefix[prefix]}
        if ("nodes",) in of_nodes:
            continue
        for problem in rule.check(context):
            about_damage = any(problem.path[:length] in broken for length in range(len(problem.path) + 1))
            if not about_damage and problem.path[:2] not in of_nodes:
                yield problem


def _prefix(path: Where) -> str:
    """A path without its indices, as rules name what they read; "" for the whole file."""
    return "".join(f"{part}." for part in path if isinstance(part, str))
