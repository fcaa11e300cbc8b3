"""A valid cluster.yaml as plain data, and ways to change it: what the tests of the configuration start from."""

from __future__ import annotations

import copy
import json
from pathlib import Path

from provisioner.load import Loaded, parse

VERSIONS = ("1.36.3", "1.35.4")
# A misspelling, a missing key, a wrong kind and so on each start from this.
VALID: dict[str, object] = {
    "apiVersion": "provisioner/v1",
    "name": "demo",
    "kubernetes": {"version": "1.36.3"},
    "nodes": [
        {"name": "control-1", "address": "192.168.56.11", "roles": ["control-plane", "etcd"]},
        {"name": "control-2", "address": "192.168.56.12", "roles": ["control-plane", "etcd"]},
        {"name": "control-3", "address": "192.168.56.13", "roles": ["control-plane", "etcd"]},
        {"name": "worker-1", "address": "192.168.56.21", "roles": ["worker"], "labels": {"example.com/rack": "r1"}},
        {"name": "worker-2", "address": "192.168.56.22", "roles": ["worker"]},
    ],
    "network": {"podCidr": "10.244.0.0/16", "serviceCidr": "10.96.0.0/16", "nodePrefix": 24},
    "etcd": {"heartbeatInterval": 100, "electionTimeout": 1000},
}


class Gone:
    """Marks a key to take away in :func:`changed`."""


GONE = Gone()


def changed(changes: dict[str, object]) -> dict[str, object]:
    """The valid file with values set by path: ``{"nodes.0.roles": [...], "network": GONE}``."""
    data = copy.deepcopy(VALID)
    for dotted, value in changes.items():
        *parents, last = dotted.split("/") if "/" in dotted else dotted.split(".")
        holder: object = data
        for part in parents:
            if isinstance(holder, list):
                holder = holder[int(part)]
            elif isinstance(holder, dict):
                holder = holder.setdefault(part, {})
        if isinstance(holder, list):
            holder[int(last)] = value
        elif isinstance(holder, dict) and isinstance(value, Gone):
            holder.pop(last, None)
        elif isinstance(holder, dict):
            holder[last] = value
    return data


def check(changes: dict[str, object], base: Path = Path("/nonexistent")) -> Loaded:
    """Parse the valid file with changes."""
    # JSON is YAML, and says the same to every reader
    return parse(json.dumps(changed(changes)), base / "cluster.yaml", known_versions=VERSIONS)


def node(name: str, address: str, *roles: str, **more: object) -> dict[str, object]:
    """One entry of ``nodes``."""
    return {"name": name, "address": address, "roles": list(roles), **more}
