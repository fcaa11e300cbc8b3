"""The picture of the cluster as it is: users' way in, control planes with etcd, the proxies, workers, the pods' network. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from provisioner import topology
from provisioner.config import Node, Role
from provisioner.pages.model import Page
from provisioner.pages.shapes import Mark, Path, Picture, Rect, Shape, Tone, Words, short, worst
from provisioner.report import Outcome
from provisioner.status.model import EtcdMember

WIDTH = 1120.0
GAP = 16.0
# Boxes of control planes and members of etcd in a row; workers in a row, and as small tiles where there are more than fit in two.
PLANES_IN_A_ROW = 4
WORKERS_IN_A_ROW = 5
TILES_IN_A_ROW = 10
PLANE_HEIGHT = 170.0
WORKER_HEIGHT = 100.0
TILE_HEIGHT = 46.0
BUS = 30.0
WAY = 26.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What is to be said of one machine, each thing with its tone."""

    node: Node
    reachable: Tone
    address: str
    kubelet: tuple[Tone, str]
    pods: tuple[Tone, str]
    proxy: tuple[Tone, str]
    apiserver: tuple[Tone, str] | None = None
    member: tuple[Tone, str] | None = None
    leads: str = ""
    holds_vip: bool = False
    etcd_leader: bool = False

    @property
    def tone(self) -> Tone:
        """The worst of it."""
        parts = [self.reachable, self.kubelet[0], self.pods[0], self.proxy[0]]
        parts += [part[0] for part in (self.apiserver, self.member) if part]
        return worst(*parts)

    @property
    def words(self) -> str:
        """All of it in one line, for those who point at it."""
        parts = [part[1] for part in (self.apiserver, self.member, self.kubelet, self.pods, self.proxy) if part and part[1]]
        return "; ".join([f"{self.node.name} ({self.address})", *parts, *([f"leads {self.leads}"] if self.leads else [])])


def facts_of(page: Page, node: Node) -> Facts:
    """One machine."""
    status = page.status
    machine = next(one for one in status.machines if one.name == node.name)
    dark = not machine.reachable
    if dark:
        reachable, address = Tone.BAD, f"{machine.address} does not answer"
    else:
        reachable, address = Tone.OK, machine.address
    member = next((one for one in status.etcd.members if one.name == node.name), None)
    server = next((one for one in status.apiservers if one.node == node.name), None)
    led = [lease.component.removeprefix("kube-") for lease in status.leases if lease.holder == node.name and not lease.expired]
    apiserver = None
    if server is not None:
        apiserver = (
            (Tone.OK, "API server ready")
            if server.ready
            else (Tone.BAD, "API server not ready" if not dark else "API server: no answer")
        )
    return Facts(
        node,
        reachable,
        address,
        kubelet=_kubelet(page, node),
        pods=_pods(page, node),
        proxy=_proxy(page, node),
        apiserver=apiserver,
        member=_member(member) if member else None,
        leads=", ".join(led),
        holds_vip=status.vip is not None and node.name in status.vip.holders,
        etcd_leader=bool(member and member.leader),
    )


def _member(member: EtcdMember) -> tuple[Tone, str]:
    if member.healthy:
        kind = "leader" if member.leader else "learner" if member.learner else "follower"
        tone = Tone.WARN if member.learner or member.alarms or member.listed is False else Tone.OK
        return tone, f"etcd {kind}, term {member.raft_term}" + (f", {', '.join(member.alarms)}" if member.alarms else "")
    return Tone.BAD, "etcd sees no leader" if member.raft_index is not None else "etcd: no answer"


def _kubelet(page: Page, node: Node) -> tuple[Tone, str]:
    if not node.is_kubernetes_node:
        return Tone.OK, ""
    found = next((one for one in page.status.nodes if one.name == node.name), None)
    if found is None or found.ready is None:
        return Tone.UNKNOWN, "Node: not known"
    if not found.ready:
        return Tone.BAD, "Node not Ready"
    return (Tone.WARN, "Node Ready, cordoned") if found.cordoned else (Tone.OK, "Node Ready")


