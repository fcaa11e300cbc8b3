"""What becomes of Vagrant's machines: a name, roles and a cluster address for each. Pure; nothing is asked or changed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from provisioner.config import Role
from provisioner.errors import BadInput
from provisioner.vagrant.tool import Access

# Beginnings of names that say what a machine is for; what follows is a number or a further word: cp-1, k8s-master2, workerA.
_MEANINGS: Mapping[str, tuple[str, ...]] = {
    "control-plane": ("cp", "control", "controlplane", "controller", "ctrl", "master", "server"),
    "etcd": ("etcd",),
    "worker": ("worker", "node", "agent", "minion", "compute"),
}
# Never where a cluster's machines meet: what containers, an earlier cluster or the machine itself makes.
_INNER = re.compile(r"^(lo|docker.*|br-.*|cni.*|flannel.*|veth.*|virbr.*|cali.*|kube-.*|nodelocaldns|tailscale.*|wg.*|tun.*)$")
# More members make etcd slower and not safer.
_MOST_MEMBERS = 5


@dataclass(frozen=True, slots=True)
class Guest:
    """What a machine says of itself.

    Attributes:
        addresses: global IPv4 addresses with their networks, by interface.
        default_interface: of its default route; empty without one.
        emulated: its processor is software's: every step takes some ten times longer.
        key: the private key of Vagrant's that it takes.
    """

    addresses: Mapping[str, tuple[IPv4Interface, ...]]
    default_interface: str
    emulated: bool
    key: Path


@dataclass(frozen=True, slots=True)
class Made:
    """One machine of Vagrant's as cluster.yaml has it. ``cluster_address`` is None where it is ``host``."""

    name: str
    host: str
    cluster_address: IPv4Address | None
    roles: tuple[Role, ...]
    port: int
    user: str
    key: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """All of them, and the network they share.

    Attributes:
        emulated: some machine is emulated in software.
        notes: what the user should know about the choices made.
    """

    machines: tuple[Made, ...]
    network: IPv4Network
    emulated: bool
    notes: tuple[str, ...]


def plan(accesses: Sequence[Access], guests: Mapping[str, Guest], *, control_planes: Collection[str] = ()) -> Plan:
    """Names, roles and addresses.

    Args:
        accesses: of the machines, in Vagrant's order.
        guests: what each says, by Vagrant's name.
        control_planes: Vagrant's names of those that shall be control planes; without any, names decide.

    Raises:
        BadInput: names tell no roles or are no host names, or the machines share no network.
    """
    names = _names([access.name for access in accesses])
    roles, notes = roles_of([access.name for access in accesses], control_planes)
    network = shared_network(guests)
    machines = []
    for access in accesses:
        guest = guests[access.name]
        address = next(found.ip for found in _meeting_points(guest)[network])
        machines.append(
            Made(
                name=names[access.name],
                host=access.host,
                cluster_address=None if str(address) == access.host else address,
                roles=roles[access.name],
                port=access.port,
                user=access.user,
                key=guest.key,
            )
        )
    return Plan(tuple(machines), network, any(guest.emulated for guest in guests.values()), tuple(notes))


