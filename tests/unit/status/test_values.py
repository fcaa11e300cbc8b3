"""Status out of what members, machines and the API said: values in, values out."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from provisioner.cli.status import show
from provisioner.cluster_api import Response
from provisioner.config import Cluster
from provisioner.errors import ProvisionerError
from provisioner.etcd_api import Alarm, Member
from provisioner.etcd_api import Status as MemberStatus
from provisioner.status import etcd, kubernetes, machine, node_script, problems
from provisioner.status.model import Apiserver, Backend, Backups, Etcd, EtcdMember, Lease, Machine, NodeState, Proxy, Status, Vip

PLANES = ("cp-1", "cp-2", "cp-3")
CLUSTER = Cluster.model_validate(
    {
        "name": "t",
        "nodes": [
            *(
                {"name": name, "address": f"10.0.0.{number}", "roles": ["control-plane", "etcd"]}
                for number, name in enumerate(PLANES, 1)
            ),
            {"name": "worker-1", "address": "10.0.0.9", "roles": ["worker"]},
        ],
    }
)
IDS = {"cp-1": 0xA, "cp-2": 0xB, "cp-3": 0xC}
MEMBERS = tuple(
    Member(IDS[name], name, (f"https://10.0.0.{number}:2380",), (f"https://10.0.0.{number}:2379",), learner=False)
    for number, name in enumerate(PLANES, 1)
)
MIB = 1 << 20
# As HAProxy 2.6 prints it, with the columns in between left out.
STAT = """\
# pxname,svname,qcur,qmax,scur,smax,status,check_status,last_chk,
api,FRONTEND,,,9,12,OPEN,,,
apiservers,cp-1,0,0,4,9,UP,L7OK,,
apiservers,cp-2,0,0,0,3,DOWN,L4TOUT,,
apiservers,cp-3,0,0,3,3,UP 1/2,L7STS,,
apiservers,BACKEND,0,0,7,12,UP,,,
unchecked,cp-1,0,0,2,2,no check,,,
unchecked,cp-2,0,0,0,0,no check,,,
unchecked,cp-3,0,0,0,0,no check,,,
unchecked,BACKEND,0,0,2,2,UP,,,