def _pods(page: Page, node: Node) -> tuple[Tone, str]:
    if not node.is_kubernetes_node:
        return Tone.OK, ""
    pods = page.pods_on(node.name)
    if pods is None:
        return Tone.UNKNOWN, "pods: not known"
    ready = sum(pod.ready for pod in pods)
    count = f"{len(pods)} pod{'' if len(pods) == 1 else 's'}"
    return (Tone.OK, count) if ready == len(pods) else (Tone.WARN, f"{count}, {len(pods) - ready} not ready")


def _proxy(page: Page, node: Node) -> tuple[Tone, str]:
    if not node.is_kubernetes_node:
        return Tone.OK, ""
    found = next((one for one in page.status.proxies if one.node == node.name), None)
    if found is None:
        return Tone.UNKNOWN, "proxy: not known"
    if found.error:
        return Tone.BAD, "proxy: no answer"
    up = {backend.name for backend in found.backends if backend.up}
    ready = {server.node for server in page.status.apiservers if server.ready}
    # one that a dead API server is taken out of does what it is there for
    tone = Tone.BAD if not up else Tone.OK if ready <= up else Tone.WARN
    return tone, f"proxy {len(up)}/{len(page.cluster.control_planes)}"


def architecture(page: Page) -> Picture:
    """The whole picture."""
    facts = [facts_of(page, node) for node in page.cluster.nodes]
    upper = [one for one in facts if one.node.has(Role.CONTROL_PLANE) or one.node.has(Role.ETCD)]
    lower = [one for one in facts if one not in upper]
    shapes: list[Shape] = []
    y = 8.0
    shapes += _entrance(page, y)
    y += 44
    centres, bottom = _planes(upper, y + WAY, shapes)
    shapes += _ways_in(page, upper, centres, y)
    y = bottom + WAY
    # ways to the proxies first: they pass behind etcd's bus
    shapes += _proxy_bus(page, upper, centres, y + BUS + 12)
    shapes += _etcd_bus(page, upper, centres, y)
    y += BUS + 12
    y += BUS
    if lower:
        y = _workers(lower, y + WAY, shapes)
    shapes += _pod_network(page, y + WAY, y)
    y += WAY + BUS + 8
    wrong = [one.words for one in facts if one.tone is not Tone.OK]
    desc = f"{len(upper)} machines with control plane or etcd, {len(lower)} other nodes. " + (
        f"Not well: {'. '.join(wrong)}." if wrong else "All are well."
    )
    return Picture("architecture", f"Architecture of {page.cluster.name}", desc, WIDTH, y, tuple(shapes), "wide")


def _bus(y: float, tone: Tone, text: str, title: str = "", *, x: float = 0, width: float = WIDTH) -> Iterator[Shape]:
    yield Rect(x + 0.5, y, width - 1, BUS, f"bus t-{tone}", title or text, 6)
    yield Mark(x + 18, y + BUS / 2, tone.value)
    yield Words(x + 32, y + BUS / 2 + 4.5, text, "label")


def _way(x: float, top: float, bottom: float, tone: Tone, title: str) -> Iterator[Shape]:
    yield Path(f"M{x:g} {top:g}V{bottom:g}", f"way t-{tone}", title)
    if tone in (Tone.BAD, Tone.UNKNOWN):
        yield Mark(x, (top + bottom) / 2, tone.value, 12)


