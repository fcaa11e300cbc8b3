"""A YAML text as plain values that remember their lines. The only import of yaml for cluster.yaml.

Scalars follow YAML 1.2's core schema, as editors and Go do by now. What YAML 1.1 reads differently (``no``, ``0777``, ``1:30``,
``1_000``) is refused with the way to write it unmistakably, for both readings exist and neither may win in silence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

import yaml

from provisioner.problems import Path, Problem, quoted

try:
    from yaml import CSafeLoader as _Base
except ImportError:  # PyYAML without libyaml: slower, the same results
    from yaml import SafeLoader as _Base  # type: ignore[assignment]

# Far above what any real cluster.yaml needs (5,000 nodes take about 1 MiB and 100,000 values), far below what hurts.
MAX_BYTES = 4 << 20
MAX_DEPTH = 50
# Also after aliases are expanded: nine lines of aliases can stand for a billion values.
MAX_VALUES = 300_000
MAX_NUMBER_LENGTH = 40

_STR, _NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("str", "null", "bool", "int", "float"))
_MERGE = "tag:yaml.org,2002:merge"
_MAP, _SEQ = "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"

_RESOLVERS: tuple[tuple[str, str, str], ...] = (
    (_MERGE, r"<<", "<"),
    (_NULL, r"~|null|Null|NULL|", "~nN"),
    (_BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (_INT, r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (_FLOAT, r"[-+]?(?:0|[1-9][0-9]*)?\.[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?(?:0|[1-9][0-9]*)\.?[eE][-+]?[0-9]+", "-+.0123456789"),
)
# Plain scalars that YAML 1.1 takes for something else than text.
_AMBIGUOUS_BOOL = frozenset(
    word for plain in ("y", "n", "yes", "no", "on", "off") for word in (plain, plain.title(), plain.upper())
)
_AMBIGUOUS_NUMBER = re.compile(
    r"[-+]?(?:0[0-7_]+|0b[01_]+|0x[0-9a-fA-F_]+|0o[0-7]+|[1-9][0-9]*(?:_[0-9_]+)|[1-9][0-9]*(?::[0-5]?[0-9])+)"
)
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Loader(_Base):
    """PyYAML's safe loader with the implicit types of YAML 1.2's core schema."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own protocol


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern})\\Z"), list(_first) + ([""] if _tag == _NULL else []))


# id(mapping node) -> key -> (key node, value node), with what `<<` brings in.
Entries = dict[int, dict[str, tuple[yaml.Node, yaml.Node]]]


