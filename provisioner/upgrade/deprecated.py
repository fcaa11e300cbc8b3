"""APIs that somebody has asked for since the API servers started, and that a newer version no longer has.

https://kubernetes.io/docs/reference/using-api/deprecation-guide/
"""

from __future__ import annotations

import re

from provisioner.cluster_api import ClusterApi, ClusterApiError
from provisioner.config import Node
from provisioner.upgrade.skew import Version

# apiserver_requested_deprecated_apis{group="policy",removed_release="1.25",resource="podsecuritypolicies",version="v1beta1"} 1
_METRIC = re.compile(r"^apiserver_requested_deprecated_apis\{(?P<labels>[^}]*)\} 1", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def removed(metrics: str, target: Version) -> tuple[str, ...]:
    """What was asked for and is gone in a version, by the metrics of one API server. Pure."""
    found = set()
    for match in _METRIC.finditer(metrics):
        labels = dict(_LABEL.findall(match["labels"]))
        release = labels.get("removed_release", "")
        if re.fullmatch(r"\d+\.\d+", release) and tuple(int(part) for part in release.split(".")) <= target.line:
            group = f"{labels['group']}/" if labels.get("group") else ""
            found.add(f"{labels.get('resource', '?')} of {group}{labels.get('version', '?')} (removed in {release})")
    return tuple(sorted(found))


def asked_for(api: ClusterApi, planes: tuple[Node, ...], target: Version) -> tuple[str, ...]:
    """As :func:`removed`, by the metrics of all API servers; one that does not tell is passed over."""
    found: set[str] = set()
    for node in planes:
        try:
            answer = api.request_to(node, "/metrics", timeout=20)
        except ClusterApiError:
            continue
        found.update(removed(answer.text, target) if answer.status == 200 else ())
    return tuple(sorted(found))
