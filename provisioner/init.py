"""`provisioner init`: a commented cluster.yaml, and the schema that lets an editor complete and check it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from provisioner import schema
from provisioner.choices import Preset as Preset  # noqa: PLC0414 - its home for everybody else is here
from provisioner.config import Kubernetes
from provisioner.errors import BadInput
from provisioner.workspace import write_atomic

FILE_NAME = "cluster.yaml"


@dataclass(frozen=True, slots=True)
class _Machine:
    name: str
    address: str
    roles: tuple[str, ...]


# The addresses are those of VirtualBox' host-only network, where Vagrant puts its machines too.
_MACHINES: dict[Preset, tuple[_Machine, ...]] = {
    "single": (_Machine("node-1", "192.168.56.11", ("control-plane", "etcd", "worker")),),
    "ha": (
        *(_Machine(f"control-{n}", f"192.168.56.{10 + n}", ("control-plane", "etcd")) for n in (1, 2, 3)),
        *(_Machine(f"worker-{n}", f"192.168.56.{20 + n}", ("worker",)) for n in (1, 2)),
    ),
}


def render(preset: Preset, *, name: str = "demo") -> str:
    """The text of a commented cluster.yaml: `# ` begins a remark, any other `#` switches a setting off."""
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - YAML, not HTML
    )
    template = environment.from_string(files("provisioner").joinpath("data/cluster.yaml.j2").read_text(encoding="utf-8"))
    return template.render(
        preset=preset, name=name, machines=_MACHINES[preset], version=Kubernetes().version, schema_file=schema.FILE_NAME
    )


def write(directory: Path, preset: Preset, *, force: bool = False) -> tuple[Path, Path]:
    """Write cluster.yaml and its schema into a directory, which is made where it is missing.

    Returns:
        the paths of the two files.

    Raises:
        BadInput: there is a cluster.yaml already and ``force`` is not set, or the directory cannot be written.
    """
    target, beside = directory / FILE_NAME, directory / schema.FILE_NAME
    try:
        if target.exists() and not force:
            raise BadInput(f"{target} exists", hint="edit it, name another directory, or overwrite it with --force")
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(beside, json.dumps(schema.json_schema(), indent=2) + "\n", mode=0o644)
        write_atomic(target, render(preset), mode=0o644)
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise BadInput(f"{target}: cannot be written: {reason}", hint="name a directory that you may write to") from None
    return target, beside
