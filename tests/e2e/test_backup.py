"""A backup, damage, and the cluster as it was: every object compared with what was there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyrage
import pytest

from provisioner.artifacts.lock import load_lock
from provisioner.cluster_api import ClusterApi
from provisioner.errors import ProvisionerError
from provisioner.wait import NotYet, wait_until
from tests.e2e.drills.kit import Kit

pytestmark = pytest.mark.e2e

Real = Any  # the value of the fixture `ha` (tests/e2e/conftest.py); pytest imports no test module by name

PATIENCE = 300.0
WORDS = "correct horse battery staple"
# They tell of the moment, and are made anew by whoever watches over it.
OF_THE_MOMENT = {"leases", "events", "endpointslices", "endpoints", "componentstatuses", "podmetrics", "nodemetrics"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """age's public key, the file with its private one, and a file with a passphrase."""
    directory = tmp_path_factory.mktemp("keys")
    identity = pyrage.x25519.Identity.generate()
    (directory / "key.txt").write_text(f"# made for a test\n{identity}\n")
    (directory / "words").write_text(f"{WORDS}\n")
    return str(identity.to_public()), directory / "key.txt", directory / "words"


@pytest.fixture(scope="module")
def site(ha: Real) -> Iterator[Kit]:
    """A namespace with workloads of several kinds, a Secret, and an object of a kind of its own."""
    with Kit.of(ha) as kit:
        kit.deploy()
        image = load_lock().image("agnhost", ha.cluster.kubernetes.version)
        labels = {"app": "web"}
        container = {"name": "web", "image": image, "args": ["netexec", "--http-port=8080"]}
        template = {"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]}}
        spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template}
        kit.api.apply(kit.object("apps/v1", "Deployment", "web", spec=spec))
        kit.api.apply(kit.object("v1", "Secret", "secret", stringData={"password": "precious"}))
        kit.write("kept")
        kit.api.apply(WIDGETS)
        widget = kit.object("example.com/v1", "Widget", "one", spec={"size": 3})
        wait_until("the new kind", lambda: kit.api.apply(widget), seconds=PATIENCE, retry_on=(ProvisionerError,))
        wait_until("the pods of web", lambda: running(kit, 2), seconds=PATIENCE, retry_on=(ProvisionerError,))
        try:
            yield kit
        finally:
            kit.api.delete(WIDGETS, timeout=60)