def roles_of(names: Sequence[str], chosen: Collection[str] = ()) -> tuple[dict[str, tuple[Role, ...]], list[str]]:
    """Each machine's roles, and remarks on them.

    A machine alone gets all three. Control planes hold etcd, an odd number of them, unless there are machines for etcd alone.
    Without workers, control planes take ordinary pods.

    Args:
        names: Vagrant's, in its order.
        chosen: control planes by the user's word; then all others are etcd members or workers, as their names say.

    Raises:
        BadInput: ``chosen`` names no machine, or neither names nor user tell a control plane.
    """
    if unknown := [name for name in chosen if name not in names]:
        raise BadInput(
            f"there is no machine {', '.join(unknown)} that runs", hint=f"Vagrant's running machines are {', '.join(names)}"
        )
    if len(names) == 1:
        return {names[0]: (Role.CONTROL_PLANE, Role.ETCD, Role.WORKER)}, []
    meanings = {name: meaning_of(name) for name in names}
    planes = [name for name in names if (name in chosen if chosen else meanings[name] == "control-plane")]
    if not planes:
        raise BadInput(
            f"the machines' names do not tell which are control planes: {', '.join(names)}",
            hint="say so with `--control-plane NAME` (again for each), or call them cp-1, cp-2 …, worker-1 … in the Vagrantfile",
        )
    alone = [name for name in names if name not in planes and meanings[name] == "etcd"]
    workers = [name for name in names if name not in planes and name not in alone]
    able = alone or planes
    members = able[: min(_MOST_MEMBERS, len(able) - 1 + len(able) % 2)]
    notes = []
    if left := [name for name in able if name not in members]:
        notes.append(
            f"{', '.join(left)}: without etcd: an odd number of members is needed, and more than {_MOST_MEMBERS} help nobody"
        )
    if not workers:
        notes.append("there are no workers: the control planes take ordinary pods")
    roles: dict[str, tuple[Role, ...]] = {}
    for name in names:
        held = [Role.CONTROL_PLANE] if name in planes else []
        held += [Role.ETCD] if name in members else []
        held += [Role.WORKER] if name in workers or (name in planes and not workers) else []
        # an etcd machine too many
        roles[name] = tuple(held) or (Role.WORKER,)
    return roles, notes


def meaning_of(name: str) -> str:
    """The role that a name speaks of, by one of its parts; "" where none does. The first part that means something decides."""
    for part in re.split(r"[^a-z]+", re.sub(r"control[-_]?plane", "controlplane", name.lower())):
        for role, words in _MEANINGS.items():
            if part in words or part.removesuffix("s") in words:
                return role
    return ""


def shared_network(guests: Mapping[str, Guest]) -> IPv4Network:
    """The network in which every machine has an address of its own.

    Among several: one that is nobody's way out, for that was made for the machines, as a Vagrantfile's private network is. A way
    out may be a NAT that shows every machine the same address (VirtualBox) and serves by DHCP.

    Raises:
        BadInput: there is none.
    """
    points = {name: _meeting_points(guest) for name, guest in guests.items()}
    first = next(iter(points.values()))
    shared = [
        network
        for network in first
        if all(network in own for own in points.values()) and len({own[network][0].ip for own in points.values()}) == len(points)
    ]
    if not shared:
        told = [
            f"{name}: "
            + (", ".join(f"{found} on {interface}" for interface, had in guest.addresses.items() for found in had) or "none")
            for name, guest in guests.items()
        ]
        raise BadInput(
            "the machines share no network in which each has an address of its own",
            hint="give each one an address of its own in the Vagrantfile, and `vagrant reload`: "
            '`machine.vm.network "private_network", ip: "192.168.56.…"`',
            details=tuple(told),
        )

    def ways_out(network: IPv4Network) -> int:
        return sum(
            any(found in guest.addresses.get(guest.default_interface, ()) for found in points[name][network])
            for name, guest in guests.items()
        )

    return min(shared, key=lambda network: (ways_out(network), shared.index(network)))


def _meeting_points(guest: Guest) -> dict[IPv4Network, list[IPv4Interface]]:
    """A machine's addresses that others may reach, by network."""
    found: dict[IPv4Network, list[IPv4Interface]] = {}
    for interface, addresses in guest.addresses.items():
        if _INNER.match(interface):
            continue
        for address in addresses:
            # an address of /32 says nothing of who else is there
            if address.network.prefixlen < 32 and not address.ip.is_link_local:
                found.setdefault(address.network, []).append(address)
    return found


def _names(given: Sequence[str]) -> dict[str, str]:
    """Vagrant's names as host names: DNS labels, each once.

    Raises:
        BadInput: a name cannot be made one, or two become the same.
    """
    made: dict[str, str] = {}
    for name in given:
        label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        if not label or len(label) > 63:
            raise BadInput(f"{name!r} cannot be made a host name", hint="give the machine another name in the Vagrantfile")
        # a Vagrantfile without names calls its only machine so
        label = "node-1" if name == "default" else label
        if label in made.values():
            raise BadInput(
                f"two machines would be called {label}", hint="give them names in the Vagrantfile that differ in more than signs"
            )
        made[name] = label
    return made
