"""`make race`: rounds of kubeadm and toolkit on fresh machines, alternating; every figure into one JSON document.

    python -m bench.compare.race [--runs N] [--contender NAME …] [--out FILE]

Machines are booted, and prepared as far as the contender's rules say, before the clock starts; then the host's disks are flushed,
and it may calm down for a moment. Nothing here fails because the machine was slow; a run that fails is written down as failed.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.compare import kubeadm, machines, materials, summary, toolkit
from bench.compare.checks import Checker
from provisioner.artifacts import load_lock
from provisioner.artifacts.toolchain import machine as architecture
from provisioner.lab import Lab
from provisioner.lab import image as lab_image
from provisioner.workspace import write_atomic

LAB = "race"
CONTROL_PLANES, WORKERS = 3, 2
# How long the host may take to come to rest before the clock starts; not in the figures.
CALM_LOAD_SECONDS = 10.0
ROOT = Path(__file__).parents[2]
CONTENDERS = ("kubeadm", "toolkit", "toolkit-placed")


def one_run(contender: str, goods: materials.Materials, directory: Path) -> dict[str, Any]:
    """A fresh lab, one contender, the common checks, and the lab is gone again."""
    steps: dict[str, float] = {}
    began = time.monotonic()
    with machines.fresh(LAB, directory, control_planes=CONTROL_PLANES, workers=WORKERS) as (place, cluster_file):
        steps["boot_s"] = round(time.monotonic() - began, 2)
        with _timed(steps, "prepare_s"):
            race = _prepare(contender, place, cluster_file, goods, directory)
            os.sync()
        with _timed(steps, "calm_s"):
            load = _calm()
        result: dict[str, Any] = {"contender": contender, "time": _now(), "load_before": load, "before": steps, "error": ""}
        cpu, used = machines.cpu_seconds(place), _controller_cpu()
        began = time.monotonic()
        try:
            race.run()
            result["built_s"] = round(time.monotonic() - began, 2)
            checks_began = time.monotonic()
            result["checks"] = Checker(str(race.kubeconfig), [machine.name for machine in place.machines]).run()
            result["verified_s"] = round(time.monotonic() - began, 2)
            result["checks_s"] = round(time.monotonic() - checks_began, 2)
        except Exception as error:  # a failed run is a result, too
            result["error"] = f"{type(error).__name__}: {error}"
        after = machines.cpu_seconds(place)
        result["machines_cpu_s"] = None if cpu is None or after is None else round(after - cpu, 1)
        result["controller_cpu_s"] = round(_controller_cpu() - used, 1)
        result["milestones"] = race.milestones
        return result


def _prepare(
    contender: str, place: Lab, cluster_file: Path, goods: materials.Materials, directory: Path
) -> kubeadm.Race | toolkit.Race:
    if contender == "kubeadm":
        kubeadm.install(place, goods, kubeadm.Secrets())
        logs = directory / "kubeadm"
        logs.mkdir(exist_ok=True)
        for left in logs.iterdir():
            left.unlink()
        return kubeadm.Race(place, goods, logs)
    if contender == "toolkit-placed":
        toolkit.place(place, cluster_file, goods)
    return toolkit.Race(place, cluster_file, directory)


@contextmanager
def _timed(steps: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    steps[name] = round(time.monotonic() - began, 2)


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _calm() -> float:
    """Wait until hardly a process wants a CPU, for a few seconds at most; the load average (1 minute) afterwards."""
    end = time.monotonic() + CALM_LOAD_SECONDS
    idle = _idle_seconds()
    while time.monotonic() < end:
        time.sleep(1)
        before, idle = idle, _idle_seconds()
        if idle - before > 0.85 * (os.cpu_count() or 1):
            break
    return round(os.getloadavg()[0], 2)


def _idle_seconds() -> float:
    """Seconds that all CPUs together have been idle since the boot."""
    fields = Path("/proc/stat").read_text().splitlines()[0].split()
    return int(fields[4]) / os.sysconf("SC_CLK_TCK")


def _controller_cpu() -> float:
    """CPU seconds of this program, the clock's and the checks' share included, and of all commands that it has run."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def describe_machine() -> dict[str, Any]:
    """What the figures were measured on."""
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20)
    return {
        "cpus": os.cpu_count(),
        "cpu": cpu,
        "memory_mib": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "lab_machines": f"systemd-nspawn, Debian {lab_image.SUITE}",
    }


def describe_code() -> str:
    """The checkout's commit, with a mark where it was edited since."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def race(runs: int, contenders: list[str], out: Path, tell: Callable[[str], None] = print) -> dict[str, Any]:
    """All rounds; the document is written anew after each run, so that a cut race keeps what it has."""
    kubernetes = load_lock().kubernetes_versions[0]
    tell(f"race: preparing Kubernetes {kubernetes}: binaries and images")
    goods = materials.prepare(kubernetes)
    document: dict[str, Any] = {
        "time": _now(),
        "machine": describe_machine(),
        "code": describe_code(),
        "versions": dict(goods.versions),
        "architecture": architecture(),
        "shape": {"control_planes": CONTROL_PLANES, "workers": WORKERS},
        "runs_each": runs,
        "runs": [],
    }
    # from the page cache for everyone, the first run included
    for path in (goods.kubeadm, *goods.images.values(), *(file.path for file in goods.files.values())):
        path.read_bytes()
    with tempfile.TemporaryDirectory(prefix="race-") as directory:
        for number in range(runs):
            # who goes first changes from round to round
            order = contenders if number % 2 == 0 else contenders[::-1]
            for contender in order:
                result = {"round": number + 1, **one_run(contender, goods, Path(directory))}
                document["runs"].append(result)
                out.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(out, json.dumps(document, indent=1) + "\n", mode=0o644)
                ready, verified = result["milestones"].get("all_ready_s"), result.get("verified_s")
                tell(
                    f"race: round {number + 1} of {runs}: {contender:15} all Ready {ready} s, verified {verified} s"
                    f" (load before {result['load_before']})"
                    + (f"\n  FAILED: {result['error'][-2000:]}" if result["error"] else "")
                )
    return document


def main() -> None:
    """The race from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--contender", action="append", choices=CONTENDERS, help="default: all")
    parser.add_argument("--out", type=Path, default=ROOT / f"bench/results/race-{dt.datetime.now(dt.UTC):%Y-%m-%d}.json")
    options = parser.parse_args()
    document = race(options.runs, options.contender or list(CONTENDERS), options.out)
    print(f"race: raw figures in {options.out}")
    print(summary.race_table(document))
    if any(run["error"] for run in document["runs"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
