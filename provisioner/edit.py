"""Changes of `nodes:` in the text of a cluster.yaml; everything else keeps its place, its comments and its bytes.

The text is cut along the marks of its own parser, never written anew. What comes of it is parsed and compared with the change that
was asked for: whatever cannot be cut safely (flow sequences, an anchor that others refer to) is refused and left to its author.
"""

from __future__ import annotations

import bisect
import copy
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from provisioner import document
from provisioner.document import Written
from provisioner.errors import BadInput
from provisioner.problems import quoted

_HINT = "edit `nodes:` of the file by hand and run `provisioner apply`"
# The line breaks of YAML 1.1, by which the parser counts.
_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_BLANK = " \t\n\r\x85\u2028\u2029"
# Text that may stand without quotes in both styles; whether it is text then and no number is asked of the parser.
_PLAIN = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./@%+~-]*")
# A list item that is switched off, which is no remark about the item below it.
_SWITCHED_OFF = re.compile(r"#+\s*-(?:\s|$)")


def add_node(text: str, node: Mapping[str, object]) -> str:
    """Append an item to `nodes:`, written like the last one.

    Args:
        text: of a cluster.yaml.
        node: keys as in the file (``clusterAddress``), in the order in which they are to stand.

    Raises:
        BadInput: there is a node of that name, or the file is written in a way that cannot be added to.
    """
    sheet = _Sheet.of(text)
    added = {key: _plain(value) for key, value in node.items()}
    name = added.get("name")
    if any(_name_of(item) == name for item in sheet.items):
        raise BadInput(f"there is a node {quoted(str(name))} already", hint="node names are unique: choose another one")
    spans = sheet.spans()
    last = sheet.written[-1]
    # comments that are indented like the last item's keys are that item's, also behind a blank line
    line = spans[-1].end
    for index in range(line, len(sheet.lines)):
        if not sheet.is_blank(index):
            if sheet.comment_column(index) <= spans[-1].column:
                break
            line = index + 1
    before = sheet.lines[:line]
    # where the file has no newline at its end, the line above tells how lines end here
    broken = _BREAK.search(before[-1])
    newline = broken or _BREAK.search(before[-2])
    lines = _item_lines(added, last, spans[-1].column, sheet.column(_content(last).start))
    piece = (newline.group() if newline else "\n").join(lines)
    if broken:
        piece += broken.group()
    else:
        piece = (newline.group() if newline else "\n") + piece
    result = "".join([*before, piece, *sheet.lines[line:]])
    return sheet.checked(result, [*sheet.items, added], "a node cannot be added")


def remove_node(text: str, name: str) -> str:
    """Take an item out of `nodes:`, with the remarks directly above it.

    Remarks that a blank line parts from the item, and items that are switched off by a `#`, stay.

    Raises:
        BadInput: there is no such node, or no other one, or the file is written in a way that it cannot be taken out of.
    """
    sheet = _Sheet.of(text)
    index = sheet.find(name)
    if len(sheet.items) == 1:
        raise BadInput(f"{quoted(name)} is the only node: a cluster without nodes is none", hint="add another machine first")
    span = sheet.spans()[index]
    before, after = sheet.lines[: span.first], sheet.lines[span.end :]
    if not after and before and not _BREAK.search(sheet.lines[-1]):
        # a file without a newline at its end goes on having none
        before[-1] = _BREAK.sub("", before[-1])
    rest = [item for number, item in enumerate(sheet.items) if number != index]
    return sheet.checked("".join([*before, *after]), rest, f"{quoted(name)} cannot be taken out")


def replace_node(text: str, name: str, changes: Mapping[str, object]) -> str:
    """Change scalar values (``name``, ``address``, ``clusterAddress``) of one item where they stand.

    A key that the item has not gets a place behind its ``address`` (or ``name``).

    Raises:
        BadInput: there is no such node, or its values are written in a way that cannot be changed in place.
    """
    sheet = _Sheet.of(text)
    index = sheet.find(name)
    item = sheet.written[index]
    wanted = {**sheet.items[index], **{key: _plain(value) for key, value in changes.items()}}
    what = f"{quoted(name)} cannot be changed"
    cuts: list[tuple[int, int, str]] = []
    for key, change in changes.items():
        value = _plain(change)
        if isinstance(value, dict | list):
            raise BadInput(f"{what}: {key} is not a single value", hint=_HINT)
        old = item.get(key)
        if old is None:
            cuts.append(sheet.insertion(item, key, value, what))
        elif old.kind not in {"scalar", "alias"} or old.style in {"|", ">"} or old.decorated:
            raise BadInput(f"{what}: the way its {key} is written", hint=_HINT)
        else:
            # an empty value stands directly behind the colon
            gap = " " if old.start == old.end and text[old.start - 1 : old.start] == ":" else ""
            cuts.append((old.start, old.end, gap + _scalar(value, old.style)))
    result = text
    # from the end, so that the offsets before it hold; of two insertions at one place the first asked for comes first
    cuts.reverse()
    for start, end, piece in sorted(cuts, key=lambda cut: cut[0], reverse=True):
        result = result[:start] + piece + result[end:]
    return sheet.checked(result, [*sheet.items[:index], wanted, *sheet.items[index + 1 :]], what)


