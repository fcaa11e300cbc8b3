"""Images of the user's own on a lab's machines: these have no way out, so nothing can be pulled from a registry."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from threading import Event

from provisioner.config import Role
from provisioner.errors import BadInput, LabError
from provisioner.lab.handle import ssh_command
from provisioner.lab.lab import Progress, each, get, silent
from provisioner.lab.spec import Machine

# pinned, as the cluster's own images are: what cannot be pulled again must not be collected
_IMPORT = "/usr/local/bin/ctr --namespace k8s.io images import --label io.cri-containerd.pinned=pinned -"
IMPORT_SECONDS = 600.0


def load_images(name: str, archives: Sequence[Path], *, progress: Progress = silent) -> tuple[str, ...]:
    """Put image archives into the containerd of every machine of a lab that runs pods.

    Args:
        name: the lab.
        archives: what `docker save` or `podman save` wrote, or an OCI layout in a tar; not compressed.
        progress: is told what happens.

    Returns:
        The machines' names.

    Raises:
        BadInput: there is no such lab, or no such file.
        LabError: a machine does not take one; says what containerd says.
    """
    machines = tuple(one for one in get(name).machines if {Role.CONTROL_PLANE, Role.WORKER} & set(one.roles))
    for archive in archives:
        if not archive.is_file():
            raise BadInput(f"{archive}: no such file", hint="`docker save --output FILE IMAGE` writes one")
    for archive in archives:

        def load(one: Machine, archive: Path = archive) -> None:
            _import(name, one, archive)

        each(machines, load, Event())
        progress(f"lab {name}: {archive} loaded on {len(machines)} machine{'s' * (len(machines) != 1)}")
    return tuple(one.name for one in machines)


def _import(name: str, machine: Machine, archive: Path) -> None:
    argv = ssh_command(name, machine.name, [_IMPORT])
    try:
        with archive.open("rb") as file:
            done = subprocess.run(argv, stdin=file, capture_output=True, timeout=IMPORT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise LabError(f"{machine.name}: {archive} was not imported within {IMPORT_SECONDS:g} s") from None
    except OSError as error:
        raise LabError(f"{archive}: {error.strerror}", hint="an OpenSSH client is needed, and a file that can be read") from None
    if done.returncode != 0:
        raise LabError(
            f"{machine.name} did not take {archive}",
            hint="is it an archive of `docker save`, and has `provisioner apply` put containerd there yet?",
            details=tuple(done.stderr.decode(errors="replace").strip().splitlines()[-5:]),
        )
