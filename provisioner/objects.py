"""The cluster's own API objects: RBAC, policies, CoreDNS, bootstrap tokens, node labels. Server-side applied."""

from __future__ import annotations

import base64
import datetime as dt
import difflib
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import yaml

from provisioner import topology
from provisioner.cluster_api import ClusterApi, UnknownKind
from provisioner.config import Cluster, Node
from provisioner.errors import BadInput
from provisioner.pki import BootstrapToken
from provisioner.plan import CLUSTER, Change
from provisioner.rules.outside import expand, manifest_files
from provisioner.wait import wait_until

MANIFESTS = Path(__file__).resolve().parent / "manifests"
BOOTSTRAP_GROUP = "system:bootstrappers:provisioner:nodes"
BOOTSTRAP_TOKEN_LIFETIME = dt.timedelta(hours=1)

# How long the API may take to serve a kind that was just defined.
KIND_SECONDS = 30.0

Object = dict[str, Any]


def cluster_objects(cluster: Cluster, *, coredns_image: str) -> tuple[Object, ...]:
    """The objects every cluster has, in the order they are applied; the user's own manifests come last."""
    names = ["rbac", "coredns"]
    if cluster.network.plugin == "flannel":
        names.insert(1, "flannel")
    variables = {
        "bootstrap_group": BOOTSTRAP_GROUP,
        "coredns_image": coredns_image,
        "dns_domain": cluster.network.dns_domain,
        "dns_replicas": min(2, len(cluster.kubernetes_nodes)),
        "dns_service_ip": str(topology.dns_service_ip(cluster)),
    }
    return tuple(obj for name in names for obj in render(name, variables))


def render(name: str, variables: Mapping[str, Any]) -> tuple[Object, ...]:
    """The objects of one of our own manifests."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(MANIFESTS), undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 - YAML
    return tuple(yaml.safe_load_all(environment.get_template(f"{name}.yaml.j2").render(variables)))


def user_objects(cluster: Cluster, base: Path) -> tuple[Object, ...]:
    """The objects of ``manifests:`` in the order of the files, those of a directory by their names; a List is what is in it.

    Raises:
        BadInput: a file is missing, or is no Kubernetes object.
    """
    documents: list[Object] = []
    for name in cluster.manifests:
        path = expand(name, base)
        files = manifest_files(path) if path.is_dir() else [path]
        for file in files:
            try:
                found = [
                    one for document in yaml.safe_load_all(file.read_text()) if document is not None for one in _unpacked(document)
                ]
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise BadInput(f"{file}: cannot be read as YAML: {error}", hint="see `manifests:` in cluster.yaml") from error
            for document in found:
                if not _is_object(document):
                    raise BadInput(
                        f"{file}: a document without apiVersion, kind and metadata.name", hint="each must be a Kubernetes object"
                    )
                documents.append(document)
    return tuple(documents)


def _unpacked(document: Any) -> list[Any]:
    """The items of a List, which is no object by itself; else the document."""
    if isinstance(document, dict) and document.get("kind") == "List" and isinstance(document.get("items"), list):
        return list(document["items"])
    return [document]


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
        try:
            live = api.get(obj)
        except UnknownKind:
            # the definition of its kind comes with the same run
            live = None
        if live is None:
            changes.append(Change(CLUSTER, "objects", "object", describe(obj), "create"))
            continue
        before, after = _bare(live), _bare(api.apply(obj, dry_run=True))
        if before != after:
            changes.append(Change(CLUSTER, "objects", "object", describe(obj), "change", _diff(obj, before, after)))
    return tuple(changes)


def apply_all(api: ClusterApi, objects: Iterable[Object]) -> None:
    """Server-side apply in order. A kind that was defined a moment ago is waited for.

    Raises:
        WaitTimeout: the API does not get to know a kind.
    """
    for obj in objects:
        wait_until(
            f"{describe(obj)} is applied",
            partial(api.apply, obj),
            seconds=KIND_SECONDS,
            retry_on=(UnknownKind,),
            hint="whatever defines its kind must come first in `manifests`",
        )


def _diff(obj: Object, before: Object, after: Object) -> str:
    """A unified diff; empty of a Secret, whose content nobody is to see."""
    if obj["kind"] == "Secret":
        return ""
    old, new = (yaml.safe_dump(one, sort_keys=True).splitlines(keepends=True) for one in (before, after))
    return "".join(difflib.unified_diff(old, new, describe(obj), describe(obj)))


def _bare(obj: Object) -> Object:
    """An object without what every write changes."""
    metadata = {
        key: value for key, value in obj["metadata"].items() if key not in ("managedFields", "resourceVersion", "generation")
    }
    return {**{key: value for key, value in obj.items() if key != "status"}, "metadata": metadata}
