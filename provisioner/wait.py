"""The only retry loop of the program."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from provisioner.errors import WaitTimeout
from provisioner.patience import stretch

T = TypeVar("T")


class NotYet(Exception):  # noqa: N818 - control flow of wait_until, never shown to a user as such
    """Raised by a probe: the state waited for is not there yet; the text is the observed state."""


def wait_until(
    what: str,
    probe: Callable[[], T],
    *,
    seconds: float,
    every: float = 0.2,
    hint: str = "",
    retry_on: tuple[type[Exception], ...] = (),
) -> T:
    """Call ``probe`` until it returns without raising :class:`NotYet` (or one of ``retry_on``), and return its value.

    Args:
        what: what is waited for, for the error message ("every node Ready").
        probe: returns the value, or raises ``NotYet("last observed state")``.
        seconds: the deadline, counted from now; ``patience`` may put it off.
        every: pause between two probes, in seconds.
        hint: remedy printed when the deadline passes.
        retry_on: further exceptions that mean "not yet" (a refused connection, say).

    Raises:
        WaitTimeout: the deadline passed; carries the last observed state.
    """
    seconds = stretch(seconds)
    waiting: tuple[type[Exception], ...] = (NotYet, *retry_on)
    deadline = time.monotonic() + seconds
    while True:
        try:
            return probe()
        except waiting as error:
            observed = str(error) or type(error).__name__
        if time.monotonic() + every > deadline:
            raise WaitTimeout(f"{what}: not reached within {seconds:g} s; last seen: {observed}", hint=hint)
        time.sleep(every)
