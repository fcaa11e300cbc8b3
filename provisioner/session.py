"""From cluster.yaml and the machines to their desired state: facts, artifacts, PKI, rendering. Changes nothing on a machine."""

from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from provisioner import artifacts, pki, preflight, quarantine, registries, registry, topology
from provisioner.addons import table as addons
from provisioner.artifacts import Lock, bundle
from provisioner.artifacts.lock import Arch
from provisioner.backup import scheduled
from provisioner.cluster_api import ClusterApi
from provisioner.config import Cluster, Node, Role
from provisioner.desired import File, HostState, Shipment, save_host, save_shipment
from provisioner.display import Display, Work
from provisioner.errors import ProvisionerError
from provisioner.facts import HostFacts, gather
from provisioner.inventory import is_vital
from provisioner.kubeconfig import bootstrap, server_of
from provisioner.kubeconfig import render as render_kubeconfig
from provisioner.leaver import Leaver, Removal
from provisioner.pki import CLUSTER_CA, BootstrapToken, CaName, Pki
from provisioner.plan import Plan
from provisioner.render import CachedArtifact, HostContext, Image, MachineTraits, render_host
from provisioner.rules.outside import expand
from provisioner.ssh import Connections
from provisioner.workspace import Workspace, write_atomic

if TYPE_CHECKING:
    from provisioner.members import Join

# Images by the name of their archive on the nodes, and the lock's component they come from; those of addons come on top.
IMAGES = ("pause", "coredns", "agnhost")
ARCHES: tuple[Arch, ...] = ("amd64", "arm64")


@dataclass(frozen=True, slots=True)
class Session:
    """One run's inputs and what it has computed so far; each phase returns a new one.

    ``log`` is this run's own directory, ``sockets`` the one of SSH's control sockets. ``joining`` are machines that join the
    running etcd cluster; ``leaving`` those that are in cluster.yaml no more; ``set_aside`` those that do not answer or have
    failed, with the reason: the others go on without them. ``scope`` names the machines that this run is about; None for all.
    ``only_looks``: nothing at all may be written on a machine, not even what was learned of it. ``renew``: every certificate is
    issued anew, whatever time it has left. ``upgrading``: what runs may have another Kubernetes version than cluster.yaml says.
    ``holds``: kubelets and what is beside them keep their version, for an upgrade is under way.
    """

    cluster: Cluster
    workspace: Workspace
    connections: Connections
    lock: Lock
    display: Display
    log: Path
    sockets: str
    facts: Mapping[str, HostFacts] = field(default_factory=dict)
    pki: Pki | None = None
    cache: Mapping[str, Mapping[str, CachedArtifact]] = field(default_factory=dict)
    states: Mapping[str, HostState] = field(default_factory=dict)
    actual: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tokens: Mapping[str, BootstrapToken] = field(default_factory=dict)
    plan: Plan = field(default_factory=Plan)
    joining: tuple[Join, ...] = ()
    leaving: tuple[Leaver, ...] = ()
    removal: Removal = field(default_factory=Removal)
    set_aside: Mapping[str, ProvisionerError] = field(default_factory=dict)
    scope: frozenset[str] | None = None
    only_looks: bool = False
    renew: bool = False
    upgrading: bool = False
    holds: bool = False

    @property
    def command(self) -> str:
        """What goes on with this run."""
        return "provisioner upgrade" if self.upgrading else "provisioner apply"

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The machines of this run: those in its scope, without those that are set aside."""
        return tuple(node for node in self.cluster.nodes if self.concerns(node.name) and node.name not in self.set_aside)

    def concerns(self, name: str) -> bool:
        """Whether a machine is in the scope of this run."""
        return self.scope is None or name in self.scope

    def the_pki(self) -> Pki:
        """The PKI, which an earlier phase has made."""
        if self.pki is None:
            raise RuntimeError("the phase `pki` has not run")
        return self.pki

    def api(self, *, leaf: str = "admin") -> ClusterApi:
        """The cluster's API through whichever control plane answers; a context manager."""
        planes = [leaver.node for leaver in self.leaving if leaver.answers and leaver.node.has(Role.CONTROL_PLANE)]
        return ClusterApi(
            self.cluster, self.workspace, self.connections, self.the_pki(), leaf=leaf, last=self.set_aside, leaving=planes
        )


