"""Kubeconfigs as bytes: one cluster, one user, everything embedded; the same input gives the same bytes.

The format: https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import yaml

# libyaml writes the same bytes as PyYAML's own emitter, twenty times as fast; some builds of PyYAML lack it.
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def render(
    *,
    server: str,
    ca: bytes,
    cluster: str,
    user: str,
    certificate: bytes,
    key: bytes,
    context: str | None = None,
    others: Mapping[str, str] | None = None,
) -> bytes:
    """A kubeconfig whose user is a client certificate.

    Args:
        server: URL of the API.
        ca: PEM of the CA the server's certificate is checked against.
        cluster: name of the cluster in this file.
        user: name of the user in this file; the user the API sees is the certificate's common name.
        certificate: PEM of the client certificate.
        key: PEM of its key; it makes the result a secret.
        context: name of the context; default ``USER@CLUSTER``, as kubeadm names it.
        others: further ways to the same API, URL by name: each gets a cluster ``CLUSTER-NAME`` and a context of its own.
    """
    credentials = {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)}
    servers = {cluster: server, **{f"{cluster}-{name}": url for name, url in (others or {}).items()}}
    return _document(servers, ca, user=user, credentials=credentials, context=context)


def bootstrap(*, server: str, ca: str, cluster: str, token: str) -> bytes:
    """The kubeconfig with which a kubelet asks for its first client certificate; a secret while the token (ID.SECRET) lives.

    https://kubernetes.io/docs/reference/access-authn-authz/kubelet-tls-bootstrapping/

    Args:
        ca: path of the CA's certificates on the machine. The kubelet writes its own kubeconfig with what it finds here, and never
            again: certificates would be the same ones for ever.
    """
    return _document({cluster: server}, ca, user="kubelet-bootstrap", credentials={"token": token})


def server_of(content: bytes) -> str:
    """The URL that a kubeconfig of ours leads to; empty where it is none."""
    try:
        return str(yaml.safe_load(content)["clusters"][0]["cluster"]["server"])
    except (yaml.YAMLError, TypeError, KeyError, IndexError):
        return ""


def _document(
    servers: Mapping[str, str], ca: bytes | str, *, user: str, credentials: dict[str, str], context: str | None = None
) -> bytes:
    """``servers``: URL by cluster name; the first is the current context's. ``ca``: PEM, or the path of a file."""
    names = {cluster: f"{user}@{cluster}" for cluster in servers}
    current = next(iter(names))
    names[current] = context or names[current]
    authority = {"certificate-authority": ca} if isinstance(ca, str) else {"certificate-authority-data": _base64(ca)}
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {**authority, "server": server}} for cluster, server in servers.items()],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": name, "context": {"cluster": cluster, "user": user}} for cluster, name in names.items()],
        "current-context": names[current],
    }
    text: str = yaml.dump(document, Dumper=_DUMPER, sort_keys=False, default_flow_style=False, width=1 << 20)
    return text.encode()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
