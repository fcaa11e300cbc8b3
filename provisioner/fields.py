"""Walking the models of cluster.yaml: which keys a section has, and which model stands at a path of the file."""

from __future__ import annotations

import types
import typing
from functools import cache

from pydantic.fields import FieldInfo

from provisioner.config import Cluster, Model
from provisioner.problems import Path


@cache
def keys_of(model: type[Model]) -> dict[str, FieldInfo]:
    """Key in the file -> field, in the order of the model."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def is_union(annotation: object) -> bool:
    """Whether a field takes one of several kinds of value, or none: ``Bastion | None``."""
    return isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union


def model_in(annotation: object) -> type[Model] | None:
    """The model inside ``Ssh``, ``Bastion | None``, ``tuple[Node, ...]``; None for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    if is_union(annotation) or typing.get_origin(annotation) in {tuple, typing.Annotated}:
        return next((found for part in typing.get_args(annotation) if (found := model_in(part))), None)
    return None


@cache
def sections_of(model: type[Model]) -> dict[str, type[Model]]:
    """Key in the file -> model of what stands behind it, for keys that hold a mapping or a list of them."""
    return {key: inner for key, field in keys_of(model).items() if (inner := model_in(field.annotation))}


def class_of(annotation: object) -> type | None:
    """The one class that a plain field holds, None aside: IPv4Address of ``IPv4Address | None``."""
    if is_union(annotation):
        classes = [part for part in typing.get_args(annotation) if part is not type(None)]
        return class_of(classes[0]) if len(classes) == 1 else None
    return annotation if isinstance(annotation, type) else None


def is_list(annotation: object) -> bool:
    """Whether a field holds a list in the file."""
    if is_union(annotation):
        return any(is_list(part) for part in typing.get_args(annotation))
    return typing.get_origin(annotation) is tuple


def model_at(path: Path) -> type[Model] | None:
    """The model whose keys stand at a path: Cluster at (), Node at ("nodes", 3); None inside plain values."""
    model: type[Model] | None = Cluster
    for part in path:
        if model is None:
            return None
        if isinstance(part, int):
            continue
        field = keys_of(model).get(part)
        model = model_in(field.annotation) if field else None
    return model


def field_at(path: Path) -> tuple[Path, FieldInfo] | None:
    """The innermost field of a model that a path leads to or through, with the field's own path."""
    found: tuple[Path, FieldInfo] | None = None
    model: type[Model] | None = Cluster
    for index, part in enumerate(path):
        if isinstance(part, int):
            continue
        field = keys_of(model).get(part) if model else None
        if field is None:
            break
        found = path[: index + 1], field
        model = model_in(field.annotation)
    return found


@cache
def homes_of(key: str) -> tuple[str, ...]:
    """Every section of the file that has this key: ("ssh", "ssh.bastion") for "user"; "" stands for the top."""
    homes: list[str] = []

    def visit(model: type[Model], section: str) -> None:
        for name, field in keys_of(model).items():
            if name == key:
                homes.append(section)
            inner = model_in(field.annotation)
            if inner:
                path = f"{section}.{name}" if section else name
                visit(inner, f"{path}[]" if is_list(field.annotation) else path)

    visit(Cluster, "")
    return tuple(homes)
