"""`provisioner init`: a commented cluster.yaml, and the schema that lets an editor complete and check it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
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
class Machine:
    """One entry of `nodes`; what is empty or 0 is left to the defaults."""

    name: str
    address: str
    roles: tuple[str, ...]
    cluster_address: str = ""
    ssh_port: int = 0
    ssh_user: str = ""
    ssh_key: str = ""


@dataclass(frozen=True, slots=True)
class Login:
    """What the machines have in common of SSH; port 0 and an empty key are the defaults."""

    user: str = "root"
    port: int = 0
    key: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """What a cluster.yaml is written from.

    Attributes:
        emulated: the machines are too slow for the usual deadlines of etcd and of leases.
        origin: a first remark on where the values come from.
    """

    machines: tuple[Machine, ...]
    login: Login = field(default_factory=Login)
    name: str = "demo"
    emulated: bool = False
    origin: str = ""


# The addresses are those of VirtualBox' host-only network, where Vagrant puts its machines too.
_MACHINES: dict[Preset, tuple[Machine, ...]] = {
    "single": (Machine("node-1", "192.168.56.11", ("control-plane", "etcd", "worker")),),
    "ha": (
        *(Machine(f"control-{n}", f"192.168.56.{10 + n}", ("control-plane", "etcd")) for n in (1, 2, 3)),
        *(Machine(f"worker-{n}", f"192.168.56.{20 + n}", ("worker",)) for n in (1, 2)),
    ),
}


def render(preset: Preset, *, name: str = "demo") -> str:
    """The text of a commented cluster.yaml with machines to be replaced by the user's own."""
    return render_content(Content(_MACHINES[preset], name=name))


def render_content(content: Content) -> str:
    """The text of a commented cluster.yaml: `# ` begins a remark, any other `#` switches a setting off."""
    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - YAML, not HTML
    )
    template = environment.from_string(files("provisioner").joinpath("data/cluster.yaml.j2").read_text(encoding="utf-8"))
    planes = sum("control-plane" in machine.roles for machine in content.machines)
    return template.render(
        preset="ha" if planes > 1 else "single",
        name=content.name,
        machines=content.machines,
        ssh=content.login,
        emulated=content.emulated,
        origin=content.origin,
        version=Kubernetes().version,
        schema_file=schema.FILE_NAME,
    )


def refuse_existing(directory: Path, *, force: bool) -> None:
    """Do not overwrite what a user may have edited.

    Raises:
        BadInput: there is a cluster.yaml already and ``force`` is not set.
    """
    target = directory / FILE_NAME
    try:
        there = target.exists()
    except (OSError, ValueError) as error:
        raise _unwritable(target, error) from None
    if there and not force:
        raise BadInput(f"{target} exists", hint="edit it, name another directory, or overwrite it with --force")


def write(directory: Path, preset: Preset, *, force: bool = False) -> tuple[Path, Path]:
    """Write a template of a cluster.yaml, and its schema.

    Returns:
        the paths of the two files.

    Raises:
        BadInput: there is a cluster.yaml already and ``force`` is not set, or the directory cannot be written.
    """
    refuse_existing(directory, force=force)
    return write_text(directory, render(preset))


def write_text(directory: Path, text: str) -> tuple[Path, Path]:
    """Write cluster.yaml and its schema into a directory, which is made where it is missing.

    Returns:
        the paths of the two files.

    Raises:
        BadInput: the directory cannot be written.
    """
    target, beside = directory / FILE_NAME, directory / schema.FILE_NAME
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(beside, json.dumps(schema.json_schema(), indent=2) + "\n", mode=0o644)
        write_atomic(target, text, mode=0o644)
    except (OSError, ValueError) as error:
        raise _unwritable(target, error) from None
    return target, beside


def common(values: Sequence[str]) -> str:
    """The value that all have; empty where they differ."""
    return values[0] if len(set(values)) == 1 else ""


def _unwritable(target: Path, error: Exception) -> BadInput:
    reason = (getattr(error, "strerror", None) or str(error)).lower()
    return BadInput(f"{target}: cannot be written: {reason}", hint="name a directory that you may write to")
