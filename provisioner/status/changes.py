"""What is otherwise than at the look before. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from provisioner.status.model import Status


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing that has changed: of which table, of whom, and from what to what."""

    table: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.table} {self.name}: {self.text}" if self.name else f"{self.table}: {self.text}"


def changes(before: Status, after: Status) -> tuple[Turn, ...]:
    """Everything that one would want to be told; not what moves all the time (indices, ages, sessions)."""
    views = (
        (_machines, "machine"),
        (_etcd, "etcd"),
        (_planes, "control plane"),
        (_leases, "leader"),
        (_nodes, "node"),
        (_proxies, "proxy"),
    )
    found = [turn for view, table in views for turn in _compared(table, view, before, after)]
    if (before.vip and before.vip.holders) != (after.vip and after.vip.holders):
        found.append(Turn("virtual address", "", f"{_holders(before)} -> {_holders(after)}"))
    return tuple(found)


def _compared(table: str, view: Callable[[Status], Mapping[str, str]], before: Status, after: Status) -> Iterator[Turn]:
    shown, shows = view(before), view(after)
    for name in dict.fromkeys((*shown, *shows)):
        one, two = shown.get(name) or _absent(table, name, before), shows.get(name) or _absent(table, name, after)
        if one != two:
            yield Turn(table, name, f"{one} -> {two}")


def _absent(table: str, name: str, status: Status) -> str:
    """What is not in a look is not gone where nobody was there to tell of it."""
    if table == "proxy":
        silent = any(machine.name == name and not machine.reachable for machine in status.machines)
    else:
        silent = table in ("leader", "node") and bool(status.api_error)
    return "not known" if silent else "not there"


def _machines(status: Status) -> dict[str, str]:
    return {machine.name: "answers" if machine.reachable else "UNREACHABLE" for machine in status.machines}


def _etcd(status: Status) -> dict[str, str]:
    return {
        member.name: " ".join(
            (
                "DOWN" if not member.healthy else "leader" if member.leader else "learner" if member.learner else "follower",
                *member.alarms,
            )
        )
        for member in status.etcd.members
    }


def _planes(status: Status) -> dict[str, str]:
    return {server.node: "ready" if server.ready else "NOT READY" for server in status.apiservers}


def _leases(status: Status) -> dict[str, str]:
    return {lease.component: "nobody" if lease.expired or lease.error else lease.holder for lease in status.leases}


def _nodes(status: Status) -> dict[str, str]:
    words = {True: "Ready", False: "NOT READY", None: "not known"}
    return {
        node.name: " ".join(part for part in (words[node.ready], "cordoned" if node.cordoned else "", node.kubelet) if part)
        for node in status.nodes
    }


def _proxies(status: Status) -> dict[str, str]:
    return {
        proxy.node: "NO ANSWER"
        if proxy.error
        else f"{sum(backend.up for backend in proxy.backends)} of {len(proxy.backends)} API servers up"
        for proxy in status.proxies
    }


def _holders(status: Status) -> str:
    return ", ".join(status.vip.holders) if status.vip and status.vip.holders else "no machine"
