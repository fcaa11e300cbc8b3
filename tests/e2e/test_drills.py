"""What production does to a cluster, done on purpose: machines vanish, data is lost, disks fill, flags roll; and what it costs.

The drills share the cluster `ha` and leave it whole; two that need another one make their own. Asserted is what must hold on any
machine: no acknowledged write lost, everything back, `verify` green, leases moved, the Service answered, other nodes Ready. How
long it took is measured against bars (docs/drills.md), which are printed, recorded, and asserted with a factor for slow machines.

``DRILLS=full`` is the long form (`make drills`): every control plane in turn, longer outages. ``DRILLS_SEED`` chooses the victims,
``DRILLS_OUT`` names a file for the raw figures.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import pytest

from provisioner.cluster_api import ClusterApiError
from provisioner.load import load as load_cluster
from provisioner.wait import NotYet, wait_until
from tests.e2e.drills import figures, kit
from tests.e2e.drills.figures import CLIENTS, Bar, Window
from tests.e2e.drills.kit import PATIENCE, Kit
from tests.e2e.drills.record import Record, kept
from tests.e2e.drills.vanish import (
    FOLLOWER_GAP,
    FULL,
    LEADER_GAP,
    VIP_EXTRA,
    WRITER,
    bars_hold,
    utc,
    vanish,
    verified,
    worst_gap,
    write_figures,
)

pytestmark = pytest.mark.e2e

Real = Any  # tests/e2e/conftest.py's

SEED = int(os.environ.get("DRILLS_SEED", "4"))
# Seconds a machine is away at least; leases need 17 of them to move.
OUTAGE, CUT = (25.0, 60.0) if FULL else (18.0, 20.0)


@pytest.fixture(scope="module")
def record(request: pytest.FixtureRequest) -> Iterator[Record]:
    """The drills' figures, printed and written at the end."""
    with kept(Record(SEED, FULL), request.config, "DRILLS_OUT") as found:
        yield found


@pytest.fixture(scope="module")
def shared(ha: Real) -> Iterator[Kit]:
    """The shared cluster with the drills' pods; at the end as cluster.yaml says."""
    with Kit.of(ha) as made:
        made.deploy()
        yield made
    if ha.plan():
        done = ha.cli("apply", "--yes")
        assert done.returncode == 0, done.stderr


@pytest.fixture
def drill(shared: Kit) -> Iterator[Kit]:
    """The shared kit; a machine that a failed drill left dead or cut off comes back."""
    yield shared
    for node in shared.cluster.nodes:
        machine = shared.real.machine(node.name)
        machine.start()
        machine.heal_link()


# -- a control plane goes ------------------------------------------------------------------------------------------------------


def followers(drill: Kit) -> list[str]:
    leader = drill.leader()
    return [node.name for node in drill.cluster.control_planes if node.name != leader]


def test_a_follower_vanishes_and_is_killed(drill: Kit, record: Record) -> None:
    chance = random.Random(SEED)  # noqa: S311 - repeatable, not secret
    names = followers(drill)
    # one that holds a lease, if any does, so that a lease has to move
    chosen = names if FULL else [chance.choice([name for name in names if name in drill.lease_holders()] or names)]
    for name in chosen:
        vanish(drill, record, f"{name} vanishes", name, seconds=OUTAGE, kill=True)


def test_the_leader_vanishes_and_is_killed(drill: Kit, record: Record) -> None:
    name = drill.leader()
    vanish(drill, record, f"{name} vanishes", name, seconds=OUTAGE, kill=True)


def a_control_plane_is_cut_off_and_healed(drill: Kit, record: Record) -> None:
    name = random.Random(SEED).choice([node.name for node in drill.cluster.control_planes])  # noqa: S311
    vanish(drill, record, f"{name} is cut off for {CUT:g} s", name, seconds=CUT, kill=False)


if FULL:
    # in CI the next test cuts one off as well, machines vanish in the two before, and test_vip.py heals a cut
    test_a_control_plane_is_cut_off_and_healed = a_control_plane_is_cut_off_and_healed


