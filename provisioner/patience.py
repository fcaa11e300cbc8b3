"""How much longer than usual to wait: for machines that are emulated in software, or share their processors with too many others.

One factor for every deadline of the program, from the environment: it belongs to where machines run, not to what the cluster is.
Deadlines are multiplied where they are kept and nowhere above, so that none is multiplied twice: in ``wait_until``, in connections
and requests, in a role's gate. Pauses between two looks stay as they are.
"""

from __future__ import annotations

import os
from functools import cache

from provisioner.errors import BadInput

VARIABLE = "PROVISIONER_PATIENCE"
LARGEST = 100


@cache
def factor() -> float:
    """What deadlines are multiplied by: 1 unless the environment says otherwise.

    Raises:
        BadInput: the variable is no number from 1 to 100.
    """
    text = os.environ.get(VARIABLE, "").strip() or "1"
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1 <= value <= LARGEST:
        raise BadInput(f"{VARIABLE} is {text!r}", hint=f"a number from 1 to {LARGEST}: how many times longer to wait; or unset it")
    return value


def stretch(seconds: float) -> float:
    """A deadline in seconds, as patience has it."""
    return seconds * factor()
