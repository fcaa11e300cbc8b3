"""A cluster's entries in a kubeconfig that is somebody else's: put in, recognised, brought up to date, taken out.

Pure: text in, text out. The file is changed as a tree of YAML nodes, so that whatever is not ours keeps its place and every
character of its values, known to this version or not; comments go, as with kubectl.

Our entries carry the extension ``provisioner`` (https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/#NamedExtension),
which kubectl keeps: whose they are, what they were called, and which context was the current one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from provisioner.errors import BadInput

SIGN = "provisioner"
KINDS = ("clusters", "contexts", "users")
_BODY = {"clusters": "cluster", "contexts": "context", "users": "user"}
# What is ours to set in an entry; the rest (a context's namespace, a cluster's proxy-url) is the user's.
_OWNED = {
    "clusters": ("server", "certificate-authority-data"),
    "contexts": ("cluster", "user"),
    "users": ("client-certificate-data", "client-key-data"),
}
# libyaml writes the same as PyYAML's own emitter, ten times as fast; some builds of PyYAML lack it
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_STR = "tag:yaml.org,2002:str"
_SKELETON = "apiVersion: v1\nkind: Config\npreferences: {}\nclusters: []\ncontexts: []\nusers: []\ncurrent-context: ''\n"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry to be in the file: its fields, and the name under which it was merged."""

    kind: str
    name: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ours:
    """A cluster's entries. ``id`` tells it from others of its name, ``name`` is what its entries are called by."""

    id: str
    name: str
    entries: tuple[Entry, ...]
    context: str


@dataclass(frozen=True, slots=True)
class Result:
    """What became of the file.

    Attributes:
        text: its new content.
        changed: whether that is another one.
        foreign: whether something that is not ours changed: a comment, the form of a line, the current context.
        current: the current context now.
        names: contexts that were put in or taken out.
    """

    text: str
    changed: bool
    foreign: bool
    current: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Mark:
    """What our extension on an entry says."""

    id: str
    name: str
    entry: str
    previous: str = ""


def entries_of(content: str, *, cluster: str, id: str, name: str = "") -> Ours:  # noqa: A002 - the cluster's id
    """The entries of a kubeconfig of ours (``kubeconfig.render``), called by ``name``.

    The user is called NAME-admin: every cluster's own file says ``admin``.

    Raises:
        BadInput: it is none.
    """
    name = name or cluster
    try:
        document = yaml.safe_load(content)
        users = {item["name"]: f"{name}-{item['name']}" for item in document["users"]}
        clusters = {item["name"]: name + item["name"].removeprefix(cluster) for item in document["clusters"]}
        found = [Entry("clusters", clusters[item["name"]], item["cluster"]) for item in document["clusters"]]
        found += [Entry("users", users[item["name"]], item["user"]) for item in document["users"]]
        contexts = {}
        for item in document["contexts"]:
            context = item["context"]
            contexts[item["name"]] = f"{context['user']}@{clusters[context['cluster']]}"
            fields = {"cluster": clusters[context["cluster"]], "user": users[context["user"]]}
            found.append(Entry("contexts", contexts[item["name"]], fields))
        return Ours(id, name, tuple(found), contexts[document["current-context"]])
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise BadInput(
            f"the workspace's kubeconfig is not as this version writes it: {type(error).__name__}: {error}",
            hint="`provisioner apply` writes it anew",
        ) from error


def merge(text: str, ours: Ours, *, switch: bool) -> Result:
    """The file with our entries in it, as its current context if ``switch``.

    Raises:
        BadInput: it is no kubeconfig, or has foreign entries under our names.
    """
    root = _read(text)
    before = _Foreign.of(root)
    names: list[str] = []
    context = ours.context
    for kind in KINDS:
        entries = _entries(root, kind)
        wanted = {entry.name: entry for entry in ours.entries if entry.kind == kind}
        for node in list(entries.value):
            mark = _mark_of(node, kind)
            if mark and (mark.id, mark.name) == (ours.id, ours.name):
                entry = wanted.pop(mark.entry, None)
                if entry is None:
                    entries.value.remove(node)  # of a control plane that is gone
                    continue
                # a context that the user has given another name keeps it
                called = _name(node)
                if kind == "contexts" and mark.entry == ours.context:
                    context = called
            else:
                entry = wanted.pop(_name(node), None)
                if entry is None:
                    continue
                _refuse_other(node, entry, mark, ours)
                called = entry.name
                mark = _Mark(ours.id, ours.name, entry.name)
            _update(node, entry, mark)
            if kind == "contexts":
                names.append(called)
        for entry in wanted.values():
            entries.value.append(_new(entry, _Mark(ours.id, ours.name, entry.name)))
            if kind == "contexts":
                names.append(entry.name)
    current = _current(root)
    if switch and current != context:
        _remember(root, context, current)
        _set(root, "current-context", ScalarNode(_STR, context))
    return _result(text, root, before, tuple(names))