@dataclass(frozen=True, slots=True)
class _Span:
    """The lines of one item, from the remarks above it up to (not with) ``end``, and the column of its dash."""

    first: int
    end: int
    column: int


@dataclass(frozen=True, slots=True)
class _Sheet:
    """A text cut into lines, with `nodes:` as values and as written."""

    text: str
    lines: list[str]
    starts: list[int]
    value: dict[str, object]
    items: list[dict[str, object]]
    nodes: Written

    @classmethod
    def of(cls, text: str) -> _Sheet:
        parsed = document.parse(text)
        if parsed.problems:
            details = tuple(f"line {problem.line}: {problem.message}" for problem in parsed.problems)
            raise BadInput("the file cannot be read", hint="`provisioner validate` shows what is wrong", details=details)
        root = document.outline(text)
        nodes = root.get("nodes") if root else None
        value = parsed.value if isinstance(parsed.value, dict) else {}
        items = value.get("nodes")
        if nodes is None or not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
            raise BadInput("the file has no list `nodes:` of its own with machines in it", hint=_HINT)
        if nodes.kind != "sequence":
            raise BadInput("`nodes:` is an alias of something written elsewhere", hint=_HINT)
        starts = [0, *(match.end() for match in _BREAK.finditer(text))]
        if starts[-1] == len(text):
            starts.pop()
        lines = [text[start:end] for start, end in itertools.pairwise([*starts, len(text)])]
        return cls(text, lines, starts, value, items, nodes)

    @property
    def written(self) -> tuple[Written, ...]:
        return self.nodes.children

    def find(self, name: str) -> int:
        found = [index for index, item in enumerate(self.items) if _name_of(item) == name]
        if len(found) == 1:
            return found[0]
        names = ", ".join(str(_name_of(item)) for item in self.items)
        problem = "there are several nodes" if found else "there is no node"
        raise BadInput(f"{problem} {quoted(name)}", hint=f"the file's nodes are {names}")

    def line(self, offset: int) -> int:
        return bisect.bisect_right(self.starts, offset) - 1

    def column(self, offset: int) -> int:
        return offset - self.starts[self.line(offset)]

    def is_blank(self, line: int) -> bool:
        return not self.lines[line].strip(_BLANK)

    def comment_column(self, line: int) -> int:
        """Where the comment of a line that is nothing else begins; -1 for any other line."""
        stripped = self.lines[line].lstrip(" \t")
        return len(self.lines[line]) - len(stripped) if stripped.startswith("#") else -1

    def spans(self) -> list[_Span]:
        """The lines of each item.

        Raises:
            BadInput: items do not begin on lines of their own.
        """
        if self.nodes.style != "block":
            raise BadInput("`nodes:` is written in brackets (`[...]`), not as lines that begin with `-`", hint=_HINT)
        spans: list[_Span] = []
        behind = self.nodes.start
        for item in self.written:
            candidates = range(self.line(behind) + bool(spans), self.line(item.start) + 1)
            dash = next((line for line in candidates if self.lines[line].lstrip(" ").startswith("-")), None)
            column = len(self.lines[dash]) - len(self.lines[dash].lstrip(" ")) if dash is not None else -1
            if dash is None or (spans and column != spans[0].column):
                raise BadInput(f"line {self.line(item.start) + 1}: the item of `nodes:` has no line of its own", hint=_HINT)
            # a block scalar ends behind its line break
            behind = len(self.text[: item.end].rstrip(_BLANK))
            end = self.line(behind - 1) + 1
            while end < len(self.lines) and self.comment_column(end) > column:
                end += 1
            spans.append(_Span(self._first(dash, column), end, column))
        return spans

    def _first(self, dash: int, column: int) -> int:
        first = dash
        # what is indented deeper than the dash is about the item above
        while first and 0 <= self.comment_column(first - 1) <= column:
            first -= 1
        switched_off = any(_SWITCHED_OFF.match(line.lstrip(" \t")) for line in self.lines[first:dash])
        return dash if switched_off else first

    def insertion(self, item: Written, key: str, value: object, what: str) -> tuple[int, int, str]:
        """Where and how a key is written that an item has not."""
        neighbour = item.get("address") or item.get("name")
        if item.kind != "mapping" or neighbour is None or neighbour.style in {"|", ">"}:
            raise BadInput(f"{what}: there is no place for its {key}", hint=_HINT)
        entry = f"{_scalar(key)}: {_scalar(value)}"
        if item.style == "flow":
            return neighbour.end, neighbour.end, f", {entry}"
        line = self.line(neighbour.end)
        at = self.starts[line] + len(_BREAK.sub("", self.lines[line]))
        newline = _BREAK.search(self.lines[line]) or _BREAK.search(self.lines[line - 1])
        indent = " " * self.column(_content(item).start)
        return at, at, (newline.group() if newline else "\n") + indent + entry

    def checked(self, result: str, items: list[dict[str, object]], what: str) -> str:
        """The new text, if it says the old one's values with these items, and nothing else.

        Raises:
            BadInput: it does not.
        """
        expected = copy.copy(self.value)
        expected["nodes"] = items
        parsed = document.parse(result)
        # as JSON: to Python 1, 1.0 and True are equal
        if parsed.problems or json.dumps(parsed.value, sort_keys=True) != json.dumps(expected, sort_keys=True):
            raise BadInput(f"{what}: the file is written in a way (anchors, aliases, tags) that this would break", hint=_HINT)
        return result