class _Mark(Protocol):
    """Where something stands, from 0; libyaml's marks and PyYAML's own are unrelated types."""

    index: int
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed text: plain values (None where nothing could be parsed), its problems, and where everything stands."""

    value: object
    problems: tuple[Problem, ...]
    root: yaml.Node | None = field(repr=False, default=None)
    entries: Entries = field(repr=False, default_factory=dict)

    def locate(self, path: Path) -> tuple[int, int]:
        """(line, column), from 1, of what stands at a path, or of the nearest thing above it; (0, 0) in an empty text."""
        if self.root is None:
            return 0, 0
        node = self.root
        mark = node.start_mark
        for part in path:
            if isinstance(node, yaml.MappingNode) and isinstance(part, str):
                entry = self.entries.get(id(node), {}).get(part)
                if entry is None:
                    break
                key, node = entry
                same_line = isinstance(node, yaml.ScalarNode) and node.start_mark.line == key.start_mark.line
                mark = node.start_mark if same_line else key.start_mark
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
                node = node.value[part]
                mark = node.start_mark
            else:
                break
        return mark.line + 1, mark.column + 1


@dataclass(frozen=True, slots=True)
class Written:
    """How one node of a text is written: where, in which style, and what in it; comments are in none.

    Attributes:
        start: offset of its first character (of its anchor or tag, where it has one).
        end: offset behind its last character.
        style: ``block``, ``flow`` or ``alias``; a scalar's is its indicator (``'``, ``"``, ``|``, ``>``) or empty.
        decorated: it has an anchor or a tag.
        text: a scalar's.
        children: a sequence's items; a mapping's keys and values in turn.
    """

    kind: Literal["mapping", "sequence", "scalar", "alias"]
    start: int
    end: int
    style: str
    decorated: bool = False
    text: str = ""
    children: tuple[Written, ...] = ()

    def get(self, key: str) -> Written | None:
        """The value that a mapping has for a key itself, not by a merge."""
        pairs = zip(self.children[::2], self.children[1::2], strict=True) if self.kind == "mapping" else ()
        return next((value for name, value in pairs if name.kind == "scalar" and name.text == key), None)


def outline(text: str) -> Written | None:
    """The nodes of a text that :func:`parse` has read without a problem; None where there is none.

    From the events: in the node graph an alias is the node it stands for.
    """
    # libyaml does not count a byte order mark
    unmarked = text.removeprefix("\ufeff")
    events = yaml.parse(unmarked, Loader=_Loader)
    for event in events:
        if isinstance(event, yaml.NodeEvent):
            return _written(event, events, len(text) - len(unmarked))
    return None


def _written(event: yaml.Event, events: Iterator[yaml.Event], base: int) -> Written:
    start, end = _offset(event.start_mark, base), _offset(event.end_mark, base)
    if isinstance(event, yaml.ScalarEvent):
        return Written("scalar", start, end, event.style or "", bool(event.anchor or event.tag), event.value)
    if not isinstance(event, yaml.CollectionStartEvent):
        return Written("alias", start, end, "alias")
    children: list[Written] = []
    for following in events:
        if isinstance(following, yaml.CollectionEndEvent):
            closed = _offset(following.end_mark, base)
            # a block's end is wherever the next token begins
            end = closed if event.flow_style else max([end, *(child.end for child in children)])
            break
        children.append(_written(following, events, base))
    kind: Literal["mapping", "sequence"] = "mapping" if isinstance(event, yaml.MappingStartEvent) else "sequence"
    style = "flow" if event.flow_style else "block"
    return Written(kind, start, end, style, bool(event.anchor or event.tag), children=tuple(children))


def _offset(mark: _Mark | None, base: int) -> int:
    return base + (mark.index if mark else 0)


def parse(text: str) -> Document:
    """Parse one YAML document. Never raises: whatever is wrong comes back as problems, all of them where YAML's syntax holds."""
    refused = _survey(text)
    if refused:
        return Document(None, (refused,))
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        return Document(None, (_syntax(error, text),))
    if root is None:
        return Document(None, ())
    reader = _Reader()
    value = reader.read(root)
    return Document(None if reader.too_big else value, tuple(reader.problems), root, reader.entries)


def _survey(text: str) -> Problem | None:
    """Walk the events before building anything: depth, size and number of documents, in constant memory."""
    depth = documents = values = 0
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    return _at(event.start_mark, f"nested more than {MAX_DEPTH} levels deep")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    return _at(event.start_mark, "a second YAML document (`---`) starts here; one file describes one cluster")
            elif isinstance(event, yaml.ScalarEvent):
                values += 1
                if values > MAX_VALUES:
                    return _at(event.start_mark, f"more than {MAX_VALUES} values up to here")
    except yaml.YAMLError as error:
        return _syntax(error, text)
    return None


def _at(mark: _Mark | None, message: str, path: Path = ()) -> Problem:
    if mark is None:
        return Problem(path, message)
    return Problem(path, message, line=mark.line + 1, column=mark.column + 1)


def _syntax(error: yaml.YAMLError, text: str) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError):
        message = ", ".join(part for part in (error.problem, error.context) if part) or "cannot be read as YAML"
        begin, end = error.context_mark, error.problem_mark
        if error.context and begin and end and begin.line != end.line:
            message += f" that begins on line {begin.line + 1}"
        if error.problem and "cannot start any token" in error.problem:
            message += " (YAML indents with spaces, never with tabs; text with special characters needs quotes)"
        return _at(error.problem_mark or error.context_mark, f"not valid YAML: {message}")
    position = getattr(error, "position", None)
    reason = getattr(error, "reason", None) or str(error)
    if not isinstance(position, int):
        return Problem((), f"not valid YAML: {reason}")
    before = text[:position]
    return Problem(
        (),
        f"not valid YAML: {reason} (U+{ord(text[position]):04X})" if position < len(text) else f"not valid YAML: {reason}",
        line=before.count("\n") + 1,
        column=position - before.rfind("\n"),
    )


