"""The CAs as the API itself tells them, in objects: pods, extension API servers and whoever joins by `cluster-info` believe these.

Most are written by Kubernetes' own components out of their files: this looks whether they have, and writes what they do not.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from typing import Any

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from provisioner.cluster_api import ClusterApi, ClusterApiError, Object
from provisioner.pki import Ca, CaName, Pki
from provisioner.wait import NotYet, wait_until

# In every namespace, by the controller-manager, out of --root-ca-file; mounted into pods beside their token:
# https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/#bound-service-account-token-volume
ROOT = "kube-root-ca.crt"
# For extension API servers, by every API server; none of them ever takes a certificate out that is still valid:
# https://github.com/kubernetes/kubernetes/blob/v1.36.3/pkg/controlplane/controller/clusterauthenticationtrust/
_EXTENSION: Object = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
}
_IN_EXTENSION = {"client-ca-file": CaName.CLUSTER, "requestheader-client-ca-file": CaName.FRONT_PROXY}
# For machines that join, where somebody has made it: https://kubernetes.io/docs/reference/setup-tools/kubeadm/implementation-details/
_CLUSTER_INFO: Object = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "cluster-info", "namespace": "kube-public"},
}
# A controller-manager that was restarted may wait 17 s for its lease, and then goes through all namespaces.
SECONDS = 180.0


def bring_about(api: ClusterApi, keys: Pki) -> None:
    """Wait until every object tells the CAs that are to be believed now, and write those that nobody else writes.

    Raises:
        WaitTimeout: names the objects that do not.
    """

    def look() -> None:
        _write(api, keys)
        if late := differing(api, keys):
            raise NotYet("; ".join(late[:5]) + (f" and {len(late) - 5} more" if late[5:] else ""))

    wait_until(
        "the API's objects with the CAs",
        look,
        seconds=SECONDS,
        every=0.5,
        retry_on=(ClusterApiError,),
        hint="look at `journalctl -u kube-controller-manager` on the control planes, then run the rotation again: it goes on",
    )


def differing(api: ClusterApi, keys: Pki) -> list[str]:
    """The objects that tell other CAs than those that are to be believed, in words."""
    wanted = _ders(keys.authorities(CaName.CLUSTER))
    maps = {item["metadata"]["namespace"]: item for item in _root_maps(api)}
    found = [
        f"{name}/{ROOT} {'has other CAs' if name in maps else 'is not there'}"
        for name in _namespaces(api)
        if name not in maps or certificates((maps[name].get("data") or {}).get("ca.crt", "")) != wanted
    ]
    for secret in api.items("/api/v1/secrets", fieldSelector="type=kubernetes.io/service-account-token"):
        if certificates(_decoded((secret.get("data") or {}).get("ca.crt", ""))) != wanted:
            found.append(f"Secret {secret['metadata']['namespace']}/{secret['metadata']['name']} has other CAs")
    extension = (api.get(_EXTENSION) or {}).get("data") or {}
    for key, name in _IN_EXTENSION.items():
        inside = certificates(extension.get(key, ""))
        if not _ders(keys.authorities(name)) <= inside or inside & _refused(keys, name):
            found.append(f"kube-system/extension-apiserver-authentication has other CAs in {key}")
    return found


def tidy(api: ClusterApi, keys: Pki) -> None:
    """Leave in the object for extension API servers only the CAs that are to be believed. API servers put back what they add."""
    live = api.get(_EXTENSION)
    if live is not None:
        api.merge(_EXTENSION, {"data": {key: keys.trust(name).decode() for key, name in _IN_EXTENSION.items()}})


def since(api: ClusterApi) -> Mapping[str, str]:
    """When each namespace's CAs were last written, by the API's clock (RFC 3339)."""
    return {
        item["metadata"]["namespace"]: max(
            (str(entry["time"]) for entry in item["metadata"].get("managedFields") or () if entry.get("time")),
            default=str(item["metadata"]["creationTimestamp"]),
        )
        for item in _root_maps(api)
    }


def certificates(text: str) -> frozenset[bytes]:
    """The certificates (DER) in a text; none where it cannot be read."""
    try:
        return frozenset(one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(text.encode()))
    except ValueError:
        return frozenset()


def _ders(cas: Iterable[Ca]) -> frozenset[bytes]:
    return frozenset(ca.parsed.public_bytes(Encoding.DER) for ca in cas)


def _refused(keys: Pki, name: CaName) -> frozenset[bytes]:
    """Certificates that are on file and not to be believed."""
    return _ders([keys.others[name]] if name in keys.others else []) - _ders(keys.authorities(name))


def _root_maps(api: ClusterApi) -> list[Object]:
    return api.items("/api/v1/configmaps", fieldSelector=f"metadata.name={ROOT}")


def _namespaces(api: ClusterApi) -> list[str]:
    """Those that are not on their way out, in which nothing new is made."""
    found = api.items("/api/v1/namespaces")
    return [str(one["metadata"]["name"]) for one in found if (one.get("status") or {}).get("phase") != "Terminating"]


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode(errors="replace")
    except binascii.Error:
        return ""


def _write(api: ClusterApi, keys: Pki) -> None:
    extension = (api.get(_EXTENSION) or {}).get("data") or {}
    if any(certificates(extension.get(key, "")) & _refused(keys, name) for key, name in _IN_EXTENSION.items()):
        tidy(api, keys)
    info = api.get(_CLUSTER_INFO)
    text = ((info or {}).get("data") or {}).get("kubeconfig", "")
    if text and (changed := with_authority(text, keys)) != text:
        api.merge(_CLUSTER_INFO, {"data": {"kubeconfig": changed}})


def with_authority(text: str, keys: Pki) -> str:
    """A kubeconfig that believes this cluster's CAs, with those that are to be believed now; any other one as it is. Pure."""
    wanted = keys.trust(CaName.CLUSTER)
    ours = _ders([*keys.authorities(CaName.CLUSTER), *([keys.others[CaName.CLUSTER]] if CaName.CLUSTER in keys.others else [])])
    try:
        document: Any = yaml.safe_load(text)
        entries = [entry["cluster"] for entry in document["clusters"]]
        inside = [certificates(_decoded(str(entry.get("certificate-authority-data", "")))) for entry in entries]
    except (yaml.YAMLError, TypeError, KeyError, AttributeError):
        return text
    changed = False
    for entry, found in zip(entries, inside, strict=True):
        if found & ours and found != certificates(wanted.decode()):
            entry["certificate-authority-data"] = base64.b64encode(wanted).decode()
            changed = True
    return yaml.safe_dump(document, sort_keys=False) if changed else text