def look(session: Session) -> Session:
    """Facts of every machine in parallel, also of those that leave, and whether each is fit. Changes nothing.

    Raises:
        PreflightUnfit: with every machine's every problem and its remedy.
        BadInput: cluster.yaml gives a machine another name, or takes a role from one that stays.
    """
    known = {**{node.name: node for node in session.removal.unrecorded}, **registry.read(session.workspace)}
    gone = tuple(node for node in registry.left_out(session.cluster, known) if session.concerns(node.name))
    registry.refuse_lost_roles(session.cluster, known)
    facts, unreachable = gather(session.cluster, session.connections, nodes=(*session.nodes, *gone))
    cluster_id = preflight.cluster_id_of(session.workspace)
    leaving = tuple(Leaver.of(node, facts.get(node.name), cluster_id) for node in gone)
    # a run about single machines is one of a cluster that serves; its API is asked before anything is changed
    running = session.scope is not None or preflight.is_running((*session.cluster.etcd_members, *gone), facts, cluster_id)
    aside = {
        node.name: unreachable[node.name]
        for node in session.nodes
        # a cluster that runs goes on without a dead machine; a new one is not built without one of its control planes
        if node.name in unreachable and session.scope is None and (running or not is_vital(node))
    }
    refused = {node.name: unreachable[node.name] for node in session.nodes if node.name in unreachable.keys() - aside.keys()}
    problems = preflight.check(session.cluster, facts, refused, cluster_id=cluster_id, known=known)
    if running and session.scope is None:
        aside |= _unfit_workers(session, problems)
    preflight.require_fit([problem for problem in problems if problem.host not in aside])
    for name, error in aside.items():
        session.display.say(f"warning: {name} is set aside: {'; '.join((error.message, *error.details))}")
    for problem in problems:
        if problem.severity == "warning" and problem.host not in aside:
            session.display.say(f"warning: {problem.host}: {problem.message}")
    return replace(session, facts=facts, set_aside={**session.set_aside, **aside}, leaving=leaving)


def _unfit_workers(session: Session, problems: Iterable[preflight.Problem]) -> dict[str, ProvisionerError]:
    """Workers of a running cluster that are unfit: no reason to leave the others as they are."""
    return {
        problem.host: ProvisionerError(f"{problem.host}: {problem.message}", hint=problem.remedy)
        for problem in problems
        if problem.severity == "error" and not is_vital(session.cluster.node(problem.host))
    }


def fetch(session: Session) -> Session:
    """Every artifact that the machines' architectures and roles need, in the controller's cache."""
    cache: dict[str, Mapping[str, CachedArtifact]] = {}
    settings = session.cluster.artifacts
    for arch in ARCHES:
        roles = {role for node in session.nodes if session.facts[node.name].arch == arch for role in node.roles}
        if not roles:
            continue
        wants = artifacts.wanted_for(session.cluster, session.lock, arch=arch, roles=roles)
        files = artifacts.ensure(
            wants,
            session.lock,
            sources=settings.sources,
            mirror=_expanded(settings.mirror, session.workspace),
            progress=Work(session.display),
            proxy=session.cluster.http_proxy,
        )
        cache[arch] = {name: CachedArtifact(file.path, file.sha256, file.size) for name, file in files.items()}
    return replace(session, cache=cache)


def _expanded(mirror: str | None, workspace: Workspace) -> str | None:
    """A mirror's directory is relative to cluster.yaml, wherever the command runs."""
    if mirror is None or "://" in mirror:
        return mirror
    return str(expand(mirror, workspace.cluster_file.parent))


