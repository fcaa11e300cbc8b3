"""The cluster.yaml of a lab."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import yaml

from provisioner.config import API_VERSION
from provisioner.errors import BadInput
from provisioner.lab.spec import POOL, Lab, Shape

NAME = "cluster.yaml"


def render(lab: Lab, key: str, kubernetes: str | None = None) -> str:
    """The file's text.

    Args:
        lab: the lab.
        key: name of the private key file, beside cluster.yaml.
        kubernetes: its version; None leaves it to the default.
    """
    version = f"\nkubernetes:\n  version: {kubernetes}\n" if kubernetes else ""
    head = f"""\
# Written by `provisioner lab up --name {lab.name}` ({lab.shape}); `provisioner lab down` removes it unless you edit it.
# The machines' host keys are in known_hosts beside this file: nothing is trusted on first use.
apiVersion: {API_VERSION}
name: {lab.name}

ssh:
  user: root
  key: {key}
  hostKeys: strict
{version}
nodes:
"""
    entries = [
        f"  - name: {machine.name}\n    address: {machine.address}\n    roles: [{', '.join(machine.roles)}]\n"
        for machine in lab.machines
        if machine.roles
    ]
    spares = [
        f"  # {machine.name}, {machine.address}: a spare machine, ready to be added\n"
        for machine in lab.machines
        if not machine.roles
    ]
    return head + "".join(entries) + "".join(spares)


def network_of(path: Path, name: str, shape: Shape) -> IPv4Network:
    """The network that a kept or edited cluster.yaml of an earlier lab names, so that a new lab can take its place.

    Raises:
        BadInput: the file is not one for this lab.
    """
    foreign = BadInput(
        f"{path} exists, and is not the cluster.yaml of a lab {name} with {shape}",
        hint="use another --name or other numbers, or move that file away",
    )
    try:
        document = yaml.safe_load(path.read_text())
        nodes = [(node["name"], str(node["address"])) for node in document["nodes"]]
        network = IPv4Network(f"{nodes[0][1]}/24", strict=False)
        expected = [(one.name, str(one.address)) for one in shape.machines(network) if one.roles]
        same = document["name"] == name and nodes == expected and network.subnet_of(POOL)
    except (OSError, ValueError, KeyError, IndexError, TypeError, yaml.YAMLError):
        raise foreign from None
    if not same:
        raise foreign
    return network
