"""Nodes added, removed and changed in the text of a cluster.yaml: the change that was asked for, and not a byte more."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provisioner.config import Role
from provisioner.document import parse
from provisioner.edit import add_node, remove_node, replace_node
from provisioner.errors import BadInput
from provisioner.init import render

BLOCK = textwrap.dedent("""\
    # lab
    apiVersion: provisioner/v1
    name: lab
    nodes:   # the machines
      # in the cellar
      - name: cp-1   # old
        address: "192.0.2.1"
        roles: [control-plane, etcd]

      # Workers

      # the fast one
      # of them
      - name: w-1
        address: 192.0.2.11 # later .12
        roles:
          - worker
        #labels:
        #  example.com/rack: r1
      - {name: w-2, address: 192.0.2.12, roles: [worker]} # a guest
    # behind

    ssh:
      user: admin
    """)
W3: dict[str, object] = {"name": "w-3", "address": "192.0.2.13", "roles": [Role.WORKER]}


def without(text: str, first: int, last: int) -> str:
    """The text without some of its lines, from 1."""
    lines = text.splitlines(keepends=True)
    return "".join(lines[: first - 1] + lines[last:])


def test_added_behind_a_flow_mapping() -> None:
    line = "  - {name: w-3, address: 192.0.2.13, roles: [worker]}\n"
    assert add_node(BLOCK, W3) == BLOCK.replace("# a guest\n", "# a guest\n" + line)


def test_added_behind_a_block_mapping_behind_its_comments() -> None:
    text = BLOCK.replace("  - {name: w-2, address: 192.0.2.12, roles: [worker]} # a guest\n", "")
    added = "  - name: w-3\n    address: 192.0.2.13\n    roles:\n      - worker\n"
    assert add_node(text, W3) == text.replace("rack: r1\n", "rack: r1\n" + added)


def test_added_with_everything() -> None:
    text = "name: lab\nnodes:\n-   name: 'a'\n    address: \"x\"\n    roles: [worker]\n"
    node = {
        "name": "b",
        "address": "10.0.0.2",
        "clusterAddress": "10.1.0.2",
        "roles": ("worker",),
        "labels": {"example.com/rack": "no", "empty": "", "m": "1"},
        "taints": [{"key": "k", "value": "v: w", "effect": "NoSchedule"}, {"key": "k2", "effect": "NoExecute"}],
        "sshPort": 2222,
        "sshKey": "~/.ssh/id",
    }
    assert add_node(text, node) == text + textwrap.dedent("""\
        -   name: 'b'
            address: "10.0.0.2"
            clusterAddress: 10.1.0.2
            roles: [worker]
            labels:
              example.com/rack: "no"
              empty: ""
              m: "1"
            taints:
              - key: k
                value: "v: w"
                effect: NoSchedule
              - key: k2
                effect: NoExecute
            sshPort: 2222
            sshKey: "~/.ssh/id"
        """)


def test_added_behind_comments_of_the_last_item_beyond_a_blank_line() -> None:
    text = "nodes:\n  - name: a\n\n    #labels: {}\n\n  # the end\n"
    assert add_node(text, {"name": "b"}) == "nodes:\n  - name: a\n\n    #labels: {}\n  - name: b\n\n  # the end\n"


@pytest.mark.parametrize(
    ("name", "first", "last"),
    # the remark above cp-1 goes with it, the heading of the workers and the blank lines stay
    [("cp-1", 5, 8), ("w-1", 12, 19), ("w-2", 20, 20)],
)
def test_removed_with_its_own_comments(name: str, first: int, last: int) -> None:
    assert remove_node(BLOCK, name) == without(BLOCK, first, last)


def test_an_item_that_is_switched_off_stays() -> None:
    text = "nodes:\n- name: a\n#- name: b\n#  address: x\n- name: c\n#- name: d\n"
    assert remove_node(text, "c") == "nodes:\n- name: a\n#- name: b\n#  address: x\n#- name: d\n"


def test_replaced_in_place() -> None:
    changed = replace_node(BLOCK, "cp-1", {"name": "cp-9", "address": "192.0.2.9"})
    assert changed == BLOCK.replace("name: cp-1   # old", "name: cp-9   # old").replace('"192.0.2.1"', '"192.0.2.9"')
    changed = replace_node(BLOCK, "w-2", {"address": "h.example.com"})
    assert changed == BLOCK.replace("address: 192.0.2.12,", "address: h.example.com,")


def test_a_key_that_is_not_there_is_put_behind_the_address() -> None:
    changed = replace_node(BLOCK, "w-1", {"clusterAddress": "10.0.0.1", "address": "w1"})
    assert changed == BLOCK.replace("address: 192.0.2.11 # later .12\n", "address: w1 # later .12\n    clusterAddress: 10.0.0.1\n")
    changed = replace_node(BLOCK, "w-2", {"clusterAddress": "10.0.0.1"})
    assert changed == BLOCK.replace("address: 192.0.2.12,", "address: 192.0.2.12, clusterAddress: 10.0.0.1,")
    assert replace_node("nodes:\n- name: a", "a", {"address": "x", "clusterAddress": "u"}) == (
        "nodes:\n- name: a\n  address: x\n  clusterAddress: u"
    )
    assert replace_node("nodes:\n- name: a\n  address:\n", "a", {"address": "x"}) == "nodes:\n- name: a\n  address: x\n"


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("tail", ["", "NL", "NL# end", "NLNLssh: {}NL", "  # \U0001f427 \u2028NL", "NL...NL"])
@pytest.mark.parametrize("head", ["", "\ufeff# \u00e9\u2028# \U0001f427NL", "%YAML 1.1NL---NL", "kubelet: {}NL"])
def test_line_breaks_and_ends(head: str, tail: str, newline: str) -> None:
    text = (f"{head}nodes:NL  - name: aNL    address: xNL  - name: bNL    address: u{tail}").replace("NL", newline)
    more = f"{newline}  - name: c{newline}    address: z"
    added = add_node(text, {"name": "c", "address": "z"})
    line = text.index("address: u") + len("address: u")
    # behind the rest of the line
    while line < len(text) and text[line] not in "\r\n\u2028":
        line += 1
    if "\u2028" not in tail:
        assert added == text[:line] + more + text[line:]
    assert remove_node(added, "c") == text
    assert replace_node(text, "b", {"address": "w"}) == text.replace("address: u", "address: w")


ANCHORS = textwrap.dedent("""\
    base: &base {roles: [worker], address: z}
    nodes:
      - &a
        name: a
        address: &addr x
        roles: &roles [worker]
      - name: b
        address: u
        roles: *roles
      - <<: *base
        name: c
      - {name: d, address: *addr}
    """)


def test_anchors_that_an_edit_does_not_touch() -> None:
    assert remove_node(ANCHORS, "b") == without(ANCHORS, 7, 9)
    assert remove_node(ANCHORS, "c") == without(ANCHORS, 10, 11)
    assert add_node(ANCHORS, {"name": "e"}) == ANCHORS + "  - {name: e}\n"
    assert replace_node(ANCHORS, "d", {"address": "v"}) == ANCHORS.replace("*addr}", "v}")
    # its own key wins over the merged one
    assert replace_node(ANCHORS, "c", {"address": "v"}) == ANCHORS.replace("name: c\n", "name: c\n    address: v\n")


Edit = Callable[[str], str]
REFUSED: Mapping[str, tuple[str, Edit, str]] = {
    "flow sequence": ("nodes: [{name: a}, {name: b}]\n", lambda text: add_node(text, W3), "brackets"),
    "flow sequence, remove": ("nodes: [{name: a}, {name: b}]\n", lambda text: remove_node(text, "a"), "brackets"),
    "flow file": ("{nodes: [{name: a}]}\n", lambda text: add_node(text, W3), "brackets"),
    "alias": ("x: &x\n  - name: a\n  - name: b\nnodes: *x\n", lambda text: remove_node(text, "a"), "alias"),
    "merged": ("x: &x {nodes: [{name: a}]}\n<<: *x\n", lambda text: add_node(text, W3), "of its own"),
    "anchor in use": (ANCHORS, lambda text: remove_node(text, "a"), "anchors"),
    "shared list": ("nodes: &x\n  - name: a\nmore: *x\n", lambda text: add_node(text, W3), "anchors"),
    "shared value": (ANCHORS, lambda text: replace_node(text, "a", {"address": "v"}), "the way its address"),
    "shared item": (
        "nodes:\n- &a {name: a, address: x}\n- {<<: *a, name: b}\n",
        lambda text: replace_node(text, "a", {"address": "v"}),
        "anchors",
    ),
    "item is an alias": (
        "x: &x {name: a}\nnodes:\n- *x\n- name: b\n",
        lambda text: replace_node(text, "a", {"name": "v"}),
        "place",
    ),
    "explicit key": ("? nodes\n: - name: a\n  - name: b\n", lambda text: remove_node(text, "a"), "line of its own"),
    "the last one": ("nodes:\n- name: a\n", lambda text: remove_node(text, "a"), "only node"),
    "no such node": (BLOCK, lambda text: remove_node(text, "w-7"), "no node"),
    "twice the name": ("nodes:\n- name: a\n- name: a\n", lambda text: remove_node(text, "a"), "several"),
    "there already": (BLOCK, lambda text: add_node(text, {"name": "w-1"}), "already"),
    "no nodes": ("nodes: []\n", lambda text: add_node(text, W3), "no list"),
    "no mapping": ("- a\n", lambda text: add_node(text, W3), "no list"),
    "empty": ("", lambda text: add_node(text, W3), "no list"),
    "not YAML": ("nodes:\n\t- a\n", lambda text: add_node(text, W3), "cannot be read"),
    "block scalar": ("nodes:\n- name: |-\n    a\n", lambda text: replace_node(text, "a", {"name": "b"}), "the way its name"),
    "not a scalar": (BLOCK, lambda text: replace_node(text, "w-1", {"roles": ["etcd"]}), "not a single value"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    text, edit, says = REFUSED[case]
    with pytest.raises(BadInput) as caught:
        edit(text)
    assert says in caught.value.message
    assert caught.value.hint


# --- any file -------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b-1", "no", "1", "0x1f", "worker-10", "\u00fc \U0001f427", "it's", 'q"', "x: y", "# z", "- d", "~"])
ADDRESSES = st.sampled_from(["192.0.2.1", "h.example.com", "1:30", "2001:db8::1", "'", "[x]", "{", "&a", "*a", "!", "%"])
# {0} stands for the indentation of the item's keys
EXTRAS = st.lists(
    st.sampled_from(
        [
            "labels: {a: '1', b: \"2\"}",
            "labels:\n{0}  a: '1'\n\n{0}  # why\n{0}  b: x y",
            "labels:\n{0}  a: |\n{0}    # text\n{0}    - name: a\n\n",
            "taints: []",
            "taints:\n{0}- key: k\n{0}  effect: NoExecute # end",
            "roles: [worker,\n{0}   etcd]",
            "kubelet:",
            "kubelet:\n{0}  text: >-\n{0}    a\n\n{0}    b",
            "sshKey: one\n{0}  two",
        ]
    ),
    max_size=3,
    unique_by=lambda entry: entry.split(":")[0],
)
COMMENTS = st.lists(
    st.sampled_from(["", "# remark", "  # deep", "      # deeper", "#off: 1", "# a\ttab", "#- name: off"]), max_size=3
)


def spelt(value: str, style: str) -> str:
    if style == "'":
        return "'" + value.replace("'", "''") + "'"
    plain = parse(f"k: {value}\n")
    if style == "" and value != "{" and not plain.problems and plain.value == {"k": value} and not set(value) & set("[]{},"):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


# No deadline: a slow machine is no fault of the file's.
ANY = settings(deadline=None, max_examples=300)


@st.composite
def files(draw: st.DrawFn) -> str:
    """A cluster.yaml in some style; its nodes have names of their own."""
    quotes = st.sampled_from(["", "'", '"'])
    dash = draw(st.sampled_from(["", "  ", "    "]))
    lines = draw(COMMENTS) + draw(st.sampled_from([[], ["name: lab"], ["name: lab", "ssh: {user: \u00e9}  # c"]]))
    lines.append("nodes:" + draw(st.sampled_from(["", " # the machines", "  "])))
    for name in draw(st.lists(NAMES, min_size=1, max_size=4, unique=True)):
        lines += [dash + comment if comment else "" for comment in draw(COMMENTS)]
        head, address = spelt(name, draw(quotes)), spelt(draw(ADDRESSES), draw(quotes))
        tail = draw(st.sampled_from(["", "  # \u00fc", " "]))
        style = draw(st.sampled_from(["block", "wide", "below", "flow", "lines"]))
        if style == "flow":
            lines.append(f"{dash}- {{name: {head}, address: {address}}}{tail}")
        elif style == "lines":
            lines += [f"{dash}- {{", f"{dash}    name: {head}, # c", f"{dash}    address: {address}", f"{dash}  }}{tail}"]
        else:
            keys = dash + {"block": "  ", "wide": "    ", "below": "   "}[style]
            begin = f"{dash}-{tail}\n{keys}" if style == "below" else f"{dash}-{keys[len(dash) + 1 :]}"
            extras = [keys + extra.replace("{0}", keys) for extra in draw(EXTRAS)]
            lines += [f"{begin}name: {head}{tail}", f"{keys}address: {address}{tail}", *extras]
    lines += draw(COMMENTS) + draw(st.sampled_from([[], ["etcd: {}"], ["", "# about etcd", "etcd:", "  flags: {v: 1}", ""]]))
    text = "\n".join(lines) + draw(st.sampled_from(["", "\n"]))
    return text.replace("\n", draw(st.sampled_from(["\n", "\n", "\r\n"])))


def value(text: str) -> dict[str, object]:
    parsed = parse(text)
    assert parsed.problems == (), (parsed.problems, text)
    assert isinstance(parsed.value, dict)
    return parsed.value


def nodes(text: str) -> list[dict[str, object]]:
    found = value(text)["nodes"]
    assert isinstance(found, list)
    return found


def split(text: str) -> list[str]:
    return text.replace("\r\n", "\n").split("\n")


def is_part(part: list[str], whole: list[str]) -> bool:
    """Whether a list is another one with a run of it left out."""
    missing = len(whole) - len(part)
    return any(whole[:at] + whole[at + missing :] == part for at in range(len(part) + 1))


@ANY
@given(files(), NAMES, ADDRESSES)
def test_any_file_added_and_removed(text: str, name: str, address: str) -> None:
    before = nodes(text)
    added = {"name": name, "address": address, "roles": ["worker"], "labels": {"k": name}, "sshPort": 22}
    if name in [node["name"] for node in before]:
        with pytest.raises(BadInput):
            add_node(text, added)
        return
    after = add_node(text, added)
    assert value(after) == {**value(text), "nodes": [*before, added]}
    assert is_part(split(text), split(after))
    assert remove_node(after, name) == text


@ANY
@given(files(), st.data())
def test_any_file_removed(text: str, data: st.DataObject) -> None:
    before = nodes(text)
    gone = data.draw(st.sampled_from(before))
    if len(before) == 1:
        with pytest.raises(BadInput):
            remove_node(text, str(gone["name"]))
        return
    after = remove_node(text, str(gone["name"]))
    assert value(after) == {**value(text), "nodes": [node for node in before if node != gone]}
    assert is_part(split(after), split(text))
    # headings and what is switched off are nobody's
    assert after.count("#- name: off") == text.count("#- name: off")


@ANY
@given(files(), st.data(), NAMES, ADDRESSES)
def test_any_file_replaced(text: str, data: st.DataObject, name: str, address: str) -> None:
    before = nodes(text)
    index = data.draw(st.integers(0, len(before) - 1))
    changes = {"name": name, "address": address, **data.draw(st.sampled_from([{}, {"clusterAddress": "10.0.0.1"}]))}
    after = replace_node(text, str(before[index]["name"]), changes)
    expected = [*before[:index], {**before[index], **changes}, *before[index + 1 :]]
    assert value(after) == {**value(text), "nodes": expected}
    differing = [line for line in split(after) if line not in split(text)]
    assert len(differing) <= len(changes)
    assert len(split(after)) - len(split(text)) in {0, 1}


def test_the_file_that_init_writes() -> None:
    text = render("ha")
    added = add_node(text, W3)
    assert remove_node(added, "w-3") == text
    first, second = (str(node["name"]) for node in nodes(text)[:2])
    after = remove_node(text, first)
    # with the settings below it that are switched off
    assert after == text[: text.index(f"  - name: {first}\n")] + text[text.index(f"  - name: {second}\n") :]
    assert "clusterAddress" not in after