WIDGETS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "widgets.example.com"},
    "spec": {
        "group": "example.com",
        "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def running(kit: Kit, count: int) -> None:
    pods = kit.api.items(f"/api/v1/namespaces/{kit.namespace}/pods", labelSelector="app=web")
    ready = [
        pod
        for pod in pods
        if any(one["type"] == "Ready" and one["status"] == "True" for one in (pod.get("status") or {}).get("conditions") or ())
    ]
    if len(ready) != count or len(pods) != count:
        raise NotYet(f"{len(ready)} of {len(pods)} Ready")


def everything(api: ClusterApi) -> dict[str, Mapping[str, Any]]:
    """Every object of the cluster by kind, namespace and name: all that is stored but status and what tells of the moment."""
    groups = [group["preferredVersion"]["groupVersion"] for group in api.request("GET", "/apis").json()["groups"]]
    found: dict[str, Mapping[str, Any]] = {}
    for version, base in (("v1", "/api/v1"), *((one, f"/apis/{one}") for one in groups)):
        for resource in api.request("GET", base).json()["resources"]:
            name = resource["name"]
            if "/" in name or name in OF_THE_MOMENT or "list" not in resource["verbs"]:
                continue
            for item in api.items(f"{base}/{name}", timeout=60):
                metadata = item["metadata"]
                key = f"{version} {name} {metadata.get('namespace', '')}/{metadata['name']}"
                kept = {field: value for field, value in item.items() if field not in ("status", "metadata")}
                kept |= {field: metadata.get(field) for field in ("uid", "labels", "ownerReferences")}
                found[key] = kept
    return found


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    lines = [f"gone: {key}" for key in sorted(before.keys() - after.keys())]
    lines += [f"new: {key}" for key in sorted(after.keys() - before.keys())]
    for key in sorted(before.keys() & after.keys()):
        fields = [field for field in before[key].keys() | after[key].keys() if before[key].get(field) != after[key].get(field)]
        lines += [f"{key}: {field}: {before[key].get(field)} -> {after[key].get(field)}" for field in fields]
    return lines


def revision(api: ClusterApi) -> int:
    return int(api.request("GET", "/api/v1/namespaces").json()["metadata"]["resourceVersion"])


def test_a_backup_is_one_file_that_tells_nothing(ha: Real, site: Kit, keys: tuple[str, Path, Path], tmp_path: Path) -> None:
    public, private, _ = keys
    done = ha.cli("etcd", "snapshot", "--recipient", public, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    path = Path(document["file"])
    assert document["encrypted"] is True
    assert document["manifest"]["cluster"] == ha.name
    assert document["manifest"]["etcd"]["member"] in {node.name for node in ha.cluster.etcd_members}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes().startswith(b"age-encryption.org/v1")
    # age's own library opens it, and a tar is in it
    opened = pyrage.decrypt(path.read_bytes(), [pyrage.x25519.Identity.from_str(private.read_text().splitlines()[1])])
    assert b"manifest.json" in opened[:512]
    assert b"precious" not in opened, "Secrets are encrypted at rest, in a backup too"
    listed = json.loads(ha.cli("etcd", "list", "--json").stdout)["backups"]
    assert [one["file"] for one in listed] == [str(path)]
    assert f"{path}" in ha.cli("etcd", "list").stdout
    # a second one, and only so many are kept
    time.sleep(1)
    again = json.loads(ha.cli("etcd", "snapshot", "--recipient", public, "--keep", "1", "--json").stdout)
    assert again["deleted"] == [str(path)]
    assert not path.exists()
    # elsewhere, plain, because it was asked for
    plain = ha.cli("etcd", "snapshot", "--plain", "--output", str(tmp_path / "plain"))
    assert plain.returncode == 0, plain.stderr
    assert "NOT encrypted" in plain.stderr
    assert plain.stdout.strip() == str(tmp_path / "plain")
    assert stat.S_IMODE((tmp_path / "plain").stat().st_mode) == 0o600
    assert not list(ha.workspace.backups.glob(".*")), "nothing is left beside them"


def test_what_cannot_be_backed_up_is_refused(ha: Real, keys: tuple[str, Path, Path], tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    (tmp_path / "short").write_text("short\n")
    for words, said in (
        ((), "nobody to ask for a passphrase"),
        (("--recipient", "age1nonsense"), "no public key of age"),
        (("--passphrase-file", str(tmp_path / "missing")), "No such file"),
        (("--passphrase-file", str(tmp_path / "short")), "it needs 12"),
        (("--plain", "--recipient", keys[0]), "exclude each other"),
        (("--plain", "--output", str(tmp_path / "there")), "there is such a file already"),
        (("--plain", "--output", str(tmp_path / "no" / "file")), "no such directory"),
    ):
        done = ha.cli("etcd", "snapshot", *words)
        assert done.returncode == 3, (words, done.stderr)
        assert said in done.stderr, done.stderr
        assert "remedy: " in done.stderr


def started(ha: Real) -> list[str]:
    """When etcd and the API servers were started: a restore that was refused has touched neither."""
    return [
        ha.run(node, "systemctl show -P ExecMainStartTimestampMonotonic etcd kube-apiserver; ls /var/lib/etcd")
        for node in ha.cluster.control_planes
    ]


def test_a_backup_that_is_damaged_foreign_or_closed_is_refused_before_anything_is_touched(
    ha: Real, site: Kit, keys: tuple[str, Path, Path], tmp_path: Path
) -> None:
    words = keys[2]
    before = started(ha)
    made = ha.cli("etcd", "snapshot", "--passphrase-file", str(words), "--output", str(tmp_path / "sealed"))
    assert made.returncode == 0, made.stderr
    assert WORDS not in made.stderr + (ha.workspace.journal.read_text())
    whole = (tmp_path / "sealed").read_bytes()
    assert ha.cli("etcd", "snapshot", "--plain", "--output", str(tmp_path / "plain")).returncode == 0
    plain = (tmp_path / "plain").read_bytes()
    (tmp_path / "wrong").write_text(f"{WORDS}!\n")

    def restore(name: str, content: bytes, *options: str, code: int = 1) -> str:
        (tmp_path / name).write_bytes(content)
        done = ha.cli("etcd", "restore", str(tmp_path / name), "--yes", *options)
        assert done.returncode == code, f"{name}: {done.stdout}{done.stderr}"
        said: str = done.stderr
        return said

    opens = ("--passphrase-file", str(words))
    assert "cannot be decrypted" in restore("truncated", whole[: len(whole) // 2], *opens)
    assert "cannot be decrypted" in restore("flipped", whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:], *opens)
    assert "cannot be decrypted" in restore("closed", whole, "--passphrase-file", str(tmp_path / "wrong"))
    assert "nobody to ask for a passphrase" in restore("closed", whole, code=3)
    assert "damaged, or no backup" in restore("cut", plain[: len(plain) // 2])
    assert "damaged, or no backup" in restore("nonsense", os.urandom(5000))
    foreign = plain.replace(f'"cluster": "{ha.name}"'.encode(), f'"cluster": "{ha.name[:-1]}x"'.encode())
    assert foreign != plain
    assert "its manifest was changed" in restore("renamed", foreign)
    missing = ha.cli("etcd", "restore", str(tmp_path / "missing"), "--yes")
    assert (missing.returncode, "No such file" in missing.stderr) == (3, True), missing.stderr
    asked = ha.cli("etcd", "restore", str(tmp_path / "plain"))
    assert asked.returncode == 3
    assert "`--yes`" in asked.stderr
    assert f"the backup: {ha.name}, Kubernetes {ha.cluster.kubernetes.version}" in asked.stderr
    assert started(ha) == before
    assert not ha.workspace.restoring.exists()


def test_a_restore_needs_every_member(ha: Real, keys: tuple[str, Path, Path], tmp_path: Path) -> None:
    assert ha.cli("etcd", "snapshot", "--plain", "--output", str(tmp_path / "plain")).returncode == 0
    machine = ha.machine("cp-2")
    machine.cut_link()
    try:
        done = ha.cli("etcd", "restore", str(tmp_path / "plain"), "--yes")
    finally:
        machine.heal_link()
    assert done.returncode == 4, done.stderr
    assert "cp-2" in done.stderr
    assert "nothing was changed" in done.stderr
    assert not ha.workspace.restoring.exists()


def test_the_cluster_returns_as_it_was(ha: Real, site: Kit, keys: tuple[str, Path, Path], tmp_path: Path) -> None:
    public, private, _ = keys
    before = everything(site.api)
    assert any(" widgets " in key for key in before)
    counted = revision(site.api)
    path = tmp_path / "backup"
    done = ha.cli("etcd", "snapshot", "--recipient", public, "--output", str(path))
    assert done.returncode == 0, done.stderr
    # what comes after the backup, and the damage
    site.write("later")
    site.api.delete(WIDGETS, timeout=60)
    site.api.delete({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": site.namespace}}, timeout=60)
    site.api.delete({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker-1"}}, timeout=60)
    time.sleep(5)
    for node in ha.cluster.etcd_members:
        ha.run(node, "systemctl kill --signal=KILL etcd; systemctl stop etcd; rm -rf /var/lib/etcd/member")

    options = ("etcd", "restore", str(path), "--identity", str(private), "--yes")
    cut_short(ha, options)
    refused = ha.cli("apply", "--yes")
    assert refused.returncode == 1, refused.stderr
    assert "was cut short, and etcd's members may have data of two times" in refused.stderr

    done = ha.cli(*options, "--json")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    document = json.loads(done.stdout)
    print(f"restored: {document['seconds']} s to all Nodes Ready, {document['apiSeconds']} s without the API")
    assert (document["nodesDeleted"], document["nodesRegistered"], document["nodesSilent"]) == ([], [], [])
    assert document["manifest"]["etcd"]["revision"] > 0
    assert not ha.workspace.restoring.exists()
    assert revision(site.api) > counted, "a revision never comes twice"

    def settled() -> None:
        if found := differences(before, everything(site.api)):
            raise NotYet("\n".join(found[:20]))

    wait_until("every object as it was", settled, seconds=PATIENCE, every=2, retry_on=(ProvisionerError,))
    wait_until("the pods of web", lambda: running(site, 2), seconds=PATIENCE, retry_on=(ProvisionerError,))
    assert site.read("later") is None
    assert site.read("kept") == "written"
    assert site.api.get(site.object("v1", "Secret", "secret"))
    # once more, without a worker: it is named, and holds nobody up
    counted = revision(site.api)
    machine = ha.machine("worker-2")
    machine.cut_link()
    try:
        done = ha.cli(*options, "--json")
    finally:
        machine.heal_link()
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["nodesSilent"] == ["worker-2"]
    assert "restored, but not proved: the kubelet of worker-2 could not be started" in done.stderr
    assert revision(site.api) > counted, "no revision comes twice, also of the same backup"
    assert not ha.workspace.restoring.exists()
    wait_until("every object as it was", settled, seconds=PATIENCE, every=2, retry_on=(ProvisionerError,))
    for node in ha.cluster.etcd_members:
        names = ha.run(node, "ls /var/lib/etcd").split()
        assert len(names) == 2, names
        assert sorted(name.partition("-2")[0] for name in names) == ["before-restore", "member"]

    def whole() -> None:
        proof = ha.cli("verify", "--json")
        if proof.returncode:
            raise NotYet(proof.stdout[-2000:])

    wait_until("a proved cluster", whole, seconds=PATIENCE, every=2)
    assert ha.plan() == []


def test_it_comes_back_on_new_machines_with_the_controller_lost(
    bare_lab: Callable[..., contextlib.AbstractContextManager[Real]], keys: tuple[str, Path, Path], tmp_path: Path
) -> None:
    """The machines are wiped, and nothing is taken from the old controller but the backup; Nodes are called as before."""
    _, _, words = keys
    with bare_lab("--workers", "1") as old:
        assert old.cli("apply", "--yes", "--skip-verify").returncode == 0
        with Kit.of(old) as kit:
            kit.deploy()
            kit.write("kept")
            before = everything(kit.api)
            done = old.cli("etcd", "snapshot", "--passphrase-file", str(words), "--output", str(tmp_path / "backup"))
            assert done.returncode == 0, done.stderr
            assert old.cli("workspace", "export", "--plain", "--output", str(tmp_path / "export")).returncode == 0
            assert old.cli("reset", "--yes").returncode == 0
            directory = tmp_path / "new"
            options = (str(tmp_path / "backup"), "--passphrase-file", str(words))
            made = old.command(tmp_path, "workspace", "import", *options, "--into", str(directory))
            assert made.returncode == 0, made.stderr
            path = directory / "workspace" / old.name / "cluster.yaml"
            assert made.stdout.strip() == str(path)
            again = old.command(tmp_path, "workspace", "import", *options, "--into", str(directory))
            assert again.returncode == 3
            assert "there is such a workspace already" in again.stderr
            # the smaller file holds the same, but for the data
            other = old.command(
                tmp_path, "workspace", "import", str(tmp_path / "export"), "--into", str(tmp_path / "other"), "--json"
            )
            assert json.loads(other.stdout)["hasData"] is False
            for name in ("cluster.yaml", "pki/cluster-ca.pem", "pki/encryption.key", "id_ed25519"):
                assert (path.parent / name).read_bytes() == (tmp_path / "other" / "workspace" / old.name / name).read_bytes()
                assert stat.S_IMODE((path.parent / name).stat().st_mode) == 0o600
            refused = old.command(directory, "etcd", "restore", str(tmp_path / "export"), "--yes")
            assert refused.returncode == 3
            assert "only a workspace is in it" in refused.stderr
            early = old.command(directory, "etcd", "restore", *options, "--yes")
            assert early.returncode == 4, early.stderr
            assert "not a machine of this cluster" in early.stderr

            built = old.command(directory, "apply", "--yes", "--skip-verify")
            assert built.returncode == 0, built.stderr
            restored = old.command(directory, "etcd", "restore", *options, "--yes")
            assert restored.returncode == 0, f"{restored.stdout}\n{restored.stderr}"
            print(f"{restored.stdout}{[line for line in restored.stderr.splitlines() if 'addresses of' in line]}")

            def settled() -> None:
                if found := differences(before, everything(kit.api)):
                    raise NotYet("\n".join(found[:20]))

            wait_until("every object as it was", settled, seconds=PATIENCE, every=2, retry_on=(ProvisionerError,))
            assert kit.read("kept") == "written"
            kit.wait_for_pods("workers", 1)
            planned = old.command(directory, "plan", "--json")
            assert planned.returncode == 0, planned.stdout


def cut_short(ha: Real, options: tuple[str, ...]) -> None:
    """A restore that is killed while the members change over."""
    with ha.started(*options) as process:
        assert process.stderr
        for line in process.stderr:
            if re.search(r"Change over, with no API server running …", line):
                time.sleep(3)
                os.killpg(process.pid, signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert ha.workspace.restoring.exists()
