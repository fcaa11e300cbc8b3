"""Desired state as a value: what one host shall look like, role by role. Rendered by ``render``, compared by ``plan``,
placed by the roles, whose action plugins read it from the workspace with ``load_host``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from provisioner.workspace import write_atomic


@dataclass(frozen=True, slots=True)
class File:
    """One file of a host.

    ``secret`` content never reaches a log, a diff or the terminal. A file marked ``once`` is written at birth and left
    alone afterwards.
    """

    role: str
    path: str
    content: bytes = field(repr=False)
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"
    secret: bool = False
    once: bool = False

    @property
    def sha256(self) -> str:
        """Hex digest of the content."""
        return hashlib.sha256(self.content).hexdigest()


@dataclass(frozen=True, slots=True)
class Artifact:
    """A binary or image archive of a host; ``source`` is the file in the controller's cache."""

    role: str
    path: str
    sha256: str
    size: int
    source: str
    mode: int = 0o755


@dataclass(frozen=True, slots=True)
class Unit:
    """A systemd unit of a host.

    ``hash`` covers its unit file, the files it ``reads`` and its binary; a unit that runs another one is restarted, and so is
    one that was started before one of these was last written. ``reload_on`` names files that it takes in by a reload instead.
    """

    role: str
    name: str
    hash: str
    reload_on: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class HostState:
    """Everything one host shall be. ``absent`` holds (role, path) pairs.

    ``swept`` holds (role, pattern) pairs: what of ours lies there, as first line or name tell, and is none of ``files`` goes.

    ``before`` is what is asked of a machine before its very first change, so that it can be made what it was again.
    """

    host: str
    files: tuple[File, ...] = ()
    artifacts: tuple[Artifact, ...] = ()
    units: tuple[Unit, ...] = ()
    absent: tuple[tuple[str, str], ...] = ()
    swept: tuple[tuple[str, str], ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()
    modules: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    variables: Mapping[str, object] = field(default_factory=dict)
    before: Mapping[str, object] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Shipment:
    """The artifacts that one host lacks, in the order in which they stand in the bundle."""

    artifacts: tuple[Artifact, ...] = ()
    bundle: str = ""
    codec: str = "none"


def save_shipment(directory: Path, host: str, shipment: Shipment) -> None:
    """Write what one host is to be sent, for the action plugin."""
    write_atomic(directory / f"{host}.shipment.json", json.dumps(asdict(shipment)))


def load_shipment(directory: str | Path, host: str) -> Shipment:
    """Read back what ``save_shipment`` wrote; a host without one is sent nothing."""
    path = Path(directory) / f"{host}.shipment.json"
    if not path.exists():
        return Shipment()
    document = json.loads(path.read_text())
    return Shipment(tuple(Artifact(**item) for item in document["artifacts"]), document["bundle"], document["codec"])


def save_host(directory: Path, state: HostState) -> None:
    """Write one host's desired state for the action plugins (0600: it holds keys)."""
    document = asdict(state)
    for file in document["files"]:
        file["content"] = file["content"].decode()
    write_atomic(directory / f"{state.host}.json", json.dumps(document), mode=0o600)


def load_host(directory: str | Path, host: str) -> HostState:
    """Read back what ``save_host`` wrote."""
    document = json.loads((Path(directory) / f"{host}.json").read_text())
    return HostState(
        host=document["host"],
        files=tuple(File(**{**file, "content": file["content"].encode()}) for file in document["files"]),
        artifacts=tuple(Artifact(**item) for item in document["artifacts"]),
        units=tuple(
            Unit(**{**unit, "reload_on": tuple(unit["reload_on"]), "reads": tuple(unit["reads"])}) for unit in document["units"]
        ),
        absent=tuple((role, path) for role, path in document["absent"]),
        swept=tuple((role, pattern) for role, pattern in document["swept"]),
        sysctls=tuple((name, value) for name, value in document["sysctls"]),
        modules=tuple(document["modules"]),
        users=tuple(document["users"]),
        variables=document["variables"],
        before=document["before"],
    )
