"""What runs on a machine under systemd, by the names that people use: derived from ``render.layout``, so that none is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from provisioner.config import Cluster, Node
from provisioner.errors import BadInput
from provisioner.problems import did_you_mean
from provisioner.render.layout import ROLES, RoleSpec


@dataclass(frozen=True, slots=True)
class Component:
    """One unit of ours; of a timer, what it starts. ``aliases`` are other names that mean it (that of its role)."""

    name: str
    unit: str
    role: RoleSpec
    aliases: tuple[str, ...] = ()

    def on(self, cluster: Cluster, node: Node) -> bool:
        """Whether a machine carries it."""
        return self.role.applies(cluster, node)

    @property
    def names(self) -> tuple[str, ...]:
        """Every word that means it."""
        return (self.name, *self.aliases)


def plain(unit: str) -> str:
    """A unit's name without what all of ours have."""
    return unit.removesuffix(".service").removesuffix(".timer").removeprefix("provisioner-")


def _all() -> tuple[Component, ...]:
    names = {unit.name: plain(unit.service) for role in ROLES for unit in role.units}
    found = []
    for role in ROLES:
        word = role.name.replace("_", "-")
        # a role's name that is a unit's own means that unit: `containerd`, whose role imports images besides
        aliases = () if word in names.values() else (word,)
        found += [Component(names[unit.name], unit.service, role, aliases) for unit in role.units]
    return tuple(found)


COMPONENTS = _all()


def components_of(cluster: Cluster, node: Node) -> tuple[Component, ...]:
    """The components that a machine's roles carry, in the order in which they are applied."""
    return tuple(component for component in COMPONENTS if component.on(cluster, node))


def choose(cluster: Cluster, node: Node, words: Sequence[str]) -> tuple[Component, ...]:
    """The components of a machine that are named; without a name, all that it carries.

    Raises:
        BadInput: there is no such component, or the machine does not carry it.
    """
    if not words:
        return components_of(cluster, node)
    found: list[Component] = []
    for word in words:
        name = plain(word)
        meant = [component for component in COMPONENTS if name in component.names]
        if not meant:
            known = sorted(name for component in COMPONENTS for name in component.names)
            raise BadInput(
                f'there is no component "{word}"{did_you_mean(name, known)}',
                hint=f"{node.name} carries {_listed(components_of(cluster, node))}",
            )
        carried = [component for component in meant if component.on(cluster, node)]
        if not carried:
            where = [other.name for other in cluster.nodes if any(component.on(cluster, other) for component in meant)]
            raise BadInput(
                f"{node.name} does not carry {word}: its roles are {', '.join(node.roles)}",
                hint=f"{word} is on {', '.join(where)}" if where else f"no machine of this cluster carries {word}",
            )
        found += [component for component in carried if component not in found]
    return tuple(found)


def _listed(components: Sequence[Component]) -> str:
    return ", ".join(component.name for component in components)
