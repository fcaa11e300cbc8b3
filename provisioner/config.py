"""The models of cluster.yaml: one frozen value, ``Cluster``, with every default written down here and nowhere else.

Keys are camelCase in the file (as in Kubernetes' own objects) and snake_case in Python. Unknown keys are refused.
Rules that need more than one field live in ``validate.py``; reading a file and naming lines lives in ``load.py``.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from provisioner.choices import Role as Role  # noqa: PLC0414 - its home for everybody else is here

API_VERSION: Literal["provisioner/v1"] = "provisioner/v1"

# RFC 1123 label, as Kubernetes asks of node and namespace names. What each pattern means in words: `messages.PATTERNS`.
DnsLabel = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
DnsName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$", max_length=253)
]
Port = Annotated[int, Field(ge=1, le=65535)]
# 1.36.3, without a leading "v"
Version = Annotated[str, StringConstraints(pattern=r"^\d+\.\d+\.\d+$")]
# Minutes, hours or days; minutes are for tests.
Duration = Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,5}[mhd]$")]
PortRange = Annotated[str, StringConstraints(pattern=r"^\d{1,5}-\d{1,5}$")]
FlagValue = str | int | float | bool


class Model(BaseModel):
    """Base of every model: frozen, closed to unknown keys, camelCase in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class Taint(Model):
    """A taint as the Kubernetes API takes it."""

    key: str = Field(description="e.g. example.com/gpu")
    value: str = Field(default="", description="May be empty")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = Field(
        description="What becomes of pods that do not tolerate it"
    )


class Bastion(Model):
    """The machine through which the others are reached (OpenSSH's ProxyJump)."""

    host: str = Field(description="IP address or DNS name")
    port: Port = Field(default=22, description="TCP port of its SSH server")
    user: str = Field(default="root", description="Login user there")
    key: str | None = Field(default=None, description="Private key file; default: the key of `ssh`")


class Ssh(Model):
    """How the machines are reached. `~` and relative paths (to cluster.yaml) are allowed in file names."""

    user: str = Field(default="root", description="Login user; one that is not root needs password-less sudo")
    port: Port = Field(default=22, description="TCP port of the machines' SSH servers")
    key: str | None = Field(default=None, description="Private key file; default: the SSH agent and ~/.ssh/id_*")
    host_keys: Literal["accept-new", "strict"] = Field(
        default="accept-new",
        description="accept-new records a machine's key at first sight and refuses a changed one; strict refuses unknown ones",
    )
    bastion: Bastion | None = Field(
        default=None, description="A machine to go through, where the others cannot be reached directly"
    )


class Node(Model):
    """One machine."""

    name: DnsLabel = Field(description="Host name, Node name and etcd member name: a DNS label of at most 63 characters")
    address: str = Field(description="Where SSH answers: an IP address or a DNS name")
    cluster_address: IPv4Address | None = Field(
        default=None, description="The address the cluster uses (etcd, kubelet, VXLAN); default: `address`"
    )
    roles: tuple[Role, ...] = Field(min_length=1, description="What the machine does; one machine may hold all three")
    labels: dict[str, str] = Field(default={}, description="Labels of the Node, besides the roles' own")
    taints: tuple[Taint, ...] | None = Field(
        default=None,
        description="Taints at registration; default: control-plane:NoSchedule unless the node is also a worker",
    )
    ssh_port: Port | None = Field(default=None, description="Overrides ssh.port for this machine")
    ssh_user: str | None = Field(default=None, description="Overrides ssh.user for this machine")
    ssh_key: str | None = Field(default=None, description="Overrides ssh.key for this machine")
    kubelet: dict[str, object] = Field(default={}, description="Fields of KubeletConfiguration for this node only")

    @property
    def ip(self) -> IPv4Address:
        """The cluster address. ``validate`` has made sure that one of the two fields is an IPv4 address."""
        return self.cluster_address or IPv4Address(self.address)

    def has(self, role: Role) -> bool:
        """Whether the machine carries this role."""
        return role in self.roles

    @property
    def is_kubernetes_node(self) -> bool:
        """An etcd-only machine has no kubelet and registers no Node."""
        return self.has(Role.CONTROL_PLANE) or self.has(Role.WORKER)


class Kubernetes(Model):
    """The Kubernetes release."""

    version: Version = Field(default="1.36.3", description='One of the versions of versions.yml, without a leading "v"')


class Network(Model):
    """Addresses and the virtual network."""

    pod_cidr: IPv4Network = Field(default=IPv4Network("10.244.0.0/16"), description="Addresses of the pods")
    node_prefix: Annotated[int, Field(ge=16, le=28)] = Field(
        default=24, description="Prefix length of each node's part of podCidr: 24 gives a node 253 pod addresses"
    )
    service_cidr: IPv4Network = Field(
        default=IPv4Network("10.96.0.0/16"), description="Addresses of the Services; the tenth one is the cluster's DNS"
    )
    dns_domain: DnsName = Field(default="cluster.local", description="Domain of the Services' DNS names")
    plugin: Literal["flannel", "none"] = Field(
        default="flannel", description="The virtual network; none: bring your own with `manifests`"
    )
    backend: Literal["vxlan", "host-gw"] = Field(
        default="vxlan", description="How flannel carries packets; host-gw needs all nodes on one network segment"
    )
    vxlan_port: Port = Field(default=8472, description="UDP port of VXLAN (the Linux kernel's default)")
    proxy_mode: Literal["nftables", "iptables"] = Field(default="nftables", description="How kube-proxy carries Services")
    node_port_range: PortRange = Field(default="30000-32767", description="Ports that Services of type NodePort may take")


