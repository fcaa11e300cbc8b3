"""What must hold on the controller after the last `apply`: nothing of a killed run is left. Returns what does not."""

from __future__ import annotations

import json
import os

from provisioner.errors import WaitTimeout
from provisioner.wait import NotYet, wait_until
from tests.e2e.kills.site import Site

# A process that has just been told to end.
ENDED_WITHIN = 3.0


def violations(site: Site) -> list[str]:
    """Files, directories and processes of runs that are over, and what the workspace knows of machines."""
    root = site.real.workspace.root
    found = [f"left in the workspace: {path.relative_to(root)}" for path in sorted(root.rglob(".*")) if path.name != ".lock"]
    found += [f"left in the workspace: {path.relative_to(root)}" for path in sorted(root.glob("rendered/*.aside"))]
    found += [f"left in the workspace: {name}" for name in ("bundles", "sockets") if os.path.lexists(root / name)]
    # Ansible's own temporary files; and the runner's record of the environment, in which a password may be
    for pattern in ("logs/*/tmp/*", "logs/*/ansible/*/command", "ansible/tmp/*", "ansible/cp/*"):
        found += [f"left in the workspace: {path.relative_to(root)}" for path in sorted(root.glob(pattern))]
    found += [f"left in the directory of temporary files: {path.name}" for path in sorted(site.temporary.iterdir())]
    found += [f"a process is left: {pid} {line}" for pid, line in _processes(site).items()]
    wanted = set(site.layout.machines)
    known = {entry["name"] for entry in json.loads((root / "machines.json").read_text())["machines"]}
    if known != wanted:
        found.append(f"machines.json has {sorted(known)}, cluster.yaml {sorted(wanted)}")
    certificates = {path.stem for path in (root / "pki" / "nodes").glob("*.pem")}
    if certificates != wanted:
        found.append(f"pki/nodes has {sorted(certificates)}, cluster.yaml {sorted(wanted)}")
    rendered = {path.name.split(".")[0] for path in (root / "rendered").glob("*.json")}
    if rendered != wanted:
        found.append(f"rendered/ has {sorted(rendered)}, cluster.yaml {sorted(wanted)}")
    return found


def _processes(site: Site) -> dict[int, str]:
    def none() -> dict[int, str]:
        if found := site.processes():
            raise NotYet(str(found))
        return {}

    try:
        return wait_until("no process is left", none, seconds=ENDED_WITHIN)
    except WaitTimeout:
        return site.processes()
