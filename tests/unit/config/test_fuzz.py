"""Whatever stands in cluster.yaml, `load` gives a Cluster or a BadInput, never anything else: ten thousand files."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provisioner import cli
from provisioner.config import Cluster
from provisioner.errors import BadInput, ExitCode
from provisioner.fields import keys_of, model_at
from provisioner.init import render
from provisioner.load import load

from .sample import VALID, VERSIONS

# No deadline: a slow machine is no fault of the file's.
FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
_LINE = re.compile(r"cluster\.yaml(:\d+)?: .+", re.DOTALL)

TEXT = render("ha")
LINES = TEXT.splitlines(keepends=True)
# Everything at once: each section of the file with values of its own.
FULL: dict[str, object] = {
    **VALID,
    "ssh": {"user": "root", "port": 22, "hostKeys": "strict", "bastion": {"host": "b.example", "port": 22, "user": "me"}},
    "controlPlaneEndpoint": {"host": "api.example", "port": 6443},
    "extraSans": ["*.example", "203.0.113.1"],
    "etcd": {"quotaBackendBytes": 1 << 31, "heartbeatInterval": 100, "electionTimeout": 1000, "flags": {"snapshot-count": 5}},
    "components": {"kubeApiserver": {"flags": {"event-ttl": "2h", "profiling": False}}, "flannel": {"flags": {"v": 1}}},
    "kubelet": {"config": {"maxPods": 100, "evictionHard": {"memory.available": "5%"}}, "systemReserved": {"cpu": "100m"}},
    "kubeProxy": {"config": {"nodePortAddresses": ["primary"]}},
    "containerd": {"registryMirrors": [{"registry": "docker.io", "endpoints": ["https://m.example"]}]},
    "httpProxy": {"http": "http://p.example:3128", "noProxy": ["10.0.0.0/8"]},
    "artifacts": {"sources": ["release"], "mirror": "https://m.example"},
}
# Values that mean something somewhere in the file, and some that mean nothing anywhere.
TEXTS = (
    *(
        "",
        " ",
        "a",
        "A",
        "no",
        "0777",
        "1:30",
        "~",
        "-",
        "*.a",
        "a" * 300,
        "\u0000",
        "\ud800",
        "é",
        "\u2028",
        "a\nb",
        "%s{}",
        "../../x",
    ),
    *("worker", "etcd", "control-plane", "NoExecute", "1.36.3", "v1", "1.36.4", "none", "mirror", "strict", "accept-new"),
    *("10.0.0.1", "127.0.0.1", "0.0.0.1", "255.255.255.255", "fd00::1", "fe80::1%eth0", "a.b.c", "a..b", "a:22", "me@a"),
    *(
        "10.0.0.0/8",
        "10.0.0.1/8",
        "0.0.0.0/0",
        "10.244.0.0/30",
        "10.96.0.0/32",
        "::/0",
        "1-2",
        "32767-30000",
        "0-99999",
        "00000-00001",
    ),
    *("http://", "http://[", "http://a:x", "https://u:p@h:1/p?q#f", "/nonexistent", "/", "~nobody-there/x", "BEGIN PRIVATE KEY"),
    *("../../x", "100m", "1Gi", "1e400", "-5", "1/2", "a/b/c"),
)
PLAIN = (None, True, False, 0, 1, -1, 22, 24, 28, 65536, 10**30, -(10**30), 0.5, 1e300, float("inf"), float("nan"), *TEXTS)
KEYS = (
    *keys_of(Cluster),
    "adress",
    "podCIDR",
    "",
    "<<",
    "cluster_address",
    "v",
    "flags",
    "1",
    "host",
    "name",
    "roles",
    "key",
    "effect",
)
likely = st.one_of(
    st.sampled_from(PLAIN),
    st.lists(st.sampled_from(PLAIN), max_size=3),
    st.dictionaries(st.sampled_from([*KEYS, *TEXTS]), st.sampled_from(PLAIN), max_size=3),
)
anything = st.recursive(
    st.one_of(st.sampled_from(PLAIN), st.integers(), st.floats(), st.text(max_size=20), st.ip_addresses().map(str)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=8)), inner, max_size=4),
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all the files, one after the other."""
    return tmp_path_factory.mktemp("fuzz")


def outcome(directory: Path, content: bytes) -> Cluster | BadInput:
    """What loading the content gives; anything but the two fails the test with its traceback."""
    path = directory / "cluster.yaml"
    path.write_bytes(content)
    try:
        cluster = load(path, known_versions=VERSIONS)
    except BadInput as error:
        check_words(error)
        return error
    assert isinstance(cluster, Cluster)
    # what loaded can be worked with: every node has a name and an address of its own
    assert len({node.name for node in cluster.nodes}) == len({node.ip for node in cluster.nodes}) == len(cluster.nodes)
    return cluster


def check_words(error: BadInput) -> None:
    """An error says what, where and what to do, in text that any terminal takes."""
    assert error.message
    assert error.hint
    assert error.details
    assert all(_LINE.fullmatch(line) or line.startswith("and ") for line in error.details), error.details
    assert "\n".join((error.message, *error.details)).encode()


def dump(data: object) -> bytes:
    """YAML of a value; what PyYAML cannot write (a lone surrogate) goes as JSON."""
    try:
        return yaml.safe_dump(data, allow_unicode=True, sort_keys=False).encode()
    except (UnicodeEncodeError, yaml.YAMLError):
        return json.dumps(data).encode()


