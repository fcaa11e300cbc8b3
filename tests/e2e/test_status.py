"""`status` on a real cluster: whole, while `apply` holds the workspace, and with the first control plane cut off the network."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from provisioner.wait import NotYet, wait_until

pytestmark = pytest.mark.e2e

Real = Any  # the value of the fixture `ha` (tests/e2e/conftest.py); pytest imports no test module by name

# After a repair; the machine that runs the tests may be slow and busy.
PATIENCE = 300.0


def look(ha: Real) -> dict[str, Any]:
    done = ha.cli("status", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def wait_until_whole(ha: Real) -> dict[str, Any]:
    """The cluster has no problem, as `status` sees it."""

    def whole() -> dict[str, Any]:
        found = look(ha)
        if found["problems"]:
            raise NotYet("\n".join(found["problems"]))
        return found

    return wait_until("a cluster without a problem", whole, seconds=PATIENCE, every=2)


@contextmanager
def cut(ha: Real, name: str) -> Iterator[None]:
    machine = ha.machine(name)
    machine.cut_link()
    try:
        yield
    finally:
        machine.heal_link()
        wait_until_whole(ha)


def test_a_whole_cluster(ha: Real) -> None:
    found = wait_until_whole(ha)
    names = [node.name for node in ha.cluster.nodes]
    planes = [node.name for node in ha.cluster.control_planes]
    assert found["healthy"] is True
    assert [machine["name"] for machine in found["machines"]] == names
    assert all(machine["reachable"] for machine in found["machines"])
    members = found["etcd"]["members"]
    assert [member["name"] for member in members] == planes
    assert sum(member["leader"] for member in members) == 1
    assert found["etcd"]["leader"] in planes
    assert found["etcd"]["quorum"] is True
    assert len({member["raftTerm"] for member in members}) == 1
    for member in members:
        assert member["healthy"], member
        assert 0 <= member["behind"] < 1000, member
        assert 0 < member["inUseMib"] <= member["dbMib"] < member["quotaMib"], member
        assert member["quotaMib"] == ha.cluster.etcd.quota_backend_bytes / (1 << 20)
    assert {lease["component"] for lease in found["leases"]} == {"kube-controller-manager", "kube-scheduler"}
    for lease in found["leases"]:
        assert lease["holder"] in planes
        assert lease["seconds"] < 17, lease
    assert [server["ready"] for server in found["apiservers"]] == [True] * len(planes)
    assert [(node["name"], node["ready"]) for node in found["nodes"]] == [(name, True) for name in names]
    assert {node["kubelet"] for node in found["nodes"]} == {f"v{ha.cluster.kubernetes.version}"}
    assert [proxy["node"] for proxy in found["proxies"]] == names
    for proxy in found["proxies"]:
        assert [(backend["name"], backend["up"]) for backend in proxy["backends"]] == [(name, True) for name in planes]
        # kubelet, kube-proxy and flanneld of each node go through it
        assert sum(backend["sessions"] for backend in proxy["backends"]) > 0, proxy


def test_for_people(ha: Real) -> None:
    wait_until_whole(ha)
    done = ha.cli("status", NO_COLOR="1")
    assert done.returncode == 0, done.stderr
    assert f"{ha.name}: no problem" in done.stdout
    for name in ("cp-1", "worker-2", "leader", "kube-scheduler, renewed", "cp-3 UP ("):
        assert name in done.stdout, done.stdout
    assert "\x1b" not in done.stdout


def test_it_needs_no_lock_and_changes_nothing(ha: Real) -> None:
    files = {path: path.stat().st_mtime_ns for path in ha.workspace.root.rglob("*") if path.is_file()}
    with ha.workspace.lock("a test"):
        files[ha.workspace.root / "lock"] = (ha.workspace.root / "lock").stat().st_mtime_ns
        assert look(ha)["machines"]
    after = {path: path.stat().st_mtime_ns for path in ha.workspace.root.rglob("*") if path.is_file()}
    assert after == files
    assert ha.plan() == []


def page(ha: Real, command: str, file: Path, *more: str) -> str:
    """A page that a command wrote."""
    done = ha.cli(command, "--html", str(file), *more)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert file.stat().st_mode & 0o777 == 0o644
    return file.read_text(encoding="utf-8")


def test_the_page(ha: Real, tmp_path: Path) -> None:
    wait_until_whole(ha)
    names = [node.name for node in ha.cluster.nodes]
    pairs = len(names) * (len(names) - 1)
    text = page(ha, "verify", tmp_path / "verify.html", "--only", "pod-to-pod")
    assert f"{pairs} of {pairs} ways between nodes worked" in text
    assert "these alone were tried, and passed: pod-to-pod" in text
    # what was tried in part is no proof of the whole, and is not kept as one
    verified = ha.cli("verify", "--json")
    assert verified.returncode == 0, verified.stderr
    text = page(ha, "report", tmp_path / "report.html")
    assert "No problem; all" in text
    assert f"{pairs} of {pairs} ways between nodes worked" in text
    assert all(name in text for name in names)
    for secret in (ha.workspace.kubeconfig, ha.workspace.root / "id_ed25519"):
        lines = [line.split()[-1] for line in secret.read_text().splitlines() if len(line) > 60]
        assert lines
        assert not any(line in text for line in lines)
    document = json.loads(ha.cli("report", "--json").stdout)
    assert document["status"]["healthy"] is True
    assert document["verify"]["checks"] == json.loads(verified.stdout)["checks"]
    assert next(check for check in document["verify"]["checks"] if check["id"] == "pod-to-pod")["pairs"]["failed"] == []
    wanted = f"{ha.cluster.kubernetes.version}"
    for machine in document["versions"]["machines"]:
        assert machine["errors"] == {}, machine
        assert machine["components"]["kubelet"] == machine["components"]["kube-proxy"] == wanted, machine
        for component, version in machine["components"].items():
            assert version.removeprefix("v") == document["versions"]["expected"].get(component, version).removeprefix("v"), machine
    assert {pod["node"] for pod in document["pods"]} <= set(names)
    assert any(pod["namespace"] == "kube-system" and pod["ready"] for pod in document["pods"])
    # of the run that built the cluster, or what the last test has changed since
    assert document["run"]["state"] == "done"
    assert {task["host"] for task in document["run"]["tasks"]} <= set(names)
    assert [phase for phase in document["run"]["phases"] if phase["state"] != "done"] == []


def test_the_graph(ha: Real) -> None:
    done = ha.cli("graph")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "flowchart TB"
    assert all(f'"{node.name}<br>' in done.stdout for node in ha.cluster.nodes)


def test_watching_keeps_its_connections(ha: Real) -> None:
    """Looks go over the same SSH connections, and one that is interrupted ends well."""
    wait_until_whole(ha)
    before = logins(ha)
    with ha.started("status", "--watch", "--interval", "0.5", "--json", stdout=subprocess.PIPE) as process:
        looks = [json.loads(process.stdout.readline()) for _ in range(5)]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert all(look["healthy"] for look in looks), looks[-1]["problems"]
    made = {name: count - before[name] for name, count in logins(ha).items()}
    assert made == dict.fromkeys(made, 1), "one login on each machine for all looks"


def logins(ha: Real) -> dict[str, int]:
    """How often sshd let somebody in, by machine."""
    text = "journalctl --no-pager -q -u ssh -o cat | grep -c '^Accepted ' || true"
    return {node.name: int(ha.run(node, text)) for node in ha.cluster.nodes}


def test_without_the_first_control_plane(ha: Real, tmp_path: Path) -> None:
    """Cut off, so that nothing there refuses a connection: whoever asks must give up by itself."""
    wait_until_whole(ha)
    with cut(ha, "cp-1"):

        def noticed() -> dict[str, Any]:
            found = look(ha)
            others = [proxy for proxy in found["proxies"] if proxy["node"] != "cp-1"]
            if any(backend["up"] for proxy in others for backend in proxy["backends"] if backend["name"] == "cp-1"):
                raise NotYet("a proxy still takes cp-1 for up")
            if found["etcd"]["leader"] in (None, "cp-1") or any(lease["holder"] == "cp-1" for lease in found["leases"]):
                raise NotYet(f"{found['etcd']['leader']} leads etcd; {found['leases']}")
            return found

        found = wait_until("the loss of cp-1 noticed by all", noticed, seconds=PATIENCE, every=1)
        begin = time.monotonic()
        done = ha.cli("status")
        took = time.monotonic() - begin
        print(f"status with cp-1 cut off: {took:.1f} s, of which {found['seconds']} s looking")
        assert done.returncode == 0, done.stderr
        # its own bar is 10 s; a busy machine that runs the tests gets more
        assert found["seconds"] < 30
        text = page(ha, "report", tmp_path / "report.html")
    assert "cp-1</b> cannot be reached" in text
    assert "Those on <b>cp-1</b> are not known" in text
    assert "but now cp-1 does not answer" in text
    machines = {machine["name"]: machine for machine in found["machines"]}
    assert [name for name, machine in machines.items() if not machine["reachable"]] == ["cp-1"]
    assert machines["cp-1"]["error"]
    assert found["etcd"]["quorum"] is True
    assert [member["healthy"] for member in found["etcd"]["members"]] == [False, True, True]
    assert [server["ready"] for server in found["apiservers"]] == [False, True, True]
    assert {node["name"] for node in found["nodes"]} == {node.name for node in ha.cluster.nodes}
    assert found["problems"][0].startswith("cp-1: cannot be reached: ")
    assert any("etcd runs with 2 of 3 members" in problem for problem in found["problems"])
    assert "cp-1: cannot be reached" in done.stdout


def test_without_a_quorum_it_says_what_is_left(ha: Real) -> None:
    wait_until_whole(ha)
    with cut(ha, "cp-1"), cut_quietly(ha, "cp-2"):

        def noticed() -> dict[str, Any]:
            found = look(ha)
            if found["etcd"]["quorum"] is not False:
                raise NotYet(f"etcd: {found['etcd']}")
            return found

        found = wait_until("the loss of the quorum noticed", noticed, seconds=PATIENCE, every=1)
    assert any(problem.startswith("cluster: etcd has no quorum: 2 of its 3 members") for problem in found["problems"])
    member = found["etcd"]["members"][2]
    assert (member["name"], member["healthy"], member["error"]) == ("cp-3", False, "sees no leader")
    assert member["dbMib"] > 0
    assert [machine["reachable"] for machine in found["machines"]] == [False, False, True, True, True]


@contextmanager
def cut_quietly(ha: Real, name: str) -> Iterator[None]:
    """Cut inside another cut, which waits for the whole."""
    machine = ha.machine(name)
    machine.cut_link()
    try:
        yield
    finally:
        machine.heal_link()


def test_without_a_cluster(ha: Real, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("none")
    # the key is in the lab's own directory, and is not reached for
    text = re.sub(r"^  key: .*\n", "", ha.workspace.cluster_file.read_text(), flags=re.MULTILINE)
    (directory / "cluster.yaml").write_text(text)
    done = ha.command(directory, "status")
    assert done.returncode == 3
    assert "no cluster was built from here" in done.stderr
    assert "remedy: run `provisioner apply` first" in done.stderr
