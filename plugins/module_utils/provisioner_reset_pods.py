# Apache-2.0 (see LICENSE)
"""What proves that something in the kernel belongs to a pod of ours.

Names do not: podman and nerdctl call the same CNI plugins, and these name chains, namespaces and tables alike for everybody. Proof
is what our containerd remembers, and what is written down beside each container about the network it is in.
"""

from __future__ import annotations

import glob
import hashlib
import json
import mmap
import os
import re

# What our containerd remembers of its containers: numbers and namespaces of pods are in it as text.
MEMORY = "/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db"
CONFIGURATIONS = "/etc/cni/net.d"
# containerd plugs each pod into this one too.
LOOPBACK = "cni-loopback"


class Pods:
    """What is known of our pods and their network, before anything is removed."""

    def __init__(self, machine):
        self._network = machine.footprint["cni_network"]
        self._there = machine.has_pods
        # stays readable when the file is deleted
        self._memory = _map(MEMORY) if self._there else b""
        cache = machine.footprint["cni_cache"]
        known = machine.was("directories").get(os.path.join(cache, "results"), {}).get("entries", ())
        noted = [one for one in _noted(os.path.join(cache, "results")) if os.path.basename(one["path"]) not in known]
        self._containers = {one["containerId"] for one in noted if self.is_ours(one["networkName"], one["containerId"])}
        ours = [one for one in noted if one["containerId"] in self._containers]
        self._results = [one["path"] for one in ours]
        self._namespaces = {os.path.basename(one["netns"]) for one in ours}
        self._chains = {name for container in self._containers for name in _chains(self._network, container)}
        # whether nobody else calls the plugins on this machine, as far as can be seen
        others = {
            *_configured(),
            *(one["networkName"] for one in noted if one not in ours),
            *_names(os.path.join(cache, "networks")),
        }
        self.alone = self._there and machine.before is not None and not others - {self._network, LOOPBACK}

    def is_ours(self, network, container):
        """Whether a container in a network is a pod of ours."""
        return self._there and (network == self._network or self.is_remembered(container))

    def is_remembered(self, text):
        """Whether our containerd remembers a number of a container, or a name of a namespace."""
        return bool(text) and self._memory.find(text.encode()) >= 0

    def has_namespace(self, name):
        """Whether a network namespace is one of our pods'."""
        return self._there and (name in self._namespaces or self.is_remembered(name))

    def has_container(self, container):
        """Whether a container is one of our pods'."""
        return self._there and (container in self._containers or self.is_remembered(container))

    def has_chain(self, name):
        """Whether a chain of iptables has the name that the plugins give to one of our pods."""
        return name in self._chains

    def results(self):
        """What is written down about our pods' networks."""
        return [path for path in self._results if os.path.lexists(path)]


def _map(path):
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    except (OSError, ValueError):
        return b""


def _names(directory):
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _noted(directory):
    """Which container is in which network and namespace, by what libcni has written down."""
    found = []
    for path in sorted(glob.glob(os.path.join(glob.escape(directory), "*"))):
        document = _read(path)
        if document:
            found.append({"path": path, **{key: str(document.get(key) or "") for key in ("containerId", "networkName", "netns")}})
    return found


def _configured():
    """Names of the networks that somebody may call the plugins for."""
    paths = [path for path in sorted(glob.glob(CONFIGURATIONS + "/*")) if re.search(r"\.conf(list)?$", path)]
    return {str(_read(path).get("name") or path) for path in paths}


def _chains(network, container):
    """https://github.com/containernetworking/plugins/blob/main/pkg/utils/utils.go"""
    digest = hashlib.sha512((network + container).encode()).hexdigest()
    return [(prefix + digest)[:28] for prefix in ("CNI-", "CNI-DN-", "CNI-SN-")]