"""


def said(name: str, **values: Any) -> MemberStatus:
    base = MemberStatus(
        member_id=IDS[name],
        leader=IDS["cp-2"],
        raft_term=4,
        raft_index=1000,
        raft_applied_index=1000,
        revision=900,
        version="3.6.14",
        db_size=20 * MIB,
        db_size_in_use=5 * MIB,
        learner=False,
        errors=(),
        db_size_quota=2048 * MIB,
    )
    return replace(base, **values)


def views(**changed: MemberStatus | str) -> dict[str, etcd.View | str]:
    found = {name: changed.get(name.replace("-", "_"), said(name)) for name in PLANES}
    return {name: value if isinstance(value, str) else etcd.View(value, MEMBERS) for name, value in found.items()}


def whole() -> Status:
    """A cluster about which there is nothing to say."""
    return Status(
        cluster="t",
        kubernetes_version="1.36.3",
        machines=tuple(Machine(node.name, node.address, tuple(node.roles), reachable=True) for node in CLUSTER.nodes),
        etcd=etcd.assemble(CLUSTER, views()),
        apiservers=tuple(Apiserver(name, ready=True) for name in PLANES),
        leases=tuple(Lease(component, "cp-1", 1.0) for component in kubernetes.COMPONENTS),
        nodes=tuple(NodeState(node.name, ready=True, kubelet="v1.36.3") for node in CLUSTER.nodes),
        proxies=tuple(Proxy(node.name, tuple(Backend(name, True, "UP", 1) for name in PLANES)) for node in CLUSTER.nodes),
    )


def told(status: Status) -> list[str]:
    return [str(problem) for problem in problems(status)]


# -- HAProxy -------------------------------------------------------------------------------------------------------------------


def test_backends_out_of_haproxys_table() -> None:
    found = machine.backends(STAT)
    assert [(one.name, one.up, one.state, one.sessions) for one in found] == [
        ("cp-1", True, "UP", 6),
        ("cp-2", False, "DOWN", 0),
        ("cp-3", True, "UP 1/2", 3),
    ]
    assert found[1].check == "L4TOUT"
    assert machine.backends("") == ()
    assert machine.backends("Unknown command\n") == ()


# -- etcd ----------------------------------------------------------------------------------------------------------------------


def test_members_of_a_whole_etcd() -> None:
    found = etcd.assemble(CLUSTER, views(cp_3=said("cp-3", raft_index=990)))
    assert (found.quorum, found.leader) == (True, "cp-2")
    assert [(one.name, one.id, one.healthy, one.leader, one.behind) for one in found.members] == [
        ("cp-1", "a", True, False, 0),
        ("cp-2", "b", True, True, 0),
        ("cp-3", "c", True, False, 10),
    ]
    assert (found.members[0].db_mib, found.members[0].in_use_mib, found.members[0].quota_mib) == (20, 5, 2048)


def test_a_member_that_is_down_and_no_quorum() -> None:
    one_down = etcd.assemble(CLUSTER, views(cp_1="no answer"))
    assert (one_down.quorum, one_down.members[0].healthy, one_down.members[0].id, one_down.members[0].error) == (
        True,
        False,
        "a",
        "no answer",
    )
    alone = etcd.assemble(CLUSTER, views(cp_1="no answer", cp_2="no answer", cp_3=said("cp-3", leader=0)))
    assert (alone.quorum, alone.leader, alone.members[2].healthy) == (False, None, False)
    nobody = etcd.assemble(CLUSTER, views(cp_1="x", cp_2="x", cp_3="x"))
    assert (nobody.quorum, nobody.members[0].listed) == (None, None)


def test_an_alarm_is_told_by_any_member_of_the_one_that_raised_it() -> None:
    errors = ("memberID:10 alarm:NOSPACE ",)
    assert said("cp-2", errors=errors).alarms == (Alarm(10, "NOSPACE"),)
    assert said("cp-2", errors=("etcdserver: no leader",)).alarms == ()
    found = etcd.assemble(CLUSTER, views(cp_1="no answer", cp_2=said("cp-2", errors=errors)))
    assert [one.alarms for one in found.members] == [("NOSPACE",), (), ()]


def test_a_stranger_and_a_member_that_has_not_started() -> None:
    listed = (
        MEMBERS[0],
        replace(MEMBERS[1], name="", client_urls=(), learner=True),
        Member(0xD, "gone", ("https://10.0.0.7:2380",), (), learner=False),
    )
    given: dict[str, etcd.View | str] = {
        "cp-1": etcd.View(said("cp-1", leader=IDS["cp-1"]), listed),
        "cp-2": "no answer",
        "cp-3": "no answer",
    }
    found = {one.name: one for one in etcd.assemble(CLUSTER, given).members}
    assert (found["cp-2"].learner, found["cp-2"].listed, found["cp-2"].id) == (True, True, "b")
    assert found["cp-3"].listed is False
    assert found["gone"].error == "in etcd's member list, but not in cluster.yaml"


def test_an_alarm_outlives_its_member() -> None:
    found = etcd.assemble(CLUSTER, views(cp_2=said("cp-2", errors=("memberID:255 alarm:CORRUPT ",))))
    assert (found.members[3].name, found.members[3].alarms) == ("ff", ("CORRUPT",))
    assert told(replace(whole(), etcd=found)) == [
        "cluster: etcd alarm CORRUPT of a member that is gone (ff) -> `provisioner etcd cure`"
    ]


# -- the API -------------------------------------------------------------------------------------------------------------------


def test_a_lease_is_aged_by_its_holders_clock() -> None:
    now = 1_700_000_000.0
    # the holder's clock is 3 s ahead, and it renewed 2 s ago; it calls itself by its host name
    planes = {"cp-1": kubernetes.Plane("cp-1"), "cp-2": kubernetes.Plane("cp-2.example", 3.0)}
    stamp = dt.datetime.fromtimestamp(now + 3 - 2, dt.UTC).isoformat().replace("+00:00", "Z")
    spec = {"holderIdentity": "cp-2.example_0b5e", "renewTime": stamp, "leaseDurationSeconds": 15}
    body = json.dumps({"spec": spec}).encode()
    lease = kubernetes.lease_of("kube-scheduler", Response("cp-1", 200, body), planes, now=now)
    assert (lease.holder, lease.expired) == ("cp-2", False)
    assert lease.seconds == pytest.approx(2)
    assert kubernetes.lease_of("x", Response("cp-1", 200, body), {}, now=now + 30).expired
    assert kubernetes.lease_of("x", Response("cp-1", 404, b"{}"), {}, now=now).error
    assert kubernetes.lease_of("x", Response("cp-1", 200, b'{"spec": {}}'), {}, now=now).error == "nobody holds the lease"
    with pytest.raises(ProvisionerError, match="cp-1 answered 503"):
        kubernetes.lease_of("x", Response("cp-1", 503, b""), {}, now=now)


# -- problems ------------------------------------------------------------------------------------------------------------------


def test_a_whole_cluster_has_no_problem() -> None:
    assert told(whole()) == []


def test_a_dead_machine_is_one_problem_and_not_ten() -> None:
    status = whole()
    dead = replace(status.machines[0], reachable=False, error="no answer within 2.8 s", remedy="see whether the machine is up")
    found = told(
        replace(
            status,
            machines=(dead, *status.machines[1:]),
            etcd=etcd.assemble(CLUSTER, views(cp_1="its machine cannot be reached")),
            apiservers=(Apiserver("cp-1", ready=False, error="its machine cannot be reached"), *status.apiservers[1:]),
            nodes=(NodeState("cp-1", ready=False, reason="NodeStatusUnknown: Kubelet stopped"), *status.nodes[1:]),
            proxies=tuple(
                replace(proxy, backends=(Backend("cp-1", False, "DOWN", 0), *proxy.backends[1:])) for proxy in status.proxies[1:]
            ),
        )
    )
    assert found[0] == "cp-1: cannot be reached: no answer within 2.8 s -> see whether the machine is up"
    assert found[1].startswith("cluster: etcd runs with 2 of 3 members")
    assert len(found) == 2


def member(**values: Any) -> EtcdMember:
    return replace(whole().etcd.members[0], **values)


def test_what_is_wrong_with_etcd() -> None:
    def with_member(**values: Any) -> list[str]:
        status = whole()
        return told(replace(status, etcd=Etcd((member(**values), *status.etcd.members[1:]), quorum=True)))

    [nospace] = with_member(alarms=("NOSPACE",))
    assert nospace.startswith("cp-1: etcd alarm NOSPACE")
    assert nospace.endswith("-> `provisioner etcd cure`")
    [corrupt] = with_member(alarms=("CORRUPT",))
    assert "`provisioner etcd cure`" not in corrupt
    [near] = with_member(db_mib=1800, in_use_mib=100)
    assert near.endswith("-> `provisioner etcd defrag`")
    [full] = with_member(db_mib=1800, in_use_mib=1790)
    assert "`etcd.quotaBackendBytes`" in full
    [behind] = with_member(behind=50_000)
    assert "50000 entries behind" in behind
    [learner] = with_member(learner=True)
    assert "learner" in learner
    [versions] = with_member(version="3.6.13")
    assert "3.6.13, 3.6.14" in versions
    status = whole()
    lost = etcd.assemble(CLUSTER, views(cp_1="x", cp_2="x", cp_3=said("cp-3", leader=0)))
    assert told(replace(status, etcd=lost))[0].startswith("cluster: etcd has no quorum: 2 of its 3 members")


def test_what_is_wrong_with_the_rest() -> None:
    status = whole()
    proxies = (replace(status.proxies[3], backends=(Backend("cp-1", False, "DOWN", 0, "L4TOUT"), *status.proxies[3].backends[1:])),)
    [path] = told(replace(status, proxies=proxies))
    assert path.startswith("worker-1: its proxy has cp-1 DOWN (L4TOUT), though that apiserver is ready")
    [stale] = told(replace(status, proxies=(Proxy("worker-1", status.proxies[0].backends[:2]),)))
    assert "knows the apiservers cp-1, cp-2, cluster.yaml has cp-1, cp-2, cp-3" in stale
    [silent] = told(replace(status, proxies=(Proxy("worker-1", error="admin.sock: No such file"),)))
    assert "systemctl status provisioner-api-proxy" in silent
    [lease] = told(replace(status, leases=(Lease("kube-scheduler", "cp-1", 61.0),)))
    assert lease.startswith("kube-scheduler: nobody leads: cp-1 has not renewed the lease for 61 s")
    [old] = told(replace(status, nodes=(NodeState("worker-1", ready=True, kubelet="v1.35.4"),)))
    assert old.startswith("worker-1: kubelet v1.35.4, not v1.36.3")
    [extra] = told(replace(status, nodes=(NodeState("left", ready=True, kubelet="v1.36.3", expected=False),)))
    assert extra.startswith("left: a Node that cluster.yaml does not know")
    [unready] = told(replace(status, apiservers=(Apiserver("cp-1", ready=False, error="etcd failed"), *status.apiservers[1:])))
    assert unready.startswith("cp-1: its apiserver is not ready: etcd failed")


@pytest.mark.parametrize(
    ("holders", "unknown", "words"),
    [
        (("cp-1",), (), ""),
        (("cp-1",), ("cp-2",), ""),
        ((), (), "no machine holds the virtual address 10.0.0.100"),
        ((), ("cp-2",), "cp-2 could not be asked"),
        (("cp-1", "cp-3"), (), "is on cp-1 and cp-3 at once"),
    ],
)
def test_the_holder_of_the_virtual_address(holders: tuple[str, ...], unknown: tuple[str, ...], words: str) -> None:
    found = told(replace(whole(), vip=Vip("10.0.0.100", holders, unknown)))
    assert len(found) == (1 if words else 0)
    assert words in "".join(found)


# -- how it is shown -----------------------------------------------------------------------------------------------------------


def test_json_says_everything_in_camel_case() -> None:
    status = replace(whole(), vip=Vip("10.0.0.100", ("cp-1",)), seconds=1.5)
    document = json.loads(json.dumps(replace(status, problems=problems(status)).to_json()))
    assert (document["format"], document["healthy"], document["problems"]) == (1, True, [])
    assert document["etcd"]["leader"] == "cp-2"
    assert document["etcd"]["members"][0]["inUseMib"] == 5
    assert document["proxies"][3]["backends"][0] == {"name": "cp-1", "up": True, "state": "UP", "sessions": 1, "check": ""}
    assert document["vip"] == {"address": "10.0.0.100", "holders": ["cp-1"], "unknown": []}
    broken = replace(status, vip=Vip("10.0.0.100", ()))
    document = replace(broken, problems=problems(broken)).to_json()
    assert document["healthy"] is False
    assert all(isinstance(line, str) for line in document["problems"])  # type: ignore[attr-defined]  # a document of many shapes


def test_it_fits_on_80_columns_and_needs_no_colour() -> None:
    status = replace(whole(), etcd=etcd.assemble(CLUSTER, views(cp_1="no answer", cp_3=said("cp-3", raft_index=12_345_678))))
    broken = replace(status, apiservers=(Apiserver("cp-1", ready=False, error="x"), *status.apiservers[1:]))
    console = Console(width=80, no_color=True, highlight=False, record=True, force_terminal=False, file=None)
    with console.capture() as captured:
        show(replace(broken, problems=problems(broken)), console)
    text = captured.get()
    assert max(len(line) for line in text.splitlines()) <= 80
    for words in ("DOWN", "NOT READY", "leader", "cp-1 UP (1)", "remedy: ", "etcd runs with 2 of 3"):
        assert words in text, text


# -- backups by the members ----------------------------------------------------------------------------------------------------


def backed_up(**changed: dict[str, Any]) -> Status:
    """Each member's timer fired an hour and a half ago, and cp-1 took a backup then."""
    fired = 5400.0
    found = []
    for name in PLANES:
        good = {"good": "t-20260101T030000Z.data.age", "age": fired - 1} if name == "cp-1" else {}
        given = changed.get(name.replace("-", "_"), {})
        found.append(Backups(name, **{"timer": True, "ran": True, "fired": fired, **good, **given}))
    return replace(whole(), backups=tuple(found))


