"""What `plan` shows of an object that would change: its lines, but never those of a Secret."""

from __future__ import annotations

from typing import Any, cast

from provisioner import objects
from provisioner.cluster_api import ClusterApi


class Stored:
    """An API that holds one object, and answers a dry run with what it is given."""

    def __init__(self, live: dict[str, Any]) -> None:
        self.live = live

    def get(self, _: dict[str, Any]) -> dict[str, Any]:
        return self.live

    def apply(self, obj: dict[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        assert dry_run, "a look changes nothing"
        return obj


def change(kind: str, field: str) -> str:
    before, after = (
        {"apiVersion": "v1", "kind": kind, "metadata": {"name": "one", "namespace": "default"}, field: {"key": value}}
        for value in ("b2xk", "bmV3")
    )
    (found,) = objects.difference(cast("ClusterApi", Stored(before)), [after])
    assert found.action == "change"
    return found.diff


def test_an_objects_lines_are_shown() -> None:
    assert {"-  key: b2xk", "+  key: bmV3"} <= set(change("ConfigMap", "data").splitlines())


def test_of_a_secret_nothing_is_shown() -> None:
    assert change("Secret", "data") == ""
    assert change("Secret", "stringData") == ""
