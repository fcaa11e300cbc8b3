"""`logs`, `support-bundle` and `kubeconfig --merge` on a real cluster, whole and with a machine whose power is off."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from provisioner.components import components_of
from provisioner.support.secrets import of_workspace
from provisioner.wait import NotYet, wait_until

pytestmark = pytest.mark.e2e

Real = Any  # the value of the fixture `ha` (tests/e2e/conftest.py); pytest imports no test module by name

# For what a busy machine may make slow.
PATIENCE = 300.0

# kubectl's own form, so that nothing of it needs to change for ours to come in.
FOREIGN = """\
apiVersion: v1
clusters:
- cluster:
    server: https://other.example.org:6443
  name: work
contexts:
- context:
    cluster: work
    user: me
  name: work
current-context: work
kind: Config
preferences: {}
users:
- name: me
  user:
    token: not-a-real-one
"""


# -- logs -----------------------------------------------------------------------------------------------------------------------


def test_logs_of_every_machine(ha: Real) -> None:
    for node in ha.cluster.nodes:
        done = ha.cli("logs", node.name, "--json", "--lines", "2000")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        carried = components_of(ha.cluster, node)
        assert document["components"] == [component.name for component in carried]
        times = [entry["time"] for entry in document["entries"]]
        assert times == sorted(times)
        assert {entry["unit"] for entry in document["entries"]} <= {component.unit for component in carried}
    last = ha.cluster.nodes[-1]
    done = ha.cli("logs", last.name, "kubelet", "network", "-n", "7")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    assert all(re.match(r"\S+Z (kubelet|flanneld)(\[\d+\])?: ", line) for line in lines), lines


def mark(ha: Real, node: str, text: str) -> None:
    """One line in the journal about etcd, as root may write it."""
    ha.run(node, "logger --journald", stdin=f"MESSAGE={text}\nOBJECT_SYSTEMD_UNIT=etcd.service\n".encode())


def test_logs_are_searched_and_nothing_reaches_a_shell(ha: Real) -> None:
    text = "odd 'words' $(touch /tmp/provisioner-injected) `x` \\d"
    mark(ha, "cp-1", text)

    def found() -> list[dict[str, Any]]:
        done = ha.cli("logs", "cp-1", "etcd", "--grep", re.escape(text), "--since", "1h", "-o", "json")
        assert done.returncode == 0, done.stderr
        entries: list[dict[str, Any]] = json.loads(done.stdout)["entries"]
        if not entries:
            raise NotYet(done.stderr)
        return entries

    entries = wait_until("the line in the journal", found, seconds=30, every=1)
    assert {(entry["message"], entry["unit"]) for entry in entries} == {(text, "etcd.service")}
    nothing = ha.cli("logs", "cp-1", "etcd", "--grep", "no line has this 7c1f")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "no such lines in cp-1's journal of etcd" in nothing.stderr
    ha.run("cp-1", "test ! -e /tmp/provisioner-injected")


@pytest.mark.parametrize("form", ["short", "json"])
def test_logs_are_followed_until_ctrl_c(ha: Real, form: str) -> None:
    with subprocess.Popen(
        [str(Path(sys.executable).parent / "provisioner"), "logs", "cp-1", "etcd", "-f", "-n", "1", "-o", form],
        cwd=ha.directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        watchdog = threading.Timer(PATIENCE, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            mark(ha, "cp-1", f"followed in {form}")
            line = next(line for line in process.stdout if f"followed in {form}" in line)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate()
        finally:
            watchdog.cancel()
            process.kill()
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    if form == "json":
        assert json.loads(line)["message"] == "followed in json"

    def gone() -> None:
        if left := ha.run("cp-1", "pgrep -a journalctl || :").strip():
            raise NotYet(left)

    wait_until("journalctl on the machine ends too", gone, seconds=60, every=1)


def test_following_ends_at_its_deadline(ha: Real) -> None:
    done = ha.cli("logs", "cp-1", "-f", "-n", "3", "--deadline", "3")
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("wroker-1",), 'did you mean "worker-1"?'),
        (("cp-1", "kublet"), 'did you mean "kubelet"?'),
        (("worker-1", "etcd"), "etcd is on cp-1"),
        (("cp-1", "--grep", "("), "is no regular expression"),
        (("cp-1", "--since", "; reboot"), "is no time"),
        (("cp-1", "--since", "; reboot", "--follow"), "is no time"),
        (("cp-1", "--priority", "loud"), "is no priority"),
    ],
)
def test_logs_refuses(ha: Real, args: tuple[str, ...], says: str) -> None:
    done = ha.cli("logs", *args)
    assert done.returncode == 3, done.stderr
    assert says in done.stderr
    assert "remedy:" in done.stderr


# -- support-bundle -------------------------------------------------------------------------------------------------------------


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as bundle:
        return {
            member.name.partition("/")[2]: file.read().decode()
            for member in bundle
            if (file := bundle.extractfile(member)) is not None
        }


def bundle(ha: Real, path: Path, *args: str) -> tuple[dict[str, str], dict[str, str]]:
    """Its files, and what is missing and why."""
    done = ha.cli("support-bundle", "--json", "--output", str(path), *args)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    files = contents(path)
    assert of_workspace(ha.cluster, ha.workspace).found_in("".join(files.values())) == ""
    return files, {item["what"]: item["why"] for item in json.loads(done.stdout)["missing"]}


def test_a_bundle_of_a_whole_cluster(ha: Real, tmp_path: Path) -> None:
    value = "v4lue-of-a-variable"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "with-environment", "namespace": "default"},
        # never scheduled: no node is called so
        "spec": {
            "nodeSelector": {"nobody": "has-this"},
            "containers": [{"name": "c", "image": "none", "env": [{"name": "PLAIN", "value": value}]}],
        },
    }
    kubectl = "kubectl --kubeconfig /dev/stdin"
    admin = ha.workspace.kubeconfig.read_bytes()
    ha.run("cp-1", f"printf %s {shlex.quote(json.dumps(pod))} >/tmp/pod.json && {kubectl} apply -f /tmp/pod.json", stdin=admin)
    try:
        files, missing = bundle(ha, tmp_path / "whole.tar.gz")
    finally:
        ha.run("cp-1", f"{kubectl} delete -f /tmp/pod.json --now; rm /tmp/pod.json", stdin=admin)
    assert missing == {}
    assert "with-environment" in files["api/pods.json"]
    assert '"name": "PLAIN"' in files["api/pods.json"]
    assert value not in "".join(files.values())
    assert [item["metadata"]["name"] for item in json.loads(files["api/nodes.json"])["items"]] == [
        node.name for node in ha.cluster.kubernetes_nodes
    ]
    assert json.loads(files["status.json"])["cluster"] == ha.name
    assert json.loads(files["manifest.json"])["missing"] == []
    for node in ha.cluster.nodes:
        own = f"machines/{node.name}"
        for component in components_of(ha.cluster, node):
            assert f"{own}/journal/{component.name}.log" in files
            assert f"{own}/files/etc/systemd/system/{component.unit}" in files
            assert component.unit in files[f"{own}/systemctl-status.txt"]
        assert f"Kubernetes v{ha.cluster.kubernetes.version}" in files[f"{own}/versions.txt"]
        assert str(node.ip) in files[f"{own}/ip-address.txt"]
        assert json.loads(files[f"{own}/facts.json"])["name"] == node.name
        # of what is secret not even the name is asked for
        assert not [path for path in files if path.startswith(own) and path.endswith((".key", "kubeconfig", "encryption.yaml"))]
    for node in ha.cluster.control_planes:
        assert "[+]etcd ok" in files[f"machines/{node.name}/apiserver/readyz.txt"]
    for node in ha.cluster.etcd_members:
        member = json.loads(files[f"machines/{node.name}/etcd.json"])
        assert len(member["members"]) == len(ha.cluster.etcd_members)
        assert member["alarms"] == []
    assert not [path for path in files if "secret" in path.lower()]
    assert ha.plan() == []


@contextlib.contextmanager
def without_power(ha: Real, name: str) -> Iterator[None]:
    """The machine off; afterwards its Node is Ready again and the cluster whole."""
    machine = ha.machine(name)
    machine.power_off()
    try:
        yield
    finally:
        machine.start()

        def whole() -> None:
            done = ha.cli("status", "--json")
            problems = json.loads(done.stdout)["problems"] if done.returncode == 0 else [done.stderr]
            if problems:
                raise NotYet("\n".join(problems))

        wait_until("a cluster without a problem", whole, seconds=PATIENCE, every=2)


def test_a_bundle_and_logs_without_one_machine(ha: Real, tmp_path: Path) -> None:
    name = ha.cluster.nodes[-1].name
    with without_power(ha, name):
        files, missing = bundle(ha, tmp_path / "partial.tar.gz")
        assert list(missing) == [f"{name}: everything on the machine"]
        assert missing[f"{name}: everything on the machine"]
        assert not [path for path in files if path.startswith(f"machines/{name}/")]
        assert "machines/cp-1/journal/etcd.log" in files
        assert "api/pods.json" in files
        assert json.loads(files["manifest.json"])["missing"][0]["what"] == f"{name}: everything on the machine"
        done = ha.cli("logs", name)
        assert done.returncode == 1
        assert name in done.stderr
        assert "remedy:" in done.stderr
        alone = ha.cli("support-bundle", "--node", name, "--output", str(tmp_path / "alone.tar.gz"))
        assert alone.returncode == 0, "the API and the controller still had something to say"


def test_a_bundle_is_refused(ha: Real, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("mine")
    for args, says in (
        (("--output", str(tmp_path / "there")), "there is such a file already"),
        (("--node", "cp-9"), "there is no node 'cp-9'"),
    ):
        done = ha.cli("support-bundle", *args)
        assert done.returncode == 3, done.stderr
        assert says in done.stderr
    assert (tmp_path / "there").read_text() == "mine"


# -- kubeconfig -----------------------------------------------------------------------------------------------------------------


def nodes_by_the_python_client(path: Path) -> set[str]:
    """What the official client sees with a kubeconfig and its current context, from the controller."""
    code = """
