"""A question with a deadline, and what came of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# Path in the archive -> text.
Files = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to find out.

    Attributes:
        what: for the manifest, where there is no answer ("worker-1: journal of kubelet").
        seconds: the most that it may take.
        ask: takes the seconds that it has, returns files, raises ProvisionerError where there is no answer.
    """

    what: str
    seconds: float
    ask: Callable[[float], Files]


@dataclass(frozen=True, slots=True)
class Missing:
    """What could not be collected, and why."""

    what: str
    why: str

    def to_json(self) -> dict[str, str]:
        """For the manifest and --json."""
        return {"what": self.what, "why": self.why}


@dataclass(frozen=True, slots=True)
class Collected:
    """Everything there is for the archive, redacted; paths are relative."""

    files: Files
    missing: tuple[Missing, ...] = ()
    manifest: Mapping[str, object] = field(default_factory=dict)
