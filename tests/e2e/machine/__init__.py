"""What a machine is, in a form that can be compared: taken before and after, the two must be equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Snapshot = dict[str, dict[str, Any]]

SCRIPT = Path(__file__).with_name("snapshot.py")


def parse(text: str) -> Snapshot:
    """What the script printed."""
    found: Snapshot = json.loads(text)
    return found


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """Every difference between two looks at one machine, in words."""
    lines = []
    for part in sorted(before.keys() | after.keys()):
        old, new = before.get(part, {}), after.get(part, {})
        lines += [f"{part}: gone: {key}" for key in sorted(old.keys() - new.keys())]
        lines += [f"{part}: new: {key} ({new[key]})" for key in sorted(new.keys() - old.keys())]
        lines += [f"{part}: {key}: {old[key]} -> {new[key]}" for key in sorted(old.keys() & new.keys()) if old[key] != new[key]]
    return lines
