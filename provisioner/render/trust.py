"""Whom containerd asks for a registry's images, whom it believes, and where it looks for that: as data. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from provisioner.config import Cluster, Registry

CERTS_D = "/etc/containerd/certs.d"
CA_FILE = "provisioner-ca.crt"
# The directory in which containerd looks for registries that have none.
ANY = "_default"
# Docker Hub's API is not at the name its images carry.
_API_HOSTS = {"docker.io": "registry-1.docker.io"}


def ca_path(registry: str) -> str:
    """Where the CAs of a registry lie on a node."""
    return f"{CERTS_D}/{registry}/{CA_FILE}"


@dataclass(frozen=True, slots=True)
class Source:
    """One place that containerd asks for a registry's images, as hosts.toml has it."""

    url: str
    ca: str = ""
    skip_verify: bool = False

    def to_vars(self) -> dict[str, Any]:
        """For the template."""
        return {"url": self.url, "ca": self.ca, "skip_verify": self.skip_verify}


def sources_of(cluster: Cluster) -> Mapping[str, tuple[Source, tuple[Source, ...]]]:
    """For each registry that cluster.yaml tells something of: itself, and the mirrors that are asked first, in order.

    A mirror that is a registry of cluster.yaml too is spoken to as that one is.
    """
    known = {registry.registry: registry for registry in cluster.containerd.registries}
    mirrors = {mirror.registry: mirror.endpoints for mirror in cluster.containerd.registry_mirrors}
    names = dict.fromkeys((*mirrors, *known))
    return {name: (_itself(name, known), tuple(_mirror(url, known) for url in mirrors.get(name, ()))) for name in names}


def _itself(name: str, known: Mapping[str, Registry]) -> Source:
    registry = known.get(name)
    if name == ANY:
        # containerd puts in the registry of the image
        return Source("")
    scheme = "http" if registry is not None and registry.tls == "none" else "https"
    return _with_trust(f"{scheme}://{_API_HOSTS.get(name, name)}", registry)


def _mirror(url: str, known: Mapping[str, Registry]) -> Source:
    return _with_trust(url, known.get(urlsplit(url).netloc))


def _with_trust(url: str, registry: Registry | None) -> Source:
    if registry is None or url.startswith("http://"):
        return Source(url)
    return Source(url, ca_path(registry.registry) if registry.ca else "", registry.tls == "skip-verify")
