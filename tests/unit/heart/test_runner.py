"""How Ansible is started."""

from __future__ import annotations

import sys
from pathlib import Path

from provisioner import runner


def test_host_keys_are_checked_by_ansible_too(tmp_path: Path) -> None:
    """ansible-runner switches the check off unless it is told, and its option would win over that of the inventory."""
    environment = runner._environment(tmp_path / "logs" / "run", str(tmp_path))
    assert environment["ANSIBLE_HOST_KEY_CHECKING"] == "True"
    assert "StrictHostKeyChecking" not in environment["ANSIBLE_SSH_ARGS"]


def test_ansible_is_the_one_of_this_installation(tmp_path: Path) -> None:
    """Also where its directory is not on PATH."""
    environment = runner._environment(tmp_path / "logs" / "run", str(tmp_path))
    assert environment["PATH"].startswith(f"{Path(sys.executable).parent}:")
    assert Path(environment["ANSIBLE_CONFIG"]).is_file()
