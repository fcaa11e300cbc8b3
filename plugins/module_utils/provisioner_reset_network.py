# Apache-2.0 (see LICENSE)
"""What of ours is in a node's network: namespaces, interfaces, routes, addresses."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re

from ansible.module_utils.provisioner_before import mount_points, read_lines

NAMESPACES = "/run/netns"


# -- namespaces -------------------------------------------------------------------------------------------------------------------


def find_namespaces(machine):
    """The namespaces of our pods. containerd names them cni-UUID, and so do podman and others: the name proves nothing."""
    known = machine.was("directories").get(NAMESPACES, {}).get("entries", ())
    try:
        names = [name for name in sorted(os.listdir(NAMESPACES)) if name.startswith("cni-") and name not in known]
    except OSError:
        return []
    for name in names:
        if not machine.pods.has_namespace(name):
            machine.note("the network namespace %s is not proved to be one of our pods', and stays" % name)
    return [os.path.join(NAMESPACES, name) for name in names if machine.pods.has_namespace(name)]


def remove_namespaces(machine, items):
    """Unmount, then remove the name; with the last process of a pod gone, the kernel takes its network down."""
    for path in items:
        for _ in range(mount_points().count(path)):
            machine.run("umount", "--no-canonicalize", "--", path)
        try:
            os.unlink(path)
        except OSError as error:
            machine.failed(path, error.strerror)


# -- interfaces, routes, addresses ------------------------------------------------------------------------------------------------


def _names():
    return {line.partition(":")[0].strip() for line in read_lines("/proc/net/dev") if ":" in line}


def find_interfaces(machine):
    """The bridge, what is plugged into it, and the tunnel."""
    names = [name for name in machine.footprint["interfaces"] if name in _names() and machine.has_pods]
    for name in list(names):
        if name in machine.was("interfaces"):
            machine.note("the interface %s was there before us, and stays" % name)
            names.remove(name)
    ports = []
    if names and names[0] == machine.footprint["interfaces"][0]:
        _, text, _ = machine.run("ip", "-o", "link", "show", "master", names[0])
        ports = re.findall(r"^\d+: ([^@:\s]+)", text, re.MULTILINE)
    return [*(port for port in ports if port.startswith("veth")), *names]


def remove_interfaces(machine, items):
    """Pods' ends go with their namespaces, which may take a moment: one that has gone meanwhile is no failure."""
    for name in items:
        code, _, complaint = machine.run("ip", "link", "delete", "dev", name)
        if code and name in _names():
            machine.failed(name, complaint)


def find_routes(machine):
    """Routes to the pods of other machines (host-gw; those of a tunnel go with its interface)."""
    if not machine.footprint["pod_cidr"] or not machine.has_pods:
        return []
    pods = ipaddress.ip_network(machine.footprint["pod_cidr"])
    _, text, _ = machine.run("ip", "-%d" % pods.version, "route", "show", "root", str(pods))
    found = []
    for line in text.splitlines():
        match = re.match(r"(\S+) via (\S+) dev (\S+)", line)
        if match:
            with contextlib.suppress(ValueError):
                network = ipaddress.ip_network(match[1])
                if network.prefixlen > pods.prefixlen and network.subnet_of(pods):
                    found.append("%s via %s dev %s" % match.groups())
    return found


def remove_routes(machine, items):
    """One by one."""
    for item in items:
        code, _, complaint = machine.run("ip", "route", "delete", *item.split())
        if code:
            machine.failed(item, complaint)


def find_addresses(machine):
    """A virtual address that a killed keepalived has left behind."""
    found = []
    for address in machine.footprint["addresses"]:
        _, text, _ = machine.run("ip", "-o", "-4", "addr", "show")
        found += [
            "%s/32 dev %s" % (address, name) for name in re.findall(r"^\d+: (\S+)\s+inet %s/32 " % re.escape(address), text, re.M)
        ]
    return found


def remove_addresses(machine, items):
    """One by one."""
    for item in items:
        code, _, complaint = machine.run("ip", "addr", "delete", *item.split())
        if code:
            machine.failed(item, complaint)
