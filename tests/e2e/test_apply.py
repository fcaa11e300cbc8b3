"""`apply` on a real cluster: from nothing to proven, then nothing to do; drift, crashes and mistakes, repaired by the next run.

The tests share one cluster and run in this order; each leaves it as it found it.
"""

from __future__ import annotations

import datetime as dt
import json
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from provisioner import phases
from provisioner.config import Node, Role
from provisioner.desired import load_host
from provisioner.errors import ProvisionerError
from provisioner.plan import CLUSTER
from provisioner.wait import NotYet, wait_until

pytestmark = pytest.mark.e2e

Real = Any  # the value of the fixture `ha` (tests/e2e/conftest.py); pytest imports no test module by name

# Which moments are chosen for a crash; another number, other moments.
SEED = 20_240_607
# After a reboot or a repair; the machine that runs the tests may be slow and busy.
PATIENCE = 300.0
UNITS = "containerd etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy flanneld provisioner-api-proxy"


def processes(ha: Real) -> dict[tuple[str, str], str]:
    """(machine, unit) -> what tells one run of the unit from the next."""
    found = {}
    for node in ha.cluster.nodes:
        text = ha.run(node, f"systemctl show --property=Id,ExecMainStartTimestampMonotonic,ActiveState {UNITS}")
        for block in text.strip().split("\n\n"):
            values = dict(line.split("=", 1) for line in block.splitlines())
            if values["ActiveState"] != "inactive":
                found[node.name, values["Id"]] = values["ExecMainStartTimestampMonotonic"]
    return found


def restarted(before: Mapping[tuple[str, str], str], after: Mapping[tuple[str, str], str]) -> set[tuple[str, str]]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def inodes(ha: Real, node: str) -> dict[str, str]:
    """Binaries and archives of a machine, by inode: a file that was sent again has another one."""
    text = ha.run(node, "stat -c '%n %i' /usr/local/bin/* /opt/cni/bin/* /var/lib/provisioner/images/*")
    return dict(line.split(" ") for line in text.splitlines())


def secrets_of(ha: Real, node: Node) -> set[str]:
    """Every line of key material that a machine holds: what must be in no log."""
    found: set[str] = set()
    for file in load_host(ha.workspace.rendered, node.name).files:
        if file.secret:
            text = file.content.decode()
            found |= set(re.findall(r"^[A-Za-z0-9+/=]{40,}$", text, re.MULTILINE))
            found |= set(re.findall(r"(?:client-key-data|secret|token): (\S{20,})", text))
    assert found
    return found


def api(ha: Real, path: str) -> Any:
    """The API as the administrator's kubeconfig reaches it from a control plane."""
    text = ha.run("cp-2", f"kubectl --kubeconfig /dev/stdin get --raw '{path}'", stdin=ha.workspace.kubeconfig.read_bytes())
    return json.loads(text)


# -- from nothing --------------------------------------------------------------------------------------------------------------


def test_one_command_builds_and_proves_the_cluster(ha: Real) -> None:
    built = ha.built["apply"]
    assert built.returncode == 0
    for phase in (*phases.LOOK, *phases.CHANGE):
        assert re.search(rf"{re.escape(phase.title)} (ok|nothing to do) \(", built.stderr), f"{phase.title}\n{built.stderr}"
    assert "FAILED" not in built.stderr
    assert "applied: " in built.stderr
    assert "Traceback" not in built.stderr
    assert "WARNING" not in built.stderr


def test_tasks_are_few_and_none_is_skipped(ha: Real) -> None:
    counts: dict[str, dict[str, int]] = {}
    for record in ha.journal("playbooks"):
        for machine, numbers in record["counts"].items():
            for kind, number in numbers.items():
                counts.setdefault(machine, {}).setdefault(kind, 0)
                counts[machine][kind] += number
    assert set(counts) == {node.name for node in ha.cluster.nodes}
    for node in ha.cluster.control_planes:
        assert 5 < counts[node.name]["executed"] <= 60, counts
    executed, skipped = (sum(numbers.get(kind, 0) for numbers in counts.values()) for kind in ("executed", "skipped"))
    assert skipped <= 0.05 * executed, counts


