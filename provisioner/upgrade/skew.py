"""Which versions may run beside each other, and over which ones the way to another one leads. Pure: versions in, versions out.

https://kubernetes.io/releases/version-skew-policy/
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from provisioner.errors import BadInput

# A kubelet, and a kube-proxy, may be this many minor versions older than any API server, and never newer.
NODE_SKEW = 3


class Version(NamedTuple):
    """A release; compares as versions do."""

    major: int
    minor: int
    patch: int

    @classmethod
    def of(cls, text: str) -> Self:
        """From ``1.36.3`` or ``v1.36.3``, with whatever a vendor has put behind (``v1.36.3+k3s1``, ``-rc.1``).

        Raises:
            ValueError: it is no such text.
        """
        numbers = text.strip().removeprefix("v").partition("+")[0].partition("-")[0].split(".")
        major, minor, patch = (int(number) for number in numbers)
        return cls(major, minor, patch)

    @property
    def line(self) -> tuple[int, int]:
        """Its minor version, of which there are many patches."""
        return self.major, self.minor

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


@dataclass(frozen=True, slots=True)
class Running:
    """What runs now, by machine; ``etcd`` is the members'."""

    apiservers: Mapping[str, Version]
    kubelets: Mapping[str, Version]
    etcd: Mapping[str, Version] = field(default_factory=dict)

    @property
    def oldest(self) -> Version:
        """The oldest of API servers and kubelets."""
        return min((*self.apiservers.values(), *self.kubelets.values()))

    def differs(self, target: Version) -> bool:
        """Whether anything runs another version than this one."""
        return {*self.apiservers.values(), *self.kubelets.values()} != {target}

    def after(self, version: Version) -> Running:
        """What runs once everything has gone to a version."""
        return Running(dict.fromkeys(self.apiservers, version), dict.fromkeys(self.kubelets, version), self.etcd)

    @property
    def mixed(self) -> bool:
        """Whether an upgrade is under way."""
        return len({*self.apiservers.values(), *self.kubelets.values()}) > 1


@dataclass(frozen=True, slots=True)
class Hop:
    """One step of the way; ``back`` where it goes to an older patch, and so takes the parts in reverse."""

    target: Version
    back: bool = False


def hops(running: Running, target: Version, releases: Mapping[str, str]) -> tuple[Hop, ...]:
    """The versions to go through, one minor version at a time; empty where everything runs the target.

    Args:
        running: what runs now.
        target: what shall run.
        releases: Kubernetes versions that can be had, each with its etcd's.

    Raises:
        BadInput: the policy forbids it, or a version on the way cannot be had; nothing has been changed.
    """
    known = {Version.of(kubernetes): Version.of(etcd) for kubernetes, etcd in releases.items()}
    if target not in known:
        raise BadInput(f"Kubernetes {target} is not in versions.yml", hint=f"versions it knows: {_listed(known)}")
    if not running.differs(target):
        return ()
    if not running.apiservers:
        raise BadInput("no API server says its version", hint="`provisioner status` says what is wrong")
    newest = max(running.apiservers.values())
    if target.line < newest.line:
        raise BadInput(
            f"API servers run {newest}, and there is no way back to {target}: a newer minor version stores objects in etcd that an "
            "older one may not read",
            hint="a cluster of the older version is restored from a backup: `provisioner reset`, `apply` with that version, "
            "`provisioner etcd restore`",
        )
    _refuse_broken_skew(running, target)
    way = _way(running, target, tuple(known))
    _refuse_etcd(running, way, known)
    return way


def _way(running: Running, target: Version, known: tuple[Version, ...]) -> tuple[Hop, ...]:
    newest, oldest = max(running.apiservers.values()), running.oldest
    if target.line == newest.line:
        # all API servers of one minor version, or an upgrade to it that was cut short
        return (Hop(target, back=target < newest),)
    steps = []
    # an upgrade to the newest one that was cut short is finished first: its controllers may be those of before
    for minor in range(newest.minor + (oldest.line == newest.line), target.minor):
        patches = [version for version in known if version.line == (target.major, minor)]
        if not patches:
            raise BadInput(
                f"the way from {oldest} to {target} leads over {target.major}.{minor}, for API servers go one minor version at a "
                f"time, and versions.yml has no {target.major}.{minor}",
                hint=f"take a release of this program that has it; versions it knows: {_listed(known)}",
            )
        steps.append(Hop(max(patches)))
    return (*steps, Hop(target))


def _refuse_broken_skew(running: Running, target: Version) -> None:
    newest, oldest = max(running.apiservers.values()), min(running.apiservers.values())
    if newest.major != oldest.major or newest.minor - oldest.minor > 1:
        raise BadInput(
            f"API servers run {_told(running.apiservers)}: more than one minor version apart, which no upgrade can have left",
            hint="bring the older ones up by hand, one minor version at a time",
        )
    wrong = {
        name: version
        for name, version in running.kubelets.items()
        # one that is newer than an API server was upgraded without it; that API server's own upgrade is the cure
        if version.major != oldest.major or version.line > target.line or newest.minor - version.minor > NODE_SKEW
    }
    if wrong:
        raise BadInput(
            f"kubelets run {_told(wrong)} beside API servers of {_told(running.apiservers)}: they may be {NODE_SKEW} minor "
            f"versions older than any API server, and never newer than {target}",
            hint="`provisioner node replace` makes such a machine anew",
        )


def _refuse_etcd(running: Running, way: Iterable[Hop], known: Mapping[Version, Version]) -> None:
    if not running.etcd:
        return
    now = max(running.etcd.values())
    for hop in way:
        then = known[hop.target]
        if then.line < now.line:
            raise BadInput(
                f"etcd runs {now}, and Kubernetes {hop.target} goes with {then} here: an older minor version of etcd cannot read "
                "the newer one's data, so its storage is never taken back",
                hint="choose a version that goes with the etcd that runs",
            )
        if then.major != now.major or then.minor - now.minor > 1:
            raise BadInput(
                f"etcd runs {now}, and Kubernetes {hop.target} goes with {then} here: etcd goes one minor version at a time",
                hint="take a release of this program with a version between",
            )
        now = then


def _listed(versions: Iterable[Version]) -> str:
    return ", ".join(str(version) for version in sorted(versions, reverse=True))


def _told(by_machine: Mapping[str, Version]) -> str:
    return ", ".join(f"{version} on {name}" for name, version in sorted(by_machine.items()))
