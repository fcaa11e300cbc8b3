"""What upstream's components know: flags and configuration fields, as ``tools/upstream_names.py`` wrote them down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Upstream:
    """Names by component.

    ``kubernetes`` is the version they were taken from; ``flags`` maps a component to its flags, ``fields`` a kind of
    configuration to its fields and what each holds: boolean, number, text, list or mapping.
    """

    kubernetes: str
    flags: Mapping[str, frozenset[str]]
    fields: Mapping[str, Mapping[str, str]]


@cache
def upstream() -> Upstream:
    """Read the names that come with the program."""
    document = json.loads(files("provisioner").joinpath("data/upstream.json").read_text(encoding="utf-8"))
    return Upstream(
        kubernetes=document["versions"]["kubernetes"],
        flags={component: frozenset(names) for component, names in document["flags"].items()},
        fields=document["fields"],
    )


def same_minor(one: str, other: str) -> bool:
    """Whether two versions are of one minor release, so that names of the one hold for the other."""
    return one.split(".")[:2] == other.split(".")[:2]
