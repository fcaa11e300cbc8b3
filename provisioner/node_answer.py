"""One script on a machine's own Python, and its answer of one JSON line. Nothing is left there."""

from __future__ import annotations

import json
from typing import Any

from provisioner.config import Node
from provisioner.errors import ProvisionerError
from provisioner.ssh import Connections


def ask(connections: Connections, node: Node, script: bytes, *, key: str, seconds: float) -> dict[str, Any]:
    """Run it, isolated, without site packages and byte code.

    Args:
        script: prints one JSON object on a line of its own.
        key: the object's first key.
        seconds: how long it may take.

    Raises:
        ProvisionerError: the machine cannot be reached, or cannot run the script.
    """
    done = connections.run(node, "exec python3 -IBS -", stdin=script, timeout=seconds)
    # a login shell may print its own lines around ours
    lines = [line for line in done.stdout.splitlines() if line.startswith(f'{{"{key}":'.encode())]
    if done.code != 0 or not lines:
        raise ProvisionerError(
            f"{node.name}: its Python cannot run the look (exit code {done.code}): {done.complaint[-200:]}",
            hint="`provisioner preflight` says what the machine lacks",
        )
    found: dict[str, Any] = json.loads(lines[-1])
    return found
