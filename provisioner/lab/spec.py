"""What a lab is: its machines, and every name and address of theirs, derived from the lab's name and the network it was given."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from provisioner.config import Role
from provisioner.errors import BadInput

# Each lab gets a /24 of it: .1 is the host, .254 the gateway that leads nowhere, machines begin at .11.
POOL = IPv4Network("10.77.0.0/16")
FIRST_MACHINE = 11
MAX_MACHINES = 240
# room for ".cp-123" within the 64 bytes of a Linux host name
MAX_NAME = 40
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Shape:
    """How many machines of which kind.

    Attributes:
        control_planes: machines with an apiserver; with ``stacked`` each holds an etcd member too.
        workers: machines for pods; without any, the control planes are workers as well.
        etcd_only: machines with an etcd member and nothing else.
        stacked: whether control planes hold etcd members.
        spares: machines that are booted but not in cluster.yaml, to be added to the cluster later.
    """

    control_planes: int = 1
    workers: int = 2
    etcd_only: int = 0
    stacked: bool = True
    spares: int = 0

    def __str__(self) -> str:
        parts = [f"{self.control_planes} control plane{'s' * (self.control_planes != 1)}"]
        parts.append(f"{self.workers} worker{'s' * (self.workers != 1)}")
        if self.etcd_only:
            parts.append(f"{self.etcd_only} etcd-only")
        if self.spares:
            parts.append(f"{self.spares} spare")
        if not self.stacked:
            parts.append("etcd apart")
        return ", ".join(parts)

    def check(self) -> None:
        """Refuse what cannot become a cluster.

        Raises:
            BadInput: with the reason.
        """
        if self.control_planes < 1 or min(self.workers, self.etcd_only, self.spares) < 0:
            raise BadInput(
                f"a lab of {self}: at least one control plane, and no negative numbers",
                hint="e.g. `--control-planes 1 --workers 2`",
            )
        members = self.etcd_only + (self.control_planes if self.stacked else 0)
        if members == 0:
            raise BadInput(
                "no machine would run etcd",
                hint="give etcd machines of its own (1, 3 or 5 of them), or stack it on the control planes",
            )
        if members % 2 == 0:
            raise BadInput(
                f"{members} etcd members: an even number survives no more failures than {members - 1} and loses quorum sooner",
                hint="use an odd number of members; one etcd-only machine more is enough",
            )
        total = self.control_planes + self.workers + self.etcd_only + self.spares
        if total > MAX_MACHINES:
            raise BadInput(
                f"{total} machines: a lab has at most {MAX_MACHINES}, which is what its /24 network holds",
                hint="ask for fewer machines",
            )

    def machines(self, network: IPv4Network) -> tuple[Machine, ...]:
        """The machines in cluster.yaml's order, with their addresses."""
        control_plane = (Role.CONTROL_PLANE, *((Role.ETCD,) if self.stacked else ()), *((Role.WORKER,) if not self.workers else ()))
        kinds = (
            ("cp", self.control_planes, control_plane),
            ("etcd", self.etcd_only, (Role.ETCD,)),
            ("worker", self.workers, (Role.WORKER,)),
            ("spare", self.spares, ()),
        )
        named = [(f"{prefix}-{number}", roles) for prefix, count, roles in kinds for number in range(1, count + 1)]
        return tuple(
            Machine(name=name, roles=roles, address=network[FIRST_MACHINE + position])
            for position, (name, roles) in enumerate(named)
        )


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine of a lab. A spare one has no roles."""

    name: str
    roles: tuple[Role, ...]
    address: IPv4Address


@dataclass(frozen=True, slots=True)
class Lab:
    """One lab, as its state file has it. Every resource's name follows from it, so that what a crash left is found again.

    Attributes:
        home: directory of the lab's own files under the state root (disks, host keys, console logs).
        directory: the workspace with cluster.yaml, the SSH key and known_hosts.
        image: the base image's tree, the lower layer of every machine's disk.
        cluster_sha256: of the cluster.yaml written, to tell whether a user has edited it since.
    """

    name: str
    shape: Shape
    network: IPv4Network
    home: Path
    directory: Path
    image: Path
    cluster_sha256: str = ""
    machines: tuple[Machine, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "machines", self.shape.machines(self.network))

    @property
    def host_address(self) -> IPv4Address:
        """The controller's own address in the lab's network."""
        return self.network[1]

    @property
    def gateway(self) -> IPv4Address:
        """Default gateway of the machines: it knows no way out and says so at once."""
        return self.network[254]

    @property
    def link(self) -> str:
        """The one interface of the lab on the host (at most 15 characters)."""
        return f"plab{self.network.network_address.packed[1]}-{self.network.network_address.packed[2]}"

    @property
    def switch(self) -> str:
        """Network namespace that holds the bridge between the machines."""
        return f"plab.{self.name}"

    def resource(self, machine: Machine) -> str:
        """Name of the machine's network namespace and control groups. No DNS label holds a dot, so no two labs share one."""
        return f"plab.{self.name}.{machine.name}"

    def disk(self, machine: Machine) -> Path:
        """Directory of the machine's disk layers, bound directories and console log."""
        return self.home / "machines" / machine.name

    def machine(self, name: str) -> Machine:
        """The machine of that name.

        Raises:
            BadInput: there is none.
        """
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise BadInput(
            f"lab {self.name} has no machine {name!r}", hint="it has " + ", ".join(machine.name for machine in self.machines)
        )

    def to_json(self) -> str:
        """The state file's content."""
        document = {
            "version": 1,
            "name": self.name,
            "shape": {
                "controlPlanes": self.shape.control_planes,
                "workers": self.shape.workers,
                "etcdOnly": self.shape.etcd_only,
                "stacked": self.shape.stacked,
                "spares": self.shape.spares,
            },
            "network": str(self.network),
            "directory": str(self.directory),
            "image": str(self.image),
            "clusterSha256": self.cluster_sha256,
        }
        return json.dumps(document, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, home: Path) -> Lab:
        """Read a state file.

        Raises:
            ValueError: it is not one of this version.
        """
        try:
            document = json.loads(text)
            if document["version"] != 1:
                raise ValueError(f"version {document['version']}, this program reads version 1")
            shape = document["shape"]
            return cls(
                name=str(document["name"]),
                shape=Shape(
                    control_planes=int(shape["controlPlanes"]),
                    workers=int(shape["workers"]),
                    etcd_only=int(shape["etcdOnly"]),
                    stacked=bool(shape["stacked"]),
                    spares=int(shape["spares"]),
                ),
                network=IPv4Network(document["network"]),
                home=home,
                directory=Path(document["directory"]),
                image=Path(document["image"]),
                cluster_sha256=str(document["clusterSha256"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no state of a lab: {type(error).__name__} {error}") from error


def check_name(name: str) -> None:
    """Refuse a lab name that is no DNS label, or too long for a host name with a machine's name behind it.

    Raises:
        BadInput: with the rule.
    """
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise BadInput(
            f"{name!r} is no name for a lab",
            hint=f"lower-case letters, digits and hyphens, a letter or digit at both ends, at most {MAX_NAME} characters",
        )


def free_network(taken: Iterable[IPv4Network], host: Iterable[IPv4Network], pool: Iterable[IPv4Network]) -> IPv4Network:
    """The first network of the pool that no other lab holds and that the host does not use itself.

    Args:
        taken: networks of the other labs.
        host: the host's interface networks and routes. A route wider than a /24 is no obstacle: the lab's own is more specific.
        pool: candidates, each a /24.

    Raises:
        BadInput: none is free.
    """
    blocked = [*taken, *(network for network in host if network.prefixlen >= 24)]
    candidates = tuple(pool)
    for candidate in candidates:
        if not any(candidate.overlaps(network) for network in blocked):
            return candidate
    raise BadInput(
        f"no free network: {candidates[0]} is in use" if len(candidates) == 1 else f"none of {len(candidates)} networks is free",
        hint="`provisioner lab status` lists the labs, `provisioner lab down` frees the networks of those no longer needed",
    )
