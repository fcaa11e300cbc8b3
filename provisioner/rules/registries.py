"""Rules about registries: their names, mirrors, and the files with credentials and CAs."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from provisioner.problems import Path as Where
from provisioner.problems import Problem, error, quoted, warning
from provisioner.registries import Unusable, read_ca, read_login
from provisioner.render import trust
from provisioner.rules import syntax
from provisioner.rules.outside import expand
from provisioner.rules.rule import Context

_FLAGS = ("image-credential-provider-config", "image-credential-provider-bin-dir")


def registry_mirrors(context: Context) -> Iterator[Problem]:
    """A registry is a host, with a port or without, and comes once; its endpoints are URLs. Where it has credentials, they go to
    its mirrors too, which then need TLS that is verified."""
    known = {registry.registry: registry for registry in context.cluster.containerd.registries}
    seen: set[str] = set()
    for index, mirror in enumerate(context.cluster.containerd.registry_mirrors):
        path: Where = ("containerd", "registryMirrors", index)
        has_login = mirror.registry in known and known[mirror.registry].credentials
        if mirror.registry != "_default" and (advice := _name_fault(mirror.registry)):
            yield error((*path, "registry"), f"{quoted(mirror.registry)}: {advice}")
        if mirror.registry in seen:
            yield error((*path, "registry"), f"{quoted(mirror.registry)} stands here twice; list all endpoints in one place")
        seen.add(mirror.registry)
        for position, endpoint in enumerate(mirror.endpoints):
            if fault := syntax.url_fault(endpoint):
                yield error((*path, "endpoints", position), fault)
                continue
            if "@" in urlsplit(endpoint).netloc:
                yield error(
                    (*path, "endpoints", position),
                    "has a login in the URL, which containerd does not use, and which is for many eyes here: name a file under"
                    " `credentials` of containerd.registries instead",
                )
                continue
            source = trust.mirror(endpoint, known)
            if has_login and (source.skip_verify or source.url.startswith("http://")):
                yield warning(
                    (*path, "endpoints", position),
                    f"is sent the password of {mirror.registry} over the network for anybody to read who is between; give it TLS"
                    " that is verified, or the registry no `credentials`",
                )


def _name_fault(name: str) -> str:
    """What is wrong with the name of a registry, as advice."""
    host, colon, port = name.partition(":")
    port_ok = not colon or (port.isdecimal() and port.isascii() and 1 <= int(port[:6]) <= 65535)
    if not syntax.host_fault(host) and port_ok:
        return ""
    return "give the registry's host alone" if "/" in name else "must be a host such as docker.io or registry.example:5000"


def registries_usable(context: Context) -> Iterator[Problem]:
    """A registry is a host, and comes once; its files are there and fit to use: credentials are their owner's alone (0600) and have
    two lines, `username` and `password`; a CA's certificate is in PEM. Credentials need TLS that is verified, or somebody between
    could read them. An image to be pulled for proof is one of that registry."""
    seen: set[str] = set()
    for index, registry in enumerate(context.cluster.containerd.registries):
        path: Where = ("containerd", "registries", index)
        if advice := _name_fault(registry.registry):
            yield error((*path, "registry"), f"{quoted(registry.registry)}: {advice}")
        if registry.registry in seen:
            yield error((*path, "registry"), f"{quoted(registry.registry)} stands here twice")
        seen.add(registry.registry)
        for key, name, read in (("credentials", registry.credentials, read_login), ("ca", registry.ca, read_ca)):
            if name is None:
                continue
            place = expand(name, context.base)
            try:
                read(place)
            except Unusable as fault:
                yield error((*path, key), f"{quoted(place)} {fault}")
        if registry.ca and registry.tls != "verify":
            yield error((*path, "ca"), f"is of no use with `tls: {registry.tls}`, which verifies nothing")
        if registry.tls != "verify":
            seen_by = (
                "sends the password over the network for anybody to read" if registry.credentials else "takes images from anybody"
            )
            yield warning(
                (*path, "tls"), f"{registry.tls} {seen_by} who is between; give `ca` instead, for a certificate of your own"
            )
        if registry.verify_image is not None and not registry.verify_image.startswith(f"{registry.registry}/"):
            yield error((*path, "verifyImage"), f"{quoted(registry.verify_image)} is no image of {registry.registry}")


def registry_logins_given(context: Context) -> Iterator[Problem]:
    """A kubelet has one configuration of credential providers: with registries that have credentials, it is provisioner's."""
    cluster = context.cluster
    if any(registry.credentials for registry in cluster.containerd.registries):
        for flag in _FLAGS:
            if flag in cluster.kubelet.flags:
                yield error(
                    ("kubelet", "flags", flag),
                    "excludes `credentials` of containerd.registries, which kubelets give by the same way",
                )
