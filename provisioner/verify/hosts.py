"""Checks of the machines themselves with testinfra, over the driver's own SSH connections: units, ports, files, keys."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from provisioner import topology
from provisioner.config import Node, Role
from provisioner.errors import ProvisionerError
from provisioner.pki import CaName, bundle_for
from provisioner.verify.model import CheckFailed, Context, each, plural
from provisioner.verify.nodes import units_of
from provisioner.verify.probe import shorten

if TYPE_CHECKING:
    from testinfra.host import Host

# The kubelet's unauthenticated port of old (--read-only-port).
KUBELET_READ_ONLY_PORT = 10255
CA_KEY = "/etc/kubernetes/kube-controller-manager/ca.key"

# Prints [path, mode, owner, [sha256 of each private key's DER bytes]] of every file with a private key, in places where one
# could lie. Pods' volumes are the users' own.
_FIND_KEYS = r"""
import base64, hashlib, json, os, pwd, re, stat
pem = re.compile(rb"-----BEGIN (?:EC |RSA )?PRIVATE KEY-----\s+([A-Za-z0-9+/=\s]+?)-----END", re.S)
found, seen = [], set()
for top in ("/etc", "/root", "/home", "/tmp", "/var/tmp", "/opt", "/srv", "/usr/local", "/var/lib/etcd", "/var/lib/provisioner",
            "/var/lib/kubelet/pki", "/var/lib/kube-apiserver", "/run/provisioner"):
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            try:
                status = os.stat(path)
                if not stat.S_ISREG(status.st_mode) or status.st_size > 1 << 20 or (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                with open(path, "rb") as file:
                    data = file.read()
                if data.startswith(b"\x7fELF"):
                    continue
                keys = [hashlib.sha256(base64.b64decode(body)).hexdigest() for body in pem.findall(data)]
                embedded = b"client-key-data:" in data or b"token:" in data and b"kind: Config" in data
                if keys or embedded:
                    try:
                        owner = pwd.getpwuid(status.st_uid).pw_name
                    except KeyError:
                        owner = str(status.st_uid)
                    found.append([path, stat.S_IMODE(status.st_mode), owner, keys])
            except (OSError, ValueError):
                pass
print(json.dumps(found))
"""


def connect(context: Context, node: Node) -> Host:
    """testinfra's view of a machine, by the connection the driver has already: same keys, same bastion, same sudo."""
    from testinfra.backend.base import BaseBackend, CommandResult  # noqa: PLC0415 - slow to import, needed by one level only
    from testinfra.host import Host  # noqa: PLC0415

    class Backend(BaseBackend):  # type: ignore[misc] # testinfra has no types
        NAME = "provisioner"

        def run(self, command: str, *args: str, **_: Any) -> CommandResult:
            line = self.get_command(command, *args)
            done = context.connections.run(node, line, timeout=context.seconds / 2)
            return self.result(done.code, line.encode(), done.stdout, done.stderr)

    backend = Backend(node.name)
    host = Host(backend)
    backend.set_host(host)
    return host


def services(context: Context) -> str:
    """Every unit is running and starts with the machine, by testinfra's `service`."""

    def look(node: Node) -> int:
        host = connect(context, node)
        names = units_of(context, node)
        wrong = []
        for name in names:
            service = host.service(name)
            if not service.is_running:
                wrong.append(f"{node.name}: {name} is not running")
            if not service.is_enabled:
                wrong.append(f"{node.name}: {name} does not start with the machine (not enabled)")
        if wrong:
            raise CheckFailed(*wrong)
        return len(names)

    return f"{_sum(context, look)} units running and enabled on {_machines(context)}"


def ports_of(context: Context, node: Node) -> dict[int, str]:
    """TCP ports on which this machine must listen, and who."""
    ports: dict[int, str] = {}
    if node.has(Role.ETCD):
        ports |= {topology.ETCD_CLIENT_PORT: "etcd (clients)", topology.ETCD_PEER_PORT: "etcd (peers)"}
    if node.has(Role.CONTROL_PLANE):
        ports |= {
            topology.APISERVER_PORT: "kube-apiserver",
            topology.CONTROLLER_MANAGER_PORT: "kube-controller-manager",
            topology.SCHEDULER_PORT: "kube-scheduler",
            topology.API_HEALTH_PORT: "api-proxy (the apiserver's health)",
        }
    if node.is_kubernetes_node:
        ports |= {
            topology.KUBELET_PORT: "kubelet",
            topology.KUBE_PROXY_HEALTH_PORT: "kube-proxy",
            topology.API_PROXY_PORT: "api-proxy",
        }
    return ports


def ports(context: Context) -> str:
    """Every component listens, the kubelet's read-only port is shut, and what is for the machine itself is bound to 127.0.0.1."""

    def look(node: Node) -> int:
        listening: dict[int, set[str]] = {}
        for socket in connect(context, node).socket.get_listening_sockets():
            if socket.startswith("tcp://"):
                address, _, port = socket.removeprefix("tcp://").rpartition(":")
                listening.setdefault(int(port), set()).add(address)
        wanted = ports_of(context, node)
        wrong = [f"{node.name}: nothing listens on {port} ({who})" for port, who in wanted.items() if port not in listening]
        if KUBELET_READ_ONLY_PORT in listening:
            wrong.append(f"{node.name}: the kubelet's read-only port {KUBELET_READ_ONLY_PORT} is open")
        for port in (topology.API_PROXY_PORT, topology.API_HEALTH_PORT, topology.ETCD_METRICS_PORT):
            if outside := {address for address in listening.get(port, set()) if not address.startswith("127.")}:
                wrong.append(f"{node.name}: port {port} is bound to {', '.join(sorted(outside))}, not to 127.0.0.1 alone")
        if wrong:
            raise CheckFailed(*wrong)
        return len(wanted)

    return f"{_sum(context, look)} ports listening on {_machines(context)}, read-only ports shut"


def files(context: Context) -> str:
    """Every certificate, key and kubeconfig of a machine is there with its mode and owner, by testinfra's `file`."""

    def look(node: Node) -> int:
        host = connect(context, node)
        wanted = bundle_for(context.cluster, context.pki, node)
        wrong = []
        for file in wanted:
            found = host.file(file.path)
            try:
                # each is a round trip, so whether the file exists is asked only where these fail
                mode, owner = found.mode, found.user
            except (AssertionError, RuntimeError, ValueError):
                wrong.append(f"{node.name}: {file.path} {'cannot be looked at' if found.exists else 'is missing'}")
                continue
            if mode != file.mode:
                wrong.append(f"{node.name}: {file.path} has mode {mode:04o}, not {file.mode:04o}")
            if owner != file.owner:
                wrong.append(f"{node.name}: {file.path} belongs to {owner}, not to {file.owner}")
        if wrong:
            raise CheckFailed(*wrong)
        return len(wanted)

    return f"{_sum(context, look)} files with their modes and owners on {_machines(context)}"


def keys(context: Context) -> str:
    """No private key is readable to others, no CA key lies where it does not belong."""
    authorities = {digest: name for name in CaName for digest in key_digests(context.pki.cas[name].key)}
    # in a rotation: those that do not sign have no place on any machine
    idle = {digest for ca in context.pki.others.values() for digest in key_digests(ca.key)}

    def look(node: Node) -> int:
        found = json.loads(connect(context, node).check_output("python3 -c %s", _FIND_KEYS))
        if not found:
            raise CheckFailed(f"{node.name}: the search found no private key at all, not even those that must be there")
        wrong = []
        for path, mode, owner, digests in found:
            ours = path.startswith(("/etc/kubernetes/", "/etc/etcd/", "/var/lib/kubelet/pki/"))
            if ours and mode & 0o077:
                wrong.append(f"{node.name}: {path} holds a key and has mode {mode:04o} (owner {owner})")
            for name in {authorities[digest] for digest in digests if digest in authorities}:
                if not (name is CaName.CLUSTER and node.has(Role.CONTROL_PLANE) and path == CA_KEY):
                    wrong.append(f"{node.name}: {path} holds the private key of the {name} CA, which has no place there")
            if idle.intersection(digests):
                wrong.append(f"{node.name}: {path} holds the private key of a CA that does not sign")
        if wrong:
            raise CheckFailed(*wrong)
        return len(found)

    return f"{_sum(context, look)} files with keys on {_machines(context)}; of CAs only {CA_KEY} on control planes"


def key_digests(pem: bytes) -> tuple[str, ...]:
    """sha256 of a private key in every encoding it may be stored in; such a sum gives nothing away."""
    key = load_pem_private_key(pem, None)
    forms = (PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL)
    given = base64.b64decode(b"".join(pem.split(b"-----")[2].split()))
    ders = [given, *(key.private_bytes(Encoding.DER, form, NoEncryption()) for form in forms)]
    return tuple(dict.fromkeys(hashlib.sha256(der).hexdigest() for der in ders))


def _machines(context: Context) -> str:
    return plural(len(context.cluster.nodes), "machine")


def _sum(context: Context, look: Callable[[Node], int]) -> int:
    return sum(each(context.cluster.nodes, _asserting(look)))


def _asserting(look: Callable[[Node], int]) -> Callable[[Node], int]:
    """testinfra reports a command that failed with AssertionError or RuntimeError: a machine's fault, not a bug of ours."""

    def guarded(node: Node) -> int:
        try:
            return look(node)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise CheckFailed(f"{node.name}: {shorten(str(error) or type(error).__name__)}") from None
        except ProvisionerError as error:
            raise CheckFailed(f"{node.name}: {error.message}") from None

    return guarded
