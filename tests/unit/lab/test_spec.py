"""Names and addresses of a lab, and the file that remembers them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network
from itertools import combinations
from pathlib import Path

import pytest

from provisioner.config import Role
from provisioner.errors import BadInput
from provisioner.lab.spec import MAX_NAME, POOL, Lab, Shape, check_name, free_network

NETWORKS = tuple(POOL.subnets(new_prefix=24))


def a_lab(name: str = "dev", shape: Shape | None = None, network: IPv4Network = NETWORKS[0]) -> Lab:
    return Lab(
        name=name,
        shape=shape or Shape(3, 2),
        network=network,
        home=Path("/state") / name,
        directory=Path("/work/space") / name,
        image=Path("/cache/tree"),
    )


def test_stacked_control_planes_hold_etcd_members() -> None:
    machines = Shape(3, 2).machines(NETWORKS[0])
    assert [machine.name for machine in machines] == ["cp-1", "cp-2", "cp-3", "worker-1", "worker-2"]
    assert [str(machine.address) for machine in machines] == [f"10.77.0.{last}" for last in (11, 12, 13, 14, 15)]
    assert machines[0].roles == (Role.CONTROL_PLANE, Role.ETCD)
    assert machines[4].roles == (Role.WORKER,)


def test_external_etcd_stays_off_the_control_planes() -> None:
    machines = Shape(2, 1, 3, stacked=False).machines(NETWORKS[0])
    assert {machine.name: machine.roles for machine in machines} == {
        "cp-1": (Role.CONTROL_PLANE,),
        "cp-2": (Role.CONTROL_PLANE,),
        "etcd-1": (Role.ETCD,),
        "etcd-2": (Role.ETCD,),
        "etcd-3": (Role.ETCD,),
        "worker-1": (Role.WORKER,),
    }


def test_without_workers_the_control_planes_take_pods() -> None:
    (only,) = Shape(1, 0).machines(NETWORKS[0])
    assert only.roles == (Role.CONTROL_PLANE, Role.ETCD, Role.WORKER)


def test_spares_have_no_roles_and_come_last() -> None:
    machines = Shape(1, 1, spares=2).machines(NETWORKS[0])
    assert [(machine.name, machine.roles) for machine in machines[-2:]] == [("spare-1", ()), ("spare-2", ())]


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (Shape(0, 2), "at least one control plane"),
        (Shape(1, -1), "negative"),
        (Shape(1, 1, spares=-1), "negative"),
        (Shape(2, 1), "2 etcd members"),
        (Shape(1, 1, etcd_only=1), "2 etcd members"),
        (Shape(1, 1, stacked=False), "no machine would run etcd"),
        (Shape(1, 1, 2, stacked=False), "2 etcd members"),
        (Shape(1, 240), "at most 240"),
    ],
)
def test_numbers_that_make_no_cluster_are_refused(shape: Shape, reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        shape.check()


@pytest.mark.parametrize("shape", [Shape(), Shape(3, 2), Shape(2, 1, 1), Shape(1, 0), Shape(3, 0, 3, stacked=False), Shape(1, 239)])
def test_numbers_that_make_a_cluster_are_taken(shape: Shape) -> None:
    shape.check()
    addresses = [machine.address for machine in shape.machines(NETWORKS[7])]
    assert len(set(addresses)) == len(addresses)
    assert all(address in NETWORKS[7] for address in addresses)
    assert not {NETWORKS[7][1], NETWORKS[7][254], NETWORKS[7][255]} & set(addresses)


@pytest.mark.parametrize("name", ["lab", "a", "dev-2", "0", "x" * MAX_NAME])
def test_dns_labels_are_names(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a.b", "a/b", "..", "a b", "é", "x" * (MAX_NAME + 1), "a\n"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(BadInput):
        check_name(name)


def test_no_two_labs_share_a_name_or_an_address() -> None:
    # names chosen to collide if they were joined with hyphens
    labs = [
        a_lab("a", Shape(11, 1), NETWORKS[0]),
        a_lab("a-cp-1", Shape(3, 1), NETWORKS[1]),
        a_lab("a-cp", Shape(3, 1), NETWORKS[11]),
        a_lab("cp-1", Shape(1, 1), NETWORKS[111]),
    ]
    made = [
        {lab.link, lab.switch, *(str(one.address) for one in lab.machines), *(lab.resource(one) for one in lab.machines)}
        for lab in labs
    ]
    for one, other in combinations(made, 2):
        assert not one & other


def test_names_fit_the_kernel() -> None:
    lab = a_lab("x" * MAX_NAME, Shape(1, 239), NETWORKS[255])
    assert len(lab.link) <= 15
    for machine in lab.machines:
        assert len(machine.name) <= 15, "interface name of its port on the switch"
        assert len(f"{lab.name}.{machine.name}") <= 64, "host name for systemd-nspawn"


def test_the_first_free_network_is_taken() -> None:
    assert free_network((), (), NETWORKS) == NETWORKS[0]
    assert free_network((NETWORKS[0], NETWORKS[2]), (), NETWORKS) == NETWORKS[1]


def test_networks_of_the_host_are_left_alone() -> None:
    own = (IPv4Network("10.77.0.5/32"), IPv4Network("10.77.1.128/25"))
    assert free_network((), own, NETWORKS) == NETWORKS[2]


def test_a_wide_route_of_the_host_is_no_obstacle() -> None:
    assert free_network((), (IPv4Network("10.0.0.0/8"),), NETWORKS) == NETWORKS[0]


def test_a_full_pool_is_an_error() -> None:
    with pytest.raises(BadInput, match="none of 256 networks is free"):
        free_network(NETWORKS, (), NETWORKS)
    with pytest.raises(BadInput, match=r"10\.77\.3\.0/24 is in use"):
        free_network((NETWORKS[3],), (), (NETWORKS[3],))


def test_the_state_file_gives_the_lab_back() -> None:
    lab = replace(a_lab(shape=Shape(3, 0, 3, stacked=False, spares=1)), cluster_sha256="ab")
    assert Lab.from_json(lab.to_json(), lab.home) == lab


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", '{"version": 2}', '{"version": 1, "name": "a"}', '{"version": 1, "shape": 3}']
)
def test_a_broken_state_file_is_no_lab(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Lab.from_json(text, Path("/state/a"))


def test_an_unknown_machine_is_named_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="no machine 'cp-9'") as caught:
        a_lab().machine("cp-9")
    assert "cp-1" in caught.value.hint