def places(data: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value of a document."""
    if path:
        yield path
    children = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in children:
        yield from places(value, (*path, key))


PLACES = list(places(FULL))
SECTIONS: tuple[tuple[str | int, ...], ...] = ((), ("network",), ("etcd",), ("nodes", 0), ("ssh", "bastion"))
SIGNS = [*"[]{}:,-?&*!|>'\"%@`#~ \n\t", "a", "&a ", "*a ", "<<: ", "name: ", "---\n", "!!set ", "\ufeff", "\x85", "0x1", "yes"]
EDITS = ("cut", "double", "uncomment", "insert", "garble", "  ", "\t", " ", "- ", "? ", "&a ", "*a ", "!!x ")
MUTATIONS = ("drop", "rename", "replace", "wrap", "copy")


def mutate(data: object, path: tuple[str | int, ...], kind: str, value: object, key: str) -> None:
    """Change one place of a document; nothing where an earlier change took the place away."""
    for part in path[:-1]:
        if isinstance(data, dict):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
    last = path[-1]
    if isinstance(data, dict) and isinstance(last, str) and last in data:
        old = data[last]
        if kind == "drop":
            del data[last]
        elif kind == "rename":
            data[key] = data.pop(last)
        else:
            data[last] = _other(kind, old, value)
    elif isinstance(data, list) and isinstance(last, int) and last < len(data):
        if kind == "drop":
            del data[last]
        elif kind == "copy":
            data.append(copy.deepcopy(data[last]))
        else:
            data[last] = _other(kind, data[last], value)


def _other(kind: str, old: object, value: object) -> object:
    return [old] if kind == "wrap" else {"x": old} if kind == "copy" else value


# Three changes, one upon the other: three files.
changes = st.tuples(*[st.tuples(st.sampled_from(PLACES), st.sampled_from(MUTATIONS), likely, st.sampled_from([*KEYS, *TEXTS]))] * 3)
Changes = tuple[tuple[tuple[str | int, ...], str, object, str], ...]


def files(changed: Changes) -> Iterator[bytes]:
    """The files that a list of changes makes of the full one."""
    data = copy.deepcopy(FULL)
    for path, kind, value, key in changed:
        mutate(data, path, kind, value, key)
        yield json.dumps(data).encode()


def test_what_is_changed_is_valid_before(directory: Path) -> None:
    assert isinstance(outcome(directory, json.dumps(FULL).encode()), Cluster)
    assert isinstance(outcome(directory, TEXT.encode()), Cluster)


@settings(FUZZ, max_examples=2_000)  # 6,000 files
@given(changed=changes)
def test_a_valid_file_with_values_dropped_renamed_and_replaced(directory: Path, changed: Changes) -> None:
    for content in files(changed):
        outcome(directory, content)


@settings(FUZZ, max_examples=700)  # 2,100 files
@given(
    edits=st.tuples(
        *[st.tuples(st.integers(0, len(LINES) - 1), st.sampled_from(EDITS), st.integers(0, 60), st.text(min_size=1, max_size=12))]
        * 3
    )
)
def test_a_valid_text_with_pieces_cut_moved_and_put_in(directory: Path, edits: tuple[tuple[int, str, int, str], ...]) -> None:
    lines = list(LINES)
    for at, kind, place, text in edits:
        line = lines[at]
        if kind == "cut":
            lines[at] = line[:place]
        elif kind == "double":
            lines.insert(at, line)
        elif kind == "uncomment":
            lines[at] = line.replace("#", "", 1)
        elif kind == "insert":
            lines.insert(at, text + "\n")
        elif kind == "garble":
            lines[at] = line[:place] + text + line[place + 1 :]
        else:
            lines[at] = kind + line
        outcome(directory, "".join(lines).encode(errors="surrogatepass"))


@settings(FUZZ, max_examples=800)
@given(data=anything)
def test_any_document(directory: Path, data: object) -> None:
    outcome(directory, dump(data))


@settings(FUZZ, max_examples=600)
@given(content=st.binary(max_size=200))
def test_any_bytes(directory: Path, content: bytes) -> None:
    outcome(directory, content)


@settings(FUZZ, max_examples=500)
@given(pieces=st.lists(st.sampled_from(SIGNS), max_size=30))
def test_any_heap_of_yaml_signs(directory: Path, pieces: list[str]) -> None:
    outcome(directory, "".join(pieces).encode())


@settings(FUZZ, max_examples=300)
@given(key=st.text(max_size=30), value=likely, place=st.sampled_from(SECTIONS))
def test_any_further_key_anywhere_is_refused_or_known(
    directory: Path, key: str, value: object, place: tuple[str | int, ...]
) -> None:
    data = copy.deepcopy(FULL)
    holder: object = data
    for part in place:
        holder = holder[part]  # type: ignore[index]  # a path of FULL
    assert isinstance(holder, dict)
    holder[key] = value
    result = outcome(directory, json.dumps(data).encode())
    model = model_at(place)
    assert model
    if key not in keys_of(model):
        assert isinstance(result, BadInput)


@settings(FUZZ, max_examples=150)
@given(changed=changes, as_json=st.booleans())
def test_the_command_ends_with_an_exit_code_and_no_traceback(directory: Path, changed: Changes, as_json: bool) -> None:
    *_, content = files(changed)
    path = directory / "cluster.yaml"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["provisioner", "validate", "--cluster", str(path), *(["--json"] if as_json else [])])
        # an error that is none of ours becomes exit code 1 there
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert ended.value.code in {ExitCode.OK, ExitCode.BAD_INPUT}