import sys
from kubernetes import client, config
api = client.CoreV1Api(config.new_client_from_config(config_file=sys.argv[1]))
print(*(node.metadata.name for node in api.list_node(_request_timeout=60).items))
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_merged_kubeconfig_works(ha: Real, tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(FOREIGN)
    done = ha.cli("kubeconfig", "--merge", "--json", KUBECONFIG=f"{path}:/nonexistent/other")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["file"], said["changed"], said["currentContext"]) == (str(path), True, f"admin@{ha.name}")
    assert Path(said["backup"]).read_text() == FOREIGN
    names = {node.name for node in ha.cluster.kubernetes_nodes}
    assert nodes_by_the_python_client(path) == names
    # kubectl reads it, changes it its own way, and it is still recognised
    kubectl = "KUBECONFIG=/tmp/merged kubectl"
    try:
        ha.run("cp-1", "umask 077; cat >/tmp/merged", stdin=path.read_bytes())
        for context in said["contexts"]:
            found = ha.run("cp-1", f"{kubectl} --context {context} get nodes -o name").split()
            assert set(found) == {f"node/{name}" for name in names}, context
        ha.run("cp-1", f"{kubectl} config set-context --current --namespace=kube-system")
        ha.run("cp-1", f"{kubectl} config rename-context admin@{ha.name} mine")
        assert "coredns" in ha.run("cp-1", f"{kubectl} get pods")
        path.write_text(ha.run("cp-1", "cat /tmp/merged"))
    finally:
        ha.run("cp-1", "rm -f /tmp/merged /tmp/merged.lock")
    again = ha.cli("kubeconfig", "--merge", "--kubeconfig", str(path))
    assert again.returncode == 0, again.stderr
    assert "nothing to do; current context: mine" in again.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert nodes_by_the_python_client(path) == names
    out = ha.cli("kubeconfig", "--unmerge", "--kubeconfig", str(path))
    assert out.returncode == 0, out.stderr
    left, before = yaml.safe_load(path.read_text()), yaml.safe_load(FOREIGN)
    before.pop("preferences"), left.pop("preferences", None)  # kubectl drops it where it is empty
    assert left == before