def _entrance(page: Page, y: float) -> Iterator[Shape]:
    vip, endpoint = page.status.vip, page.cluster.control_plane_endpoint
    ready = sum(server.ready for server in page.status.apiservers)
    tone = Tone.BAD if not ready else Tone.OK if ready == len(page.cluster.control_planes) else Tone.WARN
    if vip is not None:
        text = f"virtual address {vip.address}"
        note = f"held by {' and '.join(vip.holders)}" if vip.holders else "held by no machine that answers"
        tone = worst(tone, Tone.OK if len(vip.holders) == 1 else Tone.BAD)
    elif endpoint is not None:
        text, note = f"{endpoint.host}:{endpoint.port}", "the endpoint of cluster.yaml; whether it leads here is not asked"
    else:
        text, note = (
            f"{ready} of {len(page.cluster.control_planes)} API servers",
            "each serves users directly; there is no common endpoint",
        )
    width = 460.0
    x = (WIDTH - width) / 2
    yield Rect(x, y, width, 44, f"box entrance t-{tone}", f"{text}: {note}", 22)
    yield Mark(x + 24, y + 22, tone.value)
    yield Words(x + 42, y + 19, short(f"users, kubectl: {text}", 58), "name")
    yield Words(x + 42, y + 34, short(note, 68), "soft")


def _ways_in(page: Page, upper: list[Facts], centres: dict[str, tuple[float, float]], y: float) -> Iterator[Shape]:
    vip = page.status.vip
    bend = y + WAY / 2
    for one in upper:
        if one.apiserver is None:
            continue
        x, top = centres[one.node.name]
        used = vip is None or one.holds_vip
        tone = one.apiserver[0] if used else None
        title = f"{one.node.name}: {one.apiserver[1]}" + ("" if used else "; does not hold the virtual address")
        yield Path(f"M{WIDTH / 2:g} {y:g}V{bend:g}H{x:g}V{top:g}", f"way t-{tone}" if tone else "way idle", title)
        if tone is Tone.BAD:
            yield Mark(x, top - WAY / 4, "bad", 12)


def _planes(upper: list[Facts], y: float, shapes: list[Shape]) -> tuple[dict[str, tuple[float, float]], float]:
    """Draw them; returns each one's middle and top, and where the last row ends."""
    per_row = min(len(upper), PLANES_IN_A_ROW) if len(upper) != 5 else 5
    width = min((WIDTH - GAP * (per_row - 1)) / per_row, 340.0)
    centres: dict[str, tuple[float, float]] = {}
    bottom = y
    for index, one in enumerate(upper):
        row, column = divmod(index, per_row)
        in_row = min(per_row, len(upper) - row * per_row)
        left = (WIDTH - in_row * width - (in_row - 1) * GAP) / 2
        x, top = left + column * (width + GAP), y + row * (PLANE_HEIGHT + WAY)
        centres[one.node.name] = (x + width / 2, top)
        shapes += _plane(one, x, top, width)
        bottom = max(bottom, top + PLANE_HEIGHT)
    return centres, bottom


def _plane(one: Facts, x: float, y: float, width: float) -> Iterator[Shape]:
    letters = int((width - 44) / 7.6)
    yield Rect(x + 0.5, y, width - 1, PLANE_HEIGHT, f"box t-{one.tone}", one.words, 8)
    yield Mark(x + 20, y + 21, one.tone.value, 18)
    yield Words(x + 36, y + 26, short(one.node.name, letters), "name big")
    yield Words(x + 36, y + 42, short(one.address, int((width - 44) / 6.4)), "soft")
    yield Path(f"M{x + 12:g} {y + 53:g}H{x + width - 12:g}", "rule")
    node = (worst(one.kubelet[0], one.pods[0]), ", ".join(part for part in (one.kubelet[1], one.pods[1]) if part))
    lines = [
        one.apiserver,
        one.member,
        (Tone.OK, f"leads {one.leads}") if one.leads else None,
        node if node[1] else None,
        one.proxy if one.proxy[1] else None,
    ]
    at = y + 73
    for line in lines:
        if line is None:
            continue
        star = line is one.member and one.etcd_leader
        lead = line[1].startswith("leads ")
        yield Mark(x + 20, at - 4.5, "leader" if star or lead else line[0].value, 12)
        yield Words(x + 36, at, short(line[1], int((width - 44) / 6.6)), "label")
        at += 20
    if one.holds_vip:
        yield Words(x + width - 12, y + 42, "holds the address", "tag", "end")


