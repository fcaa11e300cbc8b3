"""What runs on a machine, for the page's versions: one script, fed to its Python on stdin, that prints one JSON line.

It changes nothing, and stands alone: standard library only, Python 3.9, no import of this package. ``versions`` sends this
file's own text, with a last line that calls ``report``.
"""

# ruff: noqa: B905, PTH123

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

SECONDS = 10
_VERSION = re.compile(r"\bv?(\d+\.\d+(?:\.\d+)?[0-9A-Za-z.+~-]*)")


def said(arguments: list[str]) -> str:
    """What a command prints, on either stream."""
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", timeout=SECONDS, check=False)
    return done.stdout + done.stderr


def version_of(unit: str, flag: str) -> dict[str, str]:
    """The version of the program that a unit's main process *is*, which need not be the file's: that may be newer already."""
    try:
        pid = said(["systemctl", "show", "--property=MainPID", "--value", unit]).strip()
        if pid in ("", "0"):
            return {"error": "does not run"}
        text = said([f"/proc/{pid}/exe", flag])
    except (OSError, subprocess.SubprocessError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    found = _VERSION.search(text)
    return {"version": found.group(1)} if found else {"error": f"does not tell: {text[:80]!r}"}


def distribution() -> str:
    """PRETTY_NAME of os-release(5)."""
    try:
        with open("/etc/os-release", encoding="utf-8", errors="replace") as file:
            lines = dict(line.rstrip("\n").split("=", 1) for line in file if "=" in line)
    except OSError:
        return ""
    return lines.get("PRETTY_NAME", "").strip("\"'")


def report(questions: dict[str, Any]) -> None:
    """Print the answers: a unit's name to the flag that makes its program tell its version."""
    units = list(questions["units"].items())
    with ThreadPoolExecutor(max_workers=4) as pool:
        answers = dict(zip((name for name, _ in units), pool.map(lambda one: version_of(*one), units)))
    answer = {"versions": answers, "os": distribution(), "kernel": platform.release(), "arch": platform.machine()}
    sys.stdout.write(json.dumps(answer) + "\n")
