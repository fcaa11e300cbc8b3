"""What a check is, what it may use, and how it says that it failed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from provisioner.choices import Level as Level  # noqa: PLC0414 - its home for everybody else is here
from provisioner.config import Cluster
from provisioner.errors import ProvisionerError, WaitTimeout
from provisioner.report import Pairs
from provisioner.wait import NotYet, wait_until
from provisioner.workspace import Workspace

if TYPE_CHECKING:
    from provisioner.cluster_api import ClusterApi
    from provisioner.pki import Pki
    from provisioner.ssh import Connections
    from provisioner.verify.probe import Probe

T = TypeVar("T")
R = TypeVar("R")

# Enough to keep every core of the controller busy; most of the time these threads wait for a network.
WORKERS = 32


class CheckFailed(Exception):  # noqa: N818 - the check's own word, not an error of the program
    """A check saw something it must not see.

    Args:
        seen: what was seen, a line each: which node or pair, and the answer.
        pairs: of a check of pairs of nodes, what became of each.
    """

    def __init__(self, *seen: str, pairs: Pairs | None = None) -> None:
        super().__init__("; ".join(seen))
        self.seen = seen
        self.pairs = pairs


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a check saw that passed: one line, and of a check of pairs of nodes, which these were."""

    text: str
    pairs: Pairs | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What every check may use.

    Args:
        cluster: what the cluster shall be.
        workspace: the controller's files of this cluster.
        connections: SSH to the machines.
        pki: certificates of the driver.
        api: the Kubernetes API.
        probe: the pods made for this run, one on each node.
        seconds: how long the check may take.
    """

    cluster: Cluster
    workspace: Workspace
    connections: Connections
    pki: Pki
    api: ClusterApi
    probe: Probe
    seconds: float = 10


def _always(_cluster: Cluster) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is proved.

    Args:
        id: stable name.
        title: what a pass proves.
        level: the least level that runs it.
        run: returns the evidence, mostly one line, or raises :class:`CheckFailed`.
        needs: ids of checks that must have passed before this one can be tried.
        seconds: deadline on a small cluster; :func:`deadline` adds time for large ones.
        per_node: further seconds for each node.
        wanted: whether a cluster has what is proved; those of addons that are off are no part of a run.
    """

    id: str
    title: str
    level: Level
    run: Callable[[Context], str | Evidence]
    needs: tuple[str, ...] = ()
    seconds: float = 10
    per_node: float = 0.1
    wanted: Callable[[Cluster], bool] = _always

    def deadline(self, cluster: Cluster) -> float:
        """Seconds this check may take on this cluster."""
        return self.seconds + self.per_node * len(cluster.nodes)


def each(items: Iterable[T], function: Callable[[T], R]) -> list[R]:
    """Run a function on every item in threads; results in the items' order.

    Raises:
        CheckFailed: one or more calls failed (:class:`CheckFailed` or an error of the program); carries the lines of all of them.
    """

    def attempt(item: T) -> R | CheckFailed:
        try:
            return function(item)
        except CheckFailed as failure:
            return failure
        except ProvisionerError as error:
            return CheckFailed(error.message)

    todo: Sequence[T] = tuple(items)
    if not todo:
        return []
    with ThreadPoolExecutor(max_workers=min(WORKERS, len(todo))) as pool:
        outcomes = list(pool.map(attempt, todo))
    failures = [outcome for outcome in outcomes if isinstance(outcome, CheckFailed)]
    if failures:
        raise CheckFailed(*(line for failure in failures for line in failure.seen))
    return [outcome for outcome in outcomes if not isinstance(outcome, CheckFailed)]


def settling(items: Iterable[T], function: Callable[[T], R]) -> list[R]:
    """:func:`each` for what may take a moment to reach every node (endpoints, DNS records); for use inside :func:`patiently`.

    Raises:
        NotYet: with the failures' lines.
    """
    try:
        return each(items, function)
    except CheckFailed as failure:
        raise NotYet("\n".join(failure.seen)) from None


def patiently(look: Callable[[], str], seconds: float) -> str:
    """Repeat a look at something that may still be settling, and return its evidence.

    Raises:
        CheckFailed: time is up; carries the lines that the last look gave with :class:`NotYet`.
    """
    last: list[str] = []

    def remember() -> str:
        try:
            return look()
        except NotYet as not_yet:
            last[:] = str(not_yet).splitlines()
            raise

    try:
        return wait_until("settled", remember, seconds=seconds, every=0.25)
    except WaitTimeout:
        raise CheckFailed(*last) from None


def listed(names: Iterable[str]) -> str:
    """Names in order, separated by commas."""
    return ", ".join(sorted(names))


def plural(number: int, noun: str) -> str:
    """``1 node``, ``2 nodes``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