def _etcd_bus(page: Page, upper: list[Facts], centres: dict[str, tuple[float, float]], y: float) -> Iterator[Shape]:
    etcd = page.status.etcd
    voters = [one for one in etcd.members if not one.learner and one.listed is not False]
    healthy = sum(one.healthy for one in voters)
    if etcd.quorum is None:
        tone, text = Tone.UNKNOWN if not etcd.members else Tone.BAD, "etcd: no member answers"
    elif not etcd.quorum:
        tone, text = Tone.BAD, f"etcd: no quorum, {healthy} of {len(voters)} members see a leader"
    else:
        tone = Tone.OK if healthy == len(voters) else Tone.WARN
        text = f"etcd: quorum, {healthy} of {len(voters)} members, leader {etcd.leader or 'not known'}"
    sizes = [one.db_mib for one in etcd.members if one.db_mib is not None]
    if sizes:
        text += f", {max(sizes):.0f} MiB"
    for one in upper:
        if one.member is not None:
            x, top = centres[one.node.name]
            yield from _way(x - 40, top + PLANE_HEIGHT, y, one.member[0], f"{one.node.name}: {one.member[1]}")
    yield from _bus(y, tone, text)


def _proxy_bus(page: Page, upper: list[Facts], centres: dict[str, tuple[float, float]], y: float) -> Iterator[Shape]:
    proxies = [proxy for proxy in page.status.proxies if not proxy.error]
    silent = len(page.cluster.kubernetes_nodes) - len(proxies)
    ways = sum(len(page.cluster.control_planes) for _ in proxies)
    up = sum(backend.up for proxy in proxies for backend in proxy.backends)
    tone = Tone.UNKNOWN if not proxies else Tone.OK if up >= ways and not silent else Tone.WARN
    text = f"API proxy on every node, 127.0.0.1:{topology.API_PROXY_PORT}: {up} of {ways} ways to API servers are up"
    if silent:
        text += f"; {silent} not known" if silent < len(page.cluster.kubernetes_nodes) else "; none is known"
    for one in upper:
        if one.apiserver is None:
            continue
        x, top = centres[one.node.name]
        seen = sum(backend.up for proxy in proxies for backend in proxy.backends if backend.name == one.node.name)
        way = Tone.UNKNOWN if not proxies else Tone.OK if seen == len(proxies) else Tone.BAD if not seen else Tone.WARN
        told = f"{seen} of {len(proxies)} proxies that answer have the API server of {one.node.name} up"
        yield from _way(x + 40, top + PLANE_HEIGHT, y, way, told)
        yield Words(x + 50, top + PLANE_HEIGHT + 17, f"{seen}/{len(proxies)}", "soft")
    yield from _bus(y, tone, text)


