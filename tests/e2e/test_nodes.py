"""Machines come and go: a worker added by two connections, workers that fail and are set aside, nodes removed and replaced.

One cluster of one control plane and one worker, with spare machines; the tests run in this order and tell one story.
"""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import yaml

from provisioner import lab
from provisioner.artifacts.lock import load_lock
from provisioner.load import load as load_cluster
from provisioner.wait import NotYet, wait_until
from tests.e2e.drills.kit import Kit

pytestmark = pytest.mark.e2e

Real = Any  # what `real_lab` of tests/e2e/conftest.py gives

PATIENCE = 300.0
# A name that resolves nowhere (RFC 2606), and a cluster address that is nobody's (RFC 2544): no packet leaves this machine.
NOWHERE = "{name: %s, address: %s.invalid, clusterAddress: 198.18.%d.%d, roles: [worker]}"
# Bound of the pods' addresses: room for 300 nodes, beside the lab's own network.
WIDE = "network: {podCidr: 10.128.0.0/12}\n"


class Life:
    """The cluster in its present shape, and its machines: those of cluster.yaml and the spare ones."""

    def __init__(self, real: Real) -> None:
        self.first = real
        self.spares = dict(re.findall(r"# (spare-\d+), ([\d.]+): a spare", real.workspace.cluster_file.read_text()))

    @property
    def real(self) -> Real:
        """As cluster.yaml is now."""
        return dataclasses.replace(self.first, cluster=load_cluster(self.first.workspace.cluster_file, exists=True))

    def cli(self, *words: str, code: int = 0) -> Any:
        """A command that must end so."""
        done = self.first.cli(*words)
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def edit(self, change: Callable[[str], str]) -> None:
        path = self.first.workspace.cluster_file
        after = change(path.read_text())
        assert after != path.read_text()
        path.write_text(after)

    def on(self, machine: str, command: str) -> str:
        """A command on one of the lab's machines, whatever it is to the cluster."""
        words = lab.ssh_command(self.first.name, machine, [command])
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{machine}: {command}: {done.stderr}"
        return done.stdout

    def nodes(self) -> dict[str, bool]:
        """The API's Nodes, and whether each is Ready."""
        with Kit.of(self.real) as kit:
            found = kit.api.items("/api/v1/nodes")
        return {
            node["metadata"]["name"]: any(
                condition["type"] == "Ready" and condition["status"] == "True" for condition in node["status"]["conditions"]
            )
            for node in found
        }

    def tasks(self, since: int) -> Counter[str]:
        """Executed tasks by machine, of the journal's playbooks after the first ``since``."""
        total: Counter[str] = Counter()
        for record in self.first.journal("playbooks")[since:]:
            for machine, numbers in record["counts"].items():
                total[machine] += numbers.get("executed", 0)
        return total


@pytest.fixture(scope="module")
def life(bare_lab: Callable[..., AbstractContextManager[Any]]) -> Iterator[Life]:
    with bare_lab("--control-planes", "1", "--workers", "1", "--spares", "4") as real:
        yield Life(real)


def files_of(directory: Path) -> dict[str, str]:
    """Every file of a workspace but the record of what was run."""
    skipped = ("logs/", "journal.jsonl", "lock", "ansible/")
    found = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    return {name: path.read_bytes().hex() for name, path in found.items() if not name.startswith(skipped)}


LOOK = (
    "find /etc /usr/local /opt /root /var/lib /run/provisioner -xdev -printf '%p %s %T@\n' 2>/dev/null"
    " | grep -v /var/lib/systemd | sort"
)


# -- building ------------------------------------------------------------------------------------------------------------------


def test_a_plan_changes_nothing_anywhere(life: Life) -> None:
    life.edit(lambda text: text + WIDE)
    life.cli("preflight")
    before = files_of(life.first.workspace.root), life.on("cp-1", LOOK)
    plan = life.cli("plan", "--json", code=2)
    assert {change["host"] for change in json.loads(plan.stdout)["changes"]} == {"cp-1", "worker-1", "(cluster)"}
    after = files_of(life.first.workspace.root), life.on("cp-1", LOOK)
    assert {**after[0], "layout": ""} == {**before[0], "layout": ""}
    assert after[1] == before[1]


def test_a_cluster_is_built_without_a_worker_that_does_not_answer(life: Life) -> None:
    """One dead host blocks nobody: the others finish, the exit code and the message name it."""
    life.edit(lambda text: text.replace("  # spare-1,", f"  - {NOWHERE % ('gone', 'gone', 0, 9)}\n  # spare-1,", 1))
    done = life.cli("apply", "--yes", "--skip-verify", code=1)
    assert "gone: set aside" in done.stderr
    assert life.nodes() == {"cp-1": True, "worker-1": True}
    # a change about others goes through, and says again who is missing
    assert "gone is set aside" in life.cli("plan").stderr
    # a node that was never there is given up
    life.cli("node", "remove", "gone", "--unreachable", "--yes")
    assert "gone" not in life.first.workspace.cluster_file.read_text()
    assert life.first.plan() == []


