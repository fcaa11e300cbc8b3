"""Least privilege: every file of every kind of machine, with its mode and owner."""

from __future__ import annotations

import base64
import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from provisioner.config import Cluster
from provisioner.desired import File
from provisioner.pki import CaName, Pki, bundle_for, ensure

CERTIFICATE, KEY = 0o644, 0o600

ETCD = {
    "/etc/etcd/pki/ca.crt": (CERTIFICATE, "etcd"),
    "/etc/etcd/pki/peer.crt": (CERTIFICATE, "etcd"),
    "/etc/etcd/pki/peer.key": (KEY, "etcd"),
    "/etc/etcd/pki/server.crt": (CERTIFICATE, "etcd"),
    "/etc/etcd/pki/server.key": (KEY, "etcd"),
}
NODE = {
    "/etc/kubernetes/flannel/kubeconfig": (KEY, "root"),
    "/etc/kubernetes/kube-proxy/kubeconfig": (KEY, "root"),
    "/etc/kubernetes/kubelet/serving.crt": (CERTIFICATE, "root"),
    "/etc/kubernetes/kubelet/serving.key": (KEY, "root"),
    "/etc/kubernetes/pki/ca.crt": (CERTIFICATE, "root"),
}
CONTROL_PLANE = {
    "/etc/kubernetes/kube-apiserver/etcd-ca.crt": (CERTIFICATE, "kube-apiserver"),
    "/etc/kubernetes/kube-apiserver/etcd-client.crt": (CERTIFICATE, "kube-apiserver"),
    "/etc/kubernetes/kube-apiserver/etcd-client.key": (KEY, "kube-apiserver"),
    "/etc/kubernetes/kube-apiserver/front-proxy-ca.crt": (CERTIFICATE, "kube-apiserver"),
    "/etc/kubernetes/kube-apiserver/front-proxy-client.crt": (CERTIFICATE, "kube-apiserver"),
    "/etc/kubernetes/kube-apiserver/front-proxy-client.key": (KEY, "kube-apiserver"),
    "/etc/kubernetes/kube-apiserver/kubelet-client.crt": (CERTIFICATE, "kube-apiserver"),
    "/etc/kubernetes/kube-apiserver/kubelet-client.key": (KEY, "kube-apiserver"),
    "/etc/kubernetes/kube-apiserver/service-account.key": (KEY, "kube-apiserver"),
    "/etc/kubernetes/kube-apiserver/service-account.pub": (CERTIFICATE, "kube-apiserver"),
    "/etc/kubernetes/kube-apiserver/serving.crt": (CERTIFICATE, "kube-apiserver"),
    "/etc/kubernetes/kube-apiserver/serving.key": (KEY, "kube-apiserver"),
    "/etc/kubernetes/kube-controller-manager/ca.crt": (CERTIFICATE, "kube-controller-manager"),
    "/etc/kubernetes/kube-controller-manager/ca.key": (KEY, "kube-controller-manager"),
    "/etc/kubernetes/kube-controller-manager/kubeconfig": (KEY, "kube-controller-manager"),
    "/etc/kubernetes/kube-controller-manager/service-account.key": (KEY, "kube-controller-manager"),
    "/etc/kubernetes/kube-controller-manager/serving.crt": (CERTIFICATE, "kube-controller-manager"),
    "/etc/kubernetes/kube-controller-manager/serving.key": (KEY, "kube-controller-manager"),
    "/etc/kubernetes/kube-scheduler/kubeconfig": (KEY, "kube-scheduler"),
    "/etc/kubernetes/kube-scheduler/serving.crt": (CERTIFICATE, "kube-scheduler"),
    "/etc/kubernetes/kube-scheduler/serving.key": (KEY, "kube-scheduler"),
}
GOLDEN = {
    "cp-1": ETCD | CONTROL_PLANE | NODE,
    "cp-2": ETCD | CONTROL_PLANE | NODE,
    "cp-3": CONTROL_PLANE | NODE,
    "etcd-1": ETCD,
    "w-1": NODE,
    "w-2": NODE | ETCD,
}


def bundles(cluster: Cluster, pki: Pki) -> dict[str, tuple[File, ...]]:
    return {node.name: bundle_for(cluster, pki, node) for node in cluster.nodes}


