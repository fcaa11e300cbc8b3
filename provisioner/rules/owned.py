"""Flags and configuration fields that are not the user's to set, each with the reason: data, no code."""

from __future__ import annotations

from collections.abc import Mapping

_PKI = "certificates and keys are made, placed and renewed by provisioner"
_ADDRESS = "addresses follow from the nodes' clusterAddress"
_PORT = "proxies, preflight and verify rely on the port"
_KUBECONFIG = "each component has its own identity and kubeconfig"
_AUTHN = "authentication is in a file of provisioner's (AuthenticationConfiguration), which excludes this flag"
_AUTHZ = "the cluster's security rests on Node and RBAC authorization"
_LEADER = "several run at once; without an election they would work against each other"
_RUNTIME = "containerd is installed and configured by provisioner"
_BIRTH = "the members are provisioner's to form; afterwards the member list is the truth"
_DATA = "roles, snapshots and restores rely on the place of the data"
_LOSS = "it loses data when a machine loses power"
_TLS = "members and clients speak mutual TLS"
_DISCOVERY = "members find each other by cluster.yaml"


def _key(name: str) -> str:
    return f"set `{name}` instead"


def _table(*rows: tuple[str, str]) -> Mapping[str, str]:
    return {name: reason for names, reason in rows for name in names.split()}


_SERVING = ("cert-dir tls-cert-file tls-private-key-file tls-sni-cert-key", _PKI)
_LEADER_ELECTED = (
    _SERVING,
    ("client-ca-file", _PKI),
    ("kubeconfig authentication-kubeconfig authorization-kubeconfig master", _KUBECONFIG),
    ("secure-port", _PORT),
    ("leader-elect", _LEADER),
)

