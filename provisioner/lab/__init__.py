"""Local machines for clusters: any number of Debian 12 systems in systemd-nspawn, on a network of their own.

``lab.py`` has up and down, ``handle.py`` status and the handle on one machine; ``spec.py`` the names and addresses, ``state.py``
what is written down before anything is made, ``image.py`` (with ``apt.py``) the base image, ``nspawn.py`` (with ``launch.py``) one
machine's disk and boot; ``network.py``, ``cgroups.py``, ``keys.py``, ``host.py`` and
``clusterfile.py`` are what they say; ``load.py`` brings images of the user's own.
"""

from provisioner.lab.handle import Handle, LabStatus, MachineStatus, ssh_command, status
from provisioner.lab.handle import handle as machine
from provisioner.lab.lab import doomed, down, get, names, up
from provisioner.lab.load import load_images
from provisioner.lab.spec import Lab, Machine, Shape

__all__ = [
    "Handle",
    "Lab",
    "LabStatus",
    "Machine",
    "MachineStatus",
    "Shape",
    "doomed",
    "down",
    "get",
    "load_images",
    "machine",
    "names",
    "ssh_command",
    "status",
    "up",
]
