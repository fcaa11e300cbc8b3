"""What cluster.yaml may hold, told to editors (JSON Schema) and to people (the reference page), both out of the models."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable

from annotated_types import Ge, Le
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from provisioner.config import Cluster, Model
from provisioner.fields import is_list, is_union, keys_of, model_in
from provisioner.rules.owned import COMMON_FIELDS, FIELDS, FLAGS
from provisioner.validate import RULES

FILE_NAME = "cluster.schema.json"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_KINDS = {
    "str": "text",
    "int": "whole number",
    "bool": "true or false",
    "float": "number",
    "object": "any value",
    "IPv4Address": "IPv4 address",
    "IPv4Network": "IPv4 range",
}
_HEAD = """# cluster.yaml

<!-- Written by `provisioner schema --markdown` out of the models and rules; do not edit by hand. -->

The one file that describes a cluster. `provisioner init` writes a commented one, `provisioner validate` checks it and names every
problem with its line. Only `name` and `nodes` are required; every other key has the default given here, and takes it too where
nothing stands behind it. Relative file names count from the directory of cluster.yaml, and `~` is your home.

Text follows YAML 1.2: `no`, `0777` or `1:30` without quotes, which YAML 1.1 reads as something else, are refused. Anchors, aliases
and `<<` work."""


def json_schema() -> dict[str, object]:
    """The JSON Schema of cluster.yaml (draft 2020-12), keys as they stand in the file."""
    schema = Cluster.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": _DIALECT, **schema, "title": "cluster.yaml of provisioner"}


def reference() -> str:
    """docs/reference/cluster-yaml.md, as Markdown."""
    parts = [
        _HEAD,
        *_sections(Cluster, "", "The whole file"),
        "## What is checked",
        "Besides each value's own form. A warning is shown and refuses nothing.",
        "\n".join(f"- {_first_paragraph(rule.check)}" for rule in RULES),
        "## What cannot be overridden",
        "Flags and fields that other parts of the cluster rely on, with the reason.",
        *_owned(),
    ]
    return "\n\n".join(parts) + "\n"


def _sections(model: type[Model], path: str, title: str) -> list[str]:
    heading = f"## `{path}`" if path else f"## {title}"
    rows = ["| key | value | default | |", "|---|---|---|---|"]
    inner: list[str] = []
    for key, field in keys_of(model).items():
        below = model_in(field.annotation)
        rows.append(f"| `{key}` | {_type(field)} | {_default(field)} | {_cell(field.description or '')} |")
        if below:
            deeper = f"{path}.{key}" if path else key
            inner += _sections(below, f"{deeper}[]" if is_list(field.annotation) else deeper, key)
    return [heading, _first_paragraph(model), "\n".join(rows), *inner]


def _type(field: FieldInfo) -> str:
    below = model_in(field.annotation)
    if below:
        return "list of mappings" if is_list(field.annotation) else "mapping"
    limits = [f"from {item.ge}" for item in field.metadata if isinstance(item, Ge)]
    limits += [f"to {item.le}" for item in field.metadata if isinstance(item, Le)]
    return _cell(" ".join((_words(field.annotation), *limits)))


def _words(annotation: object) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if is_union(annotation):
        return ", ".join(_words(part) for part in arguments if part is not type(None))
    if origin in _SHAPES:
        return _SHAPES[origin](arguments)
    if not isinstance(annotation, type):
        return "text"
    members = getattr(annotation, "__members__", {})
    return " or ".join(f"`{member.value}`" for member in members.values()) or _KINDS.get(annotation.__name__, annotation.__name__)


_SHAPES: dict[object, Callable[[tuple[object, ...]], str]] = {
    typing.Annotated: lambda arguments: _words(arguments[0]),
    typing.Literal: lambda arguments: " or ".join(f"`{value}`" for value in arguments),
    tuple: lambda arguments: f"list of {_words(arguments[0])}",
    dict: lambda arguments: f"mapping of {_words(arguments[0])} to {_words(arguments[1])}",
}


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default
    if value is None or value is PydanticUndefined or isinstance(value, Model) or value in ({}, (), ""):
        return ""
    if isinstance(value, tuple):
        return f"`[{', '.join(str(item) for item in value)}]`"
    return f"`{json.dumps(value) if isinstance(value, bool) else value}`"


def _owned() -> list[str]:
    tables = {f"Flags of {component}": table for component, table in FLAGS.items()}
    tables |= {f"Fields of {kind}": table for kind, table in FIELDS.items()}
    tables["Fields of KubeletConfiguration for all nodes (`nodes[].kubelet` may set them)"] = COMMON_FIELDS
    parts = []
    for title, table in tables.items():
        by_reason: dict[str, list[str]] = {}
        for name, reason in table.items():
            by_reason.setdefault(reason, []).append(f"`{name}`")
        rows = [f"| {', '.join(names)} | {_cell(reason)} |" for reason, names in by_reason.items()]
        parts += [f"### {title}", "\n".join(["| names | reason |", "|---|---|", *rows])]
    return parts


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _first_paragraph(documented: object) -> str:
    return " ".join(inspect.cleandoc(documented.__doc__ or "").split("\n\n")[0].split())