# -- adding --------------------------------------------------------------------------------------------------------------------


def logins(life: Life) -> Counter[str]:
    """SSH sessions that each machine has let in so far, but those of this test itself."""
    count = "journalctl -q -o cat -t sshd | grep -c 'Accepted publickey' || true"
    return Counter({name: int(life.on(name, count)) for name in ("cp-1", "worker-1", *life.spares)})


def added(life: Life, name: str, address: str) -> tuple[set[str], Counter[str], float]:
    """(machines that were connected to, executed tasks, seconds) of a `node add`."""
    before, records = logins(life), len(life.first.journal("playbooks"))
    began = time.monotonic()
    done = life.cli("node", "add", name, "--address", address, "--yes", "--json")
    seconds = time.monotonic() - began
    assert json.loads(done.stdout)["setAside"] == []
    # one login is the count's own
    touched = {machine for machine, number in logins(life).items() if number > before[machine] + 1}
    return touched, life.tasks(records), seconds


def test_a_worker_is_added_by_two_connections(life: Life) -> None:
    touched, tasks, seconds = added(life, "worker-2", life.spares["spare-1"])
    print(f"node add in a cluster of 3: {seconds:.1f} s with its proof, {sum(tasks.values())} tasks")
    assert touched == {"cp-1", "spare-1"}
    assert set(tasks) == {"worker-2"}
    assert life.nodes() == {"cp-1": True, "worker-1": True, "worker-2": True}
    assert life.first.plan() == [], "nothing is left for apply to do"
    life.tasks_of_three = sum(tasks.values())  # type: ignore[attr-defined]  # for the next test


def test_a_worker_costs_the_same_in_a_cluster_of_three_hundred(life: Life) -> None:
    """297 machines of cluster.yaml that resolve nowhere, with Nodes in the API: nobody asks after them."""
    names = [f"sim-{number}" for number in range(297)]
    path = life.first.workspace.cluster_file
    small = path.read_text()
    entries = "".join(f"  - {NOWHERE % (name, name, index // 250 + 1, index % 250 + 1)}\n" for index, name in enumerate(names))
    life.edit(lambda text: text.replace("  # spare-1,", f"{entries}  # spare-1,", 1))
    with Kit.of(life.real) as kit:
        nodes = [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}} for name in names]
        try:
            for node in nodes:
                kit.api.create(node)
            touched, tasks, seconds = added(life, "worker-3", life.spares["spare-2"])
        finally:
            for node in nodes:
                kit.api.delete(node)
    print(f"node add in a cluster of 300: {seconds:.1f} s with its proof, {sum(tasks.values())} tasks")
    assert touched == {"cp-1", "spare-2"}
    assert set(tasks) == {"worker-3"}
    assert sum(tasks.values()) == life.tasks_of_three  # type: ignore[attr-defined]
    large = path.read_text()
    assert "worker-3" in large
    life.edit(lambda text: text.replace(entries, ""))
    assert path.read_text().count("\n") - small.count("\n") <= 4
    # its proxy asks the API servers as seldom as one of three hundred does, and nothing else differs
    assert {(change["host"], change["role"]) for change in life.first.plan()} == {("worker-3", "api_proxy")}
    life.cli("apply", "--yes", "--skip-verify")
    assert life.first.plan() == []


def test_what_cannot_be_added_is_refused(life: Life) -> None:
    before = life.first.workspace.cluster_file.read_text()
    for words, said in (
        (("worker-9",), "no address is given"),
        (("worker-2", "--address", "nowhere.invalid"), "is in"),
        (("worker-9", "--address", life.spares["spare-1"]), "address"),
        (("Worker_9", "--address", "nowhere.invalid"), "name"),
        (("worker-9", "--address", "nowhere.invalid", "--label", "nonsense"), "KEY=VALUE"),
    ):
        done = life.cli("node", "add", *words, "--yes", code=3)
        assert said in done.stderr, done.stderr
        assert "remedy: " in done.stderr
    # a machine that is not there is all that this run is about
    done = life.cli("node", "add", "worker-9", "--address", "nowhere.invalid", "--cluster-address", "198.18.0.7", "--yes", code=4)
    assert "nothing was changed" in done.stderr
    # nobody to ask
    done = life.cli("node", "add", "worker-9", "--address", life.spares["spare-3"], code=3)
    assert "--yes" in done.stderr
    assert life.first.workspace.cluster_file.read_text() == before


# -- failing -------------------------------------------------------------------------------------------------------------------