def unmerge(text: str, *, id: str = "", cluster: str = "", name: str = "") -> Result:  # noqa: A002 - the cluster's id
    """The file without our entries.

    Args:
        id: of the cluster whose entries go.
        cluster: where the id is not known any more: entries that were merged under this name.
        name: only those that were merged under this name, of whichever cluster of ours.

    Raises:
        BadInput: it is no kubeconfig, or entries of two clusters are meant.
    """
    root = _read(text)
    before = _Foreign.of(root)

    def meant(mark: _Mark | None) -> bool:
        if mark is None:
            return False
        if name:
            return mark.name == name
        return mark.id == id if id else mark.name == cluster

    names = []
    gone: dict[str, _Mark] = {}
    for kind in KINDS:
        entries = _entries(root, kind, make=False)
        for node in list(entries.value):
            mark = _mark_of(node, kind)
            if mark is not None and meant(mark):
                entries.value.remove(node)
                if kind == "contexts":
                    names.append(_name(node))
                    gone[_name(node)] = mark
    current = _current(root)
    if current in gone:
        left = {_name(node) for node in _entries(root, "contexts", make=False).value}
        previous = gone[current].previous
        _set(root, "current-context", ScalarNode(_STR, previous if previous in left else ""))
    return _result(text, root, before, tuple(names))


# --- the tree ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Foreign:
    """How the file looks without our entries: to see whether something of the user's changed."""

    text: str
    current: str

    @classmethod
    def of(cls, root: MappingNode) -> _Foreign:
        current = _current(root)
        kept: list[tuple[Node, Node]] = []
        ours = set()
        for key, value in root.value:
            if key.value in KINDS and isinstance(value, SequenceNode):
                ours |= {_name(node) for node in value.value if key.value == "contexts" and _mark_of(node, "contexts")}
                left = [node for node in value.value if not _mark_of(node, key.value)]
                if left:
                    kept.append((key, SequenceNode(value.tag, left)))
            elif key.value != "current-context":
                kept.append((key, value))
        return cls(_write(MappingNode(root.tag, kept)) if kept else "", "" if current in ours else current)


def _result(text: str, root: MappingNode, before: _Foreign, names: tuple[str, ...]) -> Result:
    after = _write(root)
    plain = _write(_read(text))
    same = plain == after
    # comments and the form of lines are the user's; so is a current context that was not one of ours
    reformed = bool(text.strip()) and plain != text
    current = _current(root)
    return Result(
        text=text if same and text.strip() else after,
        changed=not (same and text.strip()),
        foreign=not same and (reformed or _Foreign.of(root).text != before.text or before.current not in ("", current)),
        current=current,
        names=names,
    )


