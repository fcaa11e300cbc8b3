"""The API objects of the addons that a cluster has on. Pure."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from provisioner import objects
from provisioner.addons.table import HEADLAMP, LOCAL_PATH, METRICS_SERVER, Addon, wanted_by
from provisioner.config import Cluster
from provisioner.pki import CaName, Pki

# Tells an object that was made here from one of the same name that somebody else has put in its place.
LABEL = ("app.kubernetes.io/managed-by", "provisioner")
# As its certificate calls it, and API servers call it: NAME.NAMESPACE.svc.
METRICS_LEAF = "metrics-server-serving"


def addon_objects(cluster: Cluster, images: Mapping[str, str], pki: Pki) -> Mapping[str, tuple[objects.Object, ...]]:
    """The objects of every addon that is on, by component, in the order in which they are applied.

    Args:
        cluster: cluster.yaml.
        images: reference of each component's image.
        pki: issues metrics-server's serving certificate, and says whom the API servers shall believe.
    """
    return {addon.component: _objects_of(addon, cluster, images[addon.component], pki) for addon in wanted_by(cluster)}


def _objects_of(addon: Addon, cluster: Cluster, image: str, pki: Pki) -> tuple[objects.Object, ...]:
    variables: dict[str, Any] = {"image": image}
    if addon is METRICS_SERVER:
        leaf = pki.leaf(METRICS_LEAF)
        variables |= {
            "replicas": min(2, len(cluster.kubernetes_nodes)),
            "ca_bundle": _encoded(pki.trust(CaName.CLUSTER)),
            "certificate": _encoded(leaf.certificate),
            "key": _encoded(leaf.key),
        }
    elif addon is LOCAL_PATH:
        paths = [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": [cluster.addons.local_path_directory]}]
        variables |= {"config": json.dumps({"nodePathMap": paths})}
    else:
        assert addon is HEADLAMP  # noqa: S101 - the table has no other
    return tuple(_labelled(obj) for obj in objects.render(addon.component, variables))


def _encoded(pem: bytes) -> str:
    return base64.b64encode(pem).decode()


def _labelled(obj: objects.Object) -> objects.Object:
    metadata = obj["metadata"]
    return {**obj, "metadata": {**metadata, "labels": {**(metadata.get("labels") or {}), LABEL[0]: LABEL[1]}}}
