"""`up` as CI calls it: what is refused before a machine is made, and whose the kubeconfig is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from provisioner.cli.up import _hand_over, _refuse_foreign, up
from provisioner.errors import BadInput
from provisioner.lab import load_images

OURS = "clusters:\n- {name: lab, cluster: {}}\n- {name: lab-cp-2, cluster: {}}\n"


@pytest.fixture(autouse=True)
def _labs_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PROVISIONER_LAB_DIR", str(tmp_path / "labs"))
    monkeypatch.chdir(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("machines would be made")

    # a test that fails is not to build a cluster
    monkeypatch.setattr("provisioner.lab.up", refuse)


@pytest.mark.parametrize(
    "content",
    [
        "clusters:\n- {name: work, cluster: {}}\n",
        OURS + "- {name: work, cluster: {}}\n",
        "no kubeconfig",
        "",
        "a: [",
        "clusters: 3\n",
        "clusters: []\n",
        "clusters:\n- {name: lab-2, cluster: {}}\n- {name: lab-2-cp-2, cluster: {}}\n",
    ],
)
def test_what_is_somebody_elses_is_not_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    with pytest.raises(BadInput, match="it would be overwritten"):
        up(name="lab", kubeconfig=path)
    assert path.read_text() == content
    assert not (tmp_path / "labs").exists(), "no machine was made"


def test_the_labs_own_kubeconfig_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "config"
    _refuse_foreign(path, "lab")
    path.write_text(OURS)
    _refuse_foreign(path, "lab")
    with pytest.raises(BadInput, match="no such directory"):
        _refuse_foreign(tmp_path / "none" / "config", "lab")


def test_a_version_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"--kubernetes-version 1\.2\.3") as refused:
        up(version="1.2.3")
    assert "1.36.3" in refused.value.hint
    assert not (tmp_path / "labs").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="root")
@pytest.mark.parametrize(("user", "owner"), [("1234", 1234), (None, 0), ("root; rm", 0)])
def test_the_kubeconfig_belongs_to_who_called_sudo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: str | None, owner: int
) -> None:
    for name in ("SUDO_UID", "SUDO_GID"):
        monkeypatch.delenv(name, raising=False)
        if user is not None:
            monkeypatch.setenv(name, user)
    path = tmp_path / "config"
    _hand_over(b"content", path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (owner, owner, 0o600)
    assert path.read_bytes() == b"content"


def test_images_go_to_a_lab_that_is_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there is no lab 'lab'"):
        load_images("lab", [tmp_path / "app.tar"])