@pytest.mark.parametrize("name", GOLDEN)
def test_files_modes_and_owners(cluster: Cluster, pki: Pki, name: str) -> None:
    files = bundle_for(cluster, pki, cluster.node(name))
    assert {file.path: (file.mode, file.owner) for file in files} == GOLDEN[name]
    assert [file.path for file in files] == sorted(file.path for file in files)
    for file in files:
        assert file.role == "certificates"
        assert file.group == file.owner
        assert file.secret == (file.mode == KEY) == (b"PRIVATE KEY" in file.content or b"client-key-data" in file.content)


def test_a_network_of_the_users_own_gets_no_flannel_identity(
    make_cluster: Callable[..., Cluster], root: Path, now: dt.datetime
) -> None:
    cluster = make_cluster(network={"plugin": "none"})
    pki = ensure(cluster, root, now=now)
    paths = {file.path for file in bundle_for(cluster, pki, cluster.node("w-1"))}
    assert paths == set(NODE) - {"/etc/kubernetes/flannel/kubeconfig"}
    assert not [key for key in pki.leaves if "flannel" in key[1]]


def _private_keys(file: File) -> list[bytes]:
    """Public halves of every private key in a file, however it is packed."""
    content = file.content
    if file.path.endswith("kubeconfig"):
        content = base64.b64decode(yaml.safe_load(content)["users"][0]["user"]["client-key-data"])
    if b"PRIVATE KEY" not in content:
        return []
    return [_public(content)]


def _public(pem: bytes) -> bytes:
    return load_pem_private_key(pem, None).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_who_holds_which_ca_key(cluster: Cluster, pki: Pki) -> None:
    holders = {
        ca.name: {
            f"{node}:{file.path}"
            for node, files in bundles(cluster, pki).items()
            for file in files
            if _public(ca.key) in _private_keys(file)
        }
        for ca in pki.cas.values()
    }
    path = "/etc/kubernetes/kube-controller-manager/ca.key"
    assert holders == {
        CaName.CLUSTER: {f"{node}:{path}" for node in ("cp-1", "cp-2", "cp-3")},
        CaName.ETCD: set(),
        CaName.FRONT_PROXY: set(),
    }


def test_no_key_of_one_node_lies_on_another_and_none_of_the_controllers_leaves_it(cluster: Cluster, pki: Pki) -> None:
    shared = {_public(pki.cas[CaName.CLUSTER].key), _public(pki.service_account.private)}
    seen: dict[bytes, str] = {}
    for node, files in bundles(cluster, pki).items():
        for key in {key for file in files for key in _private_keys(file)} - shared:
            assert seen.setdefault(key, node) == node
    for name in ("admin", "break-glass", "driver-etcd-client"):
        assert _public(pki.leaf(name).key) not in seen
    # Every certificate of a node is used: as many keys out there as there are certificates of nodes.
    assert len(seen) == len([key for key in pki.leaves if key[0]])


def test_pairs_match_and_every_client_is_in_its_kubeconfig(cluster: Cluster, pki: Pki) -> None:
    for files in bundles(cluster, pki).values():
        by_path = {file.path: file for file in files}
        pairs = [path for path in by_path if path.endswith(".key") and path.removesuffix(".key") + ".crt" in by_path]
        for path in pairs:
            certificate = x509.load_pem_x509_certificate(by_path[path.removesuffix(".key") + ".crt"].content)
            assert load_pem_private_key(by_path[path].content, None).public_key() == certificate.public_key()


@pytest.mark.parametrize(
    ("path", "server", "user"),
    [
        ("/etc/kubernetes/kube-proxy/kubeconfig", "https://127.0.0.1:16443", "system:kube-proxy:cp-1"),
        ("/etc/kubernetes/flannel/kubeconfig", "https://127.0.0.1:16443", "flannel:cp-1"),
        ("/etc/kubernetes/kube-controller-manager/kubeconfig", "https://127.0.0.1:6443", "system:kube-controller-manager"),
        ("/etc/kubernetes/kube-scheduler/kubeconfig", "https://127.0.0.1:6443", "system:kube-scheduler"),
    ],
)
def test_kubeconfigs_of_components(cluster: Cluster, pki: Pki, path: str, server: str, user: str) -> None:
    files = {file.path: file.content for file in bundle_for(cluster, pki, cluster.node("cp-1"))}
    document = yaml.safe_load(files[path])
    assert document["clusters"][0]["cluster"]["server"] == server
    assert document["users"][0]["name"] == user
    assert document["current-context"] == f"{user}@test"


def test_the_same_pki_gives_the_same_bytes(cluster: Cluster, pki: Pki, root: Path, now: dt.datetime) -> None:
    again = ensure(cluster, root, now=now + dt.timedelta(hours=1))
    assert bundles(cluster, again) == bundles(cluster, pki)
