"""Words that the command line offers to choose from, apart from the models and checks that use them, which take long to import."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

Preset = Literal["single", "ha"]


class Role(StrEnum):
    """What a machine does. One machine may hold all three."""

    CONTROL_PLANE = "control-plane"
    ETCD = "etcd"
    WORKER = "worker"


class Level(StrEnum):
    """How much is tried. ``full`` includes ``smoke``."""

    SMOKE = "smoke"
    FULL = "full"

    def includes(self, other: Level) -> bool:
        """Whether a run of this level runs a check of the other."""
        return self is Level.FULL or other is Level.SMOKE
