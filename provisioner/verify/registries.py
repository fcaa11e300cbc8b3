"""The check of registries: every node reaches each, and gets what `verifyImage` names."""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from provisioner import registries
from provisioner.config import Cluster, Node, Registry
from provisioner.errors import ProvisionerError
from provisioner.patience import stretch
from provisioner.render.context import RegistryFiles
from provisioner.render.trust import Source, ca_path, proxy_of, sources_of
from provisioner.verify.model import CheckFailed, Context, each, listed, patiently
from provisioner.verify.probe import describe, shorten
from provisioner.wait import NotYet

# Where Go looks for the CAs that a system believes: the first file, and what lies in the directories.
# https://go.dev/src/crypto/x509/root_linux.go
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
# A shell command.
SYSTEM_CAS = (
    f"for file in {' '.join(_BUNDLES)}; do if [ -r $file ]; then cat $file; break; fi; done;"
    # the links there lead to what the bundle has
    " find /etc/ssl/certs /etc/pki/tls/certs -maxdepth 1 -type f ! -name ca-certificates.crt -exec cat {} + 2>/dev/null"
)
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[\sA-Za-z0-9+/=]+-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True)
class _Known:
    """What the machines know of registries: the files of cluster.yaml, and the CAs (PEM) of each node's system, by its name."""

    files: RegistryFiles
    system: Mapping[str, str]


def has_registries(cluster: Cluster) -> bool:
    """Whether cluster.yaml tells something of a registry."""
    return bool(cluster.containerd.registries or cluster.containerd.registry_mirrors)


def answer(context: Context) -> str:
    """Every node reaches each registry, by a mirror or itself, with CA and credentials of cluster.yaml; `verifyImage` is pulled."""
    files = registries.read_files(context.cluster, context.workspace.cluster_file.parent)
    ways = sources_of(context.cluster)
    nodes = context.cluster.kubernetes_nodes
    known = _Known(files, dict(each(nodes, lambda node: (node.name, _system_cas(context, node)))))
    unasked = each([(node, name) for name in ways for node in nodes], lambda pair: _ask(context, *pair, known))
    wanted = [registry for registry in context.cluster.containerd.registries if registry.verify_image]
    if wanted:
        context.probe.make_namespace()
        each([(node, registry) for registry in wanted for node in nodes], lambda pair: _pull(context, *pair))
    pulled = f"pulled on every node: {listed(registry.verify_image or '' for registry in wanted)}" if wanted else "none pulled"
    left_out = {url for urls in unasked for url in urls}
    asked = f"{listed(ways)} asked from every node" + (f", but for {listed(left_out)}, behind a proxy with TLS" if left_out else "")
    return f"{asked}; {pulled}"


def _ask(context: Context, node: Node, name: str, known: _Known) -> tuple[str, ...]:
    """The registry's greeting, by the first of its ways that gives it, asked over the node's own network.

    Returns the URLs that could not be asked from here, where no other has answered: a proxy that itself speaks TLS has TLS in TLS.

    https://github.com/opencontainers/distribution-spec/blob/main/spec.md#determining-support
    """
    itself, mirrors = sources_of(context.cluster)[name]
    failures, unasked = list[str](), list[str]()
    for source in (*mirrors, *((itself,) if itself.url else ())):
        if proxy_of(context.cluster, source.url).startswith("https://"):
            unasked.append(source.url)
            continue
        try:
            fault = _fault(context, node, source, known, known.files.logins.get(name))
        except CheckFailed as failure:
            fault = str(failure)
        if not fault:
            return ()
        failures.append(f"{source.url}: {fault}")
    if unasked:
        return tuple(unasked)
    raise CheckFailed(*(f"{node.name}: {name}: {failure}" for failure in failures))


def _fault(context: Context, node: Node, source: Source, known: _Known, login: tuple[str, str] | None) -> str:
    """What is wrong with a registry's greeting; empty for nothing.

    As containerd does: who has not asked for a password is not given it. One that gives out tokens is asked for one by containerd:
    its greeting says nothing of the credentials. Where cluster.yaml has none, pods have their own (imagePullSecrets), and what they
    get is for `verifyImage` to prove.

    Raises:
        CheckFailed: there is none.
    """
    status, asks = _greeting(context, node, source, known, None)
    if status == http.client.UNAUTHORIZED and login and "bearer" not in asks:
        if "basic" not in asks:
            return f"asks for no password, but for {listed(asks) or 'nothing'} (WWW-Authenticate), which containerd cannot give"
        status, _ = _greeting(context, node, source, known, login)
        if status == http.client.UNAUTHORIZED:
            return "refuses its credentials"
    return "" if status in (http.client.OK, http.client.UNAUTHORIZED) else f"is no registry: it answers {status}"


