"""Where certificates are expected. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from provisioner import topology
from provisioner.config import Cluster, Node, Role
from provisioner.pki.bundle import SHARED
from provisioner.pki.specs import CERTIFICATES, CaName, Kubeconfig

# The name by which an API server calls itself, with a certificate that it makes when it starts and keeps in memory. Nothing but a
# restart renews it: https://github.com/kubernetes/kubernetes/issues/86552
LOOPBACK = "apiserver-loopback-client"
# Made by TLS bootstrap, and rotated by the kubelet itself.
KUBELET_CLIENT = "/var/lib/kubelet/pki/kubelet-client-current.pem"


@dataclass(frozen=True, slots=True)
class Place:
    """One place on a machine.

    Attributes:
        name: of the certificate, as in the table of the PKI.
        path: the file; of what is served, the file from which the server has it. Empty where it has it from none.
        ca: who must have signed it; None for one that signs itself.
        kubeconfig: the certificate is inside a kubeconfig.
        address: (host, port) where it is served; None for a file.
        server_name: what the server is called by (SNI).
        signer: of a file with certificates of CAs: only the CA that signs is in it, and not all that are to be believed.
    """

    name: str
    path: str
    ca: CaName | None
    kubeconfig: bool = False
    address: tuple[str, int] | None = None
    server_name: str = ""
    signer: bool = False

    @property
    def is_authority(self) -> bool:
        """Whether it is a file with certificates of CAs, or one of these: ``cluster-ca``, ``cluster-ca (new)``."""
        return self.name.partition(" ")[0].endswith("-ca")

    @property
    def where(self) -> str:
        """For people."""
        return f"served on {self.address[0]}:{self.address[1]}" if self.address else self.path


def places_on(cluster: Cluster, node: Node) -> tuple[Place, ...]:
    """Every certificate that a machine shall hold and serve, and the copies of CAs."""
    found = []
    files: dict[str, Place] = {}
    for spec in CERTIFICATES:
        if spec.place is None or not spec.holder.includes(cluster, node):
            continue
        if isinstance(spec.place, Kubeconfig):
            found.append(Place(spec.name, spec.place.path, spec.ca, kubeconfig=True))
        else:
            files[spec.name] = Place(spec.name, f"{spec.place.directory}/{spec.place.stem}.crt", spec.ca)
    found += files.values()
    found += [
        Place(f"{shared.ca}-ca", shared.path, shared.ca, signer=shared.signer)
        for shared in SHARED
        if shared.ca is not None and shared.holder.includes(cluster, node)
    ]
    if node.is_kubernetes_node:
        found.append(Place("kubelet-client", KUBELET_CLIENT, CaName.CLUSTER))
    for name, host, port in _SERVERS:
        if name in files:
            file = files[name]
            found.append(Place(name, file.path, file.ca, address=(host or str(node.ip), port)))
    if node.has(Role.CONTROL_PLANE):
        address = ("127.0.0.1", topology.APISERVER_PORT)
        found.append(Place("kube-apiserver-loopback", "", None, address=address, server_name=LOOPBACK))
    return tuple(found)


# (certificate, host, port); no host: the machine's own cluster address.
_SERVERS = (
    ("etcd-server", "127.0.0.1", topology.ETCD_CLIENT_PORT),
    ("etcd-peer", "", topology.ETCD_PEER_PORT),
    ("kube-apiserver", "127.0.0.1", topology.APISERVER_PORT),
    ("kube-controller-manager-serving", "127.0.0.1", topology.CONTROLLER_MANAGER_PORT),
    ("kube-scheduler-serving", "127.0.0.1", topology.SCHEDULER_PORT),
    ("kubelet-serving", "127.0.0.1", topology.KUBELET_PORT),
)