def _read(text: str) -> MappingNode:
    hint = "mend it (`kubectl config view --kubeconfig FILE` says what it thinks), or name another one with --kubeconfig"
    try:
        root = yaml.compose(text if text.strip() else _SKELETON, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise BadInput(f"no YAML: {' '.join(_place(error).split())}", hint=hint) from None
    if not isinstance(root, MappingNode) or not all(isinstance(key, ScalarNode) for key, _ in root.value):
        raise BadInput("no kubeconfig: it is no mapping", hint=hint)
    keys = [key.value for key, _ in root.value]
    if doubled := sorted({key for key in keys if keys.count(key) > 1}):
        raise BadInput(f"no kubeconfig: {', '.join(doubled)} stands there twice", hint=hint)
    if (kind := _get(root, "kind")) and _scalar(kind) != "Config":
        raise BadInput(f"no kubeconfig: its kind is {_scalar(kind) or 'no text'}", hint=hint)
    for kind_of in KINDS:
        entries = _get(root, kind_of)
        if entries is None or _is_null(entries):
            continue
        if not isinstance(entries, SequenceNode) or not all(isinstance(node, MappingNode) for node in entries.value):
            raise BadInput(f"no kubeconfig: {kind_of} is no list of mappings", hint=hint)
        for node in entries.value:
            body = _get(node, _BODY[kind_of])
            if not _name(node) or not (body is None or _is_null(body) or isinstance(body, MappingNode)):
                raise BadInput(f"no kubeconfig: an entry of {kind_of} has no name, or no {_BODY[kind_of]}", hint=hint)
    return root


def _place(error: yaml.YAMLError) -> str:
    """What is wrong and in which line; not the line itself, which may be a key."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    return f"{where}{getattr(error, 'problem', None) or 'it cannot be read'}"


def _write(root: Node) -> str:
    text: str = yaml.serialize(root, Dumper=_DUMPER, width=1 << 20, allow_unicode=True)
    return text


def _get(node: MappingNode, key: str) -> Node | None:
    return next((value for name, value in node.value if _scalar(name) == key), None)


def _set(node: MappingNode, key: str, value: Node) -> None:
    for index, (name, _) in enumerate(node.value):
        if _scalar(name) == key:
            node.value[index] = (name, value)
            return
    node.value.append((ScalarNode(_STR, key), value))


def _scalar(node: Node | None) -> str:
    return str(node.value) if isinstance(node, ScalarNode) and not _is_null(node) else ""


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag.endswith(":null")


def _name(node: MappingNode) -> str:
    return _scalar(_get(node, "name"))


def _current(root: MappingNode) -> str:
    return _scalar(_get(root, "current-context"))


def _entries(root: MappingNode, kind: str, *, make: bool = True) -> SequenceNode:
    """The list of one kind; made where it is missing or null."""
    found = _get(root, kind)
    if isinstance(found, SequenceNode):
        if not found.value and make:
            found.flow_style = root.flow_style  # `[]` is to become a list below its key
        return found
    made = SequenceNode("tag:yaml.org,2002:seq", [], flow_style=False)
    if make:
        _set(root, kind, made)
    return made


def _body(node: MappingNode, kind: str) -> MappingNode:
    """What an entry holds beside its name."""
    found = _get(node, _BODY[kind])
    if isinstance(found, MappingNode):
        return found
    made = _mapping({})
    _set(node, _BODY[kind], made)
    return made


def _mapping(values: Mapping[str, str], *, style: str | None = None) -> MappingNode:
    pairs: list[tuple[Node, Node]] = [
        (ScalarNode(_STR, key), ScalarNode(_STR, value, style=style)) for key, value in values.items()
    ]
    return MappingNode("tag:yaml.org,2002:map", pairs, flow_style=False)


def _new(entry: Entry, mark: _Mark) -> MappingNode:
    node = _mapping({"name": entry.name})
    _set(node, _BODY[entry.kind], _mapping({}))
    _update(node, entry, mark)
    return node


def _update(node: MappingNode, entry: Entry, mark: _Mark) -> None:
    """Our fields of an entry, and our mark on it; what is right already is not touched."""
    body = _body(node, entry.kind)
    for key in _OWNED[entry.kind]:
        if key in entry.fields and _scalar(_get(body, key)) != entry.fields[key]:
            _set(body, key, ScalarNode(_STR, entry.fields[key]))
    if _mark_of(node, entry.kind) != mark:
        _stamp(body, mark)


def _marks(body: MappingNode) -> Iterator[MappingNode]:
    extensions = _get(body, "extensions")
    if isinstance(extensions, SequenceNode):
        for extension in extensions.value:
            if isinstance(extension, MappingNode) and _name(extension) == SIGN:
                yield extension


def _mark_of(node: MappingNode, kind: str) -> _Mark | None:
    body = _get(node, _BODY[kind])
    if not isinstance(body, MappingNode):
        return None
    for extension in _marks(body):
        said = _get(extension, "extension")
        if isinstance(said, MappingNode):
            mark = _Mark(*(_scalar(_get(said, key)) for key in ("id", "name", "entry", "previous")))
            if mark.id and mark.name and mark.entry:
                return mark
    return None


def _stamp(body: MappingNode, mark: _Mark) -> None:
    # quoted: kubectl would take an id like 12e4 for a number
    values = {"id": mark.id, "name": mark.name, "entry": mark.entry, **({"previous": mark.previous} if mark.previous else {})}
    for extension in _marks(body):
        _set(extension, "extension", _mapping(values, style='"'))
        return
    made = _mapping({"name": SIGN})
    _set(made, "extension", _mapping(values, style='"'))
    extensions = _get(body, "extensions")
    if isinstance(extensions, SequenceNode):
        extensions.value.append(made)
    else:
        _set(body, "extensions", SequenceNode("tag:yaml.org,2002:seq", [made], flow_style=False))


def _remember(root: MappingNode, context: str, previous: str) -> None:
    """Note on our context which one was the current one before; not where that was another one of the same cluster's."""
    nodes = {_name(node): node for node in _entries(root, "contexts").value}
    mark = _mark_of(nodes[context], "contexts")
    before = _mark_of(nodes[previous], "contexts") if previous in nodes else None
    if mark is None or not previous or previous not in nodes or (before and (before.id, before.name) == (mark.id, mark.name)):
        return
    _stamp(_body(nodes[context], "contexts"), replace(mark, previous=previous))


def _refuse_other(node: MappingNode, entry: Entry, mark: _Mark | None, ours: Ours) -> None:
    """An entry of our name without our mark is taken for ours if it says the same as we would, and is refused otherwise."""
    body = _get(node, _BODY[entry.kind])
    telling = {
        "clusters": ("certificate-authority-data",),
        "contexts": ("cluster", "user"),
        "users": ("client-certificate-data",),
    }[entry.kind]
    if mark is None and isinstance(body, MappingNode) and all(_scalar(_get(body, key)) == entry.fields.get(key) for key in telling):
        return
    whose = "with another CA" if entry.kind == "clusters" else "that provisioner has not put there for this cluster"
    older = f"; `provisioner kubeconfig --unmerge --name {ours.name}` removes it, if that cluster is gone" if mark else ""
    raise BadInput(
        f"there is an entry {entry.name} already under {entry.kind}, {whose}",
        hint=f"`provisioner kubeconfig --merge --name OTHER` calls this cluster's entries by another name{older}; "
        "or remove the entry yourself (`kubectl config delete-context`, `delete-cluster`, `delete-user`)",
    )
