"""Waits for the end of a run of pytest, and takes down what it has left: python -m provisioner.testing.guard OWNER LAB.

A run that ends by itself, fails, or is stopped by Ctrl-C has left nothing. One that got SIGKILL or SIGTERM could not help it.
"""

from __future__ import annotations

import os
import sys

from provisioner.testing.process import Process
from provisioner.testing.site import Site, Unavailable


def main(owner: str, lab: str) -> int:
    """Go into the background, wait, tidy up. The exit code is nobody's but the log's."""
    # the run waits for this process and not for the one that stays
    if os.fork():
        return 0
    # whoever reads what the run prints is not to wait for this process
    os.chdir("/")
    watched = Process.from_text(owner)
    watched.wait()
    try:
        Site(lab).release(watched, lambda text: print(text, flush=True))
    except Unavailable as error:
        print(error, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
