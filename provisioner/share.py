"""Where the playbooks, roles, plugins and the versions lock are: inside the installed package, or beside it in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# The wheel carries them under _share (pyproject.toml); a checkout has them at the top level.
SHARE = _PACKAGE / "_share" if (_PACKAGE / "_share").is_dir() else _PACKAGE.parent

ANSIBLE_CFG = SHARE / "ansible.cfg"
PLAYBOOKS = SHARE / "playbooks"
ROLES = SHARE / "roles"
VERSIONS = SHARE / "versions.yml"
