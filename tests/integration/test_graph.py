"""`graph --format dot`, read by Graphviz itself."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from provisioner.choices import Format
from provisioner.graph import Edge, Graph, Kind, Vertex, write

TEXT = """\
name: t
nodes:
  - {name: cp-1, address: 10.0.0.1, roles: [control-plane, etcd]}
  - {name: cp-2, address: 10.0.0.2, roles: [control-plane, etcd]}
  - {name: cp-3, address: 10.0.0.3, roles: [control-plane, etcd]}
  - {name: worker-1, address: 10.0.0.9, roles: [worker]}
controlPlaneEndpoint: {host: 10.0.0.99, vip: {}}
"""
NASTY = 'a"b]|c{d}#e<script>`f` \\N & --> end'


def drawn(dot: str) -> ElementTree.Element:
    if shutil.which("dot") is None:
        pytest.skip("no Graphviz; `make system-test` installs it")
    done = subprocess.run(["dot", "-Tsvg"], input=dot, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return ElementTree.fromstring(done.stdout)  # noqa: S314 - Graphviz' own


def texts(svg: ElementTree.Element) -> list[str]:
    return [one.text or "" for one in svg.iter("{http://www.w3.org/2000/svg}text")]


def test_the_command_prints_what_graphviz_draws(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(TEXT)
    done = subprocess.run(
        [sys.executable, "-m", "provisioner", "graph", "--format", "dot"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = texts(drawn(done.stdout))
    assert {"control planes", "etcd: 2 of 3 are a quorum", "10.0.0.99:6443", "worker-1"} <= set(found)
    assert found.count("cp-2") == 3, "its API server, its member, its Node"
    assert not (tmp_path / "workspace").exists()


def test_graphviz_shows_words_as_they_are() -> None:
    graph = Graph(NASTY, (("g", NASTY),), (Vertex("v", Kind.NODE, (NASTY,), "g"),), (Edge("v", "v"),))
    assert texts(drawn(write(graph, Format.DOT))).count(NASTY) == 2
