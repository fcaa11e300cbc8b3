"""Facts as values: from the probe's answer to HostFacts, and through JSON and back. And the table of distributions."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import time
from pathlib import Path

import pytest

from provisioner import os_table, probe
from provisioner.config import Cluster, ControlPlaneEndpoint, Role
from provisioner.errors import ProvisionerError
from provisioner.facts import COMMAND, DiskSync, HostFacts, parse, script
from provisioner.ssh import Completed, SshError, Trouble

CLUSTER = Cluster.model_validate({"name": "t", "nodes": [{"name": "a", "address": "10.0.0.1", "roles": ["control-plane", "etcd"]}]})
NODE = CLUSTER.nodes[0]


def answer(**values: object) -> Completed:
    document = {
        "incomplete": {},
        "arch": "amd64",
        "kernel": "6.1",
        "python": "/usr/bin/python3",
        "python_version": "3.11.2",
        "uid": 0,
        "probe_cpu_s": 0.1,
        "clock": [100.0, 101.0],
        **values,
    }
    return Completed(0, b"Welcome!\n" + json.dumps(document).encode() + b"\n", b"")


def test_a_probe_that_found_out_little_still_gives_facts() -> None:
    facts = parse(CLUSTER, NODE, answer(incomplete={"disks": "OSError"}), (100.0, 101.0))
    assert (facts.name, facts.arch, facts.disks, facts.marker) == ("a", "amd64", {}, None)
    assert facts.incomplete == {"disks": "OSError"}


@pytest.mark.parametrize(
    ("times", "skew"), [((100.0, 101.0), 0.0), ((99.5, 101.5), 0.0), ((90.0, 91.0), 10.0), ((105.0, 106.2), -5.1)]
)
def test_the_clock_is_compared_at_the_midpoints(times: tuple[float, float], skew: float) -> None:
    assert parse(CLUSTER, NODE, answer(), times).clock_skew_s == pytest.approx(skew)


def test_the_interface_of_the_cluster_address_and_the_missing_packages() -> None:
    done = answer(
        os_id="rocky",
        os_version="9.4",
        interfaces={"eth0": ["192.168.1.1"], "eth1": ["10.0.0.2", "10.0.0.1"]},
        mtus={"eth0": 1500, "eth1": 9000},
        commands={program.name: program.name not in {"conntrack", "iptables"} for program in os_table.PROGRAMS},
    )
    facts = parse(CLUSTER, NODE, done, (0, 0))
    assert (facts.cluster_interface, facts.mtu) == ("eth1", 9000)
    assert facts.packages_missing == ("conntrack-tools", "iptables-nft")


def test_facts_go_through_json_and_back() -> None:
    disk = {
        "free_mib": 1,
        "total_mib": 2,
        "filesystem": "xfs",
        "device": "8:1",
        "rotational": True,
        "noexec": False,
        "read_only": False,
    }
    done = answer(disks={"/": disk}, listening={"22": "sshd"}, interfaces={"lo": ["127.0.0.1"]}, marker={"cluster": "t", "id": "1"})
    facts = parse(CLUSTER, NODE, done, (0, 0))
    assert facts.listening == {22: "sshd"}
    assert facts.disk_free_mib == {"/": 1}
    assert HostFacts.from_json(facts.to_json()) == facts
    assert HostFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    with pytest.raises(ProvisionerError, match="facts of a machine"):
        HostFacts.from_json({"name": "a"})
    with pytest.raises(ProvisionerError, match="facts of a machine"):
        HostFacts.from_json({**facts.to_json(), "disks": {"/": {"odd": 1}}})


@pytest.mark.parametrize(
    ("done", "words"),
    [
        (Completed(96, b"", b""), "no python3"),
        (Completed(1, b"", b"SyntaxError: invalid syntax\nPython 3.6.8\n"), "cannot run the probe"),
        (Completed(0, b"hello\n", b""), "cannot run the probe"),
        (Completed(-1, b"", b""), "cannot run the probe"),
    ],
)
def test_a_machine_without_a_fit_python(done: Completed, words: str) -> None:
    with pytest.raises(SshError, match=words) as caught:
        parse(CLUSTER, NODE, done, (0, 0))
    assert caught.value.trouble is Trouble.PYTHON
    if done.stderr:
        assert "Python 3.6.8" in caught.value.details


def test_the_probe_is_self_contained_python_of_the_oldest_kind() -> None:
    tree = ast.parse(script(etcd=True), feature_version=(3, 7))
    imported = {name.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    assert "provisioner" not in imported
    assert imported <= {*("__future__", "collections", "ctypes", "gzip", "json", "os", "platform", "re", "resource"),
                        *("signal", "socket", "struct", "subprocess", "sys", "tempfile", "time")}  # fmt: skip
    assert "python3" in COMMAND


HISTOGRAM = """\
# TYPE etcd_disk_wal_fsync_duration_seconds histogram
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.001"} 500
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.002"} 900
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.004"} 980
etcd_disk_wal_fsync_duration_seconds_bucket{le="0.008"} 1000
etcd_disk_wal_fsync_duration_seconds_bucket{le="+Inf"} 1000
etcd_disk_wal_fsync_duration_seconds_sum 1.4
etcd_disk_wal_fsync_duration_seconds_count 1000
etcd_disk_backend_commit_duration_seconds_bucket{le="0.001"} 1
"""


def test_p99_out_of_etcds_histogram() -> None:
    # the 990th of 1000 lies half way through the bucket from 4 to 8 ms, which holds 20
    assert probe.counted_sync(HISTOGRAM) == {"p99_ms": 6.0, "syncs": 1000, "source": "etcd"}
    beyond = HISTOGRAM.replace('le="0.008"} 1000', 'le="0.008"} 985')
    assert probe.counted_sync(beyond) == {"p99_ms": 8.0, "syncs": 1000, "source": "etcd"}
    assert probe.counted_sync(HISTOGRAM.replace(" 1000", " 0").replace(" 9", " 0").replace(" 5", " 0")) is None
    assert probe.counted_sync("") is None


def test_a_sync_is_tried_without_leaving_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = time.monotonic()
    found = probe.measured_sync(str(tmp_path / "not" / "there"))
    assert time.monotonic() - begin < 30, "bounded, also on a slow disk"
    assert found["source"] == "measured"
    assert 1 <= int(str(found["syncs"])) <= 300
    assert float(str(found["p99_ms"])) >= 0
    assert list(tmp_path.iterdir()) == []
    # a filesystem without O_TMPFILE refuses the flag with EOPNOTSUPP; so does the system here for a directory that is written to
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    assert probe.measured_sync(str(tmp_path))["source"] == "measured"
    assert list(tmp_path.iterdir()) == []
    assert probe.disk_sync("") == {"disk_sync": None}


def test_only_machines_with_etcd_are_asked_for_their_disk() -> None:
    assert b'"disk_sync": "/var/lib/etcd"' in script(etcd=True)
    assert b'"disk_sync": ""' in script(etcd=False)
    facts = parse(CLUSTER, NODE, answer(disk_sync={"p99_ms": 1.5, "syncs": 300, "source": "measured"}), (0, 0))
    assert facts.disk_sync == DiskSync(1.5, 300, "measured")
    assert HostFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts
    assert parse(CLUSTER, NODE, answer(), (0, 0)).disk_sync is None


def test_the_probe_on_this_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Parts that need no root, called where the tests run."""
    place = tmp_path_factory.mktemp("probe")
    (place / "empty").mkdir()
    (place / "full").mkdir()
    (place / "full" / "file").write_text("x")
    found = probe.leftovers([str(place / name) for name in ("empty", "full", "full/file", "absent")])
    assert found == {"leftovers": [str(place / "full"), str(place / "full" / "file")]}
    assert probe.commands(["sh", "no-such-program"]) == {"commands": {"sh": True, "no-such-program": False}}
    (place / "marker").write_text('{"cluster": "t", "id": "1"}')
    assert probe.identity(str(place / "marker"))["marker"] == {"cluster": "t", "id": "1"}
    (place / "marker").write_text("broken")
    assert probe.identity(str(place / "marker"))["marker"] == {}
    assert probe.identity(str(place / "absent"))["marker"] is None
    disk = probe.disks([str(place / "not" / "there")])["disks"]
    assert isinstance(disk, dict)
    assert disk[str(place / "not" / "there")]["free_mib"] > 0
    assert probe.interfaces()["interfaces"]["lo"] == ["127.0.0.1"]  # type: ignore[index]
    begin = time.process_time()
    probe.listening()
    assert time.process_time() >= begin


