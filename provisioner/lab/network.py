"""The network of a lab: a bridge in a network namespace of its own, one namespace per machine, one interface on the host.

Machines' ports on the bridge live in the switch's namespace and carry the machines' names, so a host's firewall, bridge filter and
forwarding never see traffic between machines, names cannot clash, and cutting a machine's cable is one ``ip link set``. Deleting
the namespaces deletes everything in them. The gateway is the switch itself, which has no route out: what a machine sends to
the outside is refused at once, also where the host forwards packets.
"""

from __future__ import annotations

import contextlib
import json
from ipaddress import IPv4Network
from pathlib import Path

from provisioner.errors import LabError
from provisioner.lab.commands import run
from provisioner.lab.spec import Lab, Machine

BRIDGE = "br0"
# the interface's name inside every machine
INTERFACE = "eth0"
UPLINK = "host"
NETNS = Path("/run/netns")


def host_networks() -> tuple[IPv4Network, ...]:
    """IPv4 networks that the host has addresses in or routes to (without its default route)."""
    found: list[IPv4Network] = []
    for interface in json.loads(run(["ip", "-j", "-4", "address", "show"]) or "[]"):
        for address in interface.get("addr_info", ()):
            found.append(IPv4Network(f"{address['local']}/{address['prefixlen']}", strict=False))
    for route in json.loads(run(["ip", "-j", "-4", "route", "show"]) or "[]"):
        # "unreachable" and the like have dst too; "default" is no network
        with contextlib.suppress(ValueError):
            found.append(IPv4Network(route.get("dst", "default"), strict=False))
    return tuple(found)


def _batch(namespace: str, *lines: str) -> None:
    run(["ip", "-n", namespace, "-batch", "-"], stdin="".join(f"{line}\n" for line in lines))


def _links(namespace: str) -> dict[str, bool]:
    """Interfaces of a namespace: name -> whether it is administratively up."""
    shown = json.loads(run(["ip", "-n", namespace, "-j", "link", "show"]) or "[]")
    return {link["ifname"]: "UP" in link["flags"] for link in shown}


def _exists(namespace: str) -> bool:
    return (NETNS / namespace).exists()


def _delete_namespace(namespace: str) -> None:
    if _exists(namespace):
        run(["ip", "netns", "delete", namespace])


def _add_namespace(namespace: str) -> None:
    """Make a namespace, also over the remains of one: a crash between `touch` and `mount` leaves a plain file."""
    if _exists(namespace) and _is_mounted(namespace):
        return
    (NETNS / namespace).unlink(missing_ok=True)
    run(["ip", "netns", "add", namespace])


def _is_mounted(namespace: str) -> bool:
    path = str(NETNS / namespace)
    return any(line.split()[4] == path for line in Path("/proc/self/mountinfo").read_text().splitlines())


def create_switch(lab: Lab) -> None:
    """Make the lab's bridge and the host's interface in its network; what is there already stays.

    Raises:
        LabError: the host refuses (no CAP_NET_ADMIN, no bridge or veth in its kernel).
    """
    _add_namespace(lab.switch)
    links = _links(lab.switch)
    if BRIDGE not in links:
        _batch(lab.switch, f"link add {BRIDGE} type bridge forward_delay 0 stp_state 0")
    _batch(
        lab.switch,
        "link set lo up",
        f"address replace {lab.gateway}/24 dev {BRIDGE}",
        f"link set {BRIDGE} up",
    )
    # with forwarding on and nowhere to forward to, the kernel answers "network unreachable" instead of keeping silent
    run(["ip", "netns", "exec", lab.switch, "sysctl", "-qw", "net.ipv4.ip_forward=1"])
    if UPLINK not in links:
        run(["ip", "link", "delete", lab.link], check=False)
        run(["ip", "link", "add", lab.link, "type", "veth", "peer", "name", UPLINK, "netns", lab.switch])
    _batch(lab.switch, f"link set {UPLINK} master {BRIDGE} up")
    run(["ip", "address", "replace", f"{lab.host_address}/24", "dev", lab.link])
    run(["ip", "link", "set", lab.link, "up"])


def connect(lab: Lab, machine: Machine) -> None:
    """Give a machine a fresh network namespace with one interface: whatever an earlier boot left in it is gone.

    Raises:
        LabError: the host refuses.
    """
    disconnect(lab, machine)
    namespace = lab.resource(machine)
    _add_namespace(namespace)
    _batch(
        lab.switch, f"link add {machine.name} type veth peer name {INTERFACE} address {hardware_address(machine)} netns {namespace}"
    )
    _batch(lab.switch, f"link set {machine.name} master {BRIDGE} up")
    _batch(
        namespace,
        "link set lo up",
        f"address add {machine.address}/24 dev {INTERFACE}",
        f"link set {INTERFACE} up",
        f"route add default via {lab.gateway}",
    )


def hardware_address(machine: Machine) -> str:
    """The machine's MAC address: the same after every boot, or its neighbours would send to the old one for half a minute."""
    return ":".join(f"{byte:02x}" for byte in b"\x02\x01" + machine.address.packed)


def disconnect(lab: Lab, machine: Machine) -> None:
    """Delete a machine's interface and namespace; harmless when there are none."""
    if _exists(lab.switch) and _is_mounted(lab.switch) and machine.name in _links(lab.switch):
        # the port first: the kernel deletes a namespace some time after its last user, a link at once
        run(["ip", "-n", lab.switch, "link", "delete", machine.name], check=False)
    _delete_namespace(lab.resource(machine))


def delete_switch(lab: Lab) -> None:
    """Delete the bridge and the host's interface; harmless when there are none."""
    run(["ip", "link", "delete", lab.link], check=False)
    _delete_namespace(lab.switch)


def set_link(lab: Lab, machine: Machine, *, up: bool) -> None:
    """Plug or pull the machine's cable, at the switch's end: the machine itself sees its carrier go.

    Raises:
        LabError: the machine has no link (it was never started).
    """
    if not _exists(lab.switch) or machine.name not in _links(lab.switch):
        raise LabError(f"{machine.name} of lab {lab.name} has no link", hint=f"`provisioner lab up --name {lab.name}` starts it")
    run(["ip", "-n", lab.switch, "link", "set", machine.name, "up" if up else "down"])


def link_is_up(lab: Lab, machine: Machine) -> bool:
    """Whether the machine's cable is plugged."""
    return _exists(lab.switch) and _links(lab.switch).get(machine.name, False)
