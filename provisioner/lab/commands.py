"""How the lab runs the system's tools: one function, argument lists only, errors that say what the tool said."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from provisioner.errors import LabError


def run(argv: Sequence[str], *, stdin: str = "", timeout: float = 60, check: bool = True) -> str:
    """Run a tool and return its standard output.

    Args:
        argv: the command, never a shell string.
        stdin: text fed to it.
        timeout: seconds after which it is killed.
        check: raise when its exit code is not 0; without it the output is returned as it is.

    Raises:
        LabError: the tool is missing, failed, or took too long.
    """
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError:
        raise LabError(f"{argv[0]}: command not found", hint=f"install the package that brings `{argv[0]}`") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"`{' '.join(argv)}` did not end within {timeout:g} s") from None
    if check and done.returncode != 0:
        said = tuple((done.stderr.strip() or done.stdout.strip()).splitlines()[-10:])
        raise LabError(f"`{' '.join(argv)}` failed with exit code {done.returncode}", details=said)
    return done.stdout