def test_a_worker_that_fails_in_a_run_is_set_aside(life: Life) -> None:
    """Two workers join, one of them broken: the other is there in the end, and after the repair one more run does it."""
    broken = life.spares["spare-3"]
    life.on("spare-3", "mkdir -p /etc/containerd/config.toml/in-the-way")
    life.edit(
        lambda text: text.replace(
            "  # spare-1,",
            f"  - {{name: broken, address: {broken}, roles: [worker]}}\n"
            f"  - {{name: fine, address: {life.spares['spare-4']}, roles: [worker]}}\n  # spare-1,",
            1,
        )
    )
    done = life.cli("apply", "--yes", "--json", code=1)
    (aside,) = json.loads(done.stdout)["setAside"]
    assert aside["name"] == "broken"
    assert "/etc/containerd/config.toml" in aside["reason"]
    assert "broken: set aside" in done.stderr
    assert life.nodes().get("fine") is True
    assert "broken" not in life.nodes()
    # a command about another node takes no notice
    life.cli("node", "remove", "fine", "--yes")
    life.on("spare-3", "rm -r /etc/containerd/config.toml")
    life.cli("apply", "--yes")
    assert life.nodes()["broken"] is True
    assert life.first.plan() == []


def test_a_change_that_breaks_workers_is_stopped_after_the_first(life: Life) -> None:
    """Machines that ran before the change: the second that fails shows that it is the change, and the others are left alone."""
    path = life.first.workspace.cluster_file
    good = path.read_text()
    document = yaml.safe_load(good)
    changed = ("worker-1", "worker-2", "worker-3")
    for node in document["nodes"]:
        if node["name"] in changed:
            # below the low threshold: the kubelet refuses to start with it
            node["kubelet"] = {"imageGCHighThresholdPercent": 1}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    try:
        done = life.cli("apply", "--yes", "--skip-verify", code=1)
    finally:
        path.write_text(good)
    assert "warning: set aside: worker-1: Run the kubelet" in done.stderr, done.stderr
    assert re.search(r"error: worker-2: Run the kubelet", done.stderr), done.stderr
    assert "imageGCHighThresholdPercent" in done.stderr, "the reason is in the journal's lines"
    assert {name: kubelet_runs(life, name) for name in changed} == {"worker-1": False, "worker-2": False, "worker-3": True}
    life.cli("apply", "--yes", "--skip-verify")
    assert life.first.plan() == []


def kubelet_runs(life: Life, name: str) -> bool:
    # not by its unit: one that ends at once, and is started again each second, runs at some moments
    ask = "import urllib.request as request; request.urlopen('http://127.0.0.1:10248/healthz', timeout=5)"
    answer: str = life.real.run(name, f'python3 -c "{ask}" 2>/dev/null && echo up', check=False)
    return answer.strip() == "up"


# -- removing ------------------------------------------------------------------------------------------------------------------


