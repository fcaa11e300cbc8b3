"""One round trip to a machine: its proxy's view of the apiservers, whether it holds the virtual address, its clock."""

from __future__ import annotations

import csv
import io
import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from provisioner import node_answer
from provisioner.config import Cluster, Node, Role
from provisioner.ssh import Connections
from provisioner.status import node_script
from provisioner.status.model import Backend, Backups, Proxy

ADMIN_SOCKET = "/run/provisioner-api-proxy/admin.sock"
# Backend whose servers are health-checked; their connections may also go through others (see api-proxy.cfg).
CHECKED = "apiservers"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a machine said. ``proxy`` is None where it runs none, ``vip`` where it was not asked or could not tell.

    ``hostname`` is the kernel's, by which the holders of leases call themselves; it need not be the Node's name. ``backups`` is
    None where it takes none by itself.
    """

    proxy: Proxy | None
    vip: bool | None
    clock_skew: float
    hostname: str = ""
    backups: Backups | None = None


def vip_of(cluster: Cluster) -> str | None:
    """The address that the control planes hold in turn, if there is one."""
    endpoint = cluster.control_plane_endpoint
    return endpoint.host if endpoint is not None and endpoint.vip is not None else None


def ask(cluster: Cluster, node: Node, connections: Connections, *, seconds: float) -> Answer:
    """Ask one machine.

    Raises:
        ProvisionerError: it cannot be reached, or cannot run the script.
    """
    sent = time.time()
    own = cluster.backups.directory if node.has(Role.ETCD) and cluster.backups.schedule is not None else ""
    text = script(ADMIN_SOCKET if node.is_kubernetes_node else "", vip_of(cluster) or "", own, cluster.name)
    answer = node_answer.ask(connections, node, text, key="status", seconds=seconds)
    received = time.time()
    proxy = None
    if node.is_kubernetes_node:
        text, error = answer.get("haproxy", ""), answer.get("haproxy_error", "")
        proxy = Proxy(node.name, backends(text), error or ("" if text else "HAProxy said nothing"))
    backups = Backups(node.name, **answer["backups"]) if "backups" in answer else None
    return Answer(proxy, answer.get("vip"), answer["clock"] - (sent + received) / 2, answer["hostname"], backups)


@cache
def script(haproxy: str, vip: str, backups: str = "", cluster: str = "") -> bytes:
    """The script's text with its questions."""
    questions = json.dumps({"haproxy": haproxy, "vip": vip, "backups": backups, "cluster": cluster})
    return f"{Path(node_script.__file__).read_text(encoding='utf-8')}\nreport(json.loads({questions!r}))\n".encode()


def backends(text: str) -> tuple[Backend, ...]:
    """The apiservers in HAProxy's `show stat`, in its order: https://docs.haproxy.org/2.6/management.html#9.1

    A server is in several backends of the same HAProxy; its state is that of the one with health checks, its sessions
    are those of all.
    """
    rows = list(csv.DictReader(io.StringIO(text.removeprefix("# "))))
    servers = [row for row in rows if row.get("svname") not in (None, "FRONTEND", "BACKEND")]
    return tuple(
        Backend(
            name=row["svname"],
            # "UP 1/2" is up and about to go down, "no check" is taken for up by HAProxy too
            up=row["status"].startswith(("UP", "no check")),
            state=row["status"],
            sessions=sum(int(other["scur"] or 0) for other in servers if other["svname"] == row["svname"]),
            check=" ".join(part for part in (row.get("check_status", ""), row.get("last_chk", "")) if part),
        )
        for row in servers
        if row["pxname"] == CHECKED
    )
