"""Care of etcd on a real cluster: how its members are set up, defragmentation under way, and what it refuses."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from provisioner import pki
from provisioner.cluster_api import ClusterApi
from provisioner.wait import NotYet, wait_until

pytestmark = pytest.mark.e2e

Real = Any  # the value of the fixture `ha` (tests/e2e/conftest.py); pytest imports no test module by name

PATIENCE = 300.0


def status(ha: Real) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ha.cli("status", "--json").stdout)
    return found


def wait_until_whole(ha: Real) -> None:
    def whole() -> None:
        if problems := status(ha)["problems"]:
            raise NotYet("\n".join(problems))

    wait_until("a cluster without a problem", whole, seconds=PATIENCE, every=2)


def config_map(name: str, value: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value}}


@pytest.fixture
def api(ha: Real) -> Iterator[ClusterApi]:
    keys = pki.read(ha.workspace.pki, now=dt.datetime.now(dt.UTC))
    with ClusterApi(ha.cluster, ha.workspace, ha.connections, keys) as found:
        yield found


def test_every_member_is_set_up_as_documented(ha: Real) -> None:
    for node in ha.cluster.etcd_members:
        assert ha.run(node, "stat -c '%a %U' /var/lib/etcd").strip() == "700 etcd"
        flags = dict(re.findall(r"--([a-z-]+)=(\S+)", ha.run(node, "tr '\\0' '\\n' < /proc/$(pidof etcd)/cmdline")))
        assert flags["data-dir"] == "/var/lib/etcd"
        assert flags["quota-backend-bytes"] == str(2 << 30)
        assert (flags["auto-compaction-mode"], flags["auto-compaction-retention"]) == ("periodic", "1h")
        assert flags["snapshot-count"] == "10000"
        assert (flags["heartbeat-interval"], flags["election-timeout"]) == ("100", "1000")
        assert flags["listen-metrics-urls"] == "http://127.0.0.1:2381"
        assert "unsafe-no-fsync" not in flags
        listening = ha.run(node, "ss -Hltn 'sport = :2381'").split()
        assert "127.0.0.1:2381" in listening
        assert not any(address.endswith(":2381") and not address.startswith("127.") for address in listening), listening


def test_preflight_knows_how_quickly_the_disks_sync(ha: Real) -> None:
    done = ha.cli("preflight", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    for node in ha.cluster.nodes:
        found = document["machines"][node.name]["disk_sync"]
        if node not in ha.cluster.etcd_members:
            assert found is None
            continue
        # where etcd runs it is etcd that counts, and nothing is written beside it
        assert found["source"] == "etcd"
        assert found["syncs"] > 0
        warned = [problem for problem in document["problems"] if (problem["host"], problem["rule"]) == (node.name, "disk-sync")]
        assert len(warned) == (1 if found["p99_ms"] > 10 else 0), document["problems"]
        assert all(problem["severity"] == "warning" for problem in warned)


def test_nothing_to_cure(ha: Real) -> None:
    wait_until_whole(ha)
    done = ha.cli("etcd", "cure")
    assert (done.returncode, done.stdout) == (0, "nothing to cure: no alarm is raised\n"), done.stderr
    assert json.loads(ha.cli("etcd", "cure", "--json").stdout)["alarms"] == []


def test_defragmentation_asks_first(ha: Real) -> None:
    done = ha.cli("etcd", "defrag")
    assert done.returncode == 3
    assert "one member at a time, in this order: " in done.stderr
    assert "`--yes`" in done.stderr


def test_defragmentation_leaves_everything_healthy(ha: Real, api: ClusterApi) -> None:
    """Room is made by writing and deleting; what was there before is there afterwards."""
    wait_until_whole(ha)
    kept = config_map("kept", "precious")
    api.apply(kept, timeout=60)
    try:
        for number in range(20):
            filler = config_map(f"filler-{number}", "x" * 500_000)
            api.apply(filler, timeout=60)
            api.delete(filler, timeout=60)
        leader = status(ha)["etcd"]["leader"]
        done = ha.cli("etcd", "defrag", "--yes", "--json")
        assert done.returncode == 0, done.stderr
        members = json.loads(done.stdout)["members"]
        print(json.dumps(members))
        assert {one["member"] for one in members} == {node.name for node in ha.cluster.etcd_members}
        # an election of its own accord, on a busy machine, may have come in between
        handed = re.findall(r"^(\S+): leadership handed to (\S+)$", done.stderr, re.MULTILINE)
        assert handed, done.stderr
        assert members[-1]["member"] == handed[-1][0], "who led when its turn came was the last"
        print(f"leader before: {leader}; handed over: {handed}")
        assert all(0 < one["after"] <= one["before"] for one in members)
        wait_until_whole(ha)
        found = api.get(kept, timeout=60)
        assert found is not None
        assert found["data"]["value"] == "precious"
    finally:
        api.delete(kept, timeout=60)
    verified = ha.cli("verify", "--only", "etcd,apiservers,controllers")
    assert verified.returncode == 0, verified.stdout
    assert ha.plan() == []


def test_defragmentation_is_refused_while_a_member_is_down(ha: Real) -> None:
    wait_until_whole(ha)
    try:
        ha.run("cp-3", "systemctl stop etcd")
        sizes = [ha.run(node, "stat -c '%i' /var/lib/etcd/member/snap/db") for node in ha.cluster.etcd_members]
        for command in ("defrag", "cure"):
            done = ha.cli("etcd", command, "--yes")
            assert done.returncode == 1, done.stdout
            assert "etcd is not whole: cp-3 is down" in done.stderr
        assert [ha.run(node, "stat -c '%i' /var/lib/etcd/member/snap/db") for node in ha.cluster.etcd_members] == sizes
        assert any("cp-3: its etcd member is not healthy" in problem for problem in status(ha)["problems"])
    finally:
        ha.run("cp-3", "systemctl start etcd")
        wait_until_whole(ha)


def test_two_commands_do_not_care_for_it_at_once(ha: Real) -> None:
    with ha.workspace.lock("a test"):
        done = ha.cli("etcd", "defrag", "--yes")
    assert done.returncode == 1
    assert "in use by `provisioner a test`" in done.stderr
