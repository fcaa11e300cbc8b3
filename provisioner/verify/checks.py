"""The table of checks: every one, in the order of the report."""

from __future__ import annotations

from provisioner.verify import addons, etcd, hosts, network, nodes, registries, security, workloads
from provisioner.verify.model import Check, Level

SMOKE, FULL = Level.SMOKE, Level.FULL

# fmt: off
CHECKS: tuple[Check, ...] = (
    Check("units", "systemd units are active", SMOKE, nodes.units),
    Check("nodes", "the Nodes are those of cluster.yaml, Ready, of its version", SMOKE, nodes.node_set),
    Check("apiservers", "each apiserver is ready", SMOKE, nodes.apiservers),
    Check("etcd", "etcd: members healthy, one leader, the same data", SMOKE, etcd.members, seconds=15),
    # who has died leads for 15 s more (--leader-elect-lease-duration)
    Check("controllers", "controller-manager and scheduler lead and answer", SMOKE, nodes.controllers, seconds=30),
    Check("kubelets", "each kubelet answers the apiserver", SMOKE, nodes.kubelets),
    Check("api-paths", "the API answers on each host by proxy and ClusterIP", SMOKE, nodes.api_paths),
    Check("virtual-address", "one control plane holds the virtual address, and the API answers there", SMOKE, nodes.virtual_address,
          seconds=20),
    Check("system-pods", "pods of kube-system are Ready", SMOKE, nodes.system_pods, seconds=60, per_node=0.5),
    Check("probe-pods", "a pod starts on every node", SMOKE, network.probe_pods, seconds=60, per_node=0.5),
    Check("peer-pods", "a second pod starts on every node", SMOKE, network.peer_pods, seconds=60, per_node=0.5),
    Check("pod-to-pod", "pods reach each other, also with large payloads", SMOKE, network.pod_to_pod,
          needs=("probe-pods",), seconds=15, per_node=1),
    Check("cluster-ip", "a Service's ClusterIP works on every node", SMOKE, network.cluster_ip, needs=("probe-pods",), seconds=15),
    Check("node-port", "a NodePort works on every node from every node", SMOKE, network.node_port,
          needs=("probe-pods",), seconds=15, per_node=1),
    Check("hairpin", "a pod reaches itself by its Service", SMOKE, network.hairpin, needs=("probe-pods",), seconds=15),
    Check("own-node", "a Service's endpoint on the caller's own node", SMOKE, network.own_node_endpoint,
          needs=("probe-pods", "peer-pods"), seconds=15),
    Check("dns", "cluster DNS answers on every node", SMOKE, network.dns, needs=("probe-pods", "system-pods"), seconds=30),
    Check("logs", "logs of a pod on every node", SMOKE, workloads.logs, needs=("probe-pods",), seconds=15),
    Check("exec", "exec in a pod on every node", SMOKE, workloads.execute, needs=("probe-pods",), seconds=30, per_node=0.5),
    Check("metrics", "the metrics API has figures of every node and of pods", SMOKE, addons.metrics, seconds=90,
          wanted=addons.has_metrics),
    Check("storage", "a claim is bound, and keeps what is written", SMOKE, addons.storage, seconds=90, wanted=addons.has_storage),
    Check("web-ui", "the web UI answers, with no rights of its own", SMOKE, addons.web, seconds=90, wanted=addons.has_web),
    Check("registries", "every node gets images from the registries of cluster.yaml", SMOKE, registries.answer, seconds=60,
          wanted=registries.has_registries),
    Check("pod-comes-back", "a deleted pod comes back", FULL, workloads.pod_comes_back, seconds=60),
    Check("container-restarts", "a killed container restarts", FULL, workloads.container_restarts, seconds=60),
    Check("scheduling", "a pod lands where alone it fits", FULL, workloads.scheduling, seconds=60),
    Check("autoscaling", "an autoscaler acts on what pods use", FULL, addons.autoscaling, needs=("metrics",), seconds=120,
          wanted=addons.has_metrics),
    Check("encryption", "Secrets are encrypted at rest", FULL, etcd.encryption, seconds=15),
    Check("anonymous", "without credentials only health endpoints answer", FULL, security.anonymous),
    Check("node-authorization", "a kubelet's identity is confined to its node", FULL, security.node_authorization),
    Check("pod-security", "Pod Security refuses a privileged pod", FULL, security.pod_security),
    Check("host-services", "hosts: units run and are enabled", FULL, hosts.services, seconds=40, per_node=2),
    Check("host-ports", "hosts: ports", FULL, hosts.ports, seconds=30, per_node=1),
    Check("host-files", "hosts: certificates, keys, modes, owners", FULL, hosts.files, seconds=40, per_node=2),
    Check("host-keys", "hosts: no key where it does not belong", FULL, hosts.keys, seconds=40, per_node=2),
)
# fmt: on