def test_the_drill_can_fail(drill: Kit, record: Record) -> None:
    """The same cut through a proxy that checks nothing: the kit must see what the checks are for."""
    victim = followers(drill)[0]
    with unchecked_proxy(drill):
        with drill.load(WRITER, pin=victim) as load:
            load.wait_for_acknowledgements(20)
            cut = kit.now()
            drill.real.machine(victim).cut_link()
            time.sleep(8)
            healed = kit.now()
            drill.real.machine(victim).heal_link()
            load.wait_for_acknowledgements(10)
            events = load.stop()
        window = Window(cut, healed)
        bar = Bar("gap when it goes (follower)", worst_gap(events, window), FOLLOWER_GAP)
        record.add(
            f"{victim} is cut off, and the proxy checks nothing: must miss its bar",
            [bar],
            away=write_figures(events, window),
            lost=drill.lost(events),
            errors=figures.errors(events),
        )
        assert not bar.met, "the proxy's checks make no difference: this drill proves nothing"
        assert figures.writes(events, "fresh", window).failed >= 2
        assert not drill.lost(events)
        assert (WRITER, PROXY_FILE) in {(change["host"], change["what"]) for change in drill.real.plan()}
        done = drill.real.cli("apply", "--yes")
        assert done.returncode == 0, done.stderr
    assert drill.real.plan() == []


PROXY_FILE = "/etc/provisioner/api-proxy.cfg"
UNCHECKED = """\
global
  stats socket {socket} mode 600 level admin
defaults
  mode tcp
  timeout connect 10s
  timeout client 30m
  timeout server 30m
frontend api
  bind 127.0.0.1:16443
  default_backend apiservers
backend apiservers
  balance roundrobin
{servers}
"""


@contextlib.contextmanager
def unchecked_proxy(drill: Kit) -> Iterator[None]:
    """The worker's proxy over the same apiservers without any check; the block puts it right again, or else this does."""
    before = drill.real.run(WRITER, f"cat {PROXY_FILE}")
    servers = "\n".join(f"  server {node.name} {node.ip}:6443" for node in drill.cluster.control_planes)
    text = UNCHECKED.format(socket=kit.ADMIN_SOCKET, servers=servers)
    take = f"cat >{PROXY_FILE} && systemctl reload provisioner-api-proxy"
    try:
        drill.real.run(WRITER, take, stdin=text.encode())
        yield
    finally:
        if drill.real.run(WRITER, f"cat {PROXY_FILE}") != before:
            drill.real.run(WRITER, take, stdin=before.encode())


# -- everything goes -----------------------------------------------------------------------------------------------------------


def test_every_machine_is_killed_and_powered_on(drill: Kit, record: Record) -> None:
    machines = [drill.real.machine(node.name) for node in drill.cluster.nodes]
    with drill.load(WRITER) as load:
        load.wait_for_acknowledgements(30)
        for machine in machines:
            machine.cut_link()
        with ThreadPoolExecutor(len(machines)) as pool:
            list(pool.map(lambda machine: machine.power_off(), machines))
        assert not any(machine.running for machine in machines)
        events = load.kill()
    since, on = utc(), kit.now()
    with ThreadPoolExecutor(len(machines)) as pool:
        list(pool.map(lambda machine: machine.start(), machines))
    booted = kit.now()
    drill.write("after-the-power-cut")
    writes = kit.now()
    drill.wait_for_nodes(since=since)
    ready = kit.now()
    for node in drill.cluster.control_planes:
        drill.wait_for_plane(node.name, since=since)
    lost = drill.lost(events)
    record.add(
        "every machine is killed",
        machines_booted=round(booted - on, 1),
        first_write_after=round(writes - on, 1),
        all_nodes_ready_after=round(ready - on, 1),
        acknowledged_before=sum(len(figures.acknowledgements(events, client)) for client in CLIENTS),
        lost=lost,
    )
    assert not lost, lost
    verified(drill.real)
    assert drill.real.plan() == []


# -- etcd ----------------------------------------------------------------------------------------------------------------------


def test_a_member_without_its_data_is_made_anew(drill: Kit, record: Record) -> None:
    victim = random.Random(SEED + 1).choice(drill.cluster.etcd_members)  # noqa: S311
    old = {name: status.member_id for name, status in drill.members().items()}
    with drill.load(WRITER) as load:
        drill.real.run(victim, "systemctl stop etcd && rm -rf /var/lib/etcd/member")
        began = kit.now()
        done = drill.real.cli("apply", "--yes", "--skip-verify")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        ended = kit.now()
        load.wait_for_acknowledgements(10)
        events = load.stop()
    drill.wait_for_member(victim.name)
    new = {name: status.member_id for name, status in drill.members().items()}
    lost = drill.lost(events)
    record.add(
        f"{victim.name} loses etcd's data, one `apply`",
        apply_seconds=round(ended - began, 1),
        writes=write_figures(events, Window(began, ended)),
        lost=lost,
        errors=figures.errors(events),
    )
    assert not lost, lost
    assert new[victim.name] != old[victim.name], "the member is the old one"
    assert {name: number for name, number in new.items() if name != victim.name} == {
        name: number for name, number in old.items() if name != victim.name
    }
    members = drill.member_list()
    assert {member.id for member in members} == set(new.values()), f"an orphan: {members}"
    assert not any(member.learner for member in members)
    # verify compares the members' data by HashKV
    verified(drill.real)
    assert drill.real.plan() == []


