"""Whom containerd asks for a registry's images, by which way, whom it believes, and where it looks for that: as data. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any
from urllib.parse import urlsplit

from provisioner.config import Cluster, Registry
from provisioner.rules.syntax import ip

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
    return {name: (_itself(name, known), tuple(mirror(url, known) for url in mirrors.get(name, ()))) for name in names}


def _itself(name: str, known: Mapping[str, Registry]) -> Source:
    registry = known.get(name)
    if name == ANY:
        # containerd puts in the registry of the image
        return Source("")
    scheme = "http" if registry is not None and registry.tls == "none" else "https"
    return _with_trust(f"{scheme}://{_API_HOSTS.get(name, name)}", registry)


def mirror(url: str, known: Mapping[str, Registry]) -> Source:
    """A mirror as containerd speaks to it, for registries of cluster.yaml by their names."""
    return _with_trust(url, known.get(urlsplit(url).netloc))


def _with_trust(url: str, registry: Registry | None) -> Source:
    if registry is None or url.startswith("http://"):
        return Source(url)
    return Source(url, ca_path(registry.registry) if registry.ca else "", registry.tls == "skip-verify")


def no_proxy(cluster: Cluster) -> tuple[str, ...]:
    """What must never go through an HTTP proxy: the cluster's own addresses, and what the user adds."""
    own = ("127.0.0.1", "localhost", str(cluster.network.pod_cidr), str(cluster.network.service_cidr))
    # not the machines' addresses: containerd calls none of them, and each new one would restart it everywhere
    return (*own, f".{cluster.network.dns_domain}", *cluster.http_proxy.no_proxy)


def proxy_of(cluster: Cluster, url: str) -> str:
    """The proxy by which containerd asks a URL; empty where it asks directly.

    As Go reads HTTP_PROXY, HTTPS_PROXY and NO_PROXY: https://pkg.go.dev/golang.org/x/net/http/httpproxy
    """
    parts = urlsplit(url)
    host, port = str(parts.hostname), str(parts.port or (443 if parts.scheme == "https" else 80))
    address = ip(host)
    if (address and address.is_loopback) or any(_matches(entry.strip().lower(), host, port) for entry in no_proxy(cluster)):
        return ""
    return cluster.http_proxy.https if parts.scheme == "https" else cluster.http_proxy.http


def _matches(entry: str, host: str, port: str) -> bool:
    """Whether an entry of NO_PROXY means a host: all, a range, an address, a name and all below it; of one port or any."""
    address = ip(host)
    if entry == "*":
        return True
    if "/" in entry:
        return address is not None and address in ip_network(entry, strict=False)
    name, its_port = entry, ""
    if ":" in entry and not ip(entry):
        name, _, its_port = entry.rpartition(":")
    name = name.strip("[]").removeprefix("*")
    if its_port not in ("", port):
        return False
    if address:
        return ip(name) == address
    return host == name or host.endswith(name if name.startswith(".") else f".{name}")
