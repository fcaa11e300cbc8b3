"""`make drill-power-cut`: exit 0 when nothing was lost and everything came back, 1 when not."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from pathlib import Path
from types import FrameType

from provisioner.errors import ProvisionerError
from provisioner.lab import host
from provisioner.lab.spec import Shape
from tests.power import figures, image
from tests.power.drill import Drill, DrillFailed, Settings, take
from tests.power.machines import Cache, Hardware, Machines

# one drill at a time: its network has one name
HOME = Path("/var/lib/provisioner/power-cut")
INTERRUPTED = "interrupted"
RESULTS = Path(__file__).parents[2] / "bench" / "results"


def main() -> int:
    """Run one drill and report it; the exit code."""
    options = _options()
    shape = Shape(control_planes=options.control_planes, workers=options.workers, etcd_only=options.etcd_only)
    hardware = Hardware(options.accelerator, options.cpus, options.memory, Cache.LYING if options.lying_disks else Cache.HONEST)
    signal.signal(signal.SIGTERM, _terminated)
    failure = ""
    measured: dict[str, object] = {}
    try:
        host.check_root()
        shape.check()
        HOME.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (HOME / "lock").open("w") as lock:
            take(lock.fileno())
            made = image.ensure()
            directory = _clean_directory()
            try:
                with Machines(shape, hardware, made, directory) as machines:
                    drill = Drill(machines, Settings(options.write_seconds, options.writes, options.minutes * 60))
                    measured = drill.figures
                    drill.run()
            finally:
                if options.keep_logs:
                    _keep_logs(directory, options.keep_logs)
                shutil.rmtree(directory)
    except (DrillFailed, ProvisionerError) as error:
        failure = "\n  ".join([str(error), *getattr(error, "details", ())])
    except KeyboardInterrupt:
        failure = INTERRUPTED
    result = figures.document(hardware, str(shape), measured, failure)
    for line in figures.table(result):
        print(line)
    if measured and failure != INTERRUPTED:
        print(f"raw figures: {figures.save(result, options.results)}")
    return 1 if failure else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make drill-power-cut ARGS=…", description="A power cut on a cluster of virtual machines."
    )
    parser.add_argument("--control-planes", type=int, default=1, metavar="N", help="with an etcd member each (default: 1)")
    parser.add_argument(
        "--etcd-only", type=int, default=2, metavar="N", help="machines with a member and nothing else (default: 2)"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="without any, control planes take pods (default: 0)")
    parser.add_argument("--accelerator", default="tcg", choices=("tcg", "kvm"), help="of QEMU (default: tcg, software emulation)")
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="of each machine (default: 2)")
    parser.add_argument("--memory", type=int, default=2560, metavar="MIB", help="of each machine (default: 2560)")
    parser.add_argument("--write-seconds", type=float, default=30, metavar="S", help="before the cut, at least (default: 30)")
    parser.add_argument("--writes", type=int, default=100, metavar="N", help="acknowledged before the cut, at least (default: 100)")
    parser.add_argument("--minutes", type=float, default=60, metavar="M", help="deadline of the whole drill (default: 60)")
    parser.add_argument(
        "--lying-disks", action="store_true", help="disks that acknowledge flushes and do nothing: the drill must fail"
    )
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="where the figures go (default: bench/results)"
    )
    parser.add_argument("--keep-logs", type=Path, metavar="DIR", help="copy the machines' consoles there at the end")
    return parser.parse_args()


def _clean_directory() -> Path:
    """A fresh directory; one that a killed drill has left is removed: it holds disks of gigabytes."""
    directory = HOME / "run"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    return directory


def _keep_logs(directory: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for console in directory.glob("*.console"):
        shutil.copy(console, target)


def _terminated(_number: int, _frame: FrameType | None) -> None:
    # as Ctrl-C: machines and network are taken down on the way out
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
