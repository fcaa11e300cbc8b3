"""The topologies that are not three stacked control planes: the same roles, and each survives the loss of an etcd member.

Three stacked ones are the fixture `ha`, one that becomes three and one again in test_kills.py and, under load, in test_drills.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from provisioner.config import Role
from tests.e2e.drills import kit

pytestmark = pytest.mark.e2e

# (arguments of `lab up`, the member that is killed)
SHAPES = {
    "two control planes and a third machine for etcd alone": (
        ("--control-planes", "2", "--etcd-only", "1", "--workers", "1"),
        "etcd-1",
    ),
    "two control planes with external etcd": (
        ("--control-planes", "2", "--external-etcd", "--etcd-only", "3", "--workers", "1"),
        "etcd-2",
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_it_is_built_proven_and_survives_a_member(
    bare_lab: Callable[..., contextlib.AbstractContextManager[Any]], name: str
) -> None:
    shape, victim = SHAPES[name]
    with bare_lab(*shape) as real:
        assert len(real.cluster.etcd_members) == 3
        for command in (("apply", "--yes", "--skip-verify"), ("verify",)):
            done = real.cli(*command)
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        assert real.plan() == []
        members_hold_no_kubelet(real)
        with kit.Kit.of(real) as drill:
            machine = real.machine(victim)
            machine.power_off()
            assert not machine.running
            drill.write("while-a-member-is-dead")
            machine.start()
            drill.wait_for_member(victim)
            assert drill.read("while-a-member-is-dead") == "written"
        done = real.cli("verify")
        assert done.returncode == 0, done.stdout


def members_hold_no_kubelet(real: Any) -> None:
    """A machine for etcd alone runs etcd and no part of Kubernetes."""
    for node in real.cluster.etcd_members:
        if node.roles == (Role.ETCD,):
            units = real.run(node, "systemctl list-units --plain --no-legend 'kube*' containerd.service 'flanneld*'")
            assert not units.strip(), f"{node.name}: {units}"