def _name_of(item: Mapping[str, object]) -> object:
    return item.get("name")


def _content(item: Written) -> Written:
    """What stands at the column of an item's keys: in a block mapping its first key, for an anchor may stand before it."""
    return item.children[0] if item.kind == "mapping" and item.style == "block" and item.children else item


def _plain(value: object) -> object:
    """A value as a YAML reader gives it: enums and addresses become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _item_lines(node: Mapping[str, object], like: Written, dash: int, content: int) -> list[str]:
    """An item's lines without their breaks, in the style of another one."""
    styles = {key.text: value for key, value in zip(like.children[::2], like.children[1::2], strict=True)}
    begin = " " * dash + "-" + " " * max(1, content - dash - 1)
    if like.style == "flow":
        return [begin + _flow(node, styles)]
    lines: list[str] = []
    for key, value in node.items():
        lines += _block(key, value, styles.get(key))
    indent = " " * len(begin)
    return [(indent if number else begin) + line for number, line in enumerate(lines)]


def _block(key: str, value: object, like: Written | None) -> list[str]:
    """A key and its value as lines; lists of plain values go in one line unless the neighbour's do not."""
    label = f"{_scalar(key)}:"
    block = _is_nested(value) if like is None else like.style == "block"
    if block and isinstance(value, dict) and value:
        return [label, *(f"  {_scalar(name)}: {_flow(item)}" for name, item in value.items())]
    if block and isinstance(value, list) and value:
        lines = [label]
        for item in value:
            pairs = item.items() if isinstance(item, dict) else ()
            entries = [f"{_scalar(name)}: {_flow(part)}" for name, part in pairs] or [_flow(item)]
            lines += [("    " if number else "  - ") + entry for number, entry in enumerate(entries)]
        return lines
    return [f"{label} {_flow(value, quotes=like.style if like else '')}"]


def _is_nested(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict | list) for item in value))


def _flow(value: object, styles: Mapping[str, Written] | None = None, *, quotes: str = "") -> str:
    if isinstance(value, Mapping):
        styles = styles or {}
        entries = (
            f"{_scalar(key)}: {_flow(item, quotes=styles[key].style if key in styles else '')}" for key, item in value.items()
        )
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_flow(item) for item in value) + "]"
    return _scalar(value, quotes)


def _scalar(value: object, quotes: str = "") -> str:
    """A scalar in the wanted quotes, or without where that says the same."""
    if not isinstance(value, str):
        return json.dumps(value)
    if quotes == "'" and value.isprintable():
        return "'" + value.replace("'", "''") + "'"
    if quotes != '"' and _PLAIN.fullmatch(value):
        parsed = document.parse(f"key: {value}\n")
        if not parsed.problems and parsed.value == {"key": value}:
            return value
    return json.dumps(value, ensure_ascii=not value.isprintable())
