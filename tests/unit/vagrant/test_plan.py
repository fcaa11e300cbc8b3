"""Roles by name, the network that machines share, and what cluster.yaml says of both."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from provisioner.config import Role
from provisioner.errors import BadInput, ProvisionerError
from provisioner.vagrant.guests import read_answer
from provisioner.vagrant.plan import Guest, meaning_of, plan, roles_of, shared_network
from provisioner.vagrant.tool import accesses_of

from .texts import ANSWER_LIBVIRT, ANSWER_VIRTUALBOX, LIBVIRT, VIRTUALBOX, WELL_KNOWN

KEY = Path("/k")
C, E, W = Role.CONTROL_PLANE, Role.ETCD, Role.WORKER


def guest(*addresses: str, default: str = "eth0") -> Guest:
    """A machine with these addresses on eth0, eth1, …"""
    return Guest({f"eth{n}": (IPv4Interface(one),) for n, one in enumerate(addresses)}, default, emulated=False, key=KEY)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        *((name, "control-plane") for name in ("cp-1", "cp1", "control-plane-2", "k8s-master", "master01", "demo_control_1")),
        *((name, "control-plane") for name in ("controller-0", "server", "controlplane", "k8s-controllers-1")),
        *((name, "worker") for name in ("worker-1", "node2", "k8s-node-1", "agent-3", "kworker-worker1")),
        *((name, "etcd") for name in ("etcd-1", "k8s-etcd2")),
        *((name, "") for name in ("default", "alice", "cpu", "1", "mastermind")),
    ],
)
def test_names_speak_of_roles(name: str, meaning: str) -> None:
    assert meaning_of(name) == meaning


@pytest.mark.parametrize(
    ("names", "roles"),
    [
        (["default"], [(C, E, W)]),
        (["cp-1", "worker-1"], [(C, E), (W,)]),
        (["cp-1", "cp-2", "cp-3", "worker-1"], [(C, E), (C, E), (C, E), (W,)]),
        # an even number of members is worse than one fewer
        (["cp-1", "cp-2", "worker-1"], [(C, E), (C,), (W,)]),
        (["cp-1", "cp-2", "cp-3"], [(C, E, W)] * 3),
        (["master", "etcd-1", "etcd-2", "etcd-3", "alice"], [(C,), (E,), (E,), (E,), (W,)]),
        ([f"cp-{n}" for n in range(1, 8)], [(C, E, W)] * 5 + [(C, W)] * 2),
    ],
)
def test_roles(names: list[str], roles: list[tuple[Role, ...]]) -> None:
    assert list(roles_of(names)[0].values()) == roles


def test_what_is_odd_about_roles_is_told() -> None:
    _, notes = roles_of(["cp-1", "cp-2"])
    assert any(note.startswith("cp-2: without etcd") for note in notes)
    assert any("no workers" in note for note in notes)


def test_names_that_say_nothing_need_the_users_word() -> None:
    with pytest.raises(BadInput, match="do not tell which are control planes: alice, bob") as caught:
        roles_of(["alice", "bob"])
    assert "--control-plane NAME" in caught.value.hint
    assert roles_of(["alice", "bob"], ["bob"])[0] == {"alice": (W,), "bob": (C, E)}
    with pytest.raises(BadInput, match="no machine carol"):
        roles_of(["alice", "bob"], ["carol"])


class TestSharedNetwork:
    """Where the machines meet."""

    def test_of_virtualbox_the_private_one(self) -> None:
        # NAT: the same address on each
        guests = {"a": guest("10.0.2.15/24", "192.168.56.11/24"), "b": guest("10.0.2.15/24", "192.168.56.12/24")}
        assert shared_network(guests) == IPv4Network("192.168.56.0/24")

    def test_also_of_a_machine_alone(self) -> None:
        assert shared_network({"a": guest("10.0.2.15/24", "192.168.56.11/24")}) == IPv4Network("192.168.56.0/24")
        assert shared_network({"a": guest("10.0.2.15/24")}) == IPv4Network("10.0.2.0/24")

    def test_of_libvirt_the_one_with_dhcp_unless_there_is_another(self) -> None:
        dhcp = {"a": guest("192.168.121.5/24"), "b": guest("192.168.121.6/24")}
        assert shared_network(dhcp) == IPv4Network("192.168.121.0/24")
        both = {"a": guest("192.168.121.5/24", "172.20.0.5/16"), "b": guest("192.168.121.6/24", "172.20.0.6/16")}
        assert shared_network(both) == IPv4Network("172.20.0.0/16")

    def test_not_one_that_a_machine_lacks(self) -> None:
        guests = {"a": guest("192.168.121.5/24", "172.20.0.5/16"), "b": guest("192.168.121.6/24")}
        assert shared_network(guests) == IPv4Network("192.168.121.0/24")

    def test_none(self) -> None:
        guests = {"a": guest("10.0.2.15/24"), "b": guest("10.0.2.15/24")}
        with pytest.raises(BadInput, match="share no network") as caught:
            shared_network(guests)
        assert "private_network" in caught.value.hint
        assert caught.value.details == ("a: 10.0.2.15/24 on eth0", "b: 10.0.2.15/24 on eth0")


def test_virtualbox_after_a_cluster() -> None:
    accesses = accesses_of(VIRTUALBOX)
    answers = {"cp-1": "192.168.56.11", "worker-1": "192.168.56.101"}
    guests = {
        access.name: read_answer(access.name, ANSWER_VIRTUALBOX.replace("ADDRESS", answers[access.name]), access.keys[0])
        for access in accesses
    }
    made = plan(accesses, guests)
    assert made.network == IPv4Network("192.168.56.0/24")
    assert not made.emulated
    assert [(machine.host, machine.port, machine.cluster_address) for machine in made.machines] == [
        ("127.0.0.1", 2222, IPv4Address("192.168.56.11")),
        ("127.0.0.1", 2200, IPv4Address("192.168.56.101")),
    ]


def test_libvirt_emulated() -> None:
    accesses = accesses_of(LIBVIRT)
    guests = {
        access.name: read_answer(access.name, ANSWER_LIBVIRT.replace("ADDRESS", access.host), access.keys[0]) for access in accesses
    }
    made = plan(accesses, guests)
    assert made.emulated
    # where SSH answers is where the cluster meets: nothing to add
    assert [machine.cluster_address for machine in made.machines] == [None, None]
    assert [machine.roles for machine in made.machines] == [(C, E), (W,)]


def test_names_become_host_names() -> None:
    (access,) = accesses_of(WELL_KNOWN)
    assert plan([access], {"default": guest("192.168.121.20/24")}).machines[0].name == "node-1"
    first, second = accesses_of(LIBVIRT.replace("cp-1", "My_CP.1").replace("worker-1", "my-cp-1"))
    with pytest.raises(BadInput, match="two machines would be called my-cp-1"):
        plan([first, second], {})


@pytest.mark.parametrize("text", ["", "ip: not found\n", "[]\n", "[{}]\n[{}\n", '[{"addr_info":[]}]\n[]\nkvm\n'])
def test_a_machine_that_cannot_tell(text: str) -> None:
    with pytest.raises(ProvisionerError, match="m: its addresses cannot be read") as caught:
        read_answer("m", text, KEY)
    assert "iproute2" in caught.value.hint


def test_a_machine_without_a_way_out() -> None:
    answer = read_answer(
        "m", '[{"ifname":"eth0","addr_info":[{"family":"inet","local":"10.1.1.1","prefixlen":24}]}]\n\n[]\n\nkvm\n', KEY
    )
    assert (answer.default_interface, answer.emulated) == ("", False)