class _Reader:
    """Turns a node graph into plain values; collects problems; gives up in peace on cycles and on expansions without end."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        # id(node) -> (value, number of values, depth); an anchor is read once, however often it is used.
        self._done: dict[int, tuple[object, int, int]] = {}
        self._open: set[int] = set()
        self.too_big = False
        self.entries: Entries = {}

    def read(self, root: yaml.Node) -> object:
        """The plain value of a whole document."""
        return self._read(root, ())[0]

    def _read(self, node: yaml.Node, path: Path) -> tuple[object, int, int]:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path), 1, 1
        if id(node) in self._done:
            return self._done[id(node)]
        if id(node) in self._open:
            self.problems.append(_at(node.start_mark, "an alias that contains itself", path))
            return None, 1, 1
        self._open.add(id(node))
        if node.tag not in {_MAP, _SEQ}:
            self.problems.append(_at(node.start_mark, f"the YAML tag {quoted(node.tag)} has no meaning here", path))
        value: object
        if isinstance(node, yaml.MappingNode):
            value, count, depth = self._mapping(node, path)
        else:
            value, count, depth = self._sequence(node, path)
        self._open.discard(id(node))
        if count > MAX_VALUES or depth > MAX_DEPTH:
            if not self.too_big:
                self.problems.append(_at(node.start_mark, f"more than {MAX_VALUES} values or {MAX_DEPTH} levels here", path))
            self.too_big = True
            value, count, depth = None, 1, 1
        self._done[id(node)] = value, count, depth
        return value, count, depth

    def _sequence(self, node: yaml.Node, path: Path) -> tuple[list[object], int, int]:
        items, count, depth = [], 1, 0
        for index, child in enumerate(node.value):
            value, number, below = self._read(child, (*path, index))
            items.append(value)
            count += number
            depth = max(depth, below)
        return items, count, depth + 1

    def _mapping(self, node: yaml.MappingNode, path: Path) -> tuple[dict[str, object], int, int]:
        result: dict[str, object] = {}
        entries: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merges: list[yaml.Node] = []
        count, depth = 1, 0
        for key, child in node.value:
            if key.tag == _MERGE:
                merges += child.value if isinstance(child, yaml.SequenceNode) else [child]
                continue
            name = self._key(key, path)
            if name is None:
                continue
            if name in entries:
                first = entries[name][0].start_mark.line + 1
                self.problems.append(_at(key.start_mark, f"duplicate key; it stands on line {first} already", (*path, name)))
                continue
            entries[name] = key, child
            result[name], number, below = self._read(child, (*path, name))
            count += number
            depth = max(depth, below)
        # `<<: *one` or `<<: [*one, *two]`: the mapping's own keys win, then the earlier ones
        for child in merges:
            value, number, below = self._read(child, path)
            count += number
            depth = max(depth, below)
            if count > MAX_VALUES:
                break
            if not isinstance(value, dict):
                self.problems.append(_at(child.start_mark, "`<<` merges mappings, and this is none", path))
                continue
            for name, item in value.items():
                result.setdefault(name, item)
                entries.setdefault(name, self.entries[id(child)][name])
        self.entries[id(node)] = entries
        return result, count, depth + 1

    def _key(self, key: yaml.Node, path: Path) -> str | None:
        if not isinstance(key, yaml.ScalarNode):
            self.problems.append(_at(key.start_mark, "a key must be text, not a list or a mapping", path))
            return None
        value = self._scalar(key, path)
        if isinstance(value, str):
            return value
        self.problems.append(_at(key.start_mark, f"a key must be text; put {quoted(key.value)} in quotes", path))
        return None

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> object:
        text = str(node.value)
        if node.tag == _STR:
            # plain style is "" to libyaml and None to PyYAML
            if not node.style and (text in _AMBIGUOUS_BOOL or _AMBIGUOUS_NUMBER.fullmatch(text)):
                self._ambiguous(node, text, path)
            if text.isascii() or not _SURROGATE.search(text):
                return text
            problem = "half of a surrogate pair is no text"
        elif node.tag == _NULL:
            return None
        elif node.tag == _BOOL and text.lower() in {"true", "false"}:
            return text.lower() == "true"
        elif node.tag in {_INT, _FLOAT}:
            number = _number(text, whole=node.tag == _INT)
            if number is not None:
                return number
            problem = f"{quoted(text)} is no number that can be held"
        else:
            problem = f"the YAML tag {quoted(node.tag.removeprefix('tag:yaml.org,2002:'))} has no meaning here"
        self.problems.append(_at(node.start_mark, problem, path))
        return None

    def _ambiguous(self, node: yaml.ScalarNode, text: str, path: Path) -> None:
        kind, plain = ("true or false", "true or false") if text in _AMBIGUOUS_BOOL else ("a number", "the number in plain decimal")
        message = f"{quoted(text)} is {kind} to some YAML readers and text to others: write {plain}, or put it in quotes"
        self.problems.append(_at(node.start_mark, message, path))


def _number(text: str, *, whole: bool) -> int | float | None:
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    try:
        number = int(text) if whole else float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