def test_unmerge_without_the_workspace(ha: Real, tmp_path: Path) -> None:
    path = tmp_path / "config"
    assert ha.cli("kubeconfig", "--merge", "--no-switch", "--kubeconfig", str(path)).returncode == 0
    assert yaml.safe_load(path.read_text())["current-context"] == ""
    # the key is in the lab's own directory, and is not reached for
    text = re.sub(r"^  key: .*\n", "", ha.workspace.cluster_file.read_text(), flags=re.MULTILINE)
    (tmp_path / "cluster.yaml").write_text(text)
    done = ha.command(tmp_path, "kubeconfig", "--unmerge", "--kubeconfig", str(path))
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(path.read_text())["contexts"] == []


def test_merging_is_refused(ha: Real, tmp_path: Path) -> None:
    taken = {"name": ha.name, "cluster": {"server": "https://x:6443", "certificate-authority-data": "Zm9yZWlnbg=="}}
    cases = {
        "clusters: [": "no YAML",
        "kind: Pod\n": "its kind is Pod",
        yaml.safe_dump({"clusters": [taken]}): "--name OTHER",
    }
    path = tmp_path / "config"
    for text, says in cases.items():
        path.write_text(text)
        done = ha.cli("kubeconfig", "--merge", "--kubeconfig", str(path))
        assert done.returncode == 3, done.stderr
        assert says in done.stderr
        assert path.read_text() == text
    path.write_text(FOREIGN)
    (tmp_path / "config.lock").touch()
    done = ha.cli("kubeconfig", "--merge", "--kubeconfig", str(path), "--deadline", "1")
    assert done.returncode == 1
    assert "another program is writing it" in done.stderr
    assert path.read_text() == FOREIGN
    missing = ha.cli("kubeconfig", "--unmerge", "--kubeconfig", str(tmp_path / "none"))
    assert missing.returncode == 3
    assert "no such file" in missing.stderr


def test_printing_stays_as_it_was(ha: Real) -> None:
    done = ha.cli("kubeconfig")
    assert done.returncode == 0
    assert done.stdout == ha.workspace.kubeconfig.read_text()
