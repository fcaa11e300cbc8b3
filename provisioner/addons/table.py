"""Which addons there are: a table, and nothing that acts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from provisioner.config import Cluster


@dataclass(frozen=True, slots=True)
class Addon:
    """One addon.

    Attributes:
        component: in the lock; also the name of its manifest, of its image's archive, and of its entry in the record.
        key: in cluster.yaml, below ``addons``.
        wanted: whether a cluster has it on.
    """

    component: str
    key: str
    wanted: Callable[[Cluster], bool]

    @property
    def archive(self) -> str:
        """Its image's archive, as the lock calls it."""
        return f"images/{self.component}.tar"


METRICS_SERVER = Addon("metrics-server", "metricsServer", lambda cluster: cluster.addons.metrics_server)
LOCAL_PATH = Addon("local-path-provisioner", "localPath", lambda cluster: cluster.addons.local_path)
HEADLAMP = Addon("headlamp", "headlamp", lambda cluster: cluster.addons.headlamp)
# In the order in which they are applied.
ADDONS: tuple[Addon, ...] = (METRICS_SERVER, LOCAL_PATH, HEADLAMP)


def wanted_by(cluster: Cluster) -> tuple[Addon, ...]:
    """The addons that a cluster has on."""
    return tuple(addon for addon in ADDONS if addon.wanted(cluster))
