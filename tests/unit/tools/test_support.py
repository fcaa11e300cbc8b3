"""The bundle without machines: what it refuses, what it says is missing, and that no secret of the workspace gets into it."""

from __future__ import annotations

import base64
import datetime as dt
import io
import json
import socket
import stat
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from provisioner import pki
from provisioner.config import Node
from provisioner.errors import BadInput, ProvisionerError
from provisioner.load import load
from provisioner.ssh import Completed
from provisioner.support import collect, machine, place
from provisioner.support.cluster import config_map, pod
from provisioner.support.model import Missing, Question
from provisioner.support.secrets import Needles, needles, of_workspace
from provisioner.workspace import Workspace

TEXT = """\
name: t
ssh: {{port: {port}}}
httpProxy: {{http: "http://user:Pr0xyPass@proxy:3128"}}
nodes:
  - {{name: cp-1, address: 127.0.0.1, clusterAddress: 10.0.0.1, roles: [control-plane, etcd]}}
  - {{name: worker-1, address: 127.0.0.2, clusterAddress: 10.0.0.2, roles: [worker]}}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A cluster whose machines refuse every connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (tmp_path / "cluster.yaml").write_text(TEXT.format(port=port))
    return tmp_path


@pytest.fixture
def workspace(directory: Path) -> Workspace:
    """With a PKI, and a run behind it."""
    workspace = Workspace.of(directory / "cluster.yaml", "t")
    workspace.create()
    pki.ensure(load(directory / "cluster.yaml"), workspace.pki, now=dt.datetime.now(dt.UTC))
    workspace.record("run", command="apply", argv=["--token", "Arg0fARun"])
    (workspace.logs / "20300101T000000-apply" / "ansible").mkdir(parents=True)
    pem = (workspace.pki / "cluster-ca.pem").read_text()
    key = pem[pem.index("-----BEGIN PRIVATE KEY") :]
    (workspace.logs / "20300101T000000-apply" / "ansible" / "stdout").write_text(f"a task\n{key}end\n")
    return workspace


def run(directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "provisioner", "support-bundle", *args],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as bundle:
        return {
            member.name.partition("/")[2]: file.read().decode()
            for member in bundle
            if (file := bundle.extractfile(member)) is not None
        }


def test_without_machines(directory: Path, workspace: Workspace) -> None:
    """What the controller knows is worth a bundle; the rest is named."""
    done = run(directory, "--output", "x.tar.gz", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    missing = {item["what"]: item["why"] for item in document["missing"]}
    assert missing["cp-1: everything on the machine"].startswith("cp-1 (127.0.0.1 port ")
    assert "API: Pods" in missing
    assert "missing: worker-1: everything on the machine" in done.stderr
    path = directory / "x.tar.gz"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_size == document["bytes"]
    files = contents(path)
    manifest = json.loads(files["manifest.json"])
    assert {item["path"] for item in manifest["collected"]} == set(files) - {"manifest.json"}
    assert {item["what"]: item["why"] for item in manifest["missing"]} == missing
    assert set(manifest["versions"]) >= {"provisioner", "python", "ansible-core"}
    everything = "".join(files.values())
    assert "Pr0xyPass" not in everything
    assert "Arg0fARun" not in everything
    assert of_workspace(load(directory / "cluster.yaml"), workspace).found_in(everything) == ""
    assert "a task\n[redacted]\nend" in files["controller/logs/20300101T000000-apply/ansible/stdout"]
    assert sorted(item.name for item in directory.iterdir()) == ["cluster.yaml", "workspace", "x.tar.gz"]


def test_nothing_at_all(directory: Path) -> None:
    done = run(directory)
    assert done.returncode == 1
    assert "there was nothing to collect" in done.stderr
    assert "missing: API, etcd and status" in done.stderr
    assert list(directory.glob("*.tar.gz")) == []


def test_a_secret_that_the_redaction_lets_through_stops_it(directory: Path, workspace: Workspace) -> None:
    """The end of a key alone looks like any other word."""
    lines = (workspace.pki / "controller.pem").read_text().split("-----END PRIVATE KEY-----")[0].splitlines()
    workspace.record("note", text=f"see {lines[-1]} there")
    done = run(directory, "--output", "x.tar.gz")
    assert done.returncode == 1
    assert "controller/journal.jsonl: the private key in controller.pem would be in the bundle" in done.stderr
    assert lines[-1] not in done.stderr
    assert sorted(item.name for item in directory.iterdir()) == ["cluster.yaml", "workspace"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--output", "there.tar.gz"), "there is such a file already"),
        (("--output", "link.tar.gz"), "there is such a file already"),
        (("--output", "no/such/x.tar.gz"), "no such directory"),
        (("--output", "."), "a directory"),
        (("--node", "workr-1"), 'did you mean "worker-1"?'),
    ],
)
def test_refused_before_anything_is_asked(directory: Path, args: tuple[str, ...], says: str) -> None:
    (directory / "there.tar.gz").write_text("mine")
    (directory / "link.tar.gz").symlink_to("nowhere")
    done = run(directory, *args)
    assert done.returncode == 3
    assert says in done.stderr
    assert "remedy:" in done.stderr
    assert (directory / "there.tar.gz").read_text() == "mine"
    assert len(list(directory.iterdir())) == 3


# -- secrets --------------------------------------------------------------------------------------------------------------------


def test_every_key_of_the_workspace_is_searched_for(directory: Path, workspace: Workspace) -> None:
    found = of_workspace(load(directory / "cluster.yaml"), workspace)
    files = [path for path in workspace.pki.rglob("*") if path.is_file() and path.name != ".lock"]
    assert len(files) > 5
    for path in files:
        text = path.read_text()
        assert found.found_in(text), path
        # as in a kubeconfig, and as in a document
        assert found.found_in(json.dumps({"x": text})), path
    pem = "-----BEGIN " + (workspace.pki / "controller.pem").read_text().split("-----BEGIN ")[2]
    assert found.found_in(base64.b64encode(pem.encode()).decode())
    assert found.found_in("xx Pr0xyPass yy") == "the proxy's credentials"
    assert found.found_in("nothing of the kind " * 100) == ""
    assert "Pr0xyPass" not in repr(found)


def test_pieces_are_found_at_any_place() -> None:
    piece = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo"
    found = needles([(piece, "a key"), ("short", "too short")])
    assert len(found) == 1
    assert found.found_in(f"n{piece}n") == "a key"
    assert found.found_in(piece[:-1]) == ""


def test_a_secret_leaves_no_file(tmp_path: Path) -> None:
    found = needles([], [("hidden", "a word")])
    with pytest.raises(ProvisionerError, match=r"b\.txt: a word would be in the bundle"):
        place(tmp_path / "x", "top", {"a.txt": "fine", "b.txt": "it is hidden here"}, found)
    with pytest.raises(ProvisionerError, match="a word would be"):
        place(tmp_path / "x", "top", {"hidden.txt": ""}, found)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(BadInput, match="already"):
        place(tmp_path / "x", "top", {"a": ""}, Needles())
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("x", "mine")]


# -- answers --------------------------------------------------------------------------------------------------------------------


def test_no_values_of_environments() -> None:
    item = {
        "metadata": {
            "name": "p",
            "managedFields": [1],
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "V4lue", "kept": "yes"},
        },
        "spec": {
            "containers": [{"name": "c", "env": [{"name": "A", "value": "V4lue"}], "envFrom": [{"secretRef": {"name": "s"}}]}],
            "initContainers": [{"name": "i", "env": [{"name": "B", "value": "V4lue"}]}],
        },
    }
    clean = pod(item)
    assert "V4lue" not in json.dumps(clean)
    assert clean["spec"]["containers"] == [{"name": "c", "env": [{"name": "A"}], "envFrom": [{"secretRef": {"name": "s"}}]}]
    assert clean["metadata"] == {"name": "p", "annotations": {"kept": "yes"}}


def test_a_config_map_with_something_secret_in_it() -> None:
    clean = config_map({"metadata": {}, "data": {"a": "password: V4lue\nb: 1", "c": "plain"}, "binaryData": {"x": "V4lue"}})
    assert clean["data"] == {"a": "[redacted]", "c": "plain"}
    assert clean["binaryData"] == ["x"]


def test_only_regular_files_that_were_asked_for_are_taken() -> None:
    node = Node.model_validate({"name": "n", "address": "10.0.0.1", "roles": ["worker"]})
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as bundle:
        for name in ("etc/a", "etc/shadow"):
            member = tarfile.TarInfo(name)
            member.size = 4
            bundle.addfile(member, io.BytesIO(b"text"))
        link = tarfile.TarInfo("etc/b")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/shadow"
        bundle.addfile(link)
    files = machine.unpacked(node, ("/etc/a", "/etc/b", "/etc/c"), Completed(2, raw.getvalue(), b""))
    assert [path for path in files if "/files/" in path] == ["machines/n/files/etc/a"]
    assert "etc/b: no regular file" in files["machines/n/files.txt"]
    assert "/etc/c: not there" in files["machines/n/files.txt"]
    with pytest.raises(ProvisionerError, match="tar: no such"):
        machine.unpacked(node, ("/etc/a",), Completed(2, b"", b"tar: no such"))


def test_certificates_are_described(workspace: Workspace) -> None:
    pem = (workspace.pki / "cluster-ca.pem").read_text()
    described = machine.described(pem[: pem.index("-----END CERTIFICATE-----")] + "-----END CERTIFICATE-----\n")
    assert isinstance(described, list)
    assert described[0]["subject"] == described[0]["issuer"]
    damaged = machine.described("-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n")
    assert str(damaged).startswith("no certificate: ")


def test_questions_have_deadlines_and_failures_are_noted() -> None:
    def fail(_seconds: float) -> dict[str, str]:
        raise ProvisionerError("refused", details=("token: Abc",))

    def hang(_seconds: float) -> dict[str, str]:
        time.sleep(3)
        return {}

    given: list[float] = []

    def answer(seconds: float) -> dict[str, str]:
        given.append(seconds)
        return {"a": "b"}

    missing: list[Missing] = []
    begin = time.monotonic()
    questions = [Question("fails", 1, fail), Question("hangs", 9, hang), Question("answers", 5, answer)]
    answers = collect.ask(questions, 1.2, missing)
    assert time.monotonic() - begin < 2.5
    assert answers == [{"a": "b"}]
    assert 0 < given[0] <= 1.2
    assert [(item.what, item.why) for item in missing] == [
        ("fails", "refused; token: '[redacted]'"),
        ("hangs", "not answered within the deadline of the bundle"),
    ]