def test_a_full_etcd_is_reported_and_cured(
    bare_lab: Callable[..., contextlib.AbstractContextManager[Real]], record: Record
) -> None:
    with bare_lab("--control-planes", "1", "--workers", "0") as real:
        edit(real, lambda text: text + f"\netcd: {{quotaBackendBytes: {16 << 20}}}\n")
        applied(real)
        with Kit.of(real) as drill, drill.load("cp-1", pods=False) as load:
            load.wait_for_acknowledgements(10)
            began = kit.now()
            large, refused = fill(drill)
            full = kit.now()
            status = real.cli("status", "--json")
            assert status.returncode == 0, status.stderr
            assert "NOSPACE" in status.stdout
            assert "NOSPACE" in real.cli("status").stdout
            cure = real.cli("etcd", "cure", "--yes")
            assert cure.returncode == 0, f"{cure.stdout}\n{cure.stderr}"
            cured = kit.now()
            load.wait_for_acknowledgements(30)
            events = load.stop()
            values = {name: drill.read(name) for name in large}
            # etcd may refuse a write that it has done: at the limit, its applier does both. What was not acknowledged may be there.
            lost = drill.lost(events) | {
                name: f"acknowledged with {value[:6]}, holds {(values[name] or 'nothing')[:6]}"
                for name, value in large.items()
                if values[name] not in (value, refused.get(name))
            }
            record.add(
                "etcd is full",
                filled_after=round(full - began, 1),
                cured_after=round(cured - full, 1),
                writes=write_figures(events, Window(began, events[-1]["at"])),
                large_objects=len(large),
                lost=lost,
            )
            assert not lost, lost
            assert "NOSPACE" not in real.cli("status").stdout
        verified(real)


def fill(drill: Kit) -> tuple[dict[str, str], dict[str, str]]:
    """Write large values, the same few objects over and over, until etcd refuses.

    Returns:
        the last acknowledged value of each, and the one that was refused.
    """
    acknowledged: dict[str, str] = {}
    # 4 objects of 0.5 MiB: what is live stays far below the quota, what was overwritten fills it
    for number in range(200):
        name, value = f"large-{number % 4}", f"{number:06d}" * (512 << 10 >> 3)
        try:
            drill.api.apply(drill.object("v1", "ConfigMap", name, data={"value": value}))
        except ClusterApiError as error:
            if "database space exceeded" not in error.message:
                raise
            return acknowledged, {name: value}
        acknowledged[name] = value
    raise AssertionError("etcd took 75 MiB with a quota of 16")


# -- changes under load --------------------------------------------------------------------------------------------------------


def test_a_flag_rolls_through_all_apiservers(drill: Kit, record: Record) -> None:
    changes = max(drill.leader_changes(node.name) for node in drill.cluster.etcd_members)
    with drill.real.edited(lambda text: text + "\ncomponents: {kubeApiserver: {flags: {min-request-timeout: 1801}}}\n"):
        with drill.load(WRITER, pin=drill.cluster.control_planes[0].name) as load:
            load.wait_for_acknowledgements(20)
            began = kit.now()
            done = drill.real.cli("apply", "--yes", "--skip-verify")
            assert done.returncode == 0, done.stderr
            ended = kit.now()
            load.wait_for_acknowledgements(20)
            events = load.stop()
        verified(drill.real)
    for node in drill.cluster.control_planes:
        assert "--min-request-timeout=1801" in drill.real.run(node, "tr '\\0' '\\n' </proc/$(pidof kube-apiserver)/cmdline")
    window = Window(began, events[-1]["at"])
    attempts = max(figures.writes(events, client, window).most_attempts for client in CLIENTS)
    bars = [Bar("most attempts of one write", attempts, 2)]
    lost = drill.lost(events)
    record.add(
        "a flag rolls through all apiservers",
        bars,
        apply_seconds=round(ended - began, 1),
        writes=write_figures(events, window),
        service=asdict(figures.polls(events, window)),
        leader_changes=max(drill.leader_changes(node.name) for node in drill.cluster.etcd_members) - changes,
        lost=lost,
        errors=figures.errors(events),
    )
    assert not lost, lost
    assert attempts <= 2, figures.errors(events)
    assert not figures.not_ready(events, window)