def test_a_budget_holds_a_machine_that_is_to_leave(life: Life) -> None:
    with Kit.of(life.real) as kit:
        image = load_lock().image("agnhost", life.real.cluster.kubernetes.version)
        labels = {"app": "held"}
        container = {"name": "web", "image": image, "args": ["netexec"]}
        spec = {
            "nodeSelector": {"kubernetes.io/hostname": "worker-3"},
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
        }
        template = {"metadata": {"labels": labels}, "spec": spec}
        deployment = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
        kit.api.apply(kit.object("apps/v1", "Deployment", "held", spec=deployment))
        budget = {"minAvailable": 1, "selector": {"matchLabels": labels}}
        kit.api.apply(kit.object("policy/v1", "PodDisruptionBudget", "held", spec=budget))

        def ready() -> None:
            found = kit.api.get(kit.object("apps/v1", "Deployment", "held")) or {}
            if (found.get("status") or {}).get("readyReplicas") != 1:
                raise NotYet("its pod is not Ready")

        wait_until("the Deployment", ready, seconds=PATIENCE)
        done = life.cli("node", "remove", "worker-3", "--drain-timeout", "4", "--yes", code=1)
        assert f"{kit.namespace}/held" in done.stderr, done.stderr
        assert "worker-3" in done.stderr
        assert "remedy: " in done.stderr
        assert life.nodes()["worker-3"] is True, "nothing else was done to it"
        # a change of mind: back in the file, it is a node like any other
        life.edit(
            lambda text: text.replace(
                "  # spare-1,", f"  - {{name: worker-3, address: {life.spares['spare-2']}, roles: [worker]}}\n  # spare-1,", 1
            )
        )
        changes = life.first.plan()
        assert [(change["host"], change["action"].split(" ")[0]) for change in changes] == [("worker-3", "uncordon")]
        life.cli("apply", "--yes", "--skip-verify")
        node = kit.api.get({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker-3"}})
        assert node
        assert not node["spec"].get("unschedulable")
        # with room in the budget it goes, whatever is in its way elsewhere
        kit.api.delete(kit.object("policy/v1", "PodDisruptionBudget", "held"))
        before, began = logins(life), time.monotonic()
        life.cli("node", "remove", "worker-3", "--yes")
        print(f"node remove: {time.monotonic() - began:.1f} s")
    assert {machine for machine, number in logins(life).items() if number > before[machine] + 1} <= {"cp-1", "spare-2"}
    assert "worker-3" not in life.nodes()
    assert "worker-3" not in life.first.workspace.cluster_file.read_text()
    assert not (life.first.workspace.pki / "nodes" / "worker-3.pem").exists()
    assert clean(life, "spare-2")
    assert life.first.plan() == []


def clean(life: Life, machine: str) -> bool:
    """Whether nothing of the cluster is on a machine."""
    paths = "/etc/provisioner /var/lib/etcd/member /usr/local/bin/kubelet /etc/kubernetes"
    look = f"ls -d {paths} 2>/dev/null; ip -br link show type bridge"
    return life.on(machine, f"{look} || true").strip() == ""


def test_what_cannot_be_removed_is_refused(life: Life) -> None:
    before = life.first.workspace.cluster_file.read_text()
    for words, code, said in (
        (("wroker-2",), 3, 'did you mean "worker-2"'),
        (("cp-1",), 3, "control-plane"),
        (("worker-2",), 3, "--yes"),
    ):
        done = life.cli("node", "remove", *words, *(("--yes",) if words != ("worker-2",) else ()), code=code)
        assert said in done.stderr, done.stderr
    assert life.first.workspace.cluster_file.read_text() == before
    # a machine keeps its name as long as it is part of the cluster
    life.edit(lambda text: text.replace("name: worker-2", "name: other"))
    done = life.cli("plan", code=3)
    assert "which is not in cluster.yaml any more" in done.stderr
    life.edit(lambda text: text.replace("name: other", "name: worker-2"))
    assert life.first.plan() == []


# -- replacing -----------------------------------------------------------------------------------------------------------------


def test_a_dead_worker_is_replaced_under_its_own_name(life: Life) -> None:
    machine = life.first.machine("worker-1")
    machine.cut_link()
    machine.power_off()
    # it may only be away: that is for the user to say
    done = life.cli("node", "replace", "worker-1", "--address", life.spares["spare-4"], "--yes", code=1)
    assert "--unreachable" in done.stderr, done.stderr
    began = time.monotonic()
    life.cli("node", "replace", "worker-1", "--address", life.spares["spare-4"], "--unreachable", "--yes")
    print(f"node replace of a dead worker, to its proof: {time.monotonic() - began:.1f} s")
    assert life.real.cluster.node("worker-1").address == life.spares["spare-4"]
    with Kit.of(life.real) as kit:
        node = kit.api.get({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "worker-1"}})
        assert node
        assert life.spares["spare-4"] in {entry["address"] for entry in node["status"]["addresses"]}
    assert life.first.plan() == []


def test_the_first_and_only_control_plane_is_replaced(life: Life) -> None:
    done = life.cli("node", "replace", "cp-1", "--address", life.spares["spare-2"], "--yes", code=3)
    assert "--name" in done.stderr, "one name cannot be at two machines at once"
    began = time.monotonic()
    life.cli("node", "replace", "cp-1", "--name", "cp-9", "--address", life.spares["spare-2"], "--yes")
    print(f"node replace of the only control plane, to its proof: {time.monotonic() - began:.1f} s")
    assert [node.name for node in life.real.cluster.control_planes] == ["cp-9"]
    with Kit.of(life.real) as kit:
        assert [member.name for member in kit.member_list()] == ["cp-9"]
    nodes = life.nodes()
    assert "cp-1" not in nodes
    assert nodes["cp-9"] is True
    assert clean(life, "cp-1")
    life.cli("verify")
    assert life.first.plan() == []


def machines_on_record(real: Real) -> Mapping[str, Any]:
    document = json.loads((real.workspace.root / "machines.json").read_text())
    return {entry["name"]: entry for entry in document["machines"]}


def test_in_the_end_the_records_are_those_of_the_file(life: Life) -> None:
    names = {node["name"] for node in yaml.safe_load(life.first.workspace.cluster_file.read_text())["nodes"]}
    assert set(machines_on_record(life.first)) == names
    certificates = {path.stem for path in (life.first.workspace.pki / "nodes").glob("*.pem")}
    # (the simulated ones were issued for the test's own client, which asks for the whole cluster)
    assert {name for name in certificates if not name.startswith("sim-")} == names
