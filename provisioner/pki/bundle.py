"""What of the PKI one node gets: the only way by which key material leaves the controller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from provisioner import kubeconfig
from provisioner.config import Cluster, Node
from provisioner.desired import File
from provisioner.pki.issue import Leaf
from provisioner.pki.specs import CERTIFICATES, CaName, Holder, Kubeconfig, Pair
from provisioner.pki.state import Pki

ROLE = "certificates"
# On every Kubernetes node: the CAs of the cluster that are to be believed.
CLUSTER_CA = "/etc/kubernetes/pki/ca.crt"


@dataclass(frozen=True, slots=True)
class Shared:
    """A file that is the same on every machine that holds it.

    ``ca`` where it holds certificates of CAs: all that are to be believed, or with ``signer`` only the one that signs.
    """

    path: str
    holder: Holder
    content: Callable[[Pki], bytes]
    owner: str = "root"
    secret: bool = False
    ca: CaName | None = None
    signer: bool = False


def _ca(name: CaName) -> Callable[[Pki], bytes]:
    return lambda pki: pki.trust(name)


def _service_account_private(pki: Pki) -> bytes:
    return pki.service_account.private


def _service_account_public(pki: Pki) -> bytes:
    return pki.service_account.public


def _cluster_ca(pki: Pki) -> bytes:
    return pki.cas[CaName.CLUSTER].certificate


def _cluster_ca_key(pki: Pki) -> bytes:
    return pki.cas[CaName.CLUSTER].key


_APISERVER = "/etc/kubernetes/kube-apiserver"
_CONTROLLER_MANAGER = "/etc/kubernetes/kube-controller-manager"

SHARED: tuple[Shared, ...] = (
    Shared(CLUSTER_CA, Holder.KUBERNETES_NODE, _ca(CaName.CLUSTER), ca=CaName.CLUSTER),
    Shared("/etc/etcd/pki/ca.crt", Holder.ETCD_MEMBER, _ca(CaName.ETCD), "etcd", ca=CaName.ETCD),
    Shared(f"{_APISERVER}/etcd-ca.crt", Holder.CONTROL_PLANE, _ca(CaName.ETCD), "kube-apiserver", ca=CaName.ETCD),
    Shared(
        f"{_APISERVER}/front-proxy-ca.crt", Holder.CONTROL_PLANE, _ca(CaName.FRONT_PROXY), "kube-apiserver", ca=CaName.FRONT_PROXY
    ),
    Shared(f"{_APISERVER}/service-account.key", Holder.CONTROL_PLANE, _service_account_private, "kube-apiserver", secret=True),
    Shared(f"{_APISERVER}/service-account.pub", Holder.CONTROL_PLANE, _service_account_public, "kube-apiserver"),
    Shared(
        f"{_CONTROLLER_MANAGER}/service-account.key",
        Holder.CONTROL_PLANE,
        _service_account_private,
        "kube-controller-manager",
        secret=True,
    ),
    # The controller-manager signs the kubelets' client certificates: the one CA key that leaves the controller. It takes a file of
    # exactly one certificate, and /etc/kubernetes/pki/ca.crt has two while a CA is being replaced:
    # https://github.com/kubernetes/kubernetes/blob/v1.36.3/pkg/controller/certificates/signer/ca_provider.go
    Shared(
        f"{_CONTROLLER_MANAGER}/ca.crt",
        Holder.CONTROL_PLANE,
        _cluster_ca,
        "kube-controller-manager",
        ca=CaName.CLUSTER,
        signer=True,
    ),
    Shared(f"{_CONTROLLER_MANAGER}/ca.key", Holder.CONTROL_PLANE, _cluster_ca_key, "kube-controller-manager", secret=True),
)


def bundle_for(cluster: Cluster, pki: Pki, node: Node) -> tuple[File, ...]:
    """Every certificate, key and kubeconfig of one node, by path: what its roles need, and nothing of any other node.

    Raises:
        KeyError: ``pki`` is of another cluster.yaml, without this node or this role of it.
    """
    files = [
        _file(shared.path, shared.content(pki), shared.owner, secret=shared.secret)
        for shared in SHARED
        if shared.holder.includes(cluster, node)
    ]
    for spec in CERTIFICATES:
        if spec.place is not None and spec.holder.includes(cluster, node):
            files += _files_of(cluster, pki, pki.leaf(spec.name, node.name), spec.place)
    return tuple(sorted(files, key=lambda file: file.path))


def _files_of(cluster: Cluster, pki: Pki, leaf: Leaf, place: Pair | Kubeconfig) -> list[File]:
    if isinstance(place, Pair):
        stem = f"{place.directory}/{place.stem}"
        return [
            _file(f"{stem}.crt", leaf.certificate, place.owner, secret=False),
            _file(f"{stem}.key", leaf.key, place.owner, secret=True),
        ]
    content = kubeconfig.render(
        server=place.server,
        ca=pki.trust(CaName.CLUSTER),
        cluster=cluster.name,
        user=leaf.common_name,
        certificate=leaf.certificate,
        key=leaf.key,
    )
    return [_file(place.path, content, place.owner, secret=True)]


def _file(path: str, content: bytes, owner: str, *, secret: bool) -> File:
    return File(role=ROLE, path=path, content=content, mode=0o600 if secret else 0o644, owner=owner, group=owner, secret=secret)