def _workers(lower: list[Facts], y: float, shapes: list[Shape]) -> float:
    """Draw them; returns where the last row ends."""
    small = len(lower) > 2 * WORKERS_IN_A_ROW
    per_row = TILES_IN_A_ROW if small else min(len(lower), WORKERS_IN_A_ROW)
    height, gap = (TILE_HEIGHT, 8.0) if small else (WORKER_HEIGHT, GAP)
    width = min((WIDTH - gap * (per_row - 1)) / per_row, 264.0)
    if small:
        tone = worst(*(one.proxy[0] for one in lower))
        shapes += _way(WIDTH / 2, y - WAY, y, tone, "the proxies of the nodes below")
    for index, one in enumerate(lower):
        row, column = divmod(index, per_row)
        in_row = per_row if small else min(per_row, len(lower) - row * per_row)
        left = (WIDTH - in_row * width - (in_row - 1) * gap) / 2
        x, top = left + column * (width + gap), y + row * (height + gap)
        if not small and row == 0:
            shapes += _way(x + width / 2, y - WAY, y, one.proxy[0], f"{one.node.name}: {one.proxy[1]}")
        shapes += (_tile if small else _worker)(one, x, top, width)
    return y + ((len(lower) - 1) // per_row + 1) * (height + gap) - gap


def _worker(one: Facts, x: float, y: float, width: float) -> Iterator[Shape]:
    yield Rect(x + 0.5, y, width - 1, WORKER_HEIGHT, f"box t-{one.tone}", one.words, 8)
    yield Mark(x + 20, y + 21, one.tone.value, 18)
    yield Words(x + 36, y + 26, short(one.node.name, int((width - 44) / 7.6)), "name big")
    yield Words(x + 36, y + 42, short(one.address, int((width - 44) / 6.4)), "soft")
    letters = int((width - 44) / 6.6)
    yield Path(f"M{x + 12:g} {y + 53:g}H{x + width - 12:g}", "rule")
    yield Mark(x + 20, y + 67.5, worst(one.kubelet[0], one.pods[0]).value, 12)
    yield Words(x + 36, y + 72, short(f"{one.kubelet[1]}, {one.pods[1]}", letters), "label")
    yield Mark(x + 20, y + 85.5, one.proxy[0].value, 12)
    yield Words(x + 36, y + 90, short(one.proxy[1], letters), "label")


def _tile(one: Facts, x: float, y: float, width: float) -> Iterator[Shape]:
    yield Rect(x + 0.5, y, width - 1, TILE_HEIGHT, f"box t-{one.tone}", one.words, 6)
    yield Mark(x + 14, y + 16, one.tone.value, 13)
    yield Words(x + 26, y + 20, short(one.node.name, int((width - 30) / 7)), "name")
    first = next((part[1] for part in (one.kubelet, one.pods) if part[0] is not Tone.OK), one.pods[1])
    if one.reachable is Tone.BAD:
        first = "does not answer"
    yield Words(x + 10, y + 37, short(first, int((width - 14) / 5.8)), "soft")


def _pod_network(page: Page, y: float, above: float) -> Iterator[Shape]:
    network = page.cluster.network
    kind = f"{network.plugin} {network.backend}" if network.plugin != "none" else "a network of your own"
    text = f"pods' network {network.pod_cidr}, {kind}"
    tone, note = ways_of_pods(page)
    yield from _way(WIDTH / 2, above, y, tone, note)
    yield from _bus(y, tone, f"{text}: {note}")


def ways_of_pods(page: Page) -> tuple[Tone, str]:
    """What the last `verify` says of the ways between the pods of every two nodes."""
    found = None if page.report is None else next((one for one in page.report.results if one.id == "pod-to-pod"), None)
    if found is None:
        return Tone.UNKNOWN, "not tried yet, `provisioner verify` does"
    if found.outcome is Outcome.BLOCKED:
        return Tone.UNKNOWN, "could not be tried by the last verify"
    if found.pairs is None:
        return (
            (Tone.OK, "every way worked at the last verify") if found.passed else (Tone.BAD, "the last verify found ways that fail")
        )
    number = max(1, len(found.pairs.nodes) * (len(found.pairs.nodes) - 1))
    failed = len(found.pairs.failed)
    at = f"{page.report.started:%Y-%m-%d %H:%M} UTC" if page.report else ""
    if failed:
        return Tone.BAD, f"{failed} of {number} ways between nodes failed at {at}"
    told = f"{number} of {number} ways between nodes worked at {at}"
    new = [node.name for node in page.cluster.kubernetes_nodes if node.name not in found.pairs.nodes]
    unwell = [name for name in found.pairs.nodes if _is_dark(page, name)]
    doubt = f", before {short(', '.join(new), 60)} came" if new else ""
    if unwell:
        doubt = f", but now {short(', '.join(unwell), 60)} {'does' if len(unwell) == 1 else 'do'} not answer"
    return Tone.UNKNOWN if doubt else Tone.OK, told + doubt


def _is_dark(page: Page, name: str) -> bool:
    """Whether a machine that was well does not answer, or its Node is not Ready."""
    machine = next((one for one in page.status.machines if one.name == name), None)
    node = next((one for one in page.status.nodes if one.name == name), None)
    return (machine is not None and not machine.reachable) or (node is not None and node.ready is False)