def the_holder_of_the_virtual_address_vanishes(drill: Kit, record: Record) -> None:
    network = drill.cluster.nodes[0].ip
    address = re.sub(r"\.\d+$", ".200", str(network))
    with drill.real.edited(lambda text: f"{text}\ncontrolPlaneEndpoint: {{host: {address}, port: 6443, vip: {{}}}}\n"):
        applied(drill.real)
        holder = wait_until("a holder of the virtual address", lambda: held(drill, address), seconds=PATIENCE, every=1)
        local = {entry.bars[0].what: entry.bars[0].value for entry in record.entries if entry.figures.get("kill")}
        entry = vanish(
            drill,
            record,
            f"{holder}, holder of the virtual address, vanishes",
            holder,
            seconds=OUTAGE,
            kill=True,
            endpoint=kit.vip_url(address),
            extra=VIP_EXTRA,
        )
        gap, through_the_proxy = entry.bars[0].value, local.get(entry.bars[0].what)
        if gap is not None and through_the_proxy is not None:
            entry.figures["longer_than_through_the_proxy"] = round(gap - through_the_proxy, 3)
        assert drill.holder_of(address)


def held(drill: Kit, address: str) -> str:
    holder = drill.holder_of(address)
    if not holder:
        raise NotYet("nobody holds it")
    return holder


def one_control_plane_becomes_three_and_one_again(
    bare_lab: Callable[..., contextlib.AbstractContextManager[Real]], record: Record
) -> None:
    """By editing cluster.yaml and `apply`, under load; the machines that leave are as if they had never been there."""
    with bare_lab("--control-planes", "1", "--workers", "1", "--spares", "2") as small:
        applied(small)
        alone = small.workspace.cluster_file.read_text()
        applied_under_load(small, with_spares, "one control plane becomes three", record)
        large = replace(small, cluster=load_cluster(small.workspace.cluster_file))
        assert len(large.cluster.control_planes) == len(large.cluster.etcd_members) == 3
        with Kit.of(large) as drill:
            members = drill.member_list()
            assert {member.name for member in members} == {node.name for node in large.cluster.etcd_members}
            assert not any(member.learner for member in members)
        verified(large)
        assert large.plan() == []
        applied_under_load(small, lambda _: alone, "three control planes become one", record)
        with Kit.of(small) as drill:
            assert [member.name for member in drill.member_list()] == ["cp-1"]
            assert {node["metadata"]["name"] for node in drill.api.items("/api/v1/nodes")} == {"cp-1", "worker-1"}
        for name in ("spare-1", "spare-2"):
            left = large.run(
                name, "ls -d /etc/provisioner /etc/kubernetes /var/lib/etcd/member /usr/local/bin/kubelet 2>/dev/null || true"
            )
            assert left == "", f"{name}: {left}"
        verified(small)
        assert small.plan() == []


if FULL:
    # two runs of `apply` and a drill, two minutes: in CI test_vip.py cuts the holder off and kills it, and asks the address until
    # another machine answers; that no acknowledged write is lost when a machine goes is shown through the proxies
    test_the_holder_of_the_virtual_address_vanishes = the_holder_of_the_virtual_address_vanishes
    # a cluster of its own, five minutes: in CI the rounds of test_kills.py grow one to three and shrink it again, without the load
    test_one_control_plane_becomes_three_and_one_again = one_control_plane_becomes_three_and_one_again


def applied_under_load(small: Real, change: Callable[[str], str], what: str, record: Record) -> None:
    """cluster.yaml changed and applied, while writers and a client of a Service go on."""
    with Kit.of(replace(small, cluster=load_cluster(small.workspace.cluster_file))) as drill:
        drill.deploy()
        with drill.load(WRITER) as load:
            load.wait_for_acknowledgements(20)
            edit(small, change)
            began = kit.now()
            done = small.cli("apply", "--yes", "--skip-verify")
            assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
            ended = kit.now()
            load.wait_for_acknowledgements(20)
            events = load.stop()
        lost = drill.lost(events)
    window = Window(began, events[-1]["at"])
    bars = [Bar("longest time without a write", worst_gap(events, window), LEADER_GAP)]
    record.add(
        what,
        bars,
        apply_seconds=round(ended - began, 1),
        writes=write_figures(events, window),
        service=asdict(figures.polls(events, window)),
        lost=lost,
        errors=figures.errors(events),
    )
    assert not lost, lost
    bars_hold(bars)


def with_spares(text: str) -> str:
    """cluster.yaml with the lab's spare machines as control planes with etcd."""
    entry = r"  - {name: \1, address: \2, roles: [control-plane, etcd]}"
    return re.sub(r"  # (spare-\d+), ([\d.]+): a spare machine.*", entry, text)


def edit(real: Real, change: Callable[[str], str]) -> None:
    """cluster.yaml changed for good."""
    path = real.workspace.cluster_file
    before = path.read_text()
    after = change(before)
    assert after != before
    path.write_text(after)


def applied(real: Real) -> None:
    done = real.cli("apply", "--yes", "--skip-verify")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
