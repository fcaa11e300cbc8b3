"""A `vagrant` that prints what it is told to, and machines that answered once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

Script = Callable[..., None]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a Vagrantfile, which is the current one."""
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "Vagrantfile").write_text("")
    monkeypatch.chdir(directory)
    for name in ("VAGRANT_CWD", "VAGRANT_VAGRANTFILE"):
        monkeypatch.delenv(name, raising=False)
    return directory


@pytest.fixture
def vagrant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Put a program of that name on PATH, alone with the shell that runs it."""

    def make(*, status: str = "", ssh_config: str = "", code: int = 0, complaint: str = "") -> None:
        directory = tmp_path / "bin"
        directory.mkdir(exist_ok=True)
        (tmp_path / "status").write_text(status)
        (tmp_path / "ssh-config").write_text(ssh_config)
        program = directory / "vagrant"
        program.write_text(
            "#!/bin/sh\n"
            f'echo "$VAGRANT_CWD $*" >>{tmp_path}/calls\n'
            f"[ {code} = 0 ] || {{ echo '{complaint}' >&2; exit {code}; }}\n"
            f"while IFS= read -r line; do printf '%s\\n' \"$line\"; done <{tmp_path}/$1\n"
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(directory))

    assert os.access("/bin/sh", os.X_OK)
    return make
