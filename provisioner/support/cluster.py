"""What the apiservers and the members of etcd are asked. No Secret is ever asked for; objects go without what may hold one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from provisioner.cluster_api import ClusterApi, Object, message_of
from provisioner.config import Cluster, Node
from provisioner.errors import ProvisionerError
from provisioner.etcd_api import EtcdApi
from provisioner.redact import MARK, redact, redact_document
from provisioner.ssh import Connections
from provisioner.support.model import Files, Question
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from provisioner.pki import Pki

# Objects of each kind, the most that are fetched.
LIMIT = "2000"
# Seconds.
QUICK = 10.0
SLOW = 30.0
# Annotations with a copy of the object, values and all.
COPIES = ("kubectl.kubernetes.io/last-applied-configuration",)

Change = Callable[[Object], Object]


def plain(item: Object) -> Object:
    """An object without its book-keeping and copies of itself."""
    metadata = {key: value for key, value in (item.get("metadata") or {}).items() if key != "managedFields"}
    if notes := metadata.get("annotations"):
        metadata["annotations"] = {key: value for key, value in notes.items() if key not in COPIES}
    return {**item, "metadata": metadata}


def pod(item: Object) -> Object:
    """A Pod without the values of its environment."""
    spec = dict(item.get("spec") or {})
    for kind in ("containers", "initContainers", "ephemeralContainers"):
        if kind in spec:
            spec[kind] = [
                {**one, **({"env": [{"name": entry.get("name")} for entry in one["env"]]} if one.get("env") else {})}
                for one in spec[kind]
            ]
    return plain({**item, "spec": spec})


def config_map(item: Object) -> Object:
    """A ConfigMap; a value in which anything looks secret goes as a whole."""
    data = {key: value if redact(str(value)) == value else MARK for key, value in (item.get("data") or {}).items()}
    return plain({**item, "data": data, **({"binaryData": sorted(item["binaryData"])} if item.get("binaryData") else {})})


# File, what it is, path of the API, and what becomes of each object.
LISTS: tuple[tuple[str, str, str, Change], ...] = (
    ("nodes", "Nodes", "/api/v1/nodes", plain),
    ("pods", "Pods", "/api/v1/pods", pod),
    ("events", "Events", "/api/v1/events", plain),
    ("services", "Services", "/api/v1/services", plain),
    ("configmaps-kube-system", "ConfigMaps of kube-system", "/api/v1/namespaces/kube-system/configmaps", config_map),
    ("leases-kube-system", "leases", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases", plain),
    ("apiservices", "APIServices", "/apis/apiregistration.k8s.io/v1/apiservices", plain),
)


def api_questions(cluster: Cluster, api: Future[ClusterApi]) -> Iterator[Question]:
    """Objects through whichever apiserver answers, and each apiserver's own health."""
    for name, what, path, change in LISTS:
        yield Question(f"API: {what}", SLOW, partial(_list, api, name, path, change))
    for node in cluster.control_planes:
        yield Question(f"{node.name}: readyz and version of its apiserver", SLOW, partial(_health, api, node))


def _list(api: Future[ClusterApi], name: str, path: str, change: Change, seconds: float) -> Files:
    answer = api.result(seconds).request("GET", path, query={"limit": LIMIT}, timeout=seconds / 2)
    if answer.status != 200:
        raise ProvisionerError(f"{answer.node} answered {answer.status}: {message_of(answer)}")
    document = answer.json()
    items = [redact_document(change(item)) for item in document.get("items") or ()]
    left = (document.get("metadata") or {}).get("remainingItemCount") or 0
    return {f"api/{name}.json": _json({"items": items, "leftOut": left})}


def _health(api: Future[ClusterApi], node: Node, seconds: float) -> Files:
    found = {}
    for name, path, query in (
        ("readyz.txt", "/readyz", {"verbose": ""}),
        ("livez.txt", "/livez", {"verbose": ""}),
        ("version.json", "/version", {}),
    ):
        answer = api.result(seconds).request_to(node, path, query=query, timeout=seconds / 3)
        found[f"machines/{node.name}/apiserver/{name}"] = f"{answer.text}\n(HTTP {answer.status})\n" if query else answer.text
    return found


def etcd_questions(cluster: Cluster, workspace: Workspace, connections: Connections, pki: Pki) -> Iterator[Question]:
    """Each member's own view."""
    for node in cluster.etcd_members:
        yield Question(f"{node.name}: its etcd", QUICK, partial(_member, workspace, connections, pki, node))


def _member(workspace: Workspace, connections: Connections, pki: Pki, node: Node, seconds: float) -> Files:
    view: dict[str, object] = {}
    with EtcdApi(node, workspace, connections, pki, timeout=seconds / 3) as api:
        view["status"] = asdict(api.status())
        rest: dict[str, Callable[[], list[dict[str, object]]]] = {
            "members": lambda: [asdict(member) for member in api.members(linearizable=False)],
            "alarms": lambda: [asdict(alarm) for alarm in api.alarms()],
        }
        for name, ask in rest.items():
            try:
                view[name] = ask()
            except ProvisionerError as error:
                # without a quorum a member still tells its status
                view[name] = {"error": error.message}
    return {f"machines/{node.name}/etcd.json": _json(view)}


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, indent=1, default=str)
