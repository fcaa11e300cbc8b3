"""`make drill-vagrant`: exit 0 when a cluster came and went on machines of Vagrant's, 1 when not."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from provisioner.errors import ProvisionerError
from provisioner.lab import host as lab_host
from tests.power.drill import DrillFailed, take
from tests.vagrant import box
from tests.vagrant.drill import BIN, Drill, Settings, document
from tests.vagrant.host import Host

# one drill at a time
HOME = Path("/var/lib/provisioner/vagrant")
RESULTS = Path(__file__).parents[2] / "bench" / "results"
INTERRUPTED = "interrupted"
# figure -> what it says
ROWS = {
    "box_s": "the box out of Debian packages (0 where it was there), s",
    "vagrant_up_s": "`vagrant up`, s",
    "times_slower": "machines slower than the controller, times",
    "init_s": "`provisioner init --from-vagrant`, s",
    "apply_s": "`provisioner apply`, s",
    "apply_exit_codes": "  exit codes of its runs",
    "apply_again_s": "`provisioner apply` again: nothing to do, s",
    "reset_s": "`provisioner reset`, s",
    "vagrant_destroy_s": "`vagrant destroy`, s",
    "whole_s": "the whole drill without the box, s",
}


def main() -> int:
    """Run one drill and report it; the exit code."""
    options = _options()
    settings = Settings(options.control_planes, options.workers, options.cpus, options.memory, options.driver)
    signal.signal(signal.SIGTERM, _terminated)
    failure, drill = "", None
    box_seconds = 0.0
    try:
        lab_host.check_root()
        HOME.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (HOME / "lock").open("w") as lock:
            take(lock.fileno())
            began = dt.datetime.now(dt.UTC)
            made = box.ensure()
            box_seconds = round((dt.datetime.now(dt.UTC) - began).total_seconds(), 1)
            _fetch_artifacts()
            directory = HOME / "run"
            # what a killed drill has left: its processes died with it, its disks did not
            shutil.rmtree(directory, ignore_errors=True)
            directory.mkdir(mode=0o700)
            try:
                with Host(directory, nice=options.nice) as host:
                    drill = Drill(host, settings, made)
                    drill.figures["box_s"] = box_seconds
                    drill.run()
            finally:
                shutil.rmtree(directory)
    except (DrillFailed, ProvisionerError) as error:
        failure = "\n  ".join([str(error), *getattr(error, "details", ())])
    except KeyboardInterrupt:
        failure = INTERRUPTED
    figures = drill.figures if drill else {}
    for line in _table(figures, failure):
        print(line)
    if drill is not None and failure != INTERRUPTED:
        print(f"raw figures: {_save(document(settings, figures, failure), drill.log, options.results)}")
    return 1 if failure else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make drill-vagrant ARGS=…", description="A cluster on virtual machines of Vagrant's.")
    usual = Settings()
    parser.add_argument("--control-planes", type=int, default=usual.control_planes, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=usual.workers, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--cpus", type=int, default=usual.cpus, metavar="N", help="of each machine (default: %(default)s)")
    parser.add_argument(
        "--memory", type=int, default=usual.memory_mib, metavar="MIB", help="of each machine (default: %(default)s)"
    )
    parser.add_argument(
        "--driver", default=usual.driver, choices=("qemu", "kvm"), help="qemu: software emulation; kvm: hardware's (default: qemu)"
    )
    parser.add_argument("--nice", type=int, default=0, metavar="N", help="scheduling priority of all of it, 0 to 19 (default: 0)")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="where figures and log go (default: bench/results)"
    )
    return parser.parse_args()


def _fetch_artifacts() -> None:
    """Into the controller's cache, now: the drill's network leads nowhere."""
    cluster = HOME / "artifacts.yaml"
    cluster.write_text("name: vagrant\nnodes: [{name: cp-1, address: 192.0.2.1, roles: [control-plane, etcd, worker]}]\n")
    done = subprocess.run(
        [str(BIN / "provisioner"), "artifacts", "fetch", "--cluster", str(cluster)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DrillFailed(f"the artifacts cannot be had:\n{done.stderr}")


def _table(figures: Mapping[str, Any], failure: str) -> Iterator[str]:
    for name, title in ROWS.items():
        if name in figures:
            yield f"  {title:58} {figures[name]!s:>10}"
        if name == "apply_again_s" and "verify" in figures:
            runs = figures["verify"]
            yield f"  {'`provisioner verify`: runs, and s of the last':58} {len(runs):>4}  {runs[-1]['seconds']:>4}"
    yield f"FAILED: {failure}" if failure else "passed"


def _save(made: Mapping[str, Any], log: list[str], directory: Path) -> Path:
    """Write figures as ``vagrant-DATE.json`` and what was typed and printed as ``vagrant-DATE.log``."""
    directory.mkdir(parents=True, exist_ok=True)
    time = dt.datetime.now(dt.UTC)
    whole = {
        "time": time.isoformat(timespec="seconds"),
        "controller": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        **made,
    }
    path = directory / f"vagrant-{time:%Y-%m-%dT%H%M}.json"
    path.write_text(json.dumps(whole, indent=1) + "\n")
    path.with_suffix(".log").write_text("\n".join(log) + "\n")
    return path


def _terminated(_number: int, _frame: FrameType | None) -> None:
    # as Ctrl-C: machines and network are taken down on the way out
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
