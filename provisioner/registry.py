"""Which machines this workspace has put something on, with the way to reach each.

cluster.yaml says what shall be; a machine that was taken out of it is named nowhere but here, until it has been wiped or
forgotten. An entry is written before the first change to its machine, so that no crash leaves one that nobody knows of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from provisioner.config import Cluster, Node
from provisioner.errors import BadInput, ProvisionerError
from provisioner.workspace import Workspace, write_atomic


def read(workspace: Workspace) -> dict[str, Node]:
    """The machines by name, as cluster.yaml described them when they were last changed.

    Raises:
        ProvisionerError: the file is damaged.
    """
    path = _path(workspace)
    try:
        document = json.loads(path.read_text())
        return {entry["name"]: Node.model_validate(entry) for entry in document["machines"]}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise ProvisionerError(
            f"{path}: this list of the cluster's machines cannot be read: {type(error).__name__}",
            hint="move it away: `provisioner apply` writes it anew, without machines that cluster.yaml does not name any more",
        ) from None


def remember(workspace: Workspace, nodes: Iterable[Node]) -> None:
    """Put machines on record, in place of what was known of them."""
    known = read(workspace)
    _write(workspace, {**known, **{node.name: node for node in nodes}}, known)


def forget(workspace: Workspace, *names: str) -> None:
    """Drop machines that have been wiped or given up."""
    known = read(workspace)
    _write(workspace, {name: node for name, node in known.items() if name not in names}, known)


def left_out(cluster: Cluster, known: Mapping[str, Node]) -> tuple[Node, ...]:
    """The machines on record that cluster.yaml does not name any more. Pure.

    Raises:
        BadInput: such a machine is in cluster.yaml under another name: wiping it would wipe that one.
    """
    here = {node.ip: node for node in cluster.nodes}
    gone = tuple(node for name, node in known.items() if name not in {node.name for node in cluster.nodes})
    for node in gone:
        if same := here.get(node.ip):
            raise BadInput(
                f"{same.name} has the address {node.ip} of {node.name}, which is not in cluster.yaml any more; nothing was changed",
                hint=f"a machine cannot be given another name: call it {node.name} again,"
                f" or remove it first (`provisioner node remove {node.name}`) and add it as {same.name} then",
            )
    return gone


def refuse_lost_roles(cluster: Cluster, known: Mapping[str, Node]) -> None:
    """A machine that stays keeps its roles: what a role has put there, and the pods or the member it runs, go with the machine.

    Raises:
        BadInput: names the first that has lost some.
    """
    for node in cluster.nodes:
        lost = sorted(set(known[node.name].roles) - set(node.roles)) if node.name in known else []
        if lost:
            raise BadInput(
                f"{node.name}: cluster.yaml takes the role {', '.join(lost)} from a machine that stays; nothing was changed",
                hint=f"give it back; or `provisioner node remove {node.name}`, then add it with the roles it shall have",
            )


def _write(workspace: Workspace, machines: Mapping[str, Node], before: Mapping[str, Node]) -> None:
    if machines == before:
        return
    entries = [node.model_dump(mode="json", by_alias=True, exclude_defaults=True) for node in machines.values()]
    write_atomic(_path(workspace), json.dumps({"machines": entries}, indent=1) + "\n")


def _path(workspace: Workspace) -> Path:
    return workspace.root / "machines.json"
