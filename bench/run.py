"""`make bench`: real clusters on lab machines, timed from booted machines with a warm artifact cache, and what each second was for.

    python bench/run.py [--runs N] [--shape CPxW ...] [--out FILE]

Writes one JSON document with every raw figure (bench/results/ holds those that the docs quote) and prints medians. Nothing
here fails because the machine was slow: a bench is no test.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from provisioner import artifacts, desired, lab, pki, render, session
from provisioner.config import Cluster, Node, Role

PROVISIONER = Path(sys.executable).parent / "provisioner"
LAB = "bench"


def cluster_run(control_planes: int, workers: int, directory: Path) -> dict[str, Any]:
    """One cluster from booted machines to the end of smoke verification, a second apply, and the way back."""
    path = lab.up(LAB, control_planes=control_planes, workers=workers, spares=1, directory=directory / "workspace" / LAB)
    try:
        load = os.getloadavg()[0]
        first = _timed([str(PROVISIONER), "apply", "--yes", "--cluster", str(path)])
        events = _journal(path.parent)
        begin = next(_time(event) for event in events if event["event"] == "run")
        settled = [_time(event) for event in events if event.get("phase") == "settle" and event["state"] == "done"]
        verified = [_time(event) for event in events if event.get("phase") == "verify" and event["state"] == "done"]
        plays = [event for event in events if event["event"] == "playbooks"]
        counts = {host: _sum(event["counts"].get(host, {}) for event in plays) for host in plays[-1]["counts"]}
        cpu = _machines_cpu()
        second = _timed([str(PROVISIONER), "apply", "--yes", "--cluster", str(path)])
        noop = [event for event in _journal(path.parent)[len(events) :] if event["event"] == "playbooks"]
        spare = lab.get(LAB).machine("spare-1").address
        add = _timed([str(PROVISIONER), "node", "add", "added", "--address", str(spare), "--yes", "--cluster", str(path)])
        added = [event for event in _journal(path.parent) if event["event"] == "seconds"][-1]
        remove = _timed([str(PROVISIONER), "node", "remove", "added", "--yes", "--cluster", str(path)])
        return {
            "load_before": load,
            "exit": first["exit"],
            "output": first["output"] if first["exit"] else "",
            # the interpreter's start comes before the journal's first line
            "all_nodes_ready_s": round((settled[0] - begin).total_seconds() + first["startup_s"], 2) if settled else None,
            "verified_s": round((verified[0] - begin).total_seconds() + first["startup_s"], 2) if verified else None,
            "apply_s": first["wall_s"],
            "driver_cpu_s": first["cpu_s"],
            "machines_cpu_s": cpu,
            "phases_s": next((event for event in events if event["event"] == "seconds"), {}),
            "tasks": counts,
            "task_seconds": plays[-1]["seconds"],
            "second_apply_s": second["wall_s"],
            "second_apply_changed": sum(count.get("changed", 0) for event in noop for count in event["counts"].values()),
            "second_apply_exit": second["exit"],
            # to the end of the worker's own proof, and from there until its machine is wiped and forgotten
            "add_worker_s": add["wall_s"],
            "add_worker_exit": add["exit"],
            "add_worker_phases_s": added,
            "remove_worker_s": remove["wall_s"],
            "remove_worker_exit": remove["exit"],
        }
    finally:
        lab.down(LAB)


def _sum(counts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)


def _time(event: dict[str, Any]) -> dt.datetime:
    return dt.datetime.fromisoformat(event["time"])


def _journal(workspace: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workspace / "journal.jsonl").read_text().splitlines()]


def _timed(command: list[str]) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began_at, began = dt.datetime.now(dt.UTC), time.monotonic()
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    wall = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    workspace = Path(command[-1]).parent
    runs = [event for event in _journal(workspace) if event["event"] == "run"]
    return {
        "exit": done.returncode,
        "output": (done.stdout + done.stderr)[-4000:],
        "wall_s": round(wall, 2),
        "startup_s": round((_time(runs[-1]) - began_at).total_seconds(), 2),
        "cpu_s": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
    }


def _machines_cpu() -> float | None:
    """CPU seconds of all machines of the lab since their boot, where cgroup v1 accounts for it."""
    usages = list(Path("/sys/fs/cgroup/cpuacct").glob(f"plab.{LAB}.*/cpuacct.usage"))
    return round(sum(int(path.read_text()) for path in usages) / 1e9, 1) if usages else None


def render_run(machines: int) -> dict[str, Any]:
    """PKI and every file of a large cluster, in memory and on disk; no machine is asked."""
    nodes = tuple(
        Node(
            name=f"node-{number}",
            address=str(IPv4Address("10.100.0.1") + number),
            roles=(Role.CONTROL_PLANE, Role.ETCD) if number < 5 else (Role.WORKER,),
        )
        for number in range(machines)
    )
    cluster = Cluster(name="large", nodes=nodes, network={"pod_cidr": "10.128.0.0/12"})
    anything = render.CachedArtifact(Path("/nowhere"), "0" * 64, 1)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        began = time.monotonic()
        made = pki.ensure(cluster, root / "pki", now=dt.datetime.now(dt.UTC))
        issued = time.monotonic()
        files = 0
        for node in nodes:
            context = render.HostContext(
                cluster=cluster,
                node=node,
                traits=render.MachineTraits(),
                cluster_id=pki.cluster_id(made),
                certificates=(*pki.bundle_for(cluster, made, node), session.encryption_file(made)),
                artifacts=_Same(anything),
                images={name: render.Image(f"images/{name}.tar", f"example/{name}:1") for name in session.IMAGES},
            )
            state = render.render_host(context)
            desired.save_host(root / "rendered", state)
            files += len(state.files)
        rendered = time.monotonic()
    return {"machines": machines, "files": files, "pki_s": round(issued - began, 2), "render_s": round(rendered - issued, 2)}


class _Same(dict[str, render.CachedArtifact]):
    """Every artifact name stands for the same file."""

    def __init__(self, value: render.CachedArtifact) -> None:
        super().__init__()
        self._value = value

    def __missing__(self, _key: str) -> render.CachedArtifact:
        return self._value


def bundle_run(directory: Path) -> dict[str, Any]:
    """How fast artifacts get to one machine that lacks all of them."""
    path = lab.up(LAB, control_planes=1, workers=0, directory=directory / "workspace" / LAB)
    try:
        _timed([str(PROVISIONER), "apply", "--yes", "--skip-verify", "--cluster", str(path)])
        state = json.loads((path.parent / "rendered" / "cp-1.json").read_text())
        size = sum(item["size"] for item in state["artifacts"])
        plays = [event for event in _journal(path.parent) if event["event"] == "playbooks" and len(event["playbooks"]) > 1]
        seconds = next(value for name, value in plays[-1]["seconds"].items() if "artifacts : Place" in name)
        return {"megabytes": round(size / 1e6), "seconds": seconds, "megabytes_per_s": round(size / 1e6 / seconds, 1)}
    finally:
        lab.down(LAB)


def main() -> None:
    """Run, print medians, write the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--shape", action="append", help="CONTROLPLANESxWORKERS, e.g. 3x2; default: 1x2 and 3x2")
    parser.add_argument("--out", type=Path, default=Path(f"bench/results/{dt.datetime.now(dt.UTC):%Y-%m-%dT%H%M}.json"))
    options = parser.parse_args()
    artifacts.load_lock()
    document: dict[str, Any] = {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "render": [render_run(500) for _ in range(options.runs)],
        "clusters": {},
    }
    print("render 500 machines:", document["render"])
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        document["bundle"] = [bundle_run(Path(directory)) for _ in range(options.runs)]
        print("artifacts to one machine:", document["bundle"])
        for shape in options.shape or ["1x2", "3x2"]:
            control_planes, workers = (int(number) for number in shape.split("x"))
            runs = [cluster_run(control_planes, workers, Path(directory)) for _ in range(options.runs)]
            document["clusters"][shape] = runs
            report(shape, runs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"raw figures: {options.out}")


def report(shape: str, runs: list[dict[str, Any]]) -> None:
    """Medians of one shape, and where the seconds of its last run went."""
    for name in (
        "all_nodes_ready_s",
        "verified_s",
        "apply_s",
        "second_apply_s",
        "add_worker_s",
        "remove_worker_s",
        "driver_cpu_s",
        "machines_cpu_s",
    ):
        values = [run[name] for run in runs if run[name] is not None]
        if values:
            print(f"{shape} {name:20} median {statistics.median(values):7.2f}  min {min(values):7.2f}  max {max(values):7.2f}")
    last = runs[-1]
    print(f"{shape} tasks per host: {last['tasks']}; second apply changed={last['second_apply_changed']}")
    for name, seconds in last["phases_s"].items():
        if isinstance(seconds, float):
            print(f"    {seconds:7.2f} s  {name}")
    for name, seconds in sorted(last["task_seconds"].items(), key=lambda item: -item[1])[:12]:
        print(f"        {seconds:7.2f} s  {name}")


if __name__ == "__main__":
    main()