def test_the_kubeconfig_works_here_and_there(ha: Real) -> None:
    expected = {node.name for node in ha.cluster.kubernetes_nodes}
    nodes = api(ha, "/api/v1/nodes")["items"]
    ready = {
        node["metadata"]["name"]
        for node in nodes
        if any(condition["type"] == "Ready" and condition["status"] == "True" for condition in node["status"]["conditions"])
    }
    assert ready == expected
    # from the controller, with the official client, by the address that stands in the file
    code = """
import sys
from kubernetes import client, config
config.load_kube_config(sys.argv[1])
print(" ".join(sorted(node.metadata.name for node in client.CoreV1Api().list_node(_request_timeout=60).items)))
"""
    done = subprocess.run([sys.executable, "-c", code, str(ha.workspace.kubeconfig)], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected
    # it is printed by the command, for scripts
    assert yaml.safe_load(ha.cli("kubeconfig").stdout) == yaml.safe_load(ha.workspace.kubeconfig.read_text())
    assert ha.workspace.kubeconfig.stat().st_mode & 0o777 == 0o600


def test_a_second_run_has_nothing_to_do(ha: Real) -> None:
    before = processes(ha)
    again = ha.cli("apply", "--yes")
    assert again.returncode == 0, again.stderr
    assert "nothing to do" in again.stderr
    assert "Prepare the machines" not in again.stderr
    counts = ha.journal("playbooks")[-1]["counts"]
    assert all(numbers["executed"] == 1 and numbers["changed"] == 0 for numbers in counts.values()), counts
    plan = ha.cli("plan")
    assert (plan.returncode, plan.stdout) == (0, "nothing to do: every machine is as cluster.yaml says\n")
    assert ha.plan() == []
    assert processes(ha) == before


# -- least privilege -----------------------------------------------------------------------------------------------------------


def test_every_key_is_its_owners_alone(ha: Real) -> None:
    for node in ha.cluster.nodes:
        find = "find /etc/kubernetes /etc/etcd -type f '(' -name '*.key' -o -name '*kubeconfig' -o -name encryption.yaml ')'"
        lines = ha.run(node, f"{find} -printf '%m %u %p\\n' 2>/dev/null || true")
        found = [line.split(" ", 2) for line in lines.splitlines()]
        assert len(found) >= 3, lines
        assert {mode for mode, _, _ in found} == {"600"}, lines
        for _, owner, path in found:
            component = re.match(r"/etc/kubernetes/(kube-apiserver|kube-controller-manager|kube-scheduler)/", path)
            assert owner == (component[1] if component else "etcd" if path.startswith("/etc/etcd/") else "root"), path


def test_a_worker_holds_no_ca_key_and_nobody_holds_etcds(ha: Real) -> None:
    keys = {
        path.name: re.findall(r"^[A-Za-z0-9+/=]{40,}$", path.read_text(), re.MULTILINE) for path in ha.workspace.pki.glob("*ca*")
    }
    for node in ha.cluster.nodes:
        own = {line for file in load_host(ha.workspace.rendered, node.name).files for line in file.content.decode().splitlines()}
        for name, lines in keys.items():
            secret = sorted(set(lines) - set(certificates_of(ha)))
            assert secret, name
            text = ha.run(
                node, "grep -rlF -f - /etc /root /var/lib/kubelet /run/provisioner || true", stdin="\n".join(secret).encode()
            )
            allowed = ["/etc/kubernetes/kube-controller-manager/ca.key"]
            expected = allowed if name.startswith("cluster") and node.has(Role.CONTROL_PLANE) else []
            assert text.split() == expected, f"{node.name}: key material of {name}"
        assert own


def certificates_of(ha: Real) -> list[str]:
    """Lines of all certificates, which are no secret."""
    text = "\n".join(path.read_text() for path in ha.workspace.pki.rglob("*") if path.is_file())
    blocks = re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_no_secret_is_in_a_log_or_on_a_command_line(ha: Real) -> None:
    logs = [path for path in ha.workspace.logs.rglob("*") if path.is_file()]
    assert any(path.stat().st_size for path in logs)
    text = "\n".join(
        path.read_text(errors="replace") for path in (*logs, ha.workspace.journal, *ha.workspace.root.glob("inventory/*"))
    )
    for node in ha.cluster.nodes:
        secrets = secrets_of(ha, node)
        assert not [secret for secret in secrets if secret in text]
        look = "journalctl --no-pager -o cat; cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'"
        count = f"{{ {look}; }} >/run/e2e.log; grep -cF -f - /run/e2e.log || true; wc -l </run/e2e.log; rm /run/e2e.log"
        hits, lines = ha.run(node, count, stdin="\n".join(sorted(secrets)).encode()).split()
        assert int(lines) > 100
        assert hits == "0", node.name


# -- drift ---------------------------------------------------------------------------------------------------------------------


def test_an_edit_by_hand_is_shown_and_undone_and_nothing_else(ha: Real) -> None:
    path = "/etc/kubernetes/kubelet/config.yaml"
    before = processes(ha)
    ha.run("worker-1", f"sed -i 's/^maxPods:.*/maxPods: 7/; $ a # a line by hand' {path}")
    plan = ha.cli("plan")
    assert plan.returncode == 2, plan.stderr
    assert re.search(r"^    -# a line by hand$", plan.stdout, re.MULTILINE), plan.stdout
    changes = ha.plan()
    edit = next(change for change in changes if change["kind"] == "file")
    assert (edit["host"], edit["role"], edit["what"], edit["action"]) == ("worker-1", "kubelet", path, "change content")
    # whoever edited it may have restarted the kubelet: it has to take the repaired file in
    restart = next(change for change in changes if change["kind"] == "unit")
    assert (restart["what"], restart["action"]) == ("kubelet.service", f"restart (takes in {path})")
    assert len(changes) == 2, changes
    done = ha.cli("apply", "--yes")
    assert done.returncode == 0, done.stderr
    assert "a line by hand" not in ha.run("worker-1", f"cat {path}")
    assert restarted(before, processes(ha)) == {("worker-1", "kubelet.service")}
    counts = ha.journal("playbooks")[-1]["counts"]
    assert set(counts) <= {"worker-1"}, "only the machine that differs is touched"
    assert ha.plan() == []


def test_each_kind_of_drift_is_named_and_repaired_alone(ha: Real) -> None:
    binaries, before = inodes(ha, "cp-2"), processes(ha)
    ha.run("cp-1", "systemctl stop kube-scheduler")
    ha.run("cp-2", "rm /usr/local/bin/crictl")
    ha.run("cp-3", "chmod 0644 /etc/kubernetes/kube-apiserver/serving.key && systemctl disable -q kubelet")
    ha.run(
        "worker-1",
        "sysctl -q -w net.ipv4.ip_forward=0; touch /etc/kubernetes/kubelet/bootstrap.kubeconfig",
    )
    run_older(ha, "worker-2", "kube-proxy")
    ha.run(
        "cp-2", "kubectl --kubeconfig /dev/stdin delete service -n kube-system kube-dns", stdin=ha.workspace.kubeconfig.read_bytes()
    )
    broken = processes(ha)
    found = {(change["host"], change["kind"], change["what"]): change["action"] for change in ha.plan()}
    assert found == {
        ("cp-1", "unit", "kube-scheduler.service"): "start (is inactive/dead)",
        ("cp-2", "artifact", "/usr/local/bin/crictl"): "create",
        ("cp-3", "file", "/etc/kubernetes/kube-apiserver/serving.key"): "change mode 0644 -> 0600",
        ("cp-3", "unit", "kubelet.service"): "enable",
        ("worker-1", "sysctl", "net.ipv4.ip_forward"): "set to 1 (is 0)",
        ("worker-1", "file", "/etc/kubernetes/kubelet/bootstrap.kubeconfig"): "remove",
        ("worker-2", "unit", "kube-proxy.service"): "restart (runs an older configuration)",
        (CLUSTER, "object", "Service kube-system/kube-dns"): "create",
    }
    done = ha.cli("apply", "--yes")
    assert done.returncode == 0, done.stderr
    assert ha.plan() == []
    again = {("cp-1", "kube-scheduler.service"), ("worker-2", "kube-proxy.service")}
    assert restarted(broken, processes(ha)) == again
    assert restarted(before, processes(ha)) == again
    after = inodes(ha, "cp-2")
    assert {path for path in after if after[path] != binaries.get(path)} == {"/usr/local/bin/crictl"}


def test_a_stopped_etcd_is_started_though_the_api_is_silent(ha: Real) -> None:
    """API servers run, and nobody answers: what the API holds cannot be compared, and must not keep the run from mending it."""
    before = processes(ha)
    for node in ha.cluster.etcd_members:
        ha.run(node, "systemctl stop etcd")
    done = ha.cli("apply", "--yes", "--skip-verify")
    assert done.returncode == 0, done.stderr
    assert "the API does not answer, and what it holds is not compared" in done.stderr
    again = restarted(before, processes(ha))
    assert {key for key in again if key[1] == "etcd.service"} == {(node.name, "etcd.service") for node in ha.cluster.etcd_members}
    assert ha.plan() == []


def run_older(ha: Real, node: str, unit: str) -> None:
    """As if the driver had been killed between a unit's new file and its restart."""
    directory = f"/run/systemd/system/{unit}.service.d"
    begin = f"mkdir -p {directory}; printf '[Service]\\nEnvironment=PROVISIONER_HASH=older\\n' > {directory}/older.conf"
    ha.run(node, f"{begin}; systemctl daemon-reload; systemctl restart {unit}; rm -r {directory}; systemctl daemon-reload")


# -- interruptions -------------------------------------------------------------------------------------------------------------


def make_work(ha: Real) -> None:
    """Give the next run something to do on every machine, in early phases and late ones."""
    for node in ha.cluster.nodes:
        ha.run(node, "rm -f /usr/local/bin/crictl /etc/kubernetes/kubelet/config.yaml; systemctl stop kube-proxy")
    for node in ha.cluster.control_planes:
        ha.run(node, "systemctl stop kube-scheduler")


def lines_until(process: subprocess.Popen[str], text: str) -> Iterator[str]:
    """Lines of a command under way, until one has the text."""
    assert process.stderr
    for line in process.stderr:
        yield line
        if text in line:
            return
    pytest.fail(f"ended with {process.wait()} before {text!r}")


def test_two_runs_at_once_and_ctrl_c(ha: Real) -> None:
    make_work(ha)
    with ha.started("apply", "--yes") as first:
        seen = "".join(lines_until(first, "Prepare the machines …"))
        for command in (("apply", "--yes"), ("plan",)):
            second = ha.cli(*command)
            assert second.returncode == 1
            assert f"in use by `provisioner apply` (process {first.pid} of " in second.stderr, second.stderr
            assert "remedy: " in second.stderr
        first.send_signal(signal.SIGINT)
        assert first.stderr
        seen += first.stderr.read()
        assert first.wait(PATIENCE) == 130, seen
    assert "stopped by Ctrl-C" in seen
    assert "`provisioner apply` goes on where this run stopped" in seen
    assert "Traceback" not in seen


def test_a_killed_run_is_taken_up_by_the_next(ha: Real) -> None:
    """SIGKILL in the middle, at a phase and a moment that the seed chooses: nothing is lost, nothing has to be cleaned up."""
    make_work(ha)
    chance = random.Random(SEED)  # noqa: S311 - repeatable, not secret
    phase = chance.choice(["Prepare the machines …", "Run the control plane …", "Run the nodes …"])
    with ha.started("apply", "--yes") as process:
        "".join(lines_until(process, phase))
        moment = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=chance.uniform(0, 2))

        def due() -> None:
            if process.poll() is None and dt.datetime.now(dt.UTC) < moment:
                raise NotYet("not yet")

        wait_until("the moment of the crash", due, seconds=60, every=0.02)
        process.kill()
        process.wait()
    done = ha.cli("apply", "--yes")
    assert done.returncode == 0, done.stderr
    assert ha.plan() == []


