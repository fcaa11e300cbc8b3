"""The roles' own templates and defaults, rendered in Python under StrictUndefined."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from provisioner.share import ROLES

# libyaml's emitter, where PyYAML has it: twenty times as fast, the same bytes
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def _to_nice_yaml(value: object) -> str:
    return str(yaml.dump(value, Dumper=_DUMPER, indent=2, sort_keys=True, default_flow_style=False))


def _to_json(value: object) -> str:
    return json.dumps(value, indent=2, sort_keys=True)


@functools.cache
def environment() -> jinja2.Environment:
    """The one Jinja environment: an unknown variable is an error; the filters carry Ansible's names."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(ROLES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - configuration files, not HTML
    )
    env.filters["to_nice_yaml"] = _to_nice_yaml
    env.filters["to_json"] = _to_json
    return env


@functools.cache
def role_defaults(role: str) -> Mapping[str, Any]:
    """A role's own values: ``roles/ROLE/defaults/main.yml``, plain data without Jinja."""
    path = ROLES / role / "defaults" / "main.yml"
    return yaml.safe_load(path.read_text()) if path.exists() else {}


@functools.cache
def _template(name: str) -> jinja2.Template:
    return environment().get_template(name)


def template_of(role: str, path: str) -> str:
    """Name of the template of a file: it mirrors its place on the host."""
    return f"{role}/templates{path}.j2"


def render(name: str, variables: Mapping[str, object]) -> bytes:
    """Render one template.

    Raises:
        jinja2.UndefinedError: the template uses a variable that Python does not compute.
    """
    return _template(name).render(variables).encode()


def templates_of(role: str) -> tuple[Path, ...]:
    """Every template of a role, for the contract tests."""
    return tuple(sorted((ROLES / role / "templates").rglob("*.j2")))