def _greeting(
    context: Context, node: Node, source: Source, known: _Known, login: tuple[str, str] | None
) -> tuple[int, frozenset[str]]:
    """Status of the answer, and the schemes by one of which it wants to be shown who asks.

    Raises:
        CheckFailed: there is none.
    """
    url, proxy = urlsplit(source.url), urlsplit(proxy_of(context.cluster, source.url))
    host, port = str(url.hostname), url.port or (443 if url.scheme == "https" else 80)
    target = f"{url.path.rstrip('/').removesuffix('/v2')}/v2/"
    headers = {"Host": url.netloc}
    if login:
        headers["Authorization"] = _basic(*login)
    to_proxy = {"Proxy-Authorization": _basic(unquote(proxy.username), unquote(proxy.password or ""))} if proxy.username else {}
    cas = {ca_path(name): ca for name, ca in known.files.cas.items()}
    way = (proxy.hostname, proxy.port or 80) if proxy.hostname else (host, port)
    with context.connections.forward(node, way[1], host=way[0]) as forward:
        connection = http.client.HTTPConnection("127.0.0.1", forward.port, timeout=stretch(context.seconds / 4))
        try:
            if proxy.hostname and url.scheme == "https":
                connection.set_tunnel(host, port, {"Host": f"{url.hostname}:{port}", **to_proxy})
            elif proxy.hostname:
                target, headers = f"http://{url.netloc}{target}", {**headers, **to_proxy}
            connection.connect()
            if url.scheme == "https":
                tls = _tls(known.system[node.name], cas.get(source.ca, b"").decode(), skip=source.skip_verify)
                connection.sock = tls.wrap_socket(connection.sock, server_hostname=host)
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            answer.read()
            challenges = answer.headers.get_all("WWW-Authenticate") or ()
            return answer.status, frozenset(scheme.lower() for text in challenges for scheme in text.split()[:1])
        except (OSError, http.client.HTTPException) as error:
            raise CheckFailed(f"no answer: {shorten(forward.error or f'{type(error).__name__}: {error}')}") from None
        finally:
            connection.close()


def _basic(name: str, password: str) -> str:
    return f"Basic {base64.b64encode(f'{name}:{password}'.encode()).decode()}"


def _system_cas(context: Context, node: Node) -> str:
    text = context.connections.run(node, SYSTEM_CAS, timeout=context.seconds / 4, sudo=False).text
    return "\n".join(_CERTIFICATE.findall(text))


def _tls(*cas: str, skip: bool) -> ssl.SSLContext:
    """Believes those CAs (PEM) alone: what this machine's own system believes is not what a node's does."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if skip:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for pem in filter(None, cas):
        context.load_verify_locations(cadata=pem)
    return context


def _pull(context: Context, node: Node, registry: Registry) -> None:
    """A pod of the image on one node. What it does when it runs is its own matter: it was pulled."""
    terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node.name]}]}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    spec: Mapping[str, Any] = context.probe.pod_spec(affinity=affinity, restartPolicy="Never")
    container = {**spec["containers"][0], "image": registry.verify_image, "imagePullPolicy": "Always"}
    del container["args"]
    # by numbers: a node's name may be as long as a pod's
    name = f"pull-{context.cluster.containerd.registries.index(registry)}-{context.cluster.nodes.index(node)}"
    pod = context.probe.object("v1", "Pod", name, spec={**spec, "containers": [container]})
    context.api.apply(pod)

    def look() -> str:
        live = context.api.get(pod) or {}
        status = ((live.get("status") or {}).get("containerStatuses") or [{}])[0]
        if not status.get("imageID"):
            raise NotYet(f"{node.name}: {registry.verify_image} is not pulled: {describe(live) if live else 'its pod is gone'}")
        return str(status["imageID"])

    patiently(look, context.seconds * 0.7)
    with contextlib.suppress(ProvisionerError):
        context.api.delete(pod, grace=0)