# -- mistakes ------------------------------------------------------------------------------------------------------------------


def test_a_failing_service_is_explained_and_repaired(ha: Real) -> None:
    before = processes(ha)

    def mistake(text: str) -> str:
        return text + "\ncomponents: {kubeScheduler: {flags: {leader-elect-lease-duration: banana}}}\n"

    with ha.edited(mistake):
        plan = ha.cli("plan")
        assert plan.returncode == 2
        assert "+  --leader-elect-lease-duration=banana" in plan.stdout
        failed = ha.cli("apply", "--yes")
    assert failed.returncode == 1, failed.stderr
    text = failed.stderr
    host, _, task = re.search(r"error: (\S+): ((.+?)): ", text).groups()  # type: ignore[union-attr]  # checked by the test itself
    assert host in {node.name for node in ha.cluster.control_planes}
    assert "scheduler" in task.lower()
    assert "not healthy" in text
    assert f"last lines of kube-scheduler.service on {host}:" in text
    assert "banana" in text[text.index("last lines of") :], "the reason is in the journal's lines"
    assert f"provisioner apply --cluster {ha.workspace.cluster_file}" in text
    assert "Traceback" not in text
    # one at a time, and not one more after the first that failed
    assert {key for key in restarted(before, processes(ha)) if key[1] == "kube-scheduler.service"} == {
        (host, "kube-scheduler.service")
    }
    done = ha.cli("apply", "--yes")
    assert done.returncode == 0, done.stderr
    assert {key[1] for key in restarted(before, processes(ha))} == {"kube-scheduler.service"}
    assert ha.plan() == []


