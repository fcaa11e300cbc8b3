"""A copy of the workspace that was left behind: machines that know more than it does are left as they are."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from provisioner import pki
from provisioner.authorities import objection, refuse_older_copy
from provisioner.config import Cluster
from provisioner.errors import PreflightUnfit
from provisioner.pki import CaName, Pki, Stage
from provisioner.pki import rotation as rotations
from provisioner.session import Session

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def passes(cluster: Cluster, tmp_path: Path) -> dict[Stage | None, Pki]:
    """The PKI of one cluster in each pass; with None when it is through. ``before`` is a copy of before."""
    root = tmp_path / "pki"
    pki.ensure(cluster, root, now=NOW)
    shutil.copytree(root, tmp_path / "before")
    rotations.begin(cluster, root, tuple(CaName), now=NOW)
    found: dict[Stage | None, Pki] = {}
    for stage in Stage:
        found[stage] = pki.ensure(cluster, root, now=NOW)
        if stage.following:
            rotations.advance(root)
    rotations.finish(root)
    found[None] = pki.ensure(cluster, root, now=NOW)
    return found


@pytest.mark.parametrize("name", CaName)
def test_what_is_objected_to(cluster: Cluster, passes: dict[Stage | None, Pki], tmp_path: Path, name: CaName) -> None:
    before = pki.ensure(cluster, tmp_path / "before", now=NOW)
    former = rotations.former(tmp_path / "pki")
    old, both, new = (keys.trust(name).decode() for keys in (before, passes[Stage.TRUST], passes[None]))

    def said(keys: Pki, text: str, known: Mapping[str, str] = former) -> str:
        return objection("test", keys, known, name, text)

    # in each pass, whoever is in it, or has missed some; a Node that comes back after all of them
    for keys in passes.values():
        assert {said(keys, text) for text in (old, both)} == {""}, keys.rotation
    assert {said(keys, new) for stage, keys in passes.items() if stage is not Stage.TRUST} == {""}
    assert said(before, old, {}) == ""
    # an export of before the rotation, and one of its first pass
    for text in (both, new):
        assert "which is not in this workspace" in said(before, text, {})
    assert "this workspace is in the first pass" in said(passes[Stage.TRUST], new, {})
    # drift, which is mended like any other
    broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    assert {said(before, text, {}) for text in ("", "nonsense", broken)} == {""}
    assert objection("other", before, {}, name, new) == "", "of another cluster's name"


def test_nothing_is_changed_from_an_older_copy(
    session: Session, cluster: Cluster, passes: dict[Stage | None, Pki], tmp_path: Path
) -> None:
    path = "/etc/kubernetes/pki/ca.crt"
    before = pki.ensure(cluster, tmp_path / "before", now=NOW)
    actual: dict[str, Any] = {
        "cp-1": {"files": {path: {"content": passes[None].trust(CaName.CLUSTER).decode()}}},
        "worker-1": {"files": {path: None, "/etc/other": {"sha256": ""}}},
    }
    with pytest.raises(PreflightUnfit, match="an older copy; nothing was changed") as error:
        refuse_older_copy(replace(session, pki=before, actual=actual))
    [line] = error.value.details
    assert line.startswith(f"cp-1: {path} trusts CN=kubernetes-ca-")
    assert "rotate-ca" in error.value.hint
    refuse_older_copy(replace(session, pki=passes[None], actual=actual))
