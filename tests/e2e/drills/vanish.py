"""A control plane that vanishes from the network without a word, under load, and comes back; and the bars of what that may cost."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from provisioner.topology import API_PROXY_URL
from provisioner.wait import NotYet, wait_until
from tests.e2e.drills import figures, kit
from tests.e2e.drills.figures import CLIENTS, Bar, Event, Window
from tests.e2e.drills.kit import PATIENCE, Kit, Load, Real
from tests.e2e.drills.record import Entry, Record

FULL = os.environ.get("DRILLS") == "full"
WRITER = "worker-1"
LEASES = ("lease/kube-controller-manager", "lease/kube-scheduler")
# Seconds; what high availability promises (docs/drills.md).
FOLLOWER_GAP, LEADER_GAP, VIP_EXTRA, LEASE_MOVE = 1.0, 3.0, 3.0, 17.0
# A bar is asserted this many times as wide: the machine that runs the drill may be slow and busy.
FACTOR = 10
# Seconds between the cable and the plug: long enough to see what the cut alone does.
BEFORE_POWER_OFF = 6.0


def utc() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def verified(real: Real) -> None:
    done = real.cli("verify")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def bars_hold(bars: Sequence[Bar]) -> None:
    """Every figure is there and within its bar, or within the factor for slow machines."""
    for bar in bars:
        assert bar.value is not None, bar
        assert bar.value <= bar.limit * FACTOR, bar


def leader_changes(drill: Kit, but: str) -> int:
    """Leader changes that the survivors have seen, at most."""
    return max(drill.leader_changes(node.name) for node in drill.cluster.etcd_members if node.name != but)


def write_figures(events: Sequence[Event], window: Window) -> dict[str, Any]:
    return {client: asdict(figures.writes(events, client, window)) for client in CLIENTS}


def worst_gap(events: Sequence[Event], window: Window) -> float:
    return max(figures.writes(events, client, window).gap for client in CLIENTS)


def lease_moved(load: Load, machine: str, since: float) -> None:
    events = load.events
    for lease in LEASES:
        if figures.held(events, lease, machine, since) and figures.moved(events, lease, machine, since) is None:
            raise NotYet(f"{lease} is still {machine}'s")


def vanish(
    drill: Kit, record: Record, what: str, victim: str, *, seconds: float, kill: bool, endpoint: str | None = None, extra: float = 0
) -> Entry:
    """A machine leaves the network without a word, with ``kill`` loses its power, and comes back, all under load.

    Args:
        what: name of the drill.
        victim: the control plane.
        seconds: how long it is away at least.
        endpoint: URL for the writers; default the worker's own proxy, with the kept connection on the victim's apiserver.
        extra: seconds added to the bar of the gap.
    """
    machine, leader = drill.real.machine(victim), drill.leader()
    limit = (LEADER_GAP if victim == leader else FOLLOWER_GAP) + extra
    addresses = drill.plane_addresses(victim)
    changes = leader_changes(drill, victim)
    with drill.load(WRITER, endpoint=endpoint or API_PROXY_URL, pin="" if endpoint else victim) as load:
        load.wait_for_acknowledgements(20)
        cut = kit.now()
        machine.cut_link()
        if kill:
            time.sleep(BEFORE_POWER_OFF)
            machine.power_off()
            assert not machine.running
        # a lease that moves late is a figure; one that never moves fails the drill
        wait_until("the leases move", lambda: lease_moved(load, victim, cut), seconds=PATIENCE)
        time.sleep(max(0.0, cut + seconds - kit.now()))
        if FULL and kill:
            wait_until("the dead node's endpoints are gone", lambda: endpoints_gone(load, addresses, cut), seconds=PATIENCE)
        since, healed = utc(), kit.now()
        if kill:
            machine.start()
        else:
            machine.heal_link()
        drill.wait_for_plane(victim, since=since)
        back = kit.now()
        load.wait_for_acknowledgements(30)
        events = load.stop()
    away, home = Window(cut, healed), Window(healed, events[-1]["at"])
    moves = {lease.removeprefix("lease/"): figures.moved(events, lease, victim, cut) for lease in LEASES}
    held = [lease.removeprefix("lease/") for lease in LEASES if figures.held(events, lease, victim, cut)]
    bars = [
        Bar(f"gap when it goes ({'leader' if victim == leader else 'follower'})", worst_gap(events, away), limit),
        Bar("gap when it returns", worst_gap(events, home), limit),
        *(Bar(f"{lease} moves", moves[lease], LEASE_MOVE) for lease in held),
        Bar("longest time without the Service", figures.polls(events, Window(cut, home.end)).gap, 1.0),
    ]
    lost = drill.lost(events)
    others = figures.not_ready(events, Window(cut, home.end), but=[victim])
    entry = record.add(
        what,
        bars,
        victim=victim,
        kill=kill,
        etcd_leader=victim == leader,
        away=write_figures(events, away),
        home=write_figures(events, home),
        service=asdict(figures.polls(events, Window(cut, home.end))),
        endpoints_gone={name: figures.gone(events, f"endpoints/{name}", address, cut) for name, address in addresses.items()},
        leader_changes=leader_changes(drill, victim) - changes,
        away_seconds=round(healed - cut, 1),
        back_after=round(back - healed, 1),
        lost=lost,
        other_nodes_not_ready=others,
        errors=figures.errors(events),
    )
    assert not lost, lost
    assert not others, others
    bars_hold(bars)
    verified(drill.real)
    return entry


def endpoints_gone(load: Load, addresses: dict[str, str], since: float) -> None:
    events = load.events
    for name, address in addresses.items():
        if figures.gone(events, f"endpoints/{name}", address, since) is None:
            raise NotYet(f"{address} is still an endpoint of {name}")