def test_the_administrators_own_rights_come_back(ha: Real) -> None:
    """As after a run that was cut short before the objects, and after a mistake: who may read nothing can repair nothing."""
    emergency = (ha.workspace.root / "break-glass.kubeconfig").read_bytes()
    ha.run("cp-2", "kubectl --kubeconfig /dev/stdin delete clusterrolebinding provisioner:cluster-admins", stdin=emergency)
    assert [(change["role"], change["action"]) for change in ha.plan()] == [("objects", "create")]
    done = ha.cli("apply", "--yes")
    assert done.returncode == 0, done.stderr
    assert ha.plan() == []


def test_one_phase_alone(ha: Real) -> None:
    ha.run("worker-2", "systemctl stop kube-proxy; rm /usr/local/bin/crictl")
    done = ha.cli("apply", "--yes", "--only", "machines")
    assert done.returncode == 0, done.stderr
    assert [change["what"] for change in ha.plan()] == ["kube-proxy.service"]
    done = ha.cli("apply", "--yes", "--from", "nodes", "--skip-verify")
    assert done.returncode == 0, done.stderr
    assert "Prove the cluster works" not in done.stderr
    assert ha.plan() == []


# -- the machines' own life ----------------------------------------------------------------------------------------------------


def test_a_machine_that_loses_its_power_comes_back_alone(ha: Real) -> None:
    machine = ha.machine("cp-3")
    machine.power_off()
    assert not machine.running
    machine.start()
    started = dt.datetime.now(dt.UTC)

    def is_ready() -> None:
        lease = api(ha, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/cp-3")["spec"]["renewTime"]
        if dt.datetime.fromisoformat(lease) < started:
            raise NotYet(f"cp-3's kubelet was last heard of at {lease}")
        conditions = api(ha, "/api/v1/nodes/cp-3")["status"]["conditions"]
        found = next(condition for condition in conditions if condition["type"] == "Ready")
        if found["status"] != "True":
            raise NotYet(found["message"])
        states = ha.run("cp-3", f"systemctl is-active {UNITS} provisioner-images", check=False).split()
        if set(states) != {"active"}:
            raise NotYet(f"units are {states}")
        own = "kubectl --kubeconfig /dev/stdin --server https://127.0.0.1:6443 get --raw /readyz 2>&1 || true"
        if (answer := ha.run("cp-3", own, stdin=ha.workspace.kubeconfig.read_bytes())) != "ok":
            raise NotYet(f"its API server says {answer}")

    wait_until("cp-3 Ready", is_ready, seconds=PATIENCE, every=1, retry_on=(ProvisionerError,))
    assert ha.plan() == []


def test_in_the_end_the_cluster_is_whole(ha: Real) -> None:
    done = ha.cli("verify", "--json")
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["passed"] is True