def test_packages_of_the_families() -> None:
    assert "haproxy" in os_table.packages_for("debian", "13")
    assert os_table.packages_for("debian", "12") == os_table.packages_for("ubuntu", "24.04")
    assert "iptables-nft" in os_table.packages_for("rocky", "9.4")
    assert os_table.packages_for("alpine", "3.20") == ()
    assert os_table.packages_for("linuxmint", "22", ("ubuntu", "debian")) == os_table.packages_for("ubuntu", "22.04")
    assert os_table.is_supported("almalinux", "9.6")
    assert not os_table.is_supported("ubuntu", "23.10")
    assert all(os_table.family_of(release.os_id) for release in os_table.RELEASES)


def test_programs_by_role_and_network() -> None:
    def names(**network: str) -> set[str]:
        cluster = CLUSTER.model_copy(update={"network": CLUSTER.network.model_copy(update=network)})
        return {program.name for program in os_table.programs_for(cluster, NODE)}

    assert {"nft", "iptables", "haproxy"} <= names()
    assert "nft" not in names(proxy_mode="iptables")
    assert "iptables" not in names(plugin="none")
    etcd_only = NODE.model_copy(update={"roles": NODE.roles[1:]})
    assert os_table.programs_for(CLUSTER, etcd_only) == ()

    def with_endpoint(**endpoint: object) -> Cluster:
        return CLUSTER.model_copy(update={"control_plane_endpoint": ControlPlaneEndpoint.model_validate(endpoint)})

    floating = with_endpoint(host="10.0.0.100", vip={})
    assert os_table.KEEPALIVED in os_table.programs_for(floating, NODE)
    assert os_table.KEEPALIVED not in os_table.programs_for(floating, NODE.model_copy(update={"roles": (Role.WORKER,)}))
    assert os_table.KEEPALIVED not in os_table.programs_for(with_endpoint(host="10.0.0.100"), NODE)


def test_every_fact_is_a_field_that_the_probe_or_the_driver_fills() -> None:
    filled = set(parse(CLUSTER, NODE, answer(), (0, 0)).to_json())
    assert filled == {item.name for item in dataclasses.fields(HostFacts)}


def test_the_last_mount_at_a_place_counts_and_none_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(mountinfo: str) -> tuple[object, ...]:
        monkeypatch.setattr(probe, "read", lambda path: mountinfo if path == "/proc/self/mountinfo" else "")
        disks = probe.disks(["/"])["disks"]
        assert isinstance(disks, dict)
        return tuple(disks["/"][name] for name in ("filesystem", "read_only", "noexec"))

    assert seen("1 0 0:1 / / rw - rootfs none rw\n2 1 0:2 / / ro,noexec - overlay none rw\n") == ("overlay", True, True)
    assert seen("") == ("", False, False), "in a chroot no mount may be in sight"
