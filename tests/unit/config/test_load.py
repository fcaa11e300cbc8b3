"""Loading a file: what comes out, every kind of finding in its words and with its line, and files that cannot be read."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from provisioner import config
from provisioner.artifacts.lock import load_lock
from provisioner.config import Cluster, Role
from provisioner.errors import BadInput, ExitCode
from provisioner.fields import keys_of, model_at
from provisioner.load import load, parse, read
from provisioner.messages import PATTERNS
from provisioner.problems import dotted, quoted, suggestion

from .sample import VERSIONS, changed, check

MINIMAL = """\
name: demo
nodes:
  - {name: a, address: 192.168.56.11, roles: [control-plane, etcd, worker]}
"""


def written(directory: Path, text: str | bytes) -> Path:
    """A cluster.yaml with this content."""
    path = directory / "cluster.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(path: Path) -> BadInput:
    """The error that loading the file ends in."""
    with pytest.raises(BadInput) as caught:
        load(path, known_versions=VERSIONS)
    assert caught.value.exit_code == ExitCode.BAD_INPUT
    assert caught.value.hint
    return caught.value


def test_a_minimal_file_takes_every_default(tmp_path: Path) -> None:
    cluster = load(written(tmp_path, MINIMAL), known_versions=VERSIONS)
    assert cluster == Cluster(
        name="demo",
        nodes=(config.Node(name="a", address="192.168.56.11", roles=(Role.CONTROL_PLANE, Role.ETCD, Role.WORKER)),),
    )
    assert cluster.nodes[0].ip == IPv4Address("192.168.56.11")
    assert cluster.network.pod_cidr == IPv4Network("10.244.0.0/16")


def test_a_section_without_anything_takes_its_defaults(tmp_path: Path) -> None:
    text = MINIMAL + "ssh:\nnetwork:\n  podCidr:\netcd: {flags: }\ncomponents:\n  kubeApiserver:\nextraSans:\nhttpProxy: {http: }\n"
    assert load(written(tmp_path, text), known_versions=VERSIONS) == load(written(tmp_path, MINIMAL), known_versions=VERSIONS)


def test_the_lock_says_which_versions_there_are(tmp_path: Path) -> None:
    known = load_lock().kubernetes_versions
    assert load(written(tmp_path, MINIMAL)).kubernetes.version in known
    loaded = read(written(tmp_path, MINIMAL + "kubernetes: {version: 1.2.3}\n"))
    assert loaded.errors[0].message.endswith(", ".join(sorted(known, reverse=True)))


def test_anchors_aliases_and_merges(tmp_path: Path) -> None:
    text = """\
    name: demo
    nodes:
      - &first {name: a, address: 10.0.0.1, roles: &all [control-plane, etcd, worker], labels: &labels {rack: r1}}
      - {<<: *first, name: b, address: 10.0.0.2, roles: [worker]}
      - {name: c, address: 10.0.0.3, roles: [worker], labels: *labels}
    """
    cluster = load(written(tmp_path, textwrap.dedent(text)), known_versions=VERSIONS)
    assert [(node.name, dict(node.labels)) for node in cluster.nodes] == [(name, {"rack": "r1"}) for name in "abc"]


def test_the_line_of_the_issue(tmp_path: Path) -> None:
    text = """\
    apiVersion: provisioner/v1
    name: demo

    # two machines
    nodes:
      - name: a
        address: 192.168.56.11
        roles: [control-plane, etcd, worker]

      - name: b
        roles: [worker]
        adress: 192.168.56.12
    """
    error = refused(written(tmp_path, textwrap.dedent(text)))
    assert error.details == ('cluster.yaml:12: nodes[1].adress: unknown key; did you mean "address"?',)
    assert error.message == f"{tmp_path}/cluster.yaml: 1 problem; nothing was changed"


def test_all_kinds_of_problems_at_once_in_the_files_order(tmp_path: Path) -> None:
    text = """\
    name: Demo
    kubernetes: {version: v1.36.3}
    nodes:
      - name: a
        address: 10.0.0.1
        roles: [control-plane, etcd, workr]
      - name: b
        address: 10.0.0.1
        roles: [worker]
        labels: {a: 1, b: yes}
      - name: b
        address: 10.0.0.3
        roles: worker
    network:
      podCidr: 10.244.1.0/16
      serviceCidr: fd00::/108
      nodePrefix: "24"
    etcd:
      heartbeatInterval: 900
      heartbeatInterval: 800
      flags: {data_dir: [], unsafe-no-fsync: true}
    podCidr: 10.0.0.0/8
    """
    found = [(line.split(":")[1], line.split(": ")[1]) for line in refused(written(tmp_path, textwrap.dedent(text))).details]
    assert found == [
        ("1", "name"),
        ("2", "kubernetes.version"),
        ("6", "nodes[0].roles[2]"),
        ("8", "nodes[1].address"),
        ("10", "nodes[1].labels.a"),
        ("10", "nodes[1].labels.b"),
        ("11", "nodes[2].name"),
        ("13", "nodes[2].roles"),
        ("15", "network.podCidr"),
        ("16", "network.serviceCidr"),
        ("17", "network.nodePrefix"),
        ("20", "etcd.heartbeatInterval"),
        ("21", "etcd.flags.data_dir"),
        ("21", "etcd.flags.unsafe-no-fsync"),
        ("22", "podCidr"),
    ]


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("name", "Demo", 'must be a DNS label: lower-case letters, digits and hyphens, no hyphen at either end'),
        ("name", "Demo", 'not "Demo"; did you mean "demo"?'),
        ("name", "x" * 64, "at most 63 characters"),
        ("name", 5, "must be text, not the number 5; put it in quotes"),
        ("name", True, "must be text, not the truth value true; put it in quotes"),
        ("name", None, "must be text, not nothing"),
        ("name", ["a"], "must be text, not a list"),
        ("apiVersion", "v1", 'must be provisioner/v1, not the text "v1"'),
        ("nodes", [], "must not be empty"),
        ("nodes", {"a": 1}, "must be a list (lines that start with `- `), not a mapping"),
        ("nodes.0", "a", 'must be a mapping (lines of `key: value`), not the text "a"'),
        ("nodes.0.roles", [], "must not be empty"),
        ("nodes.0.roles", "etcd", "must be a list"),
        ("nodes.0.roles.0", "master", "must be control-plane, etcd or worker"),
        ("nodes.0.clusterAddress", "fd00::1", '"fd00::1" is IPv6; the cluster\'s own addresses are IPv4'),
        ("nodes.0.clusterAddress", "10.0.0", 'must be an IPv4 address such as 192.168.56.11, not the text "10.0.0"'),
        ("nodes.0.clusterAddress", 167772161, "must be an IPv4 address such as 192.168.56.11, not the number 167772161"),
        ("nodes.0.labels", ["a"], "must be a mapping"),
        ("nodes.0.labels", {"a": 1}, "must be text, not the number 1; put it in quotes"),
        ("nodes.0.taints", [{"key": "a", "effect": "NoShedule"}], 'did you mean "NoSchedule"?'),
        ("nodes.0.sshPort", 0, "must be at least 1, not 0"),
        ("nodes.0.sshPort", 65536, "must be at most 65535, not 65536"),
        ("nodes.0.sshPort", "22", 'must be a whole number, not the text "22"; leave the quotes away'),
        ("nodes.0.sshPort", 22.5, "must be a whole number, not the number 22.5"),
        ("nodes.0.sshPort", True, "must be a whole number, not the truth value true"),
        ("kubernetes.version", "v1.36.3", 'without a leading v, e.g. 1.36.3, not "v1.36.3"; did you mean "1.36.3"?'),
        ("kubernetes.version", 1.36, "must be text, not the number 1.36; put it in quotes"),
        ("network.podCidr", "10.244.1.0/16", 'has bits set behind its prefix; did you mean "10.244.0.0/16"?'),
        ("network.podCidr", "10.244.0.0/33", 'must be an IPv4 range such as 10.244.0.0/16, not the text "10.244.0.0/33"'),
        ("network.podCidr", 5, "must be an IPv4 range"),
        ("network.dnsDomain", "Cluster.local", 'e.g. cluster.local, not "Cluster.local"; did you mean "cluster.local"?'),
        ("network.dnsDomain", ".".join(["a" * 60] * 5), "must have at most 253 characters"),
        ("network.nodePortRange", "30000 - 32767", 'did you mean "30000-32767"?'),
        ("network.proxyMode", "ipvs", 'must be nftables or iptables, not the text "ipvs"'),
        ("network.nodePrefix", 29, "must be at most 28"),
        ("etcd/flags", {"a": None}, "must be text, a number, true or false, not nothing"),
        ("etcd/flags", {"a": {}}, "must be text, a number, true or false, not a mapping"),
        ("artifacts", {"sources": ["relase"]}, 'mirror, release or modules, not the text "relase"; did you mean "release"?'),
        ("ssh", "root", "must be a mapping"),
        ("manifests", "a.yaml", "must be a list"),
    ],
)  # fmt: skip
def test_words(path: str, value: object, says: str) -> None:
    loaded = check({path: value})
    assert loaded.cluster is None
    assert says in loaded.problems[0].message
    assert len(loaded.problems) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"node": []}, 'unknown key; did you mean "nodes"?'),
        ({"nodes.0.cluster_address": "10.0.0.1"}, 'unknown key; did you mean "clusterAddress"?'),
        ({"nodes.0.cluster-address": "10.0.0.1"}, 'unknown key; did you mean "clusterAddress"?'),
        ({"podCidr": "10.0.0.0/8"}, "unknown key; podCidr belongs under `network`"),
        ({"network.controlPlaneEndpoint": {}}, "unknown key; controlPlaneEndpoint belongs at the top of the file"),
        ({"network.taints": []}, "unknown key; taints belongs under `nodes[]`"),
        ({"artifacts.frobnicate": 1}, "unknown key; known here: sources, mirror"),
        ({"": 1}, "unknown key; known here: apiVersion, name, "),
    ],
)
def test_unknown_keys(change: dict[str, object], says: str) -> None:
    loaded = check(change)
    assert [problem.message for problem in loaded.problems if says in problem.message], loaded.problems
    assert loaded.cluster is None


def test_a_misspelt_required_key_is_one_problem() -> None:
    data: dict[str, object] = {"nodes.1": {"name": "control-2", "adress": "192.168.56.12", "roles": ["control-plane", "etcd"]}}
    assert [problem.where for problem in check(data).problems] == ["nodes[1].adress"]


def test_a_missing_key_is_told_where_its_section_stands(tmp_path: Path) -> None:
    error = refused(written(tmp_path, "name: demo\nnodes:\n  - name: a\n    address: 10.0.0.1\nssh:\n  bastion: {user: me}\n"))
    assert error.details == (
        "cluster.yaml:3: nodes[0].roles: required key is missing",
        "cluster.yaml:6: ssh.bastion.host: required key is missing",
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"# only a comment\n", "the file is empty"),
        (b"- a\n", "must hold a mapping (`key: value`), not a list"),
        (b"just text\n", 'not the text "just text"'),
        (b"42\n", "not the number 42"),
        (b"name: demo\nnodes: [\n", "cluster.yaml:3: not valid YAML"),
        (b"name: demo\nnodes: \xff\xfe\n", "cluster.yaml:2: byte 0xff is no UTF-8"),
        ("name: demo\n".encode("utf-16"), "cluster.yaml:1: byte 0xff is no UTF-8"),
        (b"\x00\x01\x02", "not valid YAML"),
        (b"\x7fELF\x02\x01\x01", "not valid YAML"),
    ],
)
def test_what_is_no_cluster_file(tmp_path: Path, content: bytes, says: str) -> None:
    assert says in "\n".join(refused(written(tmp_path, content)).details)


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    load(written(tmp_path, b"\xef\xbb\xbf" + MINIMAL.encode()), known_versions=VERSIONS)
    assert "cluster.yaml:2: byte 0xff" in refused(written(tmp_path, b"\xef\xbb\xbfa: 1\nb: \xff\n")).details[0]


def test_windows_line_ends_count_as_one(tmp_path: Path) -> None:
    error = refused(written(tmp_path, MINIMAL.replace("\n", "\r\n") + "nme: 1\r\n"))
    assert error.details[0].startswith("cluster.yaml:4: nme: unknown key")


def test_files_that_cannot_be_read(tmp_path: Path, unreadable: Callable[[Path], AbstractContextManager[None]]) -> None:
    assert "no such file" in refused(tmp_path / "none.yaml").message
    assert "is a directory" in refused(tmp_path).message
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert "no regular file" in refused(fifo).message
    assert "no regular file" in refused(Path("/dev/null")).message
    assert "cannot be read" in refused(Path("a\0b")).message
    assert "cannot be read: file name too long" in refused(tmp_path / ("x" * 5000)).message
    assert "\\udcff" in refused(tmp_path / "\udcff.yaml").message
    file = written(tmp_path, MINIMAL)
    with unreadable(file):
        error = refused(file)
    assert "permission denied" in error.message
    assert "cannot be read" in refused(file / "below").message
    large = tmp_path / "large.yaml"
    with large.open("wb") as stream:
        stream.truncate(1 << 40)
    assert "larger than" in refused(large).message


def test_a_link_that_leads_in_a_circle(tmp_path: Path) -> None:
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    assert "cannot be read" in refused(loop).message


def test_very_many_problems_are_counted(tmp_path: Path) -> None:
    error = refused(written(tmp_path, MINIMAL + "".join(f"k{i}: 1\n" for i in range(700))))
    assert error.message.startswith(f"{tmp_path}/cluster.yaml: 700 problems")
    assert len(error.details) == 501
    assert error.details[-1] == "and 200 more"


def test_problems_have_columns(tmp_path: Path) -> None:
    loaded = parse("name: demo\nnodes:\n  - {name: a, address: 10.0.0.1, roles: [worker, boss]}\n", tmp_path / "cluster.yaml")
    assert [(problem.line, problem.column) for problem in loaded.problems] == [(3, 50)]


def test_five_hundred_nodes_are_quick(tmp_path: Path) -> None:

    nodes = "".join(
        f"  - {{name: node-{i}, address: 10.1.{i // 200}.{i % 200 + 1}, roles: [{'control-plane, etcd' if i < 3 else 'worker'}]}}\n"
        for i in range(500)
    )
    path = written(tmp_path, f"name: demo\nnetwork: {{podCidr: 10.128.0.0/9}}\nnodes:\n{nodes}")
    started = time.monotonic()
    assert len(load(path).nodes) == 500
    # a quarter of a second on the build machine; the bound only catches what is quadratic
    assert time.monotonic() - started < 20


def test_every_pattern_has_words() -> None:
    def patterns(schema: object) -> set[str]:
        if isinstance(schema, dict):
            own = {schema["pattern"]} if isinstance(schema.get("pattern"), str) else set()
            return own.union(*(patterns(part) for part in schema.values()))
        return set().union(*(patterns(part) for part in schema)) if isinstance(schema, list) else set()

    assert patterns(Cluster.model_json_schema()) == set(PATTERNS)


def test_models_at_paths() -> None:
    assert model_at(()) is Cluster
    assert model_at(("nodes", 3)) is config.Node
    assert model_at(("nodes", 3, "taints", 0)) is config.Taint
    assert model_at(("ssh", "bastion")) is config.Bastion
    assert model_at(("nodes", 3, "labels")) is None
    assert model_at(("nowhere", "at", "all")) is None
    assert list(keys_of(config.Taint)) == ["key", "value", "effect"]


def test_words_near_and_far() -> None:
    known = ("address", "clusterAddress", "roles")
    assert suggestion("adress", known) == "address"
    assert suggestion("CLUSTER_ADDRESS", known) == "clusterAddress"
    assert suggestion("frobnicate", known) == ""
    assert suggestion("", known) == ""


def test_paths_and_values_in_messages() -> None:
    assert dotted(("nodes", 1, "labels", "example.com/zone")) == 'nodes[1].labels["example.com/zone"]'
    assert quoted("a\nb\x1b[31m") == '"a\\nb\\x1b[31m"'
    assert len(quoted("x" * 10_000)) < 100


def test_the_sample_keeps_its_parts_apart() -> None:
    assert changed({"nodes.0.name": "other"}) != changed({})