# Component -> flag -> why it is refused.
FLAGS: Mapping[str, Mapping[str, str]] = {
    "kube-apiserver": _table(
        _SERVING,
        ("client-ca-file etcd-cafile etcd-certfile etcd-keyfile", _PKI),
        ("kubelet-certificate-authority kubelet-client-certificate kubelet-client-key", _PKI),
        ("proxy-client-cert-file proxy-client-key-file peer-ca-file", _PKI),
        ("requestheader-client-ca-file requestheader-allowed-names", _PKI),
        ("service-account-key-file service-account-signing-key-file service-account-signing-endpoint", _PKI),
        ("service-account-issuer", "the issuer is constant, or every token would lose its worth"),
        ("encryption-provider-config", "the keys of Secrets are made, kept and backed up by provisioner"),
        ("advertise-address bind-address external-hostname", _ADDRESS),
        ("secure-port kubernetes-service-node-port", _PORT),
        ("etcd-servers etcd-servers-overrides", "they follow from the nodes with role etcd"),
        ("etcd-prefix storage-backend", _DATA),
        ("anonymous-auth authentication-config token-auth-file", _AUTHN),
        ("oidc-ca-file oidc-client-id oidc-groups-claim oidc-groups-prefix oidc-issuer-url oidc-required-claim", _AUTHN),
        ("oidc-signing-algs oidc-username-claim oidc-username-prefix", _AUTHN),
        ("authorization-mode authorization-config authorization-policy-file", _AUTHZ),
        ("enable-bootstrap-token-auth", "kubelets get their first certificate by bootstrap tokens"),
        ("admission-control", "it excludes enable-admission-plugins; set that one"),
        ("endpoint-reconciler-type", "the `kubernetes` Service finds its apiservers through it"),
        ("service-cluster-ip-range", _key("network.serviceCidr")),
        ("service-node-port-range", _key("network.nodePortRange")),
    ),
    "kube-controller-manager": _table(
        *_LEADER_ELECTED,
        ("root-ca-file service-account-private-key-file", _PKI),
        ("cluster-signing-cert-file cluster-signing-key-file", _PKI),
        ("cluster-signing-kube-apiserver-client-cert-file cluster-signing-kube-apiserver-client-key-file", _PKI),
        ("cluster-signing-kubelet-client-cert-file cluster-signing-kubelet-client-key-file", _PKI),
        ("cluster-signing-kubelet-serving-cert-file cluster-signing-kubelet-serving-key-file", _PKI),
        ("cluster-signing-legacy-unknown-cert-file cluster-signing-legacy-unknown-key-file", _PKI),
        ("use-service-account-credentials", "each controller has its own rights; together they would have all of them"),
        ("allocate-node-cidrs cidr-allocator-type", "the virtual network takes each node's range from its Node"),
        ("cluster-cidr", _key("network.podCidr")),
        ("cluster-name", _key("name")),
        ("node-cidr-mask-size node-cidr-mask-size-ipv4 node-cidr-mask-size-ipv6", _key("network.nodePrefix")),
        ("service-cluster-ip-range", _key("network.serviceCidr")),
    ),
    "kube-scheduler": _table(*_LEADER_ELECTED, ("write-config-to", "it writes a file and exits")),
    "kubelet": _table(
        ("tls-cert-file tls-private-key-file cert-dir client-ca-file", _PKI),
        ("rotate-certificates rotate-server-certificates", _PKI),
        ("kubeconfig bootstrap-kubeconfig config config-dir", _KUBECONFIG),
        ("address node-ip", _ADDRESS),
        ("port read-only-port healthz-port enable-server", _PORT),
        ("hostname-override", "a Node's name is its name in cluster.yaml"),
        ("register-node", "a node that does not register is none"),
        ("anonymous-auth authentication-token-webhook authorization-mode", "only the API server may talk to a kubelet"),
        (
            "container-runtime-endpoint image-service-endpoint containerd containerd-namespace cgroup-driver runtime-cgroups",
            _RUNTIME,
        ),
        ("fail-cgroupv1", "the cgroup version is detected"),
        ("root-dir", _DATA),
        ("runonce", "it ends the kubelet"),
        ("cluster-dns", "the DNS Service has the tenth address of network.serviceCidr"),
        ("cluster-domain", _key("network.dnsDomain")),
        ("node-labels", _key("nodes[].labels")),
        ("register-with-taints", _key("nodes[].taints")),
        ("pod-cidr", _key("network.podCidr")),
        ("system-reserved", _key("kubelet.systemReserved")),
        ("kube-reserved", _key("kubelet.kubeReserved")),
    ),
    "kube-proxy": _table(
        ("config", _KUBECONFIG),
        ("cleanup", "it takes every rule away and exits"),
        ("write-config-to", "it writes a file and exits"),
    ),
    "etcd": _table(
        ("cert-file key-file trusted-ca-file client-cert-file client-key-file", _PKI),
        ("peer-cert-file peer-key-file peer-trusted-ca-file peer-client-cert-file peer-client-key-file", _PKI),
        ("client-cert-auth peer-client-cert-auth auto-tls peer-auto-tls peer-skip-client-san-verification", _TLS),
        ("client-cert-allowed-hostname peer-cert-allowed-cn peer-cert-allowed-hostname", _TLS),
        ("listen-client-urls listen-peer-urls listen-client-http-urls advertise-client-urls", _ADDRESS),
        ("listen-metrics-urls", _PORT),
        ("name", "a member's name is its name in cluster.yaml"),
        ("initial-advertise-peer-urls initial-cluster initial-cluster-state initial-cluster-token force-new-cluster", _BIRTH),
        ("strict-reconfig-check", "it keeps a change of members from losing the quorum"),
        (
            "discovery discovery-endpoints discovery-fallback discovery-proxy discovery-srv discovery-srv-name discovery-token",
            _DISCOVERY,
        ),
        ("data-dir wal-dir", _DATA),
        ("unsafe-no-fsync", _LOSS),
        ("config-file", "etcd then ignores every flag"),
        ("quota-backend-bytes", _key("etcd.quotaBackendBytes")),
        ("heartbeat-interval", _key("etcd.heartbeatInterval")),
        ("election-timeout", _key("etcd.electionTimeout")),
    ),
    "flannel": _table(
        (
            "kube-subnet-mgr etcd-cafile etcd-certfile etcd-endpoints etcd-keyfile etcd-password etcd-prefix etcd-username",
            _DISCOVERY,
        ),
        ("kubeconfig-file kube-api-url", _KUBECONFIG),
        ("net-config-path subnet-file", "the CNI configuration is written from these files"),
        ("iface iface-regex iface-can-reach public-ip public-ipv6", _ADDRESS),
        ("kube-annotation-prefix", "the rights of each agent name these annotations"),
    ),
}

# Kind of configuration -> field -> why it is refused.
FIELDS: Mapping[str, Mapping[str, str]] = {
    "KubeletConfiguration": _table(
        ("apiVersion kind", "it is always the same"),
        ("authentication authorization", "only the API server may talk to a kubelet"),
        ("tlsCertFile tlsPrivateKeyFile rotateCertificates serverTLSBootstrap", _PKI),
        ("address", _ADDRESS),
        ("port readOnlyPort healthzPort enableServer", _PORT),
        ("registerNode", "a node that does not register is none"),
        ("containerRuntimeEndpoint imageServiceEndpoint cgroupDriver", _RUNTIME),
        ("failCgroupV1", "the cgroup version is detected"),
        ("runOnce", "it ends the kubelet"),
        ("clusterDNS", "the DNS Service has the tenth address of network.serviceCidr"),
        ("clusterDomain", _key("network.dnsDomain")),
        ("podCIDR", _key("network.podCidr")),
        ("registerWithTaints", _key("nodes[].taints")),
    ),
    "KubeProxyConfiguration": _table(
        ("apiVersion kind", "it is always the same"),
        ("clientConnection", _KUBECONFIG),
        ("hostnameOverride", "a Node's name is its name in cluster.yaml"),
        ("clusterCIDR", _key("network.podCidr")),
        ("mode", _key("network.proxyMode")),
    ),
}
# Fields with keys of their own for all nodes; nodes[].kubelet may still override them for one.
COMMON_FIELDS: Mapping[str, str] = {
    "systemReserved": _key("kubelet.systemReserved"),
    "kubeReserved": _key("kubelet.kubeReserved"),
}
