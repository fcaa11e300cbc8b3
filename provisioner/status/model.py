"""What `status` knows when it has looked: one frozen value, with what could not be found out said beside what could."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic.alias_generators import to_camel

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine of cluster.yaml. ``error`` says why it could not be reached (empty: it was), ``remedy`` what to do about it.

    ``clock_skew`` is its clock minus the controller's, in seconds.
    """

    name: str
    address: str
    roles: tuple[str, ...]
    reachable: bool
    error: str = ""
    remedy: str = ""
    clock_skew: float = 0.0


@dataclass(frozen=True, slots=True)
class EtcdMember:
    """One member, of cluster.yaml or of etcd's own list.

    Attributes:
        name: name of its machine; of a stranger the name, or the peer address, in etcd's list.
        id: as etcdctl prints it, hexadecimal; empty where unknown.
        listed: whether etcd's member list has it; None where no member gave the list.
        healthy: it answers, and sees a leader.
        behind: raft entries that the leader has and it has not (without a leader: the member that is furthest); None: unknown.
        db_mib: size of the database file, MiB; what etcd's quota is compared with.
        in_use_mib: what of it holds data; the rest is given back by `provisioner etcd defrag`.
        quota_mib: where the member refuses writes; None where it does not tell.
        alarms: raised for this member, e.g. ``NOSPACE``.
        error: why it is not healthy.
    """

    name: str
    id: str = ""
    listed: bool | None = None
    healthy: bool = False
    leader: bool = False
    learner: bool = False
    version: str = ""
    raft_term: int | None = None
    raft_index: int | None = None
    behind: int | None = None
    db_mib: float | None = None
    in_use_mib: float | None = None
    quota_mib: float | None = None
    alarms: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Etcd:
    """etcd as its members see it. ``quorum`` is None where no member answers."""

    members: tuple[EtcdMember, ...]
    quorum: bool | None

    @property
    def leader(self) -> str | None:
        """The machine that leads."""
        return next((member.name for member in self.members if member.leader), None)


@dataclass(frozen=True, slots=True)
class Apiserver:
    """One apiserver: ready, or what it says of itself."""

    node: str
    ready: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """Who leads a component's instances. ``seconds`` since the last renewal, ``duration`` for which each one is good."""

    component: str
    holder: str = ""
    seconds: float | None = None
    duration: float = 15
    error: str = ""

    @property
    def expired(self) -> bool:
        """Nobody leads; a holder renews every 2 s, so the clocks' differences are within the margin."""
        return self.seconds is None or self.seconds > self.duration + 2


@dataclass(frozen=True, slots=True)
class NodeState:
    """A Node of the API. ``ready`` is None where the API did not tell, ``expected`` whether cluster.yaml has it, too."""

    name: str
    ready: bool | None
    reason: str = ""
    kubelet: str = ""
    cordoned: bool = False
    expected: bool = True


@dataclass(frozen=True, slots=True)
class Backend:
    """One apiserver as a node's proxy sees it. ``state`` is HAProxy's own word (UP, DOWN, ...), ``check`` why."""

    name: str
    up: bool
    state: str
    sessions: int
    check: str = ""


@dataclass(frozen=True, slots=True)
class Proxy:
    """The proxy of one node."""

    node: str
    backends: tuple[Backend, ...] = ()
    error: str = ""


@dataclass(frozen=True, slots=True)
class Backups:
    """What one member says of the backups that members take by themselves.

    Attributes:
        timer: whether its timer runs.
        failed: its last run did.
        running: it is at it.
        ran: it was at all since the machine was started.
        kept: how many lie there.
        good: name of the last one taken there that went all the way, its copy included; "" where there is none.
        age: seconds since that one was taken; None where there is none.
        fired: seconds since its timer fired; None where it never did.
    """

    node: str
    timer: bool
    failed: bool = False
    running: bool = False
    ran: bool = False
    kept: int = 0
    good: str = ""
    age: float | None = None
    fired: float | None = None


@dataclass(frozen=True, slots=True)
class Vip:
    """The virtual address and who has it. ``unknown``: control planes that could not be asked."""

    address: str
    holders: tuple[str, ...]
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong, where, and what to do."""

    host: str
    cause: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.host}: {self.cause}" + (f" -> {self.remedy}" if self.remedy else "")


@dataclass(frozen=True, slots=True)
class Status:
    """The whole look.

    Attributes:
        backups: of the members that take some by themselves, and answer.
        api_error: why Nodes and leases are unknown; empty where an apiserver told.
        stale: Nodes and leases are from an apiserver's memory: etcd takes no reads.
        seconds: how long the look took.
    """

    cluster: str
    kubernetes_version: str
    machines: tuple[Machine, ...]
    etcd: Etcd
    apiservers: tuple[Apiserver, ...]
    leases: tuple[Lease, ...]
    nodes: tuple[NodeState, ...]
    proxies: tuple[Proxy, ...]
    vip: Vip | None = None
    backups: tuple[Backups, ...] = ()
    api_error: str = ""
    stale: bool = False
    seconds: float = 0.0
    problems: tuple[Problem, ...] = field(default=())

    @property
    def last_backup(self) -> Backups | None:
        """The member with the youngest backup that went all the way."""
        return min((one for one in self.backups if one.age is not None), key=lambda one: one.age or 0.0, default=None)

    @property
    def reached(self) -> bool:
        """Whether any machine answered at all."""
        return any(machine.reachable for machine in self.machines)

    def to_json(self) -> dict[str, object]:
        """For --json: camelCase keys; ``problems`` are lines of text with host, cause and remedy."""
        document = _camel(dataclasses.asdict(dataclasses.replace(self, problems=())))
        document["etcd"]["leader"] = self.etcd.leader
        return {"format": FORMAT, "healthy": not self.problems, **document, "problems": [str(problem) for problem in self.problems]}


def _camel(value: Any) -> Any:  # a document of any shape in, one of the same shape out
    if isinstance(value, Mapping):
        return {to_camel(key): _camel(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_camel(item) for item in value]
    return round(value, 3) if isinstance(value, float) else value
