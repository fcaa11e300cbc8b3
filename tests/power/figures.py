"""The drill's result: a table for people, a JSON document for bench/results."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.power.machines import Hardware

# figure -> what it says
ROWS = {
    "times_slower": "machines slower than the controller, times",
    "boot_s": "boot of all machines, until SSH answers, s",
    "apply_s": "`apply`, s",
    "cut_ms": "power cut: first SIGKILL to the last process gone, ms",
    "power_on_to_api_s": "power on, until the API answers, s",
    "power_on_to_ready_s": "power on, until every Node is Ready, s",
    "whole_s": "the whole drill, s",
}


def document(hardware: Hardware, shape: str, figures: Mapping[str, Any], failure: str) -> dict[str, Any]:
    """The whole result as plain values.

    Args:
        hardware: of each machine.
        shape: the machines in words.
        figures: of the drill, as far as it came.
        failure: why it failed; empty when it did not.
    """
    return {
        "drill": "power-cut",
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "controller": {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()},
        "machines": {
            "shape": shape,
            "accelerator": hardware.accelerator,
            "cpus": hardware.cpus,
            "memory_mib": hardware.memory_mib,
            "disk_cache": str(hardware.cache),
        },
        "passed": not failure,
        "failure": failure,
        "figures": dict(figures),
    }


def table(made: Mapping[str, Any]) -> Iterator[str]:
    """The lines of the table."""
    figures = made["figures"]
    yield f"power cut: {made['machines']['shape']}, QEMU {made['machines']['accelerator']}"
    for name, title in ROWS.items():
        if name in figures:
            yield f"  {title:58} {figures[name]:>10}"
    for name, title in (("verify_before", "`verify` before the cut"), ("verify_after", "`verify` after it")):
        if name in figures:
            runs = figures[name]["runs"]
            yield f"  {title + ': runs until it passed, and s':58} {len(runs):>4}  {figures[name]['seconds']:>4}"
    if "writes" in figures:
        writes = figures["writes"]
        yield f"  {'acknowledged writes, and to how many objects':58} {writes['acknowledged']:>4}  {writes['objects']:>4}"
        yield f"  {'sent, and never answered':58} {writes['sent_without_answer']:>10}"
    if "read_back" in figures:
        yield f"  {'acknowledged writes lost':58} {len(figures['read_back']['lost']):>10}"
        yield f"  {'never answered, and stored all the same':58} {figures['read_back']['unacknowledged_but_kept']:>10}"
    yield "passed" if made["passed"] else f"FAILED: {made['failure']}"


def save(made: Mapping[str, Any], directory: Path) -> Path:
    """Write the document as ``power-cut-DATE.json`` and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"power-cut-{made['time'][:16].replace(':', '')}.json"
    path.write_text(json.dumps(made, indent=1) + "\n")
    return path