def issue(session: Session) -> Session:
    """Certificates, keys and the administrator's kubeconfigs."""
    # also for those that are set aside: they are part of the cluster
    nodes = [node for node in session.cluster.nodes if session.concerns(node.name)]
    lifetimes = pki.Lifetimes.of(session.cluster)
    if session.renew:
        # none has as much time left as this
        lifetimes = replace(lifetimes, renew_before=lifetimes.leaf + dt.timedelta(days=1))
    made = pki.ensure(session.cluster, session.workspace.pki, now=dt.datetime.now(dt.UTC), nodes=nodes, lifetimes=lifetimes)
    for notice in made.notices:
        session.display.say(f"warning: {notice}")
    write_kubeconfigs(session.cluster, session.workspace, made)
    return replace(session, pki=made)


def write_kubeconfigs(cluster: Cluster, workspace: Workspace, made: Pki, *, server: str = "") -> None:
    """The everyday administrator's kubeconfig and the break-glass one, where they differ from what is there.

    Args:
        server: URL of the current context, one of ``topology.api_urls``; default: the one that the file leads to now.
    """
    urls = topology.api_urls(cluster)
    for name, path in (("admin", workspace.kubeconfig), ("break-glass", workspace.break_glass)):
        leaf = made.leaf(name)
        now = server or (server_of(path.read_bytes()) if path.exists() else "")
        content = render_kubeconfig(
            server=now if now in urls.values() else next(iter(urls.values())),
            ca=made.trust(CaName.CLUSTER),
            cluster=cluster.name,
            user=name,
            certificate=leaf.certificate,
            key=leaf.key,
            others=urls if len(urls) > 1 else {},
        )
        if not path.exists() or path.read_bytes() != content:
            write_atomic(path, content)


def render(session: Session) -> Session:
    """Desired state of every machine, saved for the roles to place."""
    states = {node.name: render_host(_context(session, node)) for node in session.nodes}
    session.workspace.rendered.mkdir(mode=0o700, parents=True, exist_ok=True)
    quarantine.begin(session.workspace.rendered)
    for state in states.values():
        save_host(session.workspace.rendered, state)
    return replace(session, states=states)


def adopt(session: Session, workspace: Workspace) -> Session:
    """Take over what a look has computed in a scratch copy of a workspace: keys, kubeconfigs, desired states."""
    pki.adopt(session.workspace.pki, workspace.pki)
    write_kubeconfigs(session.cluster, workspace, session.the_pki())
    workspace.rendered.mkdir(mode=0o700, parents=True, exist_ok=True)
    quarantine.begin(workspace.rendered)
    for path in session.workspace.rendered.iterdir():
        path.replace(workspace.rendered / path.name)
    return replace(session, workspace=workspace)


def with_tokens(session: Session, nodes: Iterable[str]) -> Session:
    """Give a short-lived bootstrap token to each node that lacks a valid certificate, and render those anew."""
    tokens = {name: pki.new_bootstrap_token() for name in nodes}
    if not tokens:
        return session
    granted = replace(session, tokens=tokens)
    states = {name: render_host(_context(granted, session.cluster.node(name))) for name in tokens}
    for state in states.values():
        save_host(session.workspace.rendered, state)
    return replace(granted, states={**session.states, **states})


def joining_etcd(session: Session, node: Node, members: tuple[tuple[str, str], ...]) -> Session:
    """Render a machine whose member joins a running etcd cluster: it is born into the given list of (name, peer URL)."""
    state = render_host(replace(_context(session, node), joins_etcd=members))
    # placed even where the birth of an earlier member has left one
    files = tuple(replace(file, once=False) if file.role == "etcd" else file for file in state.files)
    state = replace(state, files=files)
    save_host(session.workspace.rendered, state)
    return replace(session, states={**session.states, node.name: state})


