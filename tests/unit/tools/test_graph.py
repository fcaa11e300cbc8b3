"""`provisioner graph`: what is in it, and that no word of cluster.yaml becomes markup. Graphviz reads it in tests/integration."""

from __future__ import annotations

import re
from typing import Any

import pytest

from provisioner.choices import Format
from provisioner.config import Cluster
from provisioner.graph import Edge, Graph, Kind, Vertex, graph_of, write

NASTY = 'a"b]|c{d}#e<script>`f` \\ & --> end'


def cluster(planes: int, workers: int, **more: Any) -> Cluster:
    nodes = [
        {"name": f"cp-{number}", "address": f"10.0.0.{number}", "roles": ["control-plane", "etcd"]}
        for number in range(1, planes + 1)
    ]
    nodes += [{"name": f"worker-{number}", "address": f"10.0.1.{number}", "roles": ["worker"]} for number in range(1, workers + 1)]
    return Cluster.model_validate({"name": "c", "nodes": nodes, **more})


def links(graph: Graph) -> set[tuple[str, str]]:
    return {(edge.source, edge.target) for edge in graph.edges}


def test_what_is_in_it() -> None:
    graph = graph_of(cluster(3, 2))
    kinds = [vertex.kind for vertex in graph.vertices]
    assert (kinds.count(Kind.APISERVER), kinds.count(Kind.MEMBER), kinds.count(Kind.NODE)) == (3, 3, 5)
    assert {
        ("users", "a0"),
        ("users", "a2"),
        ("proxy", "a1"),
        ("n4", "proxy"),
        ("e0", "e2"),
        ("a1", "e1"),
        ("pods", "n3"),
    } <= links(graph)
    assert ("a1", "e2") not in links(graph), "an API server asks its own member alone"
    assert ("etcd", "etcd: 2 of 3 are a quorum") in graph.groups


def test_an_endpoint_an_external_etcd_and_a_witness() -> None:
    nodes = [
        {"name": "cp-1", "address": "10.0.0.1", "roles": ["control-plane", "etcd"]},
        {"name": "cp-2", "address": "10.0.0.2", "roles": ["control-plane"]},
        {"name": "db", "address": "10.0.0.3", "roles": ["etcd"]},
    ]
    graph = graph_of(Cluster.model_validate({"name": "c", "nodes": nodes, "controlPlaneEndpoint": {"host": "10.0.0.9", "vip": {}}}))
    assert {("users", "endpoint"), ("endpoint", "a0"), ("endpoint", "a1"), ("a1", "e0"), ("a1", "e2")} <= links(graph)
    assert ("users", "a0") not in links(graph)
    assert not any(vertex.id == "n2" for vertex in graph.vertices), "a machine of etcd alone is no Node"
    assert "-.->" in write(graph, Format.MERMAID)
    assert "style=dashed" in write(graph, Format.DOT)


@pytest.mark.parametrize("form", Format)
def test_every_edge_leads_to_a_vertex(form: Format) -> None:
    graph = graph_of(cluster(5, 47))
    ids = {vertex.id for vertex in graph.vertices}
    assert {end for edge in links(graph) for end in edge} <= ids
    assert len(ids) == len(graph.vertices)
    assert len(write(graph, form).splitlines()) > len(graph.vertices) + len(graph.edges)


def test_words_stay_words() -> None:
    graph = Graph(NASTY, (("g", NASTY),), (Vertex("v", Kind.NODE, (NASTY,), "g"),), (Edge("v", "v"),))
    mermaid = write(graph, Format.MERMAID)
    body = mermaid.split("\n", 1)[1]
    quoted = re.findall(r'"([^"]*)"', body)
    assert len(quoted) == 2
    for text in quoted:
        assert not set(text) & set('<>`\\|[]{}"')
        assert re.sub(r"#(\d+);", lambda found: chr(int(found[1])), text) == NASTY
    dot = write(graph, Format.DOT)
    assert r'a\"b]|c{d}#e<script>`f` \\ & --> end"' in dot
    assert dot.count('"') - dot.count('\\"') == 2 * len(re.findall(r'(?<!\\)"(?:[^"\\]|\\.)*"', dot))
