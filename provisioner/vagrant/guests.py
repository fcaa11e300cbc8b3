"""Asking the machines what Vagrant does not tell: their addresses, and whether a processor of hardware runs them.

On the same way as everything later: who cannot be asked could not be provisioned either.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from ipaddress import IPv4Interface
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from provisioner.config import Cluster, Node, Role
from provisioner.errors import ProvisionerError
from provisioner.ssh import Connections, SshError, Trouble, parallel
from provisioner.ssh.known_hosts import HostKey, KnownHosts
from provisioner.vagrant.plan import Guest
from provisioner.vagrant.tool import Access
from provisioner.workspace import Workspace

# Lines: addresses, default routes, the kind of virtual machine. iproute2 is elsewhere on PATH for users who are not root.
QUESTION = """\
PATH=$PATH:/usr/sbin:/sbin
ip -json -4 address show scope global && echo && ip -json -4 route show default && echo && systemd-detect-virt || true
"""
# What systemd-detect-virt(1) says of QEMU without a hypervisor of hardware's below it.
EMULATED = "qemu"


def ask(accesses: Sequence[Access]) -> tuple[dict[str, Guest], dict[str, HostKey]]:
    """What each machine says, and the host key that it has; both by Vagrant's name.

    Raises:
        ProvisionerError: some cannot be reached, or do not answer as expected; the details name them all.
    """
    # a node's name is a DNS label, a machine's of Vagrant's need not be one
    by_node = {f"machine-{number}": access for number, access in enumerate(accesses, 1)}
    nodes = [_node(name, access, access.keys[0]) for name, access in by_node.items()]
    with TemporaryDirectory(prefix="provisioner-vagrant-") as name:
        workspace = Workspace(Path(name), Path(name) / "cluster.yaml")
        with Connections(Cluster(name="vagrant", nodes=tuple(nodes)), workspace) as connections:

            def one(node: Node) -> tuple[Guest, HostKey]:
                access = by_node[node.name]
                key, text = _answer(connections, node.name, access)
                (host_key, *_) = KnownHosts(workspace.known_hosts).keys_of(access.host, access.port)
                return read_answer(access.name, text, key), host_key

            answers = parallel(nodes, one)
    failures = {by_node[name].name: answer for name, answer in answers.items() if isinstance(answer, ProvisionerError)}
    if failures:
        first, error = next(iter(failures.items()))
        raise ProvisionerError(
            f"{', '.join(failures)}: running, as Vagrant says, but not to be asked over SSH",
            hint=f"see whether `vagrant ssh {first}` works; {error.hint}",
            details=tuple(f"{name}: {failure.message.partition(': ')[2] or failure.message}" for name, failure in failures.items()),
        )
    told = {by_node[name].name: answer for name, answer in answers.items() if not isinstance(answer, ProvisionerError)}
    return {name: guest for name, (guest, _) in told.items()}, {name: key for name, (_, key) in told.items()}


def read_answer(name: str, text: str, key: Path) -> Guest:
    """A machine's answer to :data:`QUESTION`.

    Raises:
        ProvisionerError: it is none: the machine has no iproute2 that writes JSON.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    documents = [line for line in lines if line.startswith("[")]
    try:
        interfaces, routes = (json.loads(line) for line in documents[:2])
        addresses = {entry["ifname"]: _addresses(entry) for entry in interfaces if entry}
        default = next((str(route["dev"]) for route in routes if route.get("dst") == "default" and "dev" in route), "")
    except (ValueError, TypeError, KeyError):
        raise ProvisionerError(
            f"{name}: its addresses cannot be read: `ip -json address` printed {text[:100]!r}", hint="install iproute2 on it"
        ) from None
    return Guest({name: had for name, had in addresses.items() if had}, default, lines[-1].strip() == EMULATED, key)


def _addresses(entry: dict[str, Any]) -> tuple[IPv4Interface, ...]:
    found = entry.get("addr_info") or ()
    return tuple(IPv4Interface(f"{one['local']}/{one['prefixlen']}") for one in found if one.get("family") == "inet")


def _answer(connections: Connections, name: str, access: Access) -> tuple[Path, str]:
    """The key that the machine takes, and what it says. Vagrant names its well-known keys together, and a box takes one of them."""
    for key in access.keys[:-1]:
        try:
            return key, connections.run(_node(name, access, key), QUESTION, sudo=False).text
        except SshError as error:
            if error.trouble not in {Trouble.AUTHENTICATION, Trouble.KEY_FILE}:
                raise
    key = access.keys[-1]
    return key, connections.run(_node(name, access, key), QUESTION, sudo=False).text


def _node(name: str, access: Access, key: Path) -> Node:
    return Node(name=name, address=access.host, roles=(Role.WORKER,), ssh_port=access.port, ssh_user=access.user, ssh_key=str(key))
