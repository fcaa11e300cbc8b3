"""Rules about a virtual address of the API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address

from provisioner.problems import Path, Problem, error, quoted, warning
from provisioner.rules import syntax
from provisioner.rules.nodes import ip_of
from provisioner.rules.rule import Context
from provisioner.topology import APISERVER_PORT

_HOST: Path = ("controlPlaneEndpoint", "host")
# IFNAMSIZ of Linux, with its final zero byte; what keepalived's file would take for something else is no name either.
_INTERFACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,14}")


def vip_address(context: Context) -> Iterator[Problem]:
    """A virtual address is an IPv4 address, and no machine's own."""
    endpoint = context.cluster.control_plane_endpoint
    if endpoint is None or endpoint.vip is None:
        return
    address = syntax.ip(endpoint.host)
    if not isinstance(address, IPv4Address):
        what = "an IPv6 address" if address else "no IP address"
        yield error(_HOST, f"{quoted(endpoint.host)} is {what}; with `vip` it is an IPv4 address for the control planes")
        return
    for node in context.cluster.nodes:
        if address in {syntax.ip(node.address), ip_of(node)}:
            yield error(_HOST, f"{address} is the address of {node.name}; a virtual address is one that no machine has")


def vip_port(context: Context) -> Iterator[Problem]:
    """The port of a virtual address is the apiservers' own."""
    endpoint = context.cluster.control_plane_endpoint
    if endpoint and endpoint.vip and endpoint.port != APISERVER_PORT:
        yield error(
            ("controlPlaneEndpoint", "port"),
            f"{endpoint.port}: who calls a virtual address reaches its holder's apiserver, which listens on {APISERVER_PORT}",
        )


def vip_interface(context: Context) -> Iterator[Problem]:
    """interface is a name that Linux takes."""
    endpoint = context.cluster.control_plane_endpoint
    name = endpoint.vip.interface if endpoint and endpoint.vip else None
    if name is not None and not _INTERFACE.fullmatch(name):
        yield error(("controlPlaneEndpoint", "vip", "interface"), f"{quoted(name)} is no name of a network interface")


def vip_has_where_to_go(context: Context) -> Iterator[Problem]:
    """Warning where a single control plane holds a virtual address: it can move nowhere."""
    endpoint, planes = context.cluster.control_plane_endpoint, context.cluster.control_planes
    if endpoint and endpoint.vip and len(planes) == 1:
        yield warning(
            ("controlPlaneEndpoint", "vip"),
            f"{planes[0].name} is the only control plane: when it dies, the address has nowhere to go",
        )
