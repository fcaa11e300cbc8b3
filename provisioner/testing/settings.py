"""What the options and settings of a run of pytest ask for. Standard library only: read in every run."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

_LAB = re.compile(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")


@dataclass(frozen=True, slots=True)
class Settings:
    """A cluster as it is wanted.

    Attributes:
        lab: name of the lab and of its cluster.
        kubernetes: version; None for the default.
        keep: leave it at the end, and take one that was left.
        kubeconfig: of a cluster that is there already; then nothing is built, and the rest means nothing.
    """

    lab: str
    control_planes: int = 1
    workers: int = 1
    kubernetes: str | None = None
    keep: bool = False
    kubeconfig: Path | None = None

    def __str__(self) -> str:
        planes = f"{self.control_planes} control plane{'s' * (self.control_planes != 1)}"
        return f"{planes} and {self.workers} worker{'s' * (self.workers != 1)}" if self.workers else planes


def of_config(config: pytest.Config) -> Settings:
    """The settings of a run: options, else the configuration file's, else defaults.

    Raises:
        pytest.UsageError: one of them is wrong.
    """
    kubeconfig = config.getoption("provisioner_cluster_kubeconfig")
    path = None if kubeconfig is None else config.invocation_params.dir / Path(kubeconfig).expanduser()
    if path is not None and not path.is_file():
        raise pytest.UsageError(f"--cluster-kubeconfig: {path}: no such file; `provisioner up --kubeconfig {path}` writes one")
    if path is not None and config.getoption("provisioner_cluster_keep"):
        raise pytest.UsageError("--cluster-keep: the cluster of --cluster-kubeconfig is never taken down")
    return Settings(
        lab=_given(config, "lab", _lab) or _default_lab(config.rootpath),
        control_planes=_number(config, "control_planes", least=1),
        workers=_number(config, "workers", least=0),
        kubernetes=_given(config, "kubernetes", _version),
        keep=bool(config.getoption("provisioner_cluster_keep")),
        kubeconfig=path,
    )


def _default_lab(root: Path) -> str:
    """The same in every run of a project, so that what a killed one left is found again; another one in another project."""
    return f"pytest-{hashlib.sha256(str(root).encode()).hexdigest()[:8]}"


def _given(config: pytest.Config, name: str, check: Callable[[str], str | None]) -> str | None:
    """A value as text; None where nobody has said anything.

    Args:
        check: what a value should be, where it is not that.
    """
    option = config.getoption(f"provisioner_cluster_{name}")
    value = str(option if option is not None else config.getini(f"cluster_{name}") or "").strip()
    source = f"--cluster-{name.replace('_', '-')}" if option is not None else f"setting cluster_{name} of {config.inipath}"
    wrong = check(value) if value or option is not None else None
    if wrong:
        raise pytest.UsageError(f"{source}: {value!r} is not {wrong}")
    return value or None


def _number(config: pytest.Config, name: str, *, least: int) -> int:
    def check(value: str) -> str | None:
        good = value.isascii() and value.isdecimal() and len(value) < 4 and int(value) >= least
        return None if good else f"a number of machines, {least} or more"

    return int(_given(config, name, check) or 1)


def _lab(value: str) -> str | None:
    return None if _LAB.fullmatch(value) else "a name of lower-case letters, digits and hyphens, at most 40 characters"


def _version(value: str) -> str | None:
    return None if _VERSION.fullmatch(value) else "a version like 1.36.3"
