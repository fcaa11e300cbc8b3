"""`apply` and another Kubernetes version: what is refused where no API server tells its own, what a run that holds leaves alone.
And what a machine that fails in an upgrade is put back on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from provisioner import steps
from provisioner.config import Cluster
from provisioner.errors import BadInput
from provisioner.leaver import Removal
from provisioner.plan import Change
from provisioner.session import Session
from provisioner.upgrade import Patience
from provisioner.upgrade.course import Course
from provisioner.upgrade.run import _Run, at
from provisioner.upgrade.skew import Hop, Running, Version
from provisioner.upgrade.stages import API_SERVERS, CONTROLLERS, ETCD, NODES, Stage

KUBELET = Change("worker-1", "artifacts", "artifact", "/usr/local/bin/kubelet", "change content")


def test_an_upgrade_is_not_slipped_in_while_the_api_is_silent(session: Session) -> None:
    with pytest.raises(BadInput) as refused:
        steps._refuse_unseen_version(session, [KUBELET])
    assert "worker-1 would get another kubelet" in refused.value.message
    assert "`provisioner upgrade`" in refused.value.hint
    # a file that is missing is no other version; and an upgrade may
    steps._refuse_unseen_version(session, [replace(KUBELET, action="create")])
    steps._refuse_unseen_version(replace(session, upgrading=True), [KUBELET])


def test_a_dead_machine_goes_while_an_upgrade_is_under_way_and_not_before_it_has_begun(session: Session) -> None:
    gone = replace(session, removal=Removal(given_up=frozenset({"cp-2"})))
    wanted = f"v{session.cluster.kubernetes.version}"
    assert steps._may_hold(gone, {"cp-1": wanted, "worker-1": "v1.35.4"})
    assert not steps._may_hold(gone, {"cp-1": "v1.35.4", "worker-1": "v1.35.4"})
    assert not steps._may_hold(session, {"cp-1": wanted, "worker-1": "v1.35.4"})


def test_a_run_that_holds_leaves_kubelets_and_what_is_beside_them() -> None:
    proxy = Change("worker-1", "api_proxy", "file", "/etc/provisioner/api-proxy.cfg", "change content")
    unit = Change("worker-1", "kubelet", "unit", "kubelet.service", "restart")
    server = Change("cp-1", "artifacts", "artifact", "/usr/local/bin/kube-apiserver", "change content")
    assert steps._without_nodes([KUBELET, proxy, unit, server]) == [proxy, server]


def test_the_command_that_goes_on_is_the_one_that_runs(session: Session) -> None:
    assert session.command == "provisioner apply"
    assert replace(session, upgrading=True).command == "provisioner upgrade"


def v(text: str) -> Version:
    return Version.of(text)


@pytest.mark.parametrize(
    ("servers", "kubelets", "stage", "machine", "back"),
    [
        # the first run
        ("1.35.4 1.35.4", "1.35.4 1.35.4 1.35.4", API_SERVERS, "cp-2", "1.35.4"),
        ("1.35.4 1.35.4", "1.35.4 1.35.4 1.35.4", ETCD, "etcd-1", "1.35.4"),
        ("1.35.4 1.35.4", "1.35.4 1.35.4 1.34.2", NODES, "worker-1", "1.34.2"),
        # one that was taken up again, behind the API servers
        ("1.36.3 1.36.3", "1.35.4 1.35.4 1.35.4", CONTROLLERS, "cp-1", "1.35.4"),
        # a kubelet that lags is no measure for a control plane
        ("1.35.4 1.36.3", "1.34.2 1.34.2 1.35.4", CONTROLLERS, "cp-2", "1.35.4"),
        # there is nothing to go back to
        ("1.36.3 1.36.3", "1.36.3 1.36.3 1.36.3", CONTROLLERS, "cp-1", None),
        ("1.36.3 1.36.3", "1.36.3 1.36.3 1.36.3", NODES, "worker-1", None),
    ],
)
def test_a_machine_that_fails_goes_back_to_what_it_had(  # noqa: PLR0917 - a table's columns
    session: Session,
    make_cluster: Callable[..., Cluster],
    servers: str,
    kubelets: str,
    stage: Stage,
    machine: str,
    back: str | None,
) -> None:
    running = Running(
        dict(zip(("cp-1", "cp-2"), map(v, servers.split()), strict=True)),
        dict(zip(("cp-1", "cp-2", "worker-1"), map(v, kubelets.split()), strict=True)),
    )
    run = _Run(Course(running, (Hop(v("1.36.3")),), ()), Patience(), {})
    found = run._had(replace(session, cluster=at(make_cluster(), v("1.36.3"))), stage, machine)
    assert found == (v(back) if back else None)


def test_the_next_hop_goes_back_to_the_one_before() -> None:
    running = Running({"cp-1": v("1.34.2")}, {"cp-1": v("1.34.2"), "w": v("1.33.0")})
    assert running.after(v("1.35.4")) == Running({"cp-1": v("1.35.4")}, {"cp-1": v("1.35.4"), "w": v("1.35.4")})
