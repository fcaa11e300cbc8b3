"""pydantic's findings in the words of someone who edits cluster.yaml."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pydantic_core import ErrorDetails

from provisioner.fields import class_of, field_at, homes_of, keys_of, model_at
from provisioner.problems import Path, Problem, did_you_mean, error, quoted, suggestion

# What every pattern of config.py asks for (a test compares the two).
PATTERNS = {
    r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$": (
        "must be a DNS label: lower-case letters, digits and hyphens, no hyphen at either end, at most 63 characters"
    ),
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$": (
        "must be a DNS name: lower-case letters, digits, hyphens and dots, e.g. cluster.local"
    ),
    r"^\d+\.\d+\.\d+$": "must be a full version without a leading v, e.g. 1.36.3",
    r"^\d{1,5}-\d{1,5}$": "must be two ports with a hyphen between, e.g. 30000-32767",
    r"^[1-9]\d{0,5}[mhd]$": "must be a number with d, h or m, e.g. 365d",
}
# Keys whose values may carry a password.
_SECRET = frozenset({"http", "https"})


def describe(value: object) -> str:
    """What kind of value stands there: ``the number 22``, ``a list``."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {quoted(value)[1:-1]}"
    if isinstance(value, list):
        return "a list"
    return "a mapping" if isinstance(value, dict) else f"the text {quoted(value)}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A problem of the models'.

    ``unknown_key``: the key itself is the problem. ``said``: another finding tells it already, as a misspelt key does for the
    required key that is missing.
    """

    problem: Problem
    unknown_key: bool
    said: bool


def findings_of(errors: Iterable[ErrorDetails], data: object) -> list[Finding]:
    """One finding per place of the file, however many members of a union refused its value."""
    found: dict[Path, list[ErrorDetails]] = {}
    meant: set[Path | None] = set()
    for item in errors:
        # pydantic counts only the items that validated, and calls a list of bad ones too short
        if item["type"] == "too_short" and item["input"]:
            continue
        path = _path_in(data, item)
        found.setdefault(path, []).append(item)
        if item["type"] == "extra_forbidden":
            meant.add(meant_by(path))
    findings = []
    for path, items in found.items():
        kind = items[0]["type"]
        problem = error(path, _several(path, items))
        findings.append(Finding(problem, unknown_key=kind == "extra_forbidden", said=kind == "missing" and path in meant))
    return findings


def _path_in(data: object, item: ErrorDetails) -> Path:
    """pydantic's location, cut where it leaves the file (names of a union's members)."""
    path: list[str | int] = []
    for part in item["loc"]:
        if isinstance(data, dict) and isinstance(part, str) and (part in data or item["type"] == "missing"):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            break
        path.append(part)
    return tuple(path)


def _several(path: Path, items: list[ErrorDetails]) -> str:
    if len(items) == 1:
        return _message(path, items[0])
    return f"must be text, a number, true or false, not {describe(items[0]['input'])}"


def _message(path: Path, item: ErrorDetails) -> str:
    kind, value, context = item["type"], item["input"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(path)
    field = field_at(path)
    own_words = _BY_CLASS.get(class_of(field[1].annotation)) if field and field[0] == path and kind != "missing" else None
    if speak := own_words or _BY_TYPE.get(kind):
        return speak(value, context)
    shown = "" if path and path[-1] in _SECRET else f" (found {describe(value)})"
    return f"{item['msg'][:1].lower()}{item['msg'][1:]}{shown}"


def _unknown_key(path: Path) -> str:
    *parents, key = path
    name = str(key)
    meant = meant_by(path)
    if meant and meant[:-1] == path[:-1]:
        return f'unknown key; did you mean "{meant[-1]}"?'
    homes = homes_of(name)
    if homes:
        home = next((section for section in homes if "[]" not in section), homes[0])
        return f"unknown key; {name} belongs " + (f"under `{home}`" if home else "at the top of the file")
    model = model_at(tuple(parents))
    return f"unknown key; known here: {', '.join(keys_of(model))}" if model else "unknown key"


def meant_by(path: Path) -> Path | None:
    """The key that an unknown key was most likely meant to be: a near spelling beside it, else its like in another section."""
    name = str(path[-1])
    model = model_at(path[:-1])
    near = suggestion(name, keys_of(model)) if model else ""
    if near:
        return (*path[:-1], near)
    home = next((section for section in homes_of(name) if "[]" not in section), None)
    return None if home is None else (*(part for part in home.split(".") if part), name)


def _text(value: object, _: Mapping[str, object]) -> str:
    quote = "; put it in quotes" if isinstance(value, bool | int | float) else ""
    return f"must be text, not {describe(value)}{quote}"


def _whole_number(value: object, _: Mapping[str, object]) -> str:
    unquote = "; leave the quotes away" if isinstance(value, str) and value.isdecimal() else ""
    return f"must be a whole number, not {describe(value)}{unquote}"


def _choice(value: object, context: Mapping[str, object]) -> str:
    expected = str(context["expected"])
    known = [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]
    meant = did_you_mean(value, known) if isinstance(value, str) else ""
    return f"must be {expected.replace(chr(39), '')}, not {describe(value)}{meant}"


def _pattern(value: object, context: Mapping[str, object]) -> str:
    pattern = str(context["pattern"])
    text = str(value)
    meant = ""
    for candidate in (text.lower().replace("_", "-"), text.removeprefix("v"), text.replace(" ", "")):
        if candidate != text and len(candidate) <= 63 and _fits(pattern, candidate):
            meant = f"; did you mean {quoted(candidate)}?"
            break
    return f"{PATTERNS.get(pattern, 'does not have the form ' + pattern)}, not {quoted(text)}{meant}"


def _fits(pattern: str, text: str) -> bool:
    return re.fullmatch(pattern, text) is not None


def _address(value: object, _: Mapping[str, object]) -> str:
    text = value if isinstance(value, str) else ""
    try:
        if ipaddress.ip_address(text).version == 6:
            return f"{quoted(text)} is IPv6; the cluster's own addresses are IPv4"
    except ValueError:
        pass
    return f"must be an IPv4 address such as 192.168.56.11, not {describe(value)}"


def _network(value: object, _: Mapping[str, object]) -> str:
    text = value if isinstance(value, str) else ""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return f"must be an IPv4 range such as 10.244.0.0/16, not {describe(value)}"
    if network.version == 6:
        return f"{quoted(text)} is IPv6; the cluster's own addresses are IPv4"
    return f"{quoted(text)} has bits set behind its prefix; did you mean {quoted(network)}?"


def _mapping(value: object, _: Mapping[str, object]) -> str:
    return f"must be a mapping (lines of `key: value`), not {describe(value)}"


def _list(value: object, _: Mapping[str, object]) -> str:
    return f"must be a list (lines that start with `- `), not {describe(value)}"


_BY_TYPE: dict[str, Callable[[object, Mapping[str, object]], str]] = {
    "missing": lambda _value, _context: "required key is missing",
    "string_type": _text,
    "int_type": _whole_number,
    "int_from_float": _whole_number,
    "int_parsing": _whole_number,
    "bool_type": lambda value, _: f"must be true or false, not {describe(value)}",
    "literal_error": _choice,
    "enum": _choice,
    "string_pattern_mismatch": _pattern,
    "string_too_long": lambda _value, context: f"must have at most {context['max_length']} characters",
    "too_short": lambda _value, _context: "must not be empty",
    "greater_than_equal": lambda value, context: f"must be at least {context['ge']}, not {quoted(value)[1:-1]}",
    "less_than_equal": lambda value, context: f"must be at most {context['le']}, not {quoted(value)[1:-1]}",
    "model_type": _mapping,
    "model_attributes_type": _mapping,
    "dict_type": _mapping,
    "tuple_type": _list,
}
# For classes of Python's own that refuse in their own words.
_BY_CLASS: dict[type | None, Callable[[object, Mapping[str, object]], str]] = {
    ipaddress.IPv4Address: _address,
    ipaddress.IPv4Network: _network,
}
