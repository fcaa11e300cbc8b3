"""The YAML reader: what it takes, what it refuses with which line, and that nothing makes it fall over."""

from __future__ import annotations

import importlib.util
import itertools
import sys
import time

import pytest
import yaml

from provisioner import document
from provisioner.document import MAX_DEPTH, MAX_VALUES, parse
from provisioner.problems import Problem


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: 1\nb: -2\nc: 0\n", {"a": 1, "b": -2, "c": 0}),
        ("a: true\nb: False\nc: ~\nd:\ne: null\n", {"a": True, "b": False, "c": None, "d": None, "e": None}),
        ("a: 1.5\nb: 1e3\nc: -.5\n", {"a": 1.5, "b": 1000.0, "c": -0.5}),
        (
            "a: 10.244.0.0/16\nb: 1.36.3\nc: 2024-01-01\nd: 192.168.1.1\n",
            {"a": "10.244.0.0/16", "b": "1.36.3", "c": "2024-01-01", "d": "192.168.1.1"},
        ),
        ("a: 'no'\nb: \"007\"\nc: |\n  yes\n", {"a": "no", "b": "007", "c": "yes\n"}),
        ("a: !!str 1\nb: !!int '2'\n", {"a": "1", "b": 2}),
        (
            "x: &x {k: 1}\na: *x\nb: {<<: *x, l: 2}\nc: {<<: [*x, {k: 3, m: 4}]}\n",
            {"x": {"k": 1}, "a": {"k": 1}, "b": {"k": 1, "l": 2}, "c": {"k": 1, "m": 4}},
        ),
        ("x: &x {k: 1}\nb: {k: 2, <<: *x}\n", {"x": {"k": 1}, "b": {"k": 2}}),
        ("", None),
        ("# nothing\n", None),
        ("--- # with a marker\na: 1\n...\n", {"a": 1}),
    ],
)
def test_reads(text: str, value: object) -> None:
    parsed = parse(text)
    assert parsed.problems == ()
    assert parsed.value == value


@pytest.mark.parametrize(
    ("text", "line", "column", "says"),
    [
        ("a: 1\nb: [1, 2\nc: 3\n", 3, 2, "while parsing a flow sequence that begins on line 2"),
        ("a: b: c\n", 1, 5, "mapping values are not allowed"),
        ("a:\n\tb: 1\n", 2, 1, "spaces, never with tabs"),
        ("a: *nowhere\n", 1, 4, "undefined alias"),
        ("a: 1\nb: x\x00\n", 2, 5, "control characters are not allowed (U+0000)"),
        ("a: 1\n---\nb: 2\n", 2, 1, "second YAML document"),
        ("a: 1\nb: 2\na: 3\n", 3, 1, "stands on line 1 already"),
        ("a: {b: 1, b: 2}\n", 1, 11, "duplicate key"),
        ("a: {[1]: 2}\n", 1, 5, "a key must be text"),
        ("a:\n  1: x\n", 2, 3, 'put "1" in quotes'),
        ("a: no\n", 1, 4, "write true or false, or put it in quotes"),
        ("a: 0777\n", 1, 4, "plain decimal"),
        ("a: 1_000\n", 1, 4, "plain decimal"),
        ("a: 12:30\n", 1, 4, "plain decimal"),
        ("a: 0x1F\n", 1, 4, "plain decimal"),
        ("a: !!python/object/apply:os.system [ls]\n", 1, 4, "python/object/apply:os.system"),
        ("a: !mine x\n", 1, 4, "!mine"),
        ("a: !!binary aGk=\n", 1, 4, "binary"),
        ("a: !!set {b, c}\n", 1, 4, "set"),
        ("a: !!int x\n", 1, 4, "no number"),
        ("a: 1e999\n", 1, 4, "no number"),
        ("a: " + "9" * 5000 + "\n", 1, 4, "no number"),
        ("a: &a [*a]\n", 1, 4, "contains itself"),
        ("a: &a {<<: &b {<<: *a}}\n", 1, 4, "contains itself"),
        ("a: {<<: 1}\n", 1, 9, "merges mappings"),
        ("[" * 100_000, 1, MAX_DEPTH + 1, "nested more than"),
        ("a: " + "{a: " * 100_000, 1, None, "nested more than"),
        ("- " * 100_000, 1, None, "nested more than"),
        ("- x\n" * (MAX_VALUES + 1), MAX_VALUES + 1, 3, "more than"),
    ],
)
def test_refuses(text: str, line: int, column: int | None, says: str) -> None:
    problem = parse(text).problems[0]
    assert says in problem.message
    assert problem.line == line
    if column is not None:
        assert problem.column == column


