"""Golden files: what each kind of machine gets, byte for byte, for one fixed cluster with made-up certificates.

``UPDATE_GOLDEN=1 pytest tests/contract/test_golden.py`` renews them; the diff of the commit is then the review.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from provisioner.desired import HostState
from provisioner.render import ROLES, HostContext, render_host

GOLDEN = Path(__file__).parent / "golden"
UPDATE = os.environ.get("UPDATE_GOLDEN") == "1"
# Everything that has no file of its own here: modes, owners, secrets by name, units with their hashes.
INDEX = "INDEX"


def index_of(state: HostState) -> str:
    lines = [
        f"{file.mode:04o} {file.owner}:{file.group} {file.path}{' secret' * file.secret}{' once' * file.once}"
        for file in sorted(state.files, key=lambda file: file.path)
    ]
    lines += [f"{item.mode:04o} root:root {item.path} artifact" for item in sorted(state.artifacts, key=lambda item: item.path)]
    lines += [f"absent {path} ({role})" for role, path in state.absent]
    lines += [f"unit {unit.name} {unit.hash}{''.join(f' reload:{path}' for path in unit.reload_on)}" for unit in state.units]
    lines += [f"sysctl {name}={value}" for name, value in state.sysctls]
    lines += [f"module {name}" for name in state.modules]
    lines += [f"user {name}" for name in state.users]
    return "\n".join(lines) + "\n"


def files_of(state: HostState) -> dict[str, bytes]:
    """Path below the golden directory -> content. The suffix keeps linters from taking them for the project's own YAML.

    Scripts that are modules of ours are under review where they are written.
    """
    modules = {path for role in ROLES for path, _ in role.scripts}
    shown = {
        f"{file.path.lstrip('/')}.golden": file.content
        for file in state.files
        if not file.secret and file.role != "certificates" and file.path not in modules
    }
    return {INDEX: index_of(state).encode(), **shown}


@pytest.mark.parametrize("kind", ["cp-etcd", "cp", "etcd", "worker", "every-role"])
def test_a_machine_gets_these_very_files(make_host: Callable[..., HostContext], kind: str) -> None:
    # the worker is one with cgroup v1, in a container: what is detected shows in its files
    traits = {"cgroup": 1, "can_lower_oom": False, "container": True} if kind == "worker" else {}
    wanted = files_of(render_host(make_host(kind, traits=traits)))
    directory = GOLDEN / kind
    if UPDATE:
        shutil.rmtree(directory, ignore_errors=True)
        for name, content in wanted.items():
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    found = {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
    assert sorted(found) == sorted(wanted)
    for name, content in wanted.items():
        assert found[name].decode() == content.decode(), f"{kind}/{name}: UPDATE_GOLDEN=1 renews it"