class Etcd(Model):
    """Values of etcd that a user may have reasons to change (see etcd's documentation, "Configuration options")."""

    quota_backend_bytes: Annotated[int, Field(ge=16 << 20, le=16 << 30)] = Field(
        default=2 << 30, description="Size in bytes at which the database refuses writes"
    )
    heartbeat_interval: Annotated[int, Field(ge=10, le=10_000)] = Field(
        default=100, description="Milliseconds between two of the leader's heartbeats; about the round trip between members"
    )
    election_timeout: Annotated[int, Field(ge=50, le=50_000)] = Field(
        default=1000, description="Milliseconds without a heartbeat before members elect anew; at least 5 heartbeats"
    )
    flags: dict[str, FlagValue] = Field(default={}, description="Further flags of etcd")


class Backups(Model):
    """Backups of etcd's data that the members take by themselves; without `schedule` nothing of it is installed."""

    schedule: str | None = Field(
        default=None, description='When, as OnCalendar of systemd.time(7) has it, in quotes: "*-*-* 03:00:00"; default: never'
    )
    keep: Annotated[int, Field(ge=1, le=1000)] = Field(default=7, description="How many stay on each machine, the newest")
    recipients: tuple[str, ...] = Field(default=(), description="Public keys, of age or SSH, that the backups are encrypted for")
    plain: bool = Field(default=False, description="Do not encrypt")
    directory: str = Field(
        default="/var/lib/provisioner/backups", description="Where they lie on the machines; of another place `reset` takes nothing"
    )
    carry: tuple[str, ...] = Field(
        default=(),
        alias="copy",
        description="Command and arguments that carry a backup off the machine, run there as root; `{file}` stands for its path",
    )
    local_only: bool = Field(default=False, description="Leave them on the machines alone, and lose them together")


class Certificates(Model):
    """How long certificates are valid; CAs are for ten years."""

    validity: Duration = Field(default="365d", description="From issue to end: a number with d, h or m; kubelets' own too")
    renew_before: Duration = Field(default="90d", description="`apply` issues one anew that has less than this left")


class Component(Model):
    """Overrides of one component's command-line flags: `{flag-name: value}`, merged over the defaults."""

    flags: dict[str, FlagValue] = Field(default={}, description="`name: value`, without the leading --")


class Kubelet(Model):
    """Fields merged into KubeletConfiguration of every node, and what the machine keeps for itself."""

    config: dict[str, object] = Field(default={}, description="Fields of KubeletConfiguration (kubelet.config.k8s.io/v1beta1)")
    system_reserved: dict[str, str] = Field(default={}, description="As KubeletConfiguration.systemReserved, e.g. {cpu: 100m}")
    kube_reserved: dict[str, str] = Field(default={}, description="As KubeletConfiguration.kubeReserved")
    flags: dict[str, FlagValue] = Field(default={}, description="Flags of kubelet that have no field in KubeletConfiguration")


class KubeProxy(Model):
    """Fields merged into KubeProxyConfiguration."""

    config: dict[str, object] = Field(default={}, description="Fields of KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)")
    flags: dict[str, FlagValue] = Field(default={}, description="Flags of kube-proxy that have no field in KubeProxyConfiguration")


class RegistryMirror(Model):
    """Where containerd asks for the images of one registry (containerd's hosts.toml)."""

    registry: str = Field(description="e.g. docker.io")
    endpoints: tuple[str, ...] = Field(min_length=1, description="URLs tried in order")


class Registry(Model):
    """A registry that needs more than its name. Secrets stay in files of their own: cluster.yaml is for many eyes."""

    registry: str = Field(description="Its host as in names of images, e.g. registry.example.com:5000")
    credentials: str | None = Field(
        default=None, description="File (0600) of two lines, `username: …` and `password: …`; kubelets give them to containerd"
    )
    ca: str | None = Field(default=None, description="File with the certificates (PEM) of the CAs that its certificate is of")
    tls: Literal["verify", "skip-verify", "none"] = Field(
        default="verify",
        description="skip-verify takes any certificate; none speaks http. Both let others read and change what comes",
    )
    verify_image: str | None = Field(
        default=None, description="An image there that `verify` pulls on every node; without it the registry is merely asked"
    )


class Containerd(Model):
    """The container runtime."""

    registry_mirrors: tuple[RegistryMirror, ...] = Field(default=(), description="Where to ask for a registry's images first")
    registries: tuple[Registry, ...] = Field(default=(), description="Registries with credentials, a CA of their own, or no TLS")


