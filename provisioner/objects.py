"""The cluster's own API objects: RBAC, policies, CoreDNS, bootstrap tokens, node labels. Server-side applied."""

from __future__ import annotations

import base64
import datetime as dt
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from provisioner import topology
from provisioner.cluster_api import ClusterApi
from provisioner.config import Cluster, Node
from provisioner.errors import BadInput
from provisioner.pki import BootstrapToken
from provisioner.plan import CLUSTER, Change

MANIFESTS = Path(__file__).resolve().parent / "manifests"
BOOTSTRAP_GROUP = "system:bootstrappers:provisioner:nodes"
BOOTSTRAP_TOKEN_LIFETIME = dt.timedelta(hours=1)

Object = dict[str, Any]


def cluster_objects(cluster: Cluster, *, coredns_image: str) -> tuple[Object, ...]:
    """The objects every cluster has, in the order they are applied; the user's own manifests come last."""
    names = ["rbac", "coredns"]
    if cluster.network.plugin == "flannel":
        names.insert(1, "flannel")
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(MANIFESTS), undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 - YAML
    variables = {
        "bootstrap_group": BOOTSTRAP_GROUP,
        "coredns_image": coredns_image,
        "dns_domain": cluster.network.dns_domain,
        "dns_replicas": min(2, len(cluster.kubernetes_nodes)),
        "dns_service_ip": str(topology.dns_service_ip(cluster)),
    }
    documents: list[Object] = []
    for name in names:
        documents += yaml.safe_load_all(environment.get_template(f"{name}.yaml.j2").render(variables))
    return tuple(documents)


def user_objects(cluster: Cluster, base: Path) -> tuple[Object, ...]:
    """The objects of ``manifests:``; directories are read in the order of their file names.

    Raises:
        BadInput: a file is missing, or is no Kubernetes object.
    """
    documents: list[Object] = []
    for name in cluster.manifests:
        path = base / name
        files = sorted(path.glob("*.y*ml")) if path.is_dir() else [path]
        for file in files:
            try:
                found = [document for document in yaml.safe_load_all(file.read_text()) if document is not None]
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise BadInput(f"{file}: cannot be read as YAML: {error}", hint="see `manifests:` in cluster.yaml") from error
            for document in found:
                if not _is_object(document):
                    raise BadInput(
                        f"{file}: a document without apiVersion, kind and metadata.name", hint="each must be a Kubernetes object"
                    )
            documents += found
    return tuple(documents)


def _is_object(document: object) -> bool:
    if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict):
        return False
    texts = (document.get("apiVersion"), document.get("kind"), document["metadata"].get("name"))
    return all(isinstance(text, str) and text for text in texts)


def describe(obj: Mapping[str, Any]) -> str:
    """Kind and name, for people."""
    metadata = obj["metadata"]
    return f"{obj['kind']} {metadata['namespace'] + '/' if metadata.get('namespace') else ''}{metadata['name']}"


def node_labels(cluster: Cluster) -> tuple[Object, ...]:
    """The labels of every Node, as objects to apply once the kubelets have registered them."""
    return tuple(
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": node.name, "labels": topology.role_labels_of(node)}}
        for node in cluster.kubernetes_nodes
    )


def bootstrap_secret(token: BootstrapToken, node: Node, now: dt.datetime) -> Object:
    """The Secret behind a bootstrap token: one node, one hour.

    https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/
    """
    fields = {
        "token-id": token.id,
        "token-secret": token.secret,
        "description": f"TLS bootstrap of {node.name}, made by provisioner",
        "expiration": (now + BOOTSTRAP_TOKEN_LIFETIME).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "usage-bootstrap-authentication": "true",
        "auth-extra-groups": BOOTSTRAP_GROUP,
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"bootstrap-token-{token.id}", "namespace": "kube-system"},
        "type": "bootstrap.kubernetes.io/token",
        "data": {name: base64.b64encode(value.encode()).decode() for name, value in fields.items()},
    }


def bootstrap_secrets(api: ClusterApi) -> tuple[Object, ...]:
    """The Secrets of bootstrap tokens that this program has made, as far as they are still there."""
    found = api.items("/api/v1/namespaces/kube-system/secrets", fieldSelector="type=bootstrap.kubernetes.io/token")
    return tuple({"apiVersion": "v1", "kind": "Secret", **secret} for secret in found if bootstrapped(secret))


def bootstrapped(secret: Mapping[str, Any]) -> str:
    """The node that a bootstrap token was made for; empty where it is not ours."""
    text = base64.b64decode((secret.get("data") or {}).get("description") or "").decode(errors="replace")
    made = re.fullmatch(r"TLS bootstrap of (\S+), made by provisioner", text)
    return made[1] if made else ""


def deletions(secrets: Iterable[Mapping[str, Any]]) -> tuple[Change, ...]:
    """Tokens that a run which was cut short has left: they are of no use to anybody good."""
    return tuple(Change(CLUSTER, "settle", "object", describe(secret), "delete") for secret in secrets)


def difference(api: ClusterApi, objects: Iterable[Object]) -> tuple[Change, ...]:
    """Which objects would change: a server-side apply as a dry run, compared with what is stored."""
    changes = []
    for obj in objects:
        live = api.get(obj)
        if live is None:
            changes.append(Change(CLUSTER, "objects", "object", describe(obj), "create"))
        elif _bare(api.apply(obj, dry_run=True)) != _bare(live):
            changes.append(Change(CLUSTER, "objects", "object", describe(obj), "change"))
    return tuple(changes)


def _bare(obj: Object) -> Object:
    """An object without what every write changes."""
    metadata = {
        key: value for key, value in obj["metadata"].items() if key not in ("managedFields", "resourceVersion", "generation")
    }
    return {**{key: value for key, value in obj.items() if key != "status"}, "metadata": metadata}