def test_backups_that_are_as_they_should_be() -> None:
    assert told(backed_up()) == []
    # before the first time there is none, and after a machine's start none has run yet
    assert told(backed_up(cp_1={"good": "", "age": None, "ran": False}, cp_2={"ran": False}, cp_3={"ran": False})) == []
    # it is at it
    assert told(backed_up(cp_1={"age": 90_000.0}, cp_2={"running": True})) == []


def test_backups_that_are_not() -> None:
    assert told(backed_up(cp_2={"failed": True})) == [
        "cp-2: its last backup failed; the last good one is 89 min old, on cp-1 -> `provisioner logs cp-2 etcd-backup`"
    ]
    assert told(backed_up(cp_1={"good": "", "age": None, "failed": True})) == [
        "cp-1: its last backup failed; there is no good one -> `provisioner logs cp-1 etcd-backup`"
    ]
    assert told(backed_up(cp_3={"timer": False})) == ["cp-3: the timer of its backups does not run -> `provisioner apply`"]
    assert told(backed_up(cp_1={"age": 90_000.0})) == [
        (
            "cluster: no member has taken a backup when it was time, 90 min ago; the last good one is 25 h old, on cp-1"
            " -> `provisioner logs NODE etcd-backup` for each member of etcd"
        )
    ]