class Addons(Model):
    """What is installed into the cluster besides; all of it is off unless it stands here."""

    metrics_server: bool = Field(default=False, description="Usage of nodes and pods, for `kubectl top` and autoscaling")
    local_path: bool = Field(default=False, description="A default StorageClass, local-path: volumes are directories of one node")
    local_path_directory: str = Field(
        default="/var/lib/local-path-provisioner",
        description="Where those volumes lie on the nodes; nothing here ever deletes it, `reset` neither",
    )
    headlamp: bool = Field(default=False, description="A web UI, reached by `kubectl port-forward` and a token of the user's own")


class HttpProxy(Model):
    """Proxy of containerd on the nodes and of downloads on the controller."""

    http: str = Field(default="", description="URL of the proxy for http")
    https: str = Field(default="", description="URL of the proxy for https")
    no_proxy: tuple[str, ...] = Field(default=(), description="Hosts, domains and ranges asked directly, besides the cluster's own")


class Artifacts(Model):
    """Where binaries and images come from."""

    sources: tuple[Literal["mirror", "release", "modules"], ...] = Field(
        default=("mirror", "release", "modules"), min_length=1, description="Tried in this order"
    )
    mirror: str | None = Field(
        default=None,
        description="Directory or http(s) URL in the official sites' layout; without it `mirror` is passed over",
    )


class Components(Model):
    """Flag overrides per component."""

    kube_apiserver: Component = Field(default=Component(), description="The API server")
    kube_controller_manager: Component = Field(default=Component(), description="The controllers")
    kube_scheduler: Component = Field(default=Component(), description="The scheduler")
    flannel: Component = Field(default=Component(), description="The network agent, flanneld")


class Vip(Model):
    """A virtual address that the control planes hold in turn: keepalived, VRRPv3 between their cluster addresses."""

    virtual_router_id: Annotated[int, Field(ge=1, le=255)] = Field(
        default=51, description="VRRP's number of this group: another one for each cluster on a network segment"
    )
    interface: str | None = Field(
        default=None, description="Network interface that carries it; default: the one with the node's cluster address"
    )


class ControlPlaneEndpoint(Model):
    """The name or address by which users and other machines reach the API, besides the nodes' own proxies."""

    host: str = Field(description="DNS name or IP address")
    port: Port = Field(default=6443, description="TCP port")
    vip: Vip | None = Field(
        default=None, description="Run `host`, a free IPv4 address, as a virtual address on the control planes; `{}` is enough"
    )


class Cluster(Model):
    """One cluster: the whole of cluster.yaml."""

    api_version: Literal["provisioner/v1"] = Field(default=API_VERSION, description="Format of this file")
    name: DnsLabel = Field(description="Name of the cluster: a DNS label; its workspace and kubeconfig context carry it")
    kubernetes: Kubernetes = Field(default=Kubernetes(), description="The Kubernetes release")
    nodes: tuple[Node, ...] = Field(min_length=1, description="The machines")
    ssh: Ssh = Field(default=Ssh(), description="How the machines are reached")
    network: Network = Field(default=Network(), description="Addresses and the virtual network")
    control_plane_endpoint: ControlPlaneEndpoint | None = Field(
        default=None,
        description="Where users reach the API: a DNS name, a load balancer, or a virtual address; default: any healthy apiserver",
    )
    extra_sans: tuple[str, ...] = Field(default=(), description="Further names and addresses in the apiservers' certificates")
    etcd: Etcd = Field(default=Etcd(), description="The database")
    backups: Backups = Field(default=Backups(), description="Backups that the members of etcd take by themselves")
    certificates: Certificates = Field(default=Certificates(), description="How long certificates are valid")
    components: Components = Field(default=Components(), description="Flag overrides of the components")
    kubelet: Kubelet = Field(default=Kubelet(), description="The node agent, on every node")
    kube_proxy: KubeProxy = Field(default=KubeProxy(), description="Services on every node")
    containerd: Containerd = Field(default=Containerd(), description="The container runtime")
    http_proxy: HttpProxy = Field(default=HttpProxy(), description="Proxy towards the internet")
    artifacts: Artifacts = Field(default=Artifacts(), description="Where binaries and images come from")
    addons: Addons = Field(default=Addons(), description="What is installed into the cluster besides")
    manifests: tuple[str, ...] = Field(default=(), description="Files or directories applied after the cluster's own objects")

    def node(self, name: str) -> Node:
        """The node of that name.

        Raises:
            KeyError: there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def nodes_with(self, role: Role) -> tuple[Node, ...]:
        """The nodes that carry a role, in the file's order."""
        return tuple(node for node in self.nodes if node.has(role))

    @property
    def control_planes(self) -> tuple[Node, ...]:
        """Machines that run an apiserver, a controller-manager and a scheduler."""
        return self.nodes_with(Role.CONTROL_PLANE)

    @property
    def etcd_members(self) -> tuple[Node, ...]:
        """Machines that run etcd."""
        return self.nodes_with(Role.ETCD)

    @property
    def kubernetes_nodes(self) -> tuple[Node, ...]:
        """Machines that register a Node: every one that is not etcd-only."""
        return tuple(node for node in self.nodes if node.is_kubernetes_node)