def test_everything_wrong_is_told_at_once() -> None:
    text = "a: no\na: 1\n1: x\nb: 0777\n"
    assert [problem.line for problem in parse(text).problems] == [1, 2, 3, 4]


def test_an_alias_bomb_is_refused_at_once() -> None:
    names = "abcdefghijklmnop"
    text = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for before, name in itertools.pairwise(names):
        text += f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    started = time.monotonic()
    parsed = parse(text)
    assert parsed.value is None
    assert "more than" in parsed.problems[0].message
    # expanding it would take longer than the universe has stood
    assert time.monotonic() - started < 30


def test_a_bomb_of_merges_is_refused_too() -> None:
    keys = ", ".join(f"k{i}: 1" for i in range(10_000))
    text = f"a: &a {{{keys}}}\nb: {{<<: [{', '.join(['*a'] * 10_000)}]}}\n"
    parsed = parse(text)
    assert parsed.value is None
    assert "more than" in parsed.problems[0].message


def test_depth_by_aliases_is_depth() -> None:
    text = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [[[[[[*a{i - 1}]]]]]]\n" for i in range(1, 40))
    assert "levels" in parse(text).problems[0].message


def test_locate() -> None:
    text = "x: &x\n  k: 1\nlist:\n  - a: 1\n    b:\n      c: 2\n  - <<: *x\n    m: [1, 22]\n"
    parsed = parse(text)
    assert parsed.locate(()) == (1, 1)
    assert parsed.locate(("list", 0, "a")) == (4, 8)
    # what fills a block of its own stands where its key does
    assert parsed.locate(("list", 0, "b")) == (5, 5)
    assert parsed.locate(("list", 0, "b", "c")) == (6, 10)
    assert parsed.locate(("list", 1, "k")) == (2, 6)
    assert parsed.locate(("list", 1, "m", 1)) == (8, 12)
    # what is not there: the nearest thing above it
    assert parsed.locate(("list", 1, "none", "deeper")) == (7, 5)
    assert parsed.locate(("list", 7)) == (3, 1)
    assert parse("").locate(("a",)) == (0, 0)


def vars_of(problem: Problem) -> tuple[object, ...]:
    """The fields of a problem, whichever module made it."""
    return problem.path, problem.line, problem.column, problem.message


def test_without_libyaml_it_reads_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(yaml, "CSafeLoader")
    spec = importlib.util.spec_from_file_location("document_without_libyaml", document.__file__)
    assert spec
    assert spec.loader
    slow = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, slow)
    spec.loader.exec_module(slow)
    for text in (
        "a: [1, -2, 0.5, true, ~, 'no', \"x\", 10.0.0.0/8]\nb:\n  c: |\n    d\n",
        "a: &a {b: 1}\nc: {<<: *a, d: 2}\n",
        "a: no\nb: 0777\nb: 1\n1: x\n",
        "a: &a [*a]\n",
        "[" * 1000,
        "a: !mine x\n",
        "a: 1\n---\nb: 2\n",
    ):
        fast, other = parse(text), slow.parse(text)
        assert other.value == fast.value, text
        assert [vars_of(problem) for problem in other.problems] == [vars_of(problem) for problem in fast.problems], text
    # only PyYAML's own reader lets halves of surrogate pairs through
    assert "surrogate" in slow.parse('a: "\\ud800"\n').problems[0].message