def test_of_a_member_that_is_down_only_that_is_said() -> None:
    status = replace(backed_up(cp_1={"failed": True}), etcd=etcd.assemble(CLUSTER, views(cp_1="no answer")))
    assert not [line for line in told(status) if "backup" in line]


def test_what_a_machine_says_of_its_backups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "ActiveState=active\n\nExecMainStartTimestampMonotonic=12\nActiveState=failed\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess((), 0, text, ""))
    now = dt.datetime.now(dt.UTC) - dt.timedelta(hours=2)
    name = f"t-{now:%Y%m%dT%H%M%SZ}.data.age"
    for other in (name, "t-20260101T000000Z.data.age", "other-20260101T000000Z.data.age"):
        (tmp_path / other).touch()
    (tmp_path / "last-good").write_text(f"{name}\n")
    found = node_script.backups(str(tmp_path), "t")
    assert found["age"] == pytest.approx(7200, abs=30)
    assert {key: value for key, value in found.items() if key not in ("age", "fired")} == {
        "timer": True,
        "failed": True,
        "running": False,
        "ran": True,
        "kept": 2,
        "good": name,
    }
    assert Backups("a", **found).failed  # type: ignore[arg-type] # as it comes out of JSON
    assert "good" not in node_script.backups(str(tmp_path / "missing"), "t")


@pytest.mark.parametrize("systemctl", ["", "#!/bin/sh\nexec sleep 60\n"])
def test_a_machine_whose_systemd_is_silent_tells_the_rest(tmp_path: Path, systemctl: str) -> None:
    if systemctl:
        (tmp_path / "systemctl").write_text(systemctl)
        (tmp_path / "systemctl").chmod(0o755)
        (tmp_path / "sleep").symlink_to(shutil.which("sleep") or "")
    done = subprocess.run(
        [sys.executable, "-"],
        input=machine.script("", "127.0.0.1", str(tmp_path), "t"),
        env={"PATH": str(tmp_path)},
        capture_output=True,
        check=True,
        timeout=30,
    )
    answer = json.loads(done.stdout)
    assert (answer["vip"], "backups" in answer, answer["clock"] > 0) == (True, False, True)
