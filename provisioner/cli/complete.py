"""What <TAB> offers: names from the cluster.yaml at hand, versions from the lock, labs of this host.

Somebody waits with a finger on the key: nothing here imports models, and nothing complains. A file that cannot be read offers none,
one with errors in it offers the names that it has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from provisioner.choices import CHECKS, COMPONENTS, PHASES
from provisioner.cli.common import find_cluster_file
from provisioner.share import VERSIONS

Offer = list[tuple[str, str]]
Completer = Callable[[typer.Context, str], Offer]


def _silent(offer: Callable[[typer.Context], Iterable[tuple[str, str]]]) -> Completer:
    """A completer out of a function that may fail; words that are on the command line already are not offered again."""

    def complete(ctx: typer.Context, incomplete: str) -> Offer:
        try:
            there = {str(word) for value in ctx.params.values() if isinstance(value, list | tuple) for word in value}
            return [(word, about) for word, about in offer(ctx) if word.startswith(incomplete) and word not in there]
        except Exception:
            return []

    return complete


def _yaml(path: Path) -> Any:
    import yaml  # noqa: PLC0415 - for the completers that read a file

    return yaml.load(path.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe


def _nodes(ctx: typer.Context) -> Iterator[tuple[str, str]]:
    given = ctx.params.get("cluster")
    document = _yaml(find_cluster_file(Path(given) if given else None))
    for node in document["nodes"]:
        if isinstance(node, dict) and isinstance(node.get("name"), str):
            roles = node.get("roles")
            yield node["name"], ", ".join(map(str, roles)) if isinstance(roles, list) else ""


def _workspaces(_ctx: typer.Context) -> Iterator[tuple[str, str]]:
    for path in sorted(Path("workspace").glob("*/cluster.yaml")):
        yield str(path.parent), "workspace"


def _versions(_ctx: typer.Context) -> Iterator[tuple[str, str]]:
    for version, parts in _yaml(VERSIONS)["releases"].items():
        yield str(version), f"with etcd {parts['etcd']}, containerd {parts['containerd']}"


def _artifacts(_ctx: typer.Context) -> Iterator[tuple[str, str]]:
    for name in _yaml(VERSIONS)["components"]:
        yield str(name), ""


def _lab_root() -> Path:
    """As ``lab.state.root``, which takes long to import."""
    return Path(os.environ.get("PROVISIONER_LAB_DIR") or "/var/lib/provisioner/lab")


def _labs(_ctx: typer.Context) -> Iterator[tuple[str, str]]:
    for path in sorted(_lab_root().glob("*/state.json")):
        yield path.parent.name, "lab"


def _lab_machines(ctx: typer.Context) -> Iterator[tuple[str, str]]:
    import json  # noqa: PLC0415

    labs = [str(ctx.params["name"])] if ctx.params.get("name") else [name for name, _ in _labs(ctx)]
    for lab in labs if len(labs) == 1 else ():
        for machine in json.loads((_lab_root() / lab / "state.json").read_text())["machines"]:
            yield machine["name"], ", ".join(machine.get("roles", ()))


def _words(words: Iterable[str], about: str) -> Completer:
    return _silent(lambda _ctx: ((word, about) for word in words))


nodes = _silent(_nodes)
versions = _silent(_versions)
artifacts = _silent(_artifacts)
labs = _silent(_labs)
lab_machines = _silent(_lab_machines)
components = _words(COMPONENTS, "component")
phases = _words(PHASES, "phase")


def checks(ctx: typer.Context, incomplete: str) -> Offer:
    """Names of checks, also behind a comma."""
    before, comma, last = incomplete.rpartition(",")
    taken = set(before.split(","))
    offered = _words((check for check in CHECKS if check not in taken), "check")(ctx, last)
    return [(f"{before}{comma}{word}", about) for word, about in offered]


def clusters(ctx: typer.Context, incomplete: str) -> Offer:
    """Workspaces here, and whatever directory or YAML file the word begins: a shell offers no paths beside other words."""
    offered = _silent(_workspaces)(ctx, incomplete)
    try:
        return offered + [(path, "") for path in _paths(incomplete) if path not in {word for word, _ in offered}]
    except (OSError, RuntimeError):  # the latter of `~nobody/`, whose home is not known
        return offered


def _paths(incomplete: str) -> Iterator[str]:
    head, _, tail = incomplete.rpartition("/")
    lead = f"{head}/" if "/" in incomplete else ""
    for entry in sorted(os.scandir(Path(lead or ".").expanduser()), key=lambda entry: entry.name):
        if not entry.name.startswith(tail) or (entry.name.startswith(".") and not tail.startswith(".")):
            continue
        if entry.is_dir():
            yield f"{lead}{entry.name}/"
        elif entry.name.endswith((".yaml", ".yml")):
            yield f"{lead}{entry.name}"
