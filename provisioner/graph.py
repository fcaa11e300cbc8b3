"""The topology of cluster.yaml as a graph, in Mermaid's or Graphviz' words. Pure: no machine is asked.

https://mermaid.js.org/syntax/flowchart.html, https://graphviz.org/doc/info/lang.html
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations

from provisioner import topology
from provisioner.choices import Format
from provisioner.config import Cluster, Node, Role


class Kind(StrEnum):
    """What a vertex is; each has a shape of its own."""

    USERS = "users"
    ENDPOINT = "endpoint"
    APISERVER = "apiserver"
    MEMBER = "member"
    NODE = "node"
    PROXY = "proxy"
    NETWORK = "network"


@dataclass(frozen=True, slots=True)
class Vertex:
    """One thing, with its lines of text. ``group`` is the id of the frame it is in; "" for none."""

    id: str
    kind: Kind
    lines: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True, slots=True)
class Edge:
    """A way from one to the other. ``mutual``: both ways; ``sometimes``: not at every moment."""

    source: str
    target: str
    mutual: bool = False
    sometimes: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """All of it; ``groups`` are (id, title) of the frames."""

    title: str
    groups: tuple[tuple[str, str], ...]
    vertices: tuple[Vertex, ...]
    edges: tuple[Edge, ...]


def graph_of(cluster: Cluster) -> Graph:
    """What follows from cluster.yaml."""
    members, planes, nodes = cluster.etcd_members, cluster.control_planes, cluster.kubernetes_nodes
    quorum = topology.quorum(len(members))
    groups = (
        ("planes", "control planes"),
        ("etcd", f"etcd: {quorum} of {len(members)} {'is' if quorum == 1 else 'are'} a quorum"),
        ("nodes", "Nodes"),
    )
    numbers = {node.name: index for index, node in enumerate(cluster.nodes)}
    vertices = [Vertex("users", Kind.USERS, ("users, kubectl",))]
    vertices += _endpoint(cluster)
    vertices += [
        Vertex(
            f"a{numbers[node.name]}",
            Kind.APISERVER,
            (node.name, f"API server {node.ip}:{topology.APISERVER_PORT}", "controllers, scheduler"),
            "planes",
        )
        for node in planes
    ]
    vertices += [
        Vertex(f"e{numbers[node.name]}", Kind.MEMBER, (node.name, f"member {node.ip}:{topology.ETCD_PEER_PORT}"), "etcd")
        for node in members
    ]
    where = f"on {'each of ' if len(nodes) > 1 else ''}{len(nodes)} Node{'s' if len(nodes) > 1 else ''}"
    vertices.append(Vertex("proxy", Kind.PROXY, ("API proxy", f"127.0.0.1:{topology.API_PROXY_PORT}, {where}")))
    vertices += [Vertex(f"n{numbers[node.name]}", Kind.NODE, _node(node), "nodes") for node in nodes]
    network = cluster.network
    kind = f"flannel {network.backend}" if network.plugin == "flannel" else "a network of your own"
    vertices.append(
        Vertex("pods", Kind.NETWORK, (f"pods' network {network.pod_cidr}", f"{kind}, a /{network.node_prefix} for each Node"))
    )
    return Graph(
        f"{cluster.name}: Kubernetes {cluster.kubernetes.version}", groups, tuple(vertices), tuple(_edges(cluster, numbers))
    )


def _endpoint(cluster: Cluster) -> Iterator[Vertex]:
    endpoint = cluster.control_plane_endpoint
    if endpoint is not None:
        note = "virtual address, held by one control plane" if endpoint.vip is not None else "endpoint"
        yield Vertex("endpoint", Kind.ENDPOINT, (f"{endpoint.host}:{endpoint.port}", note))


def _node(node: Node) -> tuple[str, ...]:
    roles = ", ".join(role for role in node.roles if role is not Role.ETCD)
    taints = [f"{taint.key}:{taint.effect}" for taint in topology.taints_of(node)]
    return (node.name, f"{node.ip}, {roles}", *(f"taint {taint}" for taint in taints))


def _edges(cluster: Cluster, numbers: dict[str, int]) -> Iterator[Edge]:
    endpoint = cluster.control_plane_endpoint
    entrance = "endpoint" if endpoint else "users"
    if endpoint:
        yield Edge("users", "endpoint")
    for node in cluster.control_planes:
        yield Edge(entrance, f"a{numbers[node.name]}", sometimes=bool(endpoint and endpoint.vip))
    for node in cluster.control_planes:
        own = (node,) if node.has(Role.ETCD) else cluster.etcd_members
        for member in own:
            yield Edge(f"a{numbers[node.name]}", f"e{numbers[member.name]}")
    for one, two in combinations(cluster.etcd_members, 2):
        yield Edge(f"e{numbers[one.name]}", f"e{numbers[two.name]}", mutual=True)
    for node in cluster.kubernetes_nodes:
        yield Edge(f"n{numbers[node.name]}", "proxy")
    for node in cluster.control_planes:
        yield Edge("proxy", f"a{numbers[node.name]}")
    for node in cluster.kubernetes_nodes:
        yield Edge("pods", f"n{numbers[node.name]}", mutual=True)


def write(graph: Graph, form: Format) -> str:
    """The text, with a line end."""
    return "\n".join(_mermaid(graph) if form is Format.MERMAID else _dot(graph)) + "\n"


# --- Mermaid -------------------------------------------------------------------------------------------------------

_SHAPES = {
    Kind.USERS: ("([", "])"),
    Kind.ENDPOINT: ("{{", "}}"),
    Kind.APISERVER: ("[", "]"),
    Kind.MEMBER: ("[(", ")]"),
    Kind.NODE: ("[", "]"),
    Kind.PROXY: ("[[", "]]"),
    Kind.NETWORK: ("([", "])"),
}


def mermaid_words(text: str) -> str:
    """Text inside Mermaid's quotes: whatever is markup there, as Mermaid's own entities."""
    marks = {"#", '"', "<", ">", "&", "`", "\\", "{", "}", "[", "]", "|", "*", "_", "~"}
    return "".join(f"#{ord(char)};" if char in marks or ord(char) < 0x20 else char for char in text)


def _mermaid(graph: Graph) -> Iterator[str]:
    yield f"%% {' '.join(graph.title.split())}"
    yield "flowchart TB"
    for vertex in (one for one in graph.vertices if not one.group):
        yield f"  {_mermaid_vertex(vertex)}"
    for group, title in graph.groups:
        yield f'  subgraph {group}["{mermaid_words(title)}"]'
        yield from (f"    {_mermaid_vertex(vertex)}" for vertex in graph.vertices if vertex.group == group)
        yield "  end"
    for edge in graph.edges:
        arrow = "---" if edge.mutual else "-.->" if edge.sometimes else "-->"
        yield f"  {edge.source} {arrow} {edge.target}"


def _mermaid_vertex(vertex: Vertex) -> str:
    left, right = _SHAPES[vertex.kind]
    return f'{vertex.id}{left}"{"<br>".join(mermaid_words(line) for line in vertex.lines)}"{right}'


# --- DOT -----------------------------------------------------------------------------------------------------------

_DOT = {
    Kind.USERS: "ellipse",
    Kind.ENDPOINT: "hexagon",
    Kind.APISERVER: "box",
    Kind.MEMBER: "cylinder",
    Kind.NODE: "box",
    Kind.PROXY: "component",
    Kind.NETWORK: "ellipse",
}


def dot_words(*lines: str) -> str:
    """A quoted string of DOT: lines of text, in which nothing is an escape sequence."""
    clean = ("".join(char if ord(char) >= 0x20 else " " for char in line) for line in lines)
    return '"' + "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in clean) + '"'


def _dot(graph: Graph) -> Iterator[str]:
    yield f"digraph {dot_words(graph.title)} {{"
    yield '  graph [rankdir=TB, fontname="sans-serif", labeljust=l];'
    yield '  node [fontname="sans-serif", fontsize=11]; edge [color="#66707c"];'
    for vertex in (one for one in graph.vertices if not one.group):
        yield f"  {_dot_vertex(vertex)}"
    for group, title in graph.groups:
        yield f"  subgraph cluster_{group} {{"
        yield f"    label={dot_words(title)}; style=rounded;"
        yield from (f"    {_dot_vertex(vertex)}" for vertex in graph.vertices if vertex.group == group)
        yield "  }"
    for edge in graph.edges:
        attributes = ["dir=none"] if edge.mutual else []
        attributes += ["style=dashed"] if edge.sometimes else []
        told = f" [{', '.join(attributes)}]" if attributes else ""
        yield f"  {edge.source} -> {edge.target}{told};"
    yield "}"


def _dot_vertex(vertex: Vertex) -> str:
    return f"{vertex.id} [shape={_DOT[vertex.kind]}, label={dot_words(*vertex.lines)}];"