def lead_to(session: Session, leaving: Iterable[Node]) -> Session:
    """Render the machines whose proxies change anew: they lead to these control planes as well as to those that stay."""
    names = session.plan.hosts_of("api_proxy")
    planes = tuple(leaving)
    states = {
        node.name: render_host(replace(_context(session, node), leaving_planes=planes))
        for node in session.nodes
        if node.name in names
    }
    for state in states.values():
        save_host(session.workspace.rendered, state)
    return replace(session, states={**session.states, **states})


def pack(session: Session) -> Session:
    """INPUTS: the plan, the cache. OUTPUTS: bundles/, one for each distinct set of artifacts that some machine lacks."""
    discard(session)
    directory = session.workspace.root / "bundles"
    cache = artifacts.Cache.open()
    for name, state in session.states.items():
        lacking = {change.what for change in session.plan.of_host(name) if change.kind == "artifact"}
        items = tuple(item for item in state.artifacts if item.path in lacking)
        codec: bundle.Codec = "zstd" if traits_of(session.facts[name]).zstd else "none"
        path = bundle.write([item.sha256 for item in items], directory, codec=codec, cache=cache) if items else None
        save_shipment(session.workspace.rendered, name, Shipment(items, str(path or ""), codec))
    return session


def discard(session: Session) -> None:
    """Bundles are of use for one run only."""
    shutil.rmtree(session.workspace.root / "bundles", ignore_errors=True)


def _context(session: Session, node: Node) -> HostContext:
    made = session.the_pki()
    facts = session.facts[node.name]
    certificates = pki.bundle_for(session.cluster, made, node)
    if node.has(Role.CONTROL_PLANE):
        certificates = (*certificates, encryption_file(made))
    if node.has(Role.ETCD) and scheduled.wanted(session.cluster):
        certificates = (*certificates, scheduled.key_file(made))
    token = session.tokens.get(node.name)
    kubeconfig = None
    if token:
        kubeconfig = bootstrap(server=topology.API_PROXY_URL, ca=CLUSTER_CA, cluster=session.cluster.name, token=token.text)
    return HostContext(
        cluster=session.cluster,
        node=node,
        traits=traits_of(facts),
        cluster_id=pki.cluster_id(made),
        certificates=certificates,
        artifacts=session.cache[facts.arch],
        images={
            name: Image(f"images/{name}.tar", session.lock.image(name, session.cluster.kubernetes.version))
            for name in (*IMAGES, *(addon.component for addon in addons.wanted_by(session.cluster)))
        },
        bootstrap_kubeconfig=kubeconfig,
        registries=registries.read_files(session.cluster, session.workspace.cluster_file.parent),
    )


def traits_of(facts: HostFacts) -> MachineTraits:
    """What rendering needs of a machine's facts."""
    return MachineTraits(
        cgroup=facts.cgroup,
        can_lower_oom=facts.can_lower_oom,
        container=bool(facts.container),
        swap=facts.swap_mib > 0,
        zstd=facts.commands.get("zstd", False),
        memory_mib=facts.memory_mib,
        resolv_conf=facts.resolv_conf,
        interface=facts.cluster_interface,
        packages_missing=facts.packages_missing,
    )


def encryption_file(made: Pki) -> File:
    """Encryption at rest: Secrets are sealed with secretbox before etcd sees them.

    https://kubernetes.io/docs/tasks/administer-cluster/encrypt-data/
    """
    document = {
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "EncryptionConfiguration",
        "resources": [
            {
                "resources": ["secrets"],
                "providers": [{"secretbox": {"keys": [{"name": "key1", "secret": made.encryption_key}]}}, {"identity": {}}],
            }
        ],
    }
    owner = "kube-apiserver"
    path = "/etc/kubernetes/kube-apiserver/encryption.yaml"
    return File("certificates", path, yaml.safe_dump(document).encode(), mode=0o600, owner=owner, group=owner, secret=True)
