"""Care of etcd as far as values decide: whose turn it is, who leads next, and when to keep hands off."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from provisioner.etcd_api import Alarm, EtcdError, Member, Status
from provisioner.lifecycle import etcd

IDS = {"cp-1": 10, "cp-2": 11, "cp-3": 12}
LISTED = tuple(Member(number, name, (), (), learner=False) for name, number in IDS.items())
MIB = 1 << 20


def known(leader: str = "cp-1", **changed: dict[str, Any]) -> dict[str, Status]:
    base = Status(0, IDS[leader], 3, 500, 500, 400, "3.6.14", 16 * MIB, 4 * MIB, learner=False, errors=(), db_size_quota=16 * MIB)
    return {name: replace(base, member_id=number, **changed.get(name.replace("-", "_"), {})) for name, number in IDS.items()}


@pytest.mark.parametrize(
    ("leader", "turns"),
    [("cp-1", ("cp-2", "cp-3", "cp-1")), ("cp-2", ("cp-1", "cp-3", "cp-2")), ("cp-3", ("cp-1", "cp-2", "cp-3"))],
)
def test_followers_first_and_the_leader_last(leader: str, turns: tuple[str, ...]) -> None:
    assert etcd.order(known(leader)) == turns


def test_leadership_goes_to_the_voter_with_the_most_of_the_log() -> None:
    assert etcd.heir(known(cp_2={"raft_applied_index": 499}), "cp-1") == "cp-3"
    assert etcd.heir(known(cp_2={"learner": True, "raft_applied_index": 900}, cp_3={"raft_applied_index": 1}), "cp-1") == "cp-3"
    assert etcd.heir({"cp-1": known()["cp-1"]}, "cp-1") is None


def test_nothing_is_touched_unless_etcd_is_whole() -> None:
    assert etcd.disorder(known(), LISTED) == ()
    assert etcd.disorder(known(cp_3={"leader": 0}), LISTED) == ("cp-3: sees no leader",)
    assert etcd.disorder(known(cp_3={"learner": True}), LISTED) == ("cp-3: still a learner, without a vote",)
    assert "election" in etcd.disorder(known(cp_3={"leader": 12}), LISTED)[0]
    orphan = Member(99, "", ("https://10.0.0.9:2380",), (), learner=False)
    assert etcd.disorder(known(), (*LISTED, orphan)) == ("https://10.0.0.9:2380: in etcd's member list, but not in cluster.yaml",)
    assert etcd.disorder(known(), LISTED[:2]) == ("cp-3: not in etcd's member list",)


def test_alarms_by_the_names_of_the_members() -> None:
    told = known(
        cp_2={"errors": ("memberID:12 alarm:NOSPACE ", "memberID:77 alarm:CORRUPT ")},
        cp_3={"errors": ("memberID:12 alarm:NOSPACE ",)},
    )
    alarms = etcd.raised(told)
    assert alarms == (("4d", Alarm(77, "CORRUPT")), ("cp-3", Alarm(12, "NOSPACE")))
    # one of a member that is gone is in nobody's way
    etcd.refuse_corrupt(alarms, told)
    with pytest.raises(EtcdError, match=r"alarm CORRUPT on cp-3.*nothing was changed"):
        etcd.refuse_corrupt([("cp-3", Alarm(12, "CORRUPT"))], told)


def test_live_data_that_fills_the_quota_needs_a_larger_one() -> None:
    error = etcd.still_full({"cp-1": known()["cp-1"]}, 2048 * MIB)
    assert "cp-1 16.0 of 16 MiB" in error.message
    assert "`etcd.quotaBackendBytes`" in error.hint
    assert "`provisioner apply`" in error.hint


def test_what_scripts_read() -> None:
    done = etcd.Defragmented("cp-1", before=100, after=40, seconds=0.5)
    assert etcd.rows([done]) == [{"member": "cp-1", "before": 100, "after": 40, "seconds": 0.5}]
    cured = etcd.Cured((("cp-1", "NOSPACE"),), 7, (done,)).to_json()
    assert json.loads(json.dumps(cured))["alarms"] == [{"member": "cp-1", "alarm": "NOSPACE"}]
    assert etcd.Cured().to_json() == {"alarms": [], "revision": None, "defragmented": []}
